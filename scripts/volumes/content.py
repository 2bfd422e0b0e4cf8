"""What a file holds, whatever its name says: files are renamed, packed twice, or never downloaded."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import BinaryIO

import nibabel as nib

from ..errors import CaseError

__all__ = ["check_content", "close_whole", "image_class", "unpacked"]

_PACKED = b"\x1f\x8b"
_BEGINNING = 512  # bytes, enough to tell every kind
_SIZES = {348: nib.Nifti1Image, 540: nib.Nifti2Image}  # of the header, its first number
# how a file begins that is no volume of its name -> the suffixes with which it is one, and what it is and wants
_OTHERS = (
    (rb"\Z", (), "is empty (0 bytes); copy or export it again"),
    (rb"version https://git-lfs", (), "is a pointer of Git LFS and not the volume; fetch that with: git lfs pull"),
    (
        rb"[./]*(\.git)?/annex/objects",
        (),
        "is a pointer of git-annex and not the volume; fetch that with: git annex get, or datalad get",
    ),
    (rb"\s*<(!doctype|html|\?xml)", (), "is a web page and not the volume; download that again"),
    (rb"PK\x03\x04", (), "is a zip archive; unpack it and give what is in it"),
    (rb"\x89PNG|\xff\xd8\xff|II\*\0|MM\0\*", (), "is a picture; give the scan itself"),
    (rb"(?s).{128}DICM", (), "is a DICOM file; give it the suffix .dcm, and give all slices of its series"),
    (rb"NRRD000", (".nrrd", ".nhdr"), "is an NRRD file; give it the suffix .nrrd"),
    (rb"(ObjectType|NDims) *=", (".mha", ".mhd"), "is a MetaImage; give it the suffix .mha"),
)


def unpacked(path: Path) -> BinaryIO:
    """An open file of what is in a file, packed by gzip or not, once or twice, at its beginning."""
    with path.open("rb") as file:
        packed = file.read(2) == _PACKED
    if not packed:
        return path.open("rb")
    file = gzip.GzipFile(path)
    if file.read(2) == _PACKED:
        file.seek(0)
        file = gzip.GzipFile(path, "rb", fileobj=file)
    file.seek(0)
    return file


def image_class(beginning: bytes) -> type[nib.Nifti1Image] | type[nib.MGHImage] | None:
    """nibabel's class of a NIfTI or MGH file in one piece that begins like this; None where it is neither."""
    for order in ("little", "big"):
        if (kind := _SIZES.get(int.from_bytes(beginning[:4], order))) is not None:
            return kind if beginning[kind.header_class.template_dtype.fields["magic"][1] :][:1] == b"n" else None
    return nib.MGHImage if beginning.startswith(b"\0\0\0\1") else None


def check_content(path: Path) -> type[nib.Nifti1Image] | type[nib.MGHImage] | None:
    """`image_class` of a file, packed or not.

    Raises:
        CaseError: it is nothing of what its suffix says, and what it is can be told.
        Exception: whatever a damaged gzip raises.
    """
    with unpacked(path) as file:
        beginning = file.read(_BEGINNING)
    for pattern, suffixes, sentence in _OTHERS:
        if re.match(pattern, beginning, re.IGNORECASE) and not path.name.lower().endswith(suffixes or ("\0",)):
            raise CaseError(f"{path.name} {sentence}.")
    return image_class(beginning)


def close_whole(file: BinaryIO) -> None:
    """Close a file of `unpacked`; a gzip is read to its end, where its checksum stands.

    What others have put after that is no matter.

    Raises:
        gzip.BadGzipFile, EOFError: what was read is not what was packed.
    """
    with file:
        try:
            while isinstance(file, gzip.GzipFile) and file.read(2**20):
                pass
        except gzip.BadGzipFile as error:
            if not str(error).startswith("Not a gzipped file"):
                raise
