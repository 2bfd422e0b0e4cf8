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


def extract_slabs(padded: Tensor, start: int, stop: int, slab_size: int) -> Tensor:
    """The slabs centred on slices start..stop - 1 of one volume.

    Args:
        padded: (Z + 2N, H, W) slices with N more at each end, as from `pad_slices`.
        start, stop: range of centres, counted among the Z slices.
        slab_size: 2N+1.

    Returns:
        (stop - start, 2N+1, H, W), contiguous.
    """
    return padded[start : stop + slab_size - 1].unfold(0, slab_size, 1).movedim(-1, 1).contiguous()


def slab_weights(num_slices: int, slab_size: int, overlap_average: bool = True) -> Tensor:
    """How much each slice of each slab counts when slabs become slices again.

    Args:
        num_slices: Z.
        slab_size: 2N+1.
        overlap_average: whether each of the Z + 2N slices is the average over all slabs that hold it; otherwise it is
            taken from the one centred on it, and the N slices beyond each end from the first or last slab.

    Returns:
        (Z, 2N+1) float64; the weights that fall on one slice sum to 1.
    """
    centre = torch.arange(num_slices)[:, None]
    position = centre + torch.arange(slab_size)
    if not overlap_average:
        return ((position - slab_size // 2).clamp(0, num_slices - 1) == centre).double()
    holders = torch.bincount(position.flatten())
    return 1 / holders[position].double()


def add_slabs(total: Tensor, slabs: Tensor, weights: Tensor, start: int) -> None:
    """Add weighted slabs to the slices they cover, in place.

    Args:
        total: (Z + 2N, H, W) slices of one volume, added to.
        slabs: (n, 2N+1, H, W), those centred on slices start..start + n - 1.
        weights: (n, 2N+1), the rows of `slab_weights` for these slabs.
        start: centre of the first slab.
    """
    for k in range(slabs.shape[1]):
        # Offset by offset: within one, no two slabs touch the same slice.
        total[start + k : start + k + len(slabs)].addcmul_(slabs[:, k], weights[:, k, None, None])
