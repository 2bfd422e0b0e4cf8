"""The dial `detail` at its positions, beside what a filter would make of the mean image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.inferers import Inferer
from monai.networks.layers import GaussianFilter
from torch import Tensor

FIGURES = (
    *("psnr_brain", "ssim_brain", "pearson_brain", "highpass_brain", "lowpass_brain", "sharpness_brain"),
    *("i_ssim_brain", "dice_csf", "dice_gm", "dice_wm"),
)
MEAN = "mean"
"""Row of the first prediction alone, at detail 0."""


def detail_variants(
    samplers: Mapping[str, Mapping[str, Any]], details: Sequence[float], amounts: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """Row name -> settings.

    Args:
        samplers: of `sampler_variants`, at least one.
        details: positions of the dial for each of them; 0 is one row for all, `MEAN`, with a row for its average with
            the mirror image's.
        amounts: of `unsharp_mask` on the mean, a row each.
    """
    mean = {**next(iter(samplers.values())), "detail": 0.0}
    mirrored = {f"{MEAN}, mirrored": {**mean, "mirrored": True}}
    sharpened = {f"unsharp mask of the mean, {a:g}": {**mean, "unsharp_amount": a} for a in amounts}
    dial = {f"{name}, detail {d:g}": {**settings, "detail": d} for name, settings in samplers.items() for d in details}
    return {MEAN: mean, **mirrored, **sharpened, **dial}


class UnsharpMask(Inferer):
    """Another inferer's image x with its fine structure raised: x + amount (x - G x), clipped to [0, 1].

    It adds sharpness without knowledge. A sampler has to be better than this at equal sharpness.

    Args:
        inferer: gives images (B, 1, H, W, Z), [0, 1].
        amount: of what the Gaussian takes away.
        width: standard deviation of the Gaussian G, in voxels.
    """

    def __init__(self, inferer: Callable[..., Tensor], amount: float, width: float = 1.0) -> None:
        super().__init__()
        self.inferer = inferer
        self.amount = amount
        self.smooth = GaussianFilter(3, width)

    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor], style_key: np.ndarray | Tensor | None = None
    ) -> Tensor:
        """Arguments and result as the inferer's."""
        image = self.inferer(inputs, network, style_key=style_key)
        return (image + self.amount * (image - self.smooth.to(image)(image))).clamp_(0, 1)


def unsharp_mask(inferer: Callable[..., Tensor], amount: float) -> Callable[..., Tensor]:
    """`UnsharpMask` of an inferer; the inferer itself for an amount of 0."""
    return UnsharpMask(inferer, amount) if amount else inferer
