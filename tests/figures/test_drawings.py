from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
)

from softmax_regression.figures.drawings import (
    PRODUCER,
    VERMILION,
    curves,
    learning_curves,
    metrics_of,
    to_png,
)
from softmax_regression.figures.predictions import (
    class_scores,
    confusion_matrix,
    figures_of,
    pixel_contributions,
    prediction_grid,
    reliability_diagram,
    weight_templates,
)
from softmax_regression.runs.rows import split_metric

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
    return torch.rand(n, 28, 28, generator=torch.Generator().manual_seed(n))


def linear() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(784, 10)


def curve(*values: float) -> tuple[Tensor, Tensor]:
    return torch.arange(1, len(values) + 1), torch.tensor(values)


def rendered(figure: Figure) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The figure as pixels, (h, w, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]


def words(figure: Figure) -> list[Text]:
    """What is written within the axes."""
    found: list[Text] = []
    for axes in figure.axes:
        found += axes.texts
    return found


def tiles(figure: Figure) -> list[np.ma.MaskedArray[tuple[int, ...], np.dtype[np.float64]]]:
    return [np.ma.asarray(image.get_array()) for image in figure.axes[0].images]


def corners(figure: Figure, n: int, columns: int) -> list[tuple[int, int]]:
    """Where the upper left corners, x and y, of the n tiles of 28 x 28 of a mosaic are."""
    high, wide = tiles(figure)[0].shape
    down, right = high // -(-n // columns), wide // columns
    return [(i % columns * right + (right - 28) // 2, i // columns * down) for i in range(n)]


def mosaic(figure: Figure, n: int, columns: int) -> list[np.ma.MaskedArray[tuple[int, ...], np.dtype[np.float64]]]:
    (whole,) = tiles(figure)
    assert whole.count() == n * 28 * 28  # nothing is between them
    return [whole[y : y + 28, x : x + 28] for x, y in corners(figure, n, columns)]


def legend_of(figure: Figure) -> list[str]:
    """The texts of a figure's legend."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


def bars(figure: Figure, axes: int) -> list[Rectangle]:
    return [patch for patch in figure.axes[axes].patches if isinstance(patch, Rectangle)]


def heights(figure: Figure, axes: int) -> list[float]:
    return [bar.get_height() for bar in bars(figure, axes)]


def of_curves() -> Figure:
    return learning_curves({"run": {"train/loss": curve(2, 1), "val/acc": curve(0.1, 0.8)}})


def of_confusion() -> Figure:
    return confusion_matrix(counts(), NAMES)


def of_a_grid() -> Figure:
    probs, labels = predictions()
    return prediction_grid(pictures(200), labels, probs, NAMES)


def of_templates() -> Figure:
    return weight_templates(linear().weight, NAMES)


def of_reliability() -> Figure:
    return reliability_diagram(*predictions())


def of_an_explanation() -> Figure:
    model = linear()
    return pixel_contributions(pictures(1)[0], model.weight.data, model.bias.data, 3, NAMES)


def curves_of_a_run_without_metrics() -> Figure:
    return learning_curves({"run": {}})


def curves_that_diverge() -> Figure:
    return learning_curves({"run": {"train/loss": curve(2, float("inf"), float("nan"))}})


def confusion_of_nothing() -> Figure:
    return confusion_matrix(torch.zeros(10, 10, dtype=torch.long), NAMES)


def confusion_of_many_classes() -> Figure:
    return confusion_matrix(torch.eye(62).long(), list(map(str, range(62))))


def templates_of_zero() -> Figure:
    return weight_templates(torch.zeros(10, 784), NAMES)


def reliability_of_nan() -> Figure:
    return reliability_diagram(torch.full((3, 2), torch.nan), torch.zeros(3).long())


def test_of_many_metrics_the_first_have_panels_and_the_figure_says_so() -> None:
    figure = learning_curves({"": curves([{"epoch": 1, "step": 4, **{f"val/ap_{i}": 0.5 for i in range(99)}}])})
    assert len(figure.axes) == 24
    assert figure.get_suptitle() == "the first 24 of 99 quantities"
    assert learning_curves({"": curves([{"epoch": 1, "step": 4, "val/ap": 0.5}])}).get_suptitle() == ""


def test_of_many_classes_some_are_named() -> None:
    figure = confusion_matrix(torch.eye(1000).long(), list(map(str, range(1000))))
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels[:3]] == ["0", "10", "20"]
    assert len(labels) == 100


FIGURES = (of_curves, of_confusion, of_a_grid, of_templates, of_reliability, of_an_explanation)
ODD = (
    curves_of_a_run_without_metrics, curves_that_diverge, confusion_of_nothing, confusion_of_many_classes,
    templates_of_zero, reliability_of_nan,
)  # fmt: skip
Drawing = Callable[[], Figure]


@pytest.mark.parametrize("draw", [*FIGURES, *ODD])
def test_every_figure_renders_to_pixels(draw: Drawing) -> None:
    figure = draw()
    pixels = rendered(figure)
    width, height = 100 * figure.get_size_inches() + 1e-6
    assert pixels.shape == (int(height), int(width), 3)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels.min() < 100


@pytest.mark.parametrize("draw", FIGURES)
def test_every_axis_is_named_and_every_text_large_enough_and_on_the_figure(draw: Drawing) -> None:
    figure = draw()
    rendered(figure)
    texts = words(figure)
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label]
        if not axes.axison:
            continue
        for axis in (axes.xaxis, axes.yaxis):
            ticks = [label for label in axis.get_ticklabels() if label.get_text() and label.get_visible()]
            assert not ticks or axis.get_label_text() or ticks[0].get_text() in NAMES
            for label in ticks:
                assert float(label.get_fontsize()) >= 10
    for text in words(figure):
        assert float(text.get_fontsize()) >= 10
    for found in figure.findobj(Text):
        if isinstance(found, Text) and found.get_text() in NAMES:
            texts.append(found)
    whole = figure.bbox
    for text in texts:
        if text.get_text():
            box = text.get_window_extent()
            assert whole.x0 - 1 <= box.x0 <= box.x1 <= whole.x1 + 1, text
            assert whole.y0 - 1 <= box.y0 <= box.y1 <= whole.y1 + 1, text


def longest_names() -> tuple[Tensor, Tensor]:
    """Classes (30,), and predictions for them of the class with the longest name."""
    return torch.arange(30) % 10, torch.eye(10)[torch.full((30,), 9)]


def grid_of_the_longest_names() -> Figure:
    return prediction_grid(pictures(30), *longest_names(), NAMES)


LONG_NAMES = [f"a class with a long name {i}" for i in range(10)]


def grid_of_longer_names() -> Figure:
    return prediction_grid(pictures(30), *longest_names(), LONG_NAMES)


def templates_of_longer_names() -> Figure:
    return weight_templates(torch.randn(10, 784), LONG_NAMES)


def grid_of_tall_images() -> Figure:
    return prediction_grid(torch.rand(30, 40, 20), *longest_names(), NAMES)


@pytest.mark.parametrize(("draw", "captions"), [
    (grid_of_the_longest_names, 30), (grid_of_longer_names, 30), (grid_of_tall_images, 30), (of_templates, 10),
    (templates_of_longer_names, 10),
])  # fmt: skip
def test_captions_do_not_touch(draw: Drawing, captions: int) -> None:
    figure = draw()
    rendered(figure)
    boxes = [text.get_window_extent() for text in words(figure)]
    assert len(boxes) == captions
    for a, b in combinations(boxes, 2):
        assert not a.overlaps(b)


def test_the_reliability_diagram_of_an_example_by_hand() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    figure = reliability_diagram(probs, torch.tensor([0, 1, 1, 1]), bins=4)
    # [0.5, 0.75): two images, both right, mean confidence 0.65; [0.75, 1): two, one right, 0.9
    assert heights(figure, 0)[2:] == [1.0, 0.5]
    assert np.isnan(heights(figure, 0)[:2]).all()
    assert heights(figure, 1) == [0, 0, 0.5, 0.5]
    assert np.asarray(figure.axes[0].lines[0].get_ydata())[2:] == pytest.approx([0.65, 0.9])
    assert figure.axes[0].get_title() == f"expected calibration error {0.5 * 0.35 + 0.5 * 0.4:.3f}"


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_bins_of_the_reliability_diagram_make_the_error_of_torchmetrics(bins: int) -> None:
    probs, labels = predictions(1000)
    figure = reliability_diagram(probs, labels, bins)
    gaps = np.abs(heights(figure, 0) - np.asarray(figure.axes[0].lines[0].get_ydata())) * heights(figure, 1)
    expected = multiclass_calibration_error(probs, labels, num_classes=10, n_bins=bins, norm="l1")
    assert np.nansum(gaps) == pytest.approx(float(expected), abs=1e-6)
    for i, bar in enumerate(bars(figure, 0)):
        assert bar.get_x() + bar.get_width() / 2 == pytest.approx((i + 0.5) / bins)


def test_certainty_falls_into_the_last_bin() -> None:
    figure = reliability_diagram(torch.eye(10), torch.arange(10))
    assert heights(figure, 1) == [0] * 14 + [1]


def test_scores_are_of_each_class_and_zero_for_one_that_never_occurs() -> None:
    probs, labels = predictions()
    predicted = probs.argmax(1)
    table = counts().double()
    scores = class_scores(predicted, labels, 10)
    assert torch.allclose(scores[:, 0], (table.diagonal() / table.sum(0)).float())
    assert torch.allclose(scores[:, 1], (table.diagonal() / table.sum(1)).float())
    assert torch.allclose(scores[:, 2], multiclass_f1_score(predicted, labels, 10, average=None))
    assert class_scores(torch.zeros(3).long(), torch.zeros(3).long(), 2).tolist() == [[1, 1, 1], [0, 0, 0]]


def test_rows_of_a_run_become_curves_of_what_was_logged_in_each() -> None:
    found = curves(
        [
            {"epoch": 1, "step": 20, "lr": 0.1, "train/loss": 2.0},
            {"epoch": 2, "step": 40, "lr": 0.1, "train/loss": 1.0, "hard/acc": 0.3},
        ]
    )
    assert list(found) == ["train/loss", "hard/acc"]
    assert found["train/loss"][0].tolist() == [1, 2]
    assert found["train/loss"][1].tolist() == [2, 1]
    assert found["hard/acc"][0].tolist() == [2]


def test_a_metric_that_lightning_keeps_thrice_is_one() -> None:
    assert metrics_of([{"mae_step": 1.0, "mae_epoch": 2.0, "mae": 2.0, "f1_epoch": 0.5}]) == ["mae", "f1_epoch"]


@pytest.mark.parametrize(
    ("name", "stage", "quantity"),
    [
        ("train/loss", "train", "loss"),
        ("val_macro_f1", "val", "macro_f1"),
        ("loss/test", "test", "loss"),
        ("hard/acc", "hard", "acc"),
        ("val/loss/dataloader_idx_1", "val, loader 1", "loss"),
        ("loss", "", "loss"),
    ],
)
def test_a_stage_and_a_quantity_are_read_from_the_name_of_any_metric(name: str, stage: str, quantity: str) -> None:
    assert split_metric(name) == (stage, quantity)


def test_metrics_of_any_name_have_a_line_and_a_word_in_the_legend() -> None:
    metrics = {name: curve(0.5, 0.6) for name in ("loss", "val_loss", "hard/loss", "val/loss/dataloader_idx_1")}
    figure = learning_curves({"run": metrics})
    (panel,) = figure.axes
    assert len(panel.lines) == 4
    assert len({(to_hex(line.get_color()), line.get_linestyle()) for line in panel.lines}) == 4
    legend = legend_of(figure)
    assert legend == ["val", "without a stage", "hard", "val, loader 1"]


def test_curves_carry_the_values_and_one_stroke_for_each_stage() -> None:
    metrics = {"train/loss": curve(2, 1, 0.5), "val/loss": curve(3, 2, 1.5), "val_acc": curve(0.1, 0.2, 0.3)}
    figure = learning_curves({"run": metrics | {"lr": curve(1, 1, 1), "epoch": curve(1, 2, 3)}})
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
    assert legend_of(figure) == ["train", "val"]


def test_any_other_metric_has_a_panel_of_its_own() -> None:
    figure = learning_curves({"run": {name: curve(0.5, 0.6) for name in ("val/macro_f1", "val/acc", "val/loss")}})
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy", "macro_f1"]
    assert np.allclose(figure.axes[2].lines[0].get_ydata(), [0.5, 0.6])


def test_a_metric_without_a_finite_value_is_called_so() -> None:
    epochs = torch.arange(1, 4)
    figure = learning_curves({"": {"val/n": (epochs, epochs / torch.nan), "val/loss": (epochs, epochs / 2)}})
    loss, other = figure.axes
    assert not loss.texts
    assert [text.get_text() for text in other.texts] == ["no finite value"]


def test_the_ticks_of_epochs_are_whole_numbers() -> None:
    for epochs in (1, 2, 37):
        figure = learning_curves({"run": {"train/loss": curve(*range(epochs))}})
        rendered(figure)
        assert all(float(tick).is_integer() for tick in figure.axes[0].get_xticks())


def test_several_runs_have_a_colour_each_and_keep_the_strokes() -> None:
    names = [f"run {i}" for i in range(9)]
    figure = learning_curves({name: {"train/loss": curve(1, 2), "test/loss": curve(2, 3)} for name in names})
    lines = figure.axes[0].lines
    assert len({to_hex(line.get_color()) for line in lines}) == 9
    assert lines[0].get_color() == lines[1].get_color()
    assert lines[0].get_linestyle() == lines[2].get_linestyle() != lines[1].get_linestyle()
    assert legend_of(figure) == [*names, "train", "test"]


def test_seeds_become_their_mean_in_a_band() -> None:
    values = torch.tensor([[1.0, 4.0], [2.0, 5.0], [6.0, 9.0]])
    figure = learning_curves({"run": {"train/loss": (torch.tensor([1, 2]), values)}})
    axes = figure.axes[0]
    assert np.allclose(axes.lines[0].get_ydata(), [3, 6])
    (band,) = (part for part in axes.collections if isinstance(part, FillBetweenPolyCollection))
    corners = np.asarray(band.get_paths()[0].vertices).tolist()
    assert all(corner in corners for corner in ([1, 1], [1, 6], [2, 4], [2, 9]))


def test_a_confusion_matrix_says_counts_and_shares_of_the_true_class() -> None:
    table = counts()
    table[4, 4:7] = torch.tensor([3, 0, 1])
    table[4, :4] = table[4, 7:] = 0
    figure = confusion_matrix(table, NAMES)
    axes = figure.axes[0]
    assert np.allclose(tiles(figure)[0], table / table.sum(dim=1, keepdim=True))
    assert axes.get_title() == f"{int(table.trace())} of {int(table.sum())} right"
    assert [text.get_text() for text in axes.get_xticklabels()] == NAMES
    assert [text.get_text() for text in axes.get_yticklabels()] == NAMES
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    cells = {text.get_position(): text.get_text() for text in words(figure)}
    assert cells[4, 4] == "3\n75.0%"
    assert cells[6, 4] == "1\n25.0%"  # x is the predicted class, y the true one
    assert set(cells) == {(x, y) for y, x in table.nonzero().tolist()}


def test_the_shares_of_a_class_that_never_occurs_are_zero() -> None:
    figure = confusion_matrix(torch.diag(torch.tensor([2, 0])), NAMES[:2])
    assert np.array_equal(tiles(figure)[0].filled(np.nan), [[1, 0], [0, 0]])


def grid_input() -> tuple[Tensor, Tensor, Tensor]:
    """Ten images: 0, 3, 4 and 8 taken for the next class, with probabilities .6, .9, .7 and .8."""
    probs = torch.full((10, 10), 0.05)
    probs[range(10), range(10)] = 0.55
    for image, probability in ((0, 0.6), (3, 0.9), (4, 0.7), (8, 0.8)):
        probs[image, image + 1] = probability
    return pictures(10), torch.arange(10), probs


def captions(figure: Figure) -> list[str]:
    return [text.get_text() for text in words(figure)]


def test_the_grid_opens_with_the_most_confident_mistakes() -> None:
    images, labels, probs = grid_input()
    figure = prediction_grid(images, labels, probs, NAMES, limit=8)
    order = [3, 8, 4, 0, 1, 2, 5, 6]
    assert [caption.split("\n")[0] for caption in captions(figure)] == [NAMES[image] for image in order]
    assert captions(figure)[:2] == ["dress\n→ coat 90%", "bag\n→ ankle boot 80%"]
    for tile, image in zip(mosaic(figure, 8, 6), order, strict=True):
        assert np.array_equal(tile, images[image])
    assert figure.axes[0].get_title().startswith("4 of 10 wrong")


def test_mistakes_and_only_mistakes_are_framed() -> None:
    figure = prediction_grid(*grid_input(), NAMES)
    assert [frame.get_xy() for frame in bars(figure, 0)] == corners(figure, 10, 6)[:4]
    assert {(frame.get_width(), frame.get_height()) for frame in bars(figure, 0)} == {(28, 28)}
    colours = [to_hex(text.get_color()) for text in words(figure)]
    assert colours == [VERMILION.lower()] * 4 + ["#000000"] * 6


@pytest.mark.parametrize(("limit", "mistakes"), [(2, 1), (8, 4), (4, 2), (100, 4)])
def test_half_of_the_grid_goes_to_mistakes(limit: int, mistakes: int) -> None:
    figure = prediction_grid(*grid_input(), NAMES, limit=limit)
    assert len(captions(figure)) == min(limit, 10)
    assert len(bars(figure, 0)) == mistakes


def test_places_that_right_ones_leave_free_go_to_mistakes() -> None:
    images, labels, probs = grid_input()
    assert len(captions(prediction_grid(images, (labels + 5) % 10, probs, NAMES, limit=8))) == 8


def test_templates_are_the_weights_on_one_scale_centred_at_zero() -> None:
    weight = linear().weight.detach().clone()
    weight[6, 100] = -0.5
    figure = weight_templates(weight, NAMES)
    assert {image.get_clim() for image in figure.axes[0].images} == {(-0.5, 0.5)}
    assert figure.axes[0].images[0].get_cmap()(0.5)[:3] == pytest.approx((0.97, 0.97, 0.97), abs=0.01)
    for tile, row in zip(mosaic(figure, 10, 5), weight, strict=True):
        assert np.array_equal(tile, row.view(28, 28))
    assert captions(figure) == NAMES
    assert figure.axes[1].get_xlabel().startswith("logit per unit of brightness (nats)")


def test_of_very_many_classes_the_first_templates_are_drawn() -> None:
    figure = weight_templates(torch.randn(2000, 4), ["a"] * 2000)
    assert figure.axes[0].get_title() == "the first 100 of 2000 classes"
    assert len(figure.axes[0].texts) == 100


def test_an_explanation_adds_up_to_the_logit() -> None:
    model, image = linear(), pictures(1)[0]
    weight, bias = (parameter.data for parameter in model.parameters())
    logits = model(image.flatten()).detach()
    best = int(logits.argmax())
    label = (best + 1) % 10
    maps = pixel_contributions(image, weight, bias, label, NAMES).axes[1:3]
    assert [axes.get_title().split(":")[0] for axes in maps] == ["true", "predicted"]
    for axes, index in zip(maps, (label, best), strict=True):
        total = np.asarray(axes.images[0].get_array()).sum()
        assert total + float(bias[index]) == pytest.approx(float(logits[index]), abs=1e-5)
        assert f"logit {logits[index]:.2f} = {total:.2f} + bias {bias[index]:.2f}" in axes.get_title()
    assert pixel_contributions(image, weight, bias, best, NAMES).axes[2].get_title().startswith("runner-up")


@pytest.mark.parametrize("images", [
    (pictures(50) * 255).to(torch.uint8), (pictures(50)[:, None] * 255).to(torch.uint8),
    pictures(50)[:, None], pictures(50) * 3 - 1,
], ids=["uint8", "uint8 with channel", "float with channel", "normalized"])  # fmt: skip
def test_a_linear_model_has_all_drawings_whatever_its_images_are(images: Tensor) -> None:
    model = linear()
    pixels = images.flatten(1).float() / (1 if images.is_floating_point() else 255)
    logits, labels = model(pixels), torch.arange(50) % 10
    found = figures_of(images, labels, logits, NAMES, list(model.parameters()))
    assert set(found) == {"confusion_matrix", "predictions", "calibration", "weights", "worst_mistake"}
    assert all(isinstance(draw(), Figure) for draw in found.values())


@pytest.mark.parametrize("model", [
    torch.nn.Sequential(torch.nn.Linear(784, 10), torch.nn.ReLU()),
    torch.nn.Sequential(torch.nn.Linear(784, 20), torch.nn.Linear(20, 10)),
    torch.nn.Sequential(torch.nn.BatchNorm1d(784, affine=False), torch.nn.Linear(784, 10)),
], ids=["not linear in the pixels", "two layers", "of other pixels"])  # fmt: skip
def test_of_another_model_what_only_a_linear_one_has_is_left_out(model: torch.nn.Module) -> None:
    images, labels = pictures(50), torch.arange(50) % 10
    found = figures_of(images, labels, model(images.flatten(1)), NAMES, list(model.parameters()))
    assert set(found) == {"confusion_matrix", "predictions", "calibration"}


def test_colour_images_are_shown_in_grey_and_other_sizes_are_welcome() -> None:
    images = torch.rand(20, 3, 32, 24)
    found = figures_of(images, torch.arange(20) % 3, torch.randn(20, 3), NAMES[:3], [])
    shown = tiles(found["predictions"]())[0]
    assert shown.count() == 20 * 32 * 24
    assert shown.sum() == pytest.approx(float(images.mean(dim=1).sum()), rel=1e-4)


def test_a_picture_says_who_wrote_it() -> None:
    png = to_png(of_curves())
    assert png.startswith(b"\x89PNG")
    assert PRODUCER.encode() in png[:2000]
