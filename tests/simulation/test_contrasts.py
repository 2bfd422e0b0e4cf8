"""Simulated contrasts: the order of their tissues, lesions on all sides, place, and what stays as it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.simulation.contrasts import SIMULATED, Head, RandSimulateContrastsd, SimulatedContrast, simulate_contrast
from scripts.simulation.tissue import CSF, DEEP_GREY, GREY, WHITE

SHAPE = (36, 40, 32)
SPACING = (4.0, 4.0, 4.0)
LEVELS = np.array([0.15, 0.5, 0.85, 0.7], np.float32)


def fractions() -> tuple[np.ndarray, np.ndarray]:
    """Shells of fluid, grey, white matter about a nucleus of deep grey and a ventricle, and the mask."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1.05, 1.05, n) for n in SHAPE], indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    tissue = np.zeros((4, *SHAPE), np.float32)
    tissue[CSF] = (radius < 1) & (radius >= 0.92)
    tissue[GREY] = (radius < 0.92) & (radius >= 0.72)
    tissue[WHITE] = radius < 0.72
    for kind, centre in ((DEEP_GREY, (0.3, 0.2, 0.0)), (CSF, (-0.3, 0.2, 0.0))):
        ball = np.sqrt(((grid - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(0)) < 0.18
        tissue[:, ball] = 0
        tissue[kind, ball] = 1
    return tissue, radius < 1


def lesions(tissue: np.ndarray, share: float = 0.3, added: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A CT's lesion of a share of fluid and HU in the back of the white matter, and where it is."""
    where = np.zeros(SHAPE, bool)
    where[14:22, 9:15, 12:20] = True
    where &= tissue[WHITE] > 0
    return np.stack([share * where, added * where]).astype(np.float32), where


def head(ct_lesions=None, t1=None) -> Head:
    tissue, mask = fractions()
    healthy = np.tensordot(LEVELS, tissue, 1)
    return Head.of(healthy if t1 is None else t1, healthy, tissue, mask, SPACING, ct_lesions)


def plain(contrast: str, seed: int = 0) -> SimulatedContrast:
    """A contrast's look without texture, noise, blur and displacement."""
    drawn = SimulatedContrast.draw(np.random.RandomState(seed), contrast)
    return replace(drawn, texture=0, noise=0, shading=0, blur_mm=(0, 0), degrees=(0, 0, 0), shift_mm=(0, 0, 0))


def of_tissue(image: np.ndarray, tissue: np.ndarray, kind: int) -> float:
    return float(np.median(image[tissue[kind] == 1]))


@pytest.mark.parametrize("seed", range(12))
def test_tissues_have_the_order_of_their_contrast(seed: int):
    subject = head()
    csf, grey, white, deep = (
        {name: of_tissue(simulate_contrast(subject, plain(name, seed)), subject.tissue, kind) for name in SIMULATED}
        for kind in (CSF, GREY, WHITE, DEEP_GREY)
    )
    assert csf["T2"] > grey["T2"] > white["T2"]
    assert grey["FLAIR"] > white["FLAIR"] > csf["FLAIR"]
    assert grey["PD"] > white["PD"]
    assert csf["T1ce"] < grey["T1ce"] < white["T1ce"]
    assert deep["T2"] <= grey["T2"]


@pytest.mark.parametrize("contrast", ["T2", "FLAIR", "PD"])
def test_oedema_is_bright_and_a_cavity_is_fluid(contrast: str):
    tissue, _ = fractions()
    healthy = simulate_contrast(head(), plain(contrast, 1))
    ct_lesions, where = lesions(tissue, share=0.4)
    assert (simulate_contrast(head(ct_lesions), plain(contrast, 1))[where] > healthy[where]).all()
    cavity = simulate_contrast(head(lesions(tissue, share=1.0)[0]), plain(contrast, 1))
    np.testing.assert_allclose(cavity[where], of_tissue(healthy, tissue, CSF), rtol=1e-4)
    for image in (healthy, cavity):
        assert (image[~where & (tissue[GREY] == 1)] == of_tissue(healthy, tissue, GREY)).all()


def test_what_the_t1_alone_shows_is_on_all_sides():
    subject = head()
    _, where = lesions(subject.tissue)
    t1 = np.where(where, 0.5 * subject.t1, subject.t1)
    changed = head(t1=t1)
    assert changed.water[where].min() > 0.3
    assert changed.water[~where].max() == 0
    for contrast in ("T2", "FLAIR", "PD"):
        before, after = (simulate_contrast(one, plain(contrast, 2)) for one in (subject, changed))
        rest = subject.mask & ~where
        scale = after[rest] / before[rest]  # what is brightest is 1
        np.testing.assert_allclose(scale, scale[0], rtol=1e-4)
        assert (after[where] > scale[0] * before[where]).all()


def test_blood_is_no_water():
    tissue, _ = fractions()
    ct_lesions, where = lesions(tissue, share=1.0, added=50)
    subject = head(ct_lesions)
    assert (subject.solid[where] == 1).all()
    assert not subject.water.any()
    levels = [np.median(simulate_contrast(subject, plain("T2", seed))[where]) for seed in range(8)]
    assert np.ptp(levels) > 0.1  # of any age


def test_a_contrast_agent_brightens_vessels_and_rims_and_darkens_nothing():
    tissue, _ = fractions()
    subject = head(lesions(tissue, share=0.6)[0])
    without = replace(plain("T1ce"), gamma=1.0, vessels=0, rim=0, enhanced=0)
    before = simulate_contrast(subject, without)
    np.testing.assert_allclose(before, subject.t1 / subject.t1.max() * subject.mask, atol=1e-3)
    for share in ({"vessels": 1.0}, {"rim": 1.0}):
        after = simulate_contrast(subject, replace(without, **share, enhanced_level=1.5))
        ratio = after[subject.mask] / before[subject.mask]
        assert np.quantile(ratio, 0.5) == pytest.approx(ratio.min(), rel=1e-4)  # most of it is only scaled
        assert 0.001 < np.mean(ratio > 1.05 * ratio.min()) < 0.2


def test_a_scan_out_of_its_place_is_moved_by_what_was_drawn():
    subject = head()
    still = replace(plain("T2"), shift_mm=(0.0, 0.0, 0.0))
    moved = replace(still, shift_mm=(4.0, 0.0, -8.0))
    image, shifted = (simulate_contrast(subject, p) for p in (still, moved))
    inner = (slice(4, -4),) * 3
    expected = np.roll(image, (-1, 2), axis=(0, 2)) * subject.mask
    top = expected[inner].max() / max(shifted[inner].max(), 1e-6)
    np.testing.assert_allclose(top * shifted[inner], expected[inner], atol=2e-2)
    turned = simulate_contrast(subject, replace(still, degrees=(0.0, 0.0, 1.0)))
    assert 0 < np.abs(turned - image).mean() < 0.05


def test_what_is_drawn_is_small_and_most_scans_are_in_place():
    drawn = [SimulatedContrast.draw(np.random.RandomState(seed), "FLAIR") for seed in range(300)]
    moved = [one for one in drawn if any(one.degrees)]
    assert 0.3 < len(moved) / 300 < 0.5
    assert max(np.abs([one.shift_mm for one in drawn]).max(), np.abs([one.degrees for one in drawn]).max()) <= 1


def item(**more: torch.Tensor) -> dict:
    tissue, mask = fractions()
    t1 = MetaTensor(torch.from_numpy(np.tensordot(LEVELS, tissue, 1) * mask)[None], affine=np.diag([*SPACING, 1]))
    return {"target": t1, "tissue": torch.from_numpy(tissue), "mask": torch.from_numpy(mask)[None], **more}


def test_the_stack_has_the_channels_in_order_and_the_real_t1():
    contrasts = ("CT", "FLAIR", "T1", "PD")
    data = item(ct=torch.rand(1, *SHAPE))
    simulate = RandSimulateContrastsd(contrasts=contrasts, ct_in_brain=0.0).set_random_state(seed=3)
    made = simulate(data)
    assert "target" not in made
    assert made["source"].shape == (4, *SHAPE)
    torch.testing.assert_close(torch.as_tensor(made["source"][2]), torch.as_tensor(data["target"][0]))
    torch.testing.assert_close(torch.as_tensor(made["source"][0]), data["ct"][0])
    np.testing.assert_allclose(np.asarray(made["source"].affine), np.diag([*SPACING, 1]))
    assert not made["source"][1:, ~data["mask"][0]].any()
    assert 0 <= made["source"].min() <= made["source"].max() <= 1
    again = RandSimulateContrastsd(contrasts=contrasts, ct_in_brain=0.0).set_random_state(seed=3)(data)
    torch.testing.assert_close(again["source"], made["source"], rtol=0, atol=0)
    another = simulate(data)
    assert not torch.equal(another["source"][1], made["source"][1])
    assert not RandSimulateContrastsd()(item())["source"][-1].any()  # no CT was simulated


def test_contrasts_that_cannot_be_simulated_are_refused():
    with pytest.raises(ValueError, match="T1 is one"):
        RandSimulateContrastsd(contrasts=("T2", "FLAIR"))
    with pytest.raises(ValueError, match="T1 is one"):
        RandSimulateContrastsd(contrasts=("T1", "SWI"))
