"""What the model learned, drawn: tensors in, matplotlib figures out.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/) and ColorBrewer's scales, which the
colour-blind can tell apart; no meaning hangs on colour alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from softmax_regression.figures.canvas import HEAD, SIDE, TILE, Canvas, mosaic

Stroke = Literal["-", "--", ":", "-."]
BLACK, BLUE, VERMILION, GREEN, ORANGE, SKY = "#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, SKY, "#CC79A7", BLACK)
STROKES: dict[str, tuple[Stroke, str]] = {
    "train": ("-", BLUE),
    "val": ("--", VERMILION),
    "test": (":", GREEN),
}
DIVERGING = "RdBu_r"  # negative blue, zero white, positive red


class Calibration(NamedTuple):
    """Confidence against accuracy, binned by confidence.

    Attributes:
        confidence: (bins,) float64, mean probability of the predicted class; nan in an empty bin.
        accuracy: (bins,) float64, share of right predictions; nan in an empty bin.
        counts: (bins,) int64, number of images.
        error: Expected calibration error, in [0, 1].
    """

    confidence: Tensor
    accuracy: Tensor
    counts: Tensor
    error: float


def calibration_error(probs: Tensor, labels: Tensor, bins: int = 15) -> Calibration:
    """Compare how sure the model is with how often it is right.

    Args:
        probs: (n, k) probabilities.
        labels: (n,) true classes.
        bins: Number of equal intervals (low, high] of confidence.

    Returns:
        The bins, and the expected calibration error of Guo et al. (2017), arXiv:1706.04599, section 2.
    """
    confidence, predicted = probs.detach().cpu().double().max(dim=1)
    right = (predicted == labels.cpu()).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    counts = index.bincount(minlength=bins)
    sure, hits = index.bincount(confidence, bins), index.bincount(right, bins)
    error = (hits - sure).abs().sum() / len(confidence)
    return Calibration(sure / counts, hits / counts, counts, error.item())


def confusion_counts(labels: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """True classes (n,) and predicted ones (n,) -> (k, k) int64, a row for each true class."""
    k = num_classes
    return (labels * k + predicted).bincount(minlength=k * k).view(k, k)


def class_scores(counts: Tensor) -> Tensor:
    """Precision, recall and F1 of each class.

    Args:
        counts: (k, k), a row for each true class, a column for each predicted one.

    Returns:
        (k, 3) float64; 0 for a class that was never predicted or never there, as in scikit-learn.
    """
    counts = counts.cpu().double()
    right, predicted, true = counts.diagonal(), counts.sum(dim=0), counts.sum(dim=1)
    scores = torch.stack((right / predicted, right / true, 2 * right / (predicted + true)), dim=1)
    return scores.nan_to_num(0.0)


def learning_curves(runs: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]]) -> Figure:
    """Loss and accuracy by epoch, after the figure in the book; several runs over one another.

    Args:
        runs: Run -> metric -> epochs (t,) and values, (t,) or, for s seeds, (s, t), drawn as their mean in a
            band from the least to the greatest. Metrics are `train/loss`, `val/acc` and so on; others than
            losses and accuracies are left out.

    Returns:
        A stroke for each of train, val and test; of several runs, a colour for each.
    """
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    loss, acc = figure.subplots(1, 2)
    axes = {"loss": loss, "acc": acc}
    _label(loss, "Loss", "epoch", "mean cross-entropy (nats)")
    _label(acc, "Accuracy", "epoch", "share of images classified right")
    several = len(runs) > 1
    colours = dict(zip(runs, _colours(len(runs)), strict=True))
    handles = [
        Line2D([], [], color=colour, linewidth=5, label=run) for run, colour in colours.items() if several
    ]
    stages: dict[str, Line2D] = {}
    for run, metrics in runs.items():
        for metric, (epochs, values) in metrics.items():
            stage, _, quantity = metric.partition("/")
            if quantity in axes:
                stroke, colour = STROKES.get(stage, ("-.", BLACK))
                _curve(axes[quantity], epochs, values, colours[run] if several else colour, stroke)
                grey = "0.3" if several else colour
                stages[stage] = Line2D([], [], color=grey, linestyle=stroke, linewidth=2, label=stage)
    handles += stages.values()
    columns = 80 // max((5 + len(str(handle.get_label())) for handle in handles), default=80) or 1
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=12)
    figure.set_figheight(4.3 + 0.25 * math.ceil(len(handles) / columns))
    return figure


def confusion_matrix(counts: Tensor, class_names: Sequence[str]) -> Figure:
    """Counts, and under them the share of the true class; no text in an empty cell.

    Args:
        counts: (k, k), a row for each true class, a column for each predicted one.
        class_names: k names.
    """
    counts = counts.cpu()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    k, cell, left, width = len(counts), 62, 130, len(counts) * 62
    title = f"Confusion matrix: {counts.diagonal().sum()} of {counts.sum()} right"
    canvas = Canvas(left + width + 15, HEAD + width + 115, title)
    edges, root = np.arange(k + 1) * cell, PowerNorm(0.5, 0, 1)  # the root shows rare confusions
    canvas.axes.pcolormesh(left + edges, HEAD + edges, shares.numpy(), cmap="Blues", norm=root)

    middles = [(i + 0.5) * cell for i in range(k)]
    for colour, chosen in ((BLACK, shares <= 0.3), ("white", shares > 0.3)):
        cells = [
            (left + middles[predicted], HEAD + middles[true] + shift, words)
            for true, predicted in (chosen & (counts > 0)).nonzero().tolist()
            for shift, words in ((-9, f"{counts[true, predicted]}"), (9, f"{shares[true, predicted]:.1%}"))
        ]
        canvas.write(cells, colour=colour)
    names = list(zip(middles, class_names, strict=True))
    canvas.write([(left - 8, HEAD + y, name) for y, name in names], size=12, align=1)
    canvas.write([(left + x, HEAD + width + 12, name) for x, name in names], size=12, align=1, turn=45)
    canvas.write([(left + width / 2, HEAD + width + 100, "predicted class")], size=13)
    canvas.write([(18, HEAD + width / 2, "true class")], size=13, turn=90)
    return canvas.figure


def prediction_grid(
    images: Tensor, labels: Tensor, probs: Tensor, class_names: Sequence[str], limit: int = 30
) -> Figure:
    """Images, each with its true class, the predicted class and its probability; wrong ones framed.

    Args:
        images: (n, 28, 28) uint8.
        labels: (n,) true classes.
        probs: (n, k) probabilities.
        class_names: k names.
        limit: Images to show: mistakes, the most confident first, in half of the places, then right ones in
            the order given; where one kind is short, more of the other.
    """
    confidence, predicted = (part.cpu() for part in probs.detach().max(dim=1))
    wrong = predicted != labels.cpu()
    mistakes, right = wrong.nonzero()[:, 0], (~wrong).nonzero()[:, 0]
    mistakes = mistakes[confidence[mistakes].argsort(descending=True, stable=True)]
    shown = torch.cat((mistakes[: max(limit // 2, limit - len(right))], right))[:limit]

    title = f"{int(wrong.sum())} of {len(wrong)} wrong (framed): true → predicted class, probability"
    canvas, tiles = mosaic(images.cpu()[shown].float(), 6, "gray", (0, 255), title)
    for i, (x, y) in zip(shown.tolist(), tiles, strict=True):
        guess = f"→ {class_names[int(predicted[i])]} {confidence[i]:.0%}"
        middle, below = x + TILE / 2, y + TILE
        lines = [(middle, below + 11, class_names[int(labels[i])]), (middle, below + 28, guess)]
        canvas.write(lines, colour=VERMILION if wrong[i] else BLACK)
    canvas.frame([tile for i, tile in zip(shown, tiles, strict=True) if wrong[i]], VERMILION, 3)
    return canvas.figure


def weight_templates(weight: Tensor, class_names: Sequence[str]) -> Figure:
    """The weights of each class as an image, all on one scale: red pixels speak for the class, blue against.

    Args:
        weight: (k, 784).
        class_names: k names.
    """
    weight = weight.detach().cpu().float()
    limit = float(weight.abs().max())
    title = "Weight templates: red for the class, blue against it"
    canvas, tiles = mosaic(weight.view(-1, SIDE, SIDE), 5, DIVERGING, (-limit, limit), title, below=60)
    canvas.frame(tiles, "0.6", 1)
    names = zip(tiles, class_names, strict=True)
    canvas.write([(x + TILE / 2, y + TILE + 14, name) for (x, y), name in names], size=13)

    middle, top = canvas.width / 2, canvas.height - 56
    place = (middle - 150, middle + 150, top + 14, top)
    canvas.axes.imshow(np.linspace(-1, 1, 256)[None], cmap=DIVERGING, extent=place, aspect="auto")
    ends = [(middle - 190, top + 7, f"{-limit:.2g}"), (middle + 190, top + 7, f"{limit:.2g}")]
    canvas.write([*ends, (middle, top + 32, "logit per unit of brightness (nats)")], size=12)
    return canvas.figure


def reliability_diagram(probs: Tensor, labels: Tensor, bins: int = 15) -> Figure:
    """Accuracy against confidence, with the expected calibration error; below, how often each occurs.

    Args:
        probs: (n, k) probabilities.
        labels: (n,) true classes.
        bins: Number of equal intervals of confidence.
    """
    calibration = calibration_error(probs, labels, bins)
    figure = Figure(figsize=(6.4, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    confidence, accuracy = calibration.confidence.numpy(), calibration.accuracy.numpy()
    middles = (np.arange(bins) + 0.5) / bins
    above.bar(middles, accuracy, 0.9 / bins, color=SKY, label="accuracy")
    above.plot(confidence, confidence, "o", color=VERMILION, label="mean confidence")
    above.plot((0, 1), (0, 1), "--", color="0.4", label="perfectly calibrated")
    above.legend(fontsize=12, loc="upper left")
    below.bar(middles, (calibration.counts / len(labels)).numpy(), 0.9 / bins, color="0.5")
    _label(above, f"Expected calibration error {calibration.error:.3f}", y="share of right predictions")
    _label(below, "", "confidence: probability of the predicted class", "share of\nimages")
    above.set(xlim=(0, 1), ylim=(0, 1))
    return figure


def class_bars(counts: Tensor, class_names: Sequence[str]) -> Figure:
    """Precision, recall and F1 of each class.

    Args:
        counts: (k, k), a row for each true class, a column for each predicted one.
        class_names: k names.
    """
    scores = class_scores(counts)
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.add_subplot()
    rows = np.arange(len(scores))
    for shift, (name, colour) in enumerate((("precision", BLUE), ("recall", ORANGE), ("F1", "0.3"))):
        bars = axes.barh(rows + 0.27 * (shift - 1), scores[:, shift].numpy(), 0.25, color=colour, label=name)
        axes.bar_label(bars, fmt="%.2f", fontsize=10, padding=2)
    _label(axes, f"Scores by class; mean F1 {scores[:, 2].mean():.3f}", "score")
    axes.set_yticks(rows, class_names)
    axes.set(xlim=(0, 1.08), ylim=(len(rows) - 0.5, -0.5))
    figure.legend(loc="outside lower center", ncols=3, fontsize=12)
    return figure


def explanation(
    image: Tensor, weight: Tensor, bias: Tensor, label: int, class_names: Sequence[str]
) -> Figure:
    """What each pixel adds to a logit, pixel times weight, for the true and the predicted class.

    Args:
        image: (28, 28) uint8.
        weight: (k, 784), of pixels in [0, 1].
        bias: (k,).
        label: True class.
        class_names: k names.

    Returns:
        The image, and the two maps on one scale; of a right prediction, the second is the runner-up's.
    """
    weight, bias = weight.detach().cpu().float(), bias.detach().cpu().float()
    parts = weight * (image.cpu().flatten() / 255)  # (k, 784)
    logits = parts.sum(dim=1) + bias
    probs = logits.softmax(dim=0)
    ranked = logits.argsort(descending=True).tolist()
    other, role = (ranked[0], "predicted") if ranked[0] != label else (ranked[1], "runner-up")
    limit = float(parts[[label, other]].abs().max())
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    axes[0].imshow(image.cpu().numpy(), cmap="gray", vmin=0, vmax=255)
    axes[0].set_title("image", fontsize=13)
    for panel, index, name in zip(axes[1:], (label, other), ("true", role), strict=True):
        drawn = panel.imshow(parts[index].view(SIDE, SIDE).numpy(), cmap=DIVERGING, vmin=-limit, vmax=limit)
        words = f"logit {logits[index]:.2f} = {parts[index].sum():.2f} + bias {bias[index]:.2f}"
        panel.set_title(f"{name}: {class_names[index]} {probs[index]:.0%}\n{words}", fontsize=12)
    for panel in axes:
        panel.set(xticks=[], yticks=[])
    _colour_bar(drawn, "pixel times weight (nats)")
    return figure


def drawings(
    images: Tensor, labels: Tensor, logits: Tensor, weight: Tensor, bias: Tensor, class_names: Sequence[str]
) -> dict[str, Callable[[], Figure]]:
    """Everything there is to see of a linear model on n images, by name, each drawn only when it is called.

    Args:
        images: (n, 28, 28) uint8.
        labels: (n,) true classes.
        logits: (n, k).
        weight: (k, 784), of pixels in [0, 1].
        bias: (k,).
        class_names: k names.
    """
    images, labels, probs = images.cpu(), labels.cpu(), logits.detach().cpu().softmax(dim=1)
    confidence, predicted = probs.max(dim=1)
    counts = confusion_counts(labels, predicted, len(class_names))
    worst = int(((predicted != labels) * confidence).argmax())
    return {
        "confusion_matrix": lambda: confusion_matrix(counts, class_names),
        "predictions": lambda: prediction_grid(images, labels, probs, class_names),
        "weights": lambda: weight_templates(weight, class_names),
        "calibration": lambda: reliability_diagram(probs, labels),
        "classes": lambda: class_bars(counts, class_names),
        "worst_mistake": lambda: explanation(images[worst], weight, bias, int(labels[worst]), class_names),
    }


def to_array(figure: Figure) -> Tensor:
    """Render -> (h, w, 3) uint8, as TensorBoard's `add_image(..., dataformats="HWC")` takes it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return torch.from_numpy(np.array(canvas.buffer_rgba())[..., :3])  # type: ignore[no-untyped-call]


