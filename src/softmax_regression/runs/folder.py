"""A run's folder, logs/<name>/<run>/: its name, TensorBoard events, checkpoints and manifest run.json."""

import json
import os
import platform
import subprocess
import sys
import warnings
from argparse import Namespace
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from softmax_regression.errors import InputError, StorageError
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs import checkpoint

METRICS = tuple(f"{stage}/{name}" for stage in ("train", "val", "test") for name in ("loss", "acc"))


def metrics_text(row: Mapping[str, float]) -> str:
    """Return the metrics of a row for people, in their usual order."""
    return "  ".join(f"{name} {row[name]:.4f}" for name in METRICS if name in row)


class RunLogger(TensorBoardLogger):
    """A TensorBoardLogger whose run folder is named after the time and belongs to no other run.

    Args:
        save_dir: The folder of all experiments.
        name: The folder of this experiment's runs.
        version: The name of the run, which no other run may have; None for one made of the time.
    """

    def __init__(self, save_dir: str = "logs", name: str = "softmax", version: str | None = None) -> None:
        super().__init__(save_dir, name, None, default_hp_metric=False, log_graph=True)
        self._wanted = version

    @property
    def version(self) -> str:
        """The name of the run; asking for it the first time makes its folder, under a name no other run has.

        Raises:
            InputError: The folder cannot be made, or is another run's.
        """
        if self._version is None:
            self._version = self._claim() if getattr(rank_zero_only, "rank", 0) == 0 else "of-rank-zero"
        return str(self._version)

    def _claim(self) -> str:
        started, attempt = self._wanted or datetime.now().strftime("%Y-%m-%d_%H-%M-%S"), 0
        while True:
            name = started + (f"-{attempt}" if attempt else "")
            try:
                Path(self.root_dir, name).mkdir(parents=True)
                return name
            except FileExistsError as error:
                if self._wanted:
                    raise InputError(
                        f"{Path(self.root_dir, name)}: is another run's; choose another name, or go on with "
                        "it by --resume"
                    ) from error
                attempt += 1
            except OSError as error:
                raise InputError(
                    f"{self.root_dir}: cannot make a run folder there ({error.strerror}); "
                    "choose another with --trainer.logger.save_dir"
                ) from error

    def reopen(self, run: Path, epoch: int) -> None:
        """Go on writing in the folder of an earlier run that has come to the end of `epoch`.

        Whatever was logged of later epochs was lost with the process, and is taken back.
        """
        self._root_dir, self._name, self._version = str(run.parent.parent), run.parent.name, run.name
        self._kwargs["purge_step"] = epoch + 1

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, metrics: Any = None, step: int | None = None
    ) -> None:
        """List the run in HPARAMS, with the metrics of its scalars; a reopened run is listed already."""
        from torch.utils.tensorboard.summary import hparams

        if "purge_step" not in self._kwargs:
            values = {
                name: v if isinstance(v, int | float | str) else str(v) for name, v in dict(params).items()
            }
            for summary in hparams(values, dict.fromkeys(METRICS, 0.0)):
                self.experiment._get_file_writer().add_summary(summary)

    @rank_zero_only
    def log_graph(self, model: LightningModule, input_array: Tensor | None = None) -> None:  # type: ignore[override]
        """Draw the model for the page GRAPHS."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SummaryWriter traces it with torch.jit, which is deprecated
            super().log_graph(model, input_array)

    @rank_zero_only
    def save(self) -> None:
        """Hand everything logged so far to the operating system."""
        self.experiment.flush()


def find_run(path: Path | str) -> Path | None:
    """Return the run folder that `path` is, or is a checkpoint of; None if there is none."""
    path = Path(path)
    return next((p for p in (path, *path.parents[:2]) if (p / "config.yaml").is_file()), None)


def open_checkpoint(
    which: str, prefer: str = "best", logs: Path = Path("logs")
) -> tuple[Path, dict[str, Any]]:
    """Find and read the checkpoint that a user names.

    Of a run's folder it is the newest good one if the preferred one is damaged, which a line on stderr says.

    Args:
        which: A .ckpt file; a run's folder; `best` or `last` of the newest run under `logs`.
        prefer: `best` or `last`, for a folder that has both.
        logs: The folder of all experiments.

    Returns:
        The file and what it holds.

    Raises:
        InputError: There is none, or none that can be read.
    """
    if which in ("best", "last"):
        runs = {path.parent.parent for path in logs.glob(f"*/*/checkpoints/{which}.ckpt")}
        if not runs:
            raise InputError(
                f"{which}: no run under {logs}/ has a {which}.ckpt; train one with `train.py fit`"
            )
        prefer, which = which, str(max(runs, key=lambda run: (run / "checkpoints").stat().st_mtime))
    if not Path(which).is_dir():
        return Path(which), checkpoint.read(which)
    files = sorted((Path(which) / "checkpoints").glob("*.ckpt"), key=lambda file: -file.stat().st_mtime)
    files.sort(key=lambda file: file.stem != prefer)
    if not files:
        raise InputError(
            f"{which}: has no checkpoints/*.ckpt to go on with; give the folder of a run that saved one"
        )
    for file in files:
        try:
            found = checkpoint.read(file)
        except (InputError, StorageError) as error:
            if file == files[-1]:
                raise
            print(f"warning: {error}; trying an older one", file=sys.stderr)
        else:
            break
    return file, found


def open_model(which: str) -> tuple[Path, SoftmaxRegression]:
    """Return the checkpoint that a user names, see `open_checkpoint`, and its model, ready to predict."""
    path, saved = open_checkpoint(which)
    model = SoftmaxRegression()
    try:
        model.load_state_dict(saved["state_dict"])
    except RuntimeError as error:
        raise InputError(f"{path}: has weights of another shape; give a checkpoint of this model") from error
    return path, model.eval()


def read_manifest(run: Path) -> dict[str, Any]:
    """Read run.json, or return nothing of it if there is none yet.

    Raises:
        InputError: It is not JSON.
    """
    try:
        manifest: dict[str, Any] = json.loads((run / "run.json").read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{run / 'run.json'}: not a manifest ({error}); delete it") from error
    return manifest


def update_manifest(run: Path, **entries: Any) -> None:
    """Add entries to run.json, or replace them."""
    manifest = read_manifest(run) | entries
    checkpoint.write(json.dumps(manifest, indent=2, default=str).encode(), run / "run.json")


def environment() -> dict[str, Any]:
    """Return what a result depends on beside the configuration: commit, versions, machine."""
    packages = ("torch", "torchvision", "lightning", "torchmetrics", "tensorboard", "softmax-regression")
    return {
        "git": {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
        },
        "command": ["python", *sys.argv],
    }


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
