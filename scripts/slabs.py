"""A volume as slices and as overlapping slabs of neighbouring slices, and back.

A slab is K = 2N+1 neighbouring slices. There is one slab for each of the Z slices, centred on it; for the slabs at the
ends, the stack of slices carries N more at each end. A slab of C channels is flattened for the network, channel by
channel: (n, C K, H, W).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

CUT_SHARE = 0.02
"""Share of a slice that brain covers where a volume's end cuts it. At its natural end, the last slice holds a cap: at
most 7 cm2 for 1.5 mm of a sphere of 70 mm, 2 % of a slice cropped to the brain. Background follows it as it should."""

MISSING_REACH = 8.0
"""Distance to the nearest acquired slice, in slices, from which on a missing slice counts as wholly unknown."""


def missing_share(distance: np.ndarray) -> np.ndarray:
    """The condition `missing` of sparse scans: 0 where a slice was acquired, up to 1 far away from all that were.

    Args:
        distance: to the nearest acquired slice, in slices of the network's grid; up to half a slice it is that one.
    """
    return (distance / MISSING_REACH).clip(0, 1) * (distance > 0.5)


def volume_to_slices(volume: Tensor) -> Tensor:
    """(B, C, H, W, Z) volumes to (B, Z, C, H, W) slices."""
    return volume.movedim(-1, 1)


def slices_to_volume(slices: Tensor) -> Tensor:
    """(B, Z, C, H, W) slices to (B, C, H, W, Z) volumes, contiguous."""
    return slices.movedim(1, -1).contiguous()


def repeats_end(end: Tensor | np.ndarray) -> bool:
    """Whether the virtual slices beyond an end slice of the source repeat it, because the brain is cut there.

    Where they are background instead, the network would see the brain end with the volume, and darken its last slices.

    Args:
        end: first or last slice of a source, (H, W) or (C, H, W), background 0.

    Returns:
        whether more than `CUT_SHARE` of its pixels are above 0 in some channel.
    """
    height, width = end.shape[-2:]
    shown = (end > 0).reshape(-1, height, width).any(0)
    return float(shown.sum()) > CUT_SHARE * height * width


def end_fills(images: Tensor, states: Tensor, background: Tensor) -> Tensor:
    """What fills the virtual slices at each end of each volume: its end slice where the brain is cut, or background.

    Args:
        images: slices of the source (B, Z, C, H, W), background 0; they decide, see `repeats_end`.
        states: what is filled, (B, Z, c, h, w).
        background: (1, 1, c, h, w).

    Returns:
        (B, 2, c, h, w), for the first and the last slice.
    """
    fills = background.expand(len(images), 2, *states.shape[2:]).clone()
    for volume in range(len(images)):
        for end in (0, -1):
            if repeats_end(images[volume, end]):
                fills[volume, end] = states[volume, end]
    return fills


def pad_slices(slices: Tensor, slab_size: int, fill: Tensor) -> Tensor:
    """Add the N slices at each end that slabs of 2N+1 reach: (B, Z, C, H, W) to (B, Z + 2N, C, H, W), contiguous.

    Args:
        slices: of the volumes.
        slab_size: 2N+1.
        fill: (1 or B, 1 or 2, C, H, W), one slice for both ends or one for each, as from `end_fills`.
    """
    shape = (slices.shape[0], slab_size // 2, *slices.shape[2:])
    first, last = (fill[:, [end]].expand(shape) for end in (0, -1))
    return torch.cat([first, slices, last], dim=1)


def slab_centres(num_slices: int, stride: int = 1, offset: int = 0) -> Tensor:
    """Slices, counted among the Z, on which slabs are centred: every stride-th from offset, the first and the last.

    With a stride of at most 2N+1 the slabs reach every slice, and the N beyond each end.

    Returns:
        (number of slabs,) ascending indices.
    """
    every = torch.arange(num_slices)
    return every[((every - offset) % stride == 0) | (every == 0) | (every == num_slices - 1)]


def extract_slabs(padded: Tensor, centres: Tensor, slab_size: int) -> Tensor:
    """The slabs centred on some slices of one volume.

    Args:
        padded: (Z + 2N, C, H, W) slices with N more at each end, as from `pad_slices`.
        centres: (n,) indices among the Z slices.
        slab_size: 2N+1.

    Returns:
        (n, C (2N+1), H, W), channel by channel, a copy.
    """
    # slices innermost, so that a copy to channels last is none
    return padded.unfold(0, slab_size, 1)[centres.to(padded.device)].movedim(-1, 2).flatten(1, 2)


def slab_weights(centres: Tensor, num_slices: int, slab_size: int, overlap_average: bool = True) -> Tensor:
    """How much each slice of each slab counts when slabs become slices again.

    Args:
        centres: (n,) of the slabs, ascending, the first and the last slice among them.
        num_slices: Z.
        slab_size: 2N+1.
        overlap_average: whether each of the Z + 2N slices is the average over all slabs that hold it; otherwise it is
            taken from the one centred nearest to it.

    Returns:
        (n, 2N+1) float64; the weights that fall on one slice sum to 1.
    """
    position = centres[:, None] + torch.arange(slab_size)
    if not overlap_average:
        slices = torch.arange(num_slices + slab_size - 1) - slab_size // 2
        nearest = (centres[:, None] - slices).abs().argmin(dim=0)
        return (nearest[position] == torch.arange(len(centres))[:, None]).double()
    holders = torch.bincount(position.flatten())
    return 1 / holders[position].double()


def add_slabs(total: Tensor, slabs: Tensor, weights: Tensor, centres: Tensor) -> None:
    """Add weighted slabs to the slices they cover, in place.

    Args:
        total: (Z + 2N, C, H, W) slices of one volume, added to.
        slabs: (n, C (2N+1), H, W), those of `centres`.
        weights: (n, 2N+1), the rows of `slab_weights` for these slabs.
        centres: (n,), no two alike.
    """
    centres = centres.to(total.device)
    slabs = slabs.unflatten(1, (total.shape[1], -1))
    for k in range(weights.shape[1]):
        # Offset by offset: within one, no two slabs touch the same slice.
        total.index_add_(0, centres + k, slabs[:, :, k] * weights[:, k, None, None, None])
