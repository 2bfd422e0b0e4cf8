"""Scaling of an MRI by a percentile of its brain, the same for training targets, style keys and evaluation."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..errors import CaseError
from .load import file_name

__all__ = ["ScaleByBrainPercentiled", "percentile_of_brain", "scaled_by_percentile"]


def percentile_of_brain(
    values: np.ndarray | torch.Tensor,
    mask: np.ndarray | torch.Tensor,
    percentile: float = 99.9,
    name: str = "the volume",
) -> torch.Tensor:
    """The value below which a share of the brain's voxels lies; an element of the volume, not interpolated.

    Args:
        values: any shape, any unit.
        mask: of the same shape, positive in the brain.
        percentile: above 0, up to 100.
        name: how the error calls the volume.

    Returns:
        float32 scalar, positive.

    Raises:
        CaseError: the mask is empty or the percentile is not positive.
    """
    inside = torch.as_tensor(values)[torch.as_tensor(mask) > 0].float()
    if inside.numel() == 0:
        raise CaseError(f"The brain mask of {name} is empty; give one that is 1 in the brain.")
    # kthvalue has no limit on the number of elements, quantile has
    top = inside.kthvalue(max(1, round(percentile / 100 * inside.numel()))).values
    if top <= 0:
        raise CaseError(
            f"{name} has {top:g} as the {percentile} percentile of its brain, which is not positive; check the volume "
            "and its mask."
        )
    return top


def scaled_by_percentile(
    values: np.ndarray, mask: np.ndarray, percentile: float = 99.9, name: str = "the volume"
) -> np.ndarray:
    """An array as `ScaleByBrainPercentiled` gives it: float32 in [0, 1], 0 outside the mask; arguments as above."""
    image, brain = torch.as_tensor(values).float(), torch.as_tensor(mask) > 0
    return ((image / percentile_of_brain(image, brain, percentile, name)).clamp(0, 1) * brain).numpy()


class ScaleByBrainPercentiled(MapTransform):
    """Divide by a percentile of the voxels inside the mask, clip to [0, 1], set the background to 0.

    Args:
        keys: MRI volumes (1, H, W, Z), any unit.
        mask_key: brain mask (1, H, W, Z), positive inside.
        percentile: 0 to 100; 99.9 is the training's (SPEC section 2: the maximum moves the style key).

    Raises:
        CaseError: the mask is empty or the percentile is not positive.
    """

    def __init__(self, keys: KeysCollection, mask_key: str = "mask", percentile: float = 99.9) -> None:
        super().__init__(keys)
        self.mask_key = mask_key
        self.percentile = percentile

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        mask = torch.as_tensor(d[self.mask_key]) > 0
        for key in self.key_iterator(d):
            top = percentile_of_brain(d[key], mask, self.percentile, file_name(d[key]))
            d[key] = (d[key] / top).clamp(0, 1) * mask
        return d
