import base64
import csv
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from softmax_regression.figures import page as report
from softmax_regression.figures.page import Page, fraction, symbols, write_csv


def line() -> Figure:
    fig = Figure(figsize=(2, 1), layout="constrained")
    fig.subplots().plot([0, 1])
    return fig


def written(page: Page, folder: Path) -> str:
    return page.write(folder).read_text(encoding="utf-8")


def test_every_text_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('&')</script>"
    page = Page(evil)
    page.heading(evil)
    page.text(evil)
    page.preformatted(evil)
    page.table([[evil]], [evil])
    page.figure(line(), "line", f'{evil}" onload="x')
    page.equation(symbols(evil))
    html = written(page, tmp_path)
    assert "<script" not in html
    assert '" onload' not in html
    assert html.count("&lt;script&gt;") == 10  # title and h1, and twice in table and figure


def test_words_in_backquotes_are_code(tmp_path: Path) -> None:
    page = Page("t")
    page.text("call `f(x < 1)` twice")
    assert "call <code>f(x &lt; 1)</code> twice" in written(page, tmp_path)


def test_a_figure_is_embedded_and_lies_beside_the_page(tmp_path: Path) -> None:
    page = Page("t")
    page.figure(line(), "line", "A line")
    html = written(page, tmp_path / "new" / "folder")
    png = (tmp_path / "new" / "folder" / "line.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert f'src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="A line"' in html


def test_a_page_needs_no_network_and_fits_phones_and_dark_screens(tmp_path: Path) -> None:
    html = written(Page("t"), tmp_path)
    assert "default-src data:" in html
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html
    assert not re.search(r"(src|href)=|https?:|@import|url\(", html)


def test_a_table_aligns_numbers_and_scrolls(tmp_path: Path) -> None:
    page = Page("t")
    page.table([["a", 0.123456, 60000], ["b", 2.0, 7]], ["name", "share", "count"])
    html = written(page, tmp_path)
    head = '<tr><th>name</th><th class="number">share</th><th class="number">count</th></tr>'
    for words in ("0.1235", "60000", "2.000"):  # floats have as many digits each
        assert f'<td class="number">{words}</td>' in html
    assert f'<div class="wide" tabindex="0"><table>{head}' in html
    assert '<tr><td>a</td><td class="number">0.1235</td><td class="number">60000</td></tr>' in html
    with pytest.raises(ValueError, match="longer than"):
        page.table([["a", 1]], ["one header too few"])


def test_an_equation_is_mathml(tmp_path: Path) -> None:
    page = Page("t")
    page.equation(symbols("p_i ="), fraction("exp ( o_i )", "Σ_j≠k exp ( o_j ) + 2^n"), symbols("~ < 1"))
    html = written(page, tmp_path)
    math = ElementTree.fromstring(html[html.index("<math") : html.index("</math>") + len("</math>")])
    assert [child.tag for child in math] == ["msub", "mo", "mfrac", "mspace", "mo", "mn"]
    above, below = math[2]
    assert "".join(above.itertext()) == "exp(oi)"
    assert [child.tag for child in below] == ["munder", "mi", "mo", "msub", "mo", "mo", "msup"]
    assert [part.text for part in below[0].iter() if part.text] == ["Σ", "j", "≠", "k"]


def test_csv_has_a_header_and_comes_back(tmp_path: Path) -> None:
    rows = [{"name": "a,b", "value": 0.1}, {"name": 'say "c"', "value": 2}]
    path = write_csv(tmp_path / "rows.csv", rows)
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [
            {"name": "a,b", "value": "0.1"},
            {"name": 'say "c"', "value": "2"},
        ]


def test_a_failed_write_leaves_the_old_page_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = written(Page("old"), tmp_path)

    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Page("new").write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == old


def test_the_module_needs_nothing_but_the_standard_library_until_there_is_a_figure() -> None:
    code = f"import runpy, sys; runpy.run_path({report.__file__!r}); sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-S", "-c", code], check=True, timeout=60)
