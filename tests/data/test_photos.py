import io
import os
import random
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from softmax_regression.data import photos
from softmax_regression.data.photos import load_photos, to_fashion_mnist
from softmax_regression.data.synthetic import generate
from softmax_regression.errors import InputError

Image.init()
FORMATS = [name for name in photos.FORMATS if name in Image.SAVE]  # AVIF is optional


def picture(background: str = "white", garment: str = "black", height: int = 400) -> Image.Image:
    """300 wide; a bar 120 wide and 240 high, its upper left at (90, 60)."""
    image = Image.new("RGB", (300, height), background)
    ImageDraw.Draw(image).rectangle((90, 60, 209, 299), fill=garment)
    return image


def one(path: Path) -> Tensor:
    return load_photos([path]).images[0]


def lit_box(image: Tensor) -> tuple[int, int, int, int]:
    """Left, upper, right, lower bound of what is not black."""
    rows, columns = (image > 20).any(dim=1).nonzero(), (image > 20).any(dim=0).nonzero()
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_an_image_of_the_data_set_comes_back_bit_for_bit(tmp_path: Path) -> None:
    images = generate(20, seed=0)[0]
    for index, image in enumerate(images):
        Image.fromarray(image.numpy()).save(tmp_path / f"{index:02}.png")
    assert torch.equal(load_photos([tmp_path]).images, images)


def test_a_bar_is_trimmed_scaled_to_28_centred_and_negated() -> None:
    image = to_fashion_mnist(picture())
    assert image.shape == (28, 28)
    assert image.dtype == torch.uint8
    expected = torch.zeros(28, 28, dtype=torch.uint8)
    expected[:, 7:21] = 255  # 120 x 240 -> 14 x 28
    assert torch.equal(image, expected)


def test_a_light_garment_on_a_dark_background_is_not_negated() -> None:
    assert torch.equal(to_fashion_mnist(picture("black", "white")), to_fashion_mnist(picture()))


def test_a_grey_background_becomes_black() -> None:
    image = to_fashion_mnist(picture("#c8c8c8", "#646464", 300).rotate(45, fillcolor="#c8c8c8"))
    assert image[0, 0] == image[0, -1] == image[-1, 0] == 0
    assert image[14, 14] == round(255 * (1 - 100 / 200))


@pytest.mark.parametrize("faint", [(243, 255, 255), (248, 248, 248), (246, 250, 249)])
def test_edges_within_five_percent_of_the_corners_are_trimmed(faint: tuple[int, int, int]) -> None:
    image = picture()
    ImageDraw.Draw(image).rectangle((10, 350, 20, 360), fill=faint)  # at most 12.75 from white in RGB space
    assert lit_box(to_fashion_mnist(image)) == (7, 0, 21, 28)


def test_an_edge_further_from_the_corners_is_kept() -> None:
    image = picture()
    ImageDraw.Draw(image).rectangle((90, 300, 209, 349), fill=(241, 255, 255))  # 14 from white
    assert lit_box(to_fashion_mnist(image))[3] == 23  # 240 of the 290 rows: 23.2 of 28


def test_one_odd_corner_does_not_count() -> None:
    image = picture()
    image.paste("black", (0, 0, 5, 5))
    assert lit_box(to_fashion_mnist(image)) == (4, 0, 24, 28)  # 210 x 300 up to the bar's far end


@pytest.mark.slow
def test_the_noise_of_a_large_photo_is_averaged_out_before_trimming() -> None:
    large = np.asarray(picture().resize((3000, 4000), Image.Resampling.NEAREST))
    noisy = large + 8 * np.random.default_rng(0).standard_normal(large.shape, dtype=np.float32)
    assert lit_box(to_fashion_mnist(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))) == (7, 0, 21, 28)


def test_a_fine_pattern_is_averaged_not_aliased() -> None:
    image = picture()
    for y in range(62, 300, 2):
        ImageDraw.Draw(image).line((90, y, 209, y), fill="white")
    assert to_fashion_mnist(image)[2:26, 8:20].float().std() < 60  # subsampled alone, 127


