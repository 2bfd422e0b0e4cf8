"""Other contrasts of a head from its T1 and tissue fractions, with the same lesions, each as a scan of its own.

A contrast is drawn from what is known of it (the order of its tissues, what water and blood do to it), with broad
priors, so that a network that learned the contrasts from simulated ones meets real ones as one more draw. The T1 stays
the real one. `SimulatedContrast.draw` draws, `simulate_contrast` is deterministic given the parameters.

What is known: fluid is brightest in T2 and dark in FLAIR, grey matter is brighter than white in both, the iron of the
deep nuclei darkens T2; PD has little contrast, and fluid there is anything from darker to brighter than grey matter.
More water is brighter in T2, FLAIR and PD until there is nothing but water, which FLAIR shows dark. A contrast agent
brightens large vessels, the choroid plexus, and the rim of a lesion or all of it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_numpy

from ..volumes.scaling import scaled_by_percentile
from ..volumes.separable import apply_along_axes, gaussian_matrix
from .ct_anatomy import CHOROID_PLEXUS, Anatomy, smooth_field, stamp_ball
from .deformation import linear_map, warped
from .lesion_shapes import smoothed
from .tissue import CSF, GREY, WHITE, voxel_size

SIMULATED = ("T1ce", "T2", "FLAIR", "PD")

# every stage has random numbers of its own, so that one left out does not change the others
_SHADING, _NOISE, _VESSELS = range(3)

# Ranges that the levels of a contrast are drawn from: of grey matter; then relative to grey matter white and deep grey
# matter, fluid, and water in tissue. 1 is about the brightest of the brain.
_LEVELS = {
    "T2": {"grey": (0.38, 0.6), "white": (0.62, 0.92), "deep": (0.75, 1.0), "csf": (1.6, 2.6), "water": (1.2, 1.9)},
    "FLAIR": {"grey": (0.5, 0.7), "white": (0.74, 0.96), "deep": (0.85, 1.05), "csf": (0.05, 0.5), "water": (1.1, 1.6)},
    "PD": {"grey": (0.7, 0.8), "white": (0.74, 0.95), "deep": (0.88, 1.0), "csf": (0.6, 1.4), "water": (1.05, 1.3)},
}


@dataclass(frozen=True)
class SimulatedContrast:
    """How a contrast looks; the defaults are an ideal scan in its place.

    Attributes:
        levels: signal of fluid, cortical grey, white and deep grey matter; None takes the T1's own image.
        gamma: exponent of the T1's own image.
        water_level: signal of tissue that has taken up water; of nothing but water it is the fluid's.
        solid_level: signal of blood and of solid masses.
        texture: gain of the T1's variation within tissue, which may be negative.
        vessels, rim, enhanced: share of the large vessels, of the rim of lesions and of solid masses that is as bright
            as a contrast agent makes it.
        enhanced_level: that signal.
        blur_mm: Gaussian standard deviations in the plane and along z.
        noise: standard deviation, relative to the brightest of the brain.
        shading: standard deviation of the logarithm of a smooth field.
        degrees, shift_mm: of the head in this scan against the T1, about and along each axis.
        seed: of everything that is drawn voxel by voxel.
    """

    levels: tuple[float, float, float, float] | None = None
    gamma: float = 1.0
    water_level: float = 0.0
    solid_level: float = 0.0
    texture: float = 0.0
    vessels: float = 0.0
    rim: float = 0.0
    enhanced: float = 0.0
    enhanced_level: float = 1.0
    blur_mm: tuple[float, float] = (0.0, 0.0)
    noise: float = 0.0
    shading: float = 0.0
    degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    seed: int = 0

    @classmethod
    def draw(cls, rng: np.random.RandomState, contrast: str, misplaced: float = 0.4) -> SimulatedContrast:
        """Draw one.

        Args:
            rng: random numbers.
            contrast: of `SIMULATED`.
            misplaced: how often the scan is not quite in its place: up to 1 mm and 1 degree.
        """
        look = _draw_enhancement(rng) if contrast == "T1ce" else _draw_levels(rng, contrast)
        thick = rng.uniform(0.8, 2.2) if rng.uniform() < 0.4 else rng.uniform(0, 0.8)
        moved = rng.uniform() < misplaced
        place = {"degrees": tuple(moved * rng.uniform(-1, 1, 3)), "shift_mm": tuple(moved * rng.uniform(-1, 1, 3))}
        return cls(
            blur_mm=(rng.uniform(0, 0.8), thick),
            noise=rng.uniform(0.003, 0.03),
            shading=rng.uniform(0, 0.06),
            seed=int(rng.randint(2**31 - 1)),
            **place,
            **look,
        )


def _draw_levels(rng: np.random.RandomState, contrast: str) -> dict[str, object]:
    relative = {name: rng.uniform(*span) for name, span in _LEVELS[contrast].items()}
    grey = relative.pop("grey")
    white, deep, csf, water = (grey * relative[name] for name in ("white", "deep", "csf", "water"))
    return {
        "levels": (csf, grey, white, deep),
        "water_level": water,
        "solid_level": grey * rng.uniform(0.4, 1.6),
        "texture": rng.uniform(-0.6, 0.3),
    }


def _draw_enhancement(rng: np.random.RandomState) -> dict[str, object]:
    """The T1 with a contrast agent; half of the lesions take it up."""
    active = rng.uniform() < 0.5
    return {
        "gamma": rng.uniform(0.8, 1.25),
        "vessels": rng.uniform(0.3, 1.0),
        "rim": rng.uniform(0.2, 1.0) if active and rng.uniform() < 0.6 else 0.0,
        "enhanced": rng.uniform(0.3, 1.0) if active else 0.0,
        "enhanced_level": rng.uniform(1.1, 1.8),
    }


@dataclass(frozen=True)
class Head:
    """What the contrasts of a head are made from, all on one grid (H, W, Z).

    Attributes:
        t1: with lesions, [0, 1].
        tissue: (4, H, W, Z), as of `tissue_fractions`.
        texture: how the T1 without lesions differs from its tissues' means, [0, 1] being fluid to white matter.
        water: share of the tissue that has become fluid, [0, 1].
        solid: share that has become blood or a solid mass, [0, 1].
        mask: of the brain, bool.
        spacing_mm: voxel size.
    """

    t1: np.ndarray
    tissue: np.ndarray
    texture: np.ndarray
    water: np.ndarray
    solid: np.ndarray
    mask: np.ndarray
    spacing_mm: tuple[float, ...]

    @classmethod
    def of(
        cls,
        t1: np.ndarray,
        healthy: np.ndarray,
        tissue: np.ndarray,
        mask: np.ndarray,
        spacing_mm: Sequence[float],
        ct_lesions: np.ndarray | None = None,
    ) -> Head:
        """From a T1 with and without lesions, and the lesions of its CT as of `RandLesionsd`."""
        weights = tissue**2  # pure voxels tell the level
        levels = (weights * healthy).sum((1, 2, 3)) / np.maximum(weights.sum((1, 2, 3)), 1e-6)
        fluid, scale = float(levels[CSF]), max(float(levels[WHITE] - levels[CSF]), 1e-3)
        texture = (healthy - np.tensordot(levels.astype(np.float32), tissue, 1)) / scale * mask
        lost = np.clip((healthy - t1) / np.maximum(healthy - fluid, 0.2 * scale), 0, 1)
        share, added = np.zeros((2, *t1.shape), np.float32) if ct_lesions is None else ct_lesions
        # fluid that is far denser than fluid is blood, calcium or a mass
        solid = share * np.clip((added - 12) / 15, 0, 1)
        water = np.maximum(share, lost) * (1 - solid)
        return cls(t1, tissue, np.clip(texture, -0.5, 0.5), water, solid, mask, tuple(spacing_mm))

    def enhancing_vessels(self, rng: np.random.Generator) -> np.ndarray:
        """(H, W, Z) share of sinuses, large arteries, vessels of the sulci and choroid plexus."""
        anatomy = Anatomy(self.tissue, self.mask.astype(np.float32), self.spacing_mm)
        plexus = np.zeros_like(self.t1)
        for place in CHOROID_PLEXUS:
            stamp_ball(plexus, anatomy.voxel(place), rng.uniform(2, 5), self.spacing_mm)
        return np.maximum.reduce([anatomy.vessels(), anatomy.cortical_vessels(rng), plexus * self.tissue[CSF]])


def _rising(values: np.ndarray, start: float, stop: float) -> np.ndarray:
    """0 up to start, 1 from stop on, smooth between."""
    x = np.clip((values - start) / (stop - start), 0, 1)
    return x * x * (3 - 2 * x)


def _mix(image: np.ndarray, weight: np.ndarray, value: float) -> np.ndarray:
    return image + weight * (value - image)


def _tissue_signal(head: Head, p: SimulatedContrast) -> np.ndarray:
    """Signal of tissue, water in it, fluid and blood; the T1's own for a contrast without levels."""
    if p.levels is None:
        return head.t1**p.gamma
    image = np.tensordot(np.asarray(p.levels, np.float32), head.tissue, 1)
    image = image + p.texture * p.levels[GREY] * head.texture
    image = _mix(image, _rising(head.water, 0, 0.4), p.water_level)
    image = _mix(image, _rising(head.water, 0.6, 1.0), p.levels[CSF])
    return _mix(image, head.solid, p.solid_level)


