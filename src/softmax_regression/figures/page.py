"""Self-contained HTML pages with text, equations (MathML), tables and figures, which a browser opens from a file."""

from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from softmax_regression.figures.drawings import PRODUCER, to_png
from softmax_regression.files import check_writable, write


def write_page(folder: Path, template: Path, figures: Mapping[str, Figure], **values: object) -> Path:
    """Write a page as index.html and its figures as NAME.png into the folder; return the path of the page.

    Args:
        folder: Of the page; it is made if it is missing.
        template: It sets `title` and fills the block `content` of page.html, see there. All values are escaped.
        figures: By the name in the template; phones show a version with the panels below one another.
        values: For the template.
    """
    images = {}
    narrow = {}
    for name, figure in figures.items():
        images[name] = to_png(figure, dpi=160)
        if _stack(figure):
            narrow[name] = to_png(figure)
    loader = FileSystemLoader([template.parent, Path(__file__).parent])
    options: dict[str, Any] = {"extensions": ["jinja2.ext.do"], "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **options)
    environment.filters["url"] = _url
    page = environment.get_template(template.name).render(values, images=images, narrow=narrow, mark=PRODUCER)
    for name, png in images.items():
        write(png, folder / f"{name}.png")
    write(page.encode(), folder / "index.html")
    return folder / "index.html"


def check_output(path: Path, force: bool = False) -> None:
    """Refuse, before the work, a path that cannot be written, or has a file that this project did not write."""
    check_writable(path, may_replace=force or not path.is_file() or PRODUCER.encode() in path.read_bytes()[:2000])


def _stack(figure: Figure) -> bool:
    """Place the panels of a figure below one another, or make a wide one narrower; return False if neither helps."""
    panels = [axes for axes in figure.axes if axes.get_subplotspec()]
    rows, columns, *_ = panels[0].get_subplotspec().get_geometry()  # type: ignore[union-attr]
    wide, high = figure.get_size_inches()
    if columns == 1:
        if len(panels) == 1 and panels[0].axison and wide > max(6, 1.5 * high):
            figure.set_size_inches(0.6 * wide, high)
            return True
        return False
    grid = GridSpec(len(panels), 1, figure)
    for row, axes in enumerate(panels):
        axes.set_subplotspec(grid[row])
        axes.tick_params(labelbottom=True)
    figure.set_size_inches(1.2 * wide / columns, high * len(panels) / rows)
    return True


def _url(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"
