"""The rules of going on: which configuration holds, what may change, where a run writes, when it is done."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from softmax_regression.commands.arguments import check_file
from softmax_regression.errors import InputError
from softmax_regression.runs import checkpoint
from softmax_regression.runs.callbacks import folder_of
from softmax_regression.runs.folder import RunLogger
from softmax_regression.runs.processes import print_rank_zero
from softmax_regression.runs.record import RunRecord, read_manifest, results, update_manifest
from softmax_regression.runs.trust import path_of

if TYPE_CHECKING:
    from softmax_regression.commands.train import TrainCLI

# Options that decide results and so must stay, beside all of model and data but those that are named below.
DECIDING = (
    "model", "data", "seed_everything", "optimizer", "lr_scheduler", "early_stopping.monitor",
    "early_stopping.min_delta", "early_stopping.mode", "best_checkpoint.monitor", "best_checkpoint.mode",
    "trainer.callbacks", "trainer.precision", "trainer.limit_train_batches", "trainer.limit_val_batches",
    "trainer.overfit_batches", "trainer.val_check_interval", "trainer.check_val_every_n_epoch",
    "trainer.accumulate_grad_batches", "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm",
)  # fmt: skip
MAY_CHANGE = {"data.dirs", "data.images", "data.watch_test", "data.device", "data.eval_batch_size"}
MAY_CHANGE |= {"model.class_path", "data.class_path"}  # a class may have several names: see `check_resumable`


def config_of(run: Path | None, path: Path, saved: dict[str, Any]) -> list[str]:
    """Return flags that repeat the configuration of a run, from its folder or else from its checkpoint."""
    if run and (run / "config.yaml").is_file():
        check_file(str(run / "config.yaml"))
        return ["--config", str(run / "config.yaml")]
    text = saved.get("run", {}).get("config")
    if not text:
        raise InputError(f"{path}: does not say what was trained; give a run's folder with its config.yaml")
    return ["--config", str(text)]


def other_data(saved: dict[str, Any], data: Any) -> str | None:
    """Say so if the images that are loaded are not those of the run that saved the checkpoint."""
    loaded, trained_on = getattr(data, "data", None), saved.get("run", {}).get("sha256")
    if loaded is None or trained_on is None or loaded.sha256 == trained_on:  # None: photos to predict
        return None
    return f"data with SHA-256 {loaded.sha256[:12]}…: the model was trained on {str(trained_on)[:12]}…"


def _options(text: str) -> dict[str, Any]:
    """Return the options of a configuration by their names on the command line, such as model.lr."""
    options: dict[str, Any] = {}
    for group, values in yaml.safe_load(text).items():
        if isinstance(values, dict) and group not in ("optimizer", "lr_scheduler"):
            values |= values.pop("init_args", None) or {}
            options |= {f"{group}.{name}": value for name, value in values.items()}
        else:
            options[group] = values
    callbacks = options.get("trainer.callbacks") or []
    named = callbacks if isinstance(callbacks, list) else [callbacks]
    return options | {"trainer.callbacks": [each["class_path"] for each in named]}


def check_resumable(run: Path | None, saved: dict[str, Any], cli: "TrainCLI") -> None:
    """Refuse flags that contradict the checkpoint, which further callbacks do not, and other data."""
    known = {"config": "{}"} | saved.get("run", {})
    callbacks: list[Callback] = cli.trainer.callbacks  # type: ignore[attr-defined]
    (record,) = (callback for callback in callbacks if isinstance(callback, RunRecord))
    before: dict[str, Any] = {"optimizer": None, "lr_scheduler": None}  # of a run that was started from Python
    before |= {name: known.get(name) for name in ("model", "data")} | _options(known["config"])
    now: dict[str, Any] = {"model": path_of(type(cli.model)), "data": path_of(type(cli.datamodule))}
    now |= _options(str(record.config))
    now["trainer.callbacks"] = [each for each in now["trainer.callbacks"] if each in before["trainer.callbacks"]]
    for name, was in before.items():
        decides = name in DECIDING or name.startswith(("model.", "data."))
        if decides and name not in MAY_CHANGE and was != (wanted := now.get(name)):
            raise InputError(
                f"{name}={wanted}: the run to resume has {was}; go on with that, or start a new run without --resume"
            )
    if other := other_data(saved, cli.datamodule):
        raise InputError(f"{other}; give the same files, or start a new run")


def reopen_run(run: Path, trainer: Trainer, path: str, saved: dict[str, Any]) -> None:
    """Go on in the folder of a run; a logger that keeps no such folder begins a new one, which a line says.

    Raises:
        InputError: There is no logger, or another process has gone on with the run meanwhile.
    """
    loggers = [logger for logger in trainer.loggers if isinstance(logger, RunLogger)]
    for logger in loggers:
        logger.reopen(run, saved["global_step"])
    if not trainer.loggers:
        raise InputError(f"{run}: a run goes on in its folder, which its logger keeps; drop the flag")
    if not loggers:
        print_rank_zero(f"{run}: only a RunLogger goes on in its folder; this run does in {folder_of(trainer)}")
    if trainer.is_global_zero and checkpoint.read(path)["global_step"] != saved["global_step"]:
        raise InputError(f"{path}: another process has gone on with the run; start the command again")


def reason_not_to_resume(trainer: Trainer, saved: dict[str, Any]) -> str | None:
    """Say why there is nothing left to resume, and what to raise, if so."""
    steps = saved["global_step"]
    epochs = saved["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if trainer.max_epochs and 0 < trainer.max_epochs <= epochs:
        return f"it has {epochs} epochs, max_epochs={trainer.max_epochs}; raise trainer.max_epochs to go on"
    if 0 < trainer.max_steps <= steps:
        return f"it has {steps} steps, max_steps={trainer.max_steps}; raise trainer.max_steps to go on"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        state = saved["callbacks"].get(callback.state_key, {})
        waited, trained = state.get("wait_count", 0), state.get("time_elapsed", {}).get("train", 0)
        if isinstance(callback, EarlyStopping) and 0 < callback.patience <= waited:
            return (
                f"early stopping: {callback.monitor} did not improve for {waited} validations; "
                f"go on with --early_stopping.patience {waited + 1} or more"
            )
        if isinstance(callback, Timer) and 0 < (callback.time_remaining() or 0) <= trained:
            return f"it has trained for {trained:.0f} s, all of max_time; raise trainer.max_time to go on"
    return None


def record_end(run: Path | None, trainer: Trainer, saved: dict[str, Any], reason: str) -> None:
    """Complete the manifest of a run that was killed after its last checkpoint."""
    if run and read_manifest(run).get("status") != "finished" and trainer.is_global_zero:
        update_manifest(run, status="finished", stopped=reason, **results(trainer, saved.get("history", [])))
