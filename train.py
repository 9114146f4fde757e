"""Train, score and use softmax regression on Fashion-MNIST: `python train.py --help`."""

import sys

from softmax_regression.cli import main

if __name__ == "__main__":
    sys.exit(main())
