"""Models that a study trains: in a stack where they can be, else alone by Lightning, as `fit` trains them."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from softmax_regression.data.minibatches import Minibatches
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.engine import Engine
from softmax_regression.errors import InputError, Interrupted
from softmax_regression.figures.scoring import evaluation_mode
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.processes import cores
from softmax_regression.studies.stacked import CHUNK, METRICS, Scores, Stack, mean_scores

Labelled = tuple[Tensor, Tensor]  # images (n, 28, 28) uint8, labels (n,) int64
Each = Callable[[int, Mapping[str, Tensor]], bool]
Score = Callable[[Tensor, Tensor], Scores]
_RANDOM = threading.RLock()  # torch's global generator, one for all threads


def options(model: type[LightningModule]) -> ArgumentParser:
    """Return what knows the names, types and defaults of a class's hyperparameters, `**kwargs` too."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(model, "model")
    return parser


def stackable(model: type[LightningModule], hparams: Mapping[str, Any]) -> bool:
    """Whether models of this class with such hyperparameters can be a `Stack`."""
    return model is SoftmaxRegression and hparams.get("loss") != "naive"


def held_out(data: FashionMNISTDataModule) -> dict[str, Labelled]:
    """Return what is not trained on, by its stage: `val` and `test`."""
    loaded, val = data.loaded, data.val_index
    return {"val": (loaded.images[val], loaded.labels[val]), "test": (loaded.test_images, loaded.test_labels)}


def learn(
    model: type[LightningModule],
    variants: Sequence[Mapping[str, Any]],
    loader: Minibatches,
    epochs: int,
    seed: int,
    sets: Mapping[str, Labelled],
    every: int = 1,
    each: Each = lambda epoch, scores: True,
) -> dict[str, Tensor]:
    """Train models that have the initial weights and the minibatches of `fit --seed_everything SEED`.

    `variants` are what each of the m models is made with; equal ones are trained once, and what is not `stackable`
    must be equal. After `every` so many epochs the `sets`, by their stage, are scored; if `train` is none of them
    its scores are the means over the epoch's minibatches. `each` is called with the epoch, from 1, and its scores,
    metric -> (m,); False ends it. Returns metric -> (m, t), one of t scorings after another.
    """
    distinct = [variant for i, variant in enumerate(variants) if variant not in variants[:i]]
    place = [distinct.index(variant) for variant in variants]
    rows: list[dict[str, Tensor]] = []

    def ended(epoch: int, train: Mapping[str, Tensor], score: Score) -> bool:
        if epoch % every:
            return True
        scores = {stage: score(*labelled)._asdict() for stage, labelled in sets.items()}
        row = {**train, **{f"{stage}/{name}": v for stage, of in scores.items() for name, v in of.items()}}
        rows.append({name: values[place] for name, values in row.items()})
        return each(epoch, rows[-1])

    if stackable(model, variants[0]):
        models = []
        for hparams in distinct:
            with _seeded(seed):
                models.append(SoftmaxRegression(**hparams))
        stack = Stack(models, loader, epochs, seed)
        for epoch in range(1, epochs + 1):
            if not ended(epoch, dict(zip(METRICS, stack.train_epoch(), strict=False)), stack.score):
                break
    else:
        (hparams,) = distinct
        with _seeded(seed):
            _fit(model(**hparams), loader, sets["val"], epochs, _EpochEnd(ended))
    return {name: torch.stack([row[name] for row in rows], -1) for name in rows[-1]}


def _fit(module: LightningModule, loader: Minibatches, val: Labelled, epochs: int, epoch_end: Checkpoint) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # it names the devices each time
    trainer = Trainer(
        max_epochs=epochs, callbacks=[Engine(), epoch_end], devices=1, logger=False,
        num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader, {"val": Minibatches(*val, torch.arange(len(val[1])), CHUNK)})


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Keep torch's global generator for this thread, seeded as `fit` does it."""
    with _RANDOM, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class _EpochEnd(Checkpoint):
    """What comes after an epoch; Lightning calls a Checkpoint last, when the module has its row of scores."""

    def __init__(self, ended: Callable[[int, Mapping[str, Tensor], Score], bool]) -> None:
        self.ended = ended

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged = trainer.callback_metrics
        train = {name: logged[name].cpu().float()[None] for name in METRICS[:2] if name in logged}
        logits, device = cast(Callable[[Tensor], Tensor], pl_module), pl_module.device

        def score(images: Tensor, labels: Tensor) -> Scores:
            return mean_scores(lambda x: logits(x).log_softmax(1).T[None], images.to(device), labels.to(device))

        with evaluation_mode(pl_module):
            trainer.should_stop |= not self.ended(trainer.current_epoch + 1, train, score)


@contextmanager
def pool(model: type[LightningModule], workers: int | None) -> Iterator[ThreadPoolExecutor]:
    """Give threads that train a stack each, at most one a core, None for that; what is not stackable has one.

    Each computes with one thread of torch's: with another number sums are rounded in another order, so that the
    results of a stack would depend on the number of workers.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers}: must be at least 1; leave it out for one a core")
    n = min(workers or cores(), cores()) if stackable(model, {}) else 1
    threads = ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield threads
    except Interrupted as error:
        raise Interrupted(error.exit_code - 128, "the same command goes on where it was") from error
    finally:
        threads.shutdown(cancel_futures=True)
