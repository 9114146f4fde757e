"""The rules for `--resume`: which options may change, where the run writes, and when nothing is left to train."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import ModelPruning, Timer

from softmax_regression.errors import InputError
from softmax_regression.experiment.flags import flag_value, options_of
from softmax_regression.experiment.opening import other_data
from softmax_regression.runs.callbacks import EarlyStopping, as_list, callbacks_of, folder_of
from softmax_regression.runs.checkpoint import about_run, read
from softmax_regression.runs.folder import RunLogger, SavedCheckpoint
from softmax_regression.runs.last_checkpoint import LastCheckpoint
from softmax_regression.runs.processes import print_rank_zero
from softmax_regression.runs.record import RunRecord, read_manifest, saved_results, saved_step, update_manifest
from softmax_regression.runs.rows import keep_logged_rows
from softmax_regression.runs.settings import class_path_of

# Options, or first parts of their names, that change the results, so that a resumed run must have the same values.
MUST_STAY = (
    "best_checkpoint",
    "data",
    "early_stopping",
    "lr_scheduler",
    "model",
    "optimizer",
    "seed_everything",
    "trainer.accumulate_grad_batches",
    "trainer.callbacks",
    "trainer.check_val_every_n_epoch",
    "trainer.gradient_clip",
    "trainer.limit_train_batches",
    "trainer.limit_val_batches",
    "trainer.overfit_batches",
    "trainer.precision",
    "trainer.val_check_interval",
)
# Exceptions from these.
MAY_CHANGE = (
    "data.device",
    "data.dirs",
    "data.eval_batch_size",
    "data.images",
    "data.watch_test",
    "early_stopping.patience",
)


def check_resumable(
    checkpoint: SavedCheckpoint,
    trainer: Trainer,
    model: LightningModule,
    data: LightningDataModule,
    flags: Sequence[str],
) -> None:
    """Refuse flags that contradict the configuration of the run to resume, and other data; callbacks may be added."""
    saved = checkpoint.content
    if "optimizer_states" not in saved:
        raise InputError("the checkpoint holds weights alone; give the run's folder, whose last.ckpt holds the rest")
    if trainer.fast_dev_run or not callbacks_of(trainer, LastCheckpoint):  # type: ignore[attr-defined]
        flags = "trainer.fast_dev_run, trainer.barebones or trainer.enable_checkpointing=false"
        raise InputError(f"{flags}: nothing that a resumed run does would be saved; drop it")
    record = callbacks_of(trainer, RunRecord)[0]
    known = about_run(saved)
    before: dict[str, Any] = {"optimizer": None, "lr_scheduler": None}  # a run started from Python does not record them
    before |= _options(yaml.safe_load(known.get("config", "{}")))
    before |= {"model": known.get("model"), "data": known.get("data")}  # a class may have several names
    now = _options(record.config)
    now |= {"model": class_path_of(type(model)), "data": class_path_of(type(data))}
    callbacks = before["trainer.callbacks"]
    now["trainer.callbacks"] = [each for each in now["trainer.callbacks"] if each in callbacks]
    must_stay = list(MUST_STAY)
    same_logger = isinstance(trainer.logger, RunLogger) and before.get("trainer.logger") == now["trainer.logger"]
    if checkpoint.run and same_logger:
        must_stay.append("trainer.logger.")  # it stays in the folder of the run
    for name, was in before.items():
        wanted = now.get(name)
        differs = was != wanted and repr(was) != repr(wanted)  # NaN is not equal to itself
        if name.startswith(tuple(must_stay)) and name not in MAY_CHANGE and differs:
            raise InputError(
                f"{name}={wanted}: the run to resume has {was}; keep that, or start a new run without --resume"
            )
    check_length(saved, trainer, before)
    if callbacks_of(trainer, ModelPruning):
        raise InputError("ModelPruning: a pruned run cannot be resumed: no checkpoint has its masks; start a new run")
    _check_complete(known, flags)
    other = other_data(saved, data)
    if other:
        raise InputError(f"{other}; give the same files, or start a new run")


def _check_complete(known: Mapping[str, Any], flags: Sequence[str]) -> None:
    """Refuse a run from Python whose configuration lacks something that no flag gives."""
    message = "the run was started from Python with {}, which its configuration cannot say; {}"
    remedy = "resume from Python with trainer.fit(..., ckpt_path=...)"
    for callback in known.get("missing_callbacks", []):
        raise InputError(message.format(callback, remedy))
    for name in known.get("missing_arguments", []):
        if flag_value(flags, name) is None:
            raise InputError(message.format(name, f"give --{name}, or {remedy}"))


def check_length(saved: dict[str, Any], trainer: Trainer, before: dict[str, Any]) -> None:
    """Refuse more epochs or steps if the run has a schedule of fixed length, such as OneCycleLR."""
    for schedule in saved.get("lr_schedulers", []):
        for name in ("max_epochs", "max_steps"):
            was = before.get(f"trainer.{name}") or 0
            wanted = getattr(trainer, name) or 0
            if "total_steps" in schedule and wanted > was > 0:
                raise InputError(
                    f"{name}={wanted}: the run's learning rate schedule ends after {schedule['total_steps']} steps, "
                    f"with {name}={was}; start a new run for more"
                )


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a configuration by their names as flags; of callbacks only the classes."""
    trainer = dict(config.get("trainer", {}))
    callbacks = as_list(trainer.pop("callbacks", None))
    options: dict[str, Any] = {"trainer.callbacks": [callback["class_path"] for callback in callbacks]}
    for name, value in options_of({**config, "trainer": trainer}).items():
        options[name.removesuffix(".class_path")] = value
    return options


