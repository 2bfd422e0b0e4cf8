"""Tables as Excel saves them all over the world, and names that are no UTF-8."""

import json
import os
import unicodedata

import pytest

from scripts.errors import CaseError
from scripts.files import write_whole
from scripts.text import number_in, path_named, read_table, readable

ROWS = [{"subject": "Müller", "file": "a;b.nii", "note": ""}, {"subject": "Anna, Bó", "file": "c.nii", "note": "x"}]


def table(separator, newline="\r\n"):
    return newline.join(
        separator.join(json.dumps(cell, ensure_ascii=False) for cell in cells)
        for cells in (["Subject ", "FILE", "note"], *([*row.values()] for row in ROWS), ["", "", ""])
    )


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_a_table_is_read_whatever_excel_made_of_it(tmp_path, separator, encoding):
    (tmp_path / "t.csv").write_bytes(table(separator).encode(encoding))
    rows = [row for _, row in read_table(tmp_path / "t.csv", ("subject", "file"), ("note",)) if any(row.values())]
    assert rows == ROWS


def test_excel_s_hint_blank_lines_and_old_ends_of_lines(tmp_path):
    for content in ("sep=;\r\n" + table(";"), "\r\n\r\n" + table(";"), table(";", "\r"), table(";", "\n")):
        (tmp_path / "t.csv").write_bytes(content.encode("cp1252"))
        assert read_table(tmp_path / "t.csv", ("subject", "file"))[0][1]["subject"] == "Müller"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"PK\x03\x04...", r"t\.csv is a workbook and no text; save the sheet as CSV UTF-8"),
        (b"\xd0\xcf\x11\xe0...", "is a workbook"),
        (b"", "lacks the column subject and file"),
        (b"subject;path\n", "lacks the column file; its first line is to name subject, file, and where wanted note"),
        (b"subject,file,subject\n", "has the column subject twice"),
        (b"subject,file\na,b,c\n", "line 2, has more cells"),
        (b"subject,file\n" + b'"' + b"a" * 200_000 + b'"', "is no table"),
    ],
)
def test_what_is_no_table_is_told(tmp_path, content, sentence):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(CaseError, match=sentence):
        read_table(tmp_path / "t.csv", ("subject", "file"), ("note",))
    with pytest.raises(CaseError, match=r"none\.csv cannot be read"):
        read_table(tmp_path / "none.csv", ("subject",))


def test_numbers_with_a_comma_are_numbers():
    cells = ("0.81", "0,81", "1.234,5", "-3", "1e-5", "nan")
    assert [number_in(cell) for cell in cells[:5]] == [0.81, 0.81, 1234.5, -3.0, 1e-5]
    assert number_in("nan") != number_in("nan")
    assert [number_in(cell) for cell in ("1,234.5", "1,234,567.8", "1.234.567,8")] == [1234.5, 1234567.8, 1234567.8]
    with pytest.raises(ValueError, match="Mai"):
        number_in("18. Mai")


def test_names_that_are_no_utf8_are_written_as_letters(tmp_path):
    latin = os.fsdecode("Müller €".encode("cp1252"))
    assert readable(latin) == "Müller €"
    assert readable("Müller 李明 \u0308") == "Müller 李明 \u0308"
    assert readable(os.fsdecode(b"\x81")) == "\x81"
    write_whole(tmp_path / "a.html", latin)
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == "Müller €"


@pytest.mark.parametrize(
    "name",
    [
        unicodedata.normalize("NFC", "Jürgen"),
        unicodedata.normalize("NFD", "Jürgen"),
        os.fsdecode("Jürgen".encode("cp1252")),
    ],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_file_is_found_by_its_name_however_its_accents_are_stored(tmp_path, name, form):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).touch()
    for separator in "/\\":
        written = f" in{separator}{unicodedata.normalize(form, 'Jürgen')} "
        assert path_named(tmp_path, written) == tmp_path / "in" / name


def test_a_path_that_names_nothing_is_the_one_that_was_written(tmp_path):
    for written in ("a\\b", "~no_such_user/x", "/not/there", "ü"):
        assert path_named(tmp_path, written) == tmp_path / written
