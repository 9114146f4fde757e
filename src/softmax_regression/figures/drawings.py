"""What a classifier of k classes has learned, drawn: tensors in, matplotlib figures out.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/) and ColorBrewer's scales, which the
colour-blind can tell apart; no meaning hangs on colour alone.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torchmetrics.functional import classification as scores

Curves = Mapping[str, tuple[Tensor, Tensor]]  # metric -> epochs (t,) and values (t,)
Stroke = Literal["-", "--", ":"]
MARK = "softmax-regression"  # in every picture and page: it may be replaced by a newer one
BLACK, BLUE, VERMILION, GREEN, ORANGE, SKY = "#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, SKY, "#CC79A7", BLACK)
STROKES: dict[str, Stroke] = {"train": "-", "val": "--", "test": ":"}
PANELS = {"loss": "loss: mean cross-entropy (nats)", "acc": "accuracy: share of images classified right"}
METRIC = re.compile(r"(train|val|test)[/_](.+)")
CENTRED: dict[str, Any] = {"ha": "center", "in_layout": False}  # texts within axes need not be measured
DIVERGING = "RdBu_r"  # negative blue, zero white, positive red
LINEAR = ("weights", "worst_mistake")  # what `drawings` draws only of a model that is linear in the pixels


def curves(history: Sequence[Mapping[str, float]]) -> Curves:
    """Return each metric of rows of an epoch each, metric -> value."""
    epochs = torch.tensor([row["epoch"] for row in history])
    names = dict.fromkeys(name for row in history for name in row)
    return {name: (epochs, torch.tensor([row.get(name, math.nan) for row in history])) for name in names}


def learning_curves(runs: Mapping[str, Curves]) -> Figure:
    """Loss, accuracy and whatever else was scored by epoch, after the figure in the book.

    A panel for each quantity, a stroke for each of train, val and test; of several runs, a colour for each.

    Args:
        runs: The metrics of each run, `train/loss`, `val/acc`, `val_f1`; others, such as `lr`, are left out.
            Values may be of s seeds, (s, t), drawn as their mean in a band from the least to the greatest.
    """
    lines = [
        (run, found[1], found[2], points)
        for run, metrics in runs.items()
        for metric, points in metrics.items()
        if (found := METRIC.fullmatch(metric))
    ]
    quantities = list(dict.fromkeys([*PANELS, *(quantity for _, _, quantity, _ in lines)]))
    rows = -(-len(quantities) // 2)
    figure = Figure(figsize=(8.4, 4 * rows), layout="constrained")
    panels = dict(zip(quantities, figure.subplots(rows, 2).flat, strict=False))
    for spare in figure.axes[len(quantities) :]:
        spare.remove()
    for quantity, axes in panels.items():
        axes.set(xlabel="epoch", ylabel=PANELS.get(quantity, quantity))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    several, stages = len(runs) > 1, [stage for stage in STROKES if any(line[1] == stage for line in lines)]
    colours = _colours(list(runs) if several else list(STROKES))
    for run, stage, quantity, (epochs, values) in lines:
        _curve(panels[quantity], epochs, values, colours[run if several else stage], STROKES[stage])
    handles = [Line2D([], [], color=colours[run], linewidth=5, label=run) for run in runs if several]
    for stage in stages:
        colour = "0.3" if several else colours[stage]
        handles.append(Line2D([], [], color=colour, linestyle=STROKES[stage], linewidth=2, label=stage))
    columns = max(1, 60 // (5 + max((len(str(handle.get_label())) for handle in handles), default=0)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    figure.set_figheight(4 * rows + 0.22 * math.ceil(len(handles) / columns))
    return figure


def confusion_matrix(counts: Tensor, class_names: Sequence[str]) -> Figure:
    """Counts (k, k), a row for each true class, and shares of it; no text in an empty cell, or of k > 20."""
    counts, k, size = counts.cpu(), len(counts), min(10, 120 / len(counts))
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    figure = Figure(figsize=(7.4, 7.4), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 1))  # the root shows rare confusions
    for true, predicted in counts.nonzero().tolist() if k <= 20 else []:
        words = f"{counts[true, predicted]}\n{shares[true, predicted]:.1%}"
        colour = "white" if shares[true, predicted] > 0.3 else BLACK
        axes.text(predicted, true, words, color=colour, fontsize=size, **CENTRED, va="center")
    axes.set(title=f"{counts.diagonal().sum()} of {counts.sum()} right")
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_xticks(range(k), class_names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(k), class_names)
    return figure


def prediction_grid(
    images: Tensor, labels: Tensor, probs: Tensor, class_names: Sequence[str], limit: int = 30
) -> Figure:
    """Images (n, h, w), each with its true class, the predicted one and its probability; wrong ones framed.

    Mistakes, the most confident first, in half of `limit` places, then right ones in the order given; where
    one kind is short, more of the other. Pixels are in [0, 1] unless they are normalized; probs are (n, k).
    """
    confidence, predicted = probs.max(dim=1)
    wrong = predicted != labels
    mistakes, right = wrong.nonzero()[:, 0], (~wrong).nonzero()[:, 0]
    mistakes = mistakes[confidence[mistakes].argsort(descending=True, stable=True)]
    shown = torch.cat((mistakes[: max(limit // 2, limit - len(right))], right))[:limit]
    tiles = images[shown]
    low, high = torch.cat((tiles.flatten(), torch.tensor([0.0, 1.0]))).aminmax()
    figure, axes, corners = _mosaic(tiles, 6, "gray", float(low), float(high))
    for i, (x, y) in zip(shown.tolist(), corners, strict=True):
        words = f"{class_names[int(labels[i])]}\n→ {class_names[int(predicted[i])]} {confidence[i]:.0%}"
        colour = VERMILION if wrong[i] else BLACK
        axes.text(x + 0.5, y + 1.04, words, color=colour, fontsize=11, **CENTRED, va="top")
        if wrong[i]:
            axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=VERMILION, linewidth=3))
    axes.set_title(f"{int(wrong.sum())} of {len(wrong)} wrong (framed): true → predicted class, probability")
    return figure


def weight_templates(weight: Tensor, class_names: Sequence[str]) -> Figure:
    """The weights (k, h * h) of each class as an image, all on one scale: red pixels speak for the class."""
    weight = weight.detach().cpu().float()
    limit, side = float(weight.abs().max()), math.isqrt(weight.shape[1])
    figure, axes, corners = _mosaic(weight.view(-1, side, side), 5, DIVERGING, -limit, limit)
    for name, (x, y) in zip(class_names, corners, strict=True):
        axes.text(x + 0.5, y + 1.04, name, fontsize=12, **CENTRED, va="top")
    words = "logit per unit of brightness (nats): red for the class, blue against it"
    figure.colorbar(axes.images[0], ax=axes, orientation="horizontal", shrink=0.6, label=words)
    return figure


def reliability_diagram(probs: Tensor, labels: Tensor, bins: int = 15) -> Figure:
    """Accuracy against confidence in equal bins of it; below, how often each occurs.

    Probabilities are (n, k), labels (n,); error: Guo et al. (2017), arXiv:1706.04599, section 2.
    """
    error = scores.multiclass_calibration_error(probs, labels, probs.shape[1], bins, "l1")
    confidence, predicted = probs.max(dim=1)
    index = (confidence.nan_to_num() * bins).long().clamp(max=bins - 1)
    counts = index.bincount(minlength=bins)
    accuracy = index.bincount((predicted == labels).double(), bins) / counts
    mean = (index.bincount(confidence.double(), bins) / counts).numpy()
    figure = Figure(figsize=(6, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    middles = (np.arange(bins) + 0.5) / bins
    above.bar(middles, accuracy.numpy(), 0.9 / bins, color=SKY, label="accuracy")
    above.plot(mean, mean, "o", color=VERMILION, label="mean confidence")
    above.plot((0, 1), (0, 1), "--", color="0.4", label="perfectly calibrated")
    above.legend(loc="upper left")
    below.bar(middles, (counts / len(labels)).numpy(), 0.9 / bins, color="0.5")
    above.set(title=f"expected calibration error {error:.3f}", ylabel="share of right predictions")
    above.set(xlim=(0, 1), ylim=(0, 1))
    below.set(xlabel="confidence: probability of the predicted class", ylabel="share of\nimages")
    return figure


def class_scores(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return precision, recall and F1 (k, 3) of n predictions; 0 for a class never predicted or there."""
    metrics = (scores.multiclass_precision, scores.multiclass_recall, scores.multiclass_f1_score)
    return torch.stack([metric(predicted, labels, num_classes, average=None) for metric in metrics], dim=1)


