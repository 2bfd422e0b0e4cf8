"""The layout `t1`: a JSON list of T1 volumes, whose sources the training simulates (`configs/simulated_ct.json`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CaseError
from .pairs import Listing, Pair, Wanted, safe_name, volume_problem

REQUIRED = ("id", "person", "skull_stripped")


def list_t1(root: Path, source_contrast: Wanted | None, target_contrast: str | None) -> Listing:
    """The subjects of a JSON list of {"id", "person", "T1", "skull_stripped", "T1_labels" where there are some}.

    Paths are relative to the list. T1 is a volume, a folder of DICOM, or an .npz file with the array `vol`.

    Args:
        root: the list, or a folder with a subjects.json in it.
        source_contrast: None: there are no sources.
        target_contrast: T1.

    Raises:
        CaseError: a list that cannot be read, an entry that lacks something, a name twice, another contrast.
    """
    file = root if root.is_file() else root / "subjects.json"
    if not file.is_file():
        return [], []
    if isinstance(source_contrast, tuple):
        raise CaseError("The layout t1 lists a T1 of each subject; give a table with a column for each contrast (csv).")
    if source_contrast is not None or target_contrast != "T1":
        raise CaseError("The layout t1 has no source and T1 as its target; leave the contrasts out.")
    pairs, incomplete = [], []
    for entry in _entries(file):
        if not entry.get("T1"):
            name = safe_name(str(entry["id"]))
            incomplete.append({"subject": name, "reason": f"{name} has no T1; add it or leave the subject out."})
            continue
        pair = _pair(entry, file.parent)
        problems = [volume_problem(path) for path in (pair.target, pair.labels) if path is not None]
        if reason := next(filter(None, problems), None):
            reason = f"{pair.subject}: {reason}; correct the path or leave the subject out."
            incomplete.append({"subject": pair.subject, "reason": reason})
        else:
            pairs.append(pair)
    return pairs, incomplete


def _entries(file: Path) -> list[Mapping[str, Any]]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CaseError(f"{file.name} is not valid JSON ({error}); repair it.") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CaseError(
            f"{file.name} is no list of subjects; give a list of objects with {', '.join(REQUIRED)} and T1."
        )
    for number, entry in enumerate(entries, start=1):
        if missing := [key for key in REQUIRED if key not in entry]:
            raise CaseError(f"Entry {number} of {file.name} lacks {' and '.join(missing)}; add it.")
    return entries


def _pair(entry: Mapping[str, Any], folder: Path) -> Pair:
    return Pair(
        subject=safe_name(str(entry["id"])),
        person=str(entry["person"]),
        source=None,
        target=folder / entry["T1"],
        source_contrast=None,
        target_contrast="T1",
        labels=folder / entry["T1_labels"] if entry.get("T1_labels") else None,
        stripped=bool(entry["skull_stripped"]),
    )
