"""The images of a run that its model was not trained on."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch.utilities.model_helpers import is_overridden

from softmax_regression.experiment.opening import OpenedRun
from softmax_regression.figures.scoring import choose_loader


def held_out_loader(opened: OpenedRun, stage: str) -> Iterable[Any] | None:
    """Return the loader of the images of a stage, `val` or `test`, of a run's data or else of its module.

    Of several loaders it is the one with the name of the stage, or else the first; None if there is none.
    """
    name = f"{stage}_dataloader"
    if opened.data is not None and is_overridden(name, opened.data):
        opened.data.setup("fit" if stage == "val" else "test")
        _warn_of_other_images(opened)
        loaders = getattr(opened.data, name)()
    elif is_overridden(name, opened.model):
        loaders = getattr(opened.model, name)()
    else:
        return None
    chosen = choose_loader(loaders, stage)
    return None if chosen is None else chosen[1]


def _warn_of_other_images(opened: OpenedRun) -> None:
    """Say so if this project's data module found other images than the run was trained with."""
    known = opened.saved.get("run", {}).get("sha256")
    images = getattr(opened.data, "loaded", None)
    if known and images is not None and images.sha256 != known:
        print("warning: these are not the images that the run was trained with", file=sys.stderr)


def flags_of_data(dirs: Sequence[str] | None) -> list[str]:
    """Return the flags that let the data be looked for in other folders than the run's."""
    if dirs is None:
        return []
    return [f"--data.dirs={json.dumps(list(dirs))}"]
