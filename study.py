"""Study softmax regression on Fashion-MNIST: `python study.py --help`."""

import os
import signal
import sys

if __name__ == "__main__":
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # no traceback of the imports
    from softmax_regression.commands.study import main

    signal.signal(signal.SIGINT, before)
    sys.exit(main())
