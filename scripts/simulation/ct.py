"""Simulated brain CT from the tissue fractions of a T1 volume.

A CT is drawn from what is known of CT (HU of tissues, shading, noise, resolution, slice thickness, the skull's edge),
with broad priors, so that a network trained on (simulated CT, real T1) meets real CT as one more draw.
`SimulatedCTParameters.draw` draws, `simulate_ct` is deterministic given the parameters.

Lesions: the T1 of the pair shows none of the lesions that are simulated here, so each teaches the network to erase what
it should keep. They are therefore rare, small and faint: enough that one does not throw the network off around it.
Lesions that the T1 does show are in its tissue fractions (dark white matter counts as part fluid) and are dark on both
sides.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from monai.transforms import MapTransform, Randomizable, Transform
from monai.utils import convert_to_numpy
from scipy import ndimage
from torch.nn import functional

from .ct_anatomy import CALCIFIED_PLACES, Anatomy, smooth_field, stamp_ball
from .ct_parameters import SimulatedCTParameters
from .separable import apply_along_axes, gaussian_matrix
from .tissue import CSF, voxel_size

# every stage has random numbers of its own, so that one left out does not change the others
_TEXTURE, _SHADING, _NOISE, _MASK, _SHELL, _BONE, _SPOTS, _LESIONS = range(8)


def thick_slice_matrix(size: int, thickness: float, phase: float) -> np.ndarray:
    """(size, size) float32: averages over ``thickness`` voxels, linearly interpolated back; rows sum to 1.

    Args:
        size: voxels along the axis.
        thickness: of the slices and between their centres, in voxels; up to 1 gives the identity.
        phase: shift of the first slice, in slices.
    """
    if thickness <= 1:
        return np.eye(size, dtype=np.float32)
    centres = np.arange(phase * thickness - thickness / 2, size + thickness, thickness)
    edges = np.arange(size + 1) - 0.5
    overlap = np.minimum(edges[None, 1:], centres[:, None] + thickness / 2)
    overlap = np.clip(overlap - np.maximum(edges[None, :-1], centres[:, None] - thickness / 2), 0, None)
    inside = overlap.sum(1) > 0
    centres, overlap = centres[inside], overlap[inside]
    average = overlap / overlap.sum(1, keepdims=True)
    places = np.arange(size)
    back = np.stack([np.interp(places, centres, unit) for unit in np.eye(len(centres))], axis=1)
    return (back @ average).astype(np.float32)


def _mix(hu: np.ndarray, weight: np.ndarray, value: float) -> np.ndarray:
    """Replace the share ``weight`` of each voxel by ``value``."""
    return hu + weight * (value - hu)


def _tissue_hu(anatomy: Anatomy, p: SimulatedCTParameters) -> np.ndarray:
    """HU of the brain's tissue, with fluid all around."""
    levels = np.array([p.csf_hu, p.grey_hu, p.white_hu, p.deep_grey_hu], np.float32)
    hu = np.tensordot(levels, anatomy.tissue, 1) + (1 - anatomy.tissue.sum(0)) * np.float32(p.csf_hu)
    if p.texture_hu:
        field = smooth_field(np.random.default_rng((p.seed, _TEXTURE)), hu.shape, anatomy.spacing_mm, 8.0)
        hu = hu + p.texture_hu * field * (1 - anatomy.tissue[CSF]) * anatomy.mask
    return hu


def _add_lesions(hu: np.ndarray, anatomy: Anatomy, p: SimulatedCTParameters) -> np.ndarray:
    """Infarcts darken tissue, haemorrhages replace it; both start at random voxels of it."""
    rng = np.random.default_rng((p.seed, _LESIONS))
    tissue = anatomy.mask * (1 - anatomy.tissue[CSF])
    candidates = np.flatnonzero(tissue > 0.9)

    def lesions(count: int, radius_mm: float) -> np.ndarray:
        weight = np.zeros_like(hu)
        for _ in range(count if len(candidates) else 0):
            centre = np.unravel_index(rng.choice(candidates), hu.shape)
            stamp_ball(weight, centre, radius_mm * rng.uniform(0.6, 1), anatomy.spacing_mm, rng)
        return weight * tissue

    if p.num_infarcts:
        hu = hu + p.infarct_hu * lesions(p.num_infarcts, p.infarct_radius_mm)
    if p.num_haemorrhages:
        hu = _mix(hu, lesions(p.num_haemorrhages, p.haemorrhage_radius_mm), p.haemorrhage_hu)
    return hu


