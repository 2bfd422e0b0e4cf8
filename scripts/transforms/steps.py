"""The named steps of preprocessing: the same ones in the main job, in training and in preparation.

A config lists them (`preprocessing` of inference.json, `load` of train.json); a task's overlay replaces one of them by
another of these, or by a `Compose` of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Orientationd,
    ResampleToMatchd,
    ScaleIntensityRanged,
    Spacingd,
)
from monai.utils import ensure_tuple

from ..volumes.scaling import ScaleByBrainModed
from .bias_field import BiasFieldCorrectd
from .checks import CheckMagnituded, CheckNoLabelsd, CheckVolumed
from .hounsfield import CheckHounsfieldd, WindowToHUd
from .intensity import FlattenHUTrendd
from .spatial import BackgroundOutsided, SmoothForSpacingd, VolumeSpacingd
from .stack_contrasts import StackContrastsd

__all__ = [
    "Steps",
    "contrasts_intensity",
    "ct_intensity",
    "mri_intensity",
    "pair_geometry",
    "volume_checks",
    "volume_geometry",
]


class Steps(Compose):
    """MONAI's `Compose` of steps, each a transform or a `Compose`, as one flat list of transforms.

    Servers such as MONAI Label call the transforms of the list one by one and answer with what one of them raises; a
    nested `Compose` would wrap the sentence in an error of its own.

    Args:
        transforms: the steps in their order.
    """

    def __init__(self, transforms: Sequence[Callable]) -> None:
        super().__init__(Compose(transforms).flatten().transforms)


def volume_checks(
    keys: KeysCollection,
    image_keys: KeysCollection,
    source_key: str,
    ct_window: Sequence[float] | None = None,
    check_hounsfield: bool = True,
) -> Compose:
    """Volumes as they were read to (1, H, W, Z); what cannot be translated or learned from is refused in a sentence.

    Args:
        keys: all volumes, such as images, mask and labels; those that are missing are passed over.
        image_keys: those that have to be scans: finite, not constant, on a usable grid.
        source_key: the source, which may be a CT.
        ct_window: see `WindowToHUd`.
        check_hounsfield: whether the source has to be in HU; else it may be no map of labels.
    """
    check = CheckHounsfieldd if check_hounsfield else CheckNoLabelsd
    steps = [
        EnsureChannelFirstd(keys, allow_missing_keys=True),
        CheckVolumed(image_keys, allow_missing_keys=True),
        WindowToHUd(source_key, ct_window, allow_missing_keys=True),
    ]
    return Compose([*steps, check(source_key, allow_missing_keys=True)])


def volume_geometry(keys: KeysCollection, mask_key: str, spacing: Sequence[float], dtype: Any) -> Compose:
    """A volume and its mask to RAS axes and the network's voxels, invertible.

    Args:
        keys: the volume, MetaTensor (1, H, W, Z).
        mask_key: its mask on the same grid.
        spacing: edges of the voxels, mm.
        dtype: floating type of the resampling.
    """
    both = (*ensure_tuple(keys), mask_key)
    return Compose(
        [
            Orientationd(both, axcodes="RAS", labels=None),
            SmoothForSpacingd(keys, spacing),
            VolumeSpacingd(both, spacing, mode=("bilinear", "nearest"), dtype=dtype),
        ]
    )


def pair_geometry(
    keys: KeysCollection, image_keys: KeysCollection, spacing: Sequence[float], reference: str = "target"
) -> Compose:
    """The volumes of a training subject to RAS axes and the grid of the target at the network's voxels.

    Args:
        keys: all volumes, "mask" and the reference among them; those that are missing are passed over.
        image_keys: those that are scans: they are interpolated linearly, the others by the nearest voxel.
        spacing: edges of the voxels, mm.
        reference: whose grid it is, "mask" where the target is one of several contrasts.
    """
    images = ensure_tuple(image_keys)
    others = [key for key in ensure_tuple(keys) if key != reference]
    modes = {key: "bilinear" if key in images else "nearest" for key in ensure_tuple(keys)}
    return Compose(
        [
            Orientationd(keys, axcodes="RAS", labels=None, allow_missing_keys=True),
            SmoothForSpacingd(images, spacing, allow_missing_keys=True),
            Spacingd(reference, spacing, mode=modes[reference]),
            ResampleToMatchd(others, reference, mode=[modes[key] for key in others], allow_missing_keys=True),
            AsDiscreted("mask", threshold=1e-6),
        ]
    )


def ct_intensity(keys: KeysCollection, mask_key: str = "mask", window: Sequence[float] = (0, 80)) -> Compose:
    """HU to [0, 1]: the slow trend of HU is removed, then the window is cut out; background becomes 0.

    The order matters: a trend that was estimated after clipping would leave out what the scanner shifted beyond the
    window.

    Args:
        keys: CT volumes, MetaTensors (1, H, W, Z), HU; those that are missing are passed over.
        mask_key: brain mask on the same grid, positive inside.
        window: HU that become 0 and 1.
    """
    low, high = window
    return Compose(
        [
            FlattenHUTrendd(keys, mask_key, allow_missing_keys=True),
            ScaleIntensityRanged(keys, low, high, 0.0, 1.0, clip=True, allow_missing_keys=True),
            BackgroundOutsided(keys, mask_key, allow_missing_keys=True),
        ]
    )


def mri_intensity(keys: KeysCollection, mask_key: str = "mask", anchor: float = 0.6, knee: float = 0.8) -> Compose:
    """An MRI of any unit to [0, 1]: the bias field is divided out, then the brain's commonest value becomes the anchor.

    Args:
        keys: MRI volumes, MetaTensors (1, H, W, Z).
        mask_key: brain mask on the same grid, positive inside.
        anchor, knee: see `scaled_by_mode`.
    """
    return Compose(
        [CheckMagnituded(keys), BiasFieldCorrectd(keys, mask_key), ScaleByBrainModed(keys, mask_key, anchor, knee)]
    )


def contrasts_intensity(
    keys: KeysCollection,
    ct_key: str,
    reference: str = "mask",
    mask_key: str = "mask",
    output_key: str = "source",
    window: Sequence[float] = (0, 80),
) -> Compose:
    """Contrasts of one head, each in its unit, to the channels of one volume in [0, 1]; zeros where one is absent.

    Of an MRI the bias field is divided out, then its 99.9 percentile in the brain becomes 1; a CT is windowed.

    Args:
        keys: of the contrasts in the order of the channels, MetaTensors (1, H, W, Z); those missing are absent.
        ct_key: which of them is a CT, HU.
        reference, output_key: see `StackContrastsd`.
        mask_key: brain mask on the same grid, positive inside.
        window: HU of the CT that become 0 and 1.
    """
    mri = [key for key in ensure_tuple(keys) if key != ct_key]
    return Compose(
        [
            CheckMagnituded(mri, allow_missing_keys=True),
            BiasFieldCorrectd(mri, mask_key, allow_missing_keys=True),
            ct_intensity(ct_key, mask_key, window),
            StackContrastsd(keys, reference, mask_key, output_key, windowed=ct_key),
        ]
    )
