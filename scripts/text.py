"""Text from elsewhere: tables as Excel saves them, and names of files that are no UTF-8."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from .errors import CaseError, machine_reason

__all__ = ["as_on_disk", "number_in", "path_named", "read_table", "readable", "table_text"]

_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # how .xlsx (or .ods) and .xls files begin


def readable(text: str) -> str:
    """Text that can be written as UTF-8.

    Python gives bytes of a file's name that are no UTF-8 as lone surrogates. They become what they most likely are,
    letters of Windows (cp1252); other text stays as it is.
    """
    return re.sub("[\udc80-\udcff]+", lambda found: _decoded(found[0].encode("utf-8", "surrogateescape")), text)


def _decoded(content: bytes) -> str:
    try:
        return content.decode("cp1252")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def path_named(folder: Path, text: str) -> Path:
    """The file or folder that a text names, such as a cell of a table; relative to `folder`.

    Where there is none of exactly that name it is looked for as other systems write it: accents in one character or in
    two (macOS), bytes of Windows, backslashes between folders. Where there is none at all: the path as it was written.
    """
    written = text.strip()
    names = [name for one in (written, written.replace("\\", "/")) for name in _spellings(one)]
    paths = [folder / os.path.expanduser(name) for name in dict.fromkeys(names)]
    return next((path for path in paths if os.path.lexists(path)), paths[0])


def as_on_disk(text: str) -> str:
    """A path that is typed, in the spelling of its accents that is on the disk; as it was typed where there is none."""
    return next((name for name in _spellings(text) if os.path.lexists(name)), text)


def _spellings(name: str) -> list[str]:
    """A name as it is, with composed and decomposed accents, and with the bytes of Windows."""
    spellings = [name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)]
    with contextlib.suppress(UnicodeEncodeError):
        spellings.append(os.fsdecode(unicodedata.normalize("NFC", name).encode("cp1252")))
    return spellings


def number_in(cell: str) -> float:
    """The number in a cell; Excel writes a decimal comma in much of Europe. Of comma and point the last is decimal.

    Raises:
        ValueError: there is none.
    """
    thousands = "," if cell.rfind(",") < cell.rfind(".") else "."
    return float(cell.replace(thousands, "").replace(",", ".") if "," in cell else cell)


def read_table(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table that are not blank, each with the number of its line.

    Comma, semicolon or tab between the cells; UTF-8, UTF-16 or the code page of Windows, with or without a byte order
    mark. The first line names the columns, in small or capital letters, in any order; others than those asked for are
    kept.

    Args:
        path: of the table.
        required: names of columns that it has to have.
        optional: names of columns that it may have.

    Returns:
        (line, {column: text without spaces around it, "" where there is none}).

    Raises:
        CaseError: it cannot be read, is no table, lacks a column or has one twice, or a row is longer than the first.
    """
    text = table_text(path)
    first, _, below = text.lstrip("\r\n").partition("\n")
    declared = re.fullmatch(r"\"?sep=(.)\"?", first.strip())  # Excel's own hint
    content = below if declared else text.lstrip("\r\n")
    known = (*required, *optional)
    delimiter = declared[1] if declared else _delimiter(content, known)
    lines = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter)
    try:
        header = [cell.strip().lower() for cell in next(lines, [])]
        _check_header(path, header, required, optional)
        return [(lines.line_num, _row(path, header, cells, known, lines.line_num)) for cells in lines if any(cells)]
    except csv.Error as error:
        raise CaseError(f"{path.name} is no table ({error}); save it as CSV UTF-8.") from error


def table_text(path: Path) -> str:
    """The text of a table, whatever its bytes.

    Raises:
        CaseError: it cannot be read, or is a workbook and no text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CaseError(
            machine_reason(error, path.name) or f"{path.name} cannot be read ({error.strerror}); check the path."
        ) from error
    if content.startswith(_WORKBOOKS):
        raise CaseError(f"{path.name} is a workbook and no text; save the sheet as CSV UTF-8.")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    if b"\0" in content[:100]:
        return content.decode("utf-16-le" if content[1:2] == b"\0" else "utf-16-be", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return _decoded(content)


def _delimiter(text: str, known: Sequence[str]) -> str:
    """The one by which the first line holds the most known columns, or else the most cells."""
    first = next(iter(text.splitlines()), "")

    def found(delimiter: str) -> tuple[int, int]:
        cells = next(csv.reader([first], delimiter=delimiter), [])
        return sum(cell.strip().lower() in known for cell in cells), len(cells)

    return max(",;\t", key=found)


def _check_header(path: Path, header: list[str], required: Sequence[str], optional: Sequence[str]) -> None:
    if missing := [name for name in required if name not in header]:
        wanted = f", and where wanted {', '.join(optional)}" if optional else ""
        raise CaseError(
            f"{path.name} lacks the column {' and '.join(missing)}; its first line is to name "
            f"{', '.join(required)}{wanted}."
        )
    if twice := [name for name in (*required, *optional) if header.count(name) > 1]:
        raise CaseError(f"{path.name} has the column {twice[0]} twice; keep one.")


def _row(path: Path, header: list[str], cells: list[str], known: Sequence[str], line: int) -> dict[str, str]:
    cells = [cell.strip() for cell in cells]
    if any(cells[len(header) :]):
        raise CaseError(
            f"{path.name}, line {line}, has more cells than the first line; put quotes round a text that holds the "
            "separator."
        )
    return dict.fromkeys(known, "") | dict(zip(header, cells, strict=False))
