"""Photos of any size and common format -> (28, 28) grey images like those of Fashion-MNIST.

Source: the conversion pipeline in section 2 of Xiao, Rasul and Vollgraf (2017), arXiv:1708.07747.
"""

import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from softmax_regression.errors import InputError
from softmax_regression.files import reason

SIDE = 28
MAX_PIXELS = 50_000_000  # a larger picture is refused before it is decoded
# Plain raster formats; for some of its other formats, Pillow starts a program (EPS: Ghostscript).
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "JPEG2000", "PPM", "HEIF")
LARGE = 1024  # pixels; larger photos are reduced to this size first, to save time and memory


class Photos(NamedTuple):
    """The images made from a list of files, and the files that could not be used."""

    images: Tensor  # (n, 28, 28) uint8, light on black
    paths: list[Path]  # the file of each image
    skipped: list[tuple[Path, str]]  # the files that could not be used, each with the reason in one line

    @property
    def origin(self) -> str:
        """The number of photos, for messages."""
        return "1 photo" if len(self.paths) == 1 else f"{len(self.paths)} photos"


def load_photos(paths: Sequence[str | Path] | str) -> Photos:
    """Convert photos by `to_fashion_mnist`, and print on stderr which files cannot be used.

    In a folder, all files that are not hidden are used, also in subfolders, sorted by name; of an animation, the first
    frame. An InputError says that no photo can be used.
    """
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    if isinstance(paths, str):
        paths = [paths]
    used: dict[Path, Tensor] = {}
    skipped: list[tuple[Path, str]] = []
    for path in paths:
        if not str(path):  # of a shell's variable that is not set; as a Path it is the current folder
            raise InputError("data.images has an empty name; give photos, or folders of them")
        for file in _files_in(Path(path)):
            try:
                used[file] = _load(file)
            except Exception as error:  # Pillow raises errors of many types for damaged files
                skipped.append((file, reason(error)))
    if not used:
        first = ""
        if skipped:
            first = " ({}: {})".format(*skipped[0])
        raise InputError(f"no photo can be used{first}; change data.images")
    for file, why in skipped:
        print(f"skipped {file}: {why}", file=sys.stderr)
    if skipped:
        print(f"{len(skipped)} of {len(skipped) + len(used)} files skipped", file=sys.stderr)
    return Photos(torch.stack([*used.values()]), [*used], skipped)


def _files_in(path: Path) -> list[Path]:
    """Return the files and the links of a folder that are not hidden, or the path itself if there are none."""
    files = [file for file in sorted(path.rglob("*")) if file.is_symlink() or not file.is_dir()]
    visible = [file for file in files if "/." not in f"/{file.relative_to(path).as_posix()}"]
    return visible or [path]


def _load(path: Path) -> Tensor:
    if path.is_symlink() and path.is_dir():
        raise ValueError("a link to a folder; name the folder itself in data.images")
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise ValueError("neither a file nor a folder with files")
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # older versions lack AVIF, and HEIF is an extra
    with warnings.catch_warnings(action="ignore"):  # about damaged metadata, which is not used
        try:
            photo = Image.open(path, formats=known)
        except UnidentifiedImageError as error:
            if path.suffix.lower() in (".heic", ".heif") and "HEIF" not in known:
                raise ValueError("HEIC; pip install pillow-heif, or save it as JPEG") from error
            raise ValueError(f"not one of {', '.join(known)}, or damaged") from error
        with photo:
            if photo.width * photo.height > MAX_PIXELS:
                raise ValueError(f"{photo.width} x {photo.height} pixels, expected at most {MAX_PIXELS:,}")
            photo.draft("RGB", (LARGE, LARGE))  # lets a large JPEG be decoded at reduced size
            return to_fashion_mnist(photo)


def to_fashion_mnist(photo: Image.Image) -> Tensor:
    """Convert a photo by the steps that made Fashion-MNIST, for any size and for light and dark backgrounds.

    The photo is turned upright and put on white. Edges within 5 % of the colour of the corners are cut off. It is
    reduced to 73 pixels, as the paper's thumbnails, by averaging, and to 28 pixels by subsampling, then sharpened with
    a Gaussian of standard deviation 1, and made grey. If the corners are light, it is negated so that they become 0.
    It is centred on black. A picture of 28 x 28 pixels is neither cut nor scaled nor sharpened: an image of
    Fashion-MNIST is returned unchanged.

    Args:
        photo: Of any mode; transparent parts become white, more than 8 bits a channel are scaled to 8.

    Returns:
        (28, 28) uint8, light on black. A ValueError says that nothing differs from the corners.
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
        rgb.thumbnail((73, 73), Image.Resampling.BOX)
        scale = SIDE / max(rgb.size)
        size = max(1, round(scale * rgb.width)), max(1, round(scale * rgb.height))
        rgb = rgb.resize(size, Image.Resampling.NEAREST).filter(ImageFilter.UnsharpMask(1, 100, 0))
    grey = rgb.convert("L")
    light = float(corners.mean())
    if light > 127:
        grey = grey.point([round(255 * max(0, 1 - value / light)) for value in range(256)])
    image = Image.new("L", (SIDE, SIDE))
    image.paste(grey, ((SIDE - grey.width) // 2, (SIDE - grey.height) // 2))
    grey_levels: Tensor = pil_to_tensor(image)  # (1, 28, 28)
    return grey_levels[0]


def _upright_rgb(photo: Image.Image) -> Image.Image:
    """Return a photo of any mode as upright RGB on white, at most `LARGE` pixels wide and high."""
    photo = ImageOps.exif_transpose(photo)
    if photo.mode[0] in "IF":  # 16 or 32 bits, which Pillow would clip at 255
        values = np.nan_to_num(np.asarray(photo, dtype=np.float32))
        white = max(values.max(), {"I": 65535, "F": 1e-9}[photo.mode[0]])
        photo = Image.fromarray((values * (255 / white)).round().clip(0, 255).astype(np.uint8))
    rgba = photo.convert("RGBA")
    rgba.thumbnail((LARGE, LARGE), Image.Resampling.BOX)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
