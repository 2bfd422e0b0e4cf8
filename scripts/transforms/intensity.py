"""Intensity of a CT before the network: the slow HU trend in the brain removed, the median moved to one value."""

from collections.abc import Hashable, Mapping, Sequence

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.networks.layers import GaussianFilter
from monai.transforms import MapTransform, Transform
from torch.nn import functional


def slow_trend(
    hu: torch.Tensor, mask: torch.Tensor, spacing_mm: Sequence[float], sigma_mm: float, tissue_hu: tuple[float, float]
) -> torch.Tensor:
    """Local mean HU of brain tissue: a Gaussian average over the voxels of the mask within ``tissue_hu``.

    Bone rim, haemorrhage, calcium and fluid have no say. It is computed on a grid of about sigma/4, where a blur of
    centimetres costs nothing.

    Args:
        hu: (1, H, W, Z) HU.
        mask: (1, H, W, Z), positive in the brain.
        spacing_mm: voxel size.
        sigma_mm: standard deviation of the average.
        tissue_hu: lowest and highest HU that count as tissue.

    Returns:
        (1, H, W, Z) HU; the overall mean where there is no tissue near.
    """
    weight = ((mask > 0) & (hu > tissue_hu[0]) & (hu < tissue_hu[1])).float()
    size = [max(1, round(n * s / (sigma_mm / 4))) for n, s in zip(hu.shape[1:], spacing_mm, strict=True)]
    coarse = functional.adaptive_avg_pool3d(torch.stack([weight * hu, weight], dim=1), size)
    sigmas = [sigma_mm / (s * n / m) for n, m, s in zip(hu.shape[1:], size, spacing_mm, strict=True)]
    summed, total = GaussianFilter(3, sigmas, truncated=3.0)(coarse).split(1, dim=1)
    mean = coarse[:, :1].sum() / coarse[:, 1:].sum().clamp(min=1e-6)
    # a little of the overall mean keeps the quotient calm where the weight fades out
    trend = (summed + 1e-3 * mean) / (total + 1e-3)
    return functional.interpolate(trend, hu.shape[1:], mode="trilinear")[:, 0]


class FlattenHUTrend(Transform):
    """Take the slow HU trend out of the brain and move its median to one value.

    Beam hardening and the scanner's calibration shift HU by more than grey and white matter differ. The same step is
    applied to simulated CT in training and to real CT at inference.

    Args:
        sigma_mm: scale of the trend; well above any lesion, so that a lesion stays.
        target_median: HU at which the tissue's median comes to lie.
        strength: share of the trend that is removed, 0 to 1; the median is moved in any case.
        tissue_hu: range of HU, around the present median, that counts as brain tissue: (below, above).
        plausible_hu: where that median is looked for, so that wide ventricles have no say in it.
    """

    def __init__(
        self,
        sigma_mm: float = 30.0,
        target_median: float = 31.0,
        strength: float = 1.0,
        tissue_hu: tuple[float, float] = (15.0, 25.0),
        plausible_hu: tuple[float, float] = (10.0, 60.0),
    ) -> None:
        self.sigma_mm = sigma_mm
        self.target_median = target_median
        self.strength = strength
        self.tissue_hu = tissue_hu
        self.plausible_hu = plausible_hu

    def __call__(self, hu: torch.Tensor, mask: torch.Tensor, spacing_mm: Sequence[float]) -> torch.Tensor:
        """(1, H, W, Z) HU to HU; the mask is positive in the brain, an empty one leaves the volume as it is."""
        values = torch.as_tensor(hu).float()
        inside = torch.as_tensor(mask) > 0
        if not inside.any():
            return hu
        plausible = inside & (values > self.plausible_hu[0]) & (values < self.plausible_hu[1])
        around = values[plausible if plausible.any() else inside].median().item()
        low, high = around - self.tissue_hu[0], around + self.tissue_hu[1]
        tissue = values[inside & (values > low) & (values < high)]
        trend = slow_trend(values, inside, spacing_mm, self.sigma_mm, (low, high))
        shifted = values - self.strength * (trend - tissue.mean())
        median = shifted[inside & (values > low) & (values < high)].median()
        out = shifted + (self.target_median - median)
        if not isinstance(hu, MetaTensor):
            return out
        return MetaTensor(out, meta=hu.meta, applied_operations=hu.applied_operations)


class FlattenHUTrendd(MapTransform):
    """``FlattenHUTrend`` for a dictionary; the voxel size is taken from the volume's affine.

    Args:
        keys: CT volumes (1, H, W, Z), HU, ``MetaTensor``.
        mask_key: brain mask on the same grid.
        allow_missing_keys: no error where a key is missing.
        arguments: of ``FlattenHUTrend``.
    """

    def __init__(
        self, keys: KeysCollection, mask_key: str = "mask", allow_missing_keys: bool = False, **arguments
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key
        self.flatten = FlattenHUTrend(**arguments)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.flatten(d[key], d[self.mask_key], [float(s) for s in d[key].pixdim])
        return d
