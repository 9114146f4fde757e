"""On two and three processes: the same bits with the engine and without it, on each of them."""

import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from test_equal import ByHand, Mixed, Sized, pairs, with_optimizer
from test_others import Duck, Halving
from torch import Tensor, nn
from twins import ALL, QUIET, same, trained

from ddp_worker import CONTEXT, torchrun
from softmax_regression import Engine
from softmax_regression.engine.ddp import ExactDDP, signals_of

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Unused(Mixed):
    """A layer that is used in every other step."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(784, 10)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.net(batch[0])
        if batch_idx % 2:
            logits = logits + self.other(batch[0])
        return F.cross_entropy(logits, batch[1])


class TwoForwards(Mixed):
    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch[0]) + self(batch[0].flip(0)), batch[1])


class HookInMidEpoch(Mixed):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:
            self.trainer.callbacks.append(Halving())  # type: ignore[attr-defined]
        return super().training_step(batch, batch_idx)


class Uneven(DDPStrategy):
    """A subclass with a method of its own."""

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().backward(2 * closure_loss, *args, **kwargs)


def ducks() -> list[Any]:
    """A callback of another kind on one of the processes only."""
    if os.environ["RANK"] == "1":
        return [Duck()]
    return []


def swa() -> list[Any]:
    return [StochasticWeightAveraging(0.01)]


def ema() -> list[Any]:
    return [EMAWeightAveraging(decay=0.8)]


Case = tuple[Callable[[], Any], dict[str, Any]]
CASES: dict[str, Case] = {
    "BatchNorm and dropout": (Mixed, {}),
    "all hooks": (Mixed, {"hooks": ALL}),
    "accumulation, clipping by norm": (Mixed, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}),
    "clipping by value": (Mixed, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "two optimizers by hand": (with_optimizer(ByHand, "SGD"), {}),
    "unused parameters": (Unused, {"strategy": partial(DDPStrategy, find_unused_parameters=True)}),
    "static graph": (Mixed, {"strategy": partial(DDPStrategy, static_graph=True)}),
    "static graph by hand": (with_optimizer(ByHand, "SGD"), {"strategy": partial(DDPStrategy, static_graph=True)}),
    "bucket views": (Mixed, {"strategy": partial(DDPStrategy, gradient_as_bucket_view=True)}),
    "buffers of each": (Mixed, {"strategy": partial(DDPStrategy, broadcast_buffers=False)}),
    "ExactDDP": (Mixed, {"strategy": ExactDDP}),
    "own backward": (Mixed, {"strategy": Uneven}),
    "two forwards": (TwoForwards, {}),
    "bf16-mixed": (Mixed, {"precision": "bf16-mixed"}),
    "validation in the epoch": (Mixed, {"val_check_interval": 1}),
    "SWA": (Mixed, {"callbacks": swa, "max_epochs": 3}),
    "EMA": (Mixed, {"callbacks": ema}),
    "a callback that comes": (HookInMidEpoch, {}),
    "a duck on one process": (Mixed, {"callbacks": ducks}),
}


def outcome(case: str, engine: bool, n: int) -> Any:
    make, options = CASES[case]
    strategy = options.get("strategy", DDPStrategy)
    settings = options | {"strategy": strategy(), "devices": n}
    return trained(make, pairs, engine, **settings)


def compare(n: int) -> None:
    for case in CASES:
        ours, theirs = outcome(case, True, n), outcome(case, False, n)
        same(ours[0], theirs[0], case)
        lightnings = case == "own backward" or (case == "a duck on one process" and os.environ["RANK"] == "1")
        if lightnings:
            assert ours[1].startswith("Lightning's own step"), case
        else:
            assert ours[1].startswith("lean step"), case


class Nothing(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 2:
            return None
        return super().training_step(batch, batch_idx)


def refuse_none(n: int) -> None:
    trainer = Trainer(**QUIET, strategy="ddp", devices=n, callbacks=[Engine()])
    with pytest.raises(RuntimeError, match="returning None in distributed training is not supported"):
        trainer.fit(Nothing(), Sized(9))
    assert trainer.global_step == 2


class Told(BoringModel):
    """Lightning notes a SIGTERM on one process."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        time.sleep(0.005)
        if batch_idx == 150 and self.global_rank == 1:
            self.trainer._signal_connector.received_sigterm = True
            self.trainer.fit_loop.epoch_loop.on_advance_end = Mock()  # type: ignore[method-assign] # where it would leave the others
        return super().training_step(batch, batch_idx)


def agree(n: int) -> None:
    """All end at the same step, within a second, and have exchanged a few times only."""
    exchanges = []
    reduce = DDPStrategy.reduce

    def counted(strategy: DDPStrategy, *args: Any, **kwargs: Any) -> Any:
        exchanges.append(trainer.fit_loop.batch_idx)
        return reduce(strategy, *args, **kwargs)

    DDPStrategy.reduce = counted  # type: ignore[method-assign, assignment] # in this process only
    trainer = Trainer(**QUIET, strategy="ddp", devices=n, callbacks=[Engine()])
    with pytest.raises(SIGTERMException):
        trainer.fit(Told(), Sized(3000))
    assert 150 <= trainer.fit_loop.batch_idx < 400
    assert len(exchanges) < 20
    assert signals_of(trainer).sigterm
    steps = torch.tensor([float(trainer.fit_loop.batch_idx)])
    torch.distributed.all_reduce(steps, op=torch.distributed.ReduceOp.MAX)
    assert steps.item() == trainer.fit_loop.batch_idx


class Killed(BoringModel):
    """Some of the processes get a SIGTERM."""

    def __init__(self, ranks: Sequence[int]) -> None:
        super().__init__()
        self.ranks = ranks

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        time.sleep(0.005)
        if batch_idx == 150 and self.global_rank in self.ranks:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(batch, batch_idx)


def end_together(ranks: Sequence[int], n: int) -> None:
    trainer = Trainer(**QUIET, strategy="ddp", devices=n, callbacks=[Engine()])
    with pytest.raises(SIGTERMException):
        trainer.fit(Killed(ranks), Sized(3000))
    assert trainer.received_sigterm
    assert 150 <= trainer.fit_loop.batch_idx < 400


def work(test: Callable[[int], None], rank: int, n: int, port: int) -> None:
    os.environ.update(torchrun(rank, n), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    try:
        test(n)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    torch.distributed.destroy_process_group()


def run(test: Callable[[int], None], n: int) -> None:
    """Run a test on n processes that work together; they are told the port of the first one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(n):
        process = CONTEXT.Process(target=work, args=(test, rank, n, port))
        process.start()
        processes.append(process)
    codes = []
    for process in processes:
        process.join(110)
        codes.append(process.exitcode)
    for process in processes:
        process.kill()
        process.join()
    assert codes == [0] * n  # what was wrong stands in the captured stderr


@pytest.mark.parametrize("n", [2, 3])
def test_runs_of_several_processes_are_equal_to_the_last_bit(n: int) -> None:
    run(compare, n)


def test_a_step_that_returns_none_is_refused_at_once() -> None:
    run(refuse_none, 2)


def test_a_sigterm_that_one_process_noted_ends_all_at_the_same_step() -> None:
    run(agree, 2)


@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)])
def test_a_sigterm_to_any_process_ends_all_soon(ranks: tuple[int, ...]) -> None:
    run(partial(end_together, ranks), 2)
