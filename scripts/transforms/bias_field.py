"""The slow trend that a receive coil leaves in an MRI, and its removal."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import itk
import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy import ndimage

from .onto_reference import mask_shown

__all__ = ["BiasFieldCorrectd", "correct_bias"]


class BiasFieldCorrectd(MapTransform):
    """N4 inside a mask, see `correct_bias`, for MRI of any contrast; a CT is left to `FlattenHUTrendd`.

    Args:
        keys: keys of the images, MetaTensors (1, H, W, Z), any unit.
        mask_key: key of the brain mask (1, H, W, Z) on the same grid; of an image that shows a part of it, that part.
        shrink_mm: edge of the voxels that the field is estimated on.
        allow_missing_keys: no error where a key is missing.
    """

    def __init__(
        self, keys: KeysCollection, mask_key: str = "mask", shrink_mm: float = 4.0, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key
        self.shrink_mm = shrink_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each image by the corrected one."""
        d = dict(data)
        for key in self.key_iterator(d):
            image, mask = d[key], mask_shown(d, key, self.mask_key)[0].cpu().numpy()
            spacing = np.linalg.norm(np.asarray(image.affine.cpu())[:3, :3], axis=0)
            corrected = correct_bias(image[0].cpu().numpy(), mask, spacing.tolist(), self.shrink_mm)
            image = image.clone()
            image[0] = torch.from_numpy(corrected.astype(np.float32)).to(image.device)
            d[key] = image
        return d


def correct_bias(data: np.ndarray, mask: np.ndarray, spacing: Sequence[float], shrink_mm: float = 4.0) -> np.ndarray:
    """Divide out the bias field: N4 (Tustison et al. 2010) inside the mask, on a grid of about `shrink_mm`.

    Args:
        data: (H, W, Z), any unit; voxels of 0 or less have no say.
        mask: (H, W, Z) bool.
        spacing: edge of the voxels, mm.
        shrink_mm: edge of the voxels that the field is estimated on.

    Returns:
        (H, W, Z) in the same unit, outside the mask too.
    """
    steps = [max(1, round(shrink_mm / s)) for s in spacing]
    where = tuple(slice(None, None, step) for step in steps)
    inside = mask[where] & (data[where] > 0)
    if not inside.any():
        return data
    # ITK's N4 gives another field where values lie below 1: the unit must have no say
    unit = 1000 / np.median(data[where][inside])
    scaled = np.maximum(data[where], 0) * unit
    small = itk.image_from_array(np.ascontiguousarray(scaled.transpose(2, 1, 0), dtype=np.float32))
    region = itk.image_from_array(np.ascontiguousarray(mask[where].transpose(2, 1, 0).astype(np.uint8)))
    for image in (small, region):
        image.SetSpacing([float(s * step) for s, step in zip(spacing, steps, strict=True)])
    corrected = itk.n4_bias_field_correction_image_filter(small, mask_image=region)
    ratio = itk.array_from_image(small) / np.maximum(itk.array_from_image(corrected), 1e-6)
    log_field = np.where(inside, np.log(np.clip(ratio.transpose(2, 1, 0), 0.2, 5.0)), 0.0)
    # smooth extrapolation beyond the mask, so that interpolation at its edge meets no step
    weight = ndimage.gaussian_filter(inside.astype(np.float32), 2) + 1e-3
    log_field = ndimage.gaussian_filter(log_field.astype(np.float32), 2) / weight
    grid = np.meshgrid(*(np.arange(n) / step for n, step in zip(data.shape, steps, strict=True)), indexing="ij")
    field = ndimage.map_coordinates(log_field, grid, order=1, mode="nearest")
    return data / np.exp(field)
