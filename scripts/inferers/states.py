"""Source volumes and slabs as what the network is given: channels by name, through the codec, with an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..codec import PixelCodec
from ..schedulers import NamedChoice
from ..slabs import end_fills, pad_slices, volume_to_slices
from .slab_predictor import SlabInputs


class Endpoint(NamedChoice):
    """What of a source of several contrasts a bridge starts from: the first, or the mean of those that are there."""

    FIRST = "first"
    MEAN_PRESENT = "mean_present"


LEAST_SHOWN = 0.95
"""Share of a slice's brain that a contrast has to show to be there: a second contrast brings less where it shows the
brain than it harms where it does not, unless that is a twentieth of the slice (docs/many_to_one.md)."""


def check_channels(channels: Mapping[str, int], encoded: Sequence[str]) -> None:
    """Raises ValueError: no source among the channels, or an encoded name that is not."""
    missing = {"source", *encoded} - set(channels)
    if missing or "source" not in encoded:
        raise ValueError(
            f"channels are {', '.join(channels)} and encoded {', '.join(encoded)}; both need source, and every encoded "
            "name its channels."
        )


def given_channels(volumes: Tensor, channels: Mapping[str, int]) -> dict[str, int]:
    """The channels that volumes (B, C, H, W, Z) have: all, or the first ones as far as the source.

    Raises:
        ValueError: volumes that are not floating, or of other channels.
    """
    given, count = {}, 0
    for name, number in channels.items():
        given[name], count = number, count + number
        whole = volumes.ndim == 5 and volumes.shape[1] == count and volumes.is_floating_point()
        if whole and "source" in given:
            return given
    raise ValueError(
        f"The inputs are {volumes.dtype} of shape {tuple(volumes.shape)}; give floating volumes (B, {count}, H, W, Z)."
    )


def presence_of(volumes: Tensor) -> Tensor:
    """(B, C), 1 where a contrast of (B, C, H, W, Z) volumes has a voxel above 0: an absent one is all zeros."""
    return (volumes.amax(dim=(-3, -2, -1)) > 0).to(volumes.dtype)


def presence_in_slices(source: Tensor, shown: Tensor, presence: Tensor) -> Tensor:
    """Which contrasts are there slice by slice, (B, Z, C): those that show the slice's brain, `LEAST_SHOWN` of it.

    A network has learned to do without a contrast, but not with a part of one: it takes the rest for background.
    Where none shows so much, and where there is no brain, all that the volume has are there.

    Args:
        source: slices of images (B, Z, C, H, W), 0 outside the brain and where a contrast does not show it.
        shown: (B, Z, C, H, W), 1 where a contrast is there and shows the head, else 0.
        presence: of the volumes, (B, C).
    """
    brain = source.amax(dim=2, keepdim=True) > 0
    seen = (shown * brain).sum(dim=(-2, -1))
    there = presence[:, None] * (seen >= LEAST_SHOWN * brain.sum(dim=(-2, -1)))
    return torch.where(there.any(dim=2, keepdim=True), there, presence[:, None])


def endpoint_of(source: Tensor, contrasts: int, codec: PixelCodec, endpoint: str, presence: Tensor | None) -> Tensor:
    """Where a bridge starts: one state, (B, ..., c K, h, w), of a source's C contrasts, (B, ..., C s K, h, w).

    Presence is of the volumes, (B, C), or of their slices, (B, Z, C), which are then (B, Z, C s, h, w).
    """
    size = source.shape[-3] // contrasts * codec.channels // codec.source_channels
    if source.shape[-3] == size:
        return source
    contrasts = source.unflatten(-3, (contrasts, -1))[..., :size, :, :]
    if endpoint == Endpoint.FIRST or presence is None:
        return contrasts[..., 0, :, :, :] if endpoint == Endpoint.FIRST else contrasts.mean(dim=-4)
    weights = presence / presence.sum(dim=-1, keepdim=True).clamp(min=1)
    if weights.ndim < contrasts.ndim - 3:
        weights = weights.unsqueeze(1)
    return (contrasts * weights[..., None, None, None]).sum(dim=-4)


def slab_inputs(
    volumes: Tensor,
    slab_size: int,
    codec: PixelCodec,
    channels: Mapping[str, int],
    encoded: Sequence[str],
    endpoint: str,
    context: Tensor | None,
    share: range,
) -> SlabInputs:
    """Volumes (B, sum of channels, H, W, Z), [0, 1], as padded slices by name; names not encoded are mean-pooled.

    Of a share of the Z slices, these and N more at each end are made. Channels called `shown`, one for each contrast,
    are no condition: they say where it is there and shows the head.
    """
    encoded = [name for name in encoded if name in channels]
    parts = dict(zip(channels, volumes.split(list(channels.values()), dim=1), strict=True))
    source_images = volume_to_slices(parts["source"])
    presence = presence_of(parts["source"]) if channels["source"] > 1 else None
    if "shown" in parts:
        presence = presence_in_slices(source_images, volume_to_slices(parts.pop("shown")), presence)
        places = torch.arange(share.start, share.stop + slab_size - 1) - slab_size // 2
        presence = presence[:, places.clamp(0, presence.shape[1] - 1)]
    first, stop = max(share.start - slab_size // 2, 0), share.stop + slab_size // 2
    window = slice(share.start - first, share.stop - first + slab_size - 1)
    padded = {}
    for name, part in parts.items():
        images = volume_to_slices(part)[:, first:stop]
        encode = codec.encode_source if name == "source" else codec.encode if name in encoded else None
        states = _coded(images, encode) if encode else _pooled_slices(images, codec.factor)
        zeros = torch.zeros_like(images[:1, :1])
        background = _coded(zeros, encode) if encode else torch.zeros_like(states[:1, :1])
        # where the share's end is not the volume's, what it is filled with is outside the window
        padded[name] = pad_slices(states, slab_size, end_fills(source_images, states, background))[:, window]
    source = padded.pop("source")
    start = endpoint_of(source, channels["source"], codec, endpoint, presence)
    return SlabInputs(source, start, context, padded, presence)


def encode_slabs(slabs: Tensor, channels: int, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Slabs of images (n, C K, H, W), [0, 1], to slabs of states (n, C c K, H/f, W/f), both channel by channel."""
    images = slabs.unflatten(1, (channels, -1)).movedim(2, 1)
    return _coded(images, encode).movedim(1, 2).flatten(1, 2)


def decode_slices(states: Tensor, codec: PixelCodec) -> Tensor:
    """Slices of states (B, Z, c, h, w) to slices of images (B, Z, 1, H, W)."""
    return codec.decode(states.flatten(0, 1)).unflatten(0, states.shape[:2])


def _coded(images: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    return encode(images.flatten(0, 1)).unflatten(0, images.shape[:2])


def _pooled_slices(images: Tensor, factor: int) -> Tensor:
    return pooled(images.flatten(0, 1), factor).unflatten(0, images.shape[:2])


def pooled(images: Tensor, factor: int) -> Tensor:
    """Images (n, C, H, W) as means of f x f pixels, (n, C, H/f, W/f)."""
    return functional.avg_pool2d(images, factor) if factor > 1 else images
