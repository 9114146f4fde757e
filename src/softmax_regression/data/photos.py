"""Photos of any size and common format -> (28, 28) grey images like those of Fashion-MNIST.

Source: the conversion pipeline in section 2 of Xiao, Rasul and Vollgraf (2017), arXiv:1708.07747.
"""

import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softmax_regression.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

SIDE = 28
MAX_PIXELS = 50_000_000  # a larger picture is refused before it is decoded
MAX_BYTES = 256 * 2**20
# Plain raster formats. Of the others that Pillow reads, some call a program (EPS: Ghostscript).
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "JPEG2000", "PPM")
_LARGE = 1024  # pixels; larger photos are averaged down to this at once, to save time and memory
_THUMBNAIL = 73  # pixels; the pictures that Fashion-MNIST was subsampled from were 51 x 73


class Photos(NamedTuple):
    """What became of a list of files.

    Attributes:
        images: (n, 28, 28) uint8, light on black.
        paths: The n files they came from.
        skipped: The files that could not be used, each with the reason in one line.
    """

    images: Tensor
    paths: list[Path]
    skipped: list[tuple[Path, str]]


def load_photos(paths: Sequence[Path]) -> Photos:
    """Read photos and turn each into an image like those of Fashion-MNIST (`to_fashion_mnist`).

    Args:
        paths: Files, and folders, of which all files count that are not hidden, in subfolders too.

    Returns:
        The images, in the order of `paths`, within a folder by name; of an animation the first frame. A file
        that is no picture, is damaged, or is larger than `MAX_PIXELS` or `MAX_BYTES` is skipped.

    Raises:
        InputError: There is not one usable photo.
    """
    images: list[Tensor] = []
    used: list[Path] = []
    skipped: list[tuple[Path, str]] = []
    for path in _files(paths):
        try:
            images.append(_load(path))
            used.append(path)
        except Exception as error:  # on damaged files Pillow's readers raise nearly anything
            skipped.append((path, " ".join(str(error).split()) or type(error).__name__))
    if not images:
        given = ", ".join(map(str, paths[:3])) + ", ..." * (len(paths) > 3)
        first = "".join(f" ({path}: {reason})" for path, reason in skipped[:1])
        raise InputError(
            f"images={given}: none of {len(skipped)} files can be used{first}, expected at least one photo "
            f"as {', '.join(FORMATS)}; set data.images to photos or a folder of them"
        )
    return Photos(torch.stack(images), used, skipped)


def to_fashion_mnist(photo: "Image.Image") -> Tensor:
    """Take the steps that made Fashion-MNIST, adapted to any size and to light and dark backgrounds.

    1. Turn upright (EXIF), lay over white.
    2. Trim edges within 5 % of the colour of the corners.
    3. Average down to the 73 pixels of the paper's thumbnails, then subsample the longest edge to 28.
    4. Sharpen with a Gaussian of standard deviation 1.
    5. Turn grey.
    6. Negate if the corners are light (in the paper they always were), so that their grey becomes 0.
    7. Centre on 28 x 28, black.

    A picture of 28 x 28 skips steps 2 to 4, having been through them; so an image of Fashion-MNIST itself
    comes back bit for bit.

    Args:
        photo: Any mode; alpha is composited, more than 8 bits a channel are scaled to 8.

    Returns:
        (28, 28) uint8, light on black.

    Raises:
        ValueError: Nothing differs from the corners.
    """
    from PIL import Image, ImageFilter

    rgb = _upright_rgb(photo)
    pixels = np.asarray(rgb, dtype=np.float32)  # (h, w, 3)
    corners = np.median(pixels[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0)  # (3,)
    if rgb.size != (SIDE, SIDE):
        rgb = rgb.crop(_bounding_box(np.linalg.norm(pixels - corners, axis=2) > 0.05 * 255))
        rgb.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
        width, height = (max(1, round(edge * SIDE / max(rgb.size))) for edge in rgb.size)
        rgb = rgb.resize((width, height), Image.Resampling.NEAREST)
        rgb = rgb.filter(ImageFilter.UnsharpMask(radius=1, percent=100, threshold=0))
    grey = torch.from_numpy(np.array(rgb.convert("L")))  # (h, w), the larger of them 28
    light = float(corners.mean())
    if light > 127:
        grey = (255 * (1 - grey / light)).round().clamp(0, 255).to(torch.uint8)
    height, width = grey.shape
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    image = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    image[top : top + height, left : left + width] = grey
    return image


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Files as given; of a folder the visible files in it, or the folder itself if it has none."""
    for path in paths:
        found = sorted(Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        visible = [file for file in found if "/." not in f"/{file.relative_to(path).as_posix()}"]
        yield from visible or [path]


def _load(path: Path) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise ValueError("neither a file nor a folder with files")
    if status.st_size > MAX_BYTES:
        raise ValueError(f"{status.st_size:,} bytes, expected at most {MAX_BYTES:,}")
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # older versions lack AVIF
    with warnings.catch_warnings(action="ignore"):  # of damaged metadata, which is not used
        try:
            photo = Image.open(path, formats=known)
        except UnidentifiedImageError as error:
            raise ValueError("not a picture, or damaged") from error
        with photo:
            if photo.width * photo.height > MAX_PIXELS:
                raise ValueError(f"{photo.width} x {photo.height} pixels, expected at most {MAX_PIXELS:,}")
            photo.draft("RGB", (_LARGE, _LARGE))  # lets a large JPEG be decoded at reduced size
            return to_fashion_mnist(photo)


def _upright_rgb(photo: "Image.Image") -> "Image.Image":
    """Any mode and orientation -> upright RGB over white, at most `_LARGE` pixels wide and high."""
    from PIL import Image, ImageOps

    photo = ImageOps.exif_transpose(photo)
    if photo.mode[0] in "IF":  # 16 or 32 bits, which Pillow would clip at 255
        values = np.nan_to_num(np.asarray(photo, dtype=np.float32))
        full = max(65535, values.max()) if photo.mode[0] == "I" else max(values.max(), 1e-9)
        photo = Image.fromarray((values * (255 / full)).round().clip(0, 255).astype(np.uint8))
    rgba = photo.convert("RGBA")
    rgba.thumbnail((_LARGE, _LARGE), Image.Resampling.BOX)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, upper, right and lower bound of what is True in (h, w)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise ValueError("nothing differs from the background")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
