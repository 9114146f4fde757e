"""What is said by others and not repeated here: of Lightning's habits, and about each other's code."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Said by Lightning and TensorBoard about each other's code; nothing that a user here can act on.
FOREIGN_WARNINGS = (
    r"You called `self.log\(.*\)` but have no logger configured",  # test and validate write run.json instead
    r"It is recommended to use `self.log\(.*, sync_dist=True\)`",  # torchmetrics has summed over the ranks
    "Be aware that when using `ckpt_path`",  # a run of a Trainer of the user's own
    "Checkpoint directory .* exists and is not empty",  # it does when a run is resumed
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
    r"torch\.distributed\.nn\.functional\.\w+ is deprecated",  # which Lightning gathers with
    "The `srun` command is available on your system",  # which does not mean that it is wanted
    "The number of training batches .* is smaller than the logging interval",  # nothing is logged on a step
    "Trainer already configured with model summary callbacks",
    "The '(train|val|test|predict)_dataloader' does not have many workers",  # the images are in memory
    "`.*.configure_optimizers` will be overridden",  # as --optimizer asks for
)
CHATTER = (  # what Lightning says of itself as it starts
    "GPU available", "TPU available", "HPU available", "💡 Tip", "`Trainer.fit` stopped", "Seed set to",
    "LOCAL_RANK", "Restoring states", "Restored all states", "Loaded model weights", "`weights_only` was not",
    "Initializing distributed", "[rank:", "-----", "Using bfloat16", "Using 16bit", "SLURM auto-",
    "Loading `train_dataloader`",
)  # fmt: skip


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Let nothing be said that a user cannot act on: of Lightning's habits, or by TensorBoard's thread."""

    def told(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(CHATTER)

    names, before = ("lightning.pytorch", "lightning.fabric"), threading.excepthook
    handlers = [handler for name in names for handler in logging.getLogger(name).handlers]
    threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else before(args)
    try:
        for handler in handlers:
            handler.addFilter(told)
        with warnings.catch_warnings():
            for message in FOREIGN_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        threading.excepthook = before
        for handler in handlers:
            handler.removeFilter(told)
