"""Files of several contrasts as cases: whose each file is, and what it is of, by its name or by a table."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..contrasts import (
    CONTRASTS,
    agent_in_entity,
    contrast_ending,
    contrast_in_name,
    contrast_key,
    contrast_named,
    contrasts_in,
    is_agent,
    name_before_contrast,
    speaks_of_contrast,
)
from ..dicom.convert import only_volume
from ..dicom.series import contrast_told, series_name
from ..errors import CaseError
from ..text import path_named, read_table
from ..volumes.find import IMAGE_SUFFIXES, stem_of, volume_suffix

__all__ = ["case_of", "cases_by_name", "cases_of_table", "how_to_name", "is_table", "refuse_present_target"]

logger = logging.getLogger(__name__)

_TABLES = (".csv", ".tsv")
_BIDS_SUFFIXES = {"t1w": "T1", "t2w": "T2", "flair": "FLAIR", "pdw": "PD", "ct": "CT"}
_BIDS_OTHERS = ("derivatives", "sourcedata")  # folders beside those of the subjects
_UNTOLD = "untold"
_NO_WEIGHTING = "star|hemo|dwi|diff|perf|dsc|dce|stir|subtr|swi"
# In an entity of BIDS, such as `acq-T2star`, what makes a file none of its suffix's contrast.
_ANOTHER_SCAN = {
    **{name: re.compile(rf"{_NO_WEIGHTING}|t2|flair") for name in ("T1", "T1ce")},
    **{"T2": re.compile(rf"{_NO_WEIGHTING}|t1|flair|gre"), "FLAIR": re.compile("t1")},
    **{"PD": re.compile(rf"{_NO_WEIGHTING}|t1|t2|flair|gre"), "CT": re.compile("(?!)"), _UNTOLD: re.compile("(?!)")},
}

Files = dict[tuple[str, ...], dict[str, list[Path]]]  # whose -> contrast -> its files


def is_table(path: Path) -> bool:
    """Whether a path is a table of files, told by its suffix."""
    return path.is_file() and path.suffix.lower() in _TABLES


def how_to_name(contrasts: Sequence[str]) -> str:
    """What to do where no name tells a contrast, as the end of a sentence."""
    return "end the names in " + ", ".join(map(contrast_ending, contrasts))


def cases_by_name(paths: Iterable[Path], root: Path, contrasts: Sequence[str]) -> list[dict[str, Any]]:
    """One item for all contrasts of a subject, "image" being the first of them; sorted by CASE.

    What a file is of is said by its name, or else by the nearest folder's (`contrast_in_name`). Whose it is: of BIDS
    the subject and session; of others the folders and what stands before the contrast, `anna` of `anna/t2.nii.gz`,
    `anna_t2.nii.gz` and `T2/anna.nii.gz`. Of several BIDS files of a contrast the plainest is taken; several others are
    the subject's failure.

    Args:
        paths: of volumes below `root`, or the root itself.
        root: folder or file that was given.
        contrasts: in the order of the network's channels.

    Returns:
        `{"image": path, "case": CASE, "contrast_T2": path, ...}`, with `failure` where there is no contrast of these.
    """
    paths = list(paths)
    crowded = Counter(path.parent for path in paths)
    found: Files = {}
    left: Counter[str] = Counter()
    for path in paths:
        whose, contrast = _told_by_bids(path, root) or _told_by_name(path, root, crowded[path.parent] == 1)
        if contrast in CONTRASTS:
            found.setdefault(whose, {}).setdefault(contrast, []).append(path)
        else:
            left[contrast] += 1
    _tell_left(left, contrasts)
    for whose, files in found.items():
        _tell_of_other_names("_".join(whose), files)
    return sorted((_item("_".join(w), files, contrasts) for w, files in found.items()), key=lambda one: one["case"])


def _tell_of_other_names(case: str, files: Mapping[str, list[Path]]) -> None:
    """Warn where only the folders say that scans are of one head: `t2/2019` and `flair/2021` may be of two visits."""
    names = {stem_of(path): path for paths in files.values() for path in paths if not contrast_in_name(stem_of(path))}
    if len(files) > 1 and len(names) > 1:
        listed = " and ".join(path.name for path in names.values())
        logger.warning(f"{case}: {listed} are taken for scans of one visit, since their folders say no more; check it.")


def _tell_left(left: Counter[str], contrasts: Sequence[str]) -> None:
    """Name in the log what is no contrast."""
    if unnamed := left.pop(_UNTOLD, 0):
        logger.warning(f"{unnamed} volumes are left out, since no name tells their contrast; {how_to_name(contrasts)}")
    if left:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left.items()))
        logger.info(f"{left.total()} volumes are left out, since by their names they are no scans to use: {kinds}.")


def _told_by_bids(path: Path, root: Path) -> tuple[tuple[str, ...], str] | None:
    """Whose a file of BIDS is and what; None where its name is none of BIDS'."""
    *parts, suffix = stem_of(path).split("_")
    entities = dict(part.lower().split("-", 1) for part in parts if "-" in part)
    if suffix.lower() not in _BIDS_SUFFIXES or not parts or not re.fullmatch(r"sub-[^-]+", parts[0], re.IGNORECASE):
        return None
    folders = () if path == root else path.relative_to(root).parent.parts
    own = next((n for n, name in enumerate(folders) if name.lower().startswith("sub-")), len(folders))
    sessions = [part for part in (*parts, *folders[own + 1 :]) if part.lower().startswith("ses-")]
    above = [name for name in folders[:own] if name.lower() not in ("anat", "ct", "derivatives", "sourcedata")]
    whose = (*above, "_".join([parts[0], *dict.fromkeys(sessions)]))
    if other := next((name for name in folders if name.lower() in _BIDS_OTHERS), None):
        return whose, f"of {other.lower()}"
    contrast = _BIDS_SUFFIXES[suffix.lower()]
    if entities.get("part", "mag") != "mag":
        return whose, "phase"
    return whose, _by_entities(contrast, entities)


