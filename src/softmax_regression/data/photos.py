"""Photos of any size and common format -> (28, 28) grey images like those of Fashion-MNIST.

Source: the conversion pipeline in section 2 of Xiao, Rasul and Vollgraf (2017), arXiv:1708.07747.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError
from torch import Tensor

from softmax_regression.errors import InputError

SIDE = 28
MAX_PIXELS = 50_000_000  # a larger picture is refused before it is decoded
# Plain raster formats. Of the others that Pillow reads, some call a program (EPS: Ghostscript).
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "JPEG2000", "PPM", "HEIF")
_HEIF = (b"ftyphei", b"ftyphev", b"ftypmif")  # how such a file goes on after four bytes
_LARGE = 1024  # pixels; larger photos are averaged down to this at once, to save time and memory
_THUMBNAIL = 73  # pixels; the pictures that Fashion-MNIST was subsampled from were 51 x 73


class Photos(NamedTuple):
    """What became of a list of files."""

    images: Tensor  # (n, 28, 28) uint8, light on black
    paths: list[Path]  # the n files they came from
    skipped: list[tuple[Path, str]]  # the files that could not be used, each with the reason in one line


def load_photos(paths: Sequence[Path]) -> Photos:
    """Read photos and turn each into an image like those of Fashion-MNIST (`to_fashion_mnist`).

    Args:
        paths: Files, and folders, of which all files count that are not hidden, in subfolders too.

    Returns:
        The images in the order of `paths`, within a folder by name; of an animation the first frame.

    Raises:
        InputError: There is not one usable photo.
    """
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    used: list[tuple[Path, Tensor]] = []
    skipped: list[tuple[Path, str]] = []
    for path in _files(paths):
        try:
            used.append((path, _load(path)))
        except Exception as error:  # on damaged files Pillow's readers raise nearly anything
            skipped.append((path, " ".join(str(error).split()) or type(error).__name__))
    if not used:
        first = "".join(f" ({path}: {reason})" for path, reason in skipped[:1])
        raise InputError(f"none of {len(skipped)} photos can be used{first}; change data.images")
    return Photos(torch.stack([image for _, image in used]), [path for path, _ in used], skipped)


def to_fashion_mnist(photo: Image.Image) -> Tensor:
    """Take the steps that made Fashion-MNIST, adapted to any size and to light and dark backgrounds.

    Turn upright (EXIF) and lay over white; trim edges within 5 % of the colour of the corners; average down
    to the 73 pixels of the paper's thumbnails, subsample the longest edge to 28, sharpen with a Gaussian of
    standard deviation 1; turn grey; negate if the corners are light (in the paper they always were), so that
    their grey becomes 0; centre on black.

    A picture of 28 x 28 is neither trimmed nor scaled nor sharpened: an image of Fashion-MNIST itself comes
    back bit for bit.

    Args:
        photo: Any mode; alpha is composited, more than 8 bits a channel are scaled to 8.

    Returns:
        (28, 28) uint8, light on black.

    Raises:
        ValueError: Nothing differs from the corners.
    """
    rgb = _upright_rgb(photo)
    pixels = np.asarray(rgb, dtype=np.float32)  # (h, w, 3)
    corners = np.median(pixels[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0)  # (3,)
    if rgb.size != (SIDE, SIDE):
        differs = np.linalg.norm(pixels - corners, axis=2) > 0.05 * 255  # (h, w)
        box = Image.fromarray(differs).getbbox()
        if box is None:
            raise ValueError("nothing differs from the background")
        rgb = rgb.crop(box)
        rgb.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
        width, height = (max(1, round(edge * SIDE / max(rgb.size))) for edge in rgb.size)
        sharper = ImageFilter.UnsharpMask(radius=1, percent=100, threshold=0)
        rgb = rgb.resize((width, height), Image.Resampling.NEAREST).filter(sharper)
    light, grey = float(corners.mean()), np.asarray(rgb.convert("L"), dtype=np.float32)  # (h, w)
    if light > 127:
        grey = (255 * (1 - grey / light)).round().clip(0, 255)
    image = Image.new("L", (SIDE, SIDE))
    image.paste(Image.fromarray(grey.astype(np.uint8)), ((SIDE - rgb.width) // 2, (SIDE - rgb.height) // 2))
    return torch.from_numpy(np.array(image))


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Files as given; of a folder the visible files in it, or the folder itself if it has none."""
    for path in paths:
        found = sorted(Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        visible = [file for file in found if "/." not in f"/{file.relative_to(path).as_posix()}"]
        yield from visible or [path]


def _load(path: Path) -> Tensor:
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise ValueError("neither a file nor a folder with files")
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # older versions lack AVIF, and HEIF is an extra
    with warnings.catch_warnings(action="ignore"):  # of damaged metadata, which is not used
        try:
            photo = Image.open(path, formats=known)
        except UnidentifiedImageError as error:
            with path.open("rb") as file:
                if file.read(11)[4:] in _HEIF and "HEIF" not in known:
                    raise ValueError("HEIC; pip install pillow-heif, or save it as JPEG") from error
            raise ValueError(f"not one of {', '.join(known)}, or damaged") from error
        with photo:
            if photo.width * photo.height > MAX_PIXELS:
                raise ValueError(f"{photo.width} x {photo.height} pixels, expected at most {MAX_PIXELS:,}")
            photo.draft("RGB", (_LARGE, _LARGE))  # lets a large JPEG be decoded at reduced size
            return to_fashion_mnist(photo)


def _upright_rgb(photo: Image.Image) -> Image.Image:
    """Any mode and orientation -> upright RGB over white, at most `_LARGE` pixels wide and high."""
    photo = ImageOps.exif_transpose(photo)
    if photo.mode[0] in "IF":  # 16 or 32 bits, which Pillow would clip at 255
        values = np.nan_to_num(np.asarray(photo, dtype=np.float32))
        full = max(65535, values.max()) if photo.mode[0] == "I" else max(values.max(), 1e-9)
        photo = Image.fromarray((values * (255 / full)).round().clip(0, 255).astype(np.uint8))
    rgba = photo.convert("RGBA")
    rgba.thumbnail((_LARGE, _LARGE), Image.Resampling.BOX)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
