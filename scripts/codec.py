"""Codecs: the one place where images in [0, 1] become the states of the network, and back.

A codec has `channels` c, the channels that one image becomes, and `factor` f, by which height and width shrink.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["OrthonormalCodec", "PixelCodec"]


class PixelCodec:
    """States are the images themselves, in [-1, 1]."""

    channels = 1
    factor = 1

    def encode(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W), [0, 1], to states of the same shape, [-1, 1]."""
        return images * 2 - 1

    def decode(self, states: Tensor) -> Tensor:
        """States (n, 1, H, W), [-1, 1], to images of the same shape; nothing is clipped."""
        return (states + 1) / 2


class OrthonormalCodec(PixelCodec):
    """A latent without loss: each block of f x f pixels becomes f^2 channels, so that norms and noise stay the same.

    Args:
        factor: f; height and width have to be multiples of it.
    """

    def __init__(self, factor: int = 2) -> None:
        self.factor = factor
        self.channels = factor**2

    def encode(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W), [0, 1], to states (n, C f^2, H/f, W/f), [-1, 1], image after image."""
        return functional.pixel_unshuffle(super().encode(images), self.factor)

    def decode(self, states: Tensor) -> Tensor:
        """States (n, f^2, H/f, W/f) to images (n, 1, H, W); nothing is clipped."""
        return super().decode(functional.pixel_shuffle(states, self.factor))
