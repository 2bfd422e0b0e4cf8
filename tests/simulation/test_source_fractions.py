"""Tissue fractions of the sources: which contrast they are of, in which order, and never of the target."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.simulation.source_fractions import SourceFractionsd, contrast_fractions, structure_contrast

CONTRASTS = ("T1", "T1ce", "T2", "FLAIR", "PD", "CT")
LEVELS = {
    "T1": (0.15, 0.5, 0.85),
    "T1ce": (0.15, 0.4, 0.6),
    "T2": (0.95, 0.5, 0.3),
    "FLAIR": (0.15, 0.8, 0.55),
    "PD": (0.95, 0.8, 0.6),
    "CT": (0.2, 0.6, 0.4),
}
SHAPE = (20, 22, 18)


def shells() -> np.ndarray:
    """0 outside, 1 fluid, 2 grey, 3 white matter."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1.05, 1.05, n) for n in SHAPE], indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    return (radius < 1).astype(int) + (radius < 0.85) + (radius < 0.6)


def image(contrast: str, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.03, SHAPE)
    return (np.array([0, *LEVELS[contrast]])[shells()] + noise * (shells() > 0)).astype(np.float32)


def stack(present: tuple[str, ...]) -> MetaTensor:
    images = [image(name) if name in present else np.zeros(SHAPE, np.float32) for name in CONTRASTS]
    return MetaTensor(torch.from_numpy(np.stack(images)), affine=np.diag([3.0, 3, 3, 1]))


def mask() -> torch.Tensor:
    return torch.from_numpy(shells() > 0)[None].float()


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_each_contrast_has_its_own_order_of_tissues(contrast: str):
    fractions = contrast_fractions(image(contrast), shells() > 0, contrast)
    np.testing.assert_allclose(fractions.sum(0), shells() > 0, atol=1e-5)
    agreement = (fractions.argmax(0) + 1 == shells())[shells() > 0].mean()
    assert agreement > 0.95
    labels = contrast_fractions(image(contrast), shells() > 0, contrast, "labels")
    assert set(np.unique(labels)) == {0, 1}
    np.testing.assert_array_equal(labels.sum(0), shells() > 0)


def test_t1_comes_first_and_then_the_order_of_the_contrasts():
    assert structure_contrast(CONTRASTS, [1, 1, 1, 0, 0, 1]) == 0
    assert structure_contrast(CONTRASTS, [0, 0, 1, 1, 0, 1]) == 2
    assert structure_contrast(("CT", "T2", "T1"), [1, 1, 1]) == 2
    assert structure_contrast(CONTRASTS, [0] * 6) is None


def test_the_fractions_are_of_one_source_with_the_lesion_beside():
    data = {"source": stack(("T2", "FLAIR")), "mask": mask(), "lesion": torch.zeros(1, *SHAPE)}
    data["lesion"][0, 8:12, 8:12, 8:12] = 1
    made = SourceFractionsd(contrasts=CONTRASTS, lesion_key="lesion")(data)
    assert made["fractions"].shape == (4, *SHAPE)
    np.testing.assert_array_equal(made["fractions"][:3], contrast_fractions(image("T2"), shells() > 0, "T2"))
    np.testing.assert_array_equal(made["fractions"][3], data["lesion"][0])
    np.testing.assert_allclose(made["fractions"].affine, np.diag([3.0, 3, 3, 1]))
    appended = SourceFractionsd(contrasts=CONTRASTS, output_key=None, lesion_key="lesion")(data)["source"]
    assert appended.shape == (10, *SHAPE)
    torch.testing.assert_close(torch.as_tensor(appended[6:]), torch.as_tensor(made["fractions"]))
    more = {**data, "source": torch.cat([torch.as_tensor(data["source"]), torch.ones(2, *SHAPE)])}
    longer = SourceFractionsd(contrasts=CONTRASTS, output_key=None, lesion_key="lesion")(more)["source"]
    assert torch.equal(torch.as_tensor(longer), torch.cat([torch.as_tensor(appended), torch.ones(2, *SHAPE)]))
    assert not SourceFractionsd(contrasts=CONTRASTS)(data)["fractions"][3].any()  # unless it is asked for


def test_of_each_contrast_absent_ones_are_zero():
    data = {"source": stack(("T1", "PD")), "mask": mask()}
    made = SourceFractionsd(contrasts=CONTRASTS, output_key="extras", each=True)(data)["extras"]
    assert made.shape == (19, *SHAPE)
    there = made[:18].unflatten(0, (6, 3)).flatten(1).any(dim=1)
    assert there.tolist() == [True, False, False, False, True, False]
    np.testing.assert_array_equal(made[12:15], contrast_fractions(image("PD"), shells() > 0, "PD"))
    assert not made[18].any()


def test_none_leaves_all_as_it_is_and_another_structure_is_refused():
    data = {"source": stack(("T1",)), "mask": mask()}
    assert SourceFractionsd(contrasts=CONTRASTS, structure=None)(data).keys() == data.keys()
    with pytest.raises(ValueError, match="structure is 'tissue'"):
        SourceFractionsd(structure="tissue")