def _enhanced(image: np.ndarray, head: Head, p: SimulatedContrast) -> np.ndarray:
    """What a contrast agent adds: it brightens and never darkens."""
    weight = np.zeros_like(image)
    if p.vessels:
        weight = p.vessels * head.enhancing_vessels(np.random.default_rng((p.seed, _VESSELS)))
    if p.rim:
        lesion = smoothed(np.maximum(head.water, head.solid), head.spacing_mm, 1.5)
        weight = np.maximum(weight, p.rim * _rising(4 * lesion * (1 - lesion), 0.4, 0.9))
    weight = np.maximum(weight, p.enhanced * head.solid)
    return np.maximum(image, _mix(image, weight, p.enhanced_level))


def _placed(volume: np.ndarray, spacing_mm: Sequence[float], p: SimulatedContrast) -> np.ndarray:
    """The head turned about the middle of the volume and shifted; zeros outside."""
    if not any((*p.degrees, *p.shift_mm)):
        return volume
    size = np.reshape(np.asarray(spacing_mm, np.float32), (3, 1, 1, 1))
    middle = (np.reshape(volume.shape, (3, 1, 1, 1)) - 1) / 2 * size
    centred = np.indices(volume.shape, dtype=np.float32) * size - middle
    turn = linear_map(p.degrees, (1, 1, 1), (0, 0, 0)).astype(np.float32)
    moved = np.tensordot(turn, centred, 1) + np.reshape(np.asarray(p.shift_mm, np.float32), (3, 1, 1, 1))
    places = ((moved + middle) / size).astype(np.float32)
    return warped(torch.from_numpy(volume[None]), places)[0].numpy()


