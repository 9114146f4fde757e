"""Study softmax regression on Fashion-MNIST: `python study.py --help`."""

import os
import signal
import sys

if __name__ == "__main__":
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # no traceback of the imports
    in_terminal = sys.stderr is not None and sys.stderr.isatty()
    if in_terminal:
        print("importing torch and lightning ...", end="\r", file=sys.stderr, flush=True)
    from softmax_regression.commands.study import main

    if in_terminal:
        print(end="\033[K", file=sys.stderr, flush=True)  # that line is gone
    signal.signal(signal.SIGINT, before)
    sys.exit(main())
