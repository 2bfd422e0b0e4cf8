"""Simulated brain CT from the tissue fractions of a T1 volume.

A CT is drawn from what is known of CT (HU of tissues, shading, noise, resolution, slice thickness, the skull's edge),
with broad priors, so that a network trained on (simulated CT, real T1) meets real CT as one more draw.
`SimulatedCTParameters.draw` draws, `simulate_ct` is deterministic given the parameters.

Lesions come from outside (``lesions`` of `simulate_ct`), so that the T1 of the pair can show them, too. What is
resolved, blurred and drowned in noise is tissue and lesion together.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from monai.transforms import MapTransform, Randomizable, Transform
from monai.utils import convert_to_numpy

from ..volumes.separable import apply_along_axes, apply_along_z, gaussian_matrix
from .ct_anatomy import CALCIFIED_PLACES, CHOROID_PLEXUS, Anatomy, smooth_field, stamp_ball
from .ct_artefacts import bone_artefacts, cupping_field
from .ct_noise import noise_field
from .ct_parameters import SimulatedCTParameters
from .ct_skull import Skull
from .ct_slices import axial_response
from .tissue import CSF, voxel_size

# every stage has random numbers of its own, so that one left out does not change the others
_TEXTURE, _SHADING, _NOISE, _STREAKS, _SPOTS, _ENHANCEMENT = range(6)


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


def _add_lesions(hu: np.ndarray, lesions: np.ndarray | None, p: SimulatedCTParameters) -> np.ndarray:
    """Part of the tissue becomes fluid, then HU are added."""
    if lesions is None:
        return hu
    share, added = np.asarray(lesions, np.float32)
    return _mix(hu, share, p.csf_hu) + added


def _add_calcifications(hu: np.ndarray, anatomy: Anatomy, p: SimulatedCTParameters) -> np.ndarray:
    """Spots of 1 to 3 mm near the places where calcium is common."""
    rng = np.random.default_rng((p.seed, _SPOTS))
    weight = np.zeros_like(hu)
    for index in rng.permutation(len(CALCIFIED_PLACES))[: p.num_calcifications]:
        place = np.asarray(CALCIFIED_PLACES[index]) + rng.normal(0, 0.012, 3)
        stamp_ball(weight, anatomy.voxel(place), rng.uniform(1, 3), anatomy.spacing_mm)
    return _mix(hu, weight, p.calcification_hu)


def _add_enhancement(hu: np.ndarray, anatomy: Anatomy, p: SimulatedCTParameters) -> np.ndarray:
    """What a contrast agent brightens beside the large vessels: those of the sulci, and the choroid plexus."""
    rng = np.random.default_rng((p.seed, _ENHANCEMENT))
    hu = _mix(hu, anatomy.cortical_vessels(rng), p.vessel_hu)
    plexus = np.zeros_like(hu)
    for place in CHOROID_PLEXUS:
        stamp_ball(plexus, anatomy.voxel(place), rng.uniform(3, 6), anatomy.spacing_mm, rng)
    return _mix(hu, plexus * anatomy.tissue[CSF], p.choroid_hu)


def _objects(anatomy: Anatomy, skull: Skull, lesions: np.ndarray | None, p: SimulatedCTParameters) -> np.ndarray:
    """(H, W, Z) HU of what lies in the scanner."""
    hu = _add_lesions(_tissue_hu(anatomy, p), lesions, p)
    if p.dura_weight:
        hu = _mix(hu, p.dura_weight * anatomy.dura(p.dura_thickness_mm), p.dura_hu)
    if p.vessel_weight:
        hu = _mix(hu, p.vessel_weight * anatomy.vessels(), p.vessel_hu)
    if p.choroid_hu:
        hu = _add_enhancement(hu, anatomy, p)
    if p.num_calcifications:
        hu = _add_calcifications(hu, anatomy, p)
    return skull.add_bone(hu) if p.bone_hu else hu


def _artefacts(anatomy: Anatomy, skull: Skull, p: SimulatedCTParameters) -> np.ndarray:
    """(H, W, Z) HU that bone and scanner add, without noise."""
    field = bone_artefacts(anatomy, p, np.random.default_rng((p.seed, _STREAKS)))
    if any(p.cupping_hu):
        field += cupping_field(skull.beyond_mm < 0, anatomy.spacing_mm, p.cupping_hu)
    if p.shading_hu:
        rng = np.random.default_rng((p.seed, _SHADING))
        field += p.shading_hu * smooth_field(rng, field.shape, anatomy.spacing_mm, 40.0)
    return field


def _scan(hu: np.ndarray, artefacts: np.ndarray, spacing_mm: Sequence[float], p: SimulatedCTParameters) -> np.ndarray:
    """Resolution in the slice, slices along z, noise."""
    in_plane = [gaussian_matrix(n, p.blur_in_plane_mm / s) for n, s in zip(hu.shape[:2], spacing_mm, strict=False)]
    blurred = apply_along_axes(hu.astype(np.float32), in_plane) + artefacts
    axial = axial_response(hu.shape, spacing_mm, p)
    scanned = apply_along_z(blurred, axial.signal)
    if not p.noise_hu:
        return scanned
    return scanned + noise_field(hu.shape, spacing_mm, p, np.random.default_rng((p.seed, _NOISE)), axial)


def simulate_ct(
    tissue: np.ndarray,
    mask: np.ndarray,
    spacing_mm: Sequence[float],
    parameters: SimulatedCTParameters,
    lesions: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate the CT of a brain with known tissue fractions.

    Args:
        tissue: (4, H, W, Z) fractions of CSF, cortical grey, white, deep grey matter; 0 outside the mask.
        mask: (1, H, W, Z) or (H, W, Z), the T1's brain mask, RAS.
        spacing_mm: voxel size.
        parameters: the CT's appearance, with the seed.
        lesions: (2, H, W, Z), the share of the tissue that fluid of ``csf_hu`` replaces, and HU added after that; None
            for none.

    Returns:
        HU (1, H, W, Z) float32, 0 outside the CT's own mask, and that mask (1, H, W, Z) bool.

    Raises:
        ValueError: the mask is empty.
    """
    p = parameters
    brain = np.squeeze(np.asarray(mask) > 0).astype(np.float32)
    anatomy = Anatomy(np.asarray(tissue, np.float32), brain, spacing_mm, p.closing_mm)
    skull = Skull(anatomy, p)
    hu = _scan(_objects(anatomy, skull, lesions, p), _artefacts(anatomy, skull, p), spacing_mm, p)
    ct_mask = skull.ct_mask()
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
    """`simulate_ct` with fixed parameters, as a transform of (tissue, mask, spacing_mm, lesions)."""

    def __init__(self, parameters: SimulatedCTParameters) -> None:
        self.parameters = parameters

    def __call__(self, tissue, mask, spacing_mm: Sequence[float], lesions=None) -> tuple[np.ndarray, np.ndarray]:
        lesions = None if lesions is None else convert_to_numpy(lesions)
        return simulate_ct(convert_to_numpy(tissue), convert_to_numpy(mask), spacing_mm, self.parameters, lesions)


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

    def __call__(self, tissue, mask, spacing_mm: Sequence[float], lesions=None) -> tuple[np.ndarray, np.ndarray]:
        self.randomize()
        return SimulateCT(self.parameters)(tissue, mask, spacing_mm, lesions)


