"""Which files make the cases of the main job: a file, a folder, DICOM studies, or a prepared training set."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..contrasts import CONTRASTS, contrast_in_name, contrast_named, contrasts_in, contrasts_of, speaks_of_contrast
from ..errors import CaseError
from ..files import files_below
from ..text import readable
from ..volumes.find import IMAGE_SUFFIXES, left_unread, refuse_clashes, stem_of, volume_suffix, volumes_below
from .contrast_files import case_of, cases_by_name, cases_of_table, how_to_name, is_table, refuse_present_target
from .splits import SECTIONS
from .studies import DicomBelow, dicom_below, dicom_cases, named_by_folder, uids_of
from .training import DATALIST, listed_ct_window, training_datalist

logger = logging.getLogger(__name__)


def inference_datalist(
    dataset_dir: Any,
    output_dir: Any = None,
    section: str | None = None,
    contrast: str = "CT",
    series_uid: Any = None,
    keep_names: bool = False,
    contrasts: Sequence[str] | None = None,
    use_contrasts: Any = None,
    target_contrast: str | None = None,
) -> list[dict[str, Any]]:
    """The volumes to translate: one file or DICOM series, or every one in a folder and the folders below it.

    Of a prepared training set, which is a folder with a `datalist.json`, these are the sources alone, not the targets
    and masks beside them; CASE is the subject's name.

    DICOM is known by its content, whatever the files are called, and gives one case a study: the series that
    `choose_series` chooses; the log tells why. A study without one gives a case that fails.

    Of one contrast that is not CT, volumes whose names, or else their folders', say another (`contrast_in_name`) are
    left out; the log names them.

    Several `contrasts` are told apart by the names of the files or folders (`cases_by_name`: BIDS, BraTS, IXI,
    `anna_t2.nii.gz`, `anna/t2.nii.gz`), or by a table (`cases_of_table`). Other files are left out. Of a DICOM study
    each contrast is chosen by itself. CASE is the subject's name.

    Args:
        dataset_dir: an image file, a DICOM file or a folder; whatever the command line made of it is read as text.
        output_dir: folder that is left out of the search, so that earlier results are never taken for inputs.
        section: "training", "validation" or "test" of a prepared set; None for all three.
        contrast: of the sources: CT, or what the DICOM series of an MR has to be named (FLAIR).
        series_uid: SeriesInstanceUID of the DICOM series to translate, and nothing else; several as a list or separated
            by commas.
        keep_names: name DICOM cases by their folders, which may be a patient's name.
        contrasts: of the sources in the order of the network's channels, where each case may have several; they take
            the place of `contrast`.
        use_contrasts: those of them to look at, as a list or as "T2,FLAIR"; None for all.
        target_contrast: what is to be made of several: a case that has it among them fails, with the reason.

    Returns:
        `{"image": path, "case": CASE}` for each volume, sorted by path, then those of DICOM, whose `image` is a list of
        the paths of one series in the order of its slices. CASE is the path below `dataset_dir` without extension, `/`
        as `_`; for one file it is the file's name without extension; for DICOM the modality and 12 digits that stand
        for the series' UID, and 12 for the study's where several have a series of that UID. A study without a series to
        translate has the reason as `failure`, and `study` and 12 digits as CASE. With several contrasts the file of
        each that is there is also under `contrast_NAME`, what `StackContrastsd` reads, and `image` is the first.

    Raises:
        CaseError: nothing there, no volume in it, two files of the same CASE, outputs among the inputs, or a series UID
            that is not there.
    """
    root = Path(str(dataset_dir)).expanduser()
    several = contrasts is not None and len(contrasts) > 1
    wanted = [contrast] if contrasts is None else [contrast_named(name) for name in contrasts]
    if several:
        wanted = contrasts_of("use_contrasts", use_contrasts, wanted)
    if output_dir is not None and Path(str(output_dir)).expanduser().resolve() == root.resolve():
        raise CaseError("dataset_dir and output_dir are the same folder; give another output_dir.")
    if (root / DATALIST).is_file():
        items = _listed_sources(root, section, wanted if several else None)
    elif section is not None:
        raise CaseError(f"{root} has no {DATALIST}, so there is no section {section!r} of it; leave section out.")
    elif not root.exists():
        raise CaseError(f"There is no file or folder {root}; check the path.")
    elif several and is_table(root):
        items = cases_of_table(root, wanted)
    else:
        items = _cases_below(root, output_dir, wanted, several, uids_of(series_uid), keep_names)
    if target_contrast is None or not several:
        return items
    return refuse_present_target(items, contrast_named(target_contrast))


def _cases_below(
    root: Path, output_dir: Any, contrasts: Sequence[str], several: bool, uids: Sequence[str], keep_names: bool
) -> list[dict[str, Any]]:
    """The cases of a file, or of a folder that is no prepared set."""
    known = root.is_file() and volume_suffix(root)
    below = DicomBelow([], [], [], []) if known else dicom_below(root, output_dir)
    items = dicom_cases(below.series, contrasts, uids, several)
    files = [] if uids or (items and root.is_file()) else volumes_below(root, output_dir, True, may_clash=several)
    unread = [] if uids or root.is_file() else _unread(root, below, files, output_dir, keep_names)
    if not files and not items and not unread:  # no path: a folder of what is hardly DICOM any more may be a patient's
        raise CaseError(f"The folder of scans holds no volume; give {', '.join(IMAGE_SUFFIXES)} files or DICOM series.")
    if not several and contrasts[0] != "CT":  # a CT is known by its values
        files = _not_named_otherwise(files, contrasts[0], root, may_be_none=root.is_file() or bool(items or unread))
    if several:
        _tell_empty(root, output_dir)
        files = cases_by_name([Path(item["image"]) for item in files], root, contrasts)
        if not files and not items and not unread:
            raise CaseError(
                f"The folder of scans holds no volume whose name tells its contrast; {how_to_name(contrasts)}."
            )
    dicom = named_by_folder(items, root, [item["case"] for item in files]) if keep_names else items
    refuse_clashes([*files, *dicom, *unread])
    return [*files, *dicom, *unread]


def _tell_empty(root: Path, output_dir: Any) -> None:
    """Warn of the folders of subjects that hold no file; they are not named, since DICOM may lie beside them."""
    own = None if output_dir is None else Path(str(output_dir)).expanduser().resolve()
    folders = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    shown = [path for path in folders if not path.name.startswith(".") and path.resolve() != own]
    if empty := sum(not files_below(path, output_dir) for path in shown):
        logger.warning(f"{empty} folders hold no file, so they are no cases; fill or remove them.")


def _unread(
    root: Path, below: DicomBelow, files: Sequence[dict[str, str]], output_dir: Any, keep_names: bool
) -> list[dict[str, Any]]:
    """Items with the reason as `failure` of what may hold a case and is not read."""
    read = {item["image"] for item in files}
    volumes = [path for path in files_below(root, output_dir) if volume_suffix(path) and str(path) not in read]
    items = left_unread([*below.others, *volumes], below.unseen, root)
    if (below.series or below.damaged) and not keep_names:  # beside DICOM, no name of a patient either
        items = [_without_name(item, number) for number, item in enumerate(items, start=1)]
    return [*below.failures, *items]


def _without_name(item: dict[str, Any], number: int) -> dict[str, Any]:
    """An item of what is not read, which is called by a number and, if it is a file, by its suffix."""
    path = Path(item["image"])
    called = f"unread_{number}{path.suffix if os.path.isfile(path) else ''}"
    why = item["failure"].replace(readable(path.name), called)
    return {"image": called, "case": called, "failure": why}  # records name the image, too


def _not_named_otherwise(
    files: Sequence[dict[str, str]], contrast: str, root: Path, may_be_none: bool
) -> list[dict[str, str]]:
    """Without the volumes whose names say that they are of another contrast, or labels; a file given alone stays.

    Where a file's name tells nothing, that of the nearest folder below `root` that does counts.
    """
    named = [(item, _named_contrast(Path(item["image"]), root)) for item in files]
    others = [(item, name) for item, name in named if name not in (None, contrast)]
    if not others:
        return list(files)
    kinds = ", ".join(sorted({name for _, name in others}))
    if len(others) == len(files) and not may_be_none:
        raise CaseError(
            f"The folder of scans holds no volume that may be a {contrast}: by their names the {len(files)} there are"
            f" {kinds}; rename them if they are, or give the folder of the {contrast}."
        )
    if len(files) == 1:
        logger.warning(f"{Path(others[0][0]['image']).name} is taken for a {contrast}, though its name says {kinds}.")
        return list(files)
    listed = ", ".join(Path(item["image"]).name for item, _ in others)
    logger.warning(f"{len(others)} volumes are left out, since their names say {kinds}, not {contrast}: {listed}.")
    return [item for item, name in named if name in (None, contrast)]


def _named_contrast(path: Path, root: Path) -> str | None:
    below = () if path == root else path.relative_to(root).parent.parts
    stem = stem_of(path)
    if contrast_in_name(stem) is None and speaks_of_contrast(stem) and not re.search("flair|tirm", stem.lower()):
        return "unclear"
    told = (contrast_in_name(name) for name in (stem, *reversed(below)))
    return next((name for name in told if name is not None), None)


def inference_ct_window(dataset_dir: Any) -> list[float] | None:
    """HU that 0 and 1 stand for in a prepared training set of CT; None for anything else, which is in HU."""
    root = Path(str(dataset_dir)).expanduser()
    return listed_ct_window(str(root)) if (root / DATALIST).is_file() else None


def _listed_sources(root: Path, section: str | None, contrasts: Sequence[str] | None) -> list[dict[str, str]]:
    """The sources of a prepared set; of several contrasts those that each subject has."""
    sections = [section] if section else SECTIONS
    failures: list[dict[str, str]] = []
    # of several contrasts the target may be any
    needed, known = (("source",), [*contrasts, *CONTRASTS]) if contrasts else (("source", "target"), None)
    entries = [
        entry
        for name in sections
        for entry in training_datalist(str(root), name, needed, contrasts=known, failures=failures)
    ]
    if not entries and not failures:
        raise CaseError(
            f"{root / DATALIST} lists nobody{f' under {section}' if section else ''}; give another section."
        )
    items = [{"image": "", "case": Path(one["subject"]).name, "failure": one["reason"]} for one in failures]
    for entry in entries:
        case = str(entry["subject"])
        if contrasts:
            items.append(case_of(case, contrasts_in(entry), contrasts))
        else:
            items.append({"image": entry["source"], "case": case})
    items.sort(key=lambda item: item["image"])
    refuse_clashes(items)
    return items
