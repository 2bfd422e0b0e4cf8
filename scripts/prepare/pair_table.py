"""The layout `csv`: a table of pairs, for any data set."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from ..contrasts import contrast_named
from ..errors import CaseError
from ..text import path_named, read_table
from ..volumes.find import IMAGE_SUFFIXES, volume_suffix
from .pairs import Listing, Pair, safe_name, volume_problem

REQUIRED = ("subject", "source", "target")
OPTIONAL = ("mask", "labels", "split", "person", "source_contrast", "target_contrast")
_SPLITS = {name: name for name in ("training", "validation", "test")} | {"train": "training", "val": "validation"}
Row = Mapping[str, str]


def list_table(root: Path, source_contrast: str | None = None, target_contrast: str | None = None) -> Listing:
    """The pairs of a table; default CT to T1.

    Columns: subject, source, target; where wanted mask (of the brain, on the target's grid), labels, split (training,
    validation, test), person, source_contrast, target_contrast; any others are not read. Paths are relative to the
    table; a source or target is a volume or a folder of DICOM. See `read_table` for what a table may be.

    Args:
        root: the table, or a folder with one .csv file in it.
        source_contrast: of rows that do not say it; those that say another are left out as incomplete.
        target_contrast: likewise.

    Raises:
        CaseError: no such table, or one that contradicts itself: the sentence names the row.
    """
    table = _find_table(root)
    if table is None:
        return [], []
    pairs, incomplete = [], []
    for row in _rows(table):
        pair = _pair(row, table.parent, source_contrast or "CT", target_contrast or "T1")
        wanted = zip(("source", "target"), (source_contrast, target_contrast), strict=True)
        if reason := _problem(row, pair, {side: name for side, name in wanted if name}):
            incomplete.append({"subject": pair.subject, "reason": f"{row['subject']}: {reason}."})
        else:
            pairs.append(pair)
    for side in ("source", "target"):
        _refuse_mixture(pairs, side)
        _refuse_shared_files(pairs, side)
    return _with_splits_of_persons(pairs, table.name), incomplete


def _find_table(root: Path) -> Path | None:
    if root.is_file():
        return root
    tables = sorted(path for path in root.glob("*.csv") if not path.name.startswith("."))
    if len(tables) > 1:
        raise CaseError(f"{root} holds {len(tables)} .csv files; give the one to use.")
    return tables[0] if tables else None


def _rows(table: Path) -> list[Row]:
    """The rows that are not blank, as {column: text}."""
    rows: dict[str, Row] = {}
    for line, row in read_table(table, REQUIRED, OPTIONAL):
        if not any(row.values()):
            continue
        _check_row(row, f"{table.name}, line {line},")
        if row["subject"] in rows:
            raise CaseError(f"{table.name} has the subject {row['subject']} twice; give each row its own name.")
        rows[row["subject"]] = row
    return list(rows.values())


def _check_row(row: Row, where: str) -> None:
    if not row["subject"]:
        raise CaseError(f"{where} names no subject; fill in its name.")
    if row["split"].lower() not in _SPLITS | {"": ""}:
        raise CaseError(
            f"{where} has the split {row['split']!r}; write training, validation or test, or leave it empty."
        )


def _pair(row: Row, folder: Path, source_contrast: str, target_contrast: str) -> Pair:
    def path(column: str) -> Path | None:
        return path_named(folder, row[column]) if row[column] else None

    return Pair(
        subject=safe_name(row["subject"]),
        person=row["person"] or row["subject"],
        source=path("source") or folder,
        target=path("target") or folder,
        source_contrast=contrast_named(row["source_contrast"] or source_contrast),
        target_contrast=contrast_named(row["target_contrast"] or target_contrast),
        mask=path("mask"),
        labels=path("labels"),
        split=_SPLITS.get(row["split"].lower()),
    )


def _problem(row: Row, pair: Pair, wanted: Mapping[str, str]) -> str | None:
    """Why a row cannot be used, as the end of a sentence; None if it can."""
    for side in ("source", "target"):
        if not row[side]:
            return f"it has no {side}; fill it in or remove the row"
        if (contrast := getattr(pair, f"{side}_contrast")) != wanted.get(side, contrast):
            return f"its {side} is {contrast}, and {wanted[side]} was asked for"
    if pair.source_contrast == pair.target_contrast:
        return f"source and target are both {pair.source_contrast}; correct the contrasts"
    for column in ("source", "target", "mask", "labels"):
        path = getattr(pair, column)
        if path is None:
            continue
        if problem := volume_problem(path):
            return f"{problem} (its {column}); correct the path or remove the row"
        if volume_suffix(path) is None and not (path.is_dir() and column in ("source", "target")):
            return f"{path.name} (its {column}) is no volume that is read; give {', '.join(IMAGE_SUFFIXES)}"
    return None


def _refuse_mixture(pairs: Iterable[Pair], side: str) -> None:
    """One network learns from one contrast to one."""
    contrasts = sorted({getattr(pair, f"{side}_contrast") for pair in pairs})
    if len(contrasts) > 1:
        raise CaseError(
            f"The {side}s of the table are {' and '.join(contrasts)}, and a training set has one contrast; give "
            f"{side}_contrast to choose."
        )


def _refuse_shared_files(pairs: Iterable[Pair], side: str) -> None:
    """A file under two persons would be in training and test at once."""
    first: dict[str, Pair] = {}
    for pair in pairs:
        other = first.setdefault(os.path.realpath(getattr(pair, side)), pair)
        if other.person != pair.person:
            raise CaseError(
                f"{other.subject} and {pair.subject} have the same {side} but are two persons; correct the path, or "
                "give both rows the same person."
            )


def _with_splits_of_persons(pairs: list[Pair], table: str) -> list[Pair]:
    """A person's rows without a split get that of the rows with one.

    Raises:
        CaseError: a person is on two sides.
    """
    split_of: dict[str, str] = {}
    for pair in pairs:
        if pair.split and split_of.setdefault(pair.person, pair.split) != pair.split:
            raise CaseError(
                f"{table} has the person {pair.person} both in {split_of[pair.person]} and in {pair.split}; a person "
                "belongs to one of them."
            )
    return [replace(pair, split=split_of.get(pair.person)) for pair in pairs]