def _scanned(image: np.ndarray, spacing_mm: Sequence[float], p: SimulatedContrast) -> np.ndarray:
    """Place, resolution, shading and noise of a scan."""
    image = _placed(image.astype(np.float32), spacing_mm, p)
    sigmas = (p.blur_mm[0], *p.blur_mm)
    blurs = [gaussian_matrix(n, s / mm) for n, s, mm in zip(image.shape, sigmas, spacing_mm, strict=True)]
    image = apply_along_axes(image, blurs)
    if p.shading:
        rng = np.random.default_rng((p.seed, _SHADING))
        image = image * np.exp(p.shading * smooth_field(rng, image.shape, spacing_mm, 40.0))
    if p.noise:
        noise = np.random.default_rng((p.seed, _NOISE)).standard_normal(image.shape, dtype=np.float32)
        image = image + p.noise * noise
    return np.maximum(image, 0).astype(np.float32)


def simulate_contrast(head: Head, parameters: SimulatedContrast) -> np.ndarray:
    """(H, W, Z) float32 in [0, 1]: a contrast of a head, 0 outside the brain, scaled as a real one is.

    Args:
        head: what it is made from.
        parameters: how it looks.

    Raises:
        CaseError: the mask is empty.
    """
    image = _enhanced(_tissue_signal(head, parameters), head, parameters) * head.mask
    scanned = torch.from_numpy(_scanned(image, head.spacing_mm, parameters))
    return scaled_by_percentile(scanned, torch.from_numpy(head.mask), name="a simulated contrast").numpy()


