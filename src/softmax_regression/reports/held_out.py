"""The images of a run that its model was not trained on."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, cast

from lightning.pytorch.utilities.model_helpers import is_overridden

from softmax_regression.experiment.opening import OpenedRun, open_run
from softmax_regression.figures.scoring import choose_loader


def open_run_with_data(which: str, dirs: Sequence[str] | None) -> OpenedRun:
    """Open a run, see `open_run`; its data are looked for in `dirs` or, if that is None, where the run did."""
    flags = []
    if dirs is not None:
        flags.append(f"--data.dirs={json.dumps(list(dirs))}")
    opened = open_run(which, flags=flags)
    known = opened.saved.get("run", {}).get("sha256")
    images = getattr(opened.data, "loaded", None)  # of this project's data module
    if known and images is not None and images.sha256 != known:
        print("warning: these are not the images that the run was trained with", file=sys.stderr)
    return opened


def held_out_loader(opened: OpenedRun, stage: str) -> Iterable[Any] | None:
    """Return the loader of the images of a stage, `val` or `test`, of a run's data or else of its module.

    Of several loaders it is the one with the name of the stage, or else the first; None if there is none.
    """
    name = f"{stage}_dataloader"
    source: Any = opened.model
    if opened.data is not None:
        source = opened.data
    if not is_overridden(name, source):
        return None
    if opened.data is not None:
        source.setup({"val": "fit", "test": "test"}[stage])
    chosen = choose_loader(getattr(source, name)(), stage)
    if chosen is None:
        return None
    _, loader = chosen
    return cast(Iterable[Any], loader)
