"""Contrast curves, affine maps and shading of slabs."""

import numpy as np
import pytest
import torch

from scripts.conditioning.style_key import compute_style_key
from scripts.data.augmentation import ContrastCurve, affine_slab, bright_lesion, smooth_shading


def test_affine_identity_and_mirror():
    slab = torch.rand(6, 12, 20)
    torch.testing.assert_close(affine_slab(slab, 0, 1, (0, 0), False), slab)
    torch.testing.assert_close(affine_slab(slab, 0, 1, (0, 0), True), slab.flip(1))


def test_affine_keeps_shapes_in_a_plane_that_is_not_square():
    rows, columns = torch.meshgrid(torch.arange(48.0) - 23.5, torch.arange(64.0) - 31.5, indexing="ij")
    bar = ((rows.abs() < 3) & (columns.abs() < 15)).float()[None]
    turned = affine_slab(bar, np.pi / 2, 1.0, (0, 0), False)
    upright = ((columns.abs() < 3) & (rows.abs() < 15)).float()[None]
    assert (turned - upright).abs().mean() < 0.01
    assert affine_slab(bar, 0, 1.1, (0, 0), False).sum() == pytest.approx(1.21 * float(bar.sum()), rel=0.05)


def test_a_contrast_curve_rises_keeps_its_ends_and_carries_the_key_with_it():
    rng = np.random.default_rng(0)
    values = np.clip(rng.normal(0.5, 0.12, 400_000), 0.01, 1)
    histogram = np.histogram(values, bins=4096, range=(0, 1))[0]
    for _ in range(5):
        curve = ContrastCurve.draw(rng, 0.09)
        table = curve(np.arange(256, dtype=np.uint8))
        assert table[0] == 0
        assert table[-1] == 1
        assert (np.diff(table) > 0).all()
        mapped = np.interp(values, curve.knots, curve.values)
        np.testing.assert_allclose(curve.style_key(histogram, 128)[:2], compute_style_key(mapped)[:2], atol=0.02)


def test_source_shading_is_smooth_and_as_strong_as_asked():
    fields = [smooth_shading(np.random.default_rng(n), (32, 40), 0.3).log() for n in range(20)]
    steps = torch.stack([(field[:, 1:] - field[:, :-1]).abs().max() for field in fields])
    assert steps.max() < 0.12  # a third of the plane from one end of the range to the other
    assert 0.12 < torch.stack(fields).std() < 0.2  # 0.3 / sqrt(3) at the knots, less between them


def test_a_curve_through_an_anchor_leaves_it_and_changes_the_rest():
    rng = np.random.default_rng(0)
    for anchor in (0.3, 0.5, 0.61):
        curve = ContrastCurve.draw(rng, 0.12, anchor=anchor)
        table = curve(np.arange(1001, dtype=np.uint16)[:, None].repeat(2, 1) * 65)
        assert np.interp(anchor, curve.knots, curve.values) == pytest.approx(anchor)
        assert (np.diff(table[:, 0]) > 0).all()
        assert not np.allclose(curve.values, curve.knots, atol=0.01)
    np.testing.assert_allclose(ContrastCurve.draw(rng, 0.0, anchor=0.61)(np.array([0, 99, 255], np.uint8))[1], 99 / 255)


def test_a_bright_lesion_is_bright_in_the_source_dark_in_the_target_and_not_in_fluid():
    source, target = torch.full((3, 60, 80), 0.6), torch.full((3, 60, 80), 0.7)
    source[:, :, :20], target[:, :, :20] = 0.15, 0.2  # fluid
    for number in range(10):
        bright, dark = bright_lesion(source, target, np.random.default_rng(number))
        torch.testing.assert_close(bright[:, :, :20], source[:, :, :20])
        torch.testing.assert_close(dark[:, :, :20], target[:, :, :20])
        changed = bright > source + 0.01
        assert 0.02 < changed[:, :, 20:].float().mean() < 0.4
        assert (dark[changed] < target[changed]).all()
        assert (dark[~changed] > 0.95 * target[~changed]).all()
        assert bright.max() <= 1
        assert dark[:, :, 20:].min() >= 0.4
    empty = torch.zeros(3, 60, 80)
    assert not torch.stack(bright_lesion(empty, empty, np.random.default_rng(0))).any()
