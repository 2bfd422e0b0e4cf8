"""Several contrasts of one head as the channels of one volume."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, ResampleToMatch
from monai.utils import ensure_tuple

from ..contrasts import shown_key
from ..errors import CaseError
from ..volumes.scaling import scaled_by_percentile
from .onto_reference import mask_shown

__all__ = ["StackContrastsd"]


class StackContrastsd(MapTransform):
    """Contrasts on the grid of one of them, each scaled by its own brain, as channels; zeros where one is absent.

    Each volume is interpolated linearly onto the reference's grid, divided by the 99.9 percentile of its voxels in the
    one mask, and clipped to [0, 1]; background is 0. Smooth volumes of smaller voxels before (`SmoothForSpacingd`). The
    result has the reference's affine, header and trace of transforms, so that `Invertd` takes it back like the
    reference. A network takes an all-zero channel for an absent contrast.

    Where one shows a part of the mask only (`OntoReferenced`), it is scaled by that part, and as many channels follow
    that are 1 where each contrast is there and shows the head, else 0.

    Args:
        keys: keys of the contrasts in the order of the channels, such as `contrast_T2` of `inference_datalist`;
            MetaTensors (1, H, W, Z) in any unit, each on a grid of its own. Those that are missing are absent. They are
            taken out of the data.
        reference: key of the volume whose grid it is; it need not be one of the contrasts.
        mask_key: brain mask on the reference's grid, (1, H, W, Z), positive inside.
        output_key: receives the stack, (C or 2 C, H, W, Z) float32 in [0, 1]; None for `reference`.
        percentile: as in `ScaleByBrainPercentiled`.
        windowed: keys of those that are in [0, 1] already, such as a CT after its window: they are not scaled again.

    Raises:
        CaseError: none of the contrasts is there, the mask is empty, or a percentile is not positive.
    """

    def __init__(
        self,
        keys: KeysCollection,
        reference: str = "image",
        mask_key: str = "mask",
        output_key: str | None = None,
        percentile: float = 99.9,
        windowed: KeysCollection = (),
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.windowed = ensure_tuple(windowed)
        self.reference = reference
        self.mask_key = mask_key
        self.output_key = output_key or reference
        self.percentile = percentile
        self._resample = ResampleToMatch(mode="bilinear", padding_mode="zeros")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Stack the contrasts."""
        d = dict(data)
        there = {key: d.pop(key) for key in self.key_iterator(data)}
        if not there:
            raise CaseError(f"None of the contrasts {', '.join(map(str, self.keys))} is there; give one at least.")
        reference = d[self.reference]
        stack = torch.zeros((len(self.keys), *reference.shape[1:]))
        for channel, key in enumerate(self.keys):
            if key in there:
                volume, mask = self._resample(there[key], img_dst=reference), mask_shown(d, key, self.mask_key)
                stack[channel] = torch.as_tensor(self._scaled(volume, mask, key in self.windowed))[0]
        parts = {channel: d.pop(shown_key(key), None) for channel, key in enumerate(self.keys)}
        if any(part is not None for part in parts.values()):
            shown = torch.zeros_like(stack)
            for channel, key in enumerate(self.keys):
                shown[channel] = float(key in there) if parts[channel] is None else parts[channel][0]
            stack = torch.cat([stack, shown])
        d[self.output_key] = MetaTensor(stack).copy_meta_from(reference)
        return d

    def _scaled(self, volume: torch.Tensor, mask: torch.Tensor, windowed: bool) -> torch.Tensor:
        if windowed:
            return volume.clamp(0, 1) * mask
        return scaled_by_percentile(volume, mask, self.percentile)
