"""Slab dataset: packing, augmentation and the style key that follows the contrast."""

import numpy as np
import pytest
import torch

from scripts.conditioning.style_key import compute_style_key
from scripts.data.slab_dataset import (
    ContrastCurve,
    PackedVolume,
    SlabDataset,
    affine_slab,
    build_volumes,
    pack_volume,
    smooth_shading,
)
from scripts.data.training import keys_by_person
from scripts.errors import CaseError


def ramp_volume(subject: str = "a", weight: float = 1.0, renderings: int = 2) -> PackedVolume:
    """Slices whose grey level is their index, each rendering of the source 100 above the next."""
    levels = np.arange(10, dtype=np.uint8)
    target = np.broadcast_to(levels[:, None, None], (10, 8, 16)).copy()
    sources = np.stack([target + 100 * k for k in range(1, renderings + 1)])
    histogram = np.bincount(np.arange(4096) % 4096, minlength=4096)
    return PackedVolume(subject, target, sources, histogram, np.arange(10), weight)


def test_a_slab_holds_neighbouring_slices_of_one_rendering_with_zeros_beyond_the_ends():
    dataset = SlabDataset([ramp_volume()], length=200, augment=False)
    seen = set()
    for item in dataset:
        target = (item["target"][:, 0, 0] * 255).round().int().tolist()
        source = (item["source"][:, 0, 0] * 255).round().int().tolist()
        centre = target[1]
        assert target == [max(centre - 1, 0), centre, centre + 1 if centre < 9 else 0]
        offset = source[1] - centre
        assert offset in (100, 200)
        assert source == [level + offset if index else 0 for level, index in zip(target, inside(centre), strict=True)]
        seen.add((centre, offset))
    assert len(seen) == 20  # every slice of both renderings is drawn


def inside(centre: int) -> list[bool]:
    return [0 <= centre + step <= 9 for step in (-1, 0, 1)]


def test_items_depend_on_seed_epoch_and_index_alone():
    first, second = (SlabDataset([ramp_volume()], length=5, seed=3) for _ in range(2))
    _ = second[0], second[1]
    torch.testing.assert_close(first[4], second[4], rtol=0, atol=0)
    second.set_epoch(1)
    assert not torch.equal(first[4]["target"], second[4]["target"])


def test_subjects_are_drawn_by_weight():
    dark, bright = ramp_volume("dark"), ramp_volume("bright", weight=3.0)
    bright.target[:] = 255
    dataset = SlabDataset([dark, bright], length=600, augment=False)
    share = np.mean([item["target"][1].max() == 1 for item in dataset])
    assert share == pytest.approx(0.75, abs=0.05)


def test_no_volume_is_an_error():
    with pytest.raises(ValueError, match="no training volume"):
        SlabDataset([], length=1)


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


def test_sixteen_bits_hold_what_eight_round_off():
    image = torch.rand(1, 8, 8, 4, generator=torch.Generator().manual_seed(0))
    data = {"target": image, "source": image.flip(1), "mask": torch.ones_like(image)}
    curve = ContrastCurve.identity()
    for bits, error in ((8, 0.5 / 255), (16, 0.5 / 65535)):
        packed = pack_volume({}, lambda item: data, None, 1, (8, 8), seed=0, bits=bits)
        deviation = np.abs(curve(packed.target) - image[0].permute(2, 0, 1).numpy()).max()
        assert 0.8 * error < deviation < 1.01 * error
        item = SlabDataset([packed], length=1, augment=False)[0]
        assert item["target"].max() <= 1
    with pytest.raises(CaseError, match="8 or 16 bits"):
        build_volumes([], lambda item: item, bits=12)


def brain_volume() -> PackedVolume:
    """Half of each slice is background, the other half grey; the source is the target."""
    image = np.zeros((6, 32, 40), np.uint8)
    image[:, :, 20:] = 128
    return PackedVolume("a", image, image[None], np.ones(4096), np.arange(1, 5))


