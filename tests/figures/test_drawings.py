from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection, PatchCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from softmax_regression.figures.canvas import HEAD, STEP, TILE, Canvas
from softmax_regression.figures.drawings import (
    VERMILION,
    calibration_error,
    class_bars,
    class_scores,
    confusion_matrix,
    explanation,
    learning_curves,
    prediction_grid,
    reliability_diagram,
    to_array,
    weight_templates,
)

Written = list[tuple[float, float, str, str]]
NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


def predictions(n: int = 200) -> tuple[Tensor, Tensor]:
    """Probabilities (n, 10) that are right more often than not, and labels (n,)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (n,), generator=generator)
    logits = torch.randn(n, 10, generator=generator)
    logits[torch.arange(n), labels] += 2
    return logits.softmax(dim=1), labels


def counts() -> Tensor:
    probs, labels = predictions()
    return multiclass_confusion_matrix(probs, labels, num_classes=10)


def pictures(n: int) -> Tensor:
    return torch.randint(256, (n, 28, 28), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)


def linear() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(784, 10)


def curve(*values: float) -> tuple[Tensor, Tensor]:
    return torch.arange(1, len(values) + 1), torch.tensor(values)


def picture_of(
    figure: Figure, axes: int = 0, image: int = 0
) -> np.ma.MaskedArray[tuple[int, ...], np.dtype[np.float64]]:
    return np.ma.asarray(figure.axes[axes].images[image].get_array())


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    """What is written on canvases from now on: x, y, words and colour."""
    lines: Written = []
    write = Canvas.write

    def noted(canvas: Canvas, words: Iterable[tuple[float, float, str]], *args: Any, **kwargs: Any) -> None:
        words = list(words)
        lines.extend((*line, kwargs.get("colour", "black")) for line in words)
        write(canvas, words, *args, **kwargs)

    monkeypatch.setattr(Canvas, "write", noted)
    return lines


def captions(written: Written) -> list[str]:
    """The words below each tile."""
    lines = iter(words for _, _, words, _ in written[1:])  # the first is the title
    return [f"{true}\n{guess}" for true, guess in zip(lines, lines, strict=True)]


def bars(figure: Figure, axes: int) -> list[Rectangle]:
    return [patch for patch in figure.axes[axes].patches if isinstance(patch, Rectangle)]


FIGURES: dict[str, Callable[[], Figure]] = {
    "curves": lambda: learning_curves({"run": {"train/loss": curve(2, 1), "val/acc": curve(0.1, 0.8)}}),
    "confusion": lambda: confusion_matrix(counts(), NAMES),
    "grid": lambda: prediction_grid(pictures(200), predictions()[1], predictions()[0], NAMES),
    "templates": lambda: weight_templates(linear().weight, NAMES),
    "reliability": lambda: reliability_diagram(*predictions()),
    "bars": lambda: class_bars(counts(), NAMES),
    "explanation": lambda: explanation(pictures(1)[0], linear().weight, linear().bias, 3, NAMES),
    "curves of a run without metrics": lambda: learning_curves({"run": {}}),
    "curves that diverge": lambda: learning_curves(
        {"run": {"train/loss": curve(2, float("inf"), float("nan"))}}
    ),
    "confusion of nothing": lambda: confusion_matrix(torch.zeros(10, 10, dtype=torch.long), NAMES),
    "templates of zero": lambda: weight_templates(torch.zeros(10, 784), NAMES),
    "bars of nothing": lambda: class_bars(torch.zeros(10, 10), NAMES),
    "explanation of nothing": partial(
        explanation, torch.zeros(28, 28), torch.zeros(10, 784), torch.zeros(10), 0, NAMES
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_renders_to_pixels(name: str) -> None:
    figure = FIGURES[name]()
    pixels = to_array(figure)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (*(round(100 * inches) for inches in reversed(figure.get_size_inches())), 3)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels.min() < 100


@pytest.mark.parametrize("name", list(FIGURES)[:7])
def test_every_axis_is_named_and_every_text_large_enough(name: str) -> None:
    figure = FIGURES[name]()
    to_array(figure)
    sizes = [text.get_fontsize() for axes in figure.axes for text in axes.texts]
    for axis in (axis for axes in figure.axes if axes.axison for axis in (axes.xaxis, axes.yaxis)):
        ticks = [label for label in axis.get_ticklabels() if label.get_text() and label.get_visible()]
        sizes += [label.get_fontsize() for label in ticks]
        assert not ticks or axis.get_label_text() or ticks[0].get_text() in NAMES
    assert all(float(size) >= 10 for size in sizes)


def written_boxes(axes: Axes) -> list[tuple[float, ...]]:
    """Left, top, right and bottom of all that was written by each call."""
    outlines = [np.asarray(part.get_path().vertices) for part in axes.patches if isinstance(part, PathPatch)]
    assert outlines
    return [(*outline.min(axis=0), *outline.max(axis=0)) for outline in outlines]


@pytest.mark.parametrize("name", ["confusion", "grid", "templates"])
def test_no_words_are_cut_off(name: str) -> None:
    (axes,) = FIGURES[name]().axes
    for x0, y0, x1, y1 in written_boxes(axes):
        assert x0 >= 0
        assert y0 >= 0
        assert x1 <= axes.get_xlim()[1]
        assert y1 <= axes.get_ylim()[0]


def test_the_longest_captions_do_not_touch() -> None:
    probs = torch.eye(10)[torch.full((30,), 9)]
    figure = prediction_grid(pictures(30), torch.arange(30) % 10, probs, NAMES)
    captions = written_boxes(figure.axes[0])[1:]
    assert len(captions) == 30
    for (_, _, right, bottom), (left, top, _, _) in pairwise(captions):
        assert right < left or bottom < top


def test_calibration_error_of_an_example_by_hand() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]], dtype=torch.float64)
    found = calibration_error(probs, torch.tensor([0, 1, 1, 1]), bins=4)
    # (0.5, 0.75]: two images, both right, mean confidence 0.65; (0.75, 1]: two, one right, 0.9
    assert found.counts.tolist() == [0, 0, 2, 2]
    assert found.confidence[2:].tolist() == pytest.approx([0.65, 0.9])
    assert found.accuracy[2:].tolist() == [1.0, 0.5]
    assert found.confidence[:2].isnan().all()
    assert found.error == pytest.approx(0.5 * 0.35 + 0.5 * 0.4)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_that_of_torchmetrics(bins: int) -> None:
    probs, labels = predictions(1000)
    expected = multiclass_calibration_error(probs, labels, num_classes=10, n_bins=bins, norm="l1")
    assert calibration_error(probs, labels, bins).error == pytest.approx(float(expected), abs=1e-6)


def test_certainty_falls_into_the_last_bin() -> None:
    found = calibration_error(torch.eye(10), torch.arange(10))
    assert found.counts[-1] == 10
    assert found.error == 0


def test_class_scores_equal_those_of_torchmetrics() -> None:
    probs, labels = predictions()
    scores = class_scores(counts())
    for column, metric in enumerate((multiclass_precision, multiclass_recall, multiclass_f1_score)):
        expected = metric(probs, labels, num_classes=10, average="none")
        assert torch.allclose(scores[:, column].float(), expected)


def test_a_class_that_never_occurs_scores_zero() -> None:
    assert class_scores(torch.tensor([[3, 0], [0, 0]])).tolist() == [[1, 1, 1], [0, 0, 0]]


def test_curves_carry_the_values_and_one_stroke_for_each_stage() -> None:
    metrics = {"train/loss": curve(2, 1, 0.5), "val/loss": curve(3, 2, 1.5), "val/acc": curve(0.1, 0.2, 0.3)}
    figure = learning_curves({"run": metrics | {"lr": curve(1, 1, 1), "val/f1": curve(1, 1, 1)}})
    loss, acc = figure.axes
    assert np.allclose(loss.lines[0].get_ydata(), [2, 1, 0.5])
    assert np.allclose(loss.lines[1].get_ydata(), [3, 2, 1.5])
    assert len(loss.lines) == 2
    assert np.allclose(acc.lines[0].get_ydata(), [0.1, 0.2, 0.3])
    assert np.allclose(acc.lines[0].get_xdata(), [1, 2, 3])
    assert len(acc.lines) == 1
    train, val = loss.lines
    assert train.get_linestyle() != val.get_linestyle() == acc.lines[0].get_linestyle()
    assert train.get_color() != val.get_color() == acc.lines[0].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["train", "val"]


def test_several_runs_have_a_colour_each_and_keep_the_strokes() -> None:
    names = [f"run {i}" for i in range(9)]
    figure = learning_curves({name: {"train/loss": curve(1, 2), "test/loss": curve(2, 3)} for name in names})
    lines = figure.axes[0].lines
    assert len({to_hex(line.get_color()) for line in lines}) == 9
    assert lines[0].get_color() == lines[1].get_color()
    assert lines[0].get_linestyle() == lines[2].get_linestyle() != lines[1].get_linestyle()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*names, "train", "test"]


def test_seeds_become_their_mean_in_a_band() -> None:
    values = torch.tensor([[1.0, 4.0], [2.0, 5.0], [6.0, 9.0]])
    figure = learning_curves({"run": {"train/loss": (torch.tensor([1, 2]), values)}})
    axes = figure.axes[0]
    assert np.allclose(axes.lines[0].get_ydata(), [3, 6])
    (band,) = (part for part in axes.collections if isinstance(part, FillBetweenPolyCollection))
    corners = np.asarray(band.get_paths()[0].vertices).tolist()
    assert all(corner in corners for corner in ([1, 1], [1, 6], [2, 4], [2, 9]))


def test_a_confusion_matrix_says_counts_and_shares_of_the_true_class(written: Written) -> None:
    table = counts()
    table[4, 4:7] = torch.tensor([3, 0, 1])
    table[4, :4] = table[4, 7:] = 0
    figure = confusion_matrix(table, NAMES)
    (mesh,) = (part for part in figure.axes[0].collections if isinstance(part, QuadMesh))
    assert np.allclose(np.ma.asarray(mesh.get_array()), table / table.sum(dim=1, keepdim=True))
    assert written[0][2] == f"Confusion matrix: {int(table.trace())} of {int(table.sum())} right"
    rows, columns = [[words for *_, words, _ in written[start:][:10]] for start in (-22, -12)]
    assert rows == columns == NAMES
    assert [words for *_, words, _ in written[-2:]] == ["predicted class", "true class"]

    edges = np.asarray(mesh.get_coordinates())  # (11, 11, 2)
    columns_and_rows = edges[0, 1:, 0], edges[1:, 0, 1]
    cells: dict[tuple[int, ...], list[str]] = {}
    for x, y, words, _ in written[1:-22]:
        place = [int(np.searchsorted(*pair)) for pair in zip(columns_and_rows, (x, y), strict=True)]
        cells.setdefault(tuple(place), []).append(words)
    assert cells[4, 4] == ["3", "75.0%"]
    assert cells[6, 4] == ["1", "25.0%"]  # x is the predicted class, y the true one
    assert set(cells) == {(x, y) for y, x in table.nonzero().tolist()}


def test_the_shares_of_a_class_that_never_occurs_are_zero() -> None:
    (mesh,) = confusion_matrix(torch.diag(torch.tensor([2, 0])), NAMES[:2]).axes[0].collections
    assert np.array_equal(np.ma.asarray(mesh.get_array()).filled(np.nan), [[1, 0], [0, 0]])


def grid_input() -> tuple[Tensor, Tensor, Tensor]:
    """Ten images: 0, 3, 4 and 8 taken for the next class, with probabilities .6, .9, .7 and .8."""
    probs = torch.full((10, 10), 0.05)
    for image, (predicted, probability) in enumerate(
        [
            (1, 0.6),
            (1, 0.55),
            (2, 0.55),
            (4, 0.9),
            (5, 0.7),
            (5, 0.55),
            (6, 0.55),
            (7, 0.55),
            (9, 0.8),
            (9, 0.55),
        ]
    ):
        probs[image, predicted] = probability
    return pictures(10), torch.arange(10), probs


def test_the_grid_opens_with_the_most_confident_mistakes(written: Written) -> None:
    images, labels, probs = grid_input()
    figure = prediction_grid(images, labels, probs, NAMES, limit=8)
    order = [3, 8, 4, 0, 1, 2, 5, 6]
    assert [caption.split("\n")[0] for caption in captions(written)] == [NAMES[image] for image in order]
    assert captions(written)[:2] == ["dress\n→ coat 90%", "bag\n→ ankle boot 80%"]
    picture = picture_of(figure)
    for tile, image in enumerate(order):
        x, y = 5 + tile % 6 * STEP[0], tile // 6 * STEP[1]
        assert np.array_equal(picture[y : y + 28, x : x + 28], images[image])
    assert written[0][2].startswith("4 of 10 wrong")


def test_mistakes_and_only_mistakes_are_framed(written: Written) -> None:
    images, labels, probs = grid_input()
    figure = prediction_grid(images, labels, probs, NAMES)
    (frames,) = (part for part in figure.axes[0].collections if isinstance(part, PatchCollection))
    assert [path.get_extents().bounds for path in frames.get_paths()] == [
        (20 + 156 * tile, HEAD, TILE, TILE) for tile in range(4)
    ]
    colours = [to_hex(colour) for *_, colour in written[1:]]
    assert colours == [VERMILION.lower()] * 8 + ["#000000"] * 12


@pytest.mark.parametrize(("limit", "mistakes"), [(2, 1), (8, 4), (4, 2), (100, 4)])
def test_half_of_the_grid_goes_to_mistakes(limit: int, mistakes: int, written: Written) -> None:
    prediction_grid(*grid_input(), NAMES, limit=limit)
    pairs = [caption.replace("→ ", "").rsplit(" ", 1)[0].split("\n") for caption in captions(written)]
    assert len(pairs) == min(limit, 10)
    assert sum(true != predicted for true, predicted in pairs) == mistakes


def test_places_that_right_ones_leave_free_go_to_mistakes(written: Written) -> None:
    images, labels, probs = grid_input()
    prediction_grid(images, (labels + 5) % 10, probs, NAMES, limit=8)
    assert len(captions(written)) == 8


def test_templates_are_the_weights_on_one_scale_centred_at_zero(written: Written) -> None:
    weight = linear().weight.detach().clone()
    weight[6, 100] = -0.5
    figure = weight_templates(weight, NAMES)
    assert figure.axes[0].images[0].get_clim() == (-0.5, 0.5)
    assert figure.axes[0].images[0].get_cmap()(0.5)[:3] == pytest.approx((0.97, 0.97, 0.97), abs=0.01)
    picture = picture_of(figure)
    for tile in range(10):
        x, y = 5 + tile % 5 * STEP[0], tile // 5 * STEP[1]
        assert np.array_equal(picture[y : y + 28, x : x + 28], weight[tile].view(28, 28))
    words = [words for *_, words, _ in written[1:]]
    assert words == [*NAMES, "-0.5", "0.5", "logit per unit of brightness (nats)"]
    assert np.allclose(picture_of(figure, image=1), np.linspace(-1, 1, 256))


def test_the_reliability_diagram_shows_the_accuracy_of_each_bin_and_the_error() -> None:
    probs, labels = predictions(1000)
    expected = calibration_error(probs, labels, bins=10)
    figure = reliability_diagram(probs, labels, bins=10)
    heights = [bar.get_height() for bar in bars(figure, 0)]
    assert np.allclose(heights, expected.accuracy, equal_nan=True)
    middles = [bar.get_x() + bar.get_width() / 2 for bar in bars(figure, 0)]
    assert np.allclose(middles, [0.05 + 0.1 * i for i in range(10)])
    assert np.allclose([bar.get_height() for bar in bars(figure, 1)], expected.counts / 1000)
    assert np.allclose(figure.axes[0].lines[0].get_ydata(), expected.confidence, equal_nan=True)
    assert figure.axes[0].get_title() == f"Expected calibration error {expected.error:.3f}"


def test_class_bars_are_as_long_as_the_scores() -> None:
    figure = class_bars(counts(), NAMES)
    axes = figure.axes[0]
    widths = [bar.get_width() for bar in bars(figure, 0)]
    assert np.allclose(np.reshape(widths, (3, 10)).T, class_scores(counts()))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["precision", "recall", "F1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == NAMES
    assert axes.yaxis_inverted()  # the first class on top


def test_an_explanation_adds_up_to_the_logits() -> None:
    image, model = pictures(1)[0], linear()
    logits = model(image.flatten() / 255).detach()
    best, second = logits.argsort(descending=True)[:2].tolist()
    label = (best + 1) % 10
    for true, other, role in ((label, best, "predicted"), (best, second, "runner-up")):
        figure = explanation(image, model.weight, model.bias, true, NAMES)
        for axes, index in ((1, true), (2, other)):
            total = picture_of(figure, axes).sum() + model.bias[index].item()
            assert total == pytest.approx(logits[index].item(), abs=1e-4)
            assert f"logit {logits[index]:.2f} " in figure.axes[axes].get_title()
            assert f"{NAMES[index]} {logits.softmax(0)[index]:.0%}" in figure.axes[axes].get_title()
        assert figure.axes[1].get_title().startswith("true: ")
        assert figure.axes[2].get_title().startswith(f"{role}: ")
        low, high = figure.axes[1].images[0].get_clim()
        assert (low, high) == figure.axes[2].images[0].get_clim() == (-high, high)
        assert high == pytest.approx(max(np.abs(picture_of(figure, axes)).max() for axes in (1, 2)))
        assert np.array_equal(picture_of(figure, 0), image)
