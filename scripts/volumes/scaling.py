"""Scaling of an MRI by a percentile of its brain, the same for training targets, style keys and evaluation."""

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..errors import CaseError
from .load import file_name


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
            inside = torch.as_tensor(d[key])[mask].float()
            if inside.numel() == 0:
                raise CaseError(f"The brain mask of {file_name(d[key])} is empty; give one that is 1 in the brain.")
            # kthvalue has no limit on the number of elements, quantile has
            rank = max(1, round(self.percentile / 100 * inside.numel()))
            top = inside.kthvalue(rank).values
            if top <= 0:
                raise CaseError(
                    f"{file_name(d[key])} has {top:g} as the {self.percentile} percentile of its brain, which is not "
                    "positive; check the volume and its mask."
                )
            d[key] = (d[key] / top).clamp(0, 1) * mask
        return d
