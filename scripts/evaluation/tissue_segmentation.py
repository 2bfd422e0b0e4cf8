"""Tissue classes of whole T1 volumes by the small segmenter that comes with the bundle."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch

from ..networks.tissue_segmenter import TissueSegmenter
from ..slabs import add_slabs, extract_slabs, pad_slices, slab_centres, slab_weights, volume_to_slices
from ..weights import load_weights

SEGMENTER_MM = 1.5
"""Voxel size that the segmenter was trained at."""
WEIGHTS = Path(__file__).resolve().parents[2] / "models" / "tissue_segmenter.pt"


@functools.cache
def shipped_segmenter() -> TissueSegmenter:
    """The segmenter with the weights of `models/`, in evaluation mode.

    Raises:
        CaseError: the weights are missing or damaged.
    """
    segmenter = TissueSegmenter()
    load_weights(segmenter, WEIGHTS)
    return segmenter.requires_grad_(False).eval()


@torch.inference_mode()
def tissue_probabilities(
    image: np.ndarray, segmenter: TissueSegmenter | None = None, batch_size: int = 16
) -> np.ndarray:
    """Probabilities of background, CSF, grey and white matter, averaged over the slabs that hold a slice.

    Args:
        image: (H, W, Z) skull-stripped T1 in [0, 1], about `SEGMENTER_MM`, axes nearest to R, A, S.
        segmenter: None for the shipped one.
        batch_size: slabs in a call.

    Returns:
        (4, H, W, Z) float32.
    """
    segmenter = segmenter or shipped_segmenter()
    volume = torch.from_numpy(np.ascontiguousarray(image, np.float32))
    padding = [-n % segmenter.size_multiple for n in volume.shape[:2]]
    volume = torch.nn.functional.pad(volume, (0, 0, 0, padding[1], 0, padding[0]))
    slices = volume_to_slices(volume[None, None])
    padded = pad_slices(slices, segmenter.slab_size, torch.zeros_like(slices[:, :1]))[0]
    centres = slab_centres(slices.shape[1])
    weights = slab_weights(centres, len(centres), segmenter.slab_size).float()
    total = padded.new_zeros(len(padded), len(segmenter.classes), *padded.shape[-2:])
    for part, share in zip(centres.split(batch_size), weights.split(batch_size), strict=True):
        slabs = extract_slabs(padded, part, segmenter.slab_size)
        add_slabs(total, segmenter(slabs).softmax(dim=1).flatten(1, 2), share, part)
    reach = segmenter.slab_size // 2
    inside = total[reach : len(total) - reach, :, : image.shape[0], : image.shape[1]]
    return inside.permute(1, 2, 3, 0).numpy()


def segmented_tissues(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The likeliest of CSF (1), grey (2) and white matter (3) inside the mask, 0 outside; (H, W, Z) uint8."""
    likeliest = 1 + tissue_probabilities(np.where(mask, image, 0))[1:].argmax(axis=0)
    return np.where(mask, likeliest, 0).astype(np.uint8)
