"""Checks that raise an InputError before anything is computed or written."""

from collections.abc import Sequence
from inspect import getmembers, isfunction
from pathlib import Path
from types import FunctionType

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, SpikeDetection, StochasticWeightAveraging
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.nn.parameter import is_lazy

from softmax_regression.classifier import Classifier
from softmax_regression.data.module import FashionMNISTDataModule, class_names_of
from softmax_regression.errors import InputError
from softmax_regression.experiment.cli import DEFAULT_CALLBACKS
from softmax_regression.experiment.flags import named_classes
from softmax_regression.files import check_writable
from softmax_regression.runs.callbacks import BestCheckpoint, EarlyStopping, callbacks_of
from softmax_regression.runs.checkpoint import about_run
from softmax_regression.runs.folder import SavedCheckpoint
from softmax_regression.runs.processes import cores, print_rank_zero

ABOVE_ZERO = (  # options of the Trainer; -1 is for no limit of epochs or steps
    "accumulate_grad_batches",
    "check_val_every_n_epoch",
    "limit_train_batches",
    "max_epochs",
    "max_steps",
    "val_check_interval",
)


def check_options(command: str, config: Namespace) -> None:
    """Refuse options without effect or out of range, and those of other commands."""
    if config.resume and command != "fit":
        raise InputError(f"--resume: goes with fit; {command} takes --ckpt_path")
    if config.output and command != "predict":
        raise InputError(f"--output {config.output}: goes with predict; drop it")
    if config.force and not config.output:
        raise InputError("--force: goes with --output; drop it")
    if config.lr_scheduler and not config.optimizer:
        raise InputError("--lr_scheduler: goes with --optimizer; give both")
    for group in DEFAULT_CALLBACKS:
        if config[group] is None:
            raise InputError(f"{group}: is empty; give options of it, or drop it")
    if config.seed_everything is None or not 0 <= config.seed_everything < 2**32:
        raise InputError(f"seed_everything={config.seed_everything}: must be at least 0 and below 2^32")
    if config.threads is not None and config.threads < 1:
        raise InputError(f"threads={config.threads}: must be at least 1, or dropped")
    strategy = str(config.trainer.strategy)
    if strategy.startswith(("ddp_spawn", "ddp_fork", "ddp_notebook")):
        raise InputError(f"trainer.strategy={strategy}: is for processes that a notebook starts; give ddp")
    for name in ABOVE_ZERO:
        value = config.trainer[name]
        is_unlimited = name.startswith("max_") and value == -1
        if command == "fit" and isinstance(value, int | float) and value <= 0 and not is_unlimited:
            raise InputError(f"trainer.{name}={value}: must be at least 1, or dropped")


def check_devices(trainer: Trainer, data: LightningDataModule) -> None:
    """Refuse more processes than the machine has cores, or than there are images in a minibatch."""
    if trainer.strategy.root_device.type == "cpu" and trainer.num_devices > cores():
        raise InputError(f"trainer.devices={trainer.num_devices}: there are {cores()} CPU cores; lower it")
    if isinstance(data, FashionMNISTDataModule) and data.batch_size < trainer.world_size:
        raise InputError(
            f"batch_size={data.batch_size}: must be at least 1 for each of {trainer.world_size} devices; "
            "raise data.batch_size or lower trainer.devices"
        )


def check_callbacks(trainer: Trainer) -> None:
    """Refuse a callback whose state cannot be loaded, and checkpoints that cannot be written or would replace ours."""
    if callbacks_of(trainer, SpikeDetection):
        raise InputError("SpikeDetection: Lightning cannot load its state, so no command could open the run; drop it")
    if callbacks_of(trainer, StochasticWeightAveraging):  # with batch norm, an epoch follows that is saved
        note = "without batch norm, no checkpoint has its averaged weights; WeightAveraging saves them"
        print_rank_zero(f"StochasticWeightAveraging: {note}")
    for callback in callbacks_of(trainer, ModelCheckpoint):
        if callback.filename in ("best", "last") and not callback.dirpath and not isinstance(callback, BestCheckpoint):
            what = f"filename={callback.filename} of {type(callback).__name__}"
            raise InputError(f"{what}: each run keeps a {callback.filename}.ckpt; give another filename, or a dirpath")
        if callback.dirpath and "://" not in str(callback.dirpath):
            check_writable(Path(callback.dirpath))


