"""Which files make a case, a training pair or a subject: one function for each layout on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from scripts.data.splits import SECTIONS
from scripts.data.training import DATALIST, listed_ct_window, training_datalist
from scripts.files import CaseError

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz")


def inference_datalist(dataset_dir: Any, output_dir: Any = None, section: str | None = None) -> list[dict[str, str]]:
    """The volumes to translate: one file, or every volume in a folder and the folders below it.

    Of a prepared training set, which is a folder with a `datalist.json`, these are the sources alone, not the targets
    and masks beside them; CASE is the subject's name.

    Args:
        dataset_dir: an image file or a folder; whatever the command line made of it is read as text.
        output_dir: folder that is left out of the search, so that earlier results are never taken for inputs.
        section: "training", "validation" or "test" of a prepared set; None for all three.

    Returns:
        `{"image": path, "case": CASE}` for each volume, sorted by path. CASE is the path below `dataset_dir` without
        extension, `/` as `_`; for one file it is the file's name without extension.

    Raises:
        CaseError: nothing there, no volume in it, two files of the same CASE, or outputs among the inputs.
    """
    root = Path(str(dataset_dir)).expanduser()
    if output_dir is not None and Path(str(output_dir)).expanduser().resolve() == root.resolve():
        raise CaseError(f"{root} is both dataset_dir and output_dir; give another output_dir.")
    if (root / DATALIST).is_file():
        return _listed_sources(root, section)
    if section is not None:
        raise CaseError(f"{root} has no {DATALIST}, so there is no section '{section}' of it; leave section out.")
    return volumes_below(root, output_dir)


def volumes_below(root: Path, left_out: Any = None) -> list[dict[str, str]]:
    """A file, or every volume of a folder and the folders below it, whatever it is of; as `inference_datalist`.

    Args:
        root: an image file or a folder.
        left_out: folder that is left out of the search.
    """
    if root.is_file():
        if _suffix(root) is None:
            raise CaseError(f"{root} is no volume this bundle reads; give one of {', '.join(IMAGE_SUFFIXES)}.")
        return [{"image": str(root), "case": case_name(Path(root.name))}]
    if not root.is_dir():
        raise CaseError(f"There is no file or folder {root}; check dataset_dir.")
    files = [path for path in _walk(root, left_out) if _suffix(path) is not None]
    if not files:
        raise CaseError(
            f"The folder {root} holds no volume; dataset_dir wants {', '.join(IMAGE_SUFFIXES)} files, "
            "and DICOM has to be converted first (dcm2niix does it)."
        )
    items = [{"image": str(path), "case": case_name(path.relative_to(root))} for path in files]
    _refuse_clashes(items)
    return items


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
    _refuse_clashes(items)
    return items


def case_name(path: Path) -> str:
    """CASE of a relative path: without extension, folders joined by `_` (`a/b.nii.gz` becomes `a_b`)."""
    text = path.as_posix()
    return text[: len(text) - len(_suffix(path) or "")].replace("/", "_")


def _suffix(path: Path) -> str | None:
    """The suffix by which a volume is known, as it stands in the name; None where it is no volume."""
    name = path.name
    for suffix in IMAGE_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix) and not name.startswith("."):
            return name[-len(suffix) :]
    return None


def _walk(root: Path, left_out: Any) -> list[Path]:
    """Every file below `root` without hidden folders and the folder `left_out`; links are followed, no folder twice."""
    seen = {os.path.realpath(root)}
    if left_out is not None:
        seen.add(os.path.realpath(Path(str(left_out)).expanduser()))
    files = []
    for folder, subfolders, names in os.walk(root, followlinks=True):  # it passes over what may not be read
        here = Path(folder)
        files += [here / name for name in names]
        shown = [here / name for name in subfolders if not name.startswith(".")]
        subfolders.clear()
        for path in sorted(shown, key=lambda path: (path.is_symlink(), path.name)):
            if (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                subfolders.append(path.name)
    return sorted(files)


def _refuse_clashes(items: list[dict[str, str]]) -> None:
    first: dict[str, str] = {}
    for item in items:
        other = first.setdefault(item["case"], item["image"])
        if other != item["image"]:
            raise CaseError(
                f"{other} and {item['image']} would both be named {item['case']} in output_dir; rename one of them."
            )
