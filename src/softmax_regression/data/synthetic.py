"""A generated stand-in for Fashion-MNIST: ten garment silhouettes, each image varied and noisy.

Same shapes, dtypes, label order and light-on-black convention as the data set of arXiv:1708.07747, for
tests and for machines without a network. Results on it say nothing about Fashion-MNIST.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

SIDE = 28
_FINE = 4  # a template is drawn with 4 x 4 points to a pixel, so that its edges come out smooth
_CHUNK = 128  # images warped at a time: their intermediates stay in cache

# Painted one over another: garment, grey level in [0, 1], outline as x,y in pixels from the top left corner.
# A "|" in front stands for a garment's right half, to be mirrored at x = 14.
_SHAPES = """
t-shirt  0.8  |14,5 16,4 17.5,2 20.5,3 26.5,8.5 23.5,12.5 20.5,10.5 20.5,26 14,26
trouser  0.7  |14,1 18.5,1 19.5,9 20,27 16,27 14.5,10 14,9.5
pullover 0.75 |14,4 16,3.5 17,2 20.5,3.5 23.5,8 26.5,23 23.5,24 20.5,13 20.5,26 14,26
pullover 0.5  |14,24 20.5,24 20.5,26 14,26
dress    0.75 |14,7 16,5.5 16.5,1 18,1 18.5,8 17.5,12 21.5,27 14,27
coat     0.7  |14,3 16,1 20,2.5 23,6 25.5,22 22.5,23 21,12 21.5,27 14,27
coat     0.25 |14,9 16.5,1.5 17,2 14.5,11 14.5,27 14,27
sandal   0.85 1,23 2,21.5 10,21.5 18,18.5 26,13.5 27,15 26,23 23.5,23 23,19 17,22.5 10,24 2,24
sandal   0.65 3,22 7,15 9.5,15.5 7,22
sandal   0.65 18,19 22,7 24,7 26.5,14 24.5,15 22.8,10.5 20.5,17.5
shirt    0.75 |14,3 16.5,1.5 20.5,3 23.5,8 25.5,22 23,23 20,12 20.5,26.5 14,26.5
shirt    0.95 |14,5.5 14.5,2.5 16.5,1 18,2.5 15.5,6.5
shirt    0.45 |14,6 14.4,6 14.4,26.5 14,26.5
sneaker  0.75 1,19 4,16 9,14.5 14,10.5 16,11.5 20,12 24,9.5 26.5,11 27,20 1,20
sneaker  0.4  9,16 14,11 16,12 12,17
sneaker  1.0  1,19 27,18.5 27,21.5 2,21.5
bag      0.6  |14,3 18,4 20.5,8 21,13 19.5,13 19,9 17,5.5 14,4.5
bag      0.75 |14,11 24.5,11 26,25 14,25
bag      0.5  |14,14 25,14 25,15 14,15
boot     0.75 14,3 25,3 24.5,12 26,18 26,23 1.5,23 1.5,20 4,17.5 10,15.5 14,11.5
boot     0.95 1.5,22 26,22 26,26 20,26 19.5,23.5 1.5,23.5
"""


def generate(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw labelled images in shuffled order, from a generator of their own.

    Args:
        n: How many; n // 10 of each class, the remainder to the first classes.
        seed: The same seed gives the same bits.

    Returns:
        Images (n, 28, 28) and labels (n,) in 0..9, both uint8.
    """
    generator, templates = torch.Generator().manual_seed(seed), _templates()
    labels = (torch.arange(n) % len(templates))[torch.randperm(n, generator=generator)].to(torch.uint8)
    images = torch.empty(n, SIDE, SIDE, dtype=torch.uint8)
    for label, template in enumerate(templates):
        for rows in torch.split((labels == label).nonzero()[:, 0], _CHUNK):
            images[rows] = _vary(template, len(rows), generator)
    return images, labels


def _vary(template: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Template (h, w) in [0, 1] -> (n, 28, 28) uint8, each warped, striped, dimmed and noisy its own way."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(n, 1, 1).uniform_(low, high, generator=generator)

    axis = (torch.arange(SIDE) + 0.5) * (2 / SIDE) - 1  # pixel centres in [-1, 1]
    y, x = axis[:, None], axis[None, :]
    width = uniform(0.65, 1.05) * (1 + uniform(-0.2, 0.2) * y)  # wider towards the top or the bottom
    u = (x + uniform(-0.15, 0.15) + uniform(-0.2, 0.2) * y) / width
    v = (y + uniform(-0.15, 0.15)) / uniform(0.7, 1.05)
    grid = torch.stack((u, v.expand_as(u)), dim=-1)  # (n, 28, 28, 2)
    garment = grid_sample(template.expand(n, 1, -1, -1), grid, align_corners=False)[:, 0]

    angle = uniform(0, math.pi)
    phase = uniform(4, 14) * (x * angle.cos() + y * angle.sin()) + uniform(0, 2 * math.pi)
    stripes = uniform(0, 0.7) * phase.sin()
    noise = torch.empty_like(garment).normal_(0, 0.15, generator=generator)
    light = garment * uniform(0.3, 1.2) * (1 + stripes) + noise * (garment > 0)
    return (light.clamp_(0, 1) * 255).round_().to(torch.uint8)


def _templates() -> list[Tensor]:
    """Paint each garment's layers, later ones on top -> (56, 56) float32 in [0, 1]."""
    canvases: dict[str, Tensor] = {}
    for layer in _SHAPES.strip().splitlines():
        garment, grey, outline = layer.split(maxsplit=2)
        canvas = canvases.setdefault(garment, torch.zeros(SIDE * _FINE, SIDE * _FINE))
        canvas[_inside(outline)] = float(grey)
    return [avg_pool2d(canvas[None], _FINE // 2)[0] for canvas in canvases.values()]


def _inside(outline: str) -> Tensor:
    """Even-odd rule: a point is inside if a ray from it to the right crosses an odd number of edges."""
    corners = [tuple(map(float, corner.split(","))) for corner in outline.removeprefix("|").split()]
    if outline.startswith("|"):
        corners += [(SIDE - x, y) for x, y in reversed(corners)]
    axis = (torch.arange(SIDE * _FINE) + 0.5) / _FINE
    y, x = axis[:, None], axis[None, :]
    inside = torch.zeros(SIDE * _FINE, SIDE * _FINE, dtype=torch.bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if y0 != y1:  # a level edge is never crossed
            inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside
