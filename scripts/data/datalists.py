"""Which files make a case, a training pair or a subject: one function for each layout on disk."""

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
from ..volumes.find import IMAGE_SUFFIXES, refuse_clashes, volume_suffix, volumes_below
from .splits import SECTIONS
from .training import DATALIST, listed_ct_window, training_datalist

logger = logging.getLogger(__name__)


def inference_datalist(
    dataset_dir: Any,
    output_dir: Any = None,
    section: str | None = None,
    contrast: str = "CT",
    series_uid: Any = None,
    keep_names: bool = False,
) -> list[dict[str, Any]]:
    """The volumes to translate: one file or DICOM series, or every one in a folder and the folders below it.

    Of a prepared training set, which is a folder with a `datalist.json`, these are the sources alone, not the targets
    and masks beside them; CASE is the subject's name.

    DICOM is known by its content, whatever the files are called, and gives one case a study: the series that
    `choose_series` chooses; the log tells why. A study without one gives a case that fails.

    Args:
        dataset_dir: an image file, a DICOM file or a folder; whatever the command line made of it is read as text.
        output_dir: folder that is left out of the search, so that earlier results are never taken for inputs.
        section: "training", "validation" or "test" of a prepared set; None for all three.
        contrast: of the sources: CT, or what the DICOM series of an MR has to be named (FLAIR).
        series_uid: SeriesInstanceUID of the DICOM series to translate, and nothing else; several as a list or separated
            by commas.
        keep_names: name DICOM cases by their folders, which may be a patient's name.

    Returns:
        `{"image": path, "case": CASE}` for each volume, sorted by path, then those of DICOM, whose `image` is a list of
        the paths of one series in the order of its slices. CASE is the path below `dataset_dir` without extension, `/`
        as `_`; for one file it is the file's name without extension; for DICOM the modality and 12 digits that stand
        for the series' UID, and 12 for the study's where several have a series of that UID. A study without a series to
        translate has the reason as `failure`, and `study` and 12 digits as CASE.

    Raises:
        CaseError: nothing there, no volume in it, two files of the same CASE, outputs among the inputs, or a series UID
            that is not there.
    """
    root = Path(str(dataset_dir)).expanduser()
    if output_dir is not None and Path(str(output_dir)).expanduser().resolve() == root.resolve():
        raise CaseError("dataset_dir and output_dir are the same folder; give another output_dir.")
    if (root / DATALIST).is_file():
        return _listed_sources(root, section)
    if section is not None:
        raise CaseError(f"{root} has no {DATALIST}, so there is no section {section!r} of it; leave section out.")
    if not root.exists():
        raise CaseError(f"There is no file or folder {root}; check dataset_dir.")
    series = [] if root.is_file() and volume_suffix(root) else _dicom_below(root, output_dir)
    uids = _uids(series_uid)
    if uids:
        several = _in_several_studies(series)
        items = [_dicom_item(one, several) for one in named_series(series, uids, contrast)]
    else:
        items = _dicom_items(series, contrast)
    files = [] if uids or (series and root.is_file()) else volumes_below(root, output_dir, may_be_none=True)
    if not files and not items:  # no path: a folder of what is hardly DICOM any more may be a patient's
        raise CaseError(f"dataset_dir holds no volume; give {', '.join(IMAGE_SUFFIXES)} files or DICOM series.")
    dicom = _named_by_folder(items, root, [item["case"] for item in files]) if keep_names else items
    refuse_clashes([*files, *dicom])
    return [*files, *dicom]


def _dicom_below(root: Path, left_out: Any) -> list[Series]:
    """The DICOM series in a file, or in a folder and the folders below it."""
    paths = [root] if root.is_file() else files_below(root, left_out)
    return series_of(read_headers(path for path in paths if volume_suffix(path) is None))


def _dicom_items(series: Sequence[Series], contrast: str) -> list[dict[str, Any]]:
    """One item a study."""
    items, several = [], _in_several_studies(series)
    for uid, study in groupby(series, key=lambda one: one.study_uid):
        stacks = list(study)
        try:
            chosen = choose_series(stacks, contrast)
        except CaseError as error:
            files = [str(path) for path in stacks[0].files]
            items.append({"image": files, "case": f"study_{digits_of_uid(uid)}", "failure": str(error)})
        else:
            items.append(_dicom_item(chosen, several))
            logger.info(f"{items[-1]['case']}: {why_chosen(chosen, stacks, contrast)}")
    return items


def _in_several_studies(series: Sequence[Series]) -> set[str]:
    """UIDs of series that were not given anew when they were copied into another study."""
    count = Counter(uid for uid, _ in {(one.uid, one.study_uid) for one in series})
    return {uid for uid, studies in count.items() if studies > 1}


def _dicom_item(series: Series, in_several_studies: set[str]) -> dict[str, Any]:
    modality = re.sub(r"[^a-z]", "", series.modality.lower()) or "dicom"
    case = f"{modality}_{digits_of_uid(series.uid)}"
    if series.uid in in_several_studies:
        case += f"_{digits_of_uid(series.study_uid)}"
    return {"image": [str(path) for path in series.files], "case": case}


def _named_by_folder(items: Sequence[dict[str, Any]], root: Path, taken: Sequence[str]) -> list[dict[str, Any]]:
    """The items with their folders as CASE; where two would be called alike, the digits of the series follow."""
    folders = [series_folder(item["image"], root).replace("/", "_") for item in items]
    known = [*folders, *taken]
    return [
        {**item, "case": name if known.count(name) == 1 else f"{name}_{item['case'].partition('_')[2]}"}
        for item, name in zip(items, folders, strict=True)
    ]


def _uids(series_uid: Any) -> list[str]:
    """The UIDs of a list, or of a text with commas; the command line makes either of what was typed."""
    values = [] if series_uid is None else series_uid if isinstance(series_uid, list | tuple) else [series_uid]
    return [uid for value in values for uid in str(value).replace(",", " ").split()]


def inference_ct_window(dataset_dir: Any) -> list[float] | None:
    """HU that 0 and 1 stand for in a prepared training set of CT; None for anything else, which is in HU."""
    root = Path(str(dataset_dir)).expanduser()
    return listed_ct_window(str(root)) if (root / DATALIST).is_file() else None


def _listed_sources(root: Path, section: str | None) -> list[dict[str, str]]:
    entries = [e for name in ([section] if section else SECTIONS) for e in training_datalist(str(root), name)]
    if not entries:
        raise CaseError(
            f"{root / DATALIST} lists nobody{f' under {section}' if section else ''}; give another section."
        )
    items = sorted(({"image": e["source"], "case": str(e["subject"])} for e in entries), key=lambda item: item["image"])
    refuse_clashes(items)
    return items
