"""Words and small images placed by hand on a matplotlib figure.

Matplotlib's own ticks, texts and layout would take several times as long, which counts while a model trains.
"""

import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import LoadFlags
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

SIDE, SCALE = 28, 4  # pixels along a tile; 1/100 inch along a pixel
TILE = SIDE * SCALE
# Pixels from a tile to the next one, right and down; 38 would make a figure of 9.12 inches, 911.99 pixels.
STEP = (39, 40)
HEAD = 40  # height of the title

Corner = tuple[float, float]


class Canvas:
    """A figure with nothing on it but a title, measured in 1/100 inch from its upper left corner.

    Attributes:
        figure: The figure.
        axes: The only ones in it, as large as it is; y grows downwards.
    """

    def __init__(self, width: float, height: float, title: str) -> None:
        self.figure = Figure(figsize=(width / 100, height / 100))
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        self.axes.set_axis_off()
        self.width, self.height = width, height
        self.write([(width / 2, HEAD / 2, title)], size=14)

    def write(
        self,
        lines: Iterable[tuple[float, float, str]],
        size: float = 11,
        colour: str = "black",
        align: float = 0.5,
        turn: float = 0,
    ) -> None:
        """Write lines (x, y, words) as one path.

        Args:
            lines: Where is what.
            size: In points.
            colour: One for all of them.
            align: Where in a line (x, y) lies: 0 its start, 1 its end; always at half the height of capitals.
            turn: Degrees, anticlockwise.
        """
        scale = size / 72 * np.exp(-1j * math.radians(turn))
        outlines, codes = [np.empty(0, complex)], [np.empty(0, np.int8)]
        for x, y, words in lines:
            glyphs, kinds, widths = zip(*map(_glyph, words), strict=True)
            *starts, end = np.cumsum((0, *widths))
            for glyph, start in zip(glyphs, starts, strict=True):
                outlines.append(scale * (glyph + (start - align * end + 36j)) + (x + y * 1j))
            codes += kinds
        path = Path(np.concatenate(outlines)[:, None].view(float), np.concatenate(codes))
        self.axes.add_artist(PathPatch(path, facecolor=colour, linewidth=0))  # add_patch would measure it

    def frame(self, tiles: Sequence[Corner], colour: str, linewidth: float) -> None:
        """Draw a line, some points wide, around tiles."""
        frames = [Rectangle(tile, TILE, TILE) for tile in tiles]
        self.axes.add_artist(PatchCollection(frames, facecolor="none", edgecolor=colour, linewidth=linewidth))


def mosaic(
    tiles: Tensor, columns: int, cmap: str, limits: tuple[float, float], title: str, below: float = 0
) -> tuple[Canvas, list[Corner]]:
    """Draw tiles as one picture.

    Args:
        tiles: (n, 28, 28).
        columns: Tiles in a row.
        cmap: Name of the colours.
        limits: The values of the first colour and of the last one.
        title: What stands above.
        below: Room to leave below, in 1/100 inch.

    Returns:
        The canvas, and where on it is the upper left corner (x, y) of each tile.
    """
    n, (wide, high) = len(tiles), STEP
    rows, left = math.ceil(n / columns), (wide - SIDE) // 2
    padding = (left, wide - SIDE - left, 0, high - SIDE, 0, rows * columns - n)  # x, y, tiles
    padded = pad(tiles, padding, value=math.nan).view(rows, columns, high, wide)
    picture = padded.transpose(1, 2).reshape(rows * high, columns * wide)

    width, bottom = columns * wide * SCALE, HEAD + rows * high * SCALE
    canvas = Canvas(width, bottom + below, title)
    image = canvas.axes.imshow(
        picture.numpy(), cmap, interpolation="nearest", extent=(0, width, bottom, HEAD)
    )
    image.set_clim(*limits)
    return canvas, [
        ((i % columns * wide + left) * SCALE, HEAD + i // columns * high * SCALE) for i in range(n)
    ]


@functools.cache
def _glyph(character: str) -> tuple[NDArray[np.complex128], NDArray[np.int8], float]:
    """The outline of a character of size 100 as x - iy (n,), its codes (n,) and its width."""
    font = get_font(findfont(FontProperties()))
    font.set_size(100, 72)
    width = font.load_char(ord(character), flags=LoadFlags.NO_HINTING).linearHoriAdvance / 65536
    outline, codes = font.get_path()
    return outline[:, 0] - 1j * outline[:, 1], codes, width