def explanation(image: Tensor, weight: Tensor, bias: Tensor, label: int, class_names: Sequence[str]) -> Figure:
    """What each pixel adds to a logit, pixel times weight, for the true and the predicted class.

    Of an image (h, w) in [0, 1], weights (k, h * w) and biases (k,); of a right prediction, the second map is
    the runner-up's. Both are on one scale.
    """
    parts = weight * image.flatten()  # (k, h * w)
    logits = parts.sum(dim=1) + bias
    probs, ranked = logits.softmax(dim=0), logits.argsort(descending=True).tolist()
    other, role = (ranked[0], "predicted") if ranked[0] != label else (ranked[1], "runner-up")
    limit = float(parts[[label, other]].abs().max())
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    shown, *maps = figure.subplots(1, 3, subplot_kw={"xticks": [], "yticks": []})
    shown.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1)
    shown.set_title("image")
    for axes, index, name in zip(maps, (label, other), ("true", role), strict=True):
        drawn = axes.imshow(parts[index].view(image.shape).numpy(), DIVERGING, vmin=-limit, vmax=limit)
        words = f"logit {logits[index]:.2f} = {parts[index].sum():.2f} + bias {bias[index]:.2f}"
        axes.set_title(f"{name}: {class_names[index]} {probs[index]:.0%}\n{words}")
    figure.colorbar(drawn, ax=maps, shrink=0.8, label="pixel times weight (nats)")
    return figure


