"""How a simulated CT looks: its parameters, and the priors they are drawn from."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SimulatedCTParameters:
    """One CT's appearance. HU and mm; the defaults are an ideal scanner and a brain without extras.

    Attributes:
        white_hu, grey_hu, deep_grey_hu, csf_hu: of pure tissue.
        texture_hu: standard deviation of the slow variation within tissue (local contrast).
        cupping_hu: brightening at the brain's edge against its inside, at scales of 5, 10 and 20 mm.
        shading_hu: standard deviation of slow shading (40 mm).
        petrous_hu: depth of the dark band between the petrous bones; streaks beside it have 0.4 of it.
        midline_streaks_hu: standard deviation of the streaks from frontal crest and occipital protuberance.
        noise_hu: standard deviation of the noise, on the slices.
        noise_cutoff_per_mm: spatial frequency of the kernel's apodisation: about 0.15 soft, 0.6 sharp.
        noise_flatness: 0 for a ramp below the cut-off, 1 for white noise there.
        noise_axial_mm: Gaussian scale of the noise along z where slices are thin.
        noise_fall: how much more noise there is at the bottom than at the top, as a share of the mean.
        blur_in_plane_mm, blur_axial_mm: Gaussian standard deviations.
        slice_distance_mm: between the centres of thick slices, interpolated back; 0 keeps the grid.
        slice_thickness_mm: of those slices, more than their distance where they overlap.
        slice_phase: where the first thick slice lies, in slices, [0, 1).
        slice_change, upper_slice_factor: from this share of the height upwards, distance and thickness are larger.
        slice_tilt_deg: of the slices about the left-right axis.
        closing_mm: fissures of the T1's mask up to twice this wide are filled with fluid first.
        mask_of_cavity: whether the CT's own mask is the skull's cavity; if not, it is the T1's.
        mask_growth_mm: how far it reaches beyond that (or, negative, stays within).
        mask_raggedness_mm: standard deviation of that along the edge.
        shell_mm: thickness of the fluid between the T1's mask and the bone.
        shell_vertex_mm: how much thicker it is over the front of the vertex.
        shell_raggedness_mm: its variation.
        bone_hu: at the skull's inside; 0 leaves bone out.
        dura_hu, dura_weight: of falx and tentorium; weight 0 leaves them out.
        dura_thickness_mm: standard deviation across the sheets.
        vessel_hu, vessel_weight: of sinuses and the middle cerebral arteries.
        calcification_hu, num_calcifications: pineal gland, choroid plexus, pallidum.
        choroid_hu: of the choroid plexus after contrast agent, which the vessels of the sulci show, too; 0 for none.
        seed: of everything drawn per voxel or place.
    """

    white_hu: float = 26.0
    grey_hu: float = 35.0
    deep_grey_hu: float = 35.0
    csf_hu: float = 7.0
    texture_hu: float = 0.0
    cupping_hu: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shading_hu: float = 0.0
    petrous_hu: float = 0.0
    midline_streaks_hu: float = 0.0
    noise_hu: float = 0.0
    noise_cutoff_per_mm: float = 0.3
    noise_flatness: float = 0.5
    noise_axial_mm: float = 0.0
    noise_fall: float = 0.0
    blur_in_plane_mm: float = 0.0
    blur_axial_mm: float = 0.0
    slice_distance_mm: float = 0.0
    slice_thickness_mm: float = 0.0
    slice_phase: float = 0.0
    slice_change: float = 0.5
    upper_slice_factor: float = 1.0
    slice_tilt_deg: float = 0.0
    closing_mm: float = 0.0
    mask_of_cavity: bool = False
    mask_growth_mm: float = 0.0
    mask_raggedness_mm: float = 0.0
    shell_mm: float = 3.0
    shell_vertex_mm: float = 0.0
    shell_raggedness_mm: float = 0.0
    bone_hu: float = 0.0
    dura_hu: float = 55.0
    dura_weight: float = 0.0
    dura_thickness_mm: float = 1.0
    vessel_hu: float = 50.0
    vessel_weight: float = 0.0
    calcification_hu: float = 80.0
    num_calcifications: int = 0
    choroid_hu: float = 0.0
    seed: int = 0

    @classmethod
    def draw(cls, rng: np.random.RandomState) -> "SimulatedCTParameters":
        """Draw one from the priors, which hold what was measured on real CT."""
        # population averages and smooth reconstructions: blurred equally in all directions, up to 3 mm
        smooth = rng.uniform() < 0.15
        return cls(
            **_draw_tissue(rng),
            **_draw_artefacts(rng),
            **_draw_scan(rng, smooth),
            **_draw_edge(rng, smooth),
            **_draw_dense_structures(rng),
            seed=int(rng.randint(2**31 - 1)),
        )


def _log_uniform(rng: np.random.RandomState, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _draw_tissue(rng: np.random.RandomState) -> dict[str, float]:
    """HU of tissue; in 6 % of the draws any grey levels in any order, so that the network does not rely on them."""
    texture = {"texture_hu": rng.uniform(0, 1)}
    if rng.uniform() < 0.06:
        levels = rng.uniform(5, 60, 4)
        return dict(zip(("white_hu", "grey_hu", "deep_grey_hu", "csf_hu"), map(float, levels), strict=True)) | texture
    white = rng.uniform(16, 32)
    grey = white + rng.uniform(5, 14)
    return {
        "white_hu": white,
        "grey_hu": grey,
        "deep_grey_hu": grey + rng.uniform(-2.5, 1.5),
        "csf_hu": white - float(np.clip(rng.normal(20, 5), 8, 32)),
        **texture,
    }


def _draw_artefacts(rng: np.random.RandomState) -> dict[str, object]:
    cupping = rng.uniform(0, 14) * rng.dirichlet((1, 1, 1))
    return {
        "cupping_hu": tuple(map(float, cupping)),
        "shading_hu": rng.uniform(0, 1.5),
        "petrous_hu": rng.uniform(3, 18) if rng.uniform() < 0.6 else 0.0,
        "midline_streaks_hu": rng.uniform(0.5, 4) if rng.uniform() < 0.5 else 0.0,
    }


def _draw_scan(rng: np.random.RandomState, smooth: bool) -> dict[str, float]:
    """Resolution, noise and slices; half of all draws have thick slices, which are less noisy."""
    thick = not smooth and rng.uniform() < 0.59
    in_plane = rng.uniform(1.5, 3.0) if smooth else rng.uniform(0.3, 1.3)
    axial = in_plane if smooth else rng.uniform(0.3, 0.8 if thick else 2.0)
    noise = _log_uniform(rng, 0.6, 5 if thick else 10)
    return {
        "blur_in_plane_mm": in_plane,
        "blur_axial_mm": axial,
        "noise_hu": 0.3 * noise if smooth else noise,
        "noise_cutoff_per_mm": _log_uniform(rng, 0.12, 0.6),
        "noise_flatness": rng.uniform(),
        "noise_axial_mm": rng.uniform(0.4, 1.3),
        "noise_fall": rng.uniform(0, 0.35),
        **(_draw_thick_slices(rng) if thick else {}),
    }


def _draw_thick_slices(rng: np.random.RandomState) -> dict[str, float]:
    """Slices of 2.5 to 8 mm: most touch, a fifth each overlap or leave gaps; a quarter of the scans change half-way."""
    changes = rng.uniform() < 0.25
    factor = rng.uniform(1.25, 2) if changes else 1.0
    distance = rng.uniform(2.5, 8 / factor)
    overlap = rng.choice([1.0, rng.uniform(1, 2), rng.uniform(0.6, 1)], p=[0.6, 0.2, 0.2])
    return {
        "slice_distance_mm": distance,
        "slice_thickness_mm": float(distance * overlap),
        "slice_phase": rng.uniform(),
        "slice_change": rng.uniform(0.25, 0.65),
        "upper_slice_factor": factor,
        "slice_tilt_deg": rng.uniform(-20, 20) if rng.uniform() < 0.5 else 0.0,
    }


def _draw_edge(rng: np.random.RandomState, smooth: bool) -> dict[str, float]:
    """Outer fluid, bone and mask; three quarters of the masks are the skull's cavity, as the skull strip gives it."""
    cavity = rng.uniform() < 0.75
    return {
        "closing_mm": rng.uniform(0, 6),
        "mask_of_cavity": bool(cavity),
        "mask_growth_mm": rng.normal(-0.7, 1) if cavity else rng.uniform(-1.5, 3.0),
        "mask_raggedness_mm": rng.uniform(0, 1),
        "shell_mm": rng.uniform(0.5, 5.0),
        "shell_vertex_mm": rng.uniform(0, 7) if rng.uniform() < 0.4 else 0.0,
        "shell_raggedness_mm": rng.uniform(0.3, 1.5),
        "bone_hu": rng.uniform(60, 250) if smooth else _log_uniform(rng, 80, 1000),
    }


def _draw_dense_structures(rng: np.random.RandomState) -> dict[str, float]:
    """Dura, vessels and calcium; in 8 % of the draws with contrast agent."""
    agent = rng.uniform() < 0.08
    vessels = rng.uniform() < 0.7 or agent
    return {
        "dura_hu": rng.uniform(60, 90) if agent else rng.uniform(48, 62),
        "dura_weight": rng.uniform(0.2, 1.0) if rng.uniform() < 0.85 else 0.0,
        "dura_thickness_mm": rng.uniform(0.7, 2.0),
        "vessel_hu": rng.uniform(100, 250) if agent else rng.uniform(40, 62),
        "vessel_weight": rng.uniform(0.2, 1.0) if vessels else 0.0,
        "calcification_hu": rng.uniform(50, 200),
        "num_calcifications": int(rng.choice([0, 1, 2, 3, 5])),
        "choroid_hu": rng.uniform(60, 130) if agent else 0.0,
    }