def _by_entities(contrast: str, entities: Mapping[str, str]) -> str:
    """What the entities of BIDS make of a contrast."""
    said = {key: value for key, value in entities.items() if key not in ("sub", "ses", "run", "space", "part")}
    if contrast == "T1":
        agents = [agent_in_entity(key, value) for key, value in said.items()]
        contrast = "T1ce" if True in agents else _UNTOLD if None in agents else contrast
    elif contrast != "CT" and agent_in_entity("ce", said.get("ce", "none")):
        return f"{contrast} with contrast agent"
    acquired = " ".join(value for key, value in said.items() if key != "ce")
    return _UNTOLD if _ANOTHER_SCAN[contrast].search(acquired) else contrast


def _told_by_name(path: Path, root: Path, alone: bool) -> tuple[tuple[str, ...], str]:
    """Whose a file is and what, by its name and those of its folders; `alone` is whether its folder has no other."""
    stem, folders = stem_of(path), list(() if path == root else path.relative_to(root).parent.parts)
    contrast, name = contrast_in_name(stem), name_before_contrast(stem)
    if contrast is None:
        told = next((n for n in reversed(range(len(folders))) if speaks_of_contrast(folders[n])), None)
        if speaks_of_contrast(stem) or told is None or contrast_in_name(folders[told]) is None:
            return (), _UNTOLD
        contrast, before = contrast_in_name(folders[told]), name_before_contrast(folders[told])
        name = "" if alone and (folders[:told] or before) else stem
        folders = [*folders[:told], *([before] if before and not name else []), *folders[told + 1 :]]
    elif folders and contrast_in_name(folders[-1]) in (contrast, "T1" if contrast == "T1ce" else contrast):
        # IXI-T1/IXI012-HH-1211-T1, anna/T1/t1 or anna/T1/t1_gd
        before = name_before_contrast(folders.pop())
        folders += [before] if before and not name else []
    elif folders and (kind := _contradicted(contrast, folders[-1])):
        return (), kind
    if folders and re.match(rf"{re.escape(folders[-1])}(?![a-z0-9])", name, re.IGNORECASE):
        folders.pop()
    whose = (*folders, *([name] if name else []))
    return whose or (stem_of(root) if root.is_file() else root.resolve().name,), contrast


