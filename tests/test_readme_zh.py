"""README.zh.md says what README.md says: the same commands and code, and the same numbers in its tables."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))


def test_each_links_the_other_in_its_first_lines() -> None:
    assert "(README.zh.md)" in "".join(ENGLISH.splitlines()[:5])
    assert "(README.md)" in "".join(CHINESE.splitlines()[:5])


def test_commands_and_code_are_equal() -> None:
    blocks = [re.findall(r"```(?:bash|python)\n.*?```", text, re.DOTALL) for text in (ENGLISH, CHINESE)]
    assert blocks[0] == blocks[1]
    spans = [set(re.findall("`[^`\n]+`", outside_of_code(text))) for text in (ENGLISH, CHINESE)]
    assert spans[0] == spans[1]


def test_tables_have_the_same_numbers() -> None:
    tables = [[re.findall(r"\d+(?:[.,]\d+)*", row) for row in rows(text)] for text in (ENGLISH, CHINESE)]
    assert tables[0] == tables[1]


def test_sections_files_and_pictures_are_the_same() -> None:
    for pattern in ("^#+ ", r"[\w/]+\.py\b|^ *[\w/<>]+/ ", r"!\[.*?\]\((.*?)\)", "@@[A-Z]+@@"):
        ours, theirs = (re.findall(pattern, text, re.MULTILINE) for text in (ENGLISH, CHINESE))
        assert ours == theirs, pattern


def outside_of_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def rows(text: str) -> list[str]:
    """The rows of all tables."""
    return [line for line in outside_of_code(text).splitlines() if line.startswith("|")]
