"""Study softmax regression on Fashion-MNIST: `python study.py --help`."""

import os
import signal
import sys

if __name__ == "__main__":
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # no traceback of the imports
    if watched := sys.stderr and sys.stderr.isatty():
        print("importing torch and lightning ...", end="\r", file=sys.stderr, flush=True)
    from softmax_regression.commands.study import main

    if watched:
        print(end="\033[K", file=sys.stderr, flush=True)  # that line is gone
    signal.signal(signal.SIGINT, before)
    sys.exit(main())
