"""Packing: brain in the middle, nothing rounded off, renderings and contrasts in their places."""

import numpy as np
import pytest
import torch

from scripts.conditioning.style_key import compute_style_key
from scripts.data.augmentation import ContrastCurve
from scripts.data.packed_volume import PackedVolume, build_volumes, pack_volume
from scripts.data.slab_dataset import SlabDataset
from scripts.errors import CaseError


def test_sixteen_bits_hold_what_eight_round_off():
    image = torch.rand(1, 8, 8, 4, generator=torch.Generator().manual_seed(0))
    data = {"target": image, "source": image.flip(1), "mask": torch.ones_like(image)}
    curve = ContrastCurve.identity()
    for bits, error in ((8, 0.5 / 255), (16, 0.5 / 65535)):
        packed = pack_volume({}, lambda item: data, None, 1, (8, 8), seed=0, bits=bits)
        deviation = np.abs(curve(packed.targets[0]) - image[0].permute(2, 0, 1).numpy()).max()
        assert 0.8 * error < deviation < 1.01 * error
        item = SlabDataset([packed], length=1, augment=False)[0]
        assert item["target"].max() <= 1
    with pytest.raises(CaseError, match="8 or 16 bits"):
        build_volumes([], lambda item: item, bits=12)


@pytest.mark.parametrize("shape", [(20, 30, 5), (70, 90, 5)])
def test_packing_centres_the_brain_and_keeps_slices(shape: tuple[int, int, int]):
    mask = torch.zeros(1, *shape)
    mask[:, 4:12, 6:20, 1:4] = 1
    data = {"target": mask * 0.5, "mask": mask, "source": mask * 0.25}
    packed = pack_volume({"subject": "s"}, lambda item: item | data, None, 1, (16, 24), seed=0)
    assert packed.targets.shape == (1, 5, 16, 24)
    assert packed.sources.shape == (1, 1, 5, 16, 24)
    assert np.flatnonzero(packed.in_brain[0]).tolist() == [1, 2, 3]
    assert packed.targets[0, 2].sum() == 128 * 8 * 14  # nothing of the brain is cut off
    rows = np.flatnonzero(packed.targets[0, 2].any(axis=1))
    assert rows[0] + rows[-1] == 15  # and it lies in the middle
    assert packed.histograms.sum() == mask.sum()


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


def test_renderings_that_change_the_target_are_kept_in_pairs():
    """A rendering that moves the brain by a slice and darkens it: pair, histogram and slices go with it."""

    class Moving:
        def set_random_state(self, seed: int) -> None:
            self.number = 0

        def __call__(self, data: dict) -> dict:
            self.number += 1
            moved = {key: data[key].roll(self.number, dims=3) for key in ("target", "mask")}
            moved["target"] = moved["target"] / self.number
            return {**moved, "source": moved["target"] / 2}

    mask = torch.zeros(1, 10, 12, 8)
    mask[:, 2:8, 3:9, 1:4] = 1
    packed = pack_volume({}, lambda item: {"target": 0.8 * mask, "mask": mask}, Moving(), 3, (16, 16), seed=0)
    assert packed.targets.shape == (3, 8, 16, 16)
    assert [np.flatnonzero(b).tolist() for b in packed.in_brain] == [[2, 3, 4], [3, 4, 5], [4, 5, 6]]
    assert packed.targets.max(axis=(1, 2, 3)).tolist() == [204, 102, 68]
    for target, source, histogram in zip(packed.targets, packed.sources[:, 0], packed.histograms, strict=True):
        np.testing.assert_allclose(source, target / 2, atol=1)
        assert histogram.sum() == mask.sum()
    assert packed.style_key().shape == (3, 128)


def test_each_source_has_its_key():
    target = np.arange(1, 11, dtype=np.uint8)[:, None, None] * np.ones((1, 8, 16), np.uint8)
    sources = np.stack([target + 100, target + 200])[:, None]
    one, two = (
        PackedVolume("a", target[None], s, np.ones((1, 4096)), np.ones((1, 10), bool)) for s in (sources[:1], sources)
    )
    assert list(one.source_keys()) == ["a"]
    keys = two.source_keys(num_bins=64)
    assert list(keys) == ["a#0", "a#1"]
    for key, source in zip(keys.values(), sources, strict=True):
        np.testing.assert_array_equal(key, compute_style_key(source / 255, 64))
    # the second one is 100 grey levels brighter
    centres = [np.average(np.arange(64), weights=key[0]) / 64 for key in keys.values()]
    assert centres[1] - centres[0] == pytest.approx(100 / 255, abs=0.02)


def three_contrasts(item: dict) -> dict:
    """A head whose sources are thirds of its T1, the second one absent, and two volumes beside them."""
    mask = torch.zeros(1, 20, 24, 6)
    mask[:, 4:14, 6:20, 1:5] = 1
    target = mask * torch.rand(mask.shape, generator=torch.Generator().manual_seed(item["number"]))
    source = torch.cat([target / 3, torch.zeros_like(target), 2 * target / 3])
    return {"target": target, "mask": mask, "source": source, "extras": torch.cat([mask, 0.5 * mask])}


def test_contrasts_keep_their_order_and_an_absent_one_is_zero():
    packed = pack_volume({"number": 0}, three_contrasts, None, 1, (16, 24), seed=0, bits=16)
    assert packed.sources.shape == (1, 3, 6, 16, 24)
    assert packed.presence().tolist() == [[True, False, True]]
    np.testing.assert_allclose(packed.sources[0, 0], packed.targets[0] / 3, atol=1)
    np.testing.assert_allclose(packed.sources[0, 2], 2 * packed.targets[0].astype(float) / 3, atol=1)
    assert packed.extras.shape == (2, 6, 16, 24)
    assert packed.extras.dtype == np.uint8
    inside = packed.targets[0] > 0
    assert (packed.extras[0][inside] == 255).all()
    assert (packed.extras[1][inside] == 128).all()


def test_the_cache_gives_back_contrasts_and_extras(tmp_path):
    made, read = (build_volumes([{"subject": "s"}], three_contrasts, size=(16, 24), cache_dir=tmp_path) for _ in "ab")
    for name in ("targets", "sources", "extras", "in_brain", "histograms"):
        np.testing.assert_array_equal(getattr(read[0], name), getattr(made[0], name))
    assert len(list(tmp_path.iterdir())) == 1


def test_sources_without_an_axis_of_contrasts_are_refused():
    volume = np.zeros((4, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"they are \(K, C, Z, H, W\)"):
        PackedVolume("a", volume[None], volume[None], np.ones((1, 4096)), np.ones((1, 4), bool))
