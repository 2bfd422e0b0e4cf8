"""Whether the values of a CT are Hounsfield units (HU), and how a windowed CT becomes them again."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..errors import CaseError
from ..volumes.load import file_name

__all__ = ["CheckHounsfieldd", "WindowToHUd"]


class WindowToHUd(MapTransform):
    """Maps the values of a CT that was windowed, rescaled or shifted linearly onto a range of HU.

    The whole scale of the values is mapped: 0 to 255 for whole numbers of 8 bits, 0 to 1 for values within it, else
    the smallest to the largest value found. What lay outside the window is lost and stays at its ends.

    Args:
        keys: keys of the volumes.
        window: lowest and highest HU that the scale stands for; None leaves the volumes as they are.
        allow_missing_keys: no error where a key is missing.

    Raises:
        CaseError: a window that is not two increasing numbers, or a narrow one for values that are HU already.
    """

    def __init__(
        self, keys: KeysCollection = "image", window: Sequence[float] | None = None, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.window = None if window is None else _two_numbers(window)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Map the volume at each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            if self.window is not None:
                (low, high), (first, last) = _scale(d[key]), self.window
                if low < -200 and high > 300 and last - first < 500:
                    raise CaseError(
                        f"{file_name(d[key])} has values from {low:g} to {high:g}, air to bone: these are Hounsfield "
                        "units already; leave ct_window out for it."
                    )
                d[key] = (d[key] - low) * ((last - first) / (high - low)) + first
        return d


def _two_numbers(window: Any) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in window)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not low < high:
        raise CaseError(f'ct_window is {window}; give two increasing numbers of HU, for example "[0, 80]".')
    return low, high


def _scale(volume: torch.Tensor) -> tuple[float, float]:
    """The values at the ends of the scale that a volume was stored in."""
    low, high = float(volume.min()), float(volume.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    if low >= 0 and high <= 255 and bool((volume == volume.round()).all()):
        return 0.0, 255.0
    return low, high


class CheckHounsfieldd(MapTransform):
    """Lets through volumes whose values can be Hounsfield units; for CT only.

    Refuses, with the range that was found and the option that maps it back: a range too narrow for HU (a rescaled CT),
    8-bit grey levels, HU stored with an offset of 1024, and volumes without soft tissue (0 to 100 HU).

    Args:
        keys: keys of the volumes, (1, H, W, Z).
        min_range: least difference of largest and smallest value, HU.
        min_soft_tissue: least volume between 0 and 100 HU, mL.
        allow_missing_keys: no error where a key is missing.

    Raises:
        CaseError: the values cannot be HU.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        min_range: float = 30.0,
        min_soft_tissue: float = 50.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.min_range = min_range
        self.min_soft_tissue = min_soft_tissue

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check the volume at each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            reason = self._reason(d[key])
            if reason is not None:
                low, high = float(d[key].min()), float(d[key].max())
                raise CaseError(
                    f"{file_name(d[key])} has values from {low:g} to {high:g}, {reason}; export the CT in Hounsfield "
                    f"units, or say what range of HU its values stand for, for example {_example(low, high)}."
                )
        return d

    def _reason(self, volume: torch.Tensor) -> str | None:
        low, high = float(volume.min()), float(volume.max())
        if high - low < self.min_range:
            return "too narrow a range for Hounsfield units"
        sample = torch.as_tensor(volume).flatten()[:: max(volume.numel() // 1_000_000, 1)]
        positive = sample[sample > 0]
        if low >= 0 and high <= 255:
            grey_levels = low == 0 and high == 255 and bool((sample == sample.round()).all())
            # a brain of 30 HU lies above 60 in any 8-bit window narrower than the whole CT scale
            if grey_levels or float(positive.median()) > 60:
                return "which look like 8-bit grey levels, not Hounsfield units"
        dense = positive[positive > 300]
        if low > -200 and high > 1000 and float(((dense > 900) & (dense < 1150)).float().mean()) > 0.5:
            return "with soft tissue near 1024, so not Hounsfield units but shifted ones"
        voxel = float(abs(np.linalg.det(np.asarray(volume.affine, dtype=np.float64)[:3, :3]))) / 1000
        soft = float(((sample > 0) & (sample <= 100)).float().mean()) * volume.numel() * voxel
        if soft < self.min_soft_tissue:
            return f"with only {soft:.0f} mL of soft tissue (0 to 100 HU) among them"
        return None


def _example(low: float, high: float) -> str:
    """The option as typed, with the offset spelled out where that is what it looks like."""
    if low > -200 and high > 1000:
        return f'--ct_window "[{low - 1024:g}, {high - 1024:g}]"'
    return '--ct_window "[0, 80]" for a brain window'
