"""Softmax regression as a LightningModule.

Source: "Concise Implementation of Softmax Regression", Dive into Deep Learning, section 4.5.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812 (the name that PyTorch's own documentation uses)
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.utilities.distributed import gather_all_tensors

from softmax_regression import numerics
from softmax_regression.data.minibatches import Batches, Minibatch
from softmax_regression.errors import DivergedError, InputError

LOSSES: dict[str, Callable[..., Tensor]] = {
    "torch": F.cross_entropy,
    "stable": numerics.cross_entropy,
    "naive": numerics.naive_cross_entropy,
}


class SoftmaxRegression(LightningModule):
    """A linear model of images, trained by minibatch SGD on the cross-entropy of its logits.

    Args:
        lr: Learning rate, above 0; the first one if `schedule` is cosine.
        weight_decay: L2 penalty on weights and biases, as in torch.optim.SGD.
        momentum: Momentum of SGD, in [0, 1).
        dropout: Probability, in [0, 1), with which a pixel is dropped in training.
        schedule: `constant`, or `cosine` to let the learning rate fall to 0 over the run.
        loss: `torch` for F.cross_entropy; `stable` and `naive` for the forms in `numerics`.
        init_std: Standard deviation of the initial weights, from N(0, init_std²); biases start at 0.
        num_classes: Number of classes.
        seed: Decides the initial weights and the dropped pixels.

    Attributes:
        linear: The weights (num_classes, 784) and biases (num_classes,).
        history: One row of metrics an epoch, with the number of epochs done.

    Raises:
        InputError: A value is out of range.

    >>> SoftmaxRegression()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        lr: float = 0.1,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        dropout: float = 0.0,
        schedule: Literal["constant", "cosine"] = "constant",
        loss: Literal["torch", "stable", "naive"] = "torch",
        init_std: float = 0.01,
        num_classes: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self._check_hparams()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.linear = nn.Linear(28 * 28, num_classes)
        nn.init.normal_(self.linear.weight, std=init_std, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.linear.bias)
        self.onehot: Tensor
        self.register_buffer("onehot", torch.eye(num_classes), persistent=False)
        self.train_metrics = self._metrics("train")
        self.val_metrics = self._metrics("val")
        self.test_metrics = self._metrics("test")
        self.epoch_metrics: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self.example_input_array = torch.zeros(1, 1, 28, 28)
        self.automatic_optimization = False  # a training_step makes several updates

    def _check_hparams(self) -> None:
        for name, low, high in (
            ("lr", 0.0, math.inf), ("weight_decay", 0.0, math.inf), ("momentum", 0.0, 1.0),
            ("dropout", 0.0, 1.0), ("init_std", 0.0, math.inf), ("num_classes", 1, math.inf),
        ):  # fmt: skip
            value = self.hparams[name]
            if not low <= value < high or (name == "lr" and value == 0):
                bounds = f"{'above' if name == 'lr' else 'at least'} {low:g}"
                bounds += " and finite" if high == math.inf else f" and below {high:g}"
                raise InputError(f"{name}={value}: must be {bounds}; change model.{name}")

    def _metrics(self, stage: str) -> MetricCollection:
        # Neither metric waits for the device: a NaN is found once an epoch, labels were checked when loaded.
        loss = MeanMetric(nan_strategy="disable")
        acc = MulticlassAccuracy(self.hparams["num_classes"], average="micro", validate_args=False)
        return MetricCollection({"loss": loss, "acc": acc}, prefix=f"{stage}/", compute_groups=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images.

        Args:
            x: (n, 1, 28, 28) or (n, 28, 28), float in [0, 1] or uint8 in 0..255.

        Returns:
            (n, num_classes) logits; `softmax(1)` of them are the probabilities.
        """
        logits: Tensor = self.linear(self._pixels(x))
        return logits

    def _pixels(self, x: Tensor) -> Tensor:
        """Images (n, 1, 28, 28) or (n, 28, 28) -> (n, 784), in [0, 1]; in training some are dropped."""
        if not x.is_floating_point():
            x = x / 255
        pixels: Tensor = self.dropout(x.flatten(1).to(self.linear.weight.dtype))
        return pixels

    def on_train_start(self) -> None:
        """Look up once what every update needs, and tell Lightning where a resumed epoch goes on."""
        self._optimizer = cast(Optimizer, self.optimizers(use_pl_optimizer=False))
        self._scheduler = cast(LRScheduler | None, self.lr_schedulers())
        if isinstance(self._scheduler, LambdaLR):  # a resumed run may have got another end
            factor = self._scheduler.lr_lambdas[0](self._scheduler.last_epoch)
            self._optimizer.param_groups[0]["lr"] = self._scheduler.base_lrs[0] * factor
        self._scaler: torch.amp.GradScaler | None = getattr(self.trainer.precision_plugin, "scaler", None)
        loop = self.trainer.fit_loop.epoch_loop
        self._steps = loop.manual_optimization.optim_step_progress
        batches = cast(Batches, self.trainer.train_dataloader)
        if batches.position:  # resumed within an epoch, whose lists may have had another length
            lists = loop.batch_progress.current
            lists.increment_by(batches.position // batches.steps - lists.ready)

    def training_step(self, batch: Iterable[Minibatch], batch_idx: int) -> None:
        """Learn from some minibatches, one update each."""
        self._step(batch, "train")

    def validation_step(
        self, batch: Iterable[Minibatch], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Score minibatches; return `logits` (n, k) and `labels` (n,) for the callbacks."""
        return self._step(batch, self._eval_stages()[dataloader_idx])

    def test_step(self, batch: Iterable[Minibatch], batch_idx: int) -> dict[str, Tensor]:
        """Score minibatches; return `logits` (n, k) and `labels` (n,) for the callbacks."""
        return self._step(batch, "test")

    def predict_step(self, batch: Iterable[Minibatch], batch_idx: int) -> dict[str, Tensor]:
        """Predict minibatches of n images.

        Returns:
            `class` (n,) int64; `probability` of that class (n,); the distribution `probabilities` (n, k).
        """
        probabilities = torch.cat([self(images) for images, _, _ in batch]).softmax(1)
        probability, predicted = probabilities.max(1)
        return {"class": predicted, "probability": probability, "probabilities": probabilities}

    def _step(self, minibatches: Iterable[Minibatch], stage: str) -> dict[str, Tensor]:
        """Score minibatches, in training learn from each, and add them to the metrics of the epoch."""
        scored = [(self._learn(*each) if self.training else self(each[0]), each[1]) for each in minibatches]
        logits, labels = (torch.cat(parts) for parts in zip(*scored, strict=True))
        metrics = self._metrics_of(stage)
        if n := len(labels):  # a process may have no share of a small minibatch
            mean = LOSSES[self.hparams["loss"]](logits, labels, reduction="sum") / n
            # Once for each image: torchmetrics 1.9 forgets a weight where it does not look for NaNs.
            metrics["loss"].update(mean.expand(n))
            metrics["acc"].update(logits, labels)
        return {"logits": logits, "labels": labels}

    def _learn(self, images: Tensor, labels: Tensor, size: int) -> Tensor:
        """Make one step of SGD with this rank's share of a minibatch of `size`, and count it.

        Not through Lightning's wrapper of the optimizer: it asks every callback for its hooks at each step,
        which costs as much as the step itself.

        Returns:
            The logits (b, k) of the b images of the share, from before the step.
        """
        if self.hparams["dropout"]:
            self._seed_dropout()
        logits, gradients = self._gradients(self._pixels(images), labels, size)
        if self.trainer.world_size > 1:
            shared = self.trainer.strategy.reduce(parameters_to_vector(gradients), reduce_op="sum")
            vector_to_parameters(cast(Tensor, shared), gradients)
        for parameter, gradient in zip(self.linear.parameters(), gradients, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        self._steps.increment_ready()
        if self._scaler:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        else:
            self._optimizer.step()
        self._steps.increment_completed()
        if self._scheduler:
            self._scheduler.step()
        return logits

    def _gradients(self, x: Tensor, labels: Tensor, size: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the logits (b, k) of pixels x (b, 784), and the gradients of their summed losses / `size`.

        For the loss `torch` they are written out, softmax minus one-hot (section 4.1.2 of the book), which is
        faster than autograd; the forms in `numerics` are differentiated by it.
        """
        if self.hparams["loss"] != "torch":
            logits = self.linear(x)
            loss = LOSSES[self.hparams["loss"]](logits, labels, reduction="sum") / size
            return logits.detach(), torch.autograd.grad(self._scaled(loss), tuple(self.linear.parameters()))
        with torch.no_grad():
            weight, bias = self.linear.parameters()
            logits = torch.addmm(bias[:, None], weight, x.T)
            excess = self._scaled((logits.softmax(0) - self.onehot.index_select(1, labels)) / size)
            return logits.T, (excess.to(x.dtype) @ x, excess.sum(1))

    def _scaled(self, value: Tensor) -> Tensor:
        return self._scaler.scale(value) if self._scaler else value

    def _seed_dropout(self) -> None:
        # A function of (seed, step, rank) alone, so that a resumed run drops the same pixels.
        step = self.global_step * self.trainer.world_size + self.global_rank
        torch.manual_seed(self.hparams["seed"] * 1_000_003 + step)

    def _eval_stages(self) -> list[str]:
        loaders = self.trainer.val_dataloaders
        return list(loaders) if isinstance(loaders, dict) else ["val"]

    def _metrics_of(self, stage: str) -> MetricCollection:
        return cast(MetricCollection, getattr(self, f"{stage}_metrics"))

    def _log_epoch(self, stage: str) -> None:
        """Make the exact metrics of the epoch known to callbacks, and forget the epoch's sums."""
        metrics = self._metrics_of(stage)
        values = {name: value.item() for name, value in metrics.compute().items()}
        metrics.reset()
        self.epoch_metrics |= values
        self.log_dict(values, logger=self.trainer.state.fn != TrainerFn.FITTING)  # fit writes whole rows

    def on_train_epoch_end(self) -> None:
        """Write one row of metrics an epoch to the loggers, before any checkpoint of the epoch is saved.

        Raises:
            DivergedError: The training loss is not finite.
        """
        self._log_epoch("train")
        loss, epoch = self.epoch_metrics["train/loss"], self.current_epoch + 1
        if not math.isfinite(loss):
            raise DivergedError(
                f"train/loss={loss} in epoch {epoch}, noticed at step {self.global_step}: the run diverged; "
                "lower model.lr or model.init_std, or use model.loss torch instead of naive"
            )
        row = {"epoch": epoch, **self.epoch_metrics, "lr": self._optimizer.param_groups[0]["lr"]}
        self.history.append(row)
        self.epoch_metrics = {}
        for logger in self.trainer.loggers:
            logger.log_metrics({name: value for name, value in row.items() if name != "epoch"}, step=epoch)
            logger.save()

    def on_validation_epoch_end(self) -> None:
        """Log the exact metrics of every set that was scored."""
        for stage in self._eval_stages():
            self._log_epoch(stage)

    def on_test_epoch_end(self) -> None:
        """Log the exact metrics of the test set."""
        self._log_epoch("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what an exact resume needs: the rows so far, and the sums of an epoch that is under way."""
        checkpoint["history"] = self.history
        gather = gather_all_tensors if self.trainer.world_size > 1 else lambda value: [value]
        checkpoint["sums"] = {  # each (ranks, ...)
            name: {
                key: torch.stack(gather(cast(Tensor, value))) for key, value in metric.metric_state.items()
            }
            for name, metric in self.train_metrics.items(keep_base=True)
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what `on_save_checkpoint` added."""
        self.history = checkpoint["history"]
        world_size = self.trainer.world_size if self._trainer else 1
        for name, states in checkpoint["sums"].items():
            for state, ranks in states.items():
                same = len(ranks) == world_size  # if not, one of them takes it all
                mine = ranks[self.global_rank] if same else ranks.sum(0) * (self.global_rank == 0)
                setattr(self.train_metrics[name], state, mine)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return minibatch SGD, and the learning rate as a function of the step if it is not constant."""
        lr, momentum = self.hparams["lr"], self.hparams["momentum"]
        optimizer = torch.optim.SGD(
            self.parameters(), lr, momentum, weight_decay=self.hparams["weight_decay"], foreach=False
        )
        if self.hparams["schedule"] == "constant":
            return optimizer
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise InputError(f"schedule=cosine: needs the end of the run, got max_epochs={epochs}; set it")

        def factor(step: int) -> float:
            if step == 0:  # asked for before there is a loader
                return 1.0
            total = epochs * cast(Batches, self.trainer.train_dataloader).steps_per_epoch
            return 0.5 * (1 + math.cos(math.pi * min(step / total, 1)))

        return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, factor)}
