"""Whether the values of a CT are Hounsfield units (HU), and how a windowed CT becomes them again."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor
from scipy import ndimage
from torch.nn.functional import adaptive_avg_pool3d

from ..errors import CaseError
from ..volumes.load import file_name
from .checks import value_range

__all__ = ["CheckHounsfieldd", "WindowToHUd"]

PADDING = -1100.0  # HU; what is below is no air, but what a scanner puts where it did not look


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
    """The values at the ends of the scale that a volume was stored in; padding below it is no part of it."""
    low, high = float(volume.min()), float(volume.max())
    from_0 = low >= 0 or not bool(((volume < 0) & (volume > low)).any())
    if from_0 and high <= 1:
        return 0.0, 1.0
    if from_0 and high <= 255 and bool((volume == volume.round()).all()):
        return 0.0, 255.0
    return low, high


class CheckHounsfieldd(MapTransform):
    """Lets through volumes whose values can be Hounsfield units; for CT only.

    Refuses, with the range that was found and the way back: a range too narrow for HU (a rescaled CT), 8-bit grey
    levels, volumes without soft tissue (0 to 100 HU), and those in which something thicker than any bone is as dense as
    bone: HU stored with an offset of 1024, HU that wrapped around in unsigned numbers, an MRI. A few voxels have no
    say, and neither has padding.

    Args:
        keys: keys of the volumes, (1, H, W, Z).
        min_range: least difference of largest and smallest value, HU.
        min_soft_tissue: least volume of solid tissue between 0 and 100 HU, mL.
        max_dense: largest volume of solid tissue above 300 HU, mL; of bone, 15 mm are hardly ever solid.
        allow_missing_keys: no error where a key is missing.

    Raises:
        CaseError: the values cannot be HU.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        min_range: float = 30.0,
        min_soft_tissue: float = 50.0,
        max_dense: float = 400.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.min_range = min_range
        self.min_soft_tissue = min_soft_tissue
        self.max_dense = max_dense

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check the volume at each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            found = self._reason(d[key])
            if found is not None:
                reason, example = found
                low, high = value_range(d[key])
                raise CaseError(
                    f"{file_name(d[key])} has values from {low:g} to {high:g}, {reason}; export the CT in Hounsfield "
                    f"units, or {example}."
                )
        return d

    def _reason(self, volume: torch.Tensor) -> tuple[str, str] | None:
        """Why the values are no HU, and what can be done about it."""
        low, high = value_range(volume)
        brain_window = f"{_window_of(0, 80)} for a brain window"
        if high - low < self.min_range:
            return "too narrow a range for Hounsfield units", brain_window
        if _looks_like_grey_levels(volume):
            return "which look like 8-bit grey levels, not Hounsfield units", brain_window
        blocks, block_ml = _block_means(volume)
        soft = _solid((blocks > 0) & (blocks <= 100)).sum() * block_ml
        dense = _solid(blocks > 300)
        dense_ml, level = dense.sum() * block_ml, float(np.median(blocks[dense])) if dense.any() else 0.0
        if dense_ml > self.max_dense and 900 < level < 1150:
            shifted = "with soft tissue near 1024, so not Hounsfield units but shifted ones"
            return shifted, _window_of(low - 1024, high - 1024)
        if dense_ml > self.max_dense and (size := _wrapped_at(level, high)) is not None:
            wrapped = f"with air near {level:.0f}, so Hounsfield units below 0 wrapped around at {size}"
            return wrapped, f"subtract {size} from the values above {size // 2 - 1}"
        if soft < self.min_soft_tissue:
            return f"with only {soft:.0f} mL of soft tissue (0 to 100 HU) among them", brain_window
        if dense_ml > self.max_dense:
            return f"with {dense_ml:.0f} mL of solid tissue near {level:.0f}, as no bone is", brain_window
        return None


def _window_of(low: float, high: float) -> str:
    return f'say what range of HU its values stand for, for example --ct_window "[{low:g}, {high:g}]"'


def _wrapped_at(level: float, high: float) -> int | None:
    """The size of an unsigned number in which the HU of air, -1050 to -850, become a level; `high` is its largest."""
    return next((size for size in (2**12, 2**16) if size - 1050 <= level <= size - 850 and high < size), None)


def _looks_like_grey_levels(volume: torch.Tensor) -> bool:
    values = convert_to_tensor(volume, track_meta=False).flatten()
    sample = values[:: max(values.numel() // 1_000_000, 1)]
    sample = sample[sample > PADDING]
    if sample.numel() and float(sample.min()) < 0:  # padding that could be air; of HU, fat and air lie above it
        sample = sample[sample > sample.min()]
    if not sample.numel() or float((sample < 0).float().mean()) > 0.002 or float(sample.max()) > 255:
        return False
    positive = sample[sample > 0]
    full = bool((sample == 0).any()) and float(volume.max()) == 255
    # a brain of 30 HU lies above 60 in any 8-bit window narrower than the whole CT scale
    return (full and bool((sample == sample.round()).all())) or float(positive.median()) > 60


def _block_means(volume: torch.Tensor, edge: float = 5.0) -> tuple[np.ndarray, float]:
    """Means over blocks of about `edge` mm, in which noise averages out, and the volume of a block, mL."""
    spacing = np.linalg.norm(np.asarray(volume.affine, dtype=np.float64)[:3, :3], axis=0)
    shape = volume.shape[1:]
    size = [max(1, min(n, round(n * s / edge))) for n, s in zip(shape, spacing, strict=True)]
    means = adaptive_avg_pool3d(convert_to_tensor(volume, track_meta=False).float().cpu(), size)[0].numpy()
    return means, float(np.prod(spacing * shape / size)) / 1000


def _solid(blocks: np.ndarray) -> np.ndarray:
    """Where three blocks in each direction belong to it: neither a shell nor the edge between two other things."""
    return ndimage.binary_opening(blocks, np.ones((3, 3, 3)))
