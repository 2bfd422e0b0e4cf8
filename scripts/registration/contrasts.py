"""The contrasts of a subject brought to one of them, in the main job."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ..contrasts import CONTRAST_PREFIX
from ..volumes.load import tell_doubt
from .rigid import register_checked

__all__ = ["RegisterContrastsd", "on_one_grid"]

logger = logging.getLogger(__name__)


class RegisterContrastsd(MapTransform):
    """Makes the first contrast that is there the reference, and registers rigidly to it what is on another grid.

    Only affines change, so that each volume is interpolated once, later. Volumes on the reference's own grid, in
    whatever order they are stored, are trusted, unless their headers do not say how their axes lie. The meta of the
    reference tells its `contrast`; `contrasts`, for each that is there `moved_mm`, the longest way of a point of the
    head, below 0 where it was not registered; and `contrast_files`, the file or files of each.

    Args:
        keys: keys of the contrasts in their order (`contrast_key`), MetaTensors (1, H, W, Z); those missing are absent.
        reference: receives the first contrast that is there, its voxels shared.
        enabled: whether volumes are registered; without it their headers are trusted.

    Raises:
        CaseError: a registration that cannot be right (`register_checked`); the sentence begins with the case.
    """

    def __init__(self, keys: KeysCollection, reference: str = "image", enabled: bool = True) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.reference = reference
        self.enabled = enabled

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Choose the reference and bring the others to it."""
        d = dict(data)
        there = {str(key).removeprefix(CONTRAST_PREFIX): key for key in self.key_iterator(d)}
        (first, key), *others = there.items()
        fixed, moved = d[key], {first: -1.0}
        for name, other in others:
            moved[name] = -1.0
            tell_doubt(d[other])  # that of the reference is told of the result
            if self.enabled and not _trusted(fixed, d[other]):
                d[other], moved[name] = _registered(d[other], fixed, f"{d.get('case', 'The case')}, {name} to {first}")
        told = {
            "contrast": first,
            "contrasts": {name: {"moved_mm": way} for name, way in moved.items()},
            "contrast_files": {name: _files(d[other]) for name, other in there.items()},
        }
        d[self.reference] = MetaTensor(fixed.as_tensor(), meta={**deepcopy(fixed.meta), **told})
        logger.info(_told(str(d.get("case", "The case")), first, moved))
        return d


def _trusted(fixed: MetaTensor, other: MetaTensor) -> bool:
    """Whether both are on one grid, and it is no guess of one of them how its axes lie."""
    alike = fixed.meta.get("unplaced", False) == other.meta.get("unplaced", False)
    return alike and on_one_grid(fixed, other)


def on_one_grid(one: MetaTensor, other: MetaTensor, tolerance: float = 0.1) -> bool:
    """Whether the voxels of two volumes (1, H, W, Z) lie at the same places, to `tolerance` mm at the corners.

    They may be stored in another order: axes flipped or exchanged, as programs do that convert DICOM.
    """
    to, affine = (np.asarray(volume.affine, dtype=np.float64) for volume in (one, other))
    order = nib.io_orientation(np.linalg.inv(to) @ affine)  # of the other's axes along those of the one
    shape = tuple(np.array(other.shape[1:])[np.argsort(order[:, 0])])
    if one.shape[1:] != shape:
        return False
    affine = affine @ nib.orientations.inv_ornt_aff(order, other.shape[1:])
    corners = np.array(list(product(*([0, n - 1] for n in shape))))
    apart = nib.affines.apply_affine(to, corners) - nib.affines.apply_affine(affine, corners)
    return bool(np.abs(apart).max() < tolerance)


def _registered(volume: MetaTensor, fixed: MetaTensor, name: str) -> tuple[MetaTensor, float]:
    """The volume where the fixed one shows the same head, and by how many mm it was moved."""
    files = (_file_name(volume), _file_name(fixed))
    registration = register_checked(_image(volume), _image(fixed), name, files)
    moved = MetaTensor(volume.as_tensor(), meta=deepcopy(volume.meta))
    moved.affine = np.linalg.inv(registration.matrix) @ np.asarray(volume.affine, dtype=np.float64)
    return moved, round(registration.displacement_mm, 2)


def _image(volume: MetaTensor) -> nib.Nifti1Image:
    return nib.Nifti1Image(volume[0].numpy(), np.asarray(volume.affine, dtype=np.float64))


def _files(volume: MetaTensor) -> Any:
    return volume.meta.get("dicom_files") or str(volume.meta.get("filename_or_obj", ""))


def _file_name(volume: MetaTensor) -> str:
    """The name of the file for a sentence; a series has none."""
    files = _files(volume)
    return Path(files).name or "the volume" if isinstance(files, str) else "the DICOM series"


def _told(case: str, reference: str, moved: Mapping[str, float]) -> str:
    """For the log: what a case is made from, and what was registered."""
    ways = [f"{name} was moved by {way:.1f} mm" for name, way in moved.items() if way >= 0]
    how = f"; registered to the {reference}: {', '.join(ways)}" if ways else ""
    return f"{case}: used are {', '.join(moved)}{how}."
