"""Kinds of lesions: where they lie, how large they are, and what CT and T1 show of each.

Each kind is a function (brain, rng) -> parts; a part is a share of voxels and what CT and T1 show there. On both sides
a lesion with more water is tissue of which a share has become fluid, so what is dark on CT is dark on T1, by about as
much: CT's share is `Look.ct_fluid`, T1's is that times a factor near 1, drawn for each lesion.

What is known of them: infarcts have 19 to 25 HU when acute, 15 subacute and 7 chronic (cross-sectional study of 102
patients, J Neonatal Surg 2025, 14(7), doi 10.63682/jns.v14i7.5888); CT falls by about 2 HU per 1 % of water taken up
(Dzialowski et al. 2004, J Neuroimaging 14:42), within hours, when T1 hardly changes. Blood has 50 to 80 HU and loses
some 1.5 HU a day; its T1 is iso- to slightly dark in the first three days, bright with methaemoglobin until about a
month, then dark (Bradley 1993, Radiology 189:15). Lacunes are filled with fluid and measure 3 to 15 mm; white-matter
disease is hypodense on CT and iso- to hypointense on T1 (STRIVE: Wardlaw et al. 2013, Lancet Neurol 12:822). Vasogenic
oedema follows the white matter and spares the cortex. Most of the small dark lesions of multiple sclerosis on T1 are
not seen on CT. How often each kind occurs is no estimate: training needs to meet all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .lesion_shapes import Box, Brain, ball_volume, cut_at_volume, ellipsoid_score, fractal_field, smoothed, wedge_score
from .tissue import CSF, DEEP_GREY, GREY, WHITE

# nominal HU of fluid, grey, white and deep grey matter: the middle of what simulated CTs are drawn from
NOMINAL_HU = (7.0, 33.0, 24.0, 32.5)


@dataclass(frozen=True)
class Look:
    """What CT and T1 show where a lesion fills a voxel.

    Attributes:
        ct_fluid: share of the tissue that is replaced by fluid, [0, 1].
        ct_hu: HU added after that.
        t1_share: share of the T1 signal that is replaced, [0, 1].
        t1_level: by this, from fluid (0) to white matter (1); above 1 is brighter than white matter.
    """

    ct_fluid: float = 0.0
    ct_hu: float = 0.0
    t1_share: float = 0.0
    t1_level: float = 0.0

    @classmethod
    def solid(cls, hu: float, t1_level: float, t1_share: float = 1.0) -> Look:
        """Tissue replaced by something of ``hu``, such as blood, up to how far the CT's fluid is from its usual HU."""
        return cls(1.0, hu - NOMINAL_HU[CSF], t1_share, t1_level)


class Part(NamedTuple):
    """Share of each voxel in a box, (h, w, z) float32 [0, 1], and what is seen there."""

    box: Box
    weight: np.ndarray
    look: Look


Parts = Iterator[Part]
EVERYWHERE: Box = (slice(None), slice(None), slice(None))


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number drawn evenly on a logarithmic scale."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _watery(rng: np.random.Generator, ct_fluid: float, t1_factor: tuple[float, float]) -> Look:
    """More water: dark on CT, and dark on T1 by a drawn factor of that."""
    return Look(ct_fluid=ct_fluid, t1_share=min(ct_fluid * rng.uniform(*t1_factor), 1.0))


def _softness(rng: np.random.Generator, brain: Brain, low_mm: float, high_mm: float) -> float:
    """Width (mm) of an edge, at least a voxel."""
    return max(rng.uniform(low_mm, high_mm), min(brain.spacing_mm))


def _blob(
    rng: np.random.Generator,
    brain: Brain,
    centre: tuple[int, ...],
    diameter_mm: float,
    allowed: np.ndarray | None = None,
    raggedness: float = 0.25,
    softness_mm: tuple[float, float] = (1.0, 2.5),
) -> tuple[Box, np.ndarray]:
    """A rounded lesion of the volume of a ball, within ``allowed`` (of the whole volume; default: tissue and fluid)."""
    box = brain.box(centre, 1.4 * diameter_mm + 2)
    score = ellipsoid_score(rng, brain.offsets(box, centre), brain.spacing_mm, diameter_mm / 2, raggedness)
    allowed = (brain.mask if allowed is None else allowed)[box] * brain.compartment(box, centre)
    softness = _softness(rng, brain, *softness_mm)
    return box, cut_at_volume(score, allowed, ball_volume(diameter_mm), brain.voxel_mm3, softness)


def _uneven(rng: np.random.Generator, brain: Brain, weight: np.ndarray, amount: float, scale_mm: float) -> np.ndarray:
    """Vary a lesion's depth within it by a standard deviation of ``amount``."""
    field = fractal_field(rng, weight.shape, brain.spacing_mm, scale_mm)
    return (weight * np.clip(1 + amount * field, 0, 1.5)).clip(0, 1)


def _territory(rng: np.random.Generator, brain: Brain, diameter_mm: float) -> tuple[Box, np.ndarray, np.ndarray]:
    """Box, score (mm) and what is allowed of an infarct: a wedge from the cortex inwards, or a deep one."""
    u = brain.coordinates[0]
    if diameter_mm < 45 and rng.uniform() < 0.25:
        centre = brain.pick(rng, (brain.tissue[DEEP_GREY] > 0.5) | ((brain.tissue[WHITE] > 0.9) & (brain.depth > 8)))
        box = brain.box(centre, 1.5 * diameter_mm)
        score = ellipsoid_score(rng, brain.offsets(box, centre), brain.spacing_mm, diameter_mm / 2, 0.35)
    else:
        centre = brain.pick(rng, (brain.tissue[GREY] > 0.5) & (brain.depth < 8) & (np.abs(u) > 0.05))
        box = brain.box(centre, 2 * diameter_mm)
        offsets = brain.offsets(box, centre)
        inward = (brain.middle - np.asarray(centre)) * brain.spacing_mm * np.array([1, 0.5, 0.8])
        score = wedge_score(rng, offsets, brain.spacing_mm, inward, diameter_mm / 2, 0.25)
    return box, score, brain.mask[box] * brain.compartment(box, centre)


def fresh_infarct(brain: Brain, rng: np.random.Generator) -> Parts:
    """Hours to two weeks old: grey and white matter darken on CT, less on T1; in the first hours hardly at all."""
    diameter = log_uniform(rng, 8, 75)
    box, score, allowed = _territory(rng, brain, diameter)
    weight = cut_at_volume(score, allowed, ball_volume(diameter), brain.voxel_mm3, _softness(rng, brain, 1.5, 6))
    weight = _uneven(rng, brain, weight, rng.uniform(0.05, 0.25), 8.0)
    age = rng.uniform()
    if age < 0.15:
        yield Part(box, weight, _watery(rng, rng.uniform(0.02, 0.12), (0.0, 0.2)))
    elif age < 0.4:
        yield Part(box, weight, _watery(rng, rng.uniform(0.12, 0.35), (0.3, 0.9)))
    else:
        yield Part(box, weight, _watery(rng, rng.uniform(0.25, 0.65), (0.6, 1.15)))


def old_infarct(brain: Brain, rng: np.random.Generator) -> Parts:
    """Months to years old: a ragged cavity with a rim of gliosis; fluid widens around it as the brain shrinks."""
    diameter = log_uniform(rng, 6, 70)
    box, score, allowed = _territory(rng, brain, diameter)
    volume, softness = ball_volume(diameter), _softness(rng, brain, 1.5, 4)
    whole = cut_at_volume(score, allowed, volume, brain.voxel_mm3, softness)
    rim = _uneven(rng, brain, whole, rng.uniform(0.1, 0.3), 5.0)
    yield Part(box, rim, _watery(rng, rng.uniform(0.3, 0.6), (0.9, 1.4)))
    if diameter > 20:
        reach = cut_at_volume(score, allowed, 2 * volume, brain.voxel_mm3, 8.0)
        wider = np.clip(rng.uniform(1.5, 3.5) * smoothed(brain.tissue[CSF][box], brain.spacing_mm, 2.0), 0, 1)
        yield Part(box, reach * wider, _watery(rng, rng.uniform(0.7, 1.0), (0.9, 1.1)))
    if rng.uniform() < 0.85:
        share = rng.uniform(0.25, 0.85)
        core = cut_at_volume(score, allowed, share * volume, brain.voxel_mm3, _softness(rng, brain, 1.5, 6))
        core = _uneven(rng, brain, core, rng.uniform(0.05, 0.35), 4.0)
        yield Part(box, core, _watery(rng, rng.uniform(0.55, 1.0), (0.9, 1.1)))


def lacunes(brain: Brain, rng: np.random.Generator) -> Parts:
    """One to seven small fluid-filled holes in deep grey and deep white matter."""
    where = (brain.tissue[DEEP_GREY] > 0.7) | ((brain.deep_white > 0.8) & (brain.depth > 8))
    for _ in range(int(rng.choice([1, 1, 1, 2, 2, 3, 4, 7]))):
        box, weight = _blob(rng, brain, brain.pick(rng, where), log_uniform(rng, 3, 15), softness_mm=(1.0, 2.0))
        yield Part(box, weight, _watery(rng, rng.uniform(0.5, 1.0), (0.8, 1.2)))


def white_matter_disease(brain: Brain, rng: np.random.Generator) -> Parts:
    """Caps and rims of the ventricles up to confluent disease, much alike on both sides; the U-fibres are spared."""
    _, v, w = brain.coordinates
    field = fractal_field(rng, brain.mask.shape, brain.spacing_mm, rng.uniform(5, 12))
    field = (field + rng.uniform(0.5, 1.2) * brain.mirrored(field)) / 1.4
    # the horns come first
    horns = 6 * np.exp(-(((np.abs(v - 0.02) - 0.22) / 0.06) ** 2))
    score = -brain.ventricle_distance + horns + rng.uniform(2, 8) * field
    allowed = brain.deep_white * (w > -0.5)
    volume = 1000 * log_uniform(rng, 1.5, 70)
    weight = cut_at_volume(score, allowed, volume, brain.voxel_mm3, _softness(rng, brain, 3, 9))
    weight = _uneven(rng, brain, weight, rng.uniform(0.05, 0.25), 4.0)
    yield Part(EVERYWHERE, weight, _watery(rng, rng.uniform(0.2, 0.55), (0.8, 1.5)))


def _oedema(rng: np.random.Generator, brain: Brain, centre: tuple[int, ...], diameter_mm: float, look: Look) -> Part:
    """Fingers in the white matter around a mass; the cortex is spared."""
    box = brain.box(centre, 1.5 * diameter_mm)
    score = ellipsoid_score(rng, brain.offsets(box, centre), brain.spacing_mm, diameter_mm / 2, 0.3)
    white = np.clip(2 * smoothed(brain.tissue[WHITE][box], brain.spacing_mm, 1.0) - 0.7, 0, 1)
    # what blurring brought into the cortex is taken back
    white = white * np.clip(1.25 * brain.tissue[WHITE][box], 0, 1) * brain.compartment(box, centre)
    softness = _softness(rng, brain, 3, 7)
    weight = cut_at_volume(score, white, 0.5 * ball_volume(diameter_mm), brain.voxel_mm3, softness)
    return Part(box, _uneven(rng, brain, weight, 0.12, 6.0), look)


def _mass_look(rng: np.random.Generator) -> Look:
    """Hypo-, iso- or hyperdense; iso- to hypointense on T1, a tenth bright (fat, protein, melanin)."""
    kind = rng.choice(["hypodense", "isodense", "hyperdense"], p=[0.45, 0.3, 0.25])
    if kind == "hypodense":
        return _watery(rng, rng.uniform(0.25, 0.7), (0.7, 1.2))
    t1_level = rng.uniform(0.9, 1.3) if rng.uniform() < 0.1 else rng.uniform(0.25, 0.7)
    hu = rng.uniform(28, 36) if kind == "isodense" else rng.uniform(38, 55)
    return Look.solid(hu, t1_level, rng.uniform(0.7, 1.0))


