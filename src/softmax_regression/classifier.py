"""The base class of image classifiers: the four steps, and exact scores over an epoch.

Source: "The Base Classification Model", Dive into Deep Learning, section 4.3 of the newer edition.
"""

import re
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 (the name that PyTorch's own documentation uses)
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from softmax_regression.errors import DivergedError, InputError
from softmax_regression.metrics import EpochScores, learning_rate

Batch = tuple[Tensor, Tensor]  # images (n, ...), classes (n,)
# Above 2**24, neighbouring float32 numbers differ by two nats, so that a mean cross-entropy has no meaning. The limit
# is much higher, as the loss of a subclass may be a sum, for example of squares over the pixels of a minibatch.
MAX_LOSS = 1e12


class Classifier(LightningModule):
    """A LightningModule whose `forward` returns logits (n, num_classes); a subclass adds net and optimizer.

    It logs `train/loss`, `train/acc`, `val/...` and `test/...`, means over the images of an epoch, by `self.log`.
    Each of several validation or test loaders has its own metrics: `hard/loss` for the loader `hard` of a dictionary,
    `val/loss/dataloader_idx_1` for a loader of a list.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.train_scores = EpochScores(self.metrics())
        self.loader_scores = nn.ModuleList()  # one for each validation or test loader

    def metrics(self) -> dict[str, Metric]:
        """Return the metrics besides the loss, which take logits (n, k) and classes (n,); a subclass may add some."""
        return {"acc": MulticlassAccuracy(self.num_classes, average="micro", validate_args=False)}

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy, in nats, of logits (n, k) and classes y (n,)."""
        return F.cross_entropy(logits, y)

    def setup(self, stage: str) -> None:
        """Reset the scores, as the module may have been trained before.

        Raises:
            InputError: A metric is not one number.
        """
        _check_scalars(self.metrics(), self.num_classes)
        self.train_scores.reset()
        self.loader_scores = nn.ModuleList()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a minibatch."""
        output = self._score(batch, self.train_scores, "train")
        return output["loss"]

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Score a minibatch; return its `loss`, `logits` (n, k) and `labels` (n,) for callbacks."""
        return self._score_loader(batch, "val", self.trainer.val_dataloaders, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Score a minibatch; return its `loss`, `logits` (n, k) and `labels` (n,) for callbacks."""
        return self._score_loader(batch, "test", self.trainer.test_dataloaders, dataloader_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Predict n images.

        Returns:
            `class` (n,) int64; `probability` of that class (n,); the distribution `probabilities` (n, k).
        """
        probabilities = self(batch[0]).softmax(1)
        probability, predicted = probabilities.max(1)
        return {"class": predicted, "probability": probability, "probabilities": probabilities}

    def _score_loader(self, batch: Batch, stage: str, loaders: Any, index: int) -> dict[str, Tensor]:
        """Score a minibatch of one of the loaders; its metrics have the name of the loader or of the stage."""
        while len(self.loader_scores) <= index:
            self.loader_scores.append(EpochScores(self.metrics()).to(self.device))
        scores = cast(EpochScores, self.loader_scores[index])
        if not isinstance(loaders, Mapping):
            return self._score(batch, scores, stage)
        name = list(loaders)[index]
        if name == "train":  # the metrics of the training have this name
            name = f"{stage}_train"
        return self._score(batch, scores, name, add_dataloader_idx=False)

    def _score(self, batch: Batch, scores: EpochScores, stage: str, **options: Any) -> dict[str, Tensor]:
        _check_batch(batch)
        x, y = batch
        logits = self(x)
        loss = self._mean_loss(logits, y)
        first = not scores.started
        scores.update(logits.detach(), y, loss.detach())
        if first:  # once an epoch: Lightning computes the values at its end
            options |= {"on_step": False, "on_epoch": True}
            for name, metric in scores.metrics.items():
                self.log(f"{stage}/{name}", cast(Metric, metric), metric_attribute=name, **options)
        return {"loss": loss, "logits": logits, "labels": y}

    def _mean_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the loss, one number; a label that is no class is an InputError."""
        try:
            loss = self.loss(logits, y)
        except IndexError as error:
            if not re.match(r"Target \S+ is out of bounds", str(error)):  # torch's, of a label that is no class
                raise
            expected = f"expected classes from 0 to {logits.shape[1] - 1}"
            raise InputError(f"{error} {expected}; change the labels, or num_classes of the model") from error
        if loss.ndim:
            raise InputError(f"loss of shape {tuple(loss.shape)}: expected one number; return its mean")
        return loss

    def on_train_start(self) -> None:
        """Compute the learning rate of a LambdaLR anew: a run may be resumed with another length."""
        for config in self.trainer.lr_scheduler_configs:
            schedule = config.scheduler
            if isinstance(schedule, LambdaLR):
                for i, group in enumerate(schedule.optimizer.param_groups):
                    group["lr"] = schedule.base_lrs[i] * schedule.lr_lambdas[i](schedule.last_epoch)

    def on_train_epoch_start(self) -> None:
        """Reset the scores; a resumed run may have loaded those of the last epoch."""
        self.train_scores.reset()

    def on_train_epoch_end(self) -> None:
        """Check the loss of the epoch before a checkpoint is saved, and log the learning rate.

        Raises:
            DivergedError: The training loss is not below MAX_LOSS.
        """
        loss = float(self.trainer.callback_metrics.get("train/loss", 0.0))
        if not abs(loss) < MAX_LOSS:
            raise DivergedError(
                f"train/loss={loss} in epoch {self.current_epoch + 1}, noticed at step {self.global_step}: the run "
                "diverged; lower model.lr or model.init_std, or use model.loss torch instead of naive"
            )
        self.train_scores.reset()  # a checkpoint at the end of an epoch must not have them
        lr = learning_rate(self.trainer)
        if lr is not None:
            self.log("lr", lr, reduce_fx="max", sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the scores of an unfinished epoch, for an exact resume."""
        checkpoint["softmax_regression.scores"] = self.train_scores.saved()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the scores that `on_save_checkpoint` has added."""
        if "softmax_regression.scores" in checkpoint:
            self.train_scores.load(checkpoint["softmax_regression.scores"], self.global_rank)


def _check_batch(batch: object) -> None:
    """Refuse a minibatch that is no pair of images and classes (n,)."""
    if isinstance(batch, list | tuple) and len(batch) == 2:
        y = batch[1]
        if isinstance(y, Tensor) and y.ndim == 1 and y.dtype in (torch.int64, torch.uint8):
            return
        shape = f" and shape {tuple(y.shape)}" if isinstance(y, Tensor) else ""
        found = f"labels of the type {getattr(y, 'dtype', type(y).__name__)}{shape}"
    else:
        found = f"batches of the type {type(batch).__name__}"
    raise InputError(
        f"{found}: a Classifier takes pairs, images and classes (n,) of torch.int64; "
        "let the data module's collate_fn give them, or the model's on_before_batch_transfer"
    )


def _check_scalars(metrics: Mapping[str, Metric], num_classes: int) -> None:
    """Refuse a metric whose value is not one number, as it could be neither shown nor compared."""
    for name, metric in metrics.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of too few examples
                metric.update(torch.zeros(2, num_classes), torch.zeros(2, dtype=torch.long))
                value = metric.compute()
        except Exception:
            continue
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"metric {name}: its value is no single number but {shape}; choose an average, as 'macro'")
