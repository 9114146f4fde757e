"""One self-contained HTML page a study: text, equations (MathML), tables and figures, readable from file://."""

import csv
import io
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from softmax_regression.figures.drawings import MARK, to_png
from softmax_regression.files import check_writable, write


class Page:
    """A page built from top to bottom and written once. All text is escaped; `words` becomes code."""

    def __init__(self, title: str) -> None:
        self.title, self._parts, self._images = title, list[tuple[str, object]](), dict[str, bytes]()

    def heading(self, text: str) -> None:
        """Start a section."""
        self._parts.append(("heading", text))

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(("text", text))

    def equation(self, *parts: str) -> None:
        """Add a displayed equation made of `symbols` and `fraction`."""
        self._parts.append(("equation", Markup("".join(parts))))

    def preformatted(self, text: str, summary: str = "") -> None:
        """Add a command or its output, as it stands; folded under its summary, or if it is long."""
        lines = text.count("\n") + 1
        self._parts.append(("preformatted", (text, summary or (f"{lines} lines" if lines > 10 else ""))))

    def table(self, rows: Sequence[Sequence[object]], headers: Sequence[str]) -> None:
        """Add a table, numbers to the right and floats to four digits; a wide one scrolls."""
        self._parts.append(("table", (rows, headers)))

    def figure(self, fig: Figure, name: str, caption: str) -> None:
        """Embed a figure, which a phone shows with its panels below one another, and keep it as NAME.png."""
        self._images[name] = to_png(fig, dpi=160)
        wide, narrow = _url(self._images[name]), _url(to_png(fig)) if _stack(fig) else ""
        self._parts.append(("figure", (wide, narrow, caption)))

    def write(self, folder: Path) -> Path:
        """Write the figures and then index.html into the folder, and return the path of the page."""
        for name, png in self._images.items():
            write(png, folder / f"{name}.png")
        environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
        environment.filters["words"] = _words
        page = environment.get_template("page.html").render(title=self.title, parts=self._parts, mark=MARK)
        write(page.encode(), folder / "index.html")
        return folder / "index.html"


def check_output(path: Path, force: bool = False) -> None:
    """Refuse, before the work, to write a page or picture where `check_writable` says no, or another's is."""
    check_writable(path, ours=force or not path.is_file() or MARK.encode() in path.read_bytes()[:2000])


def symbols(text: str) -> str:
    """MathML of space-separated symbols: `Σ_j exp ( o_j )`; a_b is an index, a^b a power, ~ a thin space."""
    return "".join(map(_symbol, text.split()))


def fraction(above: str, below: str) -> str:
    """MathML of a fraction of two rows of `symbols`."""
    return f"<mfrac><mrow>{symbols(above)}</mrow><mrow>{symbols(below)}</mrow></mfrac>"


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write rows that share the keys of the first one, which become the header."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(buffer.getvalue().encode(), path)
    return path


def _stack(fig: Figure) -> bool:
    """Place the panels of a figure below one another, if there are any side by side."""
    panels = [(axes, spec) for axes in fig.axes if (spec := axes.get_subplotspec())]
    rows, columns = panels[0][1].get_geometry()[:2] if panels else (1, 1)
    if columns > 1:
        grid = GridSpec(len(panels), 1, fig)
        for row, (axes, _) in enumerate(panels):
            axes.set_subplotspec(grid[row])
            axes.tick_params(labelbottom=True)
        wide, high = fig.get_size_inches()
        fig.set_size_inches(1.2 * wide / columns, high * len(panels) / rows)
    return columns > 1


def _url(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"


def _words(value: object) -> Markup:
    text = f"{value:#.4g}".rstrip(".") if isinstance(value, float) else str(value)
    return Markup(re.sub("`(.+?)`", r"<code>\1</code>", str(escape(text))))


def _symbol(text: str) -> str:
    for mark, tag in (("_", "msub"), ("^", "msup")):
        base, found, index = text.partition(mark)
        if base and found:
            row = "".join(map(_symbol, re.findall(r"\w+|\S", index)))
            return f"<{(tag := 'munder' if base == 'Σ' else tag)}>{_symbol(base)}<mrow>{row}</mrow></{tag}>"
    if text == "~":
        return '<mspace width="0.2em"/>'
    tag = "mn" if text[0].isdigit() else "mi" if text.isalnum() and text != "Σ" else "mo"
    return f"<{tag}>{escape(text)}</{tag}>"
