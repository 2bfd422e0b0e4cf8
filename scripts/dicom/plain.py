"""A DICOM series as files that hold nothing but values and places: no name, no compression, no maker's own way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from scripts.dicom.pixels import frame_values
from scripts.dicom.series import Series
from scripts.dicom.stack import Stack

_LEVELS = 65000  # of values that are no whole numbers, over their range


def write_plain(series: Series, folder: Path) -> None:
    """Write each slice of a series as an uncompressed file of one frame, in HU where it is a CT.

    Args:
        series: with a stack.
        folder: to make.

    Raises:
        CaseError: a slice cannot be read.
    """
    slices, (slope, intercept) = _common_scale(_slices(series))
    folder.mkdir()
    for index, stored in enumerate(slices):
        dataset = plain_slice(series.stack, index, stored, series.modality)
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.10g}", f"{intercept:.10g}"
        dataset.save_as(folder / f"{index + 1:06d}.dcm")


def _slices(series: Series) -> list[np.ndarray]:
    """The values of the slices in their order; each file is read once."""
    read: dict[Path, np.ndarray] = {}
    slices = []
    for path, frame in series.frames:
        if path not in read:
            read = {path: frame_values(path, series.name)}
        slices.append(read[path][frame])
    return slices


def _common_scale(slices: list[np.ndarray]) -> tuple[list[np.ndarray], tuple[float, float]]:
    """int16 slices and the slope and intercept of all of them; exact for whole numbers."""
    if all(values.dtype == np.int16 for values in slices):
        return slices, (1.0, 0.0)
    low, high = min(float(values.min()) for values in slices), max(float(values.max()) for values in slices)
    slope, intercept = (high - low) / _LEVELS or 1.0, (high + low) / 2
    return [np.round((values - intercept) / slope).astype(np.int16) for values in slices], (slope, intercept)


def plain_slice(stack: Stack, index: int, stored: np.ndarray, modality: str) -> Any:
    """A `pydicom.FileDataset` of one slice.

    Args:
        stack: where it lies.
        index: of the slice in the stack, from 0.
        stored: (rows, columns) int16.
        modality: CT or MR.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.FileMetaInformationGroupLength = 0  # it is filled in where it stands
    meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.1.{2 if modality == 'CT' else 4}"
    meta.MediaStorageSOPInstanceUID = f"2.25.{index + 1}"
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    slice_ = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128, is_implicit_VR=False)
    slice_.SOPClassUID, slice_.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    slice_.Modality, slice_.ImageType, slice_.PatientPosition = modality, ["ORIGINAL", "PRIMARY", "AXIAL"], "HFS"
    slice_.StudyInstanceUID = slice_.SeriesInstanceUID = slice_.FrameOfReferenceUID = "2.25.1"
    slice_.SeriesNumber, slice_.InstanceNumber = 1, index + 1
    slice_.SliceThickness = f"{np.median(stack.gaps):.6g}"
    slice_.ImagePositionPatient = [f"{number:.10g}" for number in stack.positions[index]]
    slice_.ImageOrientationPatient = [f"{number:.10g}" for number in (*stack.row, *stack.column)]
    slice_.PixelSpacing = [f"{edge:.10g}" for edge in stack.spacing]
    slice_.Rows, slice_.Columns = stack.shape
    slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
    slice_.PixelData = np.ascontiguousarray(stored, dtype="<i2").tobytes()
    return slice_
