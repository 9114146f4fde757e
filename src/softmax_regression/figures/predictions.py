"""Figures of the predictions and weights of a classifier of k classes: functions from tensors to matplotlib."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torchmetrics.functional import classification as scores

from softmax_regression.figures.drawings import BLACK, SKY, VERMILION

CENTRED: dict[str, Any] = {"ha": "center", "in_layout": False}  # of texts; the layout need not measure them
MAX_TEMPLATES = 100  # with ten times as many, a figure takes minutes
DIVERGING = "RdBu_r"  # negative blue, zero white, positive red; of ColorBrewer


def confusion_matrix(counts: Tensor, class_names: Sequence[str]) -> Figure:
    """Draw counts (k, k), a row for each true class, and their shares of the row; texts only if k is at most 20."""
    counts = counts.cpu()
    k = len(counts)
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    figure = Figure(figsize=(7.4, 7.4), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted class", ylabel="true class")
    axes.set_title(f"{counts.diagonal().sum()} of {counts.sum()} right")
    axes.imshow(shares.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 1))  # the root shows rare confusions
    if k <= 20:
        for true, predicted in counts.nonzero().tolist():
            share = float(shares[true, predicted])
            colour = "white" if share > 0.3 else BLACK
            words = f"{counts[true, predicted]}\n{share:.1%}"
            axes.text(predicted, true, words, color=colour, fontsize=min(10, 120 / k), **CENTRED, va="center")
    apart = math.ceil(k / 100)  # a thousand names take ten seconds, and nobody can read them
    named = range(0, k, apart)
    axes.set_xticks(named, class_names[::apart], rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(named, class_names[::apart])
    return figure


def prediction_grid(
    images: Tensor, labels: Tensor, probs: Tensor, class_names: Sequence[str], limit: int = 30
) -> Figure:
    """Draw images (n, h, w), each with its true and predicted class and the probability; wrong ones have a frame.

    Half of the `limit` places are for mistakes, the most confident first, the others for right predictions in the
    given order; if there are too few of one kind, more of the other are drawn. Pixels are in [0, 1] unless they are
    normalized; probs are (n, k).
    """
    confidence, predicted = probs.max(dim=1)
    wrong = predicted != labels
    mistakes = wrong.nonzero()[:, 0]
    right = (~wrong).nonzero()[:, 0]
    mistakes = mistakes[confidence[mistakes].argsort(descending=True, stable=True)]
    places_of_mistakes = max(limit // 2, limit - len(right))
    shown = torch.cat((mistakes[:places_of_mistakes], right))[:limit]
    captions = []
    for i in shown.tolist():
        true, other = _short(class_names[int(labels[i])]), _short(class_names[int(predicted[i])])
        captions.append(f"{true}\n→ {other} {confidence[i]:.0%}")
    tiles = images[shown]
    low = min(0.0, float(tiles.min()))
    high = max(1.0, float(tiles.max()))
    figure, axes = _mosaic(tiles, captions, 6, "gray", low, high, int(wrong[shown].sum()))
    axes.set_title(f"{int(wrong.sum())} of {len(wrong)} wrong (framed): true → predicted class, probability")
    return figure


def weight_templates(weight: Tensor, class_names: Sequence[str]) -> Figure:
    """Draw the weights (k, h * h) of each class as an image, all on one scale: red pixels raise its logit.

    Of very many classes the first are drawn.
    """
    classes = len(weight)
    weight = weight[:MAX_TEMPLATES].detach().cpu().float()
    names = [_short(name) for name in class_names[:MAX_TEMPLATES]]
    limit = float(weight.abs().max())
    side = math.isqrt(weight.shape[1])
    figure, axes = _mosaic(weight.view(-1, side, side), names, 5, DIVERGING, -limit, limit)
    if classes > MAX_TEMPLATES:
        axes.set_title(f"the first {MAX_TEMPLATES} of {classes} classes")
    words = "logit per unit of brightness (nats): red for the class, blue against it"
    figure.colorbar(axes.images[0], ax=axes, orientation="horizontal", shrink=0.6, label=words)
    return figure


def reliability_diagram(probs: Tensor, labels: Tensor, bins: int = 15) -> Figure:
    """Draw the accuracy in equal bins of the confidence and, below, the share of the predictions in each bin.

    Probabilities are (n, k), labels (n,). Calibration error: Guo et al. (2017), arXiv:1706.04599, section 2.
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
    below.set(xlabel="confidence: probability of the predicted class", ylabel="share of\npredictions")
    return figure


