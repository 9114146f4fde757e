"""Hides warnings and messages of Lightning and TensorBoard that a user cannot act on."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOGGING_INTERVAL = "The number of training batches .* is smaller than the logging interval"
# Each with the reason why it does not matter here.
HIDDEN_WARNINGS = (
    r"You called `self.log\(.*\)` but have no logger configured",  # test and validate write run.json instead
    "Be aware that when using `ckpt_path`",  # a run of a Trainer of the user's own
    "Checkpoint directory .* exists and is not empty",  # as in every resumed run
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
    r"torch\.distributed\.nn\.functional\.\w+ is deprecated",  # Lightning gathers with it
    "The `srun` command is available on your system",  # nobody has to use it
    LOGGING_INTERVAL,
    "You're using the WeightAveraging callback, but loading a checkpoint outside",  # it has the averaged weights
    r"You are trying to `self.log\(\)` but `Trainer\(barebones=True\)` is configured",  # the user asked for this
    "Trainer already configured with model summary callbacks",
    "The '(train|val|test|predict)_dataloader' does not have many workers",  # the images are in memory
    r"\s*Unable to serialize instance",  # a default of a class, which YAML cannot hold
    "`.*.configure_optimizers` will be overridden",  # as --optimizer asks for
)
# The first words of messages that Lightning logs as it starts and ends.
HIDDEN_MESSAGES = (
    "-----",
    "GPU available",
    "Initializing distributed",
    "LOCAL_RANK",
    "Loaded model weights",
    "Loading `train_dataloader`",
    "Restored all states",
    "Restoring states",
    "SLURM auto-",
    "Seed set to",
    "TPU available",
    "Using 16bit",
    "Using bfloat16",
    "[rank:",
    "`Trainer.fit` stopped",
    "`weights_only` was not",
    "💡 Tip",
)


def _is_shown(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(HIDDEN_MESSAGES)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide these messages and warnings in a block, and the traceback of TensorBoard's thread on a full disk."""
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
            handler.addFilter(_is_shown)
        with warnings.catch_warnings():
            for message in HIDDEN_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        threading.excepthook = before
        for handler in handlers:
            handler.removeFilter(_is_shown)
