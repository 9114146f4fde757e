"""What Lightning and TensorBoard say about their own habits, and a user cannot act on, is not printed."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOGGING_INTERVAL = "The number of training batches .* is smaller than the logging interval"
# Warnings that Lightning and TensorBoard raise about each other's code.
FOREIGN_WARNINGS = (
    r"You called `self.log\(.*\)` but have no logger configured",  # test and validate write run.json instead
    r"It is recommended to use `self.log\(.*, sync_dist=True\)`",  # torchmetrics has summed over the ranks
    "Be aware that when using `ckpt_path`",  # a run of a Trainer of the user's own
    "Checkpoint directory .* exists and is not empty",  # it does when a run is resumed
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
    r"torch\.distributed\.nn\.functional\.\w+ is deprecated",  # which Lightning gathers with
    "The `srun` command is available on your system",  # which does not mean that it is wanted
    LOGGING_INTERVAL,
    "You're using the WeightAveraging callback, but loading a checkpoint outside",  # which has the averaged weights
    r"You are trying to `self.log\(\)` but `Trainer\(barebones=True\)` is configured",  # as was asked for
    "Trainer already configured with model summary callbacks",
    "The '(train|val|test|predict)_dataloader' does not have many workers",  # the images are in memory
    r"\s*Unable to serialize instance",  # a default that YAML cannot hold, which the class has all the same
    "`.*.configure_optimizers` will be overridden",  # as --optimizer asks for
)
# How the lines begin that Lightning logs of itself as it starts and ends.
GREETINGS = (
    "GPU available", "TPU available", "HPU available", "💡 Tip", "`Trainer.fit` stopped", "Seed set to", "LOCAL_RANK",
    "Restoring states", "Restored all states", "Loaded model weights", "`weights_only` was not", "[rank:", "-----",
    "Initializing distributed", "Using bfloat16", "Using 16bit", "SLURM auto-", "Loading `train_dataloader`",
)  # fmt: skip


def _is_no_greeting(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(GREETINGS)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide Lightning's greetings, warnings about each other's code, and TensorBoard's thread on a full disk."""
    handlers = []
    for name in ("lightning.pytorch", "lightning.fabric"):
        handlers += logging.getLogger(name).handlers
    before = threading.excepthook

    def hide_storage_errors(args: Any) -> None:
        if not isinstance(args.exc_value, OSError):
            before(args)

    threading.excepthook = hide_storage_errors
    try:
        for handler in handlers:
            handler.addFilter(_is_no_greeting)
        with warnings.catch_warnings():
            for message in FOREIGN_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        threading.excepthook = before
        for handler in handlers:
            handler.removeFilter(_is_no_greeting)


def show_logging_interval() -> None:
    """Let Lightning warn, until the end of the command, that too few batches are trained for what steps log."""
    warnings.filterwarnings("default", LOGGING_INTERVAL)