class RandSimulateContrastsd(Randomizable, MapTransform):
    """Draw the other contrasts of a T1, and put all of them into the channels of one volume.

    The T1 is left as it is and is no target any more: any of the contrasts may be drawn for that.

    Args:
        keys: key of the T1 with lesions, (1, H, W, Z) in [0, 1], a ``MetaTensor`` in RAS; it is taken out.
        contrasts: names of the channels in their order; CT is taken from `ct_key`.
        healthy_key: key of the T1 without lesions; where absent from the data, it has none.
        tissue_key: key of its tissue fractions (4, H, W, Z).
        mask_key: key of its brain mask (1, H, W, Z).
        lesions_key: key of the lesions of the CT, see `RandLesionsd`; none where it is missing.
        ct_key: key of a simulated CT, (1, H, W, Z) in [0, 1]; without it, the CT is absent.
        output_key: receives (C, H, W, Z) float32 in [0, 1], an absent contrast 0.
        misplaced: see `SimulatedContrast.draw`.
        ct_in_brain: how often the CT is cut by the brain mask, as it is beside an MRI; else its own mask stays.
        spacing_mm: voxel size; None takes it from the T1's affine.

    Attributes:
        parameters: of the latest call, by contrast.
        cut_ct: whether its CT is cut by the brain mask.
    """

    def __init__(
        self,
        keys="target",
        contrasts: Sequence[str] = ("T1", *SIMULATED, "CT"),
        healthy_key: str = "healthy",
        tissue_key: str = "tissue",
        mask_key: str = "mask",
        lesions_key: str = "ct_lesions",
        ct_key: str = "ct",
        output_key: str = "source",
        misplaced: float = 0.4,
        ct_in_brain: float = 0.5,
        spacing_mm: Sequence[float] | None = None,
    ) -> None:
        super().__init__(keys)
        known = {"T1", *SIMULATED, "CT"}
        if "T1" not in contrasts or not set(contrasts) <= known:
            raise ValueError(f"contrasts are {', '.join(contrasts)}; T1 is one, and the others are of {sorted(known)}")
        self.contrasts = list(contrasts)
        self.healthy_key, self.tissue_key, self.mask_key = healthy_key, tissue_key, mask_key
        self.lesions_key, self.ct_key, self.output_key = lesions_key, ct_key, output_key
        self.misplaced, self.ct_in_brain, self.spacing_mm = misplaced, ct_in_brain, spacing_mm
        self.parameters: dict[str, SimulatedContrast] = {}
        self.cut_ct = False

    def randomize(self, data=None) -> None:
        """Draw how each contrast looks, all of them whichever are wanted."""
        self.parameters = {name: SimulatedContrast.draw(self.R, name, self.misplaced) for name in SIMULATED}
        self.cut_ct = bool(self.R.uniform() < self.ct_in_brain)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        self.randomize()
        d = dict(data)
        volume = d.pop(self.keys[0])
        healthy, lesions, ct = (d.get(key) for key in (self.healthy_key, self.lesions_key, self.ct_key))
        t1 = convert_to_numpy(volume)[0].astype(np.float32)
        before = t1 if healthy is None else convert_to_numpy(healthy)[0].astype(np.float32)
        tissue, mask = (convert_to_numpy(d[key]) for key in (self.tissue_key, self.mask_key))
        changes = None if lesions is None else convert_to_numpy(lesions)
        head = Head.of(t1, before, tissue, mask[0] > 0, voxel_size(volume, self.spacing_mm), changes)
        images = {"T1": t1, "CT": np.zeros_like(t1) if ct is None else convert_to_numpy(ct)[0]}
        images["CT"] = images["CT"] * head.mask if self.cut_ct else images["CT"]
        images |= {n: simulate_contrast(head, p) for n, p in self.parameters.items() if n in self.contrasts}
        stack = torch.from_numpy(np.stack([images[name] for name in self.contrasts]).astype(np.float32))
        return {**d, self.output_key: MetaTensor(stack).copy_meta_from(volume)}
