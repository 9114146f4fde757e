"""Study softmax regression on Fashion-MNIST: `python study.py --help`."""

import sys

from softmax_regression.studies import main

if __name__ == "__main__":
    sys.exit(main())
