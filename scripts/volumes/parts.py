"""Volumes of several files: a header, and voxels in other files beside it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..files import sha256_of_files

__all__ = ["files_of_volume", "sha256_of_volume"]

_PAIR = (".hdr", ".img")
_HEADER = 65536  # bytes, enough for a text header
# the line of a header that names the files of the voxels, which stands last where it begins a list of them
_NAMED = {
    ".mhd": re.compile(r"^ElementDataFile[ \t]*=[ \t]*(.*)", re.IGNORECASE | re.MULTILINE),
    ".nhdr": re.compile(r"^data ?file:[ \t]*(.*)", re.IGNORECASE | re.MULTILINE),
}
_NUMBERED = re.compile(r"%[-+ #0]*\d*d")


def files_of_volume(path: str | os.PathLike) -> list[Path]:
    """The file of a volume, and those beside it that hold its voxels, as far as they are there.

    The others are those of an Analyze or NIfTI pair (.hdr, .img), and what a MetaImage (.mhd) or NRRD (.nhdr) names.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    others: list[Path] = []
    if suffix in _PAIR:
        endings = [ending for name in _PAIR for ending in (name, name.upper())]
        others = [path.with_suffix(ending) for ending in endings if ending.lower() != suffix]
    elif suffix in _NAMED and path.is_file():
        others = [file for name in _named(path, suffix) for file in _matching(path.parent, name)]
    return [path, *dict.fromkeys(file for file in others if file.is_file())]


def sha256_of_volume(path: str | os.PathLike) -> str:
    """`sha256_of_files` of the files of a volume."""
    return sha256_of_files(files_of_volume(path))


def _named(path: Path, suffix: str) -> list[str]:
    """What a text header names: one file, a pattern with a number in it, or a list of files at its end."""
    with path.open("rb") as file:
        header = file.read(_HEADER).decode("utf-8", errors="surrogateescape").replace("\r\n", "\n")
    if (found := _NAMED[suffix].search(header)) is None:
        return []
    value = found[1].strip()
    if value.upper().startswith("LIST"):
        return [line.strip() for line in header[found.end() :].splitlines() if line.strip()]
    return [] if value.upper() == "LOCAL" else [value]


def _matching(folder: Path, name: str) -> list[Path]:
    if (numbered := _NUMBERED.search(name)) is None:
        return [folder / name]
    # "slice%03d.raw 1 20 1": the numbers that follow say which; any other file of that name counts, too
    pattern = name.split()[0].replace(numbered[0], "*")
    return sorted((folder / pattern).parent.glob(Path(pattern).name))
