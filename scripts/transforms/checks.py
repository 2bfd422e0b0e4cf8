"""What stops a case before anything is computed, each reason in one sentence."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor

from ..errors import CaseError
from ..volumes.load import file_name
from ..volumes.placement import shear_degrees

__all__ = ["CheckMagnituded", "CheckNoLabelsd", "CheckVolumed", "value_range"]

MOST_LABELS = 20  # of a segmentation that is no atlas


class CheckVolumed(MapTransform):
    """Lets through volumes of one channel, finite and not constant, on a grid that can be resampled.

    Takes channel-first MetaTensors (C, H, W, Z); one without shape errors comes out as (1, H, W, Z), unchanged.

    Args:
        keys: keys of the volumes.
        max_shear: how far, in degrees, two axes may be from a right angle (a CT with gantry tilt is not).
        spacing_limits: smallest and largest voxel edge, mm.
        extent_limits: smallest and largest edge of the field of view, mm; metres or micrometres in the header fall out.
        allow_missing_keys: no error where a key is missing.

    Raises:
        CaseError: any of it is not so; the sentence tells which.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        max_shear: float = 0.5,
        spacing_limits: tuple[float, float] = (0.05, 20.0),
        extent_limits: tuple[float, float] = (10.0, 2000.0),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.max_shear = max_shear
        self.spacing_limits = spacing_limits
        self.extent_limits = extent_limits

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check the volume at each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            name = file_name(d[key])
            d[key] = one_volume(d[key], name)
            self._check_grid(d[key], name)
            _check_values(d[key], name)
        return d

    def _check_grid(self, volume: MetaTensor, name: str) -> None:
        axes = np.asarray(volume.affine, dtype=np.float64)[:3, :3]
        spacing = np.linalg.norm(axes, axis=0)
        if not np.isfinite(axes).all() or not (spacing > 0).all() or abs(np.linalg.det(axes / spacing)) < 1e-3:
            raise CaseError(
                f"{name} has a singular affine, so its axes span no space; repair the header (sform, qform)."
            )
        low, high = self.spacing_limits
        extent = spacing * np.array(volume.shape[1:])
        if (spacing < low).any() or (spacing > high).any():
            raise CaseError(f"{name} has voxels of {_by(spacing)} mm, which no head scan has; repair the header.")
        if (extent < self.extent_limits[0]).any() or (extent > self.extent_limits[1]).any():
            raise CaseError(
                f"{name} spans {_by(extent)} mm, which is no head; give the whole head, or repair the voxel size in "
                "its header."
            )
        shear = shear_degrees(axes)
        if shear > self.max_shear:
            raise CaseError(
                f"{name} has axes that are {shear:.1f} degrees off a right angle (gantry tilt?); resample it to an "
                "orthogonal grid first, or give the DICOM files themselves."
            )


class CheckMagnituded(MapTransform):
    """Lets through MRI whose air is 0 or a little more, as a magnitude image has it.

    In a head that was z-scored or shifted with its air, the brain may be positive all over, but 0 is no longer no
    signal. What is negative inside the brain is for `check_not_negative`.

    Args:
        keys: keys of the volumes, (1, H, W, Z).
        most_negative: largest share of voxels that may be below 0 by more than 2 % of the largest value.
        allow_missing_keys: no error where a key is missing.

    Raises:
        CaseError: more are.
    """

    def __init__(
        self, keys: KeysCollection = "image", most_negative: float = 0.03, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.most_negative = most_negative

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check the volume at each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            low, high = value_range(d[key])
            share = float((convert_to_tensor(d[key], track_meta=False) < -0.02 * abs(high)).float().mean())
            if share > self.most_negative:
                raise CaseError(
                    f"{file_name(d[key])} has values from {low:.3g} to {high:.3g}, and {share:.0%} of it is below 0, "
                    "as after z-scoring; give the original file, in which air is 0."
                )
        return d


class CheckNoLabelsd(MapTransform):
    """Lets through what is no map of labels; for MRI, whose unit tells nothing.

    Args:
        keys: keys of the volumes, (1, H, W, Z).
        allow_missing_keys: no error where a key is missing.

    Raises:
        CaseError: few whole numbers, as a mask or a segmentation has them.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check the volume at each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            if (count := _label_count(d[key])) is not None:
                raise CaseError(
                    f"{file_name(d[key])} holds {count} whole numbers, as a mask or a segmentation does; give the scan "
                    "itself."
                )
        return d


def _label_count(volume: torch.Tensor) -> int | None:
    """How many labels a volume has; None where it is a scan.

    Labels are few small numbers or, where a whole atlas is drawn, numbers that nearly all neighbours share.
    """
    values = convert_to_tensor(volume, track_meta=False)[0]
    sample = values.flatten()[:: max(values.numel() // 1_000_000, 1)]
    if float(sample.min()) < 0 or not bool((sample == sample.round()).all()):
        return None
    levels = torch.unique(sample)
    if len(levels) <= MOST_LABELS and float(levels[-1]) <= 255:
        return len(levels)
    middle = values[:, :, values.shape[2] // 2]
    both = (middle[1:] > 0) & (middle[:-1] > 0)
    alike = (middle[1:] == middle[:-1])[both].float().mean() if both.any() else 0.0
    return len(levels) if MOST_LABELS < len(levels) <= 20 * MOST_LABELS and alike > 0.85 else None


def one_volume(volume: MetaTensor, name: str) -> MetaTensor:
    """(C, H, W, Z[, 1]) -> (1, H, W, Z), or a `CaseError` that tells what the volume is instead."""
    while volume.ndim > 4 and volume.shape[-1] == 1:
        volume = volume.squeeze(-1)
    shape = tuple(volume.shape)
    if volume.ndim == 3 or (volume.ndim == 4 and min(shape[1:]) == 1):
        raise CaseError(f"{name} is a single slice ({_by(shape[1:])} voxels); a 3D volume is needed.")
    if volume.ndim != 4 or shape[0] != 1:
        raise CaseError(
            f"{name} is not one 3D volume but several or colours ({shape[0]} of {_by(shape[1:])} voxels); "
            "give one volume of one value a voxel."
        )
    if min(shape[1:]) < 3:
        raise CaseError(f"{name} has only {min(shape[1:])} slices ({_by(shape[1:])} voxels); at least 3 are needed.")
    return volume


def value_range(volume: torch.Tensor) -> tuple[float, float]:
    """Smallest and largest value, both finite only if all are; needs no memory, which `isfinite` does."""
    low, high = torch.aminmax(convert_to_tensor(volume, track_meta=False))
    return float(low), float(high)


def _check_values(volume: torch.Tensor, name: str) -> None:
    low, high = value_range(volume)
    if not (math.isfinite(low) and math.isfinite(high)):
        count = int((~torch.isfinite(volume)).sum())
        raise CaseError(
            f"{name} has {count} voxels that are NaN or infinite; replace them by the value of air (-1000 HU in a CT, "
            "0 in an MRI)."
        )
    if low == high:
        raise CaseError(f"{name} is empty: every voxel is {low:g}; export it again.")


def _by(numbers: Any) -> str:
    return " x ".join(f"{number:g}" for number in np.round(np.asarray(numbers, dtype=float), 4))