def class_scores(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return precision, recall and F1 (k, 3) of n predictions; 0 for a class that does not occur in them."""
    precision = scores.multiclass_precision(predicted, labels, num_classes, average=None)
    recall = scores.multiclass_recall(predicted, labels, num_classes, average=None)
    f1 = scores.multiclass_f1_score(predicted, labels, num_classes, average=None)
    return torch.stack([precision, recall, f1], dim=1)


def pixel_contributions(image: Tensor, weight: Tensor, bias: Tensor, label: int, class_names: Sequence[str]) -> Figure:
    """Draw what each pixel adds to the logits of the true and the predicted class: pixel times weight, on one scale.

    If the prediction is right, the second map is that of the class with the second highest logit. The image is (h, w)
    in [0, 1] unless it is normalized, weights are (k, h * w), biases (k,).
    """
    parts = weight * image.flatten()  # (k, h * w)
    logits = parts.sum(dim=1) + bias
    probs = logits.softmax(dim=0)
    first, second = logits.argsort(descending=True)[:2].tolist()
    shown = {label: "true"}
    if first == label:
        shown[second] = "runner-up"
    else:
        shown[first] = "predicted"
    limit = float(parts[list(shown)].abs().max())
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, *maps = figure.subplots(1, 3, subplot_kw={"xticks": [], "yticks": []})
    left.imshow(image.numpy(), cmap="gray", vmin=min(0.0, float(image.min())), vmax=max(1.0, float(image.max())))
    left.set_title("image")
    for axes, (index, role) in zip(maps, shown.items(), strict=True):
        drawn = axes.imshow(parts[index].view(image.shape).numpy(), DIVERGING, vmin=-limit, vmax=limit)
        words = f"logit {logits[index]:.2f} = {parts[index].sum():.2f} + bias {bias[index]:.2f}"
        axes.set_title(f"{role}: {_short(class_names[index])} {probs[index]:.0%}\n{words}")
    figure.colorbar(drawn, ax=maps, shrink=0.8, label="pixel times weight (nats)")
    return figure


def figures_of(
    inputs: Tensor, labels: Tensor, logits: Tensor, class_names: Sequence[str], parameters: Sequence[Tensor]
) -> dict[str, Callable[[], Figure]]:
    """Return functions that draw the figures of a model on n inputs, by the name of the figure.

    Images are (n, h, w) or (n, channels, h, w), uint8 or float; inputs of other shapes are not drawn. Labels are (n,),
    logits (n, k). There are `weights` and `worst_mistake` if the logits are a linear function of the pixels, with the
    weights (k, h * h) and biases in `parameters`.
    """
    labels = labels.cpu()
    logits = logits.detach().cpu().float()
    probs = logits.softmax(dim=1)
    names = names_of_classes(class_names, logits.shape[1])
    confidence, predicted = probs.max(dim=1)
    counts = scores.multiclass_confusion_matrix(predicted, labels, len(names))
    found: dict[str, Callable[[], Figure]] = {
        "confusion_matrix": partial(confusion_matrix, counts, names),
        "calibration": partial(reliability_diagram, probs, labels),
    }
    if inputs.ndim not in (3, 4):
        return found
    pixels = grey(inputs)
    found["predictions"] = partial(prediction_grid, pixels, labels, probs, names)
    layer = _linear_layer(pixels, logits, parameters)
    if layer:
        worst = int(((predicted != labels) * confidence).argmax())
        found["weights"] = partial(weight_templates, layer[0], names)
        found["worst_mistake"] = partial(pixel_contributions, pixels[worst], *layer, int(labels[worst]), names)
    return found


def grey(images: Tensor) -> Tensor:
    """Return the mean over the channels of images (n, h, w) or (n, channels, h, w), as (n, h, w) float32."""
    scale = 1 if images.is_floating_point() else 255
    return images.cpu().float().reshape(len(images), -1, *images.shape[-2:]).mean(dim=1) / scale


def names_of_classes(class_names: Sequence[object], k: int) -> list[str]:
    """Return the names of k classes; 0, 1, 2, ... unless k names are given."""
    if len(class_names) != k:
        class_names = range(k)
    return [str(name) for name in class_names]


def _short(name: str) -> str:
    """Return the name or, of a long one, its beginning and its end; captions would overlap."""
    return name if len(name) <= 11 else f"{name[:6]}…{name[-3:]}"


def _linear_layer(pixels: Tensor, logits: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Return the parameters, weights (k, h * h) and biases (k,), of a linear model with these logits; else None."""
    _, high, wide = pixels.shape
    k = logits.shape[1]
    shapes = [tuple(parameter.shape) for parameter in parameters]
    if high != wide or shapes not in ([(k, high * wide)], [(k, high * wide), (k,)]):
        return None
    weight, *biases = [parameter.detach().cpu().float() for parameter in parameters]
    bias = biases[0] if biases else torch.zeros(k)
    expected = pixels.flatten(1) @ weight.T + bias
    tolerance = 0.05 * float(logits.abs().max())  # half precision
    if not torch.allclose(logits, expected, 0, tolerance, equal_nan=True):
        return None
    return weight, bias


def _mosaic(
    tiles: Tensor, captions: Sequence[str], columns: int, cmap: str, low: float, high: float, framed: int = 0
) -> tuple[Figure, Axes]:
    """Draw tiles (n, h, w) with captions below them, and a frame around the first `framed` ones."""
    _, h, w = tiles.shape
    rows = math.ceil(len(tiles) / columns)
    down, right = round(1.43 * h), round(1.4 * w)  # distance from one tile to the next
    canvas = torch.full((rows * down, columns * right), math.nan)  # one large picture is drawn faster than n
    figure = Figure(figsize=(1.56 * columns, 1.6 * rows + 0.5), layout="constrained")
    axes = figure.add_subplot()
    for i, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        row, column = divmod(i, columns)
        x = column * right + (right - w) // 2
        y = row * down
        canvas[y : y + h, x : x + w] = tile
        colour = VERMILION if i < framed else BLACK
        axes.text(x + w / 2, y + 1.04 * h, caption, color=colour, fontsize=11, **CENTRED, va="top")
        if i < framed:
            axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=VERMILION, linewidth=3))
    whole = (0, columns * right, rows * down, 0)
    axes.imshow(canvas.numpy(), cmap, aspect=w / h, extent=whole, vmin=low, vmax=high)  # every tile is a square
    axes.set_axis_off()
    return figure, axes
