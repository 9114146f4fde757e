"""Train, score and use softmax regression on Fashion-MNIST: `python train.py --help`."""

import os
import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # no traceback of the imports, which take seconds
    if "SLURM_JOB_ID" in os.environ:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # it waits until training can save
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or torch warns of addresses without a host name
    in_terminal = sys.stderr is not None and sys.stderr.isatty()
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if in_terminal and is_first:
        print("importing torch and lightning ...", end="\r", file=sys.stderr, flush=True)
    from softmax_regression.commands.train import main

    if in_terminal and is_first:
        print(end="\033[K", file=sys.stderr, flush=True)  # that line is gone
    code = main()
    if code > 128:  # interrupted: what a launcher sends to the others of a run must not change the exit code
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    sys.exit(code)