class RandSimulateCTd(Randomizable, MapTransform):
    """Add a simulated CT as source image in [0, 1] to the data dictionary.

    Args:
        keys: key of the tissue fractions (4, H, W, Z).
        mask_key: key of the T1's brain mask (1, H, W, Z).
        reference_key: key of a ``MetaTensor`` whose affine gives the voxel size, unless ``spacing_mm`` does.
        output_key: receives the source (1, H, W, Z) float32 in [0, 1], 0 outside the CT's mask.
        output_mask_key: receives the CT's mask (1, H, W, Z).
        spacing_mm: voxel size.
        lesions_key: key of the lesions (2, H, W, Z), see `simulate_ct`; none where it is missing.
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
        lesions_key: str = "ct_lesions",
    ) -> None:
        MapTransform.__init__(self, keys)
        self.mask_key, self.reference_key, self.lesions_key = mask_key, reference_key, lesions_key
        self.output_key, self.output_mask_key = output_key, output_mask_key
        self.spacing_mm, self.postprocess, self.window_hu = spacing_mm, postprocess, window_hu
        self.simulate = RandSimulateCT(fixed)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None):
        self.simulate.set_random_state(seed, state)
        super().set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        spacing = voxel_size(data.get(self.reference_key), self.spacing_mm)
        hu, mask = self.simulate(data[self.keys[0]], data[self.mask_key], spacing, data.get(self.lesions_key))
        source = hu_to_unit_source(hu, mask, self.postprocess, self.window_hu)
        return {**data, self.output_key: torch.from_numpy(source), self.output_mask_key: torch.from_numpy(mask)}