def reopen_run(run: Path, trainer: Trainer, checkpoint: SavedCheckpoint) -> None:
    """Let the RunLogger write into the folder of the run to resume; with other loggers only, print a line.

    Raises:
        InputError: There is no logger, or another process has trained the run meanwhile.
    """
    if not trainer.loggers:
        raise InputError(f"{run}: a run is resumed in its folder, which its logger keeps; drop the flag")
    if trainer.is_global_zero and read(checkpoint.path)["global_step"] != checkpoint.content["global_step"]:
        raise InputError(f"{checkpoint.path}: another process has resumed the run; start the command again")
    loggers = [logger for logger in trainer.loggers if isinstance(logger, RunLogger)]
    for logger in loggers:
        logger.reopen(run, saved_step(checkpoint.content), about_run(checkpoint.content).get("batches", 0))
    if not loggers:
        print_rank_zero(f"{run}: only a RunLogger continues in its folder; this run continues in {folder_of(trainer)}")
    if trainer.is_global_zero:
        keep_logged_rows(trainer.loggers, about_run(checkpoint.content).get("csv_rows", []))


def reason_not_to_resume(trainer: Trainer, saved: dict[str, Any]) -> str | None:
    """Return why nothing is left to train, and which option to raise; None if something is left."""
    steps = saved["global_step"]
    epochs = saved["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if trainer.max_epochs and 0 < trainer.max_epochs <= epochs:
        return f"it has done epoch {epochs}, max_epochs={trainer.max_epochs}; raise trainer.max_epochs to continue"
    if 0 < trainer.max_steps <= steps:
        return f"it has made step {steps}, max_steps={trainer.max_steps}; raise trainer.max_steps to continue"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        state = saved["callbacks"].get(callback.state_key, {})
        if isinstance(callback, LightningEarlyStopping):
            waited = state.get("wait_count", 0)
            if 0 < callback.patience <= waited:
                remedy = "a new run with more patience trains on"
                if isinstance(callback, EarlyStopping):
                    remedy = f"continue with --early_stopping.patience {waited + 1} or more"
                return f"early stopping: {callback.monitor} did not improve in the last {waited} records; {remedy}"
        elif isinstance(callback, Timer):
            trained = state.get("time_elapsed", {}).get("train", 0)
            if 0 < (callback.time_remaining() or 0) <= trained:
                return f"it has trained for {trained:.0f} s, all of max_time; raise trainer.max_time to continue"
    return None


def record_end(run: Path | None, trainer: Trainer, saved: dict[str, Any], reason: str) -> None:
    """Complete run.json if the run was killed after its last checkpoint."""
    if run and read_manifest(run).get("status") != "finished" and trainer.is_global_zero:
        update_manifest(run, status="finished", stopped=reason, **saved_results(run, saved))
