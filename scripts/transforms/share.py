"""A second key for an item, without a second copy of its voxels."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

__all__ = ["ShareItemsd"]


class ShareItemsd(MapTransform):
    """MONAI's `CopyItemsd` for volumes that nothing writes into: the voxels are shared, all that describes them is not.

    A transform that makes a new volume of one key leaves the other as it was; one that works in place would change
    both, and wants `CopyItemsd`.

    Args:
        keys: keys of the volumes, MetaTensors.
        names: the second key of each.
        allow_missing_keys: no error where a key is missing.
    """

    def __init__(self, keys: KeysCollection, names: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.names = (names,) if isinstance(names, str) else tuple(names)
        if len(self.names) != len(self.keys):
            raise ValueError(f"{len(self.names)} names for {len(self.keys)} keys; give one for each.")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Put the volume at each key under its second one too."""
        d = dict(data)
        for key, name in self.key_iterator(d, self.names):
            volume = d[key]
            d[name] = MetaTensor(
                volume.as_tensor(),
                meta=copy.deepcopy(volume.meta),
                applied_operations=copy.deepcopy(volume.applied_operations),
            )
        return d
