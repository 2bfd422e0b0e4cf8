"""docs/what_can_go_wrong.md quotes messages that the code has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

VARIABLE = "…"  # on the page, for what a message fills in
FILLED_IN = "\0"  # the same in the code's strings


def quoted_messages(page: str) -> list[str]:
    """What stands in bold in the first column of the page's tables."""
    first_cells = re.findall(r"^\| (.*?) \|", page, re.MULTILINE)
    return [message for cell in first_cells for message in re.findall(r"\*\*(.+?)\*\*", cell)]


def strings_of(code: str) -> Iterator[str]:
    """Each string of a file but docstrings and format specifications; what an f-string fills in is `FILLED_IN`."""
    nodes = list(ast.walk(ast.parse(code)))
    parts = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    parts |= {id(node.format_spec) for node in nodes if isinstance(node, ast.FormattedValue)}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            parts |= {id(value) for value in node.values}
            if id(node) not in parts:
                yield "".join(value.value if isinstance(value, ast.Constant) else FILLED_IN for value in node.values)
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def is_in(message: str, strings: str) -> bool:
    """Whether a string has the fixed parts of a message in their order."""
    pattern = "[^\n]*".join(re.escape(part.strip()) for part in message.split(VARIABLE))
    return re.search(pattern, strings) is not None


@pytest.fixture(scope="module")
def strings() -> str:
    """The strings of all files in scripts/, one a line."""
    files = sorted((Path(__file__).resolve().parents[1] / "scripts").rglob("*.py"))
    found = [string for file in files for string in strings_of(file.read_text(encoding="utf-8"))]
    return "\n".join(string.replace("\n", " ") for string in found)


def test_page_quotes_messages_of_the_code(bundle_root: Path, strings: str) -> None:
    page = (bundle_root / "docs" / "what_can_go_wrong.md").read_text(encoding="utf-8")

    messages = quoted_messages(page)

    assert len(messages) > 200
    assert [message for message in messages if not is_in(message, strings)] == []


def test_every_row_quotes_a_message(bundle_root: Path) -> None:
    """But for the headings, and for other programs, whose messages stand as code."""
    page = (bundle_root / "docs" / "what_can_go_wrong.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| Message", "| `"))]

    assert [row for row in rows if not quoted_messages(row) or row.count(" | ") != 2] == []


def test_made_up_message_is_not_found(strings: str) -> None:
    assert is_in("There is no file or folder …; check the path.", strings)
    assert not is_in("There is no file or folder …; ask a doctor.", strings)
    assert not is_in("is full of eels", strings)


def test_strings_of_code() -> None:
    code = '"""Not this."""\nraise E(f"{name} has "\n  f"{n:d} voxels; " "stop.")\nx = "one" if y else "two"'

    assert list(strings_of(code)) == [f"{FILLED_IN} has {FILLED_IN} voxels; stop.", "one", "two"]
