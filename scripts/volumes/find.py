"""Which files are volumes, and what their cases are called."""

from __future__ import annotations

import logging
import mimetypes
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib

from ..errors import CaseError
from ..files import files_below
from ..text import readable

__all__ = ["IMAGE_SUFFIXES", "case_name", "left_unread", "refuse_clashes", "stem_of", "tell_unread", "volume_suffix"]
__all__ += ["volumes_below"]

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".hdr")
# what may hold a case, and is not read
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".z", ".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar", ".iso")
_VOLUMES = (".img", ".mgh", ".mnc", ".par", ".rec", ".head", ".brik", ".gipl", ".vtk", ".vti", ".ecat", ".xif", ".pic")
_TEXTS = (".csv", ".tsv", ".json", ".txt", ".xml", ".log", ".md", ".html", ".py", ".raw", ".svg")


def volumes_below(
    root: Path, left_out: Any = None, may_be_none: bool = False, may_clash: bool = False
) -> list[dict[str, str]]:
    """A file, or every volume of a folder and the folders below it, whatever it is of, but DICOM; see the above.

    Args:
        root: an image file or a folder.
        left_out: folder that is left out of the search.
        may_be_none: no error where the folder holds no volume.
        may_clash: no error where two get the same CASE, as for those who tell cases apart otherwise.
    """
    if root.is_file():
        if volume_suffix(root) is None:
            # no path: what cannot be read as DICOM any more may be called like a patient
            kinds = ", ".join(IMAGE_SUFFIXES)
            raise CaseError(
                f"The file given is no volume this bundle reads, or damaged; give {kinds} or DICOM, unpacked."
            )
        return [{"image": str(root), "case": case_name(Path(root.name))}]
    if not root.is_dir():
        raise CaseError(f"There is no file or folder {root}; check the path.")
    files = [path for path in files_below(root, left_out) if volume_suffix(path) and not _pair_problem(path)]
    if not files and not may_be_none:
        raise CaseError(f"The folder {root} holds no volume; give {', '.join(IMAGE_SUFFIXES)} files or DICOM series.")
    items = [{"image": str(path), "case": case_name(path.relative_to(root))} for path in files]
    if not may_clash:
        refuse_clashes(items)
    return items


def left_unread(files: Iterable[Path], unseen: Iterable[Path], root: Path) -> list[dict[str, str]]:
    """Items, with the reason as `failure`, for the files below a folder that may hold a case and cannot be read.

    Those are volumes in formats that are not read, halves of pairs, archives, which are never opened, and folders that
    may not be read. What else is there is counted in the log.

    Args:
        files: below `root`, but those that are read.
        unseen: hidden files and folders, and folders that may not be read.
        root: the folder.
    """
    reasons = {path: _why_unread(path) for path in files}
    hidden = {path for path in unseen if path.name.startswith(".")}
    _count([path for path, why in reasons.items() if why is None], hidden)
    return _unread_items(reasons, set(unseen) - hidden, root)


def tell_unread(root: Path) -> None:
    """Warn of each file below a folder that `left_unread` would list, where something else is read by its name."""
    unseen: list[Path] = []
    files = files_below(root, unseen=unseen)
    reasons = {path: _why_unread(path) for path in files if _pair_problem(path) or not volume_suffix(path)}
    locked = [path for path in unseen if not path.name.startswith(".")]
    for item in _unread_items(reasons, locked, root):
        logger.warning(item["failure"])


def _unread_items(reasons: Mapping[Path, str | None], locked: Iterable[Path], root: Path) -> list[dict[str, str]]:
    items = [_failed(path, root, f"{readable(path.name)} {why}.") for path, why in reasons.items() if why]
    for path in sorted(locked):
        items.append(_failed(path, root, f"The folder {readable(path.name)} may not be read; change its permissions."))
    return items


def _failed(path: Path, root: Path, why: str) -> dict[str, str]:
    """The item of a file; its CASE has the suffix, so that it is nobody else's."""
    case = readable(path.relative_to(root).as_posix().replace("/", "_"))
    return {"image": str(path), "case": case, "failure": why}


