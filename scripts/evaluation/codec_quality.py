"""What a codec loses, and the gate that a network in its latent has to pass first."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..errors import CaseError
from ..inferers import CodecInferer
from .figures import brain_figures

logger = logging.getLogger(__name__)


def codec_figures(
    codec: torch.nn.Module, pairs: Sequence[Mapping], contrasts: Sequence[str], spacing_mm: Sequence[float]
) -> dict[str, dict[str, dict[str, float]]]:
    """`brain_figures` of what a codec gives back of held-out volumes.

    Args:
        codec: in evaluation mode.
        pairs: "subject", "source" (C, H, W, Z), "target" and "mask" (1, H, W, Z), images in [0, 1].
        contrasts: of the source's channels, and of the target.
        spacing_mm: voxel size.

    Returns:
        contrast -> subject -> figure -> value; contrasts that a subject lacks are left out.
    """
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for pair in pairs:
        mask = np.asarray(pair["mask"])[0] > 0
        volumes = np.concatenate([np.asarray(pair["source"]), np.asarray(pair["target"])])
        for contrast, volume in zip(contrasts, volumes, strict=True):
            if volume.any():
                image = _given_back(codec, volume) * mask
                one = brain_figures(image, volume, mask, spacing_mm)
                figures.setdefault(contrast, {})[str(pair["subject"])] = one
    return figures


def _given_back(codec: torch.nn.Module, volume: np.ndarray) -> np.ndarray:
    """A volume (H, W, Z) encoded and decoded where the codec is."""
    device = next(codec.parameters(), torch.zeros(())).device
    return CodecInferer()(torch.from_numpy(volume)[None, None].to(device), codec)[0, 0].cpu().numpy()


def check_codec(figures: Mapping[str, Mapping[str, Mapping[str, float]]], gate_db: float, target_contrast: str) -> None:
    """Refuse a codec that loses too much of the target for a network in its latent to be worth its training.

    What it loses of the source is told and not judged: of a CT it is noise for the most part.

    Args:
        figures: of `codec_figures`, of people who were in no training.
        gate_db: least PSNR of the target in the brain, mean over the people; 0 refuses none.
        target_contrast: whose figures are judged.

    Raises:
        CaseError: the codec is below.
    """
    if not figures:
        logger.warning("There is nobody in the validation list to check the codec on; --codec_gate was not looked at.")
    for contrast, of in figures.items():
        psnr = float(np.mean([one["psnr"] for one in of.values()]))
        logger.info(f"The codec gives {contrast} back with {psnr:.1f} dB in the brain of {len(of)} held-out people.")
        if contrast == target_contrast and psnr < gate_db:
            raise CaseError(
                f"The codec gives {contrast} back with {psnr:.1f} dB in the brain of {len(of)} held-out people, less "
                f"than the {gate_db:g} dB of --codec_gate: train it longer (a higher --max_epochs goes on where it "
                "ended), or give --codec_gate 0 to take it as it is."
            )
