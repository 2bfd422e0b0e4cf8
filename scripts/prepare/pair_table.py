"""The layout `csv`: a table of pairs, or of subjects with a column for each contrast, for any data set."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..contrasts import CONTRASTS, contrast_named
from ..errors import CaseError
from ..text import path_named, read_table
from ..volumes.find import IMAGE_SUFFIXES, volume_suffix
from .pairs import ContrastSet, Listing, Pair, Subject, Wanted, contrast_problems, safe_name, volume_problem

REQUIRED = ("subject", "source", "target")
_COMMON = ("mask", "labels", "split", "person")
OPTIONAL = (*_COMMON, "source_contrast", "target_contrast")
_SEVERAL = (*_COMMON, "lesion", *(name.lower() for name in CONTRASTS))  # columns of a table of several contrasts
_SPLITS = {name: name for name in ("training", "validation", "test")} | {"train": "training", "val": "validation"}
Row = Mapping[str, str]


def list_table(root: Path, source_contrast: Wanted | None = None, target_contrast: str | None = None) -> Listing:
    """The pairs of a table; default CT to T1.

    Columns: subject, source, target; where wanted mask (of the brain, on the target's grid), labels, split (training,
    validation, test), person, source_contrast, target_contrast; any others are not read. Paths are relative to the
    table; a source or target is a volume or a folder of DICOM. See `read_table` for what a table may be.

    Of several contrasts each has a column in the place of source and target (T1, T2, FLAIR, ...), empty where a subject
    lacks it, and there may be a column lesion; mask, labels and lesion are in the space of the first contrast.

    Args:
        root: the table, or a folder with one .csv file in it.
        source_contrast: of rows that do not say it; those that say another are left out as incomplete. Or the contrasts
            that are wanted.
        target_contrast: likewise.

    Raises:
        CaseError: no such table, or one that contradicts itself: the sentence names the row.
    """
    table = _find_table(root)
    if table is None:
        return [], []
    if isinstance(source_contrast, tuple):
        return _list_contrasts(table, source_contrast)
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


def _list_contrasts(table: Path, contrasts: tuple[str, ...]) -> Listing:
    """The contrasts of each row that are wanted, there and usable; two at least."""
    rows = _rows(table, ("subject",), _SEVERAL)
    if rows and sum(any(row[name.lower()] for row in rows) for name in contrasts) < 2:
        raise CaseError(
            f"{table.name} has no files in two columns of {', '.join(contrasts)}; name a column after each contrast, "
            "or give others as contrasts."
        )
    listed, incomplete = [], []
    for row in rows:
        subject = _contrast_set(row, table.parent, contrasts)
        problems = {name: why for name, file in subject.files.items() if (why := _file_problem(name, file, True))}
        mask_problems = [why for key, file in subject.masks.items() if (why := _file_problem(key, file))]
        mask_problems += [why] if (why := subject.masks_problem(problems)) else []
        kept = subject.without(problems)
        if mask_problems:
            incomplete.append({"subject": subject.subject, "reason": f"{row['subject']}: {mask_problems[0]}."})
            continue
        listed += [kept] if len(kept.files) > 1 else []
        incomplete += contrast_problems(subject.subject, kept.files, problems)
    for column in sorted({key for subject in listed for key in subject.volumes}):
        _refuse_shared_files(listed, column)
    return _with_splits_of_persons(listed, table.name), incomplete


def _contrast_set(row: Row, folder: Path, contrasts: tuple[str, ...]) -> ContrastSet:
    return ContrastSet(
        subject=safe_name(row["subject"]),
        person=row["person"] or row["subject"],
        files={name: path_named(folder, file) for name in contrasts if (file := row[name.lower()])},
        **{key: path_named(folder, row[key]) for key in ("mask", "labels", "lesion") if row[key]},
        split=_SPLITS.get(row["split"].lower()),
    )


def _find_table(root: Path) -> Path | None:
    if root.is_file():
        return root
    tables = sorted(path for path in root.glob("*.csv") if not path.name.startswith("."))
    if len(tables) > 1:
        raise CaseError(f"{root} holds {len(tables)} .csv files; give the one to use.")
    return tables[0] if tables else None


def _rows(table: Path, required: Sequence[str] = REQUIRED, optional: Sequence[str] = OPTIONAL) -> list[Row]:
    """The rows that are not blank, as {column: text}."""
    rows: dict[str, Row] = {}
    for line, row in read_table(table, required, optional):
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
        if path is not None and (problem := _file_problem(column, path, column in ("source", "target"))):
            return problem
    return None


def _file_problem(column: str, path: Path, may_be_dicom: bool = False) -> str | None:
    """Why the file of a column cannot be used, as the end of a sentence; None if it can."""
    if problem := volume_problem(path):
        return f"{problem} (its {column}); correct the path or remove the row"
    if volume_suffix(path) is None and not (path.is_dir() and may_be_dicom):
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


def _refuse_shared_files(pairs: Iterable[Subject], side: str) -> None:
    """A file under two persons would be in training and test at once."""
    first: dict[str, Subject] = {}
    for pair in pairs:
        _, file = pair.volumes.get(side, ("", None))
        other = pair if file is None else first.setdefault(os.path.realpath(file), pair)
        if other.person != pair.person:
            raise CaseError(
                f"{other.subject} and {pair.subject} have the same {side} but are two persons; correct the path, or "
                "give both rows the same person."
            )


def _with_splits_of_persons(pairs: Sequence[Subject], table: str) -> list[Subject]:
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