def mass(brain: Brain, rng: np.random.Generator) -> Parts:
    """One tumour or abscess, sometimes up to four, each with oedema and often a necrotic or cystic centre."""
    where = (brain.solid > 0.9) & (brain.depth > 5)
    look, oedema_look = _mass_look(rng), _watery(rng, rng.uniform(0.28, 0.6), (0.7, 1.2))
    necrotic = rng.uniform() < 0.5
    centre_look = _watery(rng, rng.uniform(0.6, 1.0), (0.8, 1.05))
    for _ in range(int(rng.choice([1, 2, 4], p=[0.75, 0.15, 0.1]))):
        centre, diameter = brain.pick(rng, where), log_uniform(rng, 5, 50)
        if rng.uniform() < 0.8:
            yield _oedema(rng, brain, centre, diameter * log_uniform(rng, 1.3, 3.0) + 4, oedema_look)
        box, weight = _blob(rng, brain, centre, diameter, raggedness=rng.uniform(0.1, 0.35))
        yield Part(box, _uneven(rng, brain, weight, 0.15, 4.0), look)
        if necrotic and diameter > 10:
            inner, core = _blob(rng, brain, centre, diameter * rng.uniform(0.5, 0.85), raggedness=0.3)
            overlap = _weight_within(inner, box, weight)
            yield Part(inner, core * overlap, centre_look)


def _weight_within(inner: Box, outer: Box, weight: np.ndarray) -> np.ndarray:
    """The part of an outer box's weight that lies in an inner box."""
    return weight[tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))]


def haemorrhage(brain: Brain, rng: np.random.Generator) -> Parts:
    """Deep or lobar blood: dense and sharp when fresh, fading from its edge and bright on T1 later, then a slit."""
    deep = rng.uniform() < 0.5
    where = brain.tissue[DEEP_GREY] > 0.5 if deep else (brain.tissue[WHITE] > 0.8) & (brain.depth > 4)
    diameter, centre = log_uniform(rng, 4, 55), brain.pick(rng, where)
    age = rng.choice(["acute", "subacute", "chronic"], p=[0.5, 0.3, 0.2])
    if age != "chronic" and diameter > 7:
        rim = diameter + log_uniform(rng, 4, 20)
        yield _oedema(rng, brain, centre, rim, _watery(rng, rng.uniform(0.2, 0.55), (0.7, 1.2)))
    box, weight = _blob(rng, brain, centre, diameter, raggedness=0.3)
    if age == "chronic":
        yield Part(box, weight, _watery(rng, rng.uniform(0.6, 1.0), (0.9, 1.1)))
    elif age == "acute":
        yield Part(box, _uneven(rng, brain, weight, 0.06, 4.0), Look.solid(rng.uniform(50, 80), rng.uniform(0.3, 0.65)))
    else:
        inner, core = _blob(rng, brain, centre, 0.7 * diameter, raggedness=0.3, softness_mm=(3, 6))
        yield Part(box, weight, Look.solid(rng.uniform(38, 50), rng.uniform(0.9, 1.35)))
        centre_look = Look.solid(rng.uniform(45, 70), rng.uniform(0.4, 1.2))
        yield Part(inner, core * _weight_within(inner, box, weight), centre_look)


def cavity(brain: Brain, rng: np.random.Generator) -> Parts:
    """An arachnoid cyst or the cavity of a resection at the edge of the brain; some with gliosis around."""
    diameter = log_uniform(rng, 8, 55)
    u, _, w = brain.coordinates
    edge = (brain.depth < 3) & brain.mask & (np.abs(u) > 0.03) & (w > -0.7)
    centre = brain.pick(rng, edge)
    if rng.uniform() < 0.5:
        glial = _blob(rng, brain, centre, diameter + rng.uniform(2, 8), raggedness=0.2, softness_mm=(2, 5))
        yield Part(*glial, _watery(rng, rng.uniform(0.25, 0.55), (0.8, 1.3)))
    box, weight = _blob(rng, brain, centre, diameter, raggedness=rng.uniform(0, 0.2), softness_mm=(0.5, 2))
    yield Part(box, weight, _watery(rng, rng.uniform(0.92, 1.0), (0.97, 1.03)))