def check_monitors(trainer: Trainer, model: LightningModule, data: LightningDataModule) -> None:
    """Refuse the monitor of a callback if a Classifier does not log it.

    Without validation images, early stopping and the best checkpoint are switched off instead, with a line each.
    """
    if not isinstance(model, Classifier):
        return
    stages = _scored_stages(trainer, data)
    if stages == ["train"]:
        trainer.limit_val_batches = 0  # or Lightning warns of an empty loader
    metrics = ("loss", *model.metrics())
    logged = [f"{stage}/{name}" for stage in stages for name in metrics]
    for callback in (*trainer.early_stopping_callbacks, *trainer.checkpoint_callbacks):
        if isinstance(callback, BestCheckpoint):
            callback.follow_early_stopping(trainer)
        name = type(callback).__name__
        monitor = getattr(callback, "monitor", None)
        if monitor is None or monitor in (*logged, "epoch", "step"):
            continue
        metric = monitor.partition("/dataloader_idx_")[0].rpartition("/")[2]
        if metric in metrics and not isinstance(data, FashionMNISTDataModule):  # its loaders may have any names
            continue
        if "val" not in stages and monitor.startswith("val/") and isinstance(callback, EarlyStopping | BestCheckpoint):
            callback.switch_off()
            print_rank_zero(f"{name} is off: no validation images, so nothing logs {monitor}")
        elif not may_log_more(trainer, model):
            raise InputError(f"monitor={monitor} of {name}: nothing logs it; expected {' or '.join(logged)}")


def _scored_stages(trainer: Trainer, data: LightningDataModule) -> list[str]:
    """Return the stages that are scored while a Classifier trains: always `train`, and maybe `val` and `test`."""
    if trainer.limit_val_batches == 0:
        return ["train"]
    if not isinstance(data, FashionMNISTDataModule):
        return ["train", "val"]
    stages = ["train"]
    if data.val_size > 0:
        stages.append("val")
    if data.watch_test:
        stages.append("test")
    return stages


def may_log_more(trainer: Trainer, model: LightningModule) -> bool:
    """Return whether the user's class of the model or of a callback calls `log` or `log_dict`."""
    for part in (model, *trainer.callbacks):  # type: ignore[attr-defined]
        for function in _own_methods(part).values():
            if {"log", "log_dict"} & set(function.__code__.co_names):
                return True
    return False


def _own_methods(part: object) -> dict[str, FunctionType]:
    """Return the methods of an object that are defined in the user's own classes, by their names."""
    methods = dict(getmembers(type(part), isfunction))
    library = ("softmax_regression.", "lightning.", "torch.")
    return {name: method for name, method in methods.items() if not method.__module__.startswith(library)}


def check_data_named(checkpoint: SavedCheckpoint | None, model: LightningModule, flags: Sequence[str]) -> None:
    """Refuse the default data for a run or a model that has training data of its own."""
    if "data" in named_classes(flags):
        return
    known = about_run(checkpoint.content) if checkpoint else {}
    if checkpoint and known.get("data", "") is None:
        raise InputError(f"{checkpoint.path}: was trained with DataLoaders of a script; name its data with --data")
    if not known and is_overridden("train_dataloader", model):
        name = type(model).__name__
        raise InputError(f"{name}: its own train_dataloader is not used here; give --data, a LightningDataModule")


def check_classes(model: LightningModule, data: LightningDataModule, flags: Sequence[str]) -> None:
    """Refuse a model whose number of classes is not that of the data."""
    expected = len(class_names_of(data))
    given = model.hparams.get("num_classes", expected)
    if isinstance(model, Classifier) and expected and given != expected:
        typed = any(flag.startswith("--model.num_classes") for flag in flags)
        remedy = "drop it" if typed else f"add --model.num_classes {expected}"
        raise InputError(f"model.num_classes={given}: the data have {expected} classes; {remedy}")


def check_shapes(checkpoint: SavedCheckpoint, model: LightningModule) -> None:
    """Refuse a checkpoint with weights of other shapes, unless the model has its own way to make or load weights."""
    if {"configure_model", "load_state_dict", "on_load_checkpoint"} & _own_methods(model).keys():
        return
    saved = checkpoint.content["state_dict"]
    missing = []
    for name in about_run(checkpoint.content).get("missing_arguments", []):
        if name.startswith("model."):
            missing.append(f"--{name}")
    for name, weight in model.named_parameters():
        if name in saved and not is_lazy(weight) and saved[name].shape != weight.shape:
            remedy = "give a checkpoint of this model"
            if missing:
                remedy = f"give {' and '.join(missing)}, which the run from Python has not saved"
            raise InputError(
                f"ckpt_path={checkpoint.path}: {name} has shape {tuple(saved[name].shape)}, "
                f"the model {tuple(weight.shape)}; {remedy}"
            )
