"""Scaling of an MRI by a percentile of its brain, the same for training targets, style keys and evaluation."""

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..errors import CaseError
from .load import file_name


def scaled_by_brain_percentile(volume: torch.Tensor, mask: torch.Tensor, percentile: float = 99.9) -> torch.Tensor:
    """A volume divided by a percentile of its voxels in the brain, clipped to [0, 1], 0 in the background.

    Args:
        volume: (1, H, W, Z), any unit; a MetaTensor names its file in errors.
        mask: of the same shape, positive inside.
        percentile: 0 to 100.

    Raises:
        CaseError: the mask is empty or the percentile is not positive.
    """
    inside = torch.as_tensor(mask) > 0
    values = torch.as_tensor(volume)[inside].float()
    if values.numel() == 0:
        raise CaseError(f"The brain mask of {file_name(volume)} is empty; give one that is 1 in the brain.")
    # kthvalue has no limit on the number of elements, quantile has
    top = values.kthvalue(max(1, round(percentile / 100 * values.numel()))).values
    if top <= 0:
        raise CaseError(
            f"{file_name(volume)} has {top:g} as the {percentile} percentile of its brain, which is not positive; "
            "check the volume and its mask."
        )
    return (volume / top).clamp(0, 1) * inside


class ScaleByBrainPercentiled(MapTransform):
    """`scaled_by_brain_percentile` of the volume at each key.

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
        for key in self.key_iterator(d):
            d[key] = scaled_by_brain_percentile(d[key], d[self.mask_key], self.percentile)
        return d
