"""A space is refused where it cannot be searched, and says which models are trained together."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from examples.mlp import MLP
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from optuna.pruners import MedianPruner, PatientPruner, PercentilePruner, ThresholdPruner
from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler
from torch import nn

from softmax_regression.commands.study import main
from softmax_regression.data.minibatches import Minibatches
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError
from softmax_regression.experiment.flags import CONF
from softmax_regression.model import SoftmaxRegression
from softmax_regression.studies.alone import make
from softmax_regression.studies.sweep import study
from softmax_regression.studies.sweep.space import Plan, Range, describe, sorted_values


class Net(LightningModule):
    """A module of somebody else's, with a part that is injected and an option that has no default."""

    def __init__(self, width: int, act: nn.Module, bias: bool = True) -> None:
        super().__init__()


class Data(LightningDataModule):
    """A data module of somebody else's."""

    def __init__(self, batch_size: int = 8) -> None:
        super().__init__()


class Augmented(FashionMNISTDataModule):
    """Images that are not those of a stack."""

    def train_dataloader(self) -> Minibatches:
        return super().train_dataloader()


class Normalized(FashionMNISTDataModule):
    """Images that a hook changes."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] - 0.5, batch[1]


class Ordered(FashionMNISTDataModule):
    """Images in one order for all seeds."""

    def __init__(self, seed: int = 9) -> None:
        super().__init__(seed=seed)


@dataclass
class Sgd:
    lr: float = 0.1
    momentum: float = 0.0


class Nested(LightningModule):
    """A module whose parameters have parts."""

    def __init__(self, sgd: Sgd = Sgd(), layers: list[int] = [8], seen: dict[str, int] | None = None) -> None:  # noqa: B006, B008
        super().__init__()
        self.values = sgd.lr, layers, seen


class Fraction(LightningDataModule):
    """Data whose `train_size` is a share."""

    def __init__(self, train_size: float = 0.5) -> None:
        super().__init__()


def test_parts_of_parameters_and_values_that_are_lists_are_made_as_on_a_command_line() -> None:
    values = {"sgd.lr": 0.3, "layers": "[8, 4]", "seen": '{"a": 1}'}
    assert make(Nested, values).values == (0.3, [8, 4], {"a": 1})
    space: Any = {name: [value] for name, value in values.items()}
    assert Plan({**space, "train_size": [0.5, 0.8]}, [0], model=Nested, data=Fraction).size == 2
    for name, value in (("sgd.rate", 0.1), ("train_size", "all")):
        with pytest.raises(InputError, match=rf"^space\.{name}: "):
            Plan({name: [value]}, [0], model=Nested, data=Fraction)


def test_a_grid_is_over_what_is_not_stacked_and_the_seed() -> None:
    plan = Plan({"batch_size": [16, 64], "lr": [0.1, 0.5, 0.01], "epochs": [1, 3]}, seeds=[0, 1])
    assert plan.grid == {"batch_size": [16, 64], "seed": [0, 1]}
    assert plan.size == 4
    assert plan.configurations == 12
    together = plan.trained_together({"batch_size": 64})
    assert len(together) == 6
    assert together[1] == {"batch_size": 64, "lr": 0.1, "epochs": 3}


def test_with_a_cosine_schedule_a_short_run_is_not_the_beginning_of_a_long_one() -> None:
    plan = Plan({"schedule": ["constant", "cosine"], "lr": [0.1, 0.5], "epochs": [1, 3]}, seeds=[0])
    assert plan.grid == {"schedule": ["constant", "cosine"], "epochs": [1, 3], "seed": [0]}


@pytest.mark.parametrize(
    ("space", "model", "data"),
    [
        ({"lr": [0.1]}, MLP, FashionMNISTDataModule),
        ({"lr": [0.1], "loss": ["stable", "naive"]}, None, FashionMNISTDataModule),
        ({"lr": [0.1]}, None, Augmented),
        ({"lr": [0.1]}, None, Normalized),
        ({"lr": [0.1]}, None, Ordered),
        ({"lr": [0.1], "val_size": [100, 200]}, None, FashionMNISTDataModule),
    ],
    ids=["another model", "the naive loss", "minibatches of one's own", "a hook", "an order", "other data"],
)
def test_what_is_not_ours_in_everything_is_not_stacked(space: Any, model: Any, data: Any) -> None:
    options = {"model": model} if model else {}
    plan = Plan(space, seeds=[0], data=data, **options)
    assert not plan.is_stackable
    assert plan.stacked == []


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learning_rate": [0.1]}, r"space\.learning_rate: unknown; expected one of batch_size"),
        ({"lr": []}, r"space\.lr: has no values"),
        ({"lr": Range(0.1, 1)}, r"space\.lr: a range has no grid"),
        ({"lr": [0.1, "fast"]}, r"space\.lr: .*Expected a <class 'float'>.*[Vv]alue: fast"),
        ({"lr": [0.1, -1.0]}, r"space\.lr: .*lr=-1.0: must be above 0"),
        ({"schedule": ["cosinus"]}, r"space\.schedule: .*'constant', 'cosine'.*[Vv]alue: cosinus"),
        ({"epochs": [0]}, r"space\.epochs: expected a whole number, at least 1. Got value: 0"),
        ({"epochs": [True]}, r"space\.epochs: expected a whole number, at least 1. Got value: True"),
        ({"batch_size": [16.5]}, r"space\.batch_size: expected a whole number"),
        ({"seed": [1, 2]}, r"space\.seed: every configuration is trained with each of --seeds; drop it"),
        ({}, "need at least one"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        Plan(space, seeds=[0])
    assert str(error.value).count("\n") <= 2


class Named(SoftmaxRegression):
    def __init__(self, name: str = "") -> None:
        super().__init__()


def test_a_text_that_yaml_would_take_for_something_else_stays_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr(study, "_search", lambda plan, *_: plans.append(plan))
    space = {"name": ["no", "0.10", "12:30:00", "a: b"], "epochs": [1]}
    assert main(["sweep", f"--space={json.dumps(space)}", f"--model={__name__}.Named"]) == 0
    assert plans[0].space == space


class Injected(SoftmaxRegression):
    def __init__(self, optimizer: OptimizerCallable) -> None:
        super().__init__()


def test_a_class_with_arguments_stays_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr(study, "_search", lambda plan, *_: plans.append(plan))
    value = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}
    space = {"optimizer": [value], "epochs": [1]}
    assert main(["sweep", f"--space={json.dumps(space)}", f"--model={__name__}.Injected"]) == 0
    assert plans[0].space == {"optimizer": [json.dumps(value)], "epochs": [1]}


@pytest.mark.parametrize("ends", [Range(1.0, 0.1), Range(0, 1, log=True), Range(-1.0, 1.0)])
def test_a_range_that_nothing_can_be_drawn_from_is_refused(ends: Range) -> None:
    with pytest.raises(InputError, match=r"space\.lr: "):
        Plan({"lr": ends}, seeds=[0], sampler=TPESampler())


@pytest.mark.parametrize("seeds", [[1, 1], [-1], [2**32]])
def test_seeds_that_are_equal_or_none_are_refused(seeds: list[int]) -> None:
    with pytest.raises(InputError, match=r"seeds=\[.*\]: must be different numbers from 0"):
        Plan({"lr": [0.1]}, seeds)


def test_a_monitor_that_a_stack_does_not_score_is_refused() -> None:
    with pytest.raises(InputError, match="monitor=val/f1: expected one of train/loss"):
        Plan({"lr": [0.1]}, [0], monitor="val/f1")


def test_options_of_any_model_and_data_are_searched_injected_parts_too() -> None:
    space: dict[str, Sequence[Any]] = {
        "width": [8],
        "act": ["torch.nn.ReLU", "torch.nn.Tanh"],
        "bias": [True, False],
        "batch_size": [4],
    }
    plan = Plan(space, [0], model=Net, data=Data)
    assert plan.size == 4
    with pytest.raises(InputError, match=r"space\.act.*math\.sin"):
        Plan({**space, "act": ["math.sin"]}, [0], model=Net, data=Data)
    with pytest.raises(InputError, match=r"space\.bias: .*width"):
        Plan({"bias": [True]}, [0], model=Net, data=Data)


def test_the_configuration_covers_what_the_exercise_asks_for() -> None:
    config = yaml.safe_load((CONF / "sweep.yaml").read_text())
    plan = Plan(config["space"], config["seeds"])
    assert plan.configurations >= 100
    assert len(plan.seeds) == 3
    for name, low, high in (("batch_size", 16, 4096), ("lr", 0.001, 1), ("epochs", 1, 50)):
        assert (min(config["space"][name]), max(config["space"][name])) == (low, high)


def test_values_are_described_and_sorted_as_people_do() -> None:
    assert describe({"batch_size": 256, "lr": 0.1, "act": None}) == "batch_size=256, lr=0.1, act=None"
    assert sorted_values([10, "b", 2.5, None, "a"]) == [2.5, 10, None, "a", "b"]


def test_the_plan_of_a_grid_names_no_number_of_trials_that_it_does_not_have() -> None:
    assert '"trials"' not in Plan({"lr": [0.1]}, [0]).to_json()
    assert '"trials": 7' in Plan({"lr": [0.1]}, [0], sampler=TPESampler(), trials=7).to_json()


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_plan_tells_the_arguments_of_samplers_and_pruners_apart_but_for_seeds() -> None:
    others: list[dict[str, Any]] = [
        {"pruner": ThresholdPruner(lower=0.3)},
        {"pruner": ThresholdPruner(lower=0.4)},
        {"pruner": PercentilePruner(25.0)},
        {"pruner": MedianPruner()},
        {"pruner": MedianPruner(n_warmup_steps=3)},
        {"pruner": PatientPruner(MedianPruner(n_warmup_steps=3), patience=0)},
        {"pruner": PatientPruner(MedianPruner(n_warmup_steps=4), patience=0)},
        {"sampler": TPESampler(n_startup_trials=3)},
        {"sampler": TPESampler(n_startup_trials=4)},
        {"sampler": RandomSampler()},
        {"sampler": PartialFixedSampler({"lr": 0.1}, RandomSampler())},
        {"sampler": PartialFixedSampler({"lr": 0.2}, RandomSampler())},
    ]
    texts = [Plan({"lr": [0.1]}, [0], **options).to_json() for options in others]
    assert len(set(texts)) == len(others)
    assert Plan({"lr": [0.1]}, [0], sampler=RandomSampler(seed=5)).to_json() in texts


def test_samplers_are_named_as_lightning_names_classes() -> None:
    from softmax_regression.studies.sweep.study import run

    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(run)
    args = ["--space", '{"lr": [0.1]}', "--sampler", "TPESampler", "--sampler.n_startup_trials", "5"]
    given = parser.instantiate(parser.parse_args([*args, "--pruner=optuna.pruners.HyperbandPruner"]))
    assert type(given.sampler).__name__ == "TPESampler"
    assert type(given.pruner).__name__ == "HyperbandPruner"
    for word in ("tpe", "GridSampler"):
        assert parser.parse_args(["--space", '{"lr": [0.1]}', f"--sampler={word}"]).sampler == word


def test_a_quick_sweep_of_files_has_no_number_of_images_to_generate() -> None:
    of_files = study._options(FashionMNISTDataModule, "files", None, quick=True)
    generated = study._options(FashionMNISTDataModule, "synthetic", None, quick=True)
    assert of_files == {"val_size": 500, "train_size": 1000}
    assert generated == {"source": "synthetic", "synthetic_size": 1500, **of_files}
