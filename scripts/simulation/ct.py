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
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from monai.transforms import MapTransform, Randomizable, Transform
from monai.utils import convert_to_numpy
from scipy import ndimage
from scipy.special import ndtri
from torch.nn import functional

from .separable import apply_along_axes, gaussian_matrix
from .tissue import CSF, GREY, brain_coordinates, voxel_size


@dataclass(frozen=True)
class SimulatedCTParameters:
    """One CT's appearance. HU and mm; the defaults are an ideal scanner and a brain without extras.

    Attributes:
        white_hu, grey_hu, deep_grey_hu, csf_hu: of pure tissue.
        texture_hu: standard deviation of the slow variation within tissue (local contrast).
        cupping_hu: brightening at the brain's edge against its inside, at scales of 10 and 20 mm.
        shading_hu: standard deviation of slow shading (40 mm).
        noise_hu: standard deviation of the noise.
        correlated_share: share of the noise's variance that is correlated.
        noise_correlation_mm: its Gaussian scale.
        blur_in_plane_mm, blur_axial_mm: Gaussian standard deviations.
        slice_thickness_mm: thick slices, interpolated back; 0 keeps the grid.
        slice_phase: where the first thick slice lies, in slices, [0, 1).
        closing_mm: fissures of the T1's mask up to twice this wide are filled with fluid first.
        mask_growth_mm: how far the CT's own brain mask reaches beyond (or, negative, stays within) the T1's.
        mask_raggedness_mm: standard deviation of that along the edge.
        shell_mm: thickness of the fluid between the T1's mask and the bone.
        shell_raggedness_mm: its variation.
        bone_hu: at the skull's inside; 0 leaves bone out.
        dura_hu, dura_weight: of falx and tentorium; weight 0 leaves them out.
        dura_thickness_mm: standard deviation across the sheets.
        vessel_hu, vessel_weight: of sinuses and the middle cerebral arteries.
        calcification_hu, num_calcifications: pineal gland, choroid plexus, pallidum.
        num_infarcts, infarct_hu, infarct_radius_mm: hypodense lesions; infarct_hu is added to tissue.
        num_haemorrhages, haemorrhage_hu, haemorrhage_radius_mm: hyperdense lesions.
        seed: of everything drawn per voxel or place.
    """

    white_hu: float = 26.0
    grey_hu: float = 35.0
    deep_grey_hu: float = 35.0
    csf_hu: float = 7.0
    texture_hu: float = 0.0
    cupping_hu: tuple[float, float] = (0.0, 0.0)
    shading_hu: float = 0.0
    noise_hu: float = 0.0
    correlated_share: float = 0.0
    noise_correlation_mm: float = 1.5
    blur_in_plane_mm: float = 0.0
    blur_axial_mm: float = 0.0
    slice_thickness_mm: float = 0.0
    slice_phase: float = 0.0
    closing_mm: float = 0.0
    mask_growth_mm: float = 0.0
    mask_raggedness_mm: float = 0.0
    shell_mm: float = 3.0
    shell_raggedness_mm: float = 0.0
    bone_hu: float = 0.0
    dura_hu: float = 55.0
    dura_weight: float = 0.0
    dura_thickness_mm: float = 1.0
    vessel_hu: float = 50.0
    vessel_weight: float = 0.0
    calcification_hu: float = 80.0
    num_calcifications: int = 0
    num_infarcts: int = 0
    infarct_hu: float = -6.0
    infarct_radius_mm: float = 5.0
    num_haemorrhages: int = 0
    haemorrhage_hu: float = 65.0
    haemorrhage_radius_mm: float = 4.0
    seed: int = 0

    @classmethod
    def draw(cls, rng: np.random.RandomState) -> "SimulatedCTParameters":
        """Draw one from the priors; their HU, cupping, noise and blur held in a first trial on real CT."""
        white = rng.uniform(16, 32)
        grey = white + rng.uniform(4.5, 13)
        cupping, split = rng.uniform(0, 14), rng.uniform()
        # population averages and smooth reconstructions: a fifth is blurred equally in all directions, up to 3 mm
        smooth = rng.uniform() < 0.2
        in_plane = rng.uniform(1.5, 3.0) if smooth else rng.uniform(0.3, 1.5)
        axial = in_plane if smooth else rng.uniform(0.3, 3.0)
        thick = rng.uniform() < 0.35 and not smooth
        return cls(
            white_hu=white,
            grey_hu=grey,
            deep_grey_hu=grey + rng.uniform(-2.5, 1.5),
            csf_hu=min(rng.normal(7, 4), white - 8),
            texture_hu=rng.uniform(0, 1),
            cupping_hu=(cupping * split, cupping * (1 - split)),
            shading_hu=rng.uniform(0, 1.5),
            noise_hu=float(np.exp(rng.uniform(np.log(0.6), np.log(10)))) * (0.3 if smooth else 1.0),
            correlated_share=rng.uniform(),
            noise_correlation_mm=rng.uniform(0.7, 2.0),
            blur_in_plane_mm=in_plane,
            blur_axial_mm=axial,
            slice_thickness_mm=rng.uniform(2.5, 5.0) if thick else 0.0,
            slice_phase=rng.uniform(),
            closing_mm=rng.uniform(0, 6),
            mask_growth_mm=rng.uniform(-1.5, 3.0),
            mask_raggedness_mm=rng.uniform(0, 1),
            shell_mm=rng.uniform(1.0, 5.0),
            shell_raggedness_mm=rng.uniform(0.3, 1.5),
            bone_hu=rng.uniform(60, 250),
            dura_hu=rng.uniform(48, 62),
            dura_weight=rng.uniform(0.2, 1.0) if rng.uniform() < 0.85 else 0.0,
            dura_thickness_mm=rng.uniform(0.7, 2.0),
            vessel_hu=rng.uniform(40, 62),
            vessel_weight=rng.uniform(0.2, 1.0) if rng.uniform() < 0.7 else 0.0,
            calcification_hu=rng.uniform(50, 130),
            num_calcifications=int(rng.choice([0, 1, 2, 3, 5])),
            num_infarcts=int(rng.choice([0, 1, 2], p=[0.88, 0.08, 0.04])),
            infarct_hu=rng.uniform(-8, -3),
            infarct_radius_mm=rng.uniform(2, 9),
            num_haemorrhages=int(rng.uniform() < 0.03),
            haemorrhage_hu=rng.uniform(50, 75),
            haemorrhage_radius_mm=rng.uniform(2, 6),
            seed=int(rng.randint(2**31 - 1)),
        )


