"""Where things are in a brain of known tissue: depth, falx and tentorium, vessels, places of calcium."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from scipy.special import ndtri
from torch.nn import functional

from ..volumes.brain_coordinates import brain_coordinates
from ..volumes.separable import apply_along_axes, gaussian_matrix
from .tissue import CSF, GREY

# Top of the cerebellum, where the tentorium lies, in brain coordinates: w = c . (1, |u|, u^2, v, v^2, |u| v), least
# squares over the 19 people of the NiChart sample data (residual 0.056)
_TENTORIUM = (-0.571, -0.378, -0.276, -0.568, -1.891, -0.957)
# Places (|u|, v, w) where calcium is common: pineal gland, choroid plexus of the atrium (both sides), pallidum (both)
CALCIFIED_PLACES = (
    (0.0, -0.11, -0.43),
    (0.16, -0.18, -0.40),
    (-0.16, -0.18, -0.40),
    (0.165, 0.083, -0.415),
    (-0.165, 0.083, -0.415),
)
CHOROID_PLEXUS = CALCIFIED_PLACES[1:3]


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


def stamp_ball(
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


class Anatomy:
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
                stamp_ball(arteries, place, 1.4, self.spacing_mm)
        return np.maximum(np.maximum(sagittal, transverse), arteries * self.tissue[CSF])

    def cortical_vessels(self, rng: np.random.Generator) -> np.ndarray:
        """(H, W, Z) share of vessels in the sulci: random places of their fluid."""
        field = smooth_field(rng, self.mask.shape, self.spacing_mm, 4.0)
        return self.tissue[CSF] * np.clip(2 * (field - 1.2), 0, 1) * (self.depth < 25) * ~self.wide_fluid()
