"""Volumes of one head on the grid of one of them, each as far as it shows it."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, ResampleToMatch

from ..contrasts import CONTRAST_PREFIX, shown_key
from ..volumes.grids import Grid, field_of_view

__all__ = ["OntoReferenced", "mask_shown"]

LEAST_SEEN = 0.5  # of the brain, as in `prepare`
ALL_SEEN = 0.9995  # from here on nothing is said

logger = logging.getLogger(__name__)


class OntoReferenced(MapTransform):
    """Interpolates volumes linearly on the grid of a reference; what a volume does not show becomes background.

    Smooth volumes of smaller voxels before (`SmoothForSpacingd`). With a mask, a volume that shows less than half of it
    is taken out of the data, with a warning. Of one that shows more, but not all, `shown_key` of its key receives where
    it does, (1, H, W, Z) bool. What each shows of the mask goes into the meta of the source (`contrasts` of
    `RegisterContrastsd`) as `seen`, a share, and `used`.

    Args:
        keys: keys of the volumes, MetaTensors (1, H, W, Z), each on a grid of its own; those missing are passed over.
        reference: key of the volume whose grid it is, (1, H, W, Z).
        background: value beyond a volume's field of view, by key (HU of air for a CT); 0 for all others.
        mask_key: key of the brain mask on the reference's grid, (1, H, W, Z), positive inside; None to keep all.
        source_key: key of the volume whose meta is told, if it is there.
    """

    def __init__(
        self,
        keys: KeysCollection,
        reference: str = "image",
        background: Mapping[str, float] | None = None,
        mask_key: str | None = None,
        source_key: str = "source",
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.reference = reference
        self.background = dict(background or {})
        self.mask_key = mask_key
        self.source_key = source_key
        self._resample = ResampleToMatch(mode="bilinear", padding_mode="border")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Bring the volume at each key to the reference's grid."""
        d = dict(data)
        reference = d[self.reference]
        to = _grid(reference)
        views = {key: field_of_view(_grid(d[key]), to) for key in self.key_iterator(d)}
        if self.mask_key is not None:
            views = self._showing_enough(d, views)
        for key, view in views.items():
            beyond = ~torch.from_numpy(view)
            d[key] = self._resample(d[key], img_dst=reference).masked_fill(beyond, self.background.get(str(key), 0.0))
        return d

    def _showing_enough(
        self, data: dict[Hashable, Any], views: Mapping[Hashable, np.ndarray]
    ) -> dict[Hashable, np.ndarray]:
        """The fields of view that show enough of the mask; the other volumes are taken out, and the source is told."""
        mask = (torch.as_tensor(data[self.mask_key])[0] > 0).numpy()
        seen = {key: float(view[mask].sum() / max(mask.sum(), 1)) for key, view in views.items()}
        for key, share in seen.items():
            if LEAST_SEEN <= share < 1:
                data[shown_key(key)] = torch.from_numpy(views[key])[None]
        told = {
            str(key).removeprefix(CONTRAST_PREFIX): {"seen": share, "used": share >= LEAST_SEEN}
            for key, share in seen.items()
        }
        for name, one in told.items():
            if not one["used"]:
                del data[f"{CONTRAST_PREFIX}{name}"]
                logger.warning(
                    f"{data.get('case', 'The case')}: the {name} shows only {100 * one['seen']:.0f} % of the brain and "
                    "is left out."
                )
            elif one["seen"] < ALL_SEEN:
                logger.warning(
                    f"{data.get('case', 'The case')}: the {name} shows {100 * one['seen']:.1f} % of the brain; what it "
                    "does not show is made from the others."
                )
        if self.source_key in data:
            data[self.source_key] = _told(data[self.source_key], told)
        return {key: view for key, view in views.items() if key in data}


def mask_shown(data: Mapping[Hashable, Any], key: Hashable, mask_key: str) -> torch.Tensor:
    """(1, H, W, Z) bool: where a volume shows the mask; all of it where `OntoReferenced` tells nothing else."""
    mask = torch.as_tensor(data[mask_key]) > 0
    shown = data.get(shown_key(key))
    return mask if shown is None else mask & shown.to(mask.device)


def _told(source: MetaTensor, shown: Mapping[str, Mapping[str, Any]]) -> MetaTensor:
    """The source, whose meta tells more of each contrast."""
    contrasts = {name: {**told, **shown.get(name, {})} for name, told in source.meta.get("contrasts", {}).items()}
    meta = {**source.meta, "contrasts": contrasts} if contrasts else source.meta
    return MetaTensor(source.as_tensor(), meta=meta, applied_operations=source.applied_operations)


def _grid(volume: Any) -> Grid:
    return Grid(np.asarray(volume.affine, dtype=np.float64), tuple(volume.shape[1:]))