# every stage has random numbers of its own, so that one left out does not change the others
_TEXTURE, _SHADING, _NOISE, _MASK, _SHELL, _BONE, _SPOTS, _LESIONS = range(8)

# Top of the cerebellum, where the tentorium lies, in brain coordinates: w = c . (1, |u|, u^2, v, v^2, |u| v), least
# squares over the 19 people of the NiChart sample data (residual 0.056)
_TENTORIUM = (-0.571, -0.378, -0.276, -0.568, -1.891, -0.957)
# Places (|u|, v, w) where calcium is common: pineal gland, choroid plexus of the atrium (both sides), pallidum (both)
_CALCIFIED_PLACES = (
    (0.0, -0.11, -0.43),
    (0.16, -0.18, -0.40),
    (-0.16, -0.18, -0.40),
    (0.165, 0.083, -0.415),
    (-0.165, 0.083, -0.415),
)


def smooth_field(
    rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float], scale_mm: float
) -> np.ndarray:
    """Random field, smooth on ``scale_mm``, made on a coarse grid: float32, mean about 0, standard deviation 1."""
    step = [max(1.0, scale_mm / s) for s in spacing_mm]
    coarse = [max(2, int(np.ceil(n / k)) + 1) for n, k in zip(shape, step, strict=True)]
    values = torch.from_numpy(rng.standard_normal(coarse, dtype=np.float32))
    field = functional.interpolate(values[None, None], size=tuple(shape), mode="trilinear", align_corners=True)
    field = field[0, 0].numpy()
    return field / max(float(field.std()), 1e-6)


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


