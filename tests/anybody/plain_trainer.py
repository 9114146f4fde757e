"""What a plain Trainer makes of a case: what every command is compared with."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cases import Case
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from commands import scalars

EPOCHS = 3
LOG_EVERY = 2  # steps


class LoggedMetrics(Callback):
    """Keep what has been logged by the end of each epoch, once all that happens there has happened."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch > len(self.epochs):
            self.epochs.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    on_train_end = on_train_epoch_start


@dataclass
class Plain:
    """The weights in the end, what was logged and scored, and the best value of the monitored metric."""

    weights: dict[str, Tensor]
    epochs: list[dict[str, float]]
    scalars: dict[str, list[tuple[int, float]]]
    best: float
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


def train_plainly(case: Case, folder: Path) -> Plain:
    """Train and score by a plain Trainer; warnings are Lightning's of itself."""
    seed_everything(0, verbose=False)
    data = case.data()
    module = case.module()
    best = ModelCheckpoint(folder, monitor=case.monitor)
    logged = LoggedMetrics()
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    options: dict[str, Any] = {
        "accelerator": "cpu", "max_epochs": EPOCHS, "log_every_n_steps": LOG_EVERY, "num_sanity_val_steps": 0,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    options |= case.options
    trainer = Trainer(**options, logger=logger, callbacks=[best, case.callback(), logged])
    with warnings.catch_warnings(action="ignore"):
        trainer.fit(module, data)
        assert best.best_model_score is not None
        weights = {name: weight.clone() for name, weight in module.state_dict().items()}
        plain = Plain(weights, logged.epochs, scalars(folder), best.best_model_score.item())
        # Another Trainer, as a person would start one: that of EMAWeightAveraging scores the weights of the training.
        scorer = Trainer(**options, logger=False, enable_checkpointing=False)
        for command in ("test", "validate"):
            score = getattr(scorer, command)
            plain.scores[command] = {}
            for row in score(module, data, ckpt_path=best.best_model_path, verbose=False, weights_only=False):
                plain.scores[command].update(row)
    return plain
