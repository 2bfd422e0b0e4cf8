"""A DICOM series to one NIfTI volume: its values, where they were scanned, and nothing else of its headers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from ..errors import CaseError
from ..files import written_whole
from .grid import even_volume
from .pixels import series_values
from .series import Series, choose_series, find_series, study_of, what_else, what_is_left, why_unusable

logger = logging.getLogger(__name__)

AIR_HU = -1000.0


def convert_dicom(folder: Path, output: Path, **options: float) -> Path:
    """Convert the one volume of a DICOM folder; single slices such as scouts beside it are left out.

    Args:
        folder: with DICOM files, of any name, in it or below it.
        output: file to write, `.nii.gz` or `.nii`; its folder is made.
        options: of `convert`.

    Returns:
        `output`.

    Raises:
        CaseError: no folder, no volume or several, and what `convert` raises.
    """
    convert(only_volume(Path(folder)), Path(output), **options)
    return Path(output)


def only_volume(folder: Path) -> Series:
    """The one series of several slices in a folder and the folders below it.

    Raises:
        CaseError: no folder, none, or several.
    """
    if not folder.is_dir():
        raise CaseError("The DICOM folder is not there; correct the path.")
    volumes = [series for series in find_series(folder) if series.slices > 1]
    volumes = [series for series in volumes if what_else(series) is None] or volumes
    if not volumes:
        raise CaseError("No volume could be made of the DICOM folder, which holds no series of several slices.")
    if len({(one.uid, *study_of(one)) for one in volumes}) > 1:
        raise CaseError(f"The DICOM folder holds {len(volumes)} volumes; give the folder of one series alone.")
    largest = _one_of_a_series(volumes)
    if left := what_is_left(largest, volumes):
        logger.warning(left)
    return largest


def _one_of_a_series(volumes: Sequence[Series]) -> Series:
    """The volume of a series that is meant, as the main job chooses it.

    Raises:
        CaseError: it has stacks of several directions, sizes or spacings, of which none is a CT that can be chosen.
    """
    if any(why_unusable(series) is None for series in volumes):
        return choose_series(volumes)
    largest, *others = volumes
    if any(not other.apart_by and other.stack is not None for other in others):
        raise CaseError(
            f"{largest.name[0].upper()}{largest.name[1:]} holds {len(volumes)} volumes of other directions, sizes or "
            "spacings; export the one that is meant alone."
        )
    return largest


def convert(series: Series, output: Path, max_gap_mm: float = 15.0, max_lean_deg: float = 45.0) -> str | None:
    """Write a DICOM series as NIfTI, whole or not at all.

    Slices of a tilted gantry and uneven gaps come out corrected, on a right-angled even grid. Values keep their unit
    (HU). Neither the file nor an error holds a name out of the DICOM, or that of a file or folder.

    Args:
        series: a stack of parallel slices.
        output: file to write, `.nii.gz` or `.nii`; its folder is made.
        max_gap_mm: the widest gap between two slices that is filled, in mm.
        max_lean_deg: the most that slices may lean, in degrees.

    Returns:
        What was corrected, in words; None where nothing had to be.

    Raises:
        CaseError: slices without a place, missing, unreadable or twice there; gaps or a lean beyond the limits.
    """
    subject = series.name[0].upper() + series.name[1:]
    if series.stack is None:
        raise CaseError(
            f"{subject} does not say where its slices lie, or not in numbers that can be (ImagePositionPatient, "
            "ImageOrientationPatient, PixelSpacing); export it again with them."
        )
    if series.coloured:
        raise CaseError(f"{subject} holds colours, not one value a voxel; give the scan itself.")
    if series.slices < 2:
        raise CaseError(f"{subject} is a single slice; a volume is needed.")
    series.stack.check(series.name, max_gap_mm, max_lean_deg)
    slices = series_values(series)
    background = AIR_HU if series.modality == "CT" else min(float(values.min()) for values in slices)
    volume, affine, corrected = even_volume(slices, series.stack, background)
    _save(volume, affine, Path(output))
    return corrected


def _save(data: np.ndarray, affine: np.ndarray, output: Path) -> None:
    """Write the volume, whole or not at all."""
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    output.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(output) as partial:
        nib.save(image, partial)
