"""Deformed heads: volume and place belong together, nothing folds, nothing blurs."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.simulation.deformation import RandDeformd, linear_map, spline_displacement

SPACING = (2.0, 2.0, 3.0)
SHAPE = (48, 56, 36)


def ball(radius_mm: float = 30.0) -> dict[str, torch.Tensor]:
    """A ball of 0.8 with a mask, and its fractions of two tissues."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, SPACING, strict=True)]
    distance = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")))
    inside = torch.from_numpy((distance < radius_mm).astype(np.float32))[None]
    affine = torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64))
    return {
        "target": MetaTensor(0.8 * inside, affine=affine),
        "tissue": torch.cat([inside, 0 * inside]),
        "mask": inside.to(torch.uint8),
    }


def test_a_displacement_has_the_size_asked_for_and_does_not_fold():
    rng = np.random.RandomState(0)
    for _ in range(5):
        field = spline_displacement(rng, SHAPE, SPACING, 30.0, 4.0)
        assert np.sqrt((field**2).sum(0)).max() == pytest.approx(4.0, rel=1e-5)
        gradient = np.stack([np.stack(np.gradient(f, *SPACING)) for f in field])  # (of, along, H, W, Z)
        jacobian = np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(3))
        assert jacobian.min() > 0.2
        curvature = np.abs(np.diff(field, 2, axis=1)).max()
        assert curvature < 4.0 * (2 / 30) ** 2 * 6  # smooth, without kinks at the knots


def test_linear_map_turns_about_each_axis_by_the_right_hand():
    turned = linear_map((90, 0, 0), (1, 1, 1), (0, 0, 0)) @ [0, 1, 0]
    np.testing.assert_allclose(turned, [0, 0, 1], atol=1e-12)
    turned = linear_map((0, 0, 90), (1, 1, 1), (0, 0, 0)) @ [1, 0, 0]
    np.testing.assert_allclose(turned, [0, 1, 0], atol=1e-12)
    assert np.linalg.det(linear_map((10, -20, 30), (2, 1, 1.5), (0.1, 0.2, -0.1))) == pytest.approx(3.0)


def test_without_draws_only_margins_are_added_and_places_stay():
    data = ball()
    result = RandDeformd(prob=0.0, margin_mm=6.0)(data)
    assert result["target"].shape == (1, 54, 62, 40)
    torch.testing.assert_close(
        result["target"].as_tensor()[:, 3:-3, 3:-3, 2:-2], data["target"].as_tensor(), atol=1e-5, rtol=0
    )
    assert torch.equal(result["mask"][:, 3:-3, 3:-3, 2:-2], data["mask"])
    assert result["mask"].dtype == torch.uint8
    before = data["target"].affine @ torch.tensor([0, 0, 0, 1.0], dtype=torch.float64)
    after = result["target"].affine @ torch.tensor([3, 3, 2, 1.0], dtype=torch.float64)
    torch.testing.assert_close(before, after)


def test_a_common_scale_changes_the_volume_as_it_says():
    data = ball(20.0)
    deform = RandDeformd(prob=1.0, scale=(1.1, 1.1), max_degrees=(0, 0, 0), max_shear=0, max_size_mm=0)
    result = deform(data)
    expected = 1.1 ** (3 * 1.5)  # the common scale, and its square root along each axis
    assert result["mask"].sum() / data["mask"].sum() == pytest.approx(expected, rel=0.03)


def test_all_volumes_move_together_and_a_seed_repeats():
    deform = RandDeformd(prob=1.0)
    results = []
    for seed in (1, 1, 2):
        deform.set_random_state(seed=seed)
        results.append(deform(ball()))
    one, same, other = (r["target"].as_tensor() for r in results)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    mask, tissue = results[0]["mask"][0].bool(), results[0]["tissue"][0]
    assert (mask == (tissue > 0.5)).all()
    assert ((one[0] > 0.4) != mask).float().mean() < 0.002
    assert one.min() >= 0
    assert one.max() <= 1


def test_the_image_keeps_its_fine_structure():
    """A grating of 3 voxels shifted by half a voxel keeps its contrast, which linear interpolation would halve."""
    data = ball()
    x = torch.arange(SHAPE[0], dtype=torch.float32)[None, :, None, None]
    data["target"] = MetaTensor(
        (0.5 + 0.4 * torch.sin(2 * np.pi * x / 3.2)).expand(1, *SHAPE).clone(), affine=data["target"].affine
    )
    deform = RandDeformd(prob=1.0, scale=(1, 1), max_degrees=(0, 0, 20), max_shear=0, max_size_mm=0, margin_mm=0)
    deform.set_random_state(seed=3)
    middle = (slice(None), slice(16, 32), slice(20, 36), slice(10, 26))
    before, after = data["target"].as_tensor()[middle].std(), deform(data)["target"].as_tensor()[middle].std()
    assert after > 0.9 * before