def test_source_shading_is_smooth_and_as_strong_as_asked():
    fields = [smooth_shading(np.random.default_rng(n), (32, 40), 0.3).log() for n in range(20)]
    steps = torch.stack([(field[:, 1:] - field[:, :-1]).abs().max() for field in fields])
    assert steps.max() < 0.12  # a third of the plane from one end of the range to the other
    assert 0.12 < torch.stack(fields).std() < 0.2  # 0.3 / sqrt(3) at the knots, less between them


@pytest.mark.parametrize("change", [{"source_contrast_spread": 0.09}, {"source_shading": 0.3}, {"source_noise": 0.05}])
def test_the_source_changes_alone_and_its_background_stays(change: dict):
    plain, changed = (SlabDataset([brain_volume()], length=30, **more) for more in ({}, change))
    for before, after in zip(plain, changed, strict=True):
        torch.testing.assert_close(after["target"], before["target"], rtol=0, atol=0)
        torch.testing.assert_close(after["style_key"], before["style_key"], rtol=0, atol=0)
        background = before["source"] == 0
        assert (after["source"][background] == 0).all()
        assert not torch.equal(after["source"], before["source"])
        assert 0 <= after["source"].min() <= after["source"].max() <= 1
    torch.testing.assert_close(changed[3]["source"], changed[3]["source"], rtol=0, atol=0)


def test_source_noise_has_the_strength_that_is_drawn():
    dataset = SlabDataset([brain_volume()], length=300, source_noise=0.06)
    dataset._transform = lambda slab, rng: slab
    deviations = [item["source"][:, :, 20:].std().item() for item in dataset]
    assert max(deviations) < 0.065
    assert np.mean(deviations) == pytest.approx(0.03, abs=0.004)


@pytest.mark.parametrize("shape", [(20, 30, 5), (70, 90, 5)])
def test_packing_centres_the_brain_and_keeps_slices(shape: tuple[int, int, int]):
    mask = torch.zeros(1, *shape)
    mask[:, 4:12, 6:20, 1:4] = 1
    data = {"target": mask * 0.5, "mask": mask, "source": mask * 0.25}
    packed = pack_volume({"subject": "s"}, lambda item: item | data, None, 1, (16, 24), seed=0)
    assert packed.target.shape == (5, 16, 24)
    assert packed.sources.shape == (1, 5, 16, 24)
    assert packed.slices.tolist() == [1, 2, 3]
    assert packed.target[2].sum() == 128 * 8 * 14  # nothing of the brain is cut off
    rows = np.flatnonzero(packed.target[2].any(axis=1))
    assert rows[0] + rows[-1] == 15  # and it lies in the middle
    assert packed.histogram.sum() == mask.sum()


def test_renderings_are_drawn_from_the_source_transform():
    class Rendering:
        def set_random_state(self, seed: int) -> None:
            self.rng = np.random.default_rng(seed)

        def __call__(self, data: dict) -> dict:
            return data | {"source": data["target"] * self.rng.random()}

    mask = torch.ones(1, 8, 8, 3)

    def make():
        return pack_volume({}, lambda item: {"target": mask, "mask": mask}, Rendering(), 3, (8, 8), seed=5)

    packed = make()
    assert len({int(s.max()) for s in packed.sources}) == 3
    np.testing.assert_array_equal(packed.sources, make().sources)


def test_each_source_has_its_key():
    one, two = ramp_volume(renderings=1), ramp_volume()
    assert list(one.source_keys()) == ["a"]
    keys = two.source_keys(num_bins=64)
    assert list(keys) == ["a#0", "a#1"]
    for key, source in zip(keys.values(), two.sources, strict=True):
        np.testing.assert_array_equal(key, compute_style_key(source / 255, 64))
    # the second one is 100 grey levels brighter
    centres = [np.average(np.arange(64), weights=key[0]) / 64 for key in keys.values()]
    assert centres[1] - centres[0] == pytest.approx(100 / 255, abs=0.02)


def test_keys_of_a_persons_second_scan_carry_the_persons_name():
    items = [{"subject": "a1", "person": "a"}, {"subject": "a2", "person": "a"}, {"subject": "b"}]
    keys = {"a1": 1, "a2#0": 2, "a2#1": 3, "b": 4}
    assert keys_by_person(keys, items) == {"a#a1": 1, "a#a2#0": 2, "a#a2#1": 3, "b": 4}
