"""What turns a source of each kind into the network's input range: the same steps in the main job, training and
preparation.

A task's overlay names one of these, or a `Compose` of its own, as `source_intensity`.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.config import KeysCollection
from monai.transforms import Compose, ScaleIntensityRanged

from ..volumes.scaling import ScaleByBrainPercentiled
from .bias_field import BiasFieldCorrectd
from .intensity import FlattenHUTrendd
from .spatial import BackgroundOutsided

__all__ = ["ct_intensity", "mri_intensity"]


def ct_intensity(
    keys: KeysCollection, mask_key: str = "mask", window: Sequence[float] = (0, 80), allow_missing_keys: bool = False
) -> Compose:
    """HU to [0, 1]: the slow trend of HU is removed, then the window is cut out; background becomes 0.

    The order matters: a trend that was estimated after clipping would leave out what the scanner shifted beyond the
    window.

    Args:
        keys: CT volumes, MetaTensors (1, H, W, Z), HU.
        mask_key: brain mask on the same grid, positive inside.
        window: HU that become 0 and 1.
        allow_missing_keys: no error where a key is missing.
    """
    low, high = window
    return Compose(
        [
            FlattenHUTrendd(keys, mask_key, allow_missing_keys=allow_missing_keys),
            ScaleIntensityRanged(keys, low, high, 0.0, 1.0, clip=True, allow_missing_keys=allow_missing_keys),
            BackgroundOutsided(keys, mask_key, allow_missing_keys=allow_missing_keys),
        ]
    )


def mri_intensity(keys: KeysCollection, mask_key: str = "mask") -> Compose:
    """An MRI of any unit to [0, 1]: the bias field is divided out, then the brain's 99.9 percentile; background 0.

    Args:
        keys: MRI volumes, MetaTensors (1, H, W, Z).
        mask_key: brain mask on the same grid, positive inside.
    """
    return Compose([BiasFieldCorrectd(keys, mask_key), ScaleByBrainPercentiled(keys, mask_key)])
