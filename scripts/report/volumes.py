"""The volumes of a case as a page shows them: one grid, cropped to the brain, 8 bits."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to
from scipy import ndimage

from ..errors import CaseError
from ..evaluation.figures import CASE_FIGURES, brain_figures
from ..outputs.picture import UNCERTAINTY_WINDOW
from ..transforms.hounsfield import WindowToHUd
from ..volumes.load import read_volume
from .cases import Case

MARGIN_MM = 8.0
LARGEST_GRID = 6_000_000  # voxels; a head at 1 mm has about 4.5 million, which are 2 to 4 MB in the page
CT_WINDOW = (0.0, 80.0)


@dataclass(frozen=True)
class ShownVolume:
    """One image of a case.

    Attributes:
        key: "source", "synthetic", "uncertainty", "real" or "error".
        title: over it.
        voxels: (H, W, Z) uint8 in RAS order; `slope * voxels + intercept` is the value.
        slope, intercept: of the values.
        affine: voxel to RAS+ mm, the same for all images of a case.
        window: values shown black and white; for error and uncertainty the colours' ends.
        unit: of the values, "" where they have none.
    """

    key: str
    title: str
    voxels: np.ndarray
    slope: float
    intercept: float
    affine: np.ndarray
    window: tuple[float, float]
    unit: str = ""

    @property
    def values(self) -> np.ndarray:
        """(H, W, Z) float32, as a viewer computes them."""
        return self.voxels.astype(np.float32) * self.slope + self.intercept

    @property
    def spacing(self) -> np.ndarray:
        """Edges of a voxel, mm."""
        return nib.affines.voxel_sizes(self.affine)

    def base64(self) -> str:
        """A gzipped NIfTI as base64."""
        image = nib.Nifti1Image(self.voxels, self.affine)
        image.header.set_slope_inter(self.slope, self.intercept)
        image.header.set_xyzt_units("mm")
        # without a time stamp the same case gives the same page
        return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode("ascii")


def case_volumes(case: Case) -> tuple[list[ShownVolume], dict[str, float]]:
    """The images of a case and, where there is a real one, the figures inside the brain.

    The figures are those of the case where it has some, else computed on the synthetic image's own grid.

    Raises:
        CaseError: a file that cannot be read, or an empty synthetic image.
    """
    synthetic = _read(case.synthetic)
    brain = _brain(case, synthetic)
    synthetic, brain = _crop(synthetic, brain)
    real = None if case.real is None else _scaled(_on_grid(_read(case.real), synthetic), brain, case.real.name)
    return _shown_images(case, synthetic, brain, real), case.figures or _measured(synthetic, brain, real)


def _measured(synthetic: nib.Nifti1Image, brain: np.ndarray, real: np.ndarray | None) -> dict[str, float]:
    """Figures inside the brain, by name with "_brain"; none without a real image or where SSIM's window is too wide."""
    if real is None or min(brain.shape) < 7:
        return {}
    values = brain_figures(_data(synthetic), real, brain, nib.affines.voxel_sizes(synthetic.affine))
    return {f"{name}_brain": values[name] for name in CASE_FIGURES}


def _shown_images(
    case: Case, synthetic: nib.Nifti1Image, brain: np.ndarray, real: np.ndarray | None
) -> list[ShownVolume]:
    """Source, synthetic image, its uncertainty, real image and difference, as far as they are there, on one grid."""
    grid = _shown_grid(synthetic)
    inside = _data(_on_grid(nib.Nifti1Image(brain.astype(np.float32), synthetic.affine), grid)) > 0.5
    image = _data(_on_grid(synthetic, grid))
    shown = [] if case.source is None else [_shown_source(case, grid, inside)]
    title = f"synthetic {case.target_contrast}"
    shown.append(_shown("synthetic", title, image, grid.affine, (0.0, 1.0), (0.0, 1.0)))
    if case.uncertainty is not None:
        spread = _data(_on_grid(_read(case.uncertainty), grid))
        shown.append(_shown("uncertainty", "uncertainty", spread, grid.affine, (0.0, 0.5), UNCERTAINTY_WINDOW))
    if real is not None:
        reference = _data(_on_grid(nib.Nifti1Image(real, synthetic.affine), grid))
        title = f"real {case.target_contrast}"
        shown.append(_shown("real", title, reference, grid.affine, (0.0, 1.0), (0.0, 1.0)))
        error = np.where(inside, image - reference, 0.0)
        # 127 steps each side, so that no error is a level of its own
        shown.append(_shown("error", "synthetic - real", error, grid.affine, (-1.0, 1.0), (-0.4, 0.4), levels=254))
    return shown


