"""The volumes that are measured: the config's own, the same at 1 mm, and copies of it."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_to_output

_NOISE = (
    4.0  # HU, standard deviation: a scan is not as smooth, nor its file as small, as a volume that was interpolated
)


def write_resampled(source: str | os.PathLike, path: str | os.PathLike, spacing: float = 1.0) -> Path:
    """A head CT on a finer grid, as a scanner stores one: int16, with noise (seed 0).

    Args:
        source: CT in HU.
        path: NIfTI file to write.
        spacing: edge of its voxels, mm.
    """
    resampled = resample_to_output(nib.load(source), (spacing,) * 3, order=1, cval=-1000)
    hu = resampled.get_fdata(dtype=np.float32)
    hu = np.clip(hu + np.random.default_rng(0).normal(0, _NOISE, hu.shape), -1024, 3071)
    nib.save(nib.Nifti1Image(hu.round().astype(np.int16), resampled.affine), path)
    return Path(path)


def copies(path: Path, folder: Path, number: int) -> Path:
    """A folder with a volume under several names; links, so that it takes no room."""
    folder.mkdir(parents=True)
    for n in range(number):
        os.link(path, folder / f"case_{n:03d}.nii.gz")
    return folder
