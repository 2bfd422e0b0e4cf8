"""Lesions on both sides of a pair: what CT shows, T1 shows, in the places and sizes that are asked for."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from scripts.simulation.lesion_kinds import EVERYWHERE, KINDS, Look, Part
from scripts.simulation.lesion_shapes import Brain, ball_volume, cut_at_volume, ellipsoid_score, fractal_field
from scripts.simulation.lesions import LesionedBrain, RandLesionsd
from scripts.simulation.tissue import CSF, DEEP_GREY, GREY, WHITE

LEVELS = np.array([0.2, 0.55, 0.8, 0.65], np.float32)
USUAL_HU = np.array([7, 34, 25, 33], np.float32)


def pair(spacing_mm: float) -> dict[str, torch.Tensor]:
    """T1, fractions and mask of a brain of 135 x 165 x 130 mm: cortex, white matter, nuclei, ventricles, fissure."""
    shape = [round(n / spacing_mm) for n in (145, 175, 140)]
    x, y, z = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * spacing_mm for n in shape], indexing="ij")
    radius = np.sqrt((x / 67) ** 2 + (y / 82) ** 2 + (z / 65) ** 2)
    ventricle = ((np.abs(x) - 9) / 6) ** 2 + (y / 30) ** 2 + (z - 8) ** 2 / 64 < 1
    nuclei = ((np.abs(x) - 24) / 9) ** 2 + (y / 22) ** 2 + (z / 12) ** 2 < 1
    tissue = np.select([ventricle, nuclei, radius < 0.86, radius < 0.95], [CSF, DEEP_GREY, WHITE, GREY], CSF)
    tissue[(np.abs(x) < spacing_mm) & (radius > 0.6)] = CSF
    mask = radius < 1
    fractions = np.stack([(tissue == c) & mask for c in range(4)]).astype(np.float32)
    t1 = np.tensordot(LEVELS, fractions, 1)
    target = MetaTensor(torch.from_numpy(t1[None]), affine=np.diag([spacing_mm] * 3 + [1.0]))
    return {"target": target, "tissue": torch.from_numpy(fractions), "mask": torch.from_numpy(mask[None])}


@pytest.fixture(scope="module")
def coarse() -> dict[str, torch.Tensor]:
    return pair(4.0)


@pytest.fixture(scope="module")
def fine() -> dict[str, torch.Tensor]:
    return pair(2.5)


def only(kind: str, seed: int, data: dict) -> dict[str, np.ndarray]:
    """One draw of one kind: the T1 before and after, what CT shows, HU changes of a CT of usual HU, the lesion mask."""
    result = RandLesionsd(healthy_share=0.0, probabilities={kind: 1.0}).set_random_state(seed)(data)
    before, after = data["target"].numpy()[0], result["target"].numpy()[0]
    share, added = result["ct_lesions"].numpy()
    hu = np.tensordot(USUAL_HU, data["tissue"].numpy(), 1)
    change = (share * (USUAL_HU[CSF] - hu) + added) * data["mask"].numpy()[0]
    return {"before": before, "after": after, "share": share, "hu": change, "seen": result["lesion_mask"].numpy()[0]}


def test_without_lesions_nothing_changes(coarse):
    for healthy in (RandLesionsd(healthy_share=1.0), RandLesionsd(healthy_share=0.0, probabilities={})):
        result = healthy.set_random_state(0)(coarse)
        assert torch.equal(result["target"], coarse["target"])
        assert not result["ct_lesions"].any()
        assert not result["lesion_mask"].any()


def test_a_draw_keeps_shapes_types_ranges_and_its_input(coarse):
    original = coarse["target"].clone()
    result = RandLesionsd(healthy_share=0.0, probabilities=dict.fromkeys(KINDS, 1.0)).set_random_state(3)(coarse)
    shape = tuple(original.shape[1:])
    assert result["ct_lesions"].shape == (2, *shape)
    assert result["ct_lesions"].dtype == torch.float32
    assert result["lesion_mask"].shape == (1, *shape)
    assert result["lesion_mask"].dtype == torch.uint8
    assert isinstance(result["target"], MetaTensor)
    assert torch.equal(coarse["target"], original)
    assert result["target"].min() >= 0
    assert result["target"].max() <= 1
    assert result["ct_lesions"][0].min() >= 0
    assert result["ct_lesions"][0].max() <= 1
    outside = ~coarse["mask"]
    assert not result["target"][outside].any()
    assert not result["lesion_mask"][outside].any()
    assert result["target"].isfinite().all()
    assert result["ct_lesions"].isfinite().all()


def test_the_same_state_gives_the_same_bits_another_one_does_not(coarse):
    def draws(seed: int) -> list[torch.Tensor]:
        transform = RandLesionsd(healthy_share=0.0).set_random_state(seed)
        return [transform(coarse)["ct_lesions"] for _ in range(3)]

    first, again, other = draws(1), draws(1), draws(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_lesions_compose_as_if_each_were_applied_to_the_ct_before_it(coarse):
    brain = Brain(*(coarse[k].numpy().squeeze() for k in ("target", "tissue", "mask")), (4.0,) * 3)
    rng = np.random.default_rng(0)
    hu, csf, lesioned = rng.uniform(20, 40, brain.t1.shape), 5.0, LesionedBrain.healthy(brain)
    direct = hu.copy()
    box = (slice(3, 20), slice(5, 30), slice(2, 25))
    for look in (Look(0.4, -2), Look(1.0, 55), Look(0.3, 10)):
        weight = rng.uniform(0, 1, [s.stop - s.start for s in box]).astype(np.float32)
        lesioned.add(Part(box, weight, look))
        direct[box] += weight * look.ct_fluid * (csf - direct[box]) + weight * look.ct_hu
    share, added = lesioned.ct
    np.testing.assert_allclose(hu + share * (csf - hu) + added, direct, atol=1e-4)


def test_blood_that_fills_a_voxel_has_its_own_hu_and_t1_level_whatever_was_there(coarse):
    brain = Brain(*(coarse[k].numpy().squeeze() for k in ("target", "tissue", "mask")), (4.0,) * 3)
    lesioned = LesionedBrain.healthy(brain)
    lesioned.add(Part(EVERYWHERE, np.ones_like(brain.t1), Look(0.5, -3, 0.5, 0.0)))
    lesioned.add(Part(EVERYWHERE, np.ones_like(brain.t1), Look.solid(65, t1_level=0.5)))
    share, added = lesioned.ct
    np.testing.assert_allclose(share, 1)
    np.testing.assert_allclose(added + USUAL_HU[CSF], 65)
    np.testing.assert_allclose(lesioned.t1, 0.5 * (LEVELS[CSF] + LEVELS[WHITE]), atol=1e-5)


@pytest.mark.parametrize("kind", ["white_matter_disease", "old_infarct", "lacunes", "cavity", "mass", "haemorrhage"])
def test_where_the_ct_is_dark_the_t1_is_dark(kind, fine):
    share, darker = [], []
    for seed in range(4):
        drawn = only(kind, seed, fine)
        dark = (drawn["hu"] < -3) & (drawn["before"] > LEVELS[GREY] - 0.01)
        share.append(drawn["share"][dark])
        darker.append((drawn["before"] - drawn["after"])[dark] / (drawn["before"][dark] - LEVELS[CSF]))
    share, darker = np.concatenate(share), np.concatenate(darker)
    assert len(share) > 100
    assert np.mean(darker > 0.05) > 0.95
    if kind not in ("mass", "haemorrhage"):  # there, solid parts lie beside watery ones
        assert np.corrcoef(share, darker)[0, 1] > 0.6


def test_where_no_lesion_is_neither_side_changes(fine):
    for kind in KINDS:
        drawn = only(kind, 5, fine)
        untouched = (drawn["share"] == 0) & (np.abs(drawn["hu"]) < 1e-6) & (drawn["seen"] == 0)
        changed = np.abs(drawn["after"] - drawn["before"])[untouched]
        assert changed.max() < 0.06 + 0.45 * (kind == "t1_holes"), kind


def test_bits_say_on_which_side_a_lesion_is_seen(fine):
    on_t1_alone, on_both = only("t1_holes", 1, fine), only("lacunes", 1, fine)
    assert np.mean(on_t1_alone["seen"][on_t1_alone["seen"] > 0] == 2) > 0.9
    assert np.mean(on_both["seen"][on_both["seen"] > 0] == 3) > 0.8
    spots = [only("calcification", seed, fine) for seed in range(8)]
    seen = np.concatenate([s["seen"][s["seen"] > 0] for s in spots])
    assert np.mean(seen == 1) > 0.5
    assert max(s["hu"].max() for s in spots) > 60


def test_oedema_and_white_matter_disease_spare_the_cortex(fine):
    cortex, white = (fine["tissue"].numpy()[c] == 1 for c in (GREY, WHITE))
    drawn = [only("white_matter_disease", seed, fine) for seed in range(6)]
    assert max(d["share"][cortex].max() for d in drawn) < 0.02
    assert max(d["share"][white].mean() for d in drawn) > 0.008
    brain = Brain(*(fine[k].numpy().squeeze() for k in ("target", "tissue", "mask")), (2.5,) * 3)
    for seed in range(4):
        first = next(p for p in KINDS["mass"].draw(brain, np.random.default_rng(seed)))
        if first.look.t1_level == 0 and first.look.ct_fluid < 0.61:  # the oedema comes before its mass
            assert first.weight[cortex[first.box]].max(initial=0) < 0.05


def test_infarcts_keep_to_one_side(fine):
    left = np.arange(fine["target"].shape[1]) < fine["target"].shape[1] // 2
    for seed in range(6):
        darker = only("fresh_infarct", seed, fine)["share"].sum((1, 2))
        side = darker[left].sum() / max(darker.sum(), 1e-6)
        assert min(side, 1 - side) < 0.1


@pytest.mark.parametrize("spacing_mm", [(1.5, 1.5, 1.5), (1.0, 1.0, 3.0)])
def test_sizes_are_mm_whatever_the_voxels(spacing_mm):
    rng, diameter = np.random.default_rng(0), 18.0
    shape = [round(60 / s) for s in spacing_mm]
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm, strict=True)]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    score = ellipsoid_score(rng, offsets, spacing_mm, diameter / 2, 0.25)
    voxel = float(np.prod(spacing_mm))
    weight = cut_at_volume(score, np.ones_like(score), ball_volume(diameter), voxel, 2.0)
    assert weight.sum() * voxel == pytest.approx(ball_volume(diameter), rel=0.1)
    extent = np.ptp(np.argwhere(weight > 0.5), axis=0) * np.asarray(spacing_mm)
    assert diameter * 0.7 < np.median(extent) < diameter * 1.7


def test_random_fields_have_their_scale_in_mm():
    for spacing_mm in ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0)):
        shape = [round(80 / s) for s in spacing_mm]
        field = fractal_field(np.random.default_rng(1), shape, spacing_mm, 4.0, num_octaves=1)
        step = round(4 / spacing_mm[0])
        near = np.corrcoef(field[step:].ravel(), field[:-step].ravel())[0, 1]
        # white noise smoothed by sigma is correlated by exp(-d^2 / (4 sigma^2))
        assert near == pytest.approx(np.exp(-0.25), abs=0.08)
        assert field.std() == pytest.approx(1, abs=1e-4)


def test_lesions_are_no_balls(fine):
    drawn = only("old_infarct", 4, fine)
    shape = ndimage.binary_opening(drawn["share"] > 0.2)
    assert shape.sum() > 50
    middle = np.argwhere(shape).mean(0)
    distance = np.linalg.norm(np.argwhere(shape) - middle, axis=1)
    ball = (3 * shape.sum() / (4 * np.pi)) ** (1 / 3)
    assert np.mean(distance > ball) > 0.08


@pytest.mark.slow
def test_shares_of_two_hundred_draws():
    small = pair(6.0)
    transform = RandLesionsd().set_random_state(11)
    both, none, kinds = [], [], set()
    for _ in range(200):
        seen = transform(small)["lesion_mask"]
        both.append(bool((seen == 3).any()))
        none.append(not seen.any())
        kinds.update(transform.kinds)
    assert 0.5 < np.mean(both) < 0.75
    assert 0.2 < np.mean(none) < 0.5
    assert kinds == set(KINDS)


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match=r"no kinds of lesions.*bruise.*known.*lacunes"):
        RandLesionsd(probabilities={"bruise": 1.0})


def test_a_brain_without_fluid_or_nuclei_still_gets_lesions(coarse):
    mask = coarse["mask"].numpy()[0]
    tissue = torch.zeros_like(coarse["tissue"])
    tissue[WHITE] = torch.from_numpy(mask.astype(np.float32))
    data = {**coarse, "tissue": tissue}
    for kind in KINDS:
        result = RandLesionsd(healthy_share=0.0, probabilities={kind: 1.0}).set_random_state(2)(data)
        assert result["target"].isfinite().all()
        assert result["ct_lesions"].isfinite().all()
