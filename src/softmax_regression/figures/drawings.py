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
from matplotlib.colors import PowerNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torchmetrics.functional import classification as scores

Curves = Mapping[str, tuple[Tensor, Tensor]]  # metric -> epochs (t,) and values (t,)
PRODUCER = "softmax-regression"  # in every picture and page: it may be replaced by a newer one
BLACK, BLUE, VERMILION, GREEN, ORANGE, SKY = "#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, SKY, "#CC79A7", BLACK)
STROKES: dict[str, Literal["-", "--", ":"]] = {"train": "-", "val": "--", "test": ":"}
PANELS = {"loss": "loss: mean cross-entropy (nats)", "acc": "accuracy: share of images classified right"}
METRIC = re.compile(r"(train|val|test)[/_](.+)")
CENTRED: dict[str, Any] = {"ha": "center", "in_layout": False}  # texts within axes need not be measured
DIVERGING = "RdBu_r"  # negative blue, zero white, positive red
LINEAR = ("weights", "worst_mistake")  # what `figures_of` draws only of a model that is linear in the pixels


def curves(history: Sequence[Mapping[str, float]]) -> Curves:
    """Return each metric of rows of an epoch each, metric -> value."""
    epochs = torch.tensor([row["epoch"] for row in history])
    names = dict.fromkeys(name for row in history for name in row)
    return {name: (epochs, torch.tensor([row.get(name, math.nan) for row in history])) for name in names}


