"""Generated images in the place of Fashion-MNIST: ten silhouettes of garments, each image varied and noisy.

They have the shapes, dtypes, label order and light-on-black convention of the data set (arXiv:1708.07747). They are for
tests and for machines without a network; results on them say nothing about Fashion-MNIST.
"""

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torchvision.transforms.functional import pil_to_tensor

SIDE = 28
FINE = 8  # an outline is drawn with 8 x 8 points for each pixel, so that its edge is smooth
CHUNK = 128  # images that are made at a time, few enough for the CPU's cache

# Corners x,y in pixels from the top left.
OUTLINES = (
    "10,3 18,3 26,8 23,12 20,10 20,26 8,26 8,10 5,12 2,8",  # T-shirt
    "9,1 19,1 22,27 17,27 14,7 11,27 6,27",  # trouser
    "10,4 18,4 23,8 26,24 23,24 20,13 20,25 8,25 8,13 5,24 2,24 5,8",  # pullover
    "10,1 12,5 16,5 18,1 18,12 22,27 6,27 10,12",  # dress
    "11,2 17,2 22,6 25,23 22,23 20,12 21,27 14,27 14,8 14,27 7,27 8,12 6,23 3,23 6,6",  # coat
    "1,22 8,20 7,15 10,15 11,19 18,17 22,6 25,7 22,15 26,13 27,23 23,23 22,19 17,23 2,24",  # sandal
    "11,2 14,6 17,2 23,7 25,22 22,23 20,13 20,26 8,26 8,13 6,23 3,22 5,7",  # shirt
    "1,19 5,16 14,10 20,12 24,9 27,11 27,21 1,21",  # sneaker
    "2,11 7,11 9,4 19,4 21,11 26,11 26,25 2,25 2,12 19,12 18,6 10,6 9,12 2,12",  # bag
    "13,3 25,3 25,12 27,25 20,25 19,23 1,25 1,20 10,15 13,11",  # ankle boot
)


def generate(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Generate labelled images in random order.

    Args:
        n: Number of images; n // 10 of each class, and one more of the first classes for the remainder.
        seed: Of a generator that nothing else uses.

    Returns:
        Images (n, 28, 28) and labels (n,) in 0..9, both uint8.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(n) % len(OUTLINES))[torch.randperm(n, generator=generator)]
    silhouettes = torch.stack([_silhouette(outline) for outline in OUTLINES])
    images = torch.empty(n, SIDE, SIDE, dtype=torch.uint8)
    for rows in torch.arange(n).split(CHUNK):
        images[rows] = _vary(silhouettes[labels[rows]], generator)
    return images, labels.to(torch.uint8)


def _silhouette(outline: str) -> Tensor:
    """Return a filled outline (1, 28, 28), 1 inside and 0 outside."""
    canvas = Image.new("L", (SIDE * FINE, SIDE * FINE))
    numbers = [FINE * float(number) for number in outline.replace(",", " ").split()]
    ImageDraw.Draw(canvas).polygon(numbers, fill=255)
    pixels: Tensor = pil_to_tensor(canvas.reduce(FINE))
    return pixels / 255


def _vary(garments: Tensor, generator: torch.Generator) -> Tensor:
    """Move, scale, slant and dim each garment (b, 1, 28, 28) at random, and add noise; return (b, 28, 28) uint8."""
    b = len(garments)
    warp = torch.tensor([[1.2, 0, 0], [0, 1.2, 0]]) + torch.empty(b, 2, 3).uniform_(-0.23, 0.23, generator=generator)
    grid = affine_grid(warp, [b, 1, SIDE, SIDE], align_corners=False)
    garments = grid_sample(garments, grid, align_corners=False)[:, 0]
    brightness = torch.empty(b, 1, 1).uniform_(0.3, 1.2, generator=generator)
    noise = torch.empty(b, SIDE, SIDE).normal_(1, 0.3, generator=generator)
    return (255 * garments * brightness * noise).clamp(0, 255).round().to(torch.uint8)
