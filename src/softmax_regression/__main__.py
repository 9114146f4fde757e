"""Every command of train.py and of study.py, from any folder.

Command: softmax-regression COMMAND, or python -m softmax_regression COMMAND
"""

import sys
from collections.abc import Sequence

from softmax_regression.commands import study, train


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    args = sys.argv[1:] if args is None else list(args)
    if args[:1] in ([], ["-h"], ["--help"]):
        print(f"Studies, each with a --help of its own: {', '.join(study.STUDIES)}\n")
    return study.main(args) if args and args[0] in study.STUDIES else train.main(args)


if __name__ == "__main__":
    sys.exit(main())
