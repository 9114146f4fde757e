import base64
import csv
import os
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from softmax_regression.errors import InputError, StorageError
from softmax_regression.figures.page import check_output, write_page
from softmax_regression.files import write_csv


def line(*panels: int) -> Figure:
    fig = Figure(figsize=(4, 2), layout="constrained")
    for axes in fig.subplots(*panels, squeeze=False).flat:
        axes.plot([0, 1])
    return fig


def written(folder: Path, content: str, figures: Mapping[str, Figure] | None = None, **values: object) -> str:
    """The page of a template of this content."""
    template = folder / "study.html"
    template.write_text(
        f'{{% extends "page.html" %}}{{% set title = title or "t" %}}{{% block content %}}{content}{{% endblock %}}'
    )
    page = write_page(folder / "out", template, figures or {}, **{"title": "", **values})
    return page.read_text(encoding="utf-8")


def size(png: bytes) -> tuple[int, int]:
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])


def test_every_value_is_escaped(tmp_path: Path) -> None:
    content = """<p>{{ title }}</p>{{ pre(title, title) }}{{ pre(title) }}{{ table([[title]], [title]) }}
        {{ figure("line", title ~ '" onload="x') }}"""
    html = written(tmp_path, content, {"line": line()}, title="<script>alert('&')</script>")
    assert "<script" not in html
    assert '" onload' not in html
    assert html.count("&lt;script&gt;") == 10  # title and h1, text, thrice in pre, and twice in table and figure


def test_a_figure_is_embedded_and_lies_beside_the_page(tmp_path: Path) -> None:
    html = written(tmp_path, "{{ figure('line', 'A line') }}", {"line": line()})
    png = (tmp_path / "out" / "line.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert f'src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="A line"' in html
    assert "<source" not in html


def test_a_phone_sees_a_wide_panel_narrower(tmp_path: Path) -> None:
    figure = Figure(figsize=(8, 4))
    figure.subplots().plot([0, 1])
    html = written(tmp_path, "{{ figure('line', 'A line') }}", {"line": figure})
    (narrow,) = re.findall(r'<source[^>]*base64,([^"]*)"', html)
    assert size(base64.b64decode(narrow)) == (480, 400)


@pytest.mark.parametrize(("panels", "stacked"), [((1, 2), 2), ((2, 2), 4), ((1, 3), 3)])
def test_a_phone_sees_panels_below_one_another(panels: tuple[int, int], stacked: int, tmp_path: Path) -> None:
    figure = line(*panels)
    html = written(tmp_path, "{{ figure('line', 'Lines') }}", {"line": figure})
    boxes = [axes.get_position() for axes in figure.axes]  # as drawn last
    assert len({round(box.x0, 6) for box in boxes}) == 1
    assert all(below.y1 < above.y0 for above, below in pairwise(boxes))
    found = re.search(r'<source media="\(max-width: 40rem\)" srcset="data:image/png;base64,([^"]+)"', html)
    assert found
    wide, high = size(base64.b64decode(found.group(1)))
    usual = size((tmp_path / "out" / "line.png").read_bytes())
    rows, columns = panels
    assert wide / high == pytest.approx(1.2 * usual[0] / columns / (usual[1] * stacked / rows), rel=0.01)


def test_a_page_needs_no_network_and_fits_phones_and_dark_screens(tmp_path: Path) -> None:
    html = written(tmp_path, "")
    assert "default-src data:" in html
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html
    assert not re.search(r"(src|href)=|https?:|@import|url\(", html)


def test_what_is_long_is_folded(tmp_path: Path) -> None:
    content = "{{ pre('python train.py fit') }}{{ pre('one\n' * 30) }}{{ pre('a: 1', 'All options') }}"
    html = written(tmp_path, content)
    assert '<pre tabindex="0">python train.py fit</pre>' in html
    assert '<details><summary>31 lines</summary><pre tabindex="0">one\n' in html
    assert '<details><summary>All options</summary><pre tabindex="0">a: 1</pre></details>' in html


def test_a_table_aligns_numbers_and_scrolls(tmp_path: Path) -> None:
    rows = [["a", 0.123456, 60000], ["b", 2.0, 7]]
    html = written(tmp_path, "{{ table(rows, ['name', 'share', 'count']) }}", rows=rows)
    head = '<tr><th>name</th><th class="number">share</th><th class="number">count</th></tr>'
    for words in ("0.1235", "60000", "2.000"):  # floats have as many digits each
        assert f'<td class="number">{words}</td>' in html
    assert f'<div class="wide" tabindex="0"><table>{head}' in html
    assert '<tr><td>a</td><td class="number">0.1235</td><td class="number">60000</td></tr>' in html


def test_csv_has_a_header_and_comes_back(tmp_path: Path) -> None:
    rows = [{"name": "a,b", "value": 0.1}, {"name": 'say "c"', "value": 2}]
    write_csv(tmp_path / "rows.csv", rows)
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [
            {"name": "a,b", "value": "0.1"},
            {"name": 'say "c"', "value": "2"},
        ]


def test_a_name_of_a_file_that_is_no_utf_8_is_written_as_text(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", [{"image": os.fsdecode(b"caf\xe9.png")}])
    assert (tmp_path / "rows.csv").read_text(encoding="utf-8") == "image\ncaf\\udce9.png\n"


def test_a_failed_write_leaves_the_old_page_and_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = written(tmp_path, "old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(StorageError, match="disk full"):
        written(tmp_path, "new")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.html"]
    assert (tmp_path / "out" / "index.html").read_text(encoding="utf-8") == old


def test_only_a_page_or_picture_of_this_project_is_replaced(tmp_path: Path) -> None:
    written(tmp_path, "", {"line": line()})
    for name in ("index.html", "line.png", "absent.png"):
        check_output(tmp_path / "out" / name)
    theirs = tmp_path / "theirs.html"
    theirs.write_text("<html>")
    with pytest.raises(InputError, match="exists and was not written by this project; give --force"):
        check_output(theirs)
    check_output(theirs, force=True)
    with pytest.raises(InputError, match="cannot be written"):
        check_output(theirs / "index.html")
