"""Codecs: the one place where images in [0, 1] become the states of the network, and back.

A codec has `channels` c, the channels that one image becomes, and `factor` f, by which height and width shrink. What it
makes of a source for the network to look at (`encode_source`) may have more channels, `source_channels` s.
"""

from __future__ import annotations

import hashlib

import torch
from monai.networks.nets import AutoencoderKL
from monai.networks.nets.autoencoderkl import AEKLDownsample
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LatentCodec", "OrthonormalCodec", "PixelCodec"]


class PixelCodec(nn.Module):
    """States are the images themselves, in [-1, 1]."""

    channels = 1
    factor = 1
    lossless = True
    """Whether decoding gives back what was encoded."""

    @property
    def source_channels(self) -> int:
        """Channels that one image of a source becomes; the first `channels` of them are its state."""
        return self.channels

    def encode(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W), [0, 1], to states of the same shape, [-1, 1]."""
        return images * 2 - 1

    def encode_source(self, images: Tensor) -> Tensor:
        """Images of a source (n, C, H, W), [0, 1], to (n, C s, H/f, W/f), image after image."""
        return self.encode(images)

    def decode(self, states: Tensor) -> Tensor:
        """States (n, 1, H, W), [-1, 1], to images of the same shape; nothing is clipped."""
        return (states + 1) / 2

    def fingerprint(self) -> str:
        """SHA-256 of what the codec is, its weights in half precision among it; 64 hexadecimal digits."""
        digest = hashlib.sha256(f"{type(self).__name__} {self.channels} {self.factor}".encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().half().contiguous().numpy().tobytes())
        return digest.hexdigest()


class OrthonormalCodec(PixelCodec):
    """A latent without loss: each block of f x f pixels becomes f^2 channels, so that norms and noise stay the same.

    Args:
        factor: f; height and width have to be multiples of it.
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor
        self.channels = factor**2

    def encode(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W), [0, 1], to states (n, C f^2, H/f, W/f), [-1, 1], image after image."""
        return functional.pixel_unshuffle(super().encode(images), self.factor)

    def decode(self, states: Tensor) -> Tensor:
        """States (n, f^2, H/f, W/f) to images (n, 1, H, W); nothing is clipped."""
        return super().decode(functional.pixel_shuffle(states, self.factor))


class LatentCodec(PixelCodec):
    """A trained autoencoder between images and a latent whose channels have mean 0 and standard deviation 1.

    The encoder's mean is the state, never a draw, so that an image has one state. Source: latent diffusion (Rombach et
    al., 2022), with a mean and a deviation for each channel where that has one scale for all.

    The module is trained like any network: called with images, it gives what `AutoencoderLoss` compares.

    An autoencoder loses the most where there is the least contrast: grey and white matter of a CT are a few HU apart,
    about as much as its noise. The network can therefore be given the pixels of the source too, without loss.

    Args:
        autoencoder: of images of one channel.
        batch_size: slices in one call of the encoder or decoder; it bounds the memory.
        source_pixels: whether a source is its state and then its pixels, each block of f x f as f^2 channels.
    """

    lossless = False
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, autoencoder: AutoencoderKL, batch_size: int = 8, source_pixels: bool = False) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.batch_size = batch_size
        self.source_pixels = source_pixels
        self.channels = autoencoder.latent_channels
        self.factor = 2 ** sum(isinstance(layer, AEKLDownsample) for layer in autoencoder.encoder.blocks)
        self.register_buffer("latent_mean", torch.zeros(1, self.channels, 1, 1))
        self.register_buffer("latent_std", torch.zeros(1, self.channels, 1, 1))  # 0: not measured yet

    @property
    def is_measured(self) -> bool:
        """Whether mean and deviation of the latent are known, as they are at the end of a training."""
        return bool((self.latent_std > 0).all())

    @property
    def source_channels(self) -> int:
        """Channels that one image of a source becomes; the first `channels` of them are its state."""
        return self.channels + self.source_pixels * self.factor**2

    @property
    def size_multiple(self) -> int:
        """Height and width of an image must be multiples of this number of pixels."""
        return self.factor

    def _check_size(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"The image is {height} x {width}, but this codec needs multiples of {self.factor}: pad it."
            )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is trained: images (n, 1, H, W), [0, 1], to their reconstruction from a draw of the latent.

        Returns:
            the reconstruction, (n, 1, H, W), [-1, 1] and beyond; mean and standard deviation of the latent's draw,
            (n, c, H/f, W/f), as the autoencoder has them.
        """
        self._check_size(images)
        return self.autoencoder(2 * images - 1)

    def encode(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W), [0, 1], to states (n, C c, H/f, W/f), image after image.

        Raises:
            ValueError: the mean and deviation of the latent were never measured.
        """
        if not self.is_measured:
            raise ValueError("This codec has not been trained: the scale of its latent is not known.")
        latents = self._latents(images.flatten(0, 1)[:, None])
        states = (latents - self.latent_mean) / self.latent_std
        return states.unflatten(0, images.shape[:2]).flatten(1, 2).to(images.dtype)

    def encode_source(self, images: Tensor) -> Tensor:
        """Images of a source (n, C, H, W), [0, 1], to (n, C s, H/f, W/f), image after image."""
        states = self.encode(images)
        if not self.source_pixels:
            return states
        parts = (states, functional.pixel_unshuffle(2 * images - 1, self.factor))
        return torch.cat([part.unflatten(1, (images.shape[1], -1)) for part in parts], dim=2).flatten(1, 2)

    def decode(self, states: Tensor) -> Tensor:
        """States (n, c, H/f, W/f) to images (n, 1, H, W); nothing is clipped."""
        latents = states.to(self.latent_std.dtype) * self.latent_std + self.latent_mean
        images = [self.autoencoder.decode(part) for part in latents.split(self.batch_size)]
        return (torch.cat(images).to(states.dtype) + 1) / 2

    @torch.no_grad()
    def measure(self, images: Tensor) -> None:
        """Take mean and standard deviation of each channel of the latent from images (n, 1, H, W), [0, 1]."""
        latents = self._latents(images).double()
        std, mean = torch.std_mean(latents, dim=(0, 2, 3), keepdim=True, correction=0)
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)

    def _latents(self, images: Tensor) -> Tensor:
        """Images (n, 1, H, W), [0, 1], to the encoder's means.

        All empty ones are encoded as one: of six contrasts, often only two are there.
        """
        self._check_size(images)
        filled = images.flatten(1).any(dim=1)
        kept = images[filled]
        if len(kept) < len(images):
            kept = torch.cat([kept, images[~filled][:1]])
        states = (2 * kept - 1).to(self.latent_std.dtype)
        latents = torch.cat([self.autoencoder.encode(part)[0] for part in states.split(self.batch_size)])
        return latents[torch.where(filled, filled.cumsum(0) - 1, len(kept) - 1)]
