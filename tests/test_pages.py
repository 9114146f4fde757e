"""The pages that the commands write, opened in Chromium and used as a person uses them.

Command: pytest -m browser tests/test_pages.py
"""

import io
import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, ImageDraw

from commands import fit
from softmax_regression.commands import study
from softmax_regression.commands.train import main

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
LARGE: dict[str, Any] = {"viewport": {"width": 1920, "height": 1080}}
STUDY = ("--quick", "--source=synthetic")
# Words and pictures that are cut off on the right, though nobody can scroll there.
CUT_OFF = """() => {
    const scrolls = element => ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
    const found = [];
    for (const element of document.body.querySelectorAll("*")) {
        if (element.closest("svg, math") || !element.checkVisibility()) continue;
        let within = element.parentElement;
        while (within && !scrolls(within)) within = within.parentElement;
        if (!within && element.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
            found.push(element.outerHTML.slice(0, 100));
    }
    return found;
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of every command that writes one; read only, please."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert fit("--model.lr=0.3", "--trainer.logger.name=first") == 0
        assert fit("--model.lr=0.1", "--model.momentum=0.9", "--trainer.logger.name=second") == 0
        run = next(Path("logs/first").iterdir())
        other = next(Path("logs/second").iterdir())
        assert main(["test", "--ckpt_path", str(run), "--figures.every_n_epochs=0"]) == 0
        commands = {
            "numerics": ["--quick"],
            "sweep": STUDY,
            "overfit": STUDY,
            "report": [str(run)],
            "compare": [str(run), str(other)],
            "export": [str(run)],
        }
        written = {}
        for command, options in commands.items():
            written[command] = page_of(command, *options)
    return written


def page_of(command: str, *options: str) -> Path:
    """Run a command of study.py and return the page whose path it prints last."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", printed)
        assert study.main([command, *options]) == 0
    page = Path(printed.getvalue().splitlines()[-1]).resolve()
    assert page.suffix == ".html"
    return page


@contextmanager
def opened(browser: "Browser", path: Path, **options: Any) -> Iterator["Page"]:
    """Open a page, which must say nothing on the console as long as it is open."""
    said: list[str] = []
    with browser.new_context(**options) as window:
        page = window.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        yield page
    assert said == []


def brightness(page: "Page") -> float:
    """How bright the page's background is, from 0 to 255."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    channels = [int(value) for value in re.findall(r"\d+", colour)[:3]]
    return sum(channels) / 3


@pytest.mark.parametrize("window", [PHONE, DESKTOP, LARGE], ids=["390", "1280", "1920"])
@pytest.mark.parametrize("command", ["numerics", "sweep", "overfit", "report", "compare", "export"])
def test_a_page_is_no_wider_than_its_window(
    command: str, window: dict[str, Any], pages: dict[str, Path], browser: "Browser"
) -> None:
    for scheme in ("light", "dark"):
        with opened(browser, pages[command], color_scheme=scheme, **window) as page:
            assert page.evaluate(CUT_OFF) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= window["viewport"]["width"]
            assert (brightness(page) < 100) == (scheme == "dark")


def test_the_tables_of_remedies_need_no_scrolling_on_a_phone(pages: dict[str, Path], browser: "Browser") -> None:
    with opened(browser, pages["overfit"], **PHONE) as page:
        tables = page.locator(".wide")
        assert tables.count() == 4  # losses and accuracies of two sizes
        for table in tables.all():
            assert table.evaluate("table => table.scrollWidth - table.clientWidth") == 0


@pytest.mark.parametrize("window", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_report_shows_its_pictures_and_opens_its_details(
    window: dict[str, Any], pages: dict[str, Path], browser: "Browser"
) -> None:
    with opened(browser, pages["report"], **window) as page:
        pictures = page.locator("img")
        assert pictures.count() >= 6
        for picture in pictures.all():
            assert picture.get_attribute("alt")
            assert picture.evaluate("img => img.complete && img.naturalWidth > 0")
        details = page.locator("details").first
        hidden = details.locator("pre")
        assert not hidden.is_visible()
        details.locator("summary").click()
        assert hidden.is_visible()


def photo() -> bytes:
    """A picture of a dark T-shirt on a white table, as PNG."""
    picture = Image.new("RGB", (640, 480), "white")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((240, 120, 400, 400), fill="navy")
    pen.rectangle((160, 120, 480, 200), fill="navy")
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def drop(page: "Page", name: str, content: bytes) -> None:
    """Let a file fall on the page, as from a folder."""
    transfer = page.evaluate_handle(
        """([name, content]) => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], name, {type: "image/png"}));
            return transfer;
        }""",
        [name, b64encode(content).decode()],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def stroke(page: "Page", touch: bool) -> None:
    """Draw a line from top to bottom of the drawing area, by mouse or by finger; the page must not scroll."""
    page.locator("#pad").scroll_into_view_if_needed()
    frame = page.locator("#pad").bounding_box()
    assert frame is not None
    x = frame["x"] + frame["width"] / 2
    ys = [frame["y"] + frame["height"] * part / 10 for part in range(2, 9)]
    before = page.evaluate("scrollY")
    if touch:
        finger = page.context.new_cdp_session(page)
        finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": ys[0]}]})
        for y in ys:
            finger.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": y}]})
        finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    else:
        page.mouse.move(x, ys[0])
        page.mouse.down()
        for y in ys:
            page.mouse.move(x, y)
        page.mouse.up()
    assert page.evaluate("scrollY") == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_exported_page_answers_to_an_example_a_photo_and_a_stroke(
    window: dict[str, Any], scheme: str, pages: dict[str, Path], browser: "Browser"
) -> None:
    expect = pytest.importorskip("playwright.sync_api").expect
    given, empty = re.compile("with a probability of"), re.compile("Nothing is drawn")
    with opened(browser, pages["export"], color_scheme=scheme, **window) as page:
        answer = page.locator("#answer")
        clear = page.locator("#clear")
        expect(answer).to_have_text(given)
        clear.click()
        expect(answer).to_have_text(empty)
        page.locator("#examples button").nth(3).click()
        expect(answer).to_have_text(given)
        expect(page.locator("#maps figure")).to_have_count(2)

        drop(page, "notes.png", b"no picture")
        expect(answer).to_have_text(re.compile("notes.png: cannot be used"))
        drop(page, "shirt.png", photo())
        expect(answer).to_have_text(given)
        clear.click()
        expect(answer).to_have_text(empty)
        page.locator("#file").set_input_files({"name": "shirt.png", "mimeType": "image/png", "buffer": photo()})
        expect(answer).to_have_text(given)

        clear.click()
        expect(answer).to_have_text(empty)
        stroke(page, touch="has_touch" in window)
        expect(answer).to_have_text(given)
        clear.click()
        expect(answer).to_have_text(empty)
        assert page.evaluate(CUT_OFF) == []
