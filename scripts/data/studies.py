"""DICOM studies as cases: which series of each is translated, and what the case is called."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ..contrasts import contrast_key
from ..dicom.headers import read_contents
from ..dicom.series import (
    Series,
    choose_series,
    digits_of_uid,
    named_series,
    series_folder,
    series_of,
    study_of,
    what_is_left,
    why_chosen,
)
from ..errors import CaseError
from ..files import files_below
from ..volumes.find import volume_suffix

__all__ = ["DicomBelow", "dicom_below", "dicom_cases", "named_by_folder", "uids_of"]

logger = logging.getLogger(__name__)


_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True, eq=False)
class DicomBelow:
    """What a file, or a folder and the folders below it, holds beside volumes that are known by their suffix.

    Attributes:
        series: the DICOM series.
        damaged: files that are marked as DICOM, or called so, and cannot be read.
        others: files that are no DICOM.
        unseen: hidden files and folders, and folders that may not be read.
    """

    series: list[Series]
    damaged: list[Path]
    others: list[Path]
    unseen: list[Path]

    @property
    def failures(self) -> list[dict[str, Any]]:
        """One item for all files that are damaged; none of them is named, nor are folders."""
        if not self.damaged:
            return []
        count = len(self.damaged)
        why = (
            f"{count} {'file is' if count == 1 else 'files are'} marked or named as DICOM and cannot be read: empty, "
            "cut off, damaged or without permission; export the study again, or remove them."
        )
        return [{"image": [str(path) for path in self.damaged], "case": "damaged_dicom", "failure": why}]


def dicom_below(root: Path, left_out: Any = None) -> DicomBelow:
    """Look for DICOM, which is known by its content, whatever the files are called.

    Args:
        root: a file or folder.
        left_out: folder that is left out of the search.
    """
    unseen: list[Path] = []
    paths = [root] if root.is_file() else files_below(root, left_out, unseen)
    contents = read_contents(path for path in paths if volume_suffix(path) is None)
    called = {path for path in contents.others if path.name.lower().removesuffix(".gz").endswith(_DICOM_SUFFIXES)}
    others = [path for path in contents.others if path not in called]
    return DicomBelow(series_of(contents.headers), sorted([*contents.damaged, *called]), others, unseen)


def dicom_cases(
    series: Sequence[Series], contrasts: Sequence[str], uids: Sequence[str] = (), several: bool | None = None
) -> list[dict[str, Any]]:
    """`{"image": paths of a series' slices, "case": CASE}` for each study, or for each of the series that are named.

    A study whose images name several patients is as many studies, and their CASEs end in `_p1`, `_p2` and so on.

    With several contrasts a study's item also has the paths of each that it has, under its `contrast_key`, and "image"
    is the first of them. A study without a series to translate has the reason as `failure`.

    Args:
        series: as of `dicom_below`.
        contrasts: what is translated, CT or contrasts of MR.
        uids: SeriesInstanceUIDs, of one contrast; none to choose a series of each study.
        several: whether a case has several contrasts; None where there is more than one.

    Raises:
        CaseError: no such series, or series named for several contrasts.
    """
    copied = _in_several_studies(series)
    several = len(contrasts) > 1 if several is None else several
    if uids:
        if several:
            raise CaseError("series_uid names series of one contrast; leave it out where several are translated.")
        return [_case(one, copied) for one in named_series(series, uids, contrasts[0])]
    studies = [list(study) for _, study in groupby(series, key=study_of)]
    for uid, patients in Counter(stacks[0].study_uid for stacks in studies).items():
        if patients > 1:
            logger.warning(
                f"The images of the DICOM study {uid} name {patients} patients, each of whom is a case of its own; "
                "check whose they are."
            )
    return [_study_case(stacks, contrasts, copied, several) for stacks in studies]


def _study_case(stacks: list[Series], contrasts: Sequence[str], copied: set[str], several: bool) -> dict[str, Any]:
    """The item of one study; a contrast that it lacks is left out, unless it lacks them all."""
    uid = stacks[0].study_uid
    chosen, reasons = {}, []
    for contrast in contrasts:
        try:
            chosen[contrast] = choose_series(stacks, contrast)
        except CaseError as error:
            reasons.append(str(error))
    if not chosen:
        files = [str(path) for path in stacks[0].files]
        case = f"study_{digits_of_uid(uid)}{_patient(stacks[0])}"
        return {"image": files, "case": case, "failure": " ".join(reasons)}
    item = _case(next(iter(chosen.values())), copied)
    for contrast, one in chosen.items():
        what = f"{contrast}, " if several else ""
        logger.info(f"{item['case']}: {what}{why_chosen(one, stacks, contrast)}")
        if left := what_is_left(one, stacks):
            logger.warning(left)
        if several:
            item[contrast_key(contrast)] = [str(path) for path in one.files]
    return item


def _case(series: Series, in_several_studies: set[str]) -> dict[str, Any]:
    modality = re.sub(r"[^a-z]", "", series.modality.lower()) or "dicom"
    case = f"{modality}_{digits_of_uid(series.uid)}"
    if series.uid in in_several_studies:
        case += f"_{digits_of_uid(series.study_uid)}"
    return {"image": [str(path) for path in series.files], "case": case + _patient(series)}


def _patient(series: Series) -> str:
    """What tells the cases of a study's patients apart."""
    return f"_p{series.patient}" if series.patient else ""


def _in_several_studies(series: Sequence[Series]) -> set[str]:
    """UIDs of series that were not given anew when they were copied into another study."""
    count = Counter(uid for uid, _ in {(one.uid, one.study_uid) for one in series})
    return {uid for uid, studies in count.items() if studies > 1}


def named_by_folder(items: Sequence[dict[str, Any]], root: Path, taken: Sequence[str]) -> list[dict[str, Any]]:
    """The items with their folders as CASE; where two would be called alike, the digits of the series follow."""
    folders = [series_folder(item["image"], root).replace("/", "_") for item in items]
    known = [*folders, *taken]
    return [
        {**item, "case": name if known.count(name) == 1 else f"{name}_{item['case'].partition('_')[2]}"}
        for item, name in zip(items, folders, strict=True)
    ]


def uids_of(series_uid: Any) -> list[str]:
    """The UIDs of a list, or of a text with commas; the command line makes either of what was typed."""
    values = [] if series_uid is None else series_uid if isinstance(series_uid, list | tuple) else [series_uid]
    return [uid for value in values for uid in str(value).replace(",", " ").split()]