def _add_calcifications(hu: np.ndarray, anatomy: Anatomy, p: SimulatedCTParameters) -> np.ndarray:
    """Spots of 1 to 3 mm near the places where calcium is common."""
    rng = np.random.default_rng((p.seed, _SPOTS))
    weight = np.zeros_like(hu)
    for index in rng.permutation(len(CALCIFIED_PLACES))[: p.num_calcifications]:
        place = np.asarray(CALCIFIED_PLACES[index]) + rng.normal(0, 0.012, 3)
        stamp_ball(weight, anatomy.voxel(place), rng.uniform(1, 3), anatomy.spacing_mm)
    return _mix(hu, weight, p.calcification_hu)


def _add_skull(hu: np.ndarray, anatomy: Anatomy, p: SimulatedCTParameters) -> np.ndarray:
    """Bone beyond a fluid shell of uneven thickness around the T1's mask, thinner in places."""
    thickness = np.full_like(hu, p.shell_mm)
    if p.shell_raggedness_mm:
        rng = np.random.default_rng((p.seed, _SHELL))
        thickness += p.shell_raggedness_mm * smooth_field(rng, hu.shape, anatomy.spacing_mm, 12.0)
    strength = 1 + 0.4 * smooth_field(np.random.default_rng((p.seed, _BONE)), hu.shape, anatomy.spacing_mm, 15.0)
    beyond = np.clip((-anatomy.depth - np.maximum(thickness, 0.3)) / min(anatomy.spacing_mm) + 0.5, 0, 1)
    return _mix(hu, beyond * (1 - anatomy.envelope), p.bone_hu * np.clip(strength, 0.2, 2))


