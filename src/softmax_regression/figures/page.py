"""One self-contained HTML page a study: text, equations (MathML), tables and figures, readable from file://."""

import base64
import csv
import html
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --line: #ccc; --shade: #f4f4f4 }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #ddd; --paper: #16181b; --line: #444; --shade: #22252a }}
}}
body {{ margin: 2rem auto; padding: 0 1rem; max-width: 50rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word }}
h1, h2 {{ line-height: 1.25; margin: 2.5rem 0 .75rem }}
figure {{ margin: 1.5rem 0 }}
img {{ box-sizing: border-box; display: block; width: 100%; padding: .5rem; border-radius: .25rem;
  background: #fff }}
figcaption {{ margin-top: .5rem; font-size: .9rem }}
code, pre {{ font-size: .9em; background: var(--shade); border-radius: .2rem; padding: 0 .2em }}
pre {{ padding: .75rem }}
pre, .wide {{ overflow: auto hidden; margin: 1rem 0 }}
math {{ font-size: 1.15em; padding: .2rem 0 }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }}
th, td {{ padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; white-space: nowrap }}
.number {{ text-align: right }}
</style>
"""


class Page:
    """A page built from top to bottom and written once. All text is escaped; `words` becomes code."""

    def __init__(self, title: str) -> None:
        self._parts = [HEAD.format(title=html.escape(title)), f"<h1>{_inline(title)}</h1>"]
        self._images: dict[str, bytes] = {}

    def heading(self, text: str) -> None:
        """Start a section."""
        self._parts.append(f"<h2>{_inline(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{_inline(text)}</p>")

    def equation(self, *parts: str) -> None:
        """Add a displayed equation made of `symbols` and `fraction`."""
        self._parts.append(f'<div class="wide"><math display="block">{"".join(parts)}</math></div>')

    def preformatted(self, text: str) -> None:
        """Add a command or its output, as it stands."""
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def table(self, rows: Sequence[Sequence[object]], headers: Sequence[str]) -> None:
        """Add a table, numbers to the right and floats to four digits; a wide one scrolls."""
        head = "".join(_cell("th", name, example) for name, example in zip(headers, rows[0], strict=True))
        body = "\n".join(f"<tr>{''.join(_cell('td', value, value) for value in row)}</tr>" for row in rows)
        self._parts.append(f'<div class="wide" tabindex="0"><table><tr>{head}</tr>\n{body}</table></div>')

    def figure(self, fig: "Figure", name: str, caption: str) -> None:
        """Embed a figure and keep it as NAME.png; the caption also stands in for it."""
        buffer = io.BytesIO()
        fig.savefig(buffer, format="png", dpi=180)
        self._images[name] = buffer.getvalue()
        source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        image = f'<img src="{source}" alt="{html.escape(caption)}">'
        self._parts.append(f"<figure>{image}<figcaption>{_inline(caption)}</figcaption></figure>")

    def write(self, folder: Path) -> Path:
        """Write the figures and then index.html into the folder, and return the path of the page."""
        for name, png in self._images.items():
            _replace(folder / f"{name}.png", png)
        return _replace(folder / "index.html", "\n".join(self._parts).encode())


def symbols(text: str) -> str:
    """MathML of space-separated symbols: `Σ_j exp ( o_j )`; a_b is an index, a^b a power, ~ a thin space."""
    return "".join(map(_symbol, text.split()))


def fraction(above: str, below: str) -> str:
    """MathML of a fraction of two rows of `symbols`."""
    return f"<mfrac><mrow>{symbols(above)}</mrow><mrow>{symbols(below)}</mrow></mfrac>"


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write rows that share the keys of the first one, which become the header."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return _replace(path, buffer.getvalue().encode())


def _inline(text: str) -> str:
    return re.sub("`(.+?)`", r"<code>\1</code>", html.escape(text))


def _cell(tag: str, value: object, example: object) -> str:
    """A cell of a column of values like `example`."""
    number = ' class="number"' if isinstance(example, int | float) else ""
    words = f"{value:#.4g}".rstrip(".") if isinstance(value, float) else str(value)
    return f"<{tag}{number}>{_inline(words)}</{tag}>"


def _symbol(text: str) -> str:
    for mark, tag in (("_", "msub"), ("^", "msup")):
        base, found, index = text.partition(mark)
        if base and found:
            row = "".join(map(_symbol, re.findall(r"\w+|\S", index)))
            tag = "munder" if base == "Σ" else tag
            return f"<{tag}>{_symbol(base)}<mrow>{row}</mrow></{tag}>"
    if text == "~":
        return '<mspace width="0.2em"/>'
    tag = "mn" if text[0].isdigit() else "mi" if text.isalnum() and text != "Σ" else "mo"
    return f"<{tag}>{html.escape(text)}</{tag}>"


def _replace(path: Path, data: bytes) -> Path:
    """Write a file that others see whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
