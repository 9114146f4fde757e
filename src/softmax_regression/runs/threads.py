"""How many CPU threads a run computes with."""

import os

import torch

from softmax_regression.runs.processes import cores


def choose(asked: int | None = None, processes: int = 1) -> int:
    """Set and return the number of threads: what was asked for, what OMP_NUM_THREADS says, or one.

    Args:
        asked: A flag, or what a run that is resumed had; None to decide here.
        processes: Processes on this machine, which share its cores.
    """
    if asked is None and not os.environ.get("OMP_NUM_THREADS"):
        asked = 1
    if asked is not None:
        torch.set_num_threads(max(1, min(asked, cores() // processes or 1)))
    return torch.get_num_threads()
