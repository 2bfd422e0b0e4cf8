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
    codec: torch.nn.Module, pairs: Sequence[Mapping], contrasts: tuple[str, str], spacing_mm: Sequence[float]
) -> dict[str, dict[str, dict[str, float]]]:
    """`brain_figures` of what a codec gives back of held-out volumes.

    Args:
        codec: in evaluation mode.
        pairs: "subject", "source", "target" and "mask", (1, H, W, Z) each, images in [0, 1].
        contrasts: of source and target.
        spacing_mm: voxel size.

    Returns:
        contrast -> subject -> figure -> value.
    """
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for pair in pairs:
        mask = np.asarray(pair["mask"])[0] > 0
        for contrast, key in zip(contrasts, ("source", "target"), strict=True):
            image = torch.as_tensor(np.asarray(pair[key]))[None]
            given_back = CodecInferer()(image, codec)[0, 0].numpy()
            one = brain_figures(given_back * mask, image[0, 0].numpy(), mask, spacing_mm)
            figures.setdefault(contrast, {})[str(pair["subject"])] = one
    return figures


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
                f"than the {gate_db:g} dB of --codec_gate: train it longer, or give --codec_gate 0 to go on with it."
            )
