"""A volume as slices and as overlapping slabs of neighbouring slices, and back.

A slab is 2N+1 neighbouring slices. There is one slab for each of the Z slices, centred on it; for the slabs at the
ends, the stack of slices carries N more at each end.
"""

from __future__ import annotations

import torch
from torch import Tensor


def volume_to_slices(volume: Tensor) -> Tensor:
    """(B, 1, H, W, Z) volumes to (B, Z, H, W) slices."""
    return volume[:, 0].movedim(-1, 1)


def slices_to_volume(slices: Tensor) -> Tensor:
    """(B, Z, H, W) slices to (B, 1, H, W, Z) volumes, contiguous."""
    return slices.movedim(1, -1).unsqueeze(1).contiguous()


def pad_slices(slices: Tensor, slab_size: int, value: float) -> Tensor:
    """Add the N constant slices at each end that slabs of 2N+1 reach: (B, Z, H, W) to (B, Z + 2N, H, W), contiguous."""
    margin = slices.new_full((slices.shape[0], slab_size // 2, *slices.shape[2:]), value)
    return torch.cat([margin, slices, margin], dim=1)


def repeats_end(end_slice: Tensor) -> bool:
    """Whether the slices beyond an end repeat its slice: where the brain is cut there, not where it ends in background.

    Args:
        end_slice: (C, H, W) in [0, 1], background 0.

    Returns:
        True where more than 1 % of the plane, and at least 50 pixels, are no background in any channel.
    """
    above = (end_slice > 0.01).any(dim=0)
    return int(above.sum()) >= max(50, 0.01 * above.numel())


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
        padded: (Z + 2N, H, W) slices with N more at each end, as from `pad_slices`.
        centres: (n,) indices among the Z slices.
        slab_size: 2N+1.

    Returns:
        (n, 2N+1, H, W), a copy.
    """
    # slices innermost, so that a copy to channels last is none
    return padded.unfold(0, slab_size, 1)[centres.to(padded.device)].movedim(-1, 1)


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
        total: (Z + 2N, H, W) slices of one volume, added to.
        slabs: (n, 2N+1, H, W), those of `centres`.
        weights: (n, 2N+1), the rows of `slab_weights` for these slabs.
        centres: (n,), no two alike.
    """
    centres = centres.to(total.device)
    for k in range(slabs.shape[1]):
        # Offset by offset: within one, no two slabs touch the same slice.
        total.index_add_(0, centres + k, slabs[:, k] * weights[:, k, None, None])