def _count(others: Sequence[Path], hidden: Collection[Path]) -> None:
    if others:
        kinds = Counter(map(_kind, others))
        most = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
        logger.info(f"{len(others)} files are no volumes and were passed over ({most}).")
    if hidden:
        logger.info(f"{len(hidden)} hidden files and folders, whose names begin with a dot, were passed over.")


def _kind(path: Path) -> str:
    """The suffix of a file, for the log; of one that is none of a kind of files not even that: it may be a name."""
    suffix = path.suffix.lower()
    known = suffix in _TEXTS or suffix in mimetypes.types_map
    return (suffix if known else "of other kinds") if suffix else "without suffix"


def _why_unread(path: Path) -> str | None:
    """What keeps a file that may hold a case from being read, and what to do; None where it can hold none."""
    name, suffix = path.name.lower(), path.suffix.lower()
    if name.endswith(".hdr"):
        return _pair_problem(path)
    if name.endswith(".img") and not os.path.exists(path.with_suffix("").with_suffix(".hdr")):
        return None if _has_header(path) else "is the half of a pair, whose .hdr is not there; add it"
    if suffix in _PACKED and Path(path.stem).suffix.lower() not in _TEXTS:
        return "is packed, and archives are not opened; unpack it and give what is in it"
    if suffix in _VOLUMES and not _has_header(path):
        return f"is in a format that is not read; convert it to one of {', '.join(IMAGE_SUFFIXES)}"
    return None


def _has_header(path: Path) -> bool:
    """Whether another file is the header of this one, which is read with it."""
    return any(os.path.exists(path.with_suffix(suffix)) for suffix in (".hdr", ".HDR", ".mhd", ".nhdr"))


def _pair_problem(path: Path) -> str | None:
    """What keeps a .hdr/.img pair from being read, as the end of a sentence; None where nothing does, or it is none."""
    if not path.name.lower().endswith(".hdr"):
        return None
    if not any(os.path.exists(path.with_suffix(suffix)) for suffix in (".img", ".IMG")):
        return "is the half of a pair, whose .img is not there; add it"
    if any(os.path.exists(path.with_name(stem_of(path) + end)) for end in IMAGE_SUFFIXES if end != ".hdr"):
        return "is named like another volume beside it; rename one of them, or remove the copy"
    try:
        header = nib.load(path).header
    except Exception:  # whatever nibabel makes of another kind of file
        return "is no header of a NIfTI pair, or damaged; give the volume as .nii.gz"
    if not isinstance(header, nib.Nifti1Header):
        return "is an Analyze pair, which does not say which side is left; convert it to NIfTI where that is known"
    if not (int(header["sform_code"]) or int(header["qform_code"])):
        return "does not say which side is left (sform and qform code 0); convert it again where that is known"
    return None


def case_name(path: Path) -> str:
    """CASE of a relative path: without extension, folders joined by `_` (`a/b.nii.gz` becomes `a_b`)."""
    return path.with_name(stem_of(path)).as_posix().replace("/", "_")


def volume_suffix(path: Path) -> str | None:
    """The suffix by which a volume is known, as it stands in the name; None where it is no volume."""
    name = path.name
    for suffix in IMAGE_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix) and not name.startswith("."):
            return name[-len(suffix) :]
    return None


def stem_of(path: str | Path) -> str:
    """A file's name without folders and without the suffix of a volume; the whole name where it has no such suffix."""
    path = Path(path)
    return path.name[: len(path.name) - len(volume_suffix(path) or "")]


def refuse_clashes(items: Sequence[dict[str, Any]]) -> None:
    first: dict[str, Any] = {}
    for item in items:
        other = first.setdefault(item["case"], item["image"])
        if other != item["image"]:
            both = " and ".join(name if isinstance(name, str) else "a DICOM series" for name in (other, item["image"]))
            raise CaseError(f"{both} would both be named {item['case']} in output_dir; rename one of them.")
