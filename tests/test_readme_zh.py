"""README.zh.md and docs/*.zh.md say what the English pages say: the same commands, code, and numbers in tables."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ["README", *sorted(f"docs/{path.name[:-6]}" for path in (ROOT / "docs").glob("*.zh.md"))]
Texts = tuple[str, str]


@pytest.fixture(params=NAMES)
def texts(request: pytest.FixtureRequest) -> Texts:
    """A page in English and in Chinese."""
    english, chinese = (ROOT / f"{request.param}{ending}" for ending in (".md", ".zh.md"))
    return english.read_text(encoding="utf-8"), chinese.read_text(encoding="utf-8")


def test_every_page_has_a_chinese_edition() -> None:
    english = {path.name.removesuffix(".md") for path in (ROOT / "docs").glob("*.md") if ".zh." not in path.name}
    assert {f"docs/{name}" for name in english} == set(NAMES[1:])


@pytest.mark.parametrize("name", NAMES)
def test_each_links_the_other_in_its_first_lines(name: str) -> None:
    for ending, other in ((".md", ".zh.md"), (".zh.md", ".md")):
        first = (ROOT / f"{name}{ending}").read_text(encoding="utf-8").splitlines()[:5]
        assert f"({Path(name).name}{other})" in "".join(first)


def test_commands_and_code_are_equal(texts: Texts) -> None:
    blocks = [re.findall(r"```(?:bash|python)\n.*?```", text, re.DOTALL) for text in texts]
    assert blocks[0] == blocks[1]
    spans = [set(re.findall("`[^`\n]+`", outside_of_code(text))) for text in texts]
    assert spans[0] == spans[1]


def test_tables_have_the_same_numbers(texts: Texts) -> None:
    tables = [[re.findall(r"\d+(?:[.,]\d+)*", row) for row in rows(text)] for text in texts]
    assert tables[0] == tables[1]


def test_sections_files_and_pictures_are_the_same(texts: Texts) -> None:
    for pattern in ("^#+ ", r"[\w/]+\.py\b|^ *[\w/<>]+/ ", r"!\[.*?\]\((.*?)\)"):
        ours, theirs = (re.findall(pattern, text, re.MULTILINE) for text in texts)
        assert ours == theirs, pattern


def outside_of_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def rows(text: str) -> list[str]:
    """The rows of all tables."""
    return [line for line in outside_of_code(text).splitlines() if line.startswith("|")]
