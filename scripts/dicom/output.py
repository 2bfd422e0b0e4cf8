"""The synthetic volume as a DICOM series: MR slices at the places of the source's, in its study."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy.ndimage import map_coordinates

from .grid import TOLERANCE_MM
from .headers import quiet_pydicom
from .mr_header import MAX_STORED, series_header, slice_header
from .source import SourceSlice, source_slices, stack_of
from .stack import Stack

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["CheckDicomSourced", "DicomSeriesWriter"]

logger = logging.getLogger(__name__)

_APART_MM = TOLERANCE_MM + 1e-3  # and rounding
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


class DicomSeriesWriter:
    """Writes a synthetic volume as one series of MR Image Storage, a file for each slice of the source series.

    Each slice has the rows, columns, spacing, orientation and position of the source's, so that a viewer shows both at
    the same place. Where the volume is the source's slices one upon the other, voxels are taken as they are; where the
    source was corrected (gantry tilt, uneven gaps), the volume is sampled (linear, 0 outside) at each source pixel.
    Files are 0001.dcm and so on in the order of the source's, Explicit VR Little Endian, integers 0 to 4095 for [0, 1].
    UIDs follow from what the files hold: the same input and settings give the same bytes, anything else other UIDs.

    Of a sparse scan, whose dense volume is given (`sparse` in the record), the series has slices of the volume's own
    spacing from the first source slice to the last, each with the rows and columns of the nearest source slice.

    Args:
        manufacturer: who makes this software.
    """

    def __init__(self, manufacturer: str) -> None:
        self.manufacturer = manufacturer

    def __call__(
        self, image: nib.Nifti1Image, source: Any, record: Mapping[str, Any], folder: Path
    ) -> dict[str, int | str]:
        """Write the series of one case.

        Args:
            image: the volume, (H, W, Z) in [0, 1], with its affine to RAS+ mm.
            source: what it was made from, a MetaTensor with `dicom_files` (paths in slice order) and `series_uid`.
            record: what it was made with: `bundle`, `bundle_version`, `weights`, `weights_sha256`, `source_contrast`,
                `target_contrast` and any other setting; `sparse`, `{"gap_mm", "spacing_mm"}`, where the image lies
                on a dense grid between the slices of a sparse scan.
            folder: is made; the files go into it.

        Returns:
            `series_uid` of the new series and the number of `files`.

        Raises:
            CaseError: the source is no DICOM series, or misses what a series beside it needs.
        """
        from pydicom.uid import generate_uid

        quiet_pydicom()
        made = self._slices(image, source_slices(source), record)
        digest = _digest(made, record)
        series_uid = generate_uid(entropy_srcs=[digest])
        folder.mkdir(parents=True)
        for index, ds in enumerate(made, start=1):
            ds.SeriesInstanceUID = series_uid
            ds.SOPInstanceUID = generate_uid(entropy_srcs=[digest, str(index)])
            ds.save_as(folder / f"{index:04d}.dcm", enforce_file_format=True)
        return {"series_uid": str(series_uid), "files": len(made)}

    def _slices(
        self, image: nib.Nifti1Image, slices: Sequence[SourceSlice], record: Mapping[str, Any]
    ) -> list[Dataset]:
        """The slices with everything but UIDs of their own."""
        first, stack, numbers = slices[0].header, stack_of(slices), _numbers(slices)
        if not first.get("FrameOfReferenceUID"):
            logger.warning(
                f"The DICOM series {first.SeriesInstanceUID} names no frame of reference; viewers may not lay the "
                "synthetic series over it."
            )
        series = series_header(first, self.manufacturer, record)
        if "sparse" in record:
            slices, stack = _between(slices, stack, record["sparse"]["spacing_mm"])
            numbers = range(1, len(slices) + 1)
        taken = _taken(image, stack)
        planes = taken if taken is not None else _sampled(image, stack)
        made = []
        for number, one, plane in zip(numbers, slices, planes, strict=True):
            ds = slice_header(series, one, number, sampled=taken is None)
            stored = np.round(np.clip(plane.astype(np.float64), 0, 1) * MAX_STORED).astype(np.uint16)
            ds.set_pixel_data(stored, "MONOCHROME2", bits_stored=12, generate_instance_uid=False)
            made.append(ds)
        return made


class CheckDicomSourced(MapTransform):
    """Refuses, before anything is computed, a volume beside which no DICOM series could be written.

    Args:
        keys: keys of the volumes, MetaTensors as loaded; they come back as they are.
        allow_missing_keys: no error where a key is missing.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check the volume at each key.

        Raises:
            CaseError: see `source_slices`.
        """
        for key in self.key_iterator(data):
            source_slices(data[key])
        return dict(data)


def _numbers(slices: Sequence[SourceSlice]) -> list[int]:
    """The source's instance numbers, so that both series sort alike; counted from 1 where they are not of use."""
    try:
        numbers = [int(one.header.InstanceNumber) for one in slices]
    except (AttributeError, TypeError, ValueError):
        numbers = []
    return numbers if len(set(numbers)) == len(slices) else list(range(1, len(slices) + 1))


