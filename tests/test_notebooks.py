"""The section of the book as a notebook, in two languages: what both share, and what running them shows."""

import ast
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from marks import table

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
ENGLISH, CHINESE = "softmax_regression.ipynb", "softmax_regression.zh.ipynb"
DRAWN = {
    "grid", "scale", "training", "predictions", "templates", "try-lr", "try-hidden", "bounds",
    "sweep-figure", "few-figure", "remedies-figure",
}  # fmt: skip


def cells(name: str) -> list[dict[str, Any]]:
    """The cells of a notebook, the source of each as one text."""
    notebook = json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = notebook["cells"]
    for cell in found:
        cell["source"] = "".join(cell["source"])
    return found


def texts(name: str) -> list[dict[str, Any]]:
    """The cells that are no code."""
    return [cell for cell in cells(name) if cell["cell_type"] == "markdown"]


def test_the_code_of_both_languages_is_equal() -> None:
    for english, chinese in zip(cells(ENGLISH), cells(CHINESE), strict=True):
        assert english["id"] == chinese["id"]
        assert english["cell_type"] == chinese["cell_type"]
        if english["cell_type"] == "code":
            assert english == chinese


def named(text: str) -> tuple[list[str], list[float], int]:
    """The code and formulas that a text names, its numbers outside of them, and how many headings it has."""
    text = re.sub(r"\]\(.*?\)|section \d\.\d|\d\.\d节", "", text)
    exact = r"`[^`]+`|\$+[^$]+\$+"
    return re.findall(exact, text), numbers(re.sub(exact, "", text)), len(re.findall("^#", text, re.M))


def numbers(text: str) -> list[float]:
    """The numbers of a text or of code, 1,000 and 1_000 as 1000."""
    text = re.sub(r"(?<=\d)[,_](?=\d{3})", "", text)
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


def test_both_texts_name_the_same_code_formulas_and_numbers() -> None:
    for english, chinese in zip(texts(ENGLISH), texts(CHINESE), strict=True):
        ours, theirs = named(english["source"]), named(chinese["source"])
        assert sorted(ours[0]) == sorted(theirs[0]), english["id"]
        assert sorted(ours[1]) == sorted(theirs[1]), english["id"]
        assert ours[2] == theirs[2], english["id"]


@pytest.mark.parametrize("name", [ENGLISH, CHINESE])
def test_it_is_stored_without_outputs_or_traces_of_a_machine(name: str) -> None:
    notebook = json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def run(name: str, folder: Path) -> dict[str, Any]:
    """Run a notebook in a folder; return its code cells by their ids."""
    why = "needs nbformat, nbclient and ipykernel"
    nbformat = pytest.importorskip("nbformat", reason=why)
    nbclient = pytest.importorskip("nbclient", reason=why)
    pytest.importorskip("ipykernel", reason=why)
    notebook = nbformat.read(NOTEBOOKS / name, 4)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=500, kernel_name="python3", resources=resources).execute()
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def shown(cell: Any) -> str:
    """What a cell has written, and the value of its last line."""
    outputs = [output.get("text", output.get("data", {}).get("text/plain", "")) for output in cell.outputs]
    return "\n".join(outputs)


def row(cell: Any) -> str:
    """The value of a cell's last line."""
    return str(cell.outputs[-1]["data"]["text/plain"])


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name", [pytest.param(ENGLISH, marks=(pytest.mark.slow, pytest.mark.real_data)), table(CHINESE)]
)
def test_it_runs_from_top_to_bottom(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, folder = name == ENGLISH, tmp_path / "empty"
    images = request.getfixturevalue("real_folder").resolve() if real else tmp_path / "absent"
    monkeypatch.setenv("FASHION_MNIST_DIR", str(images))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    folder.mkdir()
    ran = run(name, folder)
    assert not list(folder.iterdir())
    drawn = []
    computed = set[float]()
    for key, cell in ran.items():
        computed.update(numbers(cell.source + shown(cell)))
        for output in cell.outputs:
            assert output.get("name") != "stderr", output
            if "image/png" in output.get("data", {}):
                drawn.append(key)
    assert sorted(drawn) == sorted(DRAWN)  # one each, as a live curve replaces its picture
    assert ("goes on with generated ones" in shown(ran["data"])) == (not real)

    for text in texts(name):
        assert set(named(text["source"])[1]) <= computed, text["id"]

    last = ast.literal_eval(row(ran["training"]))
    assert last["val/loss"] < 0.6
    assert last["val/acc"] > 0.8
    by_hand, by_lightning = ast.literal_eval(row(ran["by-hand"]))
    assert math.isclose(by_hand, by_lightning, rel_tol=1e-6)
    for key in ("try-lr", "try-hidden", "test"):
        scores = ast.literal_eval(row(ran[key]))
        if key == "test":  # of each loader
            (scores,) = scores
        assert all(map(math.isfinite, scores.values()))
    assert "nan" in shown(ran["overflow"])
    assert "-inf" in shown(ran["underflow"])
    assert "the run diverged" in shown(ran["try-naive"])