def test_outlines_are_sharpened() -> None:
    step = Image.new("L", (60, 60), 255)
    ImageDraw.Draw(step).rectangle((0, 10, 59, 29), fill=155)
    ImageDraw.Draw(step).rectangle((0, 30, 59, 49), fill=55)
    column = to_fashion_mnist(step)[:, 14].int()
    lit = column[column > 0]
    assert lit[len(lit) // 4] == pytest.approx(100, abs=2)
    assert lit.min() < 95
    assert lit.max() > 205


@pytest.mark.parametrize("size", [(1, 1), (28, 1), (3, 2000), (2000, 3), (27, 28), (29, 28), (3000, 2000)])
def test_any_size_gives_28_by_28(size: tuple[int, int]) -> None:
    image = Image.effect_noise(size, 80)
    image.putpixel((0, 0), 255)
    if size == (1, 1):
        with pytest.raises(ValueError, match="nothing differs"):
            to_fashion_mnist(image)
    else:
        assert to_fashion_mnist(image).shape == (28, 28)


@pytest.mark.parametrize("name", FORMATS)
def test_common_formats_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / "photo"  # the content decides, not the name
    picture().save(path, format=name)
    assert lit_box(one(path)) == pytest.approx((7, 0, 21, 28), abs=1)  # lossy ones blur the edge


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"])
def test_every_mode_gives_the_same_image(mode: str) -> None:
    image = picture().convert("L" if mode == "I;16" else mode)
    if mode.startswith("I"):  # 16 bits
        values = np.asarray(picture().convert("L")).astype(np.int32) * 257
        image = Image.fromarray(values.astype(np.uint16) if mode == "I;16" else values)
    assert image.mode == mode
    assert torch.equal(to_fashion_mnist(image), to_fashion_mnist(picture()))


def test_sixteen_bits_are_scaled_to_eight() -> None:
    image = generate(1, seed=0)[0][0]
    deep = Image.fromarray(image.numpy().astype(np.uint16) * 257)
    assert torch.equal(to_fashion_mnist(deep), image)


def test_transparency_shows_white(tmp_path: Path) -> None:
    image = picture("black", "black").convert("RGBA")
    alpha = Image.new("L", image.size, 0)
    ImageDraw.Draw(alpha).rectangle((90, 60, 209, 299), fill=255)
    image.putalpha(alpha)
    image.save(tmp_path / "cut_out.png")
    assert torch.equal(one(tmp_path / "cut_out.png"), to_fashion_mnist(picture()))


def test_a_rotated_camera_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: stored a quarter turn counter-clockwise
    picture().rotate(90, expand=True).save(tmp_path / "photo.png", exif=exif)
    assert torch.equal(one(tmp_path / "photo.png"), to_fashion_mnist(picture()))


def test_broken_metadata_does_not_matter(tmp_path: Path) -> None:
    picture().save(tmp_path / "photo.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    assert load_photos([tmp_path]).skipped == []


def test_the_first_frame_of_an_animation_counts(tmp_path: Path) -> None:
    frames = [picture(), picture("white", "white")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert lit_box(one(tmp_path / "film.gif")) == (7, 0, 21, 28)


def test_files_come_in_the_order_given_and_folders_by_name_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.png", "b/deep/3.png", "b/.hidden.png", "b/.cache/4.png", "a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture().save(tmp_path / name)
    found = load_photos([tmp_path / "b", tmp_path / "a.png"])
    names = ["b/1.png", "b/2.png", "b/deep/3.png", "a.png"]
    assert found.paths == [tmp_path / name for name in names]
    assert found.images.shape == (4, 28, 28)
    assert found.skipped == []


def test_a_linked_folder_in_a_folder_is_named_as_skipped(tmp_path: Path) -> None:
    for name in ("b/1.png", "c/2.png"):
        (tmp_path / name).parent.mkdir()
        picture().save(tmp_path / name)
    (tmp_path / "b" / "link").symlink_to(tmp_path / "c")
    (tmp_path / "b" / "loop").symlink_to(tmp_path / "b")
    found = load_photos([tmp_path / "b"])
    assert found.paths == [tmp_path / "b" / "1.png"]
    why = "a link to a folder; name the folder itself in data.images"
    assert found.skipped == [(tmp_path / "b" / "link", why), (tmp_path / "b" / "loop", why)]
    assert load_photos([tmp_path / "b" / "link"]).paths == [tmp_path / "b" / "link" / "2.png"]


def test_what_cannot_be_used_is_named_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "MAX_PIXELS", 300 * 400)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    picture().save(tmp_path / "good.png")
    picture(height=401).save(tmp_path / "large.png")
    picture("white", "white").save(tmp_path / "blank.png")
    picture().save(tmp_path / "script.eps")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "iphone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    found = load_photos([tmp_path, tmp_path / "folder", tmp_path / "missing.png"])
    assert found.paths == [tmp_path / "good.png"]
    reasons = {path.name: reason for path, reason in found.skipped}
    no_file = "neither a file nor a folder with files"
    no_picture = "not one of " + ", ".join(FORMATS) + ", or damaged"
    assert reasons.pop("missing.png").startswith("No such file")
    assert "truncated" in reasons.pop("cut.png").lower()
    assert reasons == {
        "blank.png": "nothing differs from the background",
        "empty.jpg": no_picture,
        "folder": no_file,
        "iphone.heic": "HEIC; pip install pillow-heif, or save it as JPEG",
        "large.png": "300 x 401 pixels, expected at most 120,000",
        "notes.txt": no_picture,
        "pipe.png": no_file,
        "script.eps": no_picture,
    }


def test_the_package_that_reads_heic_is_used_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def register() -> None:
        monkeypatch.setitem(Image.OPEN, "HEIF", Image.OPEN["PNG"])

    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    picture().save(tmp_path / "photo.heic", format="PNG")
    monkeypatch.setattr(photos, "FORMATS", ("HEIF",))
    assert torch.equal(one(tmp_path / "photo.heic"), to_fashion_mnist(picture()))


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    small = io.BytesIO()
    Image.new("1", (8, 8)).save(small, "PNG")
    for edge in (8_000, 60_000):  # the second is above Pillow's own limit too
        bomb = bytearray(small.getvalue())
        bomb[16:24] = edge.to_bytes(4, "big") * 2  # width and height in the header
        bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
        (tmp_path / f"{edge}.png").write_bytes(bomb)
        with pytest.raises(InputError, match=r"pixels"):
            one(tmp_path / f"{edge}.png")


def test_without_one_usable_photo_a_single_line_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    with pytest.raises(InputError, match=r"^no photo can be used \(.*a\.txt: not one of PNG, .*images$"):
        load_photos([tmp_path])
    with pytest.raises(InputError, match=r"^no photo can be used; change data.images$"):
        load_photos([])


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_raise_nothing_else(tmp_path: Path, name: str) -> None:
    chance = random.Random(name)
    buffer = io.BytesIO()
    picture(height=310).save(buffer, name)
    whole = buffer.getvalue()
    for trial in range(60):
        damaged = bytearray(whole)
        reach = chance.choice([64, 1000, len(whole)])  # mostly the header, where it hurts
        for _ in range(chance.randint(1, 20)):
            damaged[chance.randrange(min(reach, len(whole)))] = chance.randrange(256)
        cut = chance.randrange(len(damaged)) if trial % 3 == 0 else len(damaged)
        (tmp_path / f"{trial}.jpg").write_bytes(damaged[:cut])
    (tmp_path / "noise.jpg").write_bytes(whole[:16] + chance.randbytes(1000))
    picture().save(tmp_path / "good.png")
    found = load_photos([tmp_path])
    assert len(found.paths) + len(found.skipped) == 62
    assert found.images.shape == (len(found.paths), 28, 28)
    assert all(reason and "\n" not in reason for _, reason in found.skipped)