def cupping_field(mask: np.ndarray, spacing_mm: Sequence[float], cupping_hu: Sequence[float]) -> np.ndarray:
    """Beam hardening's brightening towards the skull, on scales of 10 and 20 mm; its median in the mask is 0."""
    small = [max(1, round(4 / s)) for s in spacing_mm]
    size = [max(2, -(-n // k)) for n, k in zip(mask.shape, small, strict=True)]
    coarse = functional.interpolate(torch.from_numpy(mask[None, None].astype(np.float32)), size=size, mode="area")
    field = np.zeros(size, np.float32)
    for amplitude, scale_mm in zip(cupping_hu, (10.0, 20.0), strict=True):
        sigma = [scale_mm * m / (n * s) for m, n, s in zip(size, mask.shape, spacing_mm, strict=True)]
        smoothed = ndimage.gaussian_filter(coarse[0, 0].numpy(), sigma, mode="constant")
        field += amplitude * 2 * (1 - smoothed)
    full = functional.interpolate(
        torch.from_numpy(field[None, None]), size=tuple(mask.shape), mode="trilinear", align_corners=False
    )[0, 0].numpy()
    return full - np.median(full[mask > 0])


def _resolution_matrices(
    shape: Sequence[int], spacing_mm: Sequence[float], p: SimulatedCTParameters
) -> list[np.ndarray]:
    """Blur and slice thickness as a matrix along each axis."""
    sigmas = (p.blur_in_plane_mm, p.blur_in_plane_mm, p.blur_axial_mm)
    matrices = [gaussian_matrix(n, sigma / s) for n, sigma, s in zip(shape, sigmas, spacing_mm, strict=True)]
    matrices[2] = thick_slice_matrix(shape[2], p.slice_thickness_mm / spacing_mm[2], p.slice_phase) @ matrices[2]
    return matrices


def noise_field(shape: Sequence[int], spacing_mm: Sequence[float], p: SimulatedCTParameters) -> np.ndarray:
    """White and correlated noise of standard deviation ``noise_hu`` together."""
    rng = np.random.default_rng((p.seed, _NOISE))
    white = rng.standard_normal(shape, dtype=np.float32)
    matrices = [gaussian_matrix(n, p.noise_correlation_mm / s) for n, s in zip(shape, spacing_mm, strict=True)]
    correlated = apply_along_axes(rng.standard_normal(shape, dtype=np.float32), matrices)
    correlated /= max(float(correlated.std()), 1e-6)
    share = np.clip(p.correlated_share, 0, 1)
    return np.float32(p.noise_hu) * (np.sqrt(1 - share) * white + np.sqrt(share) * correlated).astype(np.float32)


def _ct_mask(anatomy: Anatomy, p: SimulatedCTParameters) -> np.ndarray:
    """The mask that a skull strip of this CT would give: the T1's, grown or shrunk unevenly."""
    if not p.mask_growth_mm and not p.mask_raggedness_mm:
        return anatomy.envelope
    rng = np.random.default_rng((p.seed, _MASK))
    ragged = smooth_field(rng, anatomy.mask.shape, anatomy.spacing_mm, 10.0)
    growth = p.mask_growth_mm + p.mask_raggedness_mm * ragged
    # growing and shrinking never rounds off what the T1's mask has: only the smooth surface's neighbourhood changes
    outside = anatomy.depth > -growth
    return np.where(growth > 0, anatomy.envelope | outside, anatomy.envelope & outside)


def simulate_ct(
    tissue: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], parameters: SimulatedCTParameters
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate the CT of a brain with known tissue fractions.

    Args:
        tissue: (4, H, W, Z) fractions of CSF, cortical grey, white, deep grey matter; 0 outside the mask.
        mask: (1, H, W, Z) or (H, W, Z), the T1's brain mask, RAS.
        spacing_mm: voxel size.
        parameters: the CT's appearance, with the seed.

    Returns:
        HU (1, H, W, Z) float32, 0 outside the CT's own mask, and that mask (1, H, W, Z) bool.

    Raises:
        ValueError: the mask is empty.
    """
    p = parameters
    brain = np.squeeze(np.asarray(mask) > 0).astype(np.float32)
    anatomy = Anatomy(np.asarray(tissue, np.float32), brain, spacing_mm, p.closing_mm)
    hu = _add_lesions(_tissue_hu(anatomy, p), anatomy, p)
    if p.dura_weight:
        hu = _mix(hu, p.dura_weight * anatomy.dura(p.dura_thickness_mm), p.dura_hu)
    if p.vessel_weight:
        hu = _mix(hu, p.vessel_weight * anatomy.vessels(), p.vessel_hu)
    if p.num_calcifications:
        hu = _add_calcifications(hu, anatomy, p)
    if p.bone_hu:
        hu = _add_skull(hu, anatomy, p)
    hu = apply_along_axes(hu.astype(np.float32), _resolution_matrices(hu.shape, spacing_mm, p))
    if any(p.cupping_hu):
        hu = hu + cupping_field(anatomy.envelope, spacing_mm, p.cupping_hu)
    if p.shading_hu:
        rng = np.random.default_rng((p.seed, _SHADING))
        hu = hu + p.shading_hu * smooth_field(rng, hu.shape, spacing_mm, 40.0)
    if p.noise_hu:
        hu = hu + noise_field(hu.shape, spacing_mm, p)
    ct_mask = _ct_mask(anatomy, p)
    return (hu * ct_mask).astype(np.float32)[None], ct_mask[None]


def hu_to_unit_source(
    hu: np.ndarray, mask: np.ndarray, postprocess: Callable | None = None, window_hu: tuple[float, float] = (0.0, 80.0)
) -> np.ndarray:
    """HU to the network's source image, by the steps that a real CT goes through.

    Args:
        hu: (1, H, W, Z) HU.
        mask: (1, H, W, Z) the CT's brain mask.
        postprocess: called (hu, mask) -> hu, such as the removal of the slow HU trend at inference; None for none.
        window_hu: mapped to [0, 1] and clipped.

    Returns:
        (1, H, W, Z) float32 in [0, 1], 0 outside the mask.
    """
    if postprocess is not None:
        hu = convert_to_numpy(postprocess(torch.from_numpy(hu), torch.from_numpy(mask)))
    low, high = window_hu
    return (np.clip((hu - low) / (high - low), 0, 1) * mask).astype(np.float32)


class SimulateCT(Transform):
    """`simulate_ct` with fixed parameters, as a transform of (tissue, mask, spacing_mm)."""

    def __init__(self, parameters: SimulatedCTParameters) -> None:
        self.parameters = parameters

    def __call__(self, tissue, mask, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        return simulate_ct(convert_to_numpy(tissue), convert_to_numpy(mask), spacing_mm, self.parameters)


class RandSimulateCT(Randomizable, Transform):
    """Draw parameters and hand over to `SimulateCT`.

    Args:
        fixed: parameters by name that are not drawn, such as ``{"noise_hu": 2.0}``.

    Attributes:
        parameters: of the latest call.
    """

    def __init__(self, fixed: Mapping[str, object] | None = None) -> None:
        known = {f.name for f in fields(SimulatedCTParameters)}
        unknown = set(fixed or {}) - known
        if unknown:
            raise ValueError(f"no parameters of the simulated CT: {sorted(unknown)}; known: {sorted(known)}")
        self.fixed = dict(fixed or {})
        self.parameters: SimulatedCTParameters | None = None

    def randomize(self, data=None) -> None:
        self.parameters = replace(SimulatedCTParameters.draw(self.R), **self.fixed)

    def __call__(self, tissue, mask, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        self.randomize()
        return SimulateCT(self.parameters)(tissue, mask, spacing_mm)


class RandSimulateCTd(Randomizable, MapTransform):
    """Add a simulated CT as source image in [0, 1] to the data dictionary.

    Args:
        keys: key of the tissue fractions (4, H, W, Z).
        mask_key: key of the T1's brain mask (1, H, W, Z).
        reference_key: key of a ``MetaTensor`` whose affine gives the voxel size, unless ``spacing_mm`` does.
        output_key: receives the source (1, H, W, Z) float32 in [0, 1], 0 outside the CT's mask.
        output_mask_key: receives the CT's mask (1, H, W, Z).
        spacing_mm: voxel size.
        postprocess, window_hu: as in ``hu_to_unit_source``.
        fixed: as in ``RandSimulateCT``.
    """

    def __init__(
        self,
        keys="tissue",
        mask_key: str = "mask",
        reference_key: str = "target",
        output_key: str = "source",
        output_mask_key: str = "source_mask",
        spacing_mm: Sequence[float] | None = None,
        postprocess: Callable | None = None,
        window_hu: tuple[float, float] = (0.0, 80.0),
        fixed: Mapping[str, object] | None = None,
    ) -> None:
        MapTransform.__init__(self, keys)
        self.mask_key, self.reference_key = mask_key, reference_key
        self.output_key, self.output_mask_key = output_key, output_mask_key
        self.spacing_mm, self.postprocess, self.window_hu = spacing_mm, postprocess, window_hu
        self.simulate = RandSimulateCT(fixed)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None):
        self.simulate.set_random_state(seed, state)
        super().set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        spacing = voxel_size(data.get(self.reference_key), self.spacing_mm)
        hu, mask = self.simulate(data[self.keys[0]], data[self.mask_key], spacing)
        source = hu_to_unit_source(hu, mask, self.postprocess, self.window_hu)
        return {**data, self.output_key: torch.from_numpy(source), self.output_mask_key: torch.from_numpy(mask)}
