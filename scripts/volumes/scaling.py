"""Scaling of an MRI to [0, 1] by its brain: targets by a high percentile, sources by their dominant tissue.

The percentile is the unit of training targets, style keys and evaluation. As the unit of a source it would belong to
whatever is brightest: a large oedema in a FLAIR takes it, and all other tissue becomes darker. The dominant tissue, the
mode of the brain's histogram, stays where it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy import ndimage

from ..errors import CaseError
from .load import file_name

__all__ = [
    "ScaleByBrainModed",
    "ScaleByBrainPercentiled",
    "check_not_negative",
    "mode_of_brain",
    "percentile_of_brain",
    "scaled_by_mode",
    "scaled_by_percentile",
]

_MOST_NEGATIVE = 0.03  # share of the brain's voxels


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
    inside = _inside(values, mask, name)
    # kthvalue has no limit on the number of elements, quantile has
    top = inside.kthvalue(max(1, round(percentile / 100 * inside.numel()))).values
    if top <= 0:
        raise CaseError(
            f"{name} has {top:g} as the {percentile} percentile of its brain, which is not positive; check the volume "
            "and its mask."
        )
    return top


def mode_of_brain(
    values: np.ndarray | torch.Tensor, mask: np.ndarray | torch.Tensor, name: str = "the volume", width: float = 0.05
) -> torch.Tensor:
    """The value that is commonest in the brain: where the density of its positive voxels is highest.

    In a FLAIR, grey and white matter are one peak of the histogram, and neither fluid nor an oedema is a higher one.
    The density is a Gaussian average of the histogram in steps of a hundredth of the median, up to four times the
    median.

    Args:
        values: any shape, any unit.
        mask: of the same shape, positive in the brain.
        name: how the error calls the volume.
        width: standard deviation of the average, as a share of the median.

    Returns:
        float32 scalar, positive.

    Raises:
        CaseError: the mask is empty or no voxel in it is positive.
    """
    inside = _inside(values, mask, name)
    positive = inside[inside > 0]
    if positive.numel() == 0:
        raise CaseError(f"{name} has no value above 0 in its brain; check the volume and its mask.")
    median = positive.median()
    counts, edges = np.histogram((positive / median).cpu().numpy(), bins=400, range=(0, 4))
    density = ndimage.gaussian_filter1d(counts.astype(float), width / (edges[1] - edges[0]))
    commonest = int(density.argmax())
    return median * float(edges[commonest] + edges[commonest + 1]) / 2


def check_not_negative(inside: np.ndarray | torch.Tensor, name: str) -> None:
    """Refuse an image that was standardised, such as a z-scored one, half of whose brain would be clipped.

    Args:
        inside: values of the brain, any shape and unit. What interpolation leaves below 0, up to 2 % of their range, is
            no matter.
        name: how the error calls the image.

    Raises:
        CaseError: more than 3 % of the values are clearly negative.
    """
    values = np.asarray(inside).ravel()
    low, high = np.percentile(values, [0.1, 99.9])
    share = float((values < -0.02 * (high - low)).mean())
    if share > _MOST_NEGATIVE:
        raise CaseError(
            f"{share:.0%} of the brain is negative in {name} ({low:.3g} to {high:.3g}), as after z-scoring; give the "
            "original file, or bring it to values from 0, such as [-1, 1] to [0, 1]."
        )


def _inside(values: np.ndarray | torch.Tensor, mask: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
    """The brain's values, (N,) float32."""
    inside = torch.as_tensor(values)[torch.as_tensor(mask) > 0].float()
    if inside.numel() == 0:
        raise CaseError(f"The brain mask of {name} is empty; give one that is 1 in the brain.")
    return inside


def scaled_by_percentile(
    volume: torch.Tensor, mask: torch.Tensor, percentile: float = 99.9, name: str | None = None
) -> torch.Tensor:
    """A volume divided by a percentile of its voxels in the brain, clipped to [0, 1], 0 in the background.

    Args:
        volume: any shape, any unit.
        mask: of the same shape, positive inside.
        percentile: above 0, up to 100.
        name: how errors call the volume; None for the file that a MetaTensor was read from.

    Raises:
        CaseError: the mask is empty, the brain is negative in part, or the percentile is not positive.
    """
    inside = torch.as_tensor(mask) > 0
    name = file_name(volume) if name is None else name
    check_not_negative(_inside(volume, inside, name), name)
    top = percentile_of_brain(volume, inside, percentile, name)
    return (volume / top).clamp(0, 1) * inside


def scaled_by_mode(
    volume: torch.Tensor, mask: torch.Tensor, anchor: float = 0.6, knee: float = 0.8, name: str | None = None
) -> torch.Tensor:
    """A volume scaled so that its brain's commonest value becomes the anchor, in [0, 1], 0 in the background.

    Values above the knee are compressed smoothly, 1 - (1 - knee) exp(-(x - knee) / (1 - knee)): however bright a lesion
    is, it stays below 1 and moves nothing else.

    Args:
        volume: any shape, any unit.
        mask: of the same shape, positive inside.
        anchor: where `mode_of_brain` comes to lie, in (0, knee).
        knee: up to where the scale is linear, in (0, 1).
        name: how errors call the volume; None for the file that a MetaTensor was read from.

    Raises:
        CaseError: the mask is empty or no voxel in it is positive.
    """
    inside = torch.as_tensor(mask) > 0
    name = file_name(volume) if name is None else name
    check_not_negative(_inside(volume, inside, name), name)
    unit = mode_of_brain(volume, inside, name)
    scaled = (volume * (anchor / unit)).clamp(min=0)
    soft = 1 - (1 - knee) * torch.exp((knee - scaled) / (1 - knee))
    return torch.where(scaled > knee, soft, scaled) * inside


class ScaleByBrainPercentiled(MapTransform):
    """`scaled_by_percentile` of the volume at each key.

    Args:
        keys: MRI volumes (1, H, W, Z), any unit.
        mask_key: brain mask (1, H, W, Z), positive inside.
        percentile: 0 to 100; 99.9 is the training's: the maximum would move the style key.

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
            d[key] = scaled_by_percentile(d[key], d[self.mask_key], self.percentile)
        return d


class ScaleByBrainModed(MapTransform):
    """`scaled_by_mode` of the volume at each key.

    Args:
        keys: MRI volumes (1, H, W, Z), any unit.
        mask_key: brain mask (1, H, W, Z), positive inside.
        anchor, knee: as in `scaled_by_mode`.

    Raises:
        CaseError: the mask is empty or no voxel in it is positive.
    """

    def __init__(self, keys: KeysCollection, mask_key: str = "mask", anchor: float = 0.6, knee: float = 0.8) -> None:
        super().__init__(keys)
        self.mask_key = mask_key
        self.anchor = anchor
        self.knee = knee

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = scaled_by_mode(d[key], d[self.mask_key], self.anchor, self.knee)
        return d