def edge_depth(mask: np.ndarray, spacing_mm: Sequence[float], sigma_mm: float = 3.0) -> np.ndarray:
    """Depth (mm) below the mask's smoothed surface, negative outside, right for flat surfaces up to about 2 sigma."""
    matrices = [gaussian_matrix(n, sigma_mm / s) for n, s in zip(mask.shape, spacing_mm, strict=True)]
    smoothed = apply_along_axes(mask.astype(np.float32), matrices)
    return (sigma_mm * ndtri(np.clip(smoothed, 1e-3, 1 - 1e-3))).astype(np.float32)


def midsagittal_distance(csf: np.ndarray, coordinates: np.ndarray, brain_width_mm: float) -> np.ndarray:
    """Signed distance (mm) from the plane through the fluid between the hemispheres, fitted by least squares."""
    u, v, w = coordinates
    between = (np.abs(u) < 0.06) & (w > -0.45) & (csf > 0.5)
    plane = np.zeros(3)
    if between.sum() > 50:
        design = np.stack([np.ones(int(between.sum())), v[between], w[between]], 1)
        plane = np.linalg.lstsq(design, u[between], rcond=None)[0]
    return (u - plane[0] - plane[1] * v - plane[2] * w) * brain_width_mm


def _mix(hu: np.ndarray, weight: np.ndarray, value: float) -> np.ndarray:
    """Replace the share ``weight`` of each voxel by ``value``."""
    return hu + weight * (value - hu)


def _stamp(
    weight: np.ndarray,
    centre: Sequence[float],
    radius_mm: float,
    spacing_mm: Sequence[float],
    rng: np.random.Generator | None = None,
) -> None:
    """Draw a soft ball (ragged, if a generator is given) into ``weight``, in place, by its maximum."""
    reach = [int(np.ceil(1.6 * radius_mm / s)) + 1 for s in spacing_mm]
    box = tuple(slice(max(0, int(c) - r), int(c) + r + 2) for c, r in zip(centre, reach, strict=True))
    axes = [(np.arange(n)[b] - c) * s for n, b, c, s in zip(weight.shape, box, centre, spacing_mm, strict=True)]
    if any(len(a) == 0 for a in axes):
        return
    x, y, z = np.meshgrid(*axes, indexing="ij")
    distance = np.sqrt(x**2 + y**2 + z**2)
    if rng is not None:
        distance = distance + 0.25 * radius_mm * smooth_field(rng, distance.shape, spacing_mm, max(radius_mm, 2.0))
    ball = np.clip((radius_mm - distance) / min(spacing_mm) + 0.5, 0, 1)
    weight[box] = np.maximum(weight[box], ball)


def _closed(mask: np.ndarray, num_voxels: int) -> np.ndarray:
    """Morphological closing that the volume's border does not disturb."""
    if num_voxels < 1:
        return mask
    inner = (slice(num_voxels, -num_voxels),) * 3
    return ndimage.binary_closing(np.pad(mask, num_voxels), iterations=num_voxels)[inner]


