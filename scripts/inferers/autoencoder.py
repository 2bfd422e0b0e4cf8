"""How a codec is called: for training, and on whole volumes to see what it loses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.inferers import Inferer
from torch import Tensor

from ..codec import PixelCodec
from ..slabs import slices_to_volume, volume_to_slices
from .slab_predictor import autocast


class AutoencoderInferer(Inferer):
    """One forward pass of a codec, in a floating type of its own.

    Args:
        dtype: None or torch.float32 for that of the images; torch.bfloat16 and torch.float16 mean autocast.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dtype = dtype

    def __call__(self, inputs: Tensor, network: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Images (n, 1, H, W), [0, 1], to what the codec gives, in their floating type."""
        with autocast(inputs.device, self.dtype):
            outputs = network(inputs)
        return tuple(output.to(inputs.dtype) for output in outputs)


class CodecInferer(Inferer):
    """Volumes as a codec gives them back, slice by slice: what a network in its latent could at best reach."""

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: PixelCodec) -> Tensor:
        """Volumes (B, 1, H, W, Z), [0, 1], to volumes of the same shape, clipped to [0, 1]; `network` is the codec."""
        slices = volume_to_slices(inputs)
        images = network.decode(network.encode(slices.flatten(0, 1)))
        return slices_to_volume(images.unflatten(0, slices.shape[:2])).clamp_(0, 1)
