"""README.zh.md and docs/*.zh.md say what the English pages say: the same commands, code, and numbers in tables."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.name.removesuffix(".zh.md") for path in (ROOT / "docs").glob("*.zh.md"))
NAMES = ["README"]
NAMES.extend(f"docs/{page}" for page in PAGES)
CODE = re.compile("```.*?```", re.DOTALL)
TYPED = re.compile("```(?:bash|python)\n.*?```", re.DOTALL)
Texts = tuple[str, str]


@pytest.fixture(params=NAMES)
def texts(request: pytest.FixtureRequest) -> Texts:
    """A page in English and in Chinese."""
    english = ROOT / f"{request.param}.md"
    chinese = ROOT / f"{request.param}.zh.md"
    return english.read_text(encoding="utf-8"), chinese.read_text(encoding="utf-8")


def numbers_in_tables(text: str) -> list[list[str]]:
    """The numbers of each row of all tables."""
    numbers = []
    for line in CODE.sub("", text).splitlines():
        if line.startswith("|"):
            numbers.append(re.findall(r"\d+(?:[.,]\d+)*", line))
    return numbers


def code_spans(text: str) -> set[str]:
    """What stands between backticks, outside of blocks."""
    return set(re.findall("`[^`\n]+`", CODE.sub("", text)))


def test_every_page_has_a_chinese_edition() -> None:
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name.removesuffix(".md").removesuffix(".zh") in PAGES


@pytest.mark.parametrize("name", NAMES)
def test_each_links_the_other_in_its_first_lines(name: str) -> None:
    for ending, other in ((".md", ".zh.md"), (".zh.md", ".md")):
        first = (ROOT / f"{name}{ending}").read_text(encoding="utf-8").splitlines()[:5]
        assert f"({Path(name).name}{other})" in "".join(first)


def test_commands_and_code_are_equal(texts: Texts) -> None:
    english, chinese = texts
    assert TYPED.findall(english) == TYPED.findall(chinese)
    assert code_spans(english) == code_spans(chinese)


def test_tables_have_the_same_numbers(texts: Texts) -> None:
    english, chinese = texts
    assert numbers_in_tables(english) == numbers_in_tables(chinese)


@pytest.mark.parametrize("pattern", ["^#+ ", r"[\w/]+\.py\b|^ *[\w/<>]+/ ", r"!\[.*?\]\((.*?)\)"])
def test_sections_files_and_pictures_are_the_same(texts: Texts, pattern: str) -> None:
    english, chinese = texts
    found = re.findall(pattern, english, re.MULTILINE)
    assert found == re.findall(pattern, chinese, re.MULTILINE)