class _Anatomy:
    """Places that the simulation needs, found from mask and fluid."""

    def __init__(
        self, tissue: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], closing_mm: float = 0.0
    ) -> None:
        self.tissue, self.mask, self.spacing_mm = tissue, mask, spacing_mm
        self.coordinates = brain_coordinates(mask, spacing_mm)
        self.envelope = _closed(mask > 0, round(closing_mm / min(spacing_mm)))
        self.depth = edge_depth(self.envelope, spacing_mm)
        u, v, _ = self.coordinates
        self.width_mm = spacing_mm[0] / max(float(u[1, 0, 0] - u[0, 0, 0]), 1e-6)
        self.length_mm = spacing_mm[1] / max(float(v[0, 1, 0] - v[0, 0, 0]), 1e-6)

    def voxel(self, place: Sequence[float]) -> np.ndarray:
        """Voxel index of brain coordinates (u, v, w)."""
        origin = self.coordinates[:, 0, 0, 0]
        millimetres = (np.asarray(place) - origin) * np.array([self.width_mm, self.length_mm, self.length_mm])
        return millimetres / np.asarray(self.spacing_mm)

    def wide_fluid(self) -> np.ndarray:
        """(H, W, Z) bool: fluid some 5 mm wide or wider away from the edge: ventricles, no place for dura."""
        return ndimage.binary_opening(self.tissue[CSF] > 0.5, iterations=2) & (self.depth > 5)

    def above_tentorium_mm(self) -> np.ndarray:
        """Height (mm) above the tentorium: its usual place, moved and tilted to the fluid found nearby."""
        u, v, w = self.coordinates
        a, c = np.abs(u), _TENTORIUM
        above = (w - (c[0] + c[1] * a + c[2] * a**2 + c[3] * v + c[4] * v**2 + c[5] * a * v)) * self.length_mm
        eligible = (self.tissue[CSF] > 0.5) & (self.depth > 5) & (a > 0.04) & (v < -0.15) & (np.abs(above) < 15)
        eligible &= ~self.wide_fluid()
        if eligible.sum() < 100:
            return above
        # few columns, weights that narrow towards the sheet
        design = np.stack([np.ones(int(eligible.sum())), a[eligible], v[eligible], u[eligible]], 1)
        height = above[eligible]
        plane = np.zeros(4)
        for width_mm in (8.0, 5.0, 3.0):
            weight = np.exp(-0.25 * ((height - design @ plane) / width_mm) ** 2)
            damped = np.vstack([design * weight[:, None], 3 * np.eye(4)])
            plane = np.linalg.lstsq(damped, np.concatenate([height * weight, np.zeros(4)]), rcond=None)[0]
        return above - (plane[0] + plane[1] * a + plane[2] * v + plane[3] * u)

    def dura(self, thickness_mm: float) -> np.ndarray:
        """(H, W, Z) share of falx and tentorium in each voxel: thin sheets, most where there is fluid."""
        u, v, w = self.coordinates
        csf = self.tissue[CSF] + (1 - self.mask)
        smooth = [gaussian_matrix(n, 1.2 / s) for n, s in zip(self.mask.shape, self.spacing_mm, strict=True)]
        # where grey matter touches on both sides the fluid is thinner than a voxel; white matter never touches dura
        near_fluid = apply_along_axes(3 * csf + self.tissue[GREY], smooth).clip(0, 1)
        side = midsagittal_distance(self.tissue[CSF], self.coordinates, self.width_mm)
        above = self.above_tentorium_mm()
        # the falx hangs from the vault towards the corpus callosum, deeper at the back
        radius = np.sqrt((v / 0.5) ** 2 + ((w + 0.42) / 0.42) ** 2)
        inner = 0.72 - 0.12 * np.clip(-v / 0.4, -1, 1)
        hangs = np.clip((radius - inner) / 0.08, 0, 1) * np.clip((w + 0.5) / 0.06, 0, 1) * (above > -3)
        falx = np.exp(-0.5 * (side / thickness_mm) ** 2) * hangs
        covers = np.clip((-0.12 - v + 0.35 * np.abs(u)) / 0.06, 0, 1)
        tentorium = np.exp(-0.5 * (above / (0.5 + thickness_mm)) ** 2) * covers
        tentorium *= ~ndimage.binary_dilation(self.wide_fluid())
        return np.maximum(falx, tentorium) * near_fluid

    def vessels(self) -> np.ndarray:
        """(H, W, Z) share of the venous sinuses at the edge and of the middle cerebral arteries' stems."""
        _, v, w = self.coordinates
        side = midsagittal_distance(self.tissue[CSF], self.coordinates, self.width_mm)
        above = self.above_tentorium_mm()
        at_edge = np.clip((3.5 - self.depth) / 1.5, 0, 1)
        sagittal = np.exp(-0.5 * (side / 2.5) ** 2) * at_edge * ((w > -0.3) | ((v < -0.3) & (above > -4)))
        transverse = np.exp(-0.5 * (above / 3.0) ** 2) * at_edge * (v < -0.15)
        arteries = np.zeros_like(self.depth)
        for sign in (-1, 1):
            for t in np.linspace(0, 1, 16):
                place = self.voxel((sign * (0.05 + 0.2 * t), 0.13 + 0.03 * np.sin(3 * t), -0.52 + 0.03 * t))
                _stamp(arteries, place, 1.4, self.spacing_mm)
        return np.maximum(np.maximum(sagittal, transverse), arteries * self.tissue[CSF])


