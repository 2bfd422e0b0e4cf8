"""What MONAI's spatial transforms leave to do: resampling without aliasing, background outside the brain."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Spacingd
from monai.utils import convert_to_tensor
from scipy.ndimage import gaussian_filter1d

__all__ = ["BackgroundOutsided", "SmoothForSpacingd", "VolumeSpacingd"]


class VolumeSpacingd(Spacingd):
    """MONAI's `Spacingd` for dictionaries that hold more than volumes.

    MONAI 1.6.0 and 1.6.1 call `.update` on every item whose key starts with `KEY_` once the volume came from NIfTI.
    MONAI Label puts the text `image_path` there, which has no such method; items that are no dictionaries are
    therefore kept out of its sight.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Resample the volume at each key; everything else comes back as it was."""
        visible = {key: item for key, item in data.items() if key in self.keys or isinstance(item, dict)}
        return {**data, **super().__call__(visible, lazy)}


class SmoothForSpacingd(MapTransform):
    """Gaussian smoothing along the axes that will be resampled to larger voxels, so that noise is averaged.

    Linear interpolation reads two voxels an axis however many a new voxel covers. The standard deviation is half of
    what the new edge exceeds the old one by, which is scikit-image's rule for `resize`.

    Args:
        keys: keys of the volumes, MetaTensors (C, H, W, Z).
        pixdim: edges of the new voxels, mm.
        allow_missing_keys: no error where a key is missing.
    """

    def __init__(self, keys: KeysCollection, pixdim: Any, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.pixdim = pixdim

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Smooth the volume at each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            sigmas = (np.asarray(self.pixdim, dtype=float) / np.asarray(d[key].pixdim, dtype=float) - 1) / 2
            smooth = d[key].numpy()
            for axis, sigma in enumerate(sigmas, start=1):
                if sigma > 0.05:
                    smooth = gaussian_filter1d(smooth, sigma, axis=axis, mode="nearest")
            d[key] = MetaTensor(torch.as_tensor(smooth)).copy_meta_from(d[key])
        return d


class BackgroundOutsided(MapTransform):
    """Sets voxels outside a mask on the same grid to a constant.

    Args:
        keys: keys of the volumes, (C, H, W, Z).
        mask_key: key of the mask, (1, H, W, Z); inside is greater than 0.5.
        background: the constant, in the volumes' unit.
        allow_missing_keys: no error where a key is missing.
    """

    def __init__(
        self, keys: KeysCollection, mask_key: str, background: float = 0.0, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key
        self.background = background

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Mask the volume at each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            outside = convert_to_tensor(d[self.mask_key], device=d[key].device) <= 0.5
            d[key] = d[key].masked_fill(outside, self.background)
        return d