def drawings(
    images: Tensor, labels: Tensor, logits: Tensor, class_names: Sequence[str], parameters: Sequence[Tensor]
) -> dict[str, Callable[[], Figure]]:
    """Everything there is to see of a model on n images, by name, each drawn only when it is called.

    Args:
        images: (n, h, w) or (n, channels, h, w), uint8 or float.
        labels: (n,) true classes.
        logits: (n, k).
        class_names: k names.
        parameters: Of the model; the figures `LINEAR` need those of a map that is linear in the pixels.
    """
    labels, logits, pixels = labels.cpu(), logits.detach().cpu().float(), _pixels(images)
    probs, k = logits.softmax(dim=1), logits.shape[1]
    confidence, predicted = probs.max(dim=1)
    counts = scores.multiclass_confusion_matrix(predicted, labels, k)
    worst = int(((predicted != labels) * confidence).argmax())
    found: dict[str, Callable[[], Figure]] = {
        "confusion_matrix": lambda: confusion_matrix(counts, class_names),
        "predictions": lambda: prediction_grid(pixels, labels, probs, class_names),
        "calibration": lambda: reliability_diagram(probs, labels),
    }
    if linear := _linear(parameters, pixels, logits):
        label = int(labels[worst])
        found["weights"] = lambda: weight_templates(linear[0], class_names)
        found["worst_mistake"] = lambda: explanation(pixels[worst], *linear, label, class_names)
    return found


def to_png(figure: Figure, dpi: int = 100) -> bytes:
    """Render as a PNG file, which says who wrote it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": MARK})
    return buffer.getvalue()


def _pixels(images: Tensor) -> Tensor:
    """Images as they come, (n, h, w) or (n, channels, h, w) -> (n, h, w) float; uint8 becomes [0, 1]."""
    images = images.cpu() if images.is_floating_point() else images.cpu() / 255
    return images.float().flatten(1, -3).mean(dim=1) if images.ndim > 3 else images.float()


def _linear(parameters: Sequence[Tensor], pixels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return weight (k, h * h) and bias (k,) if they make the logits (n, k) out of the pixels (n, h, h)."""
    k, (high, wide) = logits.shape[1], pixels.shape[1:]
    shapes = [tuple(parameter.shape) for parameter in parameters]
    if high != wide or shapes not in ([(k, high * wide)], [(k, high * wide), (k,)]):
        return None
    weight, bias = [*(p.detach().cpu().float() for p in parameters), torch.zeros(k)][:2]
    expected = torch.addmm(bias, pixels.flatten(1), weight.T)
    tolerance = 0.05 * float(logits.abs().max())  # for half precision
    return (weight, bias) if torch.allclose(logits, expected, 0, tolerance, equal_nan=True) else None


def _mosaic(
    tiles: Tensor, columns: int, cmap: str, low: float, high: float
) -> tuple[Figure, Axes, list[tuple[float, float]]]:
    """Draw tiles (n, h, w), of size 1 with room for words below; return their upper left corners (x, y)."""
    corners = [(i % columns * 1.4 + 0.2, i // columns * 1.43) for i in range(len(tiles))]
    rows = -(-len(tiles) // columns)
    figure = Figure(figsize=(1.56 * columns, 1.6 * rows + 0.5), layout="constrained")
    axes = figure.add_subplot()
    for tile, (x, y) in zip(tiles.numpy(), corners, strict=True):
        axes.imshow(tile, cmap, extent=(x, x + 1, y + 1, y), vmin=low, vmax=high)
    axes.set(xlim=(0, 1.4 * columns), ylim=(1.43 * rows, 0))
    axes.set_axis_off()
    return figure, axes, corners


def _curve(axes: Axes, epochs: Tensor, values: Tensor, colour: str, stroke: Stroke) -> None:
    x, seeds = epochs.cpu().numpy(), torch.atleast_2d(values.detach().cpu()).numpy()
    marker = "o" if len(x) <= 20 else ""
    axes.plot(x, seeds.mean(axis=0), color=colour, linestyle=stroke, linewidth=2, marker=marker, markersize=4)
    if len(seeds) > 1:
        axes.fill_between(x, seeds.min(axis=0), seeds.max(axis=0), color=colour, alpha=0.2, linewidth=0)


def _colours(names: Sequence[str]) -> dict[str, str]:
    """Colours of the palette or, where it is too short, along a scale."""
    scale = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    return dict(zip(names, PALETTE if len(names) <= len(PALETTE) else map(mpl.colors.to_hex, scale), strict=False))