def learning_curves(runs: Mapping[str, Curves]) -> Figure:
    """Loss, accuracy and whatever else was scored by epoch, after the figure in the book.

    A panel for each quantity, a stroke for each of train, val and test; of several runs, a colour for each.
    Metrics are `train/loss`, `val/acc`, `val_f1`; others, such as `lr`, are left out. Values may be of s
    seeds, (s, t), drawn as their mean in a band from the least to the greatest.
    """
    found = [(run, METRIC.fullmatch(metric), points) for run, of in runs.items() for metric, points in of.items()]
    lines = [(run, match[1], match[2], points) for run, match, points in found if match]
    quantities = list(dict.fromkeys([*PANELS, *(quantity for _, _, quantity, _ in lines)]))
    rows, panels = -(-len(quantities) // 2), dict[str, Axes]()
    figure = Figure(figsize=(8.4, 4 * rows), layout="constrained")
    for i, quantity in enumerate(quantities, 1):
        panels[quantity] = figure.add_subplot(rows, 2, i, xlabel="epoch", ylabel=PANELS.get(quantity, quantity))
        panels[quantity].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    several = len(runs) > 1
    coloured = list(runs if several else STROKES)
    scale = map(to_hex, mpl.colormaps["viridis"](np.linspace(0, 0.9, len(coloured))))  # for more than the palette
    colours = dict(zip(coloured, PALETTE if len(coloured) <= len(PALETTE) else scale, strict=False))
    for run, stage, quantity, (epochs, values) in lines:
        seeds, colour = np.atleast_2d(values.detach().cpu()), colours[run if several else stage]
        x, marker = epochs.cpu(), "o" if len(epochs) <= 20 else ""
        panels[quantity].plot(x, seeds.mean(0), STROKES[stage], color=colour, lw=2, marker=marker, ms=4)
        panels[quantity].fill_between(x, seeds.min(0), seeds.max(0), color=colour, alpha=0.2, lw=0)
    handles = [Line2D([], [], color=colours[run], linewidth=5, label=run) for run in runs if several]
    for stage in [stage for stage in STROKES if any(line[1] == stage for line in lines)]:
        colour = "0.3" if several else colours[stage]
        handles.append(Line2D([], [], color=colour, linestyle=STROKES[stage], linewidth=2, label=stage))
    columns = max(1, 60 // (5 + max((len(str(handle.get_label())) for handle in handles), default=0)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    figure.set_figheight(4 * rows + 0.22 * math.ceil(len(handles) / columns))
    return figure


def confusion_matrix(counts: Tensor, class_names: Sequence[str]) -> Figure:
    """Counts (k, k), a row for each true class, and shares of it; no text in an empty cell, or of k > 20."""
    counts, k = counts.cpu(), len(counts)
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    figure = Figure(figsize=(7.4, 7.4), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted class", ylabel="true class")
    axes.set_title(f"{counts.diagonal().sum()} of {counts.sum()} right")
    axes.imshow(shares.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 1))  # the root shows rare confusions
    for true, predicted in counts.nonzero().tolist() if k <= 20 else []:
        words, share = f"{counts[true, predicted]}\n{shares[true, predicted]:.1%}", shares[true, predicted]
        colour = "white" if share > 0.3 else BLACK
        axes.text(predicted, true, words, color=colour, fontsize=min(10, 120 / k), **CENTRED, va="center")
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
    classes = zip(labels[shown].tolist(), predicted[shown].tolist(), confidence[shown].tolist(), strict=True)
    words = [f"{class_names[true]}\n→ {class_names[other]} {share:.0%}" for true, other, share in classes]
    figure, axes = _mosaic(tiles, words, 6, "gray", float(low), float(high), int(wrong[shown].sum()))
    axes.set_title(f"{int(wrong.sum())} of {len(wrong)} wrong (framed): true → predicted class, probability")
    return figure


def weight_templates(weight: Tensor, class_names: Sequence[str]) -> Figure:
    """The weights (k, h * h) of each class as an image, all on one scale: red pixels speak for the class."""
    weight = weight.detach().cpu().float()
    limit, side = float(weight.abs().max()), math.isqrt(weight.shape[1])
    figure, axes = _mosaic(weight.view(-1, side, side), class_names, 5, DIVERGING, -limit, limit)
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
    above.set(title=f"expected calibration error {error:.3f}", ylabel="share of right predictions")
    above.set(xlim=(0, 1), ylim=(0, 1))
    below.bar(middles, (counts / len(labels)).numpy(), 0.9 / bins, color="0.5")
    below.set(xlabel="confidence: probability of the predicted class", ylabel="share of\nimages")
    return figure


def class_scores(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return precision, recall and F1 (k, 3) of n predictions; 0 for a class never predicted or there."""
    metrics = (scores.multiclass_precision, scores.multiclass_recall, scores.multiclass_f1_score)
    return torch.stack([metric(predicted, labels, num_classes, average=None) for metric in metrics], dim=1)


def pixel_contributions(image: Tensor, weight: Tensor, bias: Tensor, label: int, class_names: Sequence[str]) -> Figure:
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


def figures_of(
    images: Tensor, labels: Tensor, logits: Tensor, class_names: Sequence[str], parameters: Sequence[Tensor]
) -> dict[str, Callable[[], Figure]]:
    """Everything there is to see of a model on n images, by name, each drawn only when it is called.

    Images are (n, h, w) or (n, channels, h, w), uint8 or float, labels (n,), logits (n, k). The figures
    `LINEAR` are there if the parameters are weights (k, h * h), and biases, that make these logits.
    """
    labels, logits, scale = labels.cpu(), logits.detach().cpu().float(), 1 if images.is_floating_point() else 255
    pixels = images.cpu().float().reshape(len(images), -1, *images.shape[-2:]).mean(dim=1) / scale
    probs, k = logits.softmax(dim=1), logits.shape[1]
    class_names = class_names if len(class_names) == k else [str(i) for i in range(k)]
    confidence, predicted = probs.max(dim=1)
    counts = scores.multiclass_confusion_matrix(predicted, labels, k)
    worst = int(((predicted != labels) * confidence).argmax())
    found: dict[str, Callable[[], Figure]] = {
        "confusion_matrix": lambda: confusion_matrix(counts, class_names),
        "predictions": lambda: prediction_grid(pixels, labels, probs, class_names),
        "calibration": lambda: reliability_diagram(probs, labels),
    }
    high, wide = pixels.shape[1:]
    shapes = [tuple(parameter.shape) for parameter in parameters]
    if high == wide and shapes in ([(k, high * wide)], [(k, high * wide), (k,)]):
        weight, bias = [*(p.detach().cpu().float() for p in parameters), torch.zeros(k)][:2]
        expected, tolerance = pixels.flatten(1) @ weight.T + bias, 0.05 * float(logits.abs().max())  # half precision
        if torch.allclose(logits, expected, 0, tolerance, equal_nan=True):
            label = int(labels[worst])
            found["weights"] = lambda: weight_templates(weight, class_names)
            found["worst_mistake"] = lambda: pixel_contributions(pixels[worst], weight, bias, label, class_names)
    return found


def to_png(figure: Figure, dpi: int = 100) -> bytes:
    """Render as a PNG file, which says who wrote it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": PRODUCER})
    return buffer.getvalue()


def _mosaic(
    tiles: Tensor, words: Sequence[str], columns: int, cmap: str, low: float, high: float, framed: int = 0
) -> tuple[Figure, Axes]:
    """Draw tiles (n, h, w), each with its words below; frame so many of the first ones."""
    (_, h, w), rows = tiles.shape, -(-len(tiles) // columns)
    down, right = round(1.43 * h), round(1.4 * w)  # from one tile to the next
    canvas = torch.full((rows * down, columns * right), math.nan)  # one picture is drawn faster than n
    figure = Figure(figsize=(1.56 * columns, 1.6 * rows + 0.5), layout="constrained")
    axes = figure.add_subplot()
    for i, (tile, caption) in enumerate(zip(tiles, words, strict=True)):
        x, y = i % columns * right + (right - w) // 2, i // columns * down
        canvas[y : y + h, x : x + w] = tile
        colour = VERMILION if i < framed else BLACK
        axes.text(x + w / 2, y + 1.04 * h, caption, color=colour, fontsize=11, **CENTRED, va="top")
        if i < framed:
            axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=VERMILION, linewidth=3))
    whole = (0, columns * right, rows * down, 0)
    axes.imshow(canvas.numpy(), cmap, aspect=w / h, extent=whole, vmin=low, vmax=high)  # every tile is a square
    axes.set_axis_off()
    return figure, axes
