"""Volumes of one head on the grid of one of them, each as far as it shows it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, ResampleToMatch

from ..volumes.grids import Grid, field_of_view

__all__ = ["OntoReferenced"]


class OntoReferenced(MapTransform):
    """Interpolates volumes linearly on the grid of a reference; what a volume does not show becomes background.

    Smooth volumes of smaller voxels before (`SmoothForSpacingd`).

    Args:
        keys: keys of the volumes, MetaTensors (1, H, W, Z), each on a grid of its own; those missing are passed over.
        reference: key of the volume whose grid it is, (1, H, W, Z).
        background: value beyond a volume's field of view, by key (HU of air for a CT); 0 for all others.
    """

    def __init__(
        self, keys: KeysCollection, reference: str = "image", background: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.reference = reference
        self.background = dict(background or {})
        self._resample = ResampleToMatch(mode="bilinear", padding_mode="border")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Bring the volume at each key to the reference's grid."""
        d = dict(data)
        reference = d[self.reference]
        to = _grid(reference)
        for key in self.key_iterator(d):
            beyond = ~torch.from_numpy(field_of_view(_grid(d[key]), to))
            d[key] = self._resample(d[key], img_dst=reference).masked_fill(beyond, self.background.get(str(key), 0.0))
        return d


def _grid(volume: Any) -> Grid:
    return Grid(np.asarray(volume.affine, dtype=np.float64), tuple(volume.shape[1:]))
