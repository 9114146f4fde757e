"""Train, score and use softmax regression on Fashion-MNIST: `python train.py --help`."""

import os
import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # no traceback of the imports, which take seconds
    from softmax_regression.commands.train import main

    sys.exit(main())
