"""Batches of the tissue segmenter's training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional


class TissuePrepareBatch:
    """Batch of slabs -> blurred T1 slabs and the soft labels of background, CSF, grey and white matter.

    Synthetic T1s are softer than those that labels were drawn on; some slabs are blurred so that the segmenter knows
    them too. All draws come from PyTorch's default generator.

    Args:
        blur_share: share of the slabs that are blurred.
        blur_pixels: largest standard deviation of the Gaussian, pixels.
    """

    def __init__(self, blur_share: float = 0.5, blur_pixels: float = 1.2) -> None:
        self.blur_share = blur_share
        self.blur_pixels = blur_pixels

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        """Prepare one batch.

        Args:
            batchdata: "source", T1 slabs (B, 2N+1, H, W) in [0, 1]; "extras", (B, 3 (2N+1), H, W), maps of CSF, grey
                and white matter.
            device: where to compute.
            non_blocking: whether the copy to the device may overlap.
            kwargs: further arguments of `torch.Tensor.to`.

        Returns:
            images (B, 2N+1, H, W) and labels (B, 4, 2N+1, H, W), which sum to 1 over the classes.
        """
        images, maps = (batchdata[k].to(device, non_blocking=non_blocking, **kwargs) for k in ("source", "extras"))
        maps = maps.unflatten(1, (3, -1))
        maps = maps / maps.sum(dim=1, keepdim=True).clamp(min=1)
        labels = torch.cat([1 - maps.sum(dim=1, keepdim=True), maps], dim=1)
        drawn = torch.rand(2, len(images), device=images.device)
        return blurred(images, drawn[0] * self.blur_pixels * (drawn[1] < self.blur_share)), labels


def blurred(images: Tensor, sigmas: Tensor, reach: int = 4) -> Tensor:
    """Each item of (B, K, H, W) smoothed by a Gaussian of its own, (B,) pixels; 0 leaves it as it is."""
    steps = torch.arange(-reach, reach + 1, device=images.device)
    kernels = torch.exp(-0.5 * (steps / sigmas[:, None].clamp(min=1e-3)) ** 2)
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).to(images.dtype)
    stacked = images.transpose(0, 1)  # each item is a group of its own
    for shape, padding in (((-1, 1, 2 * reach + 1, 1), (reach, 0)), ((-1, 1, 1, 2 * reach + 1), (0, reach))):
        stacked = functional.conv2d(stacked, kernels.reshape(shape), padding=padding, groups=len(images))
    return stacked.transpose(0, 1)