def _read(path: Path | list[str], window: Any = None) -> nib.Nifti1Image:
    """A volume in RAS order, finite; `window` is the HU range that its values stand for, if they are not HU."""
    image = read_volume(path, WindowToHUd("image", window))
    return nib.Nifti1Image(np.nan_to_num(_data(image)), image.affine)


def _data(image: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(image.dataobj, dtype=np.float32)


def _brain(case: Case, synthetic: nib.Nifti1Image) -> np.ndarray:
    """(H, W, Z) bool: the mask that is given, else where the synthetic image is not background, without holes."""
    if case.mask is None:
        brain = ndimage.binary_fill_holes(_data(synthetic) > 0)
    else:
        brain = _data(_on_grid(_read(case.mask), synthetic)) > 0.5
    if not brain.any():
        raise CaseError(f"{case.synthetic.name} shows no brain: nothing in it, or in its mask, is above 0.")
    return brain


def _crop(image: nib.Nifti1Image, brain: np.ndarray) -> tuple[nib.Nifti1Image, np.ndarray]:
    """Image and brain within the brain's box and a margin."""
    margin = np.ceil(MARGIN_MM / nib.affines.voxel_sizes(image.affine)).astype(int)
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    box = tuple(
        slice(max(s.start - m, 0), min(s.stop + m, n)) for s, m, n in zip(box, margin, brain.shape, strict=True)
    )
    return image.slicer[box], brain[box]


def _on_grid(image: nib.Nifti1Image, grid: nib.Nifti1Image) -> nib.Nifti1Image:
    if image.shape == grid.shape and np.allclose(image.affine, grid.affine, atol=1e-3):
        return image
    return resample_from_to(image, grid, order=1)


def _shown_grid(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The grid of an image, with voxels of at least 1 mm where it has more than a page should carry."""
    if np.prod(image.shape) <= LARGEST_GRID:
        return image
    spacing = nib.affines.voxel_sizes(image.affine)
    factor = np.maximum(1.0 / spacing, 1.0)
    shape = np.maximum(np.floor(image.shape / factor), 1).astype(int)
    # the corner of the field of view stays where it is
    affine = image.affine @ nib.affines.from_matvec(np.diag(factor), (factor - 1) / 2)
    return nib.Nifti1Image(np.zeros(shape, np.uint8), affine)


def _scaled(real: nib.Nifti1Image, brain: np.ndarray, name: str) -> np.ndarray:
    """The real image as in training: divided by the 99.9 percentile of its brain, clipped to [0, 1]."""
    data = _data(real)
    inside = data[brain & (data > 0)]
    if inside.size == 0:
        raise CaseError(f"{name} is empty where the synthetic image shows the brain; it has to lie in the same space.")
    return np.clip(data / np.percentile(inside, 99.9), 0, 1)


def _shown_source(case: Case, grid: nib.Nifti1Image, inside: np.ndarray) -> ShownVolume:
    data = _data(_on_grid(_read(case.source, case.record.get("ct_window")), grid))
    window, limits, unit = _source_window(data, inside, case.record)
    contrast = case.record.get("source_contrast") or ("CT" if unit else "")
    return _shown("source", f"source {contrast}".strip(), data, grid.affine, limits, window, unit)


def _source_window(
    data: np.ndarray, inside: np.ndarray, record: Mapping[str, Any]
) -> tuple[tuple[float, float], tuple[float, float], str]:
    """What is shown at first, what is kept at all, and the unit: of CT half a window more at each side."""
    hu_window = record.get("hu_window") if record.get("source_contrast", "CT") == "CT" else None
    window = hu_window or (CT_WINDOW if data.min() < -200 else None)
    if window:
        low, high = (float(value) for value in window)
        return (low, high), (1.5 * low - 0.5 * high, 1.5 * high - 0.5 * low), "HU"
    top = max(float(np.percentile(data[inside], 99.9)), 1e-6)
    return (0.0, top), (0.0, 1.25 * top), ""


def _shown(
    key: str,
    title: str,
    data: np.ndarray,
    affine: np.ndarray,
    limits: tuple[float, float],
    window: tuple[float, float],
    unit: str = "",
    levels: int = 255,
) -> ShownVolume:
    """`data` in whole steps between its limits."""
    low, high = limits
    slope = (high - low) / levels
    voxels = np.clip(np.rint((data - low) / slope), 0, levels).astype(np.uint8)
    return ShownVolume(key, title, voxels, slope, low, affine, window, unit)
