"""What a command refuses before anything is computed or written, each with an InputError."""

import math
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from softmax_regression.classifier import Classifier
from softmax_regression.errors import InputError
from softmax_regression.runs.callbacks import BestCheckpoint, EarlyStopping
from softmax_regression.runs.processes import cores, print_rank_zero

COUNTS = (
    "max_epochs", "max_steps", "limit_train_batches", "val_check_interval", "check_val_every_n_epoch",
    "accumulate_grad_batches",
)  # fmt: skip


def options(command: str, config: Any) -> None:
    """Refuse options that mean nothing, or not what they seem to."""
    seed, threads = config.seed_everything, config.threads
    images = (config.data or {}).get("init_args", {}).get("images")
    zeros = [name for name in COUNTS if command == "fit" and config.trainer[name] == 0]
    for wrong, message in (
        (config.resume and command != "fit", f"--resume: goes with fit; {command} takes --ckpt_path"),
        (config.output and command != "predict", f"--output {config.output}: goes with predict; drop it"),
        (config.force and not config.output, "--force: goes with --output; drop it"),
        (images and command != "predict", f"--data.images {images}: goes with predict; drop it"),
        (config.lr_scheduler and not config.optimizer, "--lr_scheduler: goes with --optimizer; give both"),
        (not 0 <= seed < 2**32, f"seed_everything={seed}: must be at least 0 and below 2^32"),
        (threads is not None and threads < 1, f"threads={threads}: must be at least 1, or dropped"),
        (zeros, f"trainer.{', '.join(zeros)}=0: must be at least 1, or dropped"),
    ):
        if wrong:
            raise InputError(message)


def devices(trainer: Trainer, data: LightningDataModule) -> None:
    """Refuse more processes than the machine has cores, or than there are images in a minibatch."""
    if trainer.strategy.root_device.type == "cpu" and trainer.num_devices > cores():
        raise InputError(f"trainer.devices={trainer.num_devices}: there are {cores()} CPU cores; lower it")
    if (batch_size := data.hparams.get("batch_size", math.inf)) < trainer.world_size:
        raise InputError(
            f"batch_size={batch_size}: must be at least 1 for each of {trainer.world_size} devices; "
            "raise data.batch_size or lower trainer.devices"
        )


def monitors(trainer: Trainer, model: LightningModule, data: LightningDataModule) -> None:
    """Refuse a monitor that nothing logs; without a validation set, say what is off."""
    if not isinstance(model, Classifier):
        return
    unseen = trainer.limit_val_batches == 0 or not data.hparams.get("val_size", 1)
    tested = data.hparams.get("watch_test")
    if unseen and not tested:
        trainer.limit_val_batches = 0  # or Lightning warns of an empty loader
    stages = ["train", *(["val"] * (not unseen)), *(["test"] * bool(tested))]
    logged = [f"{stage}/{name}" for stage in stages for name in ("loss", *model.metrics())]
    for callback in (*trainer.early_stopping_callbacks, *trainer.checkpoint_callbacks):
        name, monitor = type(callback).__name__, getattr(callback, "monitor", None)
        if monitor is None or monitor in logged:
            continue
        if unseen and monitor.startswith("val/") and isinstance(callback, EarlyStopping | BestCheckpoint):
            callback.switch_off()
            print_rank_zero(f"{name} is off: no validation images, so nothing logs {monitor}")
        else:
            raise InputError(f"monitor={monitor} of {name}: nothing logs it; expected {' or '.join(logged)}")


def classes(model: LightningModule, data: LightningDataModule) -> None:
    """Refuse a model that has another number of classes than the data."""
    there = len(getattr(data, "class_names", ()))
    if there and (wanted := model.hparams.get("num_classes", there)) != there:
        raise InputError(f"model.num_classes={wanted}: the data have {there} classes; drop it")


def shapes(path: str, model: LightningModule, saved: dict[str, Any]) -> None:
    """Refuse a checkpoint of another model."""
    for name, weight in model.state_dict().items():
        shape = tuple(saved[name].shape) if name in saved else None
        if shape != weight.shape:
            raise InputError(
                f"ckpt_path={path}: {name} has shape {shape}, the model {tuple(weight.shape)}; "
                "give a checkpoint of this model"
            )
