"""What a command refuses before anything is computed or written."""

import math
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from softmax_regression.classifier import Classifier
from softmax_regression.errors import InputError
from softmax_regression.runs.processes import cores
from softmax_regression.runs.stopping import BestCheckpoint, EarlyStopping


def options(command: str, config: Any) -> None:
    """Refuse options that mean nothing, or not what they seem to.

    Raises:
        InputError: One does.
    """
    trainer, fits = config.trainer, command == "fit"
    images = (config.data or {}).get("init_args", {}).get("images")
    endless = trainer.max_epochs == -1 or trainer.max_steps > 0
    for wrong, message in (
        (config.resume and not fits, f"--resume {config.resume}: goes with fit; {command} takes --ckpt_path"),
        (config.output and command != "predict", f"--output {config.output}: goes with predict; drop it"),
        (config.force and not config.output, "--force: goes with --output; drop it"),
        (images and command != "predict", f"--data.images {images}: goes with predict; drop it"),
        (config.lr_scheduler and not config.optimizer, "--lr_scheduler: goes with --optimizer; give both"),
        (
            not 0 <= config.seed_everything < 2**32,
            f"seed_everything={config.seed_everything}: must be at least 0 and below 2^32",
        ),
        (
            config.threads is not None and config.threads < 1,
            f"threads={config.threads}: must be at least 1; drop --threads for the default",
        ),
        (
            fits and trainer.limit_train_batches == 0,
            "trainer.limit_train_batches=0: nothing would be trained; give at least 1",
        ),
        (
            fits and not endless and trainer.max_epochs is not None and trainer.max_epochs < 1,
            f"max_epochs={trainer.max_epochs}: must be at least 1; change trainer.max_epochs",
        ),
    ):
        if wrong:
            raise InputError(message)


def devices(trainer: Trainer, data: LightningDataModule) -> None:
    """Refuse more processes than the machine has cores, or than there are images in a minibatch."""
    if trainer.strategy.root_device.type == "cpu" and trainer.num_devices > cores():
        raise InputError(
            f"trainer.devices={trainer.num_devices}: this machine has {cores()} CPU cores; lower trainer.devices"
        )
    batch_size = data.hparams.get("batch_size", math.inf)
    if batch_size < trainer.world_size:
        raise InputError(
            f"batch_size={batch_size}: must be at least 1 for each of {trainer.world_size} devices; "
            "raise data.batch_size or lower trainer.devices"
        )


def monitors(trainer: Trainer, model: LightningModule, data: LightningDataModule) -> None:
    """Refuse a monitor that nothing logs; without a validation set, say what is off."""
    if not isinstance(model, Classifier):
        return
    hparams = data.hparams
    unseen = trainer.limit_val_batches == 0 or not hparams.get("val_size", 1)
    stages = ["train", *([] if unseen else ["val"]), *(["test"] if hparams.get("watch_test") else [])]
    if stages == ["train"]:
        trainer.limit_val_batches = 0  # or Lightning warns of an empty loader
    logged = [f"{stage}/{name}" for stage in stages for name in ("loss", *model.metrics())]
    for callback in (*trainer.early_stopping_callbacks, *trainer.checkpoint_callbacks):
        monitor = getattr(callback, "monitor", None)
        if (
            monitor is None
            or monitor in logged
            or (isinstance(callback, EarlyStopping) and not callback.patience)
        ):
            continue
        if unseen and monitor.startswith("val/") and isinstance(callback, EarlyStopping | BestCheckpoint):
            if trainer.is_global_zero:
                print(f"{type(callback).__name__} is off: no validation images, so nothing logs {monitor}")
            callback.switch_off()
            continue
        raise InputError(
            f"monitor={monitor} of {type(callback).__name__}: nothing logs it here; "
            f"expected one of {', '.join(logged)}"
        )


def shapes(path: str, model: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Refuse a checkpoint of another model."""
    saved = checkpoint["state_dict"]
    for name, weight in model.state_dict().items():
        if name not in saved or saved[name].shape != weight.shape:
            shape = tuple(saved[name].shape) if name in saved else None
            raise InputError(
                f"ckpt_path={path}: {name} has shape {shape}, the model {tuple(weight.shape)}; "
                "give a checkpoint of this model"
            )
