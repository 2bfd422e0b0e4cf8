"""Tissue fractions of a head by the contrasts that a network is given, as structural guidance; never by its target.

CoLa-Diff (Jiang et al., MICCAI 2023) guides by maps of FSL-FAST; here it is the same model, a hidden Markov random
field, of one of the sources.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_numpy

from .hmrf import TISSUES, TISSUES_BY_BRIGHTNESS, three_classes

STRUCTURES = (None, "fractions", "labels")
FIRST_CHOICE = "T1"
# as these mostly are; too unsure to measure anything by
_ORDERS = {**TISSUES_BY_BRIGHTNESS, "PD": ("wm", "gm", "csf"), "CT": ("csf", "wm", "gm")}


def structure_contrast(contrasts: Sequence[str], present: Sequence[bool]) -> int | None:
    """Index of the contrast that the fractions are taken from: T1 where it is there, else the first that is."""
    there = [index for index, found in enumerate(present) if found]
    return min(there, key=lambda index: (contrasts[index] != FIRST_CHOICE, index), default=None)


def contrast_fractions(image: np.ndarray, mask: np.ndarray, contrast: str, structure: str = "fractions") -> np.ndarray:
    """Fractions of CSF, grey and white matter of one contrast.

    Args:
        image: (H, W, Z), [0, 1], 0 outside the brain.
        mask: (H, W, Z) bool, the brain; where the image is 0 it does not reach.
        contrast: which it is.
        structure: "fractions", or "labels" for 1 in the class and 0 elsewhere.

    Returns:
        (3, H, W, Z) float32, sum 1 in the brain, 0 outside and throughout where there is no brain.
    """
    mask = mask & (image > 0)
    if not mask.any():
        return np.zeros((3, *image.shape), np.float32)
    # the field starts from classes that are evenly spaced from 0, and those of PD are all bright
    low, high = np.percentile(image[mask], [1, 99.5])
    classes, fractions = three_classes((image - low) / max(high - low, 1e-6), mask)
    if structure == "labels":
        fractions = (classes == np.arange(1, 4)[:, None, None, None]).astype(np.float32)
    return fractions[[_ORDERS[contrast].index(tissue) for tissue in TISSUES]]


class SourceFractionsd(MapTransform):
    """Add what a head is made of, by its sources alone: CSF, grey, white matter and lesions, (4, H, W, Z) in [0, 1].

    Args:
        keys: key of the sources, (C, H, W, Z) in [0, 1], an absent one 0; further channels are passed over.
        contrasts: names of the channels in their order.
        structure: "fractions", "labels", or None, which leaves the data as they are.
        mask_key: brain mask (1, H, W, Z), positive inside.
        lesion_key: mask of lesions (1, H, W, Z), positive inside; where there is none, or None is given, the fourth
            channel is 0. Masks are mostly drawn on all contrasts, the target among them: only a training may see one.
        output_key: receives them; None puts them behind the contrasts, before whatever else the sources have.
        each: whether the fractions of each contrast are wanted, (3 C + 1, H, W, Z): 3 for each contrast, then lesions.
            Training draws its target later, and takes those of a contrast that stays (`SlabDataset`).

    Raises:
        ValueError: another structure.
    """

    def __init__(
        self,
        keys: KeysCollection = "source",
        contrasts: Sequence[str] = ("T1",),
        structure: str | None = "fractions",
        mask_key: str = "mask",
        lesion_key: str | None = None,
        output_key: str | None = "fractions",
        each: bool = False,
    ) -> None:
        super().__init__(keys)
        if structure not in STRUCTURES:
            raise ValueError(f"structure is {structure!r}; it must be fractions, labels or None.")
        self.contrasts = list(contrasts)
        self.structure = structure
        self.mask_key, self.lesion_key, self.output_key = mask_key, lesion_key, output_key
        self.each = each

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the fractions."""
        if self.structure is None:
            return dict(data)
        source = data[self.keys[0]]
        images = convert_to_numpy(source)[: len(self.contrasts)].astype(np.float32)
        mask = convert_to_numpy(data[self.mask_key])[0] > 0
        lesion = mask & (convert_to_numpy(data[self.lesion_key])[0] > 0) if self.lesion_key in data else 0 * mask
        chosen = structure_contrast(self.contrasts, images.any(axis=(1, 2, 3)))
        indices = range(len(images)) if self.each else [chosen or 0]
        parts = [contrast_fractions(images[i], mask, self.contrasts[i], self.structure) for i in indices]
        made = torch.from_numpy(np.concatenate([*parts, lesion[None].astype(np.float32)]))
        if self.output_key is None:
            contrasts, rest = torch.as_tensor(source).tensor_split([len(images)])
            joined = torch.cat([contrasts, made.to(contrasts), rest])
            return {**data, self.keys[0]: MetaTensor(joined).copy_meta_from(source)}
        return {**data, self.output_key: MetaTensor(made).copy_meta_from(source)}
