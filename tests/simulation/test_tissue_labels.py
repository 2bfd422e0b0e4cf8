"""Tissue maps from labels: hand-drawn, of DLMUSE, and where there are none."""

import numpy as np
import pytest
import torch

from scripts.simulation.tissue_labels import TissueMapsd, tissue_of_labels


def test_hand_labels_and_dlmuse_mean_the_same_tissues():
    hand = np.array([0, 1, 2, 3, 4, 5, 6, 7])
    np.testing.assert_array_equal(tissue_of_labels(hand), [0, 1, 2, 2, 3, 2, 3, 3])
    # background, ventricle, hippocampus, thalamus, frontal white, cerebellum exterior, its white matter, brainstem
    dlmuse = np.array([0, 51, 47, 59, 81, 38, 40, 35, 207])
    np.testing.assert_array_equal(tissue_of_labels(dlmuse)[:-1], tissue_of_labels(hand))
    assert tissue_of_labels(np.zeros((2, 2))).sum() == 0


@pytest.fixture(scope="module")
def brain() -> dict[str, torch.Tensor]:
    """A T1 of nested tissues (1, H, W, Z), its mask, and labels of all but the outer fluid, shifted by a tissue."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 44, 36)), indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    tissue = np.select([radius < 0.5, radius < 0.75, radius < 0.9], [3, 2, 1])
    t1 = np.array([0.0, 0.2, 0.55, 0.9])[tissue] + np.random.default_rng(0).normal(0, 0.02, tissue.shape)
    labels = np.where(radius < 0.3, 3, np.where(tissue == 3, 4, np.where(tissue == 2, 2, 0)))
    volumes = {"target": np.clip(t1, 0.01, 1) * (tissue > 0), "mask": tissue > 0, "labels": labels}
    return {key: torch.from_numpy(value[None].astype(np.float32)) for key, value in volumes.items()}


def test_labels_come_first_and_brightness_fills_the_rest(brain):
    data = TissueMapsd(spacing_mm=(2, 2, 2))(brain)
    maps, mask, labels = data["extras"].numpy(), brain["mask"][0].numpy() > 0, brain["labels"][0].numpy()
    np.testing.assert_allclose(maps.sum(axis=0), mask, atol=1e-5)
    assert (maps[1][labels == 3] == 1).all()  # bright, but drawn as grey matter
    assert (maps[2][labels == 4] == 1).all()
    assert maps[0][mask & (labels == 0)].mean() > 0.9  # without a label, and dark: fluid
    assert data["source"] is brain["target"]
    assert "source" not in TissueMapsd(spacing_mm=(2, 2, 2), copy_key=None)(brain)
