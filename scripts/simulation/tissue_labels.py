"""Tissue maps from labels drawn by hand or by DLMUSE: what the tissue segmenter learns from."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_numpy

from .tissue import CSF, DEEP_GREY, GREY, WHITE, tissue_fractions, voxel_size

TISSUE_CLASSES = (1, 2, 2, 3, 2, 3, 3)
"""CSF (1), grey (2) or white matter (3) of the seven hand-drawn classes of OASIS: ventricles and other CSF, cortical
and deep grey matter, cerebral white matter, cerebellar cortex, cerebellar white matter, brainstem."""
_DLMUSE_CSF = (1, 4, 11, 46, 49, 50, 51, 52)
_DLMUSE_WHITE = (35, 40, 41, *range(81, 96))


def tissue_of_labels(labels: np.ndarray) -> np.ndarray:
    """CSF (1), grey (2) and white matter (3) of labels, 0 where there are none.

    Args:
        labels: integers of any shape: the seven `TISSUE_CLASSES`, or the regions of DLMUSE, whose numbers go beyond 7.

    Returns:
        uint8 of the same shape.
    """
    labels = np.asarray(labels).astype(int)
    table = np.zeros(max(8, labels.max() + 1), np.uint8)
    if labels.max() < len(table) == 8:
        table[1:] = TISSUE_CLASSES
        return table[labels]
    table[1:] = 2
    table[[n for n in _DLMUSE_CSF if n < len(table)]] = 1
    table[[n for n in _DLMUSE_WHITE if n < len(table)]] = 3
    return table[labels]


class TissueMapsd(MapTransform):
    """Add maps of CSF, grey and white matter to the data dictionary, where labels and brightness each know best.

    Labelled voxels are of their label's tissue. Hand labels leave out the fluid of the sulci: the brain's voxels
    without a label get the fractions of `tissue_fractions`.

    Args:
        keys: key of the T1, (1, H, W, Z) in [0, 1], skull-stripped, a ``MetaTensor`` in RAS.
        mask_key: key of its brain mask.
        labels_key: key of its labels, see `tissue_of_labels`.
        output_key: receives (3, H, W, Z) float32, sum 1 in the brain and 0 outside.
        copy_key: receives the T1 itself, the segmenter's input; None for none.
        spacing_mm: voxel size; None takes it from the volume's affine.
    """

    def __init__(
        self,
        keys: KeysCollection = "target",
        mask_key: str = "mask",
        labels_key: str = "labels",
        output_key: str = "extras",
        copy_key: str | None = "source",
        spacing_mm: Sequence[float] | None = None,
    ) -> None:
        super().__init__(keys)
        self.mask_key, self.labels_key, self.output_key, self.copy_key = mask_key, labels_key, output_key, copy_key
        self.spacing_mm = spacing_mm

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        volume = data[self.keys[0]]
        mask = convert_to_numpy(data[self.mask_key])[0] > 0
        fractions = tissue_fractions(convert_to_numpy(volume), mask, voxel_size(volume, self.spacing_mm))
        maps = np.stack([fractions[CSF], fractions[GREY] + fractions[DEEP_GREY], fractions[WHITE]])
        tissue = tissue_of_labels(convert_to_numpy(data[self.labels_key])[0]) * mask
        drawn = (tissue == np.arange(1, 4)[:, None, None, None]).astype(np.float32)
        copied = {} if self.copy_key is None else {self.copy_key: volume}
        return {**data, **copied, self.output_key: torch.from_numpy(np.where(tissue > 0, drawn, maps))}
