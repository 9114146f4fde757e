"""Train and test the configurations of a sweep: in a stack, or one at a time by Lightning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.seed import isolate_rng

from softmax_regression.data.minibatches import Minibatches
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError
from softmax_regression.runs.loops import can_test
from softmax_regression.studies import alone
from softmax_regression.studies.learning import Scores, Watcher, held_out, learn
from softmax_regression.studies.sweep.space import COUNTS, Params, Plan, count


def longest(configurations: Sequence[Params]) -> int:
    """Return the number of epochs of the longest configuration."""
    return max(count(params, "epochs") for params in configurations)


def hyperparameters(params: Params) -> Params:
    """Return the hyperparameters of a configuration that are parameters of the model."""
    return {name: value for name, value in params.items() if name not in COUNTS}


@dataclass(frozen=True)
class StackTraining:
    """Train softmax regressions together, on the training images of `fit`."""

    plan: Plan
    options: Mapping[str, Any]  # parameters of the data module that are not searched
    images: FashionMNISTDataModule

    def train(self, configurations: Sequence[Params], seed: int, watch: Watcher | None = None) -> list[Scores]:
        """Return the scores of each configuration, after every epoch."""
        variants = [hyperparameters(params) for params in configurations]
        sets = {"val": held_out(self.images)["val"]}
        epochs = longest(configurations)
        scores = learn(variants, self._loader(configurations[0], seed), epochs, seed, sets, watch=watch)
        for params, of_model in zip(configurations, scores, strict=True):
            for values in of_model.values():
                del values[count(params, "epochs") :]
        return scores

    def test(self, params: Params, seed: int) -> dict[str, float]:
        """Train a configuration again and score it once on the test images."""
        epochs = count(params, "epochs")
        sets = {"test": held_out(self.images)["test"]}
        (scores,) = learn([hyperparameters(params)], self._loader(params, seed), epochs, seed, sets, every=epochs)
        return {name: scores[name][0] for name in ("test/loss", "test/acc")}

    def _loader(self, params: Params, seed: int) -> Minibatches:
        data, index = self.images.loaded, self.images.train_index
        used = {"train_size": len(index), "batch_size": self.images.batch_size, **params}
        train_size, batch_size = count(used, "train_size"), count(used, "batch_size")
        for name, value, most in (("train_size", train_size, len(index)), ("batch_size", batch_size, train_size)):
            if value > most:
                raise InputError(f"{name}={value}: must be at most {most}, the number of training images")
        return Minibatches(data.images, data.labels, index[:train_size], batch_size, seed)


@dataclass(frozen=True)
class LightningTraining:
    """Train any LightningModule on any LightningDataModule, as `fit` does."""

    plan: Plan
    options: Mapping[str, Any]  # parameters of the data module that are not searched
    images: FashionMNISTDataModule | None = None  # the data module, if it is one of this project
    limits: Mapping[str, Any] = field(default_factory=dict)  # options of the Trainer, such as `limit_train_batches`

    def _make(self, params: Params, seed: int) -> tuple[LightningModule, LightningDataModule]:
        """Make model and data as `fit --seed_everything SEED` does; the caller isolates the generators."""
        module = alone.make_model(self.plan.model, params, seed)
        return module, alone.make(self.plan.data, {**self.options, **params})

    def check_monitor(self) -> None:
        """Check, before anything is trained, that the model logs the monitor."""
        alone.check_monitor(self.plan.monitor, lambda: self._make(self.plan.first, 0))

    def train(self, configurations: Sequence[Params], seed: int, watch: Watcher | None = None) -> list[Scores]:
        """Return the metrics that each configuration logged, after every epoch."""
        scores = []
        for params in configurations:
            with isolate_rng():
                _, of_model = alone.train(*self._make(params, seed), count(params, "epochs"), watch, **self.limits)
            scores.append(of_model)
        return scores

    def test(self, params: Params, seed: int) -> dict[str, float]:
        """Train a configuration again and test it; return the metrics, empty if model or data have no test."""
        with isolate_rng():
            module, data = self._make(params, seed)
            trainer, _ = alone.train(module, data, count(params, "epochs"), **self.limits)
            if not can_test(trainer):
                return {}
            trainer.test(module, datamodule=data, verbose=False)
            return alone.numbers_of(trainer.callback_metrics)


Training = StackTraining | LightningTraining