def _tissue_hu(anatomy: _Anatomy, p: SimulatedCTParameters) -> np.ndarray:
    """HU of the brain's tissue, with fluid all around."""
    levels = np.array([p.csf_hu, p.grey_hu, p.white_hu, p.deep_grey_hu], np.float32)
    hu = np.tensordot(levels, anatomy.tissue, 1) + (1 - anatomy.tissue.sum(0)) * np.float32(p.csf_hu)
    if p.texture_hu:
        field = smooth_field(np.random.default_rng((p.seed, _TEXTURE)), hu.shape, anatomy.spacing_mm, 8.0)
        hu = hu + p.texture_hu * field * (1 - anatomy.tissue[CSF]) * anatomy.mask
    return hu


def _add_lesions(hu: np.ndarray, anatomy: _Anatomy, p: SimulatedCTParameters) -> np.ndarray:
    """Infarcts darken tissue, haemorrhages replace it; both start at random voxels of it."""
    rng = np.random.default_rng((p.seed, _LESIONS))
    tissue = anatomy.mask * (1 - anatomy.tissue[CSF])
    candidates = np.flatnonzero(tissue > 0.9)

    def lesions(count: int, radius_mm: float) -> np.ndarray:
        weight = np.zeros_like(hu)
        for _ in range(count if len(candidates) else 0):
            centre = np.unravel_index(rng.choice(candidates), hu.shape)
            _stamp(weight, centre, radius_mm * rng.uniform(0.6, 1), anatomy.spacing_mm, rng)
        return weight * tissue

    if p.num_infarcts:
        hu = hu + p.infarct_hu * lesions(p.num_infarcts, p.infarct_radius_mm)
    if p.num_haemorrhages:
        hu = _mix(hu, lesions(p.num_haemorrhages, p.haemorrhage_radius_mm), p.haemorrhage_hu)
    return hu


def _add_calcifications(hu: np.ndarray, anatomy: _Anatomy, p: SimulatedCTParameters) -> np.ndarray:
    """Spots of 1 to 3 mm near the places where calcium is common."""
    rng = np.random.default_rng((p.seed, _SPOTS))
    weight = np.zeros_like(hu)
    for index in rng.permutation(len(_CALCIFIED_PLACES))[: p.num_calcifications]:
        place = np.asarray(_CALCIFIED_PLACES[index]) + rng.normal(0, 0.012, 3)
        _stamp(weight, anatomy.voxel(place), rng.uniform(1, 3), anatomy.spacing_mm)
    return _mix(hu, weight, p.calcification_hu)


def _add_skull(hu: np.ndarray, anatomy: _Anatomy, p: SimulatedCTParameters) -> np.ndarray:
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


def _ct_mask(anatomy: _Anatomy, p: SimulatedCTParameters) -> np.ndarray:
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
    anatomy = _Anatomy(np.asarray(tissue, np.float32), brain, spacing_mm, p.closing_mm)
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
