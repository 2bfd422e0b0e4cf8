"""Where the voxels of a NIfTI file lie, decided once for every reader and writer.

A NIfTI header has two places for this, sform and qform, each with a code (0: not set), and the edges of the voxels
(pixdim), which belong to the qform. Where they contradict each other, libraries choose in silence, each its own way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np

from ..errors import CaseError

__all__ = ["Placement", "nifti_placement", "shear_degrees"]

TEMPLATE_CODE = 3  # from here on a form leads to the space of a template, not to the scanner's
ROUNDING = 0.01  # relative, of voxel sizes
ROUNDING_DEGREES, ROUNDING_MM = 1.0, 1.0  # between two forms of one place
LARGEST_TURN = 30.0  # degrees; heads are turned by less when they are aligned to a template
TILT_DEGREES = 0.5
USUAL_EXTENT = (170.0, 220.0, 230.0)  # mm, of a head's field of view, ascending


@dataclass(frozen=True)
class Placement:
    """Where voxels lie.

    Attributes:
        affine: (4, 4), voxel to RAS+ mm.
        code: of the form it was taken from; 0 where the header has none, so that left and right are a guess.
        doubt: what in the header says otherwise, in words; None where nothing does.
        as_stored: whether the header's own fields say the same to every reader, or say two things that are both meant;
            a volume on this grid can then copy them.
    """

    affine: np.ndarray
    code: int
    doubt: str | None = None
    as_stored: bool = True


def nifti_placement(header: nib.Nifti1Header, name: str) -> Placement:
    """Decide where the voxels of a NIfTI file lie: by its sform, else its qform, else a default.

    Args:
        header: of the file.
        name: how sentences call the file.

    Raises:
        CaseError: no form that was set can be used, or sform and qform contradict each other and neither is the more
            plausible one.
    """
    codes = int(header["sform_code"]), int(header["qform_code"])
    if max(codes) <= 0:
        return Placement(header.get_base_affine(), 0)
    sform, qform = (form(header) if code > 0 else None for form, code in zip((_sform, _qform), codes, strict=True))
    if sform is None and qform is None:
        raise CaseError(
            f"{name} has a singular affine or one that is not finite, so its axes span no space; repair the header "
            "(sform, qform)."
        )
    if sform is None:
        doubt = "its sform is singular or not finite, and the qform was taken" if codes[0] > 0 else None
        return Placement(qform, codes[1], doubt, doubt is None)
    if qform is None:
        doubt = "its qform cannot be read, and the sform was taken" if codes[1] > 0 else None
        return _beside_voxel_sizes(Placement(sform, codes[0], doubt, doubt is None), header, name)
    return _one_of_both(sform, qform, codes, _shape(header), name)


def shear_degrees(axes: np.ndarray) -> float:
    """How far, in degrees, two axes (the columns of (3, 3)) are from a right angle."""
    directions = axes / np.linalg.norm(axes, axis=0)
    return float(np.degrees(np.arcsin(min(np.abs(np.triu(directions.T @ directions, k=1)).max(), 1.0))))


def _sform(header: nib.Nifti1Header) -> np.ndarray | None:
    return _usable(header.get_sform())


def _qform(header: nib.Nifti1Header) -> np.ndarray | None:
    try:
        return _usable(header.get_qform())
    except (ValueError, nib.spatialimages.HeaderDataError):  # no rotation
        return None


def _usable(affine: np.ndarray) -> np.ndarray | None:
    """The affine, or None where it is not finite or its axes span no space."""
    affine = np.asarray(affine, dtype=np.float64)
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (edges > 0).all():
        return None
    return affine if abs(np.linalg.det(affine[:3, :3] / edges)) > 1e-3 else None


def _shape(header: nib.Nifti1Header) -> np.ndarray:
    return np.array([*header.get_data_shape(), 1, 1, 1][:3])


def _beside_voxel_sizes(placement: Placement, header: nib.Nifti1Header, name: str) -> Placement:
    """A sform that stands alone, beside the voxel sizes of the header, which most writers keep in step with it."""
    stored = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    edges, shape = nib.affines.voxel_sizes(placement.affine), _shape(header)
    if np.allclose(stored, edges, rtol=ROUNDING):
        return placement
    odd, likely = _oddness(edges * shape) > _oddness(stored * shape) + 1, _oddness(stored * shape) < 1.5
    if likely and (odd or _is_unset(placement.affine)):
        raise CaseError(
            f"{name} has a sform with voxels of {_by(edges)} mm and voxel sizes (pixdim) of {_by(stored)} mm; "
            "correct the wrong one."
        )
    return Placement(placement.affine, placement.code, placement.doubt, as_stored=False)


def _one_of_both(
    sform: np.ndarray, qform: np.ndarray, codes: tuple[int, int], shape: np.ndarray, name: str
) -> Placement:
    """The sform, unless the qform is the one that can be believed."""
    by_sform, by_qform = Placement(sform, codes[0]), Placement(qform, codes[1])
    edges = [nib.affines.voxel_sizes(form) for form in (sform, qform)]
    sheared = shear_degrees(sform[:3, :3]) > TILT_DEGREES
    if sheared and _share_two_axes(sform, qform):  # a gantry's tilt, which no qform can hold
        return by_sform
    alike = np.allclose(*edges, rtol=ROUNDING)
    if not alike and codes[0] >= TEMPLATE_CODE > codes[1]:  # an affine registration to a template stretches the head
        return by_qform
    if sheared:
        return by_sform
    unset = _is_unset(sform), _is_unset(qform)
    if alike:
        return _alike_in_size(by_sform, by_qform, unset, shape, name)
    odd = [_oddness(e * shape) for e in edges] if unset[0] == unset[1] else [5.0 * u for u in unset]
    if abs(odd[0] - odd[1]) < 0.5:
        raise CaseError(
            f"{name} has a sform with voxels of {_by(edges[0])} mm and a qform with voxels of {_by(edges[1])} mm; set "
            "the code of the wrong one to 0."
        )
    what = f"its sform has voxels of {_by(edges[0])} mm and its qform of {_by(edges[1])} mm, and the "
    if odd[0] < odd[1]:
        return Placement(sform, codes[0], what + "sform was taken", as_stored=False)
    return Placement(qform, codes[1], what + "qform was taken", as_stored=False)


def _alike_in_size(
    by_sform: Placement, by_qform: Placement, unset: tuple[bool, bool], shape: np.ndarray, name: str
) -> Placement:
    """Of two forms with voxels of one size the sform, where they differ by no more than a head is moved."""
    turn = by_sform.affine[:3, :3] @ np.linalg.inv(by_qform.affine[:3, :3])
    mirrored = np.linalg.det(turn) < 0
    degrees = 180.0 if mirrored else np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    middle = (shape - 1) / 2
    moved = np.linalg.norm(np.subtract(*(nib.affines.apply_affine(p.affine, middle) for p in (by_sform, by_qform))))
    if degrees <= ROUNDING_DEGREES and moved <= ROUNDING_MM:
        return by_sform
    if degrees > LARGEST_TURN:
        how = "mirrored" if mirrored else f"turned by {degrees:.0f} degrees"
        return _the_set_one(by_sform, by_qform, unset, how, name)
    doubt = f"its sform is turned by {degrees:.0f} degrees and moved by {moved:.0f} mm from its qform, and was taken"
    return Placement(by_sform.affine, by_sform.code, doubt)


def _the_set_one(by_sform: Placement, by_qform: Placement, unset: tuple[bool, bool], how: str, name: str) -> Placement:
    """Of two forms that lie quite differently the one that somebody set."""
    axes = ["".join(nib.aff2axcodes(placement.affine)) for placement in (by_sform, by_qform)]
    if unset[0] == unset[1]:
        if axes[0] == axes[1]:
            raise CaseError(f"{name} has a sform that is {how} against its qform; set the code of the wrong one to 0.")
        raise CaseError(
            f"{name} has a sform with the axes {axes[0]} and a qform with the axes {axes[1]}, which is {how}; set the "
            "code of the wrong one to 0."
        )
    chosen, which = (by_qform, "qform") if unset[0] else (by_sform, "sform")
    what = f"its sform has the axes {axes[0]} and its qform {axes[1]}"
    what = what if axes[0] != axes[1] else f"its sform is {how} against its qform"
    return Placement(chosen.affine, chosen.code, f"{what}, and the {which} was taken", as_stored=False)


def _share_two_axes(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two of the three axes have the same direction and edge in both."""
    lengths = np.linalg.norm(other[:3, :3], axis=0)
    return bool((np.linalg.norm(one[:3, :3] - other[:3, :3], axis=0) < 0.02 * lengths).sum() >= 2)


def _is_unset(affine: np.ndarray) -> bool:
    """Whether a form looks like one that nobody set: along the axes, with edges of 1 mm or the first voxel at 0."""
    edges = nib.affines.voxel_sizes(affine)
    along = np.allclose(np.abs(affine[:3, :3]), np.diag(edges), atol=1e-4)
    return bool(along and (np.allclose(edges, 1.0) or not affine[:3, 3].any()))


def _oddness(extent: np.ndarray) -> float:
    """How far the edges of a field of view (mm) are from a head's, as a sum of logarithms."""
    return float(np.abs(np.log(np.sort(extent) / USUAL_EXTENT)).sum())


def _by(numbers: Any) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)
