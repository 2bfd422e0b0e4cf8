"""DICOM studies as cases: which series of each is translated, and what the case is called."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ..dicom.headers import read_headers
from ..dicom.series import Series, choose_series, digits_of_uid, named_series, series_folder, series_of, why_chosen
from ..errors import CaseError
from ..files import files_below
from ..volumes.find import volume_suffix
from .training import contrast_key

__all__ = ["dicom_cases", "named_by_folder", "series_below", "uids_of"]

logger = logging.getLogger(__name__)


def series_below(root: Path, left_out: Any = None) -> list[Series]:
    """The DICOM series in a file, or in a folder and the folders below it.

    Args:
        root: a file or folder; DICOM is known by its content.
        left_out: folder that is left out of the search.
    """
    paths = [root] if root.is_file() else files_below(root, left_out)
    return series_of(read_headers(path for path in paths if volume_suffix(path) is None))


def dicom_cases(series: Sequence[Series], contrasts: Sequence[str], uids: Sequence[str] = ()) -> list[dict[str, Any]]:
    """`{"image": paths of a series' slices, "case": CASE}` for each study, or for each of the series that are named.

    With several contrasts a study's item also has the paths of each that it has, under its `contrast_key`, and "image"
    is the first of them. A study without a series to translate has the reason as `failure`.

    Args:
        series: as by `series_below`.
        contrasts: what is translated, CT or contrasts of MR.
        uids: SeriesInstanceUIDs, of one contrast; none to choose a series of each study.

    Raises:
        CaseError: no such series, or series named for several contrasts.
    """
    several = _in_several_studies(series)
    if uids:
        if len(contrasts) > 1:
            raise CaseError("series_uid names series of one contrast; leave it out where several are translated.")
        return [_case(one, several) for one in named_series(series, uids, contrasts[0])]
    studies = [(uid, list(study)) for uid, study in groupby(series, key=lambda one: one.study_uid)]
    return [_study_case(uid, stacks, contrasts, several) for uid, stacks in studies]


def _study_case(uid: str, stacks: list[Series], contrasts: Sequence[str], several: set[str]) -> dict[str, Any]:
    """The item of one study; a contrast that it lacks is left out, unless it lacks them all."""
    chosen, reasons = {}, []
    for contrast in contrasts:
        try:
            chosen[contrast] = choose_series(stacks, contrast)
        except CaseError as error:
            reasons.append(str(error))
    if not chosen:
        files = [str(path) for path in stacks[0].files]
        return {"image": files, "case": f"study_{digits_of_uid(uid)}", "failure": " ".join(reasons)}
    item = _case(next(iter(chosen.values())), several)
    for contrast, one in chosen.items():
        what = f"{contrast}, " if len(contrasts) > 1 else ""
        logger.info(f"{item['case']}: {what}{why_chosen(one, stacks, contrast)}")
        if len(contrasts) > 1:
            item[contrast_key(contrast)] = [str(path) for path in one.files]
    return item


def _case(series: Series, in_several_studies: set[str]) -> dict[str, Any]:
    modality = re.sub(r"[^a-z]", "", series.modality.lower()) or "dicom"
    case = f"{modality}_{digits_of_uid(series.uid)}"
    if series.uid in in_several_studies:
        case += f"_{digits_of_uid(series.study_uid)}"
    return {"image": [str(path) for path in series.files], "case": case}


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
