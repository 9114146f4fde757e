"""Every command of train.py and of study.py, from any folder.

Command: softmax-regression COMMAND, or python -m softmax_regression COMMAND
"""

import sys
from collections.abc import Sequence

from softmax_regression.commands import study, train


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    words = sys.argv[1:] if args is None else list(args)
    if words and words[0] in study.STUDIES:
        return study.main(words)
    if not words or words[0] in ("-h", "--help"):
        print(f"Studies, each with a --help of its own: {', '.join(study.STUDIES)}\n")
    return train.main(words)


if __name__ == "__main__":
    sys.exit(main())
