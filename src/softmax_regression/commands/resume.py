"""The rules of going on: which configuration holds, what may change, where a resumed run writes, when it is done."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from lightning.pytorch import Trainer

from softmax_regression.commands.arguments import check_file
from softmax_regression.errors import InputError
from softmax_regression.runs import checkpoint
from softmax_regression.runs.folder import RunLogger
from softmax_regression.runs.record import best_epoch, read_manifest, update_manifest
from softmax_regression.runs.stopping import EarlyStopping

if TYPE_CHECKING:
    from softmax_regression.commands.train import TrainCLI

# Options of the Trainer that decide results, and so must stay, beside those of model and data.
DECIDING = (
    "precision", "limit_train_batches", "limit_val_batches", "overfit_batches", "val_check_interval",
    "check_val_every_n_epoch", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm",
)  # fmt: skip
# Options of the data that need not stay when a run is resumed.
MAY_CHANGE = {"dirs", "images", "watch_test", "device", "eval_batch_size"}


def config_of(run: Path | None, path: Path, saved: dict[str, Any]) -> list[str]:
    """Return flags that repeat the configuration of a run, from its folder or else from its checkpoint."""
    if run and (run / "config.yaml").is_file():
        check_file(str(run / "config.yaml"))
        return ["--config", str(run / "config.yaml")]
    parts: dict[str, Any] = {}
    for name, key in (("model", "hyper_parameters"), ("data", "datamodule_hyper_parameters")):
        if named := saved.get("run", {}).get(name):
            parts[name] = {"class_path": named, "init_args": saved.get(key, {})}
            parts[name]["init_args"].pop("seed", None)
    if not parts:
        raise InputError(f"{path}: does not say what was trained; give a run's folder with its config.yaml")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False, encoding="utf-8") as file:
        yaml.safe_dump(yaml.safe_load(yaml.dump(parts)), file)
    return ["--config", file.name]


def other_data(saved: dict[str, Any], data: Any) -> str | None:
    """Say so if the images that are loaded are not those of the run that saved the checkpoint."""
    loaded, trained_on = getattr(data, "data", None), saved.get("run", {}).get("sha256")
    if loaded is None or trained_on is None or loaded.sha256 == trained_on:  # None: photos to predict
        return None
    return f"data with SHA-256 {loaded.sha256[:12]}…: the model was trained on {str(trained_on)[:12]}…"


def check(run: Path | None, saved: dict[str, Any], cli: "TrainCLI") -> None:
    """Refuse flags that contradict the checkpoint.

    Raises:
        InputError: One does.
    """
    before = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")) if run else {}
    now = cli.config[cli.subcommand]
    stopping = {name: now.early_stopping[name] for name in ("monitor", "min_delta", "mode")}
    best = {name: now.best_checkpoint[name] for name in ("monitor", "mode")}
    for group, was, wanted in (
        ("model", saved.get("hyper_parameters", {}), cli.model.hparams),
        ("data", saved.get("datamodule_hyper_parameters", {}), cli.datamodule.hparams),
        ("trainer", before.get("trainer", {}), {name: now.trainer[name] for name in DECIDING}),
        ("early_stopping", before.get("early_stopping", {}), stopping),
        ("best_checkpoint", before.get("best_checkpoint", {}), best),
    ):
        for name, value in wanted.items():
            if name in was and was[name] != value and name not in MAY_CHANGE:
                raise InputError(
                    f"{group}.{name}={value}: the run to resume has {was[name]}; "
                    f"go on with that, or start a new run without --resume"
                )
    if other := other_data(saved, cli.datamodule):
        raise InputError(f"{other}; give the same files, or start a new run")


def reopen(run: Path, trainer: Trainer, path: str, saved: dict[str, Any]) -> None:
    """Go on in the folder of a run.

    Raises:
        InputError: No logger keeps a folder, or another process has gone on with the run meanwhile.
    """
    loggers = [logger for logger in trainer.loggers if isinstance(logger, RunLogger)]
    if not loggers:
        raise InputError(f"{run}: a run goes on in its folder, which RunLogger keeps; drop the flag")
    for logger in loggers:
        logger.reopen(run, saved["global_step"])
    if trainer.is_global_zero and checkpoint.read(path)["global_step"] != saved["global_step"]:
        raise InputError(f"{path}: another process has gone on with the run; start the command again")


def end(trainer: Trainer, saved: dict[str, Any]) -> str | None:
    """Say why there is nothing left to resume, and what to raise, if so."""
    epochs, steps = len(saved.get("history", [])), saved["global_step"]
    if trainer.max_epochs and 0 < trainer.max_epochs <= epochs:
        return f"it has {epochs} epochs, max_epochs={trainer.max_epochs}; raise trainer.max_epochs to go on"
    if 0 < trainer.max_steps <= steps:
        return f"it has {steps} steps, max_steps={trainer.max_steps}; raise trainer.max_steps to go on"
    for callback in trainer.early_stopping_callbacks:
        waited = saved["callbacks"].get(callback.state_key, {}).get("wait_count", 0)
        if isinstance(callback, EarlyStopping) and 0 < callback.patience <= waited:
            return (
                f"early stopping: {callback.monitor} did not improve for {waited} validations; "
                f"go on with --early_stopping.patience {waited + 1} or more"
            )
    return None


def record_end(run: Path | None, trainer: Trainer, saved: dict[str, Any], reason: str) -> None:
    """Complete the manifest of a run that was killed after its last checkpoint."""
    if run and read_manifest(run).get("status") != "finished" and trainer.is_global_zero:
        history = saved.get("history", [])
        ends = {"final": history[-1], "best": best_epoch(history)} if history else {}
        update_manifest(run, status="finished", stopped=reason, **ends)