def calcification(brain: Brain, rng: np.random.Generator) -> Parts:
    """One to six spots of calcium, 1.5 to 8 mm: bright on CT, mostly nothing on T1."""
    look = Look(1.0, rng.uniform(73, 193))
    if rng.uniform() < 0.25:
        look = Look.solid(rng.uniform(80, 200), rng.uniform(0.1, 0.4), rng.uniform(0.2, 0.7))
    for _ in range(int(rng.choice([1, 1, 2, 3, 6]))):
        centre = brain.pick(rng, brain.solid > 0.5)
        diameter = log_uniform(rng, 1.5, 8)
        box, weight = _blob(rng, brain, centre, diameter, softness_mm=(0.5, 1.5))
        # smaller than a voxel is fainter, not larger
        fainter = ball_volume(diameter) / max(float(weight.sum()) * brain.voxel_mm3, 1e-6)
        yield Part(box, weight * min(1.0, fainter), look)


def t1_holes(brain: Brain, rng: np.random.Generator) -> Parts:
    """Small dark lesions of white matter that T1 shows and CT does not, or hardly, as in multiple sclerosis."""
    near = (brain.tissue[WHITE] > 0.8) & ((brain.ventricle_distance < 12) | (rng.uniform() < 0.4))
    for _ in range(rng.integers(1, 13)):
        box, weight = _blob(rng, brain, brain.pick(rng, near), log_uniform(rng, 2, 9))
        yield Part(box, weight, Look(ct_fluid=rng.uniform(0, 0.12), t1_share=rng.uniform(0.2, 0.75)))


def _crescent(brain: Brain, centre: tuple[int, ...], thickness_mm: float, angle: float) -> np.ndarray:
    """(H, W, Z) share of a collection below the surface, thickest at ``centre`` and gone ``angle`` (radians) away."""
    offsets = brain.offsets(EVERYWHERE, brain.middle)
    towards = (np.asarray(centre) - brain.middle) * brain.spacing_mm
    along = np.tensordot((towards / np.linalg.norm(towards)).astype(np.float32), offsets, 1)
    cosine = along / np.maximum(np.sqrt((offsets**2).sum(0)), 1)
    profile = np.sqrt(np.clip((cosine - np.cos(angle)) / (1 - np.cos(angle)), 0, 1))
    weight = np.clip((thickness_mm * profile - brain.depth) / 1.5 + 0.5, 0, 1) * (profile > 0)
    return (weight * brain.mask * brain.compartment(EVERYWHERE, centre)).astype(np.float32)


def subdural(brain: Brain, rng: np.random.Generator) -> Parts:
    """A crescent of blood or, when chronic, fluid at the edge of one hemisphere; it does not push the brain aside."""
    u, _, w = brain.coordinates
    centre = brain.pick(rng, (brain.depth < 2) & brain.mask & (np.abs(u) > 0.2) & (w > -0.45))
    weight = _crescent(brain, centre, log_uniform(rng, 3, 8), rng.uniform(0.6, 1.2))
    chronic = rng.uniform() < 0.5
    hu, t1_level = ((7, 20), (0.0, 0.4)) if chronic else ((45, 75), (0.3, 1.1))
    yield Part(EVERYWHERE, weight, Look.solid(rng.uniform(*hu), rng.uniform(*t1_level)))


class Kind(NamedTuple):
    """A kind's function and how often it is found in a brain that is not healthy."""

    draw: Callable[[Brain, np.random.Generator], Parts]
    probability: float


KINDS = {
    "white_matter_disease": Kind(white_matter_disease, 0.32),
    "fresh_infarct": Kind(fresh_infarct, 0.22),
    "old_infarct": Kind(old_infarct, 0.25),
    "lacunes": Kind(lacunes, 0.2),
    "subdural": Kind(subdural, 0.04),
    "cavity": Kind(cavity, 0.1),
    "mass": Kind(mass, 0.16),
    "haemorrhage": Kind(haemorrhage, 0.12),
    "t1_holes": Kind(t1_holes, 0.1),
    "calcification": Kind(calcification, 0.12),
}
"""Drawn in this order: what comes later lies over what came before."""
