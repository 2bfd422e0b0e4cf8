"""What a folder of results holds: the cases, their files, records and figures, and what failed."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..contrasts import contrast_ending, contrast_named
from ..dicom.series import Series, find_series, series_record
from ..errors import CaseError
from ..evaluation.pairs import real_endings
from ..files import sha256_if_there
from ..text import number_in, path_named, read_table
from ..volumes.find import IMAGE_SUFFIXES, stem_of

_OPTIONAL = ("real", "source", "mask", "target_contrast")
SUMMARY_ROWS = ("mean", "std")  # rows of subjects.csv that are no subject


@dataclass
class Case:
    """One synthetic image and what belongs to it.

    Attributes:
        name: CASE, or the subject of an evaluation; with its contrast where the results are of several.
        synthetic: its file.
        real, source, mask: files, where there are any; the mask is the brain's, and a DICOM source is a list of files.
        uncertainty: the file of the synthetic image's standard deviation, where there is one.
        record: the JSON that the main job wrote beside it; empty where there is none.
        figures: of the synthetic image against the real one, by name.
        notes: what the page has to say about missing files, one sentence each.
        warnings: what is odd about it that its record does not tell, one sentence each.
        target_contrast: what the synthetic image is of.
        subject: what its real image is named like; the name without its contrast.
    """

    name: str
    synthetic: Path
    real: Path | None = None
    source: Path | list[str] | None = None
    mask: Path | None = None
    record: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    target_contrast: str = "T1"
    subject: str = ""
    uncertainty: Path | None = None


def list_cases(
    results_dir: Path, source_dirs: Iterable[Path] = (), real: Path | None = None
) -> tuple[list[Case], list[dict[str, str]]]:
    """The cases of an evaluation folder (`cases.csv`), else those of the main job's output folder.

    Args:
        results_dir: the folder.
        source_dirs: where the main job's sources may be, folders or files; each is known by its SHA-256.
        real: folder of real images named like the case, or one image where there is one case.

    Returns:
        the cases, and {"case", "file", "reason"} of those whose record or files are damaged or not there.

    Raises:
        CaseError: no folder, or nothing in it to report.
    """
    if not results_dir.is_dir():
        raise CaseError(f"{results_dir} is no folder; give the output folder of the main job or of an evaluation.")
    if (results_dir / "cases.csv").is_file():
        cases, failures = _evaluated_cases(results_dir)
    else:
        cases, failures = _translated_cases(results_dir)
        dicom = any((case.record.get("source") or {}).get("series_uid") for case in cases)
        series = [one for folder in source_dirs for one in find_series(folder)] if dicom else []
        for case in cases:
            case.source = _find_source(case, source_dirs, series)
    if not cases and not failures:
        raise CaseError(
            f"{results_dir} holds no case: neither an image CASE_CONTRAST.nii.gz with its JSON, nor a cases.csv; "
            "give the output folder of the main job or of an evaluation."
        )
    for case in cases:
        beside = case.synthetic.with_name(f"{stem_of(case.synthetic)}_uncertainty.nii.gz")
        case.uncertainty = beside if beside.is_file() else None
    if real is not None and cases:
        _find_real(cases, real)
    return cases, failures


def list_failures(results_dir: Path) -> list[dict[str, str]]:
    """The cases that failed, {"case", "file", "reason"}; none where there is no such file.

    They stand in failures.json, or for each section of a cohort in a file such as failures_3_of_16.json.
    """
    files = [results_dir / "failures.json", *sorted(results_dir.glob("failures_*_of_*.json"))]
    return [failure for path in files if path.is_file() for failure in _read_failures(path)]


def _read_failures(path: Path) -> list[dict[str, str]]:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        return [
            {"case": str(f.get("case", f.get("subject", ""))), "file": str(f.get("file", "")), "reason": f["reason"]}
            for f in listed
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CaseError(f"{path} is no list of failures; remove it, or run the main job again.") from None


def _translated_cases(results_dir: Path) -> tuple[list[Case], list[dict[str, str]]]:
    """Each JSON with an image of the same name beside it; and those whose JSON is damaged."""
    cases, failures = [], []
    for path in sorted(results_dir.glob("*.json")):
        image = path.with_suffix(".nii.gz")
        if not image.is_file():
            continue
        try:
            record = _read_record(path)
            contrast = contrast_named(record.get("target_contrast") or "T1")
        except CaseError as error:
            failures.append({"case": path.stem, "file": path.name, "reason": str(error)})
            continue
        subject = path.stem.removesuffix(contrast_ending(contrast))
        cases.append(Case(subject, image, record=record, target_contrast=contrast, subject=subject))
    return _named_apart(cases), failures


def _named_apart(cases: list[Case]) -> list[Case]:
    """The cases with names that differ: of several contrasts each bears its own."""
    if len({case.target_contrast for case in cases}) > 1:
        for case in cases:
            case.name = f"{case.name} ({case.target_contrast})"
    counts = Counter(case.name for case in cases)
    for case in cases:
        if counts[case.name] > 1:
            case.name = stem_of(case.synthetic)
    return cases


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CaseError(f"{path.name} is not valid JSON ({error}); translate the case again.") from None
    if not isinstance(record, dict):
        raise CaseError(f"{path.name} is no record of a case; translate the case again.")
    return record


def _evaluated_cases(results_dir: Path) -> tuple[list[Case], list[dict[str, str]]]:
    """The rows of cases.csv, with the figures of subjects.csv; and those of which a file is damaged or not there."""
    figures = _read_figures(results_dir / "subjects.csv")
    cases, failures = [], []
    for line, row in read_table(results_dir / "cases.csv", ("subject", "synthetic"), _OPTIONAL):
        try:
            cases.append(_evaluated_case(row, results_dir, figures.get(row["subject"], {})))
        except CaseError as error:
            name = row["subject"] or f"line {line} of cases.csv"
            failures.append({"case": name, "file": row["synthetic"], "reason": str(error)})
    return cases, failures


def _evaluated_case(row: Mapping[str, str], results_dir: Path, figures: dict[str, float]) -> Case:
    """A row with the JSON beside its synthetic image."""
    if not row["subject"] or not row["synthetic"]:
        raise CaseError("The row has no subject or no synthetic image; evaluate again.")
    kinds = ("synthetic", "real", "source", "mask")
    files = {key: path_named(results_dir, row[key]) for key in kinds if row[key]}
    for key, path in files.items():
        if not path.is_file():
            raise CaseError(f"The {key} of {row['subject']}, {path}, is not there; evaluate again.")
    path = files["synthetic"].with_name(f"{stem_of(files['synthetic'])}.json")
    record = _read_record(path) if path.is_file() else {}
    return Case(
        row["subject"],
        **files,
        record=record,
        figures=figures,
        target_contrast=contrast_named(row["target_contrast"] or record.get("target_contrast") or "T1"),
        subject=row["subject"],
    )


def _read_figures(path: Path) -> dict[str, dict[str, float]]:
    """Subject -> figures by name; cells that are no finite number are left out."""
    if not path.is_file():
        return {}
    rows = [row for _, row in read_table(path, ("subject",))]
    return {row["subject"]: _numbers(row) for row in rows if row["subject"] not in SUMMARY_ROWS}


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    numbers = {}
    for name, cell in row.items():
        try:
            value = number_in(cell)
        except ValueError:
            continue
        if name and name != "subject" and math.isfinite(value):
            numbers[name] = value
    return numbers


def _find_source(case: Case, source_dirs: Iterable[Path], series: Sequence[Series]) -> Path | list[str] | None:
    """The file or DICOM series that the record names, where one of the folders has it with the same checksum."""
    named = case.record.get("source") or {}
    if named.get("series_uid"):
        return _find_files(case, [one for one in series if one.uid == named["series_uid"]])
    name, digest = str(named.get("file", "")), named.get("sha256")
    changed = False
    for folder in source_dirs:
        path = folder if folder.is_file() and folder.name == Path(name).name else folder / name
        if name and sha256_if_there(path) == digest:
            return path
        changed |= bool(name) and path.is_file()
    case.notes.append(
        "The source is not shown: the file of that name is another one than was translated."
        if changed
        else "The source is not shown: its folder was not given (--dataset_dir)."
    )
    return None


def _find_files(case: Case, stacks: Sequence[Series]) -> list[str] | None:
    """The files of the stack that was translated, of those that have its UID."""
    for stack in stacks:
        files = [str(path) for path in stack.files]
        if series_record(files)["sha256"] == case.record["source"].get("sha256"):
            return files
    case.notes.append(
        "The source is not shown: the DICOM series of that UID is another one than was translated."
        if stacks
        else "The source is not shown: the folder of its DICOM series was not given (--dataset_dir)."
    )
    return None


def _find_real(cases: list[Case], real: Path) -> None:
    """Give each case the real image that is named like it.

    Raises:
        CaseError: nothing at that path, or not one real image for any case.
    """
    if real.is_file():
        if len(cases) > 1:
            raise CaseError(f"{real} is one image for {len(cases)} cases; give a folder of them, named like the cases.")
        cases[0].real = real
        return
    if not real.is_dir():
        raise CaseError(f"{real} is not there; give the folder of the real images, named like the cases.")
    for case in cases:
        endings = (*real_endings(case.target_contrast), "")
        names = [f"{case.subject}{ending}{suffix}" for ending in endings for suffix in IMAGE_SUFFIXES]
        case.real = next((real / name for name in names if (real / name).is_file()), case.real)
        if case.real is None:
            case.notes.append("There is no real image named like this case.")
    if all(case.real is None for case in cases):
        raise CaseError(f"{real} has no image named like a case, for example {cases[0].subject}.nii.gz; rename them.")
