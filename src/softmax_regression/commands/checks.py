"""What a command refuses before anything is computed or written, each with an InputError."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.nn.parameter import is_lazy

from softmax_regression.classifier import Classifier
from softmax_regression.data.module import FashionMNISTDataModule, class_names_of
from softmax_regression.errors import InputError
from softmax_regression.experiment.flags import named_classes
from softmax_regression.runs.callbacks import BestCheckpoint, EarlyStopping
from softmax_regression.runs.checkpoint import about_run
from softmax_regression.runs.folder import SavedCheckpoint
from softmax_regression.runs.processes import cores, print_rank_zero

COUNTS = (
    "max_epochs", "max_steps", "limit_train_batches", "val_check_interval", "check_val_every_n_epoch",
    "accumulate_grad_batches",
)  # fmt: skip


def check_options(command: str, config: Any) -> None:
    """Refuse options that mean nothing, or not what they seem to."""
    if config.resume and command != "fit":
        raise InputError(f"--resume: goes with fit; {command} takes --ckpt_path")
    if config.output and command != "predict":
        raise InputError(f"--output {config.output}: goes with predict; drop it")
    if config.force and not config.output:
        raise InputError("--force: goes with --output; drop it")
    if config.lr_scheduler and not config.optimizer:
        raise InputError("--lr_scheduler: goes with --optimizer; give both")
    if not 0 <= config.seed_everything < 2**32:
        raise InputError(f"seed_everything={config.seed_everything}: must be at least 0 and below 2^32")
    if config.threads is not None and config.threads < 1:
        raise InputError(f"threads={config.threads}: must be at least 1, or dropped")
    strategy = str(config.trainer.strategy)
    if strategy.startswith(("ddp_spawn", "ddp_fork", "ddp_notebook")):
        raise InputError(f"trainer.strategy={strategy}: is for processes that a notebook starts; give ddp")
    for name in COUNTS:
        if command == "fit" and config.trainer[name] == 0:
            raise InputError(f"trainer.{name}=0: must be at least 1, or dropped")


def check_images(command: str, data: LightningDataModule) -> None:
    """Refuse photos for another command than `predict`."""
    if isinstance(data, FashionMNISTDataModule) and data.images and command != "predict":
        raise InputError(f"--data.images {data.images}: goes with predict; drop it")


def check_devices(trainer: Trainer, data: LightningDataModule) -> None:
    """Refuse more processes than the machine has cores, or than there are images in a minibatch."""
    if trainer.strategy.root_device.type == "cpu" and trainer.num_devices > cores():
        raise InputError(f"trainer.devices={trainer.num_devices}: there are {cores()} CPU cores; lower it")
    if isinstance(data, FashionMNISTDataModule) and data.batch_size < trainer.world_size:
        raise InputError(
            f"batch_size={data.batch_size}: must be at least 1 for each of {trainer.world_size} devices; "
            "raise data.batch_size or lower trainer.devices"
        )


def check_monitors(trainer: Trainer, model: LightningModule, data: LightningDataModule) -> None:
    """Refuse a monitor that nothing logs, where that can be known; without a validation set, say what is off."""
    if not isinstance(model, Classifier):
        return
    validates = trainer.limit_val_batches != 0
    tests = False
    ours = data if isinstance(data, FashionMNISTDataModule) else None
    if ours is not None:
        validates, tests = validates and ours.val_size > 0, ours.watch_test
    if not validates and not tests:
        trainer.limit_val_batches = 0  # or Lightning warns of an empty loader
    metrics = ("loss", *model.metrics())
    logged = []
    for stage, scored in (("train", True), ("val", validates), ("test", tests)):
        if scored:
            logged += [f"{stage}/{name}" for name in metrics]
    for callback in (*trainer.early_stopping_callbacks, *trainer.checkpoint_callbacks):
        if isinstance(callback, BestCheckpoint):
            callback.follow(trainer)
        name = type(callback).__name__
        monitor = getattr(callback, "monitor", None)
        if monitor is None or monitor in (*logged, "epoch", "step"):
            continue
        metric = monitor.partition("/dataloader_idx_")[0].rpartition("/")[2]
        if metric in metrics and ours is None:  # loaders of one's own may have any names
            continue
        if not validates and monitor.startswith("val/") and isinstance(callback, EarlyStopping | BestCheckpoint):
            callback.switch_off()
            print_rank_zero(f"{name} is off: no validation images, so nothing logs {monitor}")
        elif not may_log_more(trainer, model):
            raise InputError(f"monitor={monitor} of {name}: nothing logs it; expected {' or '.join(logged)}")


def may_log_more(trainer: Trainer, model: LightningModule) -> bool:
    """Whether a class of the user's own, the model's or a callback's, calls `log` or `log_dict` itself."""
    for part in (model, *trainer.callbacks):  # type: ignore[attr-defined]
        for function in _own_methods(part).values():
            code = getattr(function, "__code__", None)
            if code and {"log", "log_dict"} & set(code.co_names):
                return True
    return False


def _own_methods(part: object) -> dict[str, Any]:
    """Return what the classes of the user's own have, by its names."""
    found: dict[str, Any] = {}
    for kind in type(part).__mro__:
        if not kind.__module__.startswith(("softmax_regression.", "lightning.", "torch.")):
            found = {**vars(kind), **found}
    return found


def check_data_named(checkpoint: SavedCheckpoint | None, model: LightningModule, flags: Sequence[str]) -> None:
    """Refuse to put this project's data in the place of those that a run or a module has of its own."""
    if "data" in named_classes(flags):
        return
    known = about_run(checkpoint.content) if checkpoint else {}
    if checkpoint and known.get("data", "") is None:
        raise InputError(f"{checkpoint.path}: was trained with DataLoaders of a script; name its data with --data")
    if not known and is_overridden("train_dataloader", model):
        name = type(model).__name__
        raise InputError(f"{name}: its own train_dataloader is not used here; give --data, a LightningDataModule")


def check_classes(model: LightningModule, data: LightningDataModule, flags: Sequence[str]) -> None:
    """Refuse a model that has another number of classes than the data."""
    expected = len(class_names_of(data))
    given = model.hparams.get("num_classes", expected)
    if isinstance(model, Classifier) and expected and given != expected:
        typed = any(flag.startswith("--model.num_classes") for flag in flags)
        remedy = "drop it" if typed else f"add --model.num_classes {expected}"
        raise InputError(f"model.num_classes={given}: the data have {expected} classes; {remedy}")


def check_shapes(checkpoint: SavedCheckpoint, model: LightningModule) -> None:
    """Refuse a checkpoint of another model, unless the model makes its weights or loads them in a way of its own."""
    if {"configure_model", "load_state_dict", "on_load_checkpoint"} & _own_methods(model).keys():
        return
    saved = checkpoint.content["state_dict"]
    for name, weight in model.named_parameters():
        if name in saved and not is_lazy(weight) and saved[name].shape != weight.shape:
            raise InputError(
                f"ckpt_path={checkpoint.path}: {name} has shape {tuple(saved[name].shape)}, "
                f"the model {tuple(weight.shape)}; give a checkpoint of this model"
            )