def _contradicted(contrast: str, folder: str) -> str | None:
    """What the folder of a file makes of it: `T1_post/anna_t1` is unclear, `swi/anna_t2` is a swi; None for nothing."""
    told = contrast_in_name(folder)
    if contrast == "T1" and (told == "T1ce" or is_agent(folder)):
        return _UNTOLD
    return told if told not in (None, *CONTRASTS) and not name_before_contrast(folder) else None


def _item(case: str, files: Mapping[str, list[Path]], contrasts: Sequence[str]) -> dict[str, Any]:
    """The item of a subject."""
    used = {name: files[name] for name in contrasts if name in files}
    chosen = {name: paths[0] if len(paths) == 1 else _plainest(paths) for name, paths in used.items()}
    if several := next((name for name, path in chosen.items() if path is None), None):
        listed = " and ".join(path.name for path in used[several])
        why = f"{case} has several {several}, {listed}; keep one, or name the one to use in a table of files."
        return {"image": str(used[several][0]), "case": case, "failure": why}
    return case_of(case, {name: str(chosen.get(name, paths[0])) for name, paths in files.items()}, contrasts)


def case_of(case: str, images: Mapping[str, Any], contrasts: Sequence[str]) -> dict[str, Any]:
    """An item of a subject's contrasts, "image" being the first; a `failure` where it has none of these.

    Args:
        case: CASE.
        images: contrast -> path, or paths of a series; there may be others.
        contrasts: in the order of the network's channels.
    """
    used = {contrast_key(name): images[name] for name in contrasts if name in images}
    if used:
        return {"image": next(iter(used.values())), "case": case, **used}
    has = f"it has {', '.join(images)}" if images else "it has no volume at all"
    why = f"{case} has none of {', '.join(contrasts)}: {has}; add one of them, or leave it out."
    return {"image": next(iter(images.values()), ""), "case": case, "failure": why}


def _plainest(paths: Sequence[Path]) -> Path | None:
    """Of BIDS files of one contrast that with the fewest entities, then the lowest run; None of others."""
    if not all(path.name.lower().startswith("sub-") for path in paths):
        return None

    def order(path: Path) -> tuple[int, int, str]:
        parts = stem_of(path).lower().split("_")
        run = next((part.removeprefix("run-") for part in parts if part.startswith("run-")), "0")
        return len([p for p in parts if not p.startswith("run-")]), int(run) if run.isdigit() else 0, path.name

    chosen = min(paths, key=order)
    others = ", ".join(path.name for path in paths if path != chosen)
    logger.warning(f"{chosen.name} is used, which has the fewest entities and the lowest run, not {others}.")
    return chosen


def cases_of_table(table: Path, contrasts: Sequence[str]) -> list[dict[str, Any]]:
    """The cases of a table: a column `subject`, and one for each contrast, with files or folders of DICOM.

    Columns of contrasts are called like these in any spelling (T2, t2w); an empty cell is an absent contrast. Paths are
    relative to the table. See `read_table` for what a table may be.

    Args:
        table: .csv or .tsv.
        contrasts: in the order of the network's channels; other columns are not read.

    Returns:
        As `cases_by_name`, in the order of the rows; a row whose file is not there is a failure.

    Raises:
        CaseError: no such columns, or a subject that is there twice or cannot name a file; the sentence names the line.
    """
    rows = read_table(table, ("subject",))
    columns = _columns(table, rows, contrasts)
    items: dict[str, dict[str, Any]] = {}
    for line, row in rows:
        if not any(row.values()):
            continue
        subject = row["subject"]
        if not subject or Path(subject).name != subject:
            raise CaseError(f"{table.name}, line {line}, has the subject {subject!r}; give a name without folders.")
        if subject in items:
            raise CaseError(f"{table.name} has the subject {subject} twice; give each row its own name.")
        items[subject] = _row_item(subject, {name: row[column] for name, column in columns.items()}, table)
    if not items:
        raise CaseError(f"{table.name} has no row below its first line; fill it in.")
    return list(items.values())


