"""The synthetic volume as a NIfTI file that lies where its source lies."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
import torch

from ..volumes.load import open_image, stored_placement

__all__ = ["nifti_like", "nifti_on_grid", "write_nifti"]

NIFTI_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img")
# the fields of a NIfTI header that say where a voxel lies; nothing else is copied, since text fields may hold names
GEOMETRY_FIELDS = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)


class _RunLengthGzip(io.RawIOBase):
    """A gzip file, written only, that is the same for the same bytes.

    Of its matches zlib looks for runs alone: interpolated brains hold no others, and the background is one run. That
    takes half the time of gzip's quickest level, and the file is 2 % smaller.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._deflate = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
        self._written = 0

    def write(self, data: bytes) -> int:
        self._file.write(self._deflate.compress(data))
        self._written += len(data)
        return len(data)

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Forwards only, over zeros."""
        self.write(bytes(position - self._written))
        return position

    def tell(self) -> int:
        return self._written

    def close(self) -> None:
        if not self.closed:
            self._file.write(self._deflate.flush())
        super().close()


def write_nifti(image: nib.Nifti1Image, path: Path) -> None:
    """Write an image as .nii.gz."""
    with open(path, "wb") as file, _RunLengthGzip(file) as packed:
        image.to_stream(packed)


def nifti_like(
    volume: torch.Tensor,
    source_file: Path,
    affine: np.ndarray,
    dtype: type = np.float32,
    largest: float = 1.0,
    code: int = 1,
) -> nib.Nifti1Image:
    """A NIfTI of (H, W, Z) voxels that lies exactly where the source lies.

    Args:
        volume: the voxels, in the order of the source's.
        source_file: where a NIfTI source's sform, qform and codes are taken from. Where they contradict each other, the
            affine that was decided on is both of them.
        affine: voxel to RAS+ mm, for a source of another format; written as sform and qform.
        dtype: of the voxels.
        largest: what a viewer shows as white.
        code: of sform and qform for a source of another format; 1 is the scanner's space.
    """
    array = np.asarray(torch.as_tensor(volume).detach().cpu(), dtype=dtype)
    image = nib.Nifti1Image(array, affine)
    header = None
    if source_file.name.lower().endswith(NIFTI_SUFFIXES):
        source = open_image(source_file)
        placement = stored_placement(source, source_file.name)
        header, code = source.header if placement.as_stored else None, placement.code
    if isinstance(header, nib.Nifti1Header):
        image = nib.Nifti1Image(array, None)
        for field in GEOMETRY_FIELDS:
            image.header[field] = header[field]
        image.header["pixdim"][:4] = header["pixdim"][:4]
    else:
        image = nifti_on_grid(array, affine, code)
    image.header["cal_max"] = largest
    return image


def nifti_on_grid(volume: torch.Tensor | np.ndarray, affine: np.ndarray, code: int = 1) -> nib.Nifti1Image:
    """A NIfTI of (H, W, Z) voxels on a grid of its own, in mm.

    Args:
        volume: the voxels; 1.0 is what a viewer shows as white.
        affine: voxel to RAS+ mm, written as sform and qform.
        code: of both; 1 is the scanner's space.
    """
    image = nib.Nifti1Image(np.asarray(volume), np.asarray(affine, dtype=np.float64))
    image.set_sform(image.affine, code=code)
    image.set_qform(image.affine, code=code)
    image.header.set_xyzt_units("mm")
    image.header["cal_max"] = 1.0
    return image
