import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from softmax_regression.figures.canvas import HEAD, SIDE, TILE, Canvas, mosaic
from softmax_regression.figures.drawings import to_array


def ink(figure: Figure) -> NDArray[np.float64]:
    """Darkness of each pixel, (h, w) in [0, 1]."""
    return 1 - to_array(figure).double().mean(dim=2).numpy() / 255


def box(drawn: NDArray[np.float64]) -> list[int]:
    """Left, right, top and bottom of what is drawn."""
    y, x = (drawn > 0.3).nonzero()
    return [x.min(), x.max(), y.min(), y.max()]


@pytest.mark.parametrize(("align", "anchor"), [(0, "left"), (0.5, "center"), (1, "right")])
@pytest.mark.parametrize("size", [11, 14])
def test_words_look_as_matplotlib_writes_them(align: float, anchor: str, size: int) -> None:
    words = "true → 12.5%: shirt"
    canvas, other = Canvas(500, 100, " "), Canvas(500, 100, " ")
    canvas.write([(250, 60, words)], size=size, align=align)
    other.axes.add_artist(Text(250, 60 + size / 2, words, fontsize=size, ha=anchor, va="baseline"))
    mine, theirs = ink(canvas.figure), ink(other.figure)
    assert np.allclose(box(mine), box(theirs), atol=6)  # of some 170 pixels: no kerning, no hinting
    assert np.allclose(box(mine)[2:], box(theirs)[2:], atol=1)
    assert mine.sum() == pytest.approx(theirs.sum(), rel=0.1)


def test_turned_words_rise() -> None:
    flat, turned = Canvas(300, 300, " "), Canvas(300, 300, " ")
    flat.write([(150, 150, "sneaker")], align=1)
    turned.write([(150, 150, "sneaker")], align=1, turn=90)
    left, right, top, bottom = box(ink(flat.figure))
    # a quarter turn around (150, 150), anticlockwise: (x, y) -> (150 + (y - 150), 150 - (x - 150))
    assert np.allclose(box(ink(turned.figure)), [top, bottom, 300 - right, 300 - left], atol=1)


def test_nothing_may_be_written() -> None:
    canvas = Canvas(50, 50, " ")
    canvas.write([])
    assert not ink(canvas.figure).any()


def test_a_title_stands_above_the_tiles() -> None:
    canvas, tiles = mosaic(torch.zeros(0, SIDE, SIDE), 2, "gray", (0, 1), "mmmm")
    left, right, top, bottom = box(ink(canvas.figure))
    assert tiles == []
    assert (left + right) / 2 == pytest.approx(canvas.width / 2, abs=1)
    assert 0 < top < bottom < HEAD


def test_tiles_are_where_the_mosaic_says_in_the_colours_asked_for() -> None:
    values = torch.rand(5, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    canvas, tiles = mosaic(values, 3, "gray", (0, 2), " ", below=30)
    pixels = to_array(canvas.figure)[..., 0].numpy()
    for (x, y), tile in zip(tiles, values.numpy(), strict=True):
        shown = pixels[int(y) : int(y) + TILE, int(x) : int(x) + TILE]
        assert np.allclose(shown, (tile * 255 / 2).repeat(4, 0).repeat(4, 1), atol=2)
        pixels[int(y) : int(y) + TILE, int(x) : int(x) + TILE] = 255
    assert (pixels == 255).all()  # and nothing else is drawn


def test_a_frame_runs_around_its_tile_alone() -> None:
    canvas, tiles = mosaic(torch.ones(2, SIDE, SIDE), 2, "gray", (0, 1), " ")
    canvas.frame(tiles[1:], "black", 2)
    (x, y), drawn = tiles[1], ink(canvas.figure)
    assert np.allclose(box(drawn), [x, x + TILE, y, y + TILE], atol=2)
    assert not drawn[int(y) + 5 : int(y) + TILE - 5, int(x) + 5 : int(x) + TILE - 5].any()
