"""A page of several runs: their scores, their curves, and the settings in which they differ.

Command: python study.py compare RUN RUN ...
"""

import json
from collections.abc import Sequence
from pathlib import Path

from softmax_regression.figures.page import check_output, write_page
from softmax_regression.reports.curve import curves_of_runs
from softmax_regression.reports.reading import differing, held_out_metrics, labels_of, read_runs


def compare(runs: Sequence[Path], out: Path = Path("logs/compare"), force: bool = False) -> Path:
    """Write a page with the scores of runs, their curves together, and the settings in which they differ.

    An InputError says that no run can be read, or that the page cannot be written.

    Args:
        runs: The folders of runs; one that diverged or cannot be read is left out.
        out: Folder of the page.
        force: Replace a page that this project did not write.
    """
    check_output(out / "index.html", force)
    found = read_runs(runs)
    labels = labels_of(found)
    metrics = held_out_metrics([run.scores for run in found])
    names = differing(found)
    scores = []
    settings = []
    records = {}
    for label, run in zip(labels, found, strict=True):
        scores.append([label, run.best.get("epoch"), *map(run.scores.get, metrics)])
        settings.append([label, *(run.settings.get(name, "") for name in names)])
        made_by = {key: run.manifest.get(key) for key in ("data", "git", "versions", "machine")}
        command = run.manifest.get("command", "no command was recorded")
        records[str(run.folder)] = f"{command}\n\n{json.dumps(made_by, indent=2)}"
    return write_page(
        out,
        Path(__file__).with_name("compare.html"),
        {"curves": curves_of_runs(found)},
        scores=scores,
        metrics=metrics,
        settings=settings,
        names=names,
        records=records,
    )