def _between(slices: Sequence[SourceSlice], stack: Stack, spacing_mm: float) -> tuple[list[SourceSlice], Stack]:
    """Slices that far apart from the first of a stack to its last, each made of the nearest one, and their stack."""
    heights = stack.positions @ stack.normal
    places = np.arange(heights[0], heights[-1] + 1e-3, spacing_mm)
    positions = np.stack([np.interp(places, heights, along) for along in stack.positions.T], axis=-1)
    nearest = np.abs(places[:, None] - heights).argmin(axis=1)
    made = [_moved(slices[index], at, spacing_mm) for index, at in zip(nearest, positions, strict=True)]
    return made, replace(stack, positions=positions)


def _moved(source: SourceSlice, position: np.ndarray, spacing_mm: float) -> SourceSlice:
    """A slice of the same rows and columns at another position, LPS mm."""
    from pydicom import Dataset
    from pydicom.valuerep import DSfloat

    place = Dataset()
    place.PixelSpacing, place.ImageOrientationPatient = source.place.PixelSpacing, source.place.ImageOrientationPatient
    place.ImagePositionPatient = [DSfloat(float(x), auto_format=True) for x in position]
    place.SliceThickness = place.SpacingBetweenSlices = DSfloat(spacing_mm, auto_format=True)
    return replace(source, place=place, inferred=True)


def _pixels(stack: Stack, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """RAS mm of pixels of every slice, (N, ..., 3), by their row and column indices (...) (C.7.6.2.1.1)."""
    between_rows, between_columns = stack.spacing
    in_slice = rows[..., None] * stack.column * between_rows + columns[..., None] * stack.row * between_columns
    return (stack.positions.reshape(-1, *[1] * rows.ndim, 3) + in_slice) * _LPS_TO_RAS


def _taken(image: nib.Nifti1Image, stack: Stack) -> np.ndarray | None:
    """The image as the stack's (N, rows, columns), by flips and permutation alone; None where that is not possible.

    It is where the image has the stack's shape, and each voxel lies at its pixel or by 0.1 mm beside it: the conversion
    leaves slices as they are that are so nearly upright and even.
    """
    count = len(stack.positions)
    (first, down), (right, _) = _pixels(stack, *np.mgrid[:2, :2])[0]
    through = (stack.positions[-1] - stack.positions[0]) / (count - 1) * _LPS_TO_RAS
    affine = nib.affines.from_matvec(np.stack([right - first, down - first, through], axis=1), first)
    turned = image.as_reoriented(nib.io_orientation(np.linalg.solve(affine, image.affine)))
    if turned.shape != (*stack.shape, count):
        return None
    rows, columns = np.array([0, stack.shape[0] - 1])[[0, 0, 1, 1]], np.array([0, stack.shape[1] - 1])[[0, 1, 0, 1]]
    corners = np.stack(np.broadcast_arrays(rows, columns, np.arange(count)[:, None]), axis=-1)
    apart = (nib.affines.apply_affine(turned.affine, corners) - _pixels(stack, rows, columns)) * _LPS_TO_RAS
    if np.abs(apart @ np.stack([stack.row, stack.column, stack.normal], axis=1)).max() > _APART_MM:
        return None
    return np.moveaxis(np.asarray(turned.dataobj), 2, 0)


def _sampled(image: nib.Nifti1Image, stack: Stack) -> Iterator[np.ndarray]:
    """The image at every pixel of each slice, (rows, columns); linear, 0 outside."""
    volume, to_voxels = np.asarray(image.dataobj), np.linalg.inv(image.affine)
    pixels = np.indices(stack.shape)
    for position in stack.positions:
        points = _pixels(replace(stack, positions=position[None]), *pixels)[0]
        voxels = np.moveaxis(nib.affines.apply_affine(to_voxels, points), -1, 0)
        # "constant" would leave out voxels of the border by a rounding error
        yield map_coordinates(volume, voxels, order=1, mode="grid-constant")


def _digest(slices: Sequence[Dataset], record: Mapping[str, Any]) -> str:
    """SHA-256 of all that the files will hold, and of what they were made with."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode())
    for ds in slices:
        encoded = io.BytesIO()
        ds.save_as(encoded, implicit_vr=False, little_endian=True)
        digest.update(encoded.getbuffer())
    return digest.hexdigest()
