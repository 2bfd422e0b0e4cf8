"""Which files are volumes, and what their cases are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CaseError
from ..files import files_below

__all__ = ["IMAGE_SUFFIXES", "case_name", "refuse_clashes", "stem_of", "volume_suffix", "volumes_below"]


IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz")


def volumes_below(root: Path, left_out: Any = None, may_be_none: bool = False) -> list[dict[str, str]]:
    """A file, or every volume of a folder and the folders below it, whatever it is of, but DICOM; see the above.

    Args:
        root: an image file or a folder.
        left_out: folder that is left out of the search.
        may_be_none: no error where the folder holds no volume.
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
        raise CaseError(f"There is no file or folder {root}; check dataset_dir.")
    files = [path for path in files_below(root, left_out) if volume_suffix(path) is not None]
    if not files and not may_be_none:
        raise CaseError(f"The folder {root} holds no volume; give {', '.join(IMAGE_SUFFIXES)} files or DICOM series.")
    items = [{"image": str(path), "case": case_name(path.relative_to(root))} for path in files]
    refuse_clashes(items)
    return items


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