def _columns(table: Path, rows: Sequence[tuple[int, Mapping[str, str]]], contrasts: Sequence[str]) -> dict[str, str]:
    """Contrast -> its column, in the order of the contrasts."""
    found: dict[str, str] = {}
    for column in rows[0][1] if rows else ():
        try:
            name = contrast_named(column)
        except CaseError:
            continue
        if found.setdefault(name, column) != column:
            raise CaseError(f"{table.name} has two columns of {name}, {found[name]} and {column}; keep one.")
    if rows and not set(found) & set(contrasts):
        raise CaseError(f"{table.name} has no column of a contrast; add some of {', '.join(contrasts)}.")
    return {name: found[name] for name in contrasts if name in found}


def _row_item(subject: str, cells: Mapping[str, str], table: Path) -> dict[str, Any]:
    """The item of a row, whose filled cells are contrast -> path."""
    images: dict[str, Any] = {}
    for name, cell in cells.items():
        if cell:
            path = path_named(table.parent, cell)
            shown = str(path) if volume_suffix(path) else ""  # a folder may be called like a patient
            try:
                images[name] = _image(path, f"{subject}, {name}")
            except CaseError as error:
                return {"image": shown, "case": subject, "failure": f"{subject}, {name}: {error}"}
            if twin := next((one for one in images if one != name and images[one] == images[name]), None):
                why = f"{subject} has the same file under {twin} and {name}; correct the table."
                return {"image": shown, "case": subject, "failure": why}
    return case_of(subject, images, list(cells))


def _image(path: Path, called: str) -> Any:
    """A volume's path, or the paths of the series in a folder; `called` is subject and contrast, for a warning."""
    contrast = called.rpartition(", ")[2]
    if path.is_dir():
        series = only_volume(path)
        if (told := contrast_told(series)) not in (None, contrast):
            logger.warning(f"{called}: the DICOM series is described as {told}; check the table.")
        return [str(file) for file in series.files]
    if not path.is_file():
        raise CaseError(f"{_shown(path)} is not there; correct its path in the table.")
    if volume_suffix(path) is None:
        kinds = ", ".join(IMAGE_SUFFIXES)
        raise CaseError(f"{_shown(path)} is no volume that is read; give {kinds} or a DICOM folder.")
    if (told := contrast_in_name(stem_of(path))) in CONTRASTS and told != contrast:
        logger.warning(f"{called}: {path.name} is named as {told}; check the table.")
    return str(path)


def _shown(path: Path) -> str:
    """How a sentence calls a cell's file: a folder, or what may be DICOM, may be called like a patient."""
    return path.name if volume_suffix(path) else "what the table names"


def refuse_present_target(items: Iterable[dict[str, Any]], target: str) -> list[dict[str, Any]]:
    """The items, with a `failure` where the contrast that is to be made is among the sources already."""
    return [_refused(item, target) if target in contrasts_in(item) else item for item in items]


def _refused(item: Mapping[str, Any], target: str) -> dict[str, Any]:
    image = item[contrast_key(target)]
    file = series_name(image) if isinstance(image, list) else Path(image).name
    others = [name for name in contrasts_in(item) if name != target]
    nevertheless = f", or make one of the others by use_contrasts {','.join(others)}" if others else ""
    why = f"{item['case']} has a {target} already, {file}; ask for another target_contrast{nevertheless}."
    return {"image": item["image"], "case": item["case"], "failure": why}
