"""What every image classifier shares: the four steps, exact scores over an epoch, and the history of a run.

Source: "The Base Classification Model", Dive into Deep Learning, section 4.3.
"""

from typing import Any, cast

import torch.nn.functional as F  # noqa: N812 (the name that PyTorch's own documentation uses)
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from softmax_regression.errors import DivergedError
from softmax_regression.metrics import EpochScores

STAGES = ("train", "val", "test")
Batch = tuple[Tensor, Tensor]  # images (n, ...), classes (n,)
# From 2**24 on neighbours in float32 lie two nats apart, so that a mean cross-entropy says nothing any more. Far
# beyond, for the loss of a subclass may be a sum, such as that of squares over the pixels of a minibatch.
MAX_LOSS = 1e12


class Classifier(LightningModule):
    """A LightningModule whose `forward` returns logits (n, num_classes); a subclass adds net and optimizer.

    Args:
        num_classes: Number of classes.

    Attributes:
        history: One row of metrics an epoch, with `epoch`, the number of epochs done, and `lr`.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.train_scores, self.val_scores, self.test_scores = (EpochScores(self.metrics()) for _ in STAGES)
        self.history: list[dict[str, float]] = []
        self._validated: dict[str, float] = {}  # the metrics of this epoch's last validation

    def metrics(self) -> dict[str, Metric]:
        """Return the metrics of logits (n, k) and classes (n,) beside the loss; a subclass may add some."""
        return {"acc": MulticlassAccuracy(self.num_classes, average="micro", validate_args=False)}

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy, in nats, of logits (n, k) and classes y (n,)."""
        return F.cross_entropy(logits, y)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a minibatch."""
        return self._step(batch, "train")["loss"]

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Score a minibatch; return its `loss`, `logits` (n, k) and `labels` (n,) for callbacks."""
        return self._step(batch, self._validation_stages()[dataloader_idx])

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Score a minibatch; return its `loss`, `logits` (n, k) and `labels` (n,) for callbacks."""
        return self._step(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Predict n images.

        Returns:
            `class` (n,) int64; `probability` of that class (n,); the distribution `probabilities` (n, k).
        """
        probabilities = self(batch[0]).softmax(1)
        probability, predicted = probabilities.max(1)
        return {"class": predicted, "probability": probability, "probabilities": probabilities}

    def _step(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        x, y = batch
        logits = self(x)
        loss = self.loss(logits, y)
        self._scores(stage).update(logits.detach(), y, loss.detach())
        return {"loss": loss, "logits": logits, "labels": y}

    def _scores(self, stage: str) -> EpochScores:
        return cast(EpochScores, getattr(self, f"{stage}_scores"))

    def _validation_stages(self) -> list[str]:
        """The stages that the validation loaders score, by their names if they have any."""
        loaders = self.trainer.val_dataloaders
        names = list(loaders) if isinstance(loaders, dict) else [""] * len(loaders or [""])
        return [name if name in STAGES else "val" for name in names]

    def _computed(self, stage: str) -> dict[str, float]:
        """Return the metrics of a stage as `stage/name`, and begin to count anew."""
        return {f"{stage}/{name}": value for name, value in self._scores(stage).compute().items()}

    def on_train_start(self) -> None:
        """Let a schedule of the step, such as cosine, hold at once if a run resumes with another length."""
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(schedule := config.scheduler, LambdaLR):
                for i, group in enumerate(schedule.optimizer.param_groups):
                    group["lr"] = schedule.base_lrs[i] * schedule.lr_lambdas[i](schedule.last_epoch)

    def on_train_epoch_start(self) -> None:
        """Forget the validation of an earlier epoch."""
        self._validated = {}

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of every set that was scored."""
        values = {k: v for stage in dict.fromkeys(self._validation_stages()) for k, v in self._computed(stage).items()}
        self.log_dict(values)
        if not self.trainer.sanity_checking:
            self._validated = values

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test set."""
        self.log_dict(self._computed("test"))

    def on_train_epoch_end(self) -> None:
        """Log the metrics of the epoch, before any checkpoint of it is saved, and add a row to the history.

        Raises:
            DivergedError: The training loss is not below MAX_LOSS.
        """
        values, epoch = self._computed("train"), self.current_epoch + 1
        if not abs(loss := values.get("train/loss", 0.0)) < MAX_LOSS:
            raise DivergedError(
                f"train/loss={loss} in epoch {epoch}, noticed at step {self.global_step}: the run diverged; "
                "lower model.lr or model.init_std, or use model.loss torch instead of naive"
            )
        self.log_dict(values, logger=False)
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.history.append({"epoch": epoch, **values, **self._validated, "lr": lr})
        for logger in self.trainer.loggers:
            logger.log_metrics(values | {"lr": lr, "epoch": self.current_epoch}, step=self.global_step - 1)
            logger.save()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what an exact resume needs: the rows so far, and the sums of an epoch that is under way."""
        checkpoint["history"] = self.history
        checkpoint["validated"] = self._validated
        checkpoint["sums"] = self.train_scores.sums(self.trainer.world_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what `on_save_checkpoint` added."""
        self.history = checkpoint.get("history", [])
        self._validated = checkpoint.get("validated", {})
        world_size = self.trainer.world_size if self._trainer else 1
        self.train_scores.load_sums(checkpoint.get("sums", {}), self.global_rank, world_size)