def _curve(axes: Axes, epochs: Tensor, values: Tensor, colour: str, stroke: Stroke) -> None:
    x, seeds = epochs.cpu().numpy(), torch.atleast_2d(values.detach().cpu()).numpy()
    marker = "o" if len(x) <= 20 else ""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.plot(x, seeds.mean(axis=0), color=colour, linestyle=stroke, linewidth=2, marker=marker, markersize=4)
    if len(seeds) > 1:
        axes.fill_between(x, seeds.min(axis=0), seeds.max(axis=0), color=colour, alpha=0.2, linewidth=0)


def _colours(n: int) -> list[str]:
    """From the palette or, where it is too short, along a scale."""
    if n <= len(PALETTE):
        return list(PALETTE[:n])
    return [mpl.colors.to_hex(shade) for shade in mpl.colormaps["viridis"](np.linspace(0, 0.9, n))]


def _label(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    axes.set_title(title, fontsize=14, y=1)  # a fixed height spares matplotlib a search for a free one
    axes.set_xlabel(x, fontsize=13)
    axes.set_ylabel(y, fontsize=13)
    axes.tick_params(labelsize=12)


def _colour_bar(image: AxesImage, label: str) -> None:
    bar = image.axes.figure.colorbar(image, ax=image.axes, shrink=0.8)
    bar.set_label(label, fontsize=13)
    bar.ax.tick_params(labelsize=12)
