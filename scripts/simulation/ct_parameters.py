"""How a simulated CT looks: its parameters, and the priors they are drawn from."""

from dataclasses import dataclass

import numpy as np


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
        # a seed gives the same CT for ever: what is drawn after what does not change
        return cls(
            **_draw_tissue(rng, white, grey),
            cupping_hu=(cupping * split, cupping * (1 - split)),
            **_draw_noise(rng, smooth),
            blur_in_plane_mm=in_plane,
            blur_axial_mm=axial,
            slice_thickness_mm=rng.uniform(2.5, 5.0) if thick else 0.0,
            slice_phase=rng.uniform(),
            **_draw_edge(rng),
            **_draw_dense_structures(rng),
            **_draw_lesions(rng),
            seed=int(rng.randint(2**31 - 1)),
        )


def _draw_tissue(rng: np.random.RandomState, white: float, grey: float) -> dict[str, float]:
    return {
        "white_hu": white,
        "grey_hu": grey,
        "deep_grey_hu": grey + rng.uniform(-2.5, 1.5),
        "csf_hu": min(rng.normal(7, 4), white - 8),
        "texture_hu": rng.uniform(0, 1),
    }


def _draw_noise(rng: np.random.RandomState, smooth: bool) -> dict[str, float]:
    return {
        "shading_hu": rng.uniform(0, 1.5),
        "noise_hu": float(np.exp(rng.uniform(np.log(0.6), np.log(10)))) * (0.3 if smooth else 1.0),
        "correlated_share": rng.uniform(),
        "noise_correlation_mm": rng.uniform(0.7, 2.0),
    }


def _draw_edge(rng: np.random.RandomState) -> dict[str, float]:
    return {
        "closing_mm": rng.uniform(0, 6),
        "mask_growth_mm": rng.uniform(-1.5, 3.0),
        "mask_raggedness_mm": rng.uniform(0, 1),
        "shell_mm": rng.uniform(1.0, 5.0),
        "shell_raggedness_mm": rng.uniform(0.3, 1.5),
        "bone_hu": rng.uniform(60, 250),
    }


def _draw_dense_structures(rng: np.random.RandomState) -> dict[str, float]:
    return {
        "dura_hu": rng.uniform(48, 62),
        "dura_weight": rng.uniform(0.2, 1.0) if rng.uniform() < 0.85 else 0.0,
        "dura_thickness_mm": rng.uniform(0.7, 2.0),
        "vessel_hu": rng.uniform(40, 62),
        "vessel_weight": rng.uniform(0.2, 1.0) if rng.uniform() < 0.7 else 0.0,
        "calcification_hu": rng.uniform(50, 130),
        "num_calcifications": int(rng.choice([0, 1, 2, 3, 5])),
    }


def _draw_lesions(rng: np.random.RandomState) -> dict[str, float]:
    return {
        "num_infarcts": int(rng.choice([0, 1, 2], p=[0.88, 0.08, 0.04])),
        "infarct_hu": rng.uniform(-8, -3),
        "infarct_radius_mm": rng.uniform(2, 9),
        "num_haemorrhages": int(rng.uniform() < 0.03),
        "haemorrhage_hu": rng.uniform(50, 75),
        "haemorrhage_radius_mm": rng.uniform(2, 6),
    }
