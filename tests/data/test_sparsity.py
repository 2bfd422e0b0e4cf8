"""Sparse scans for training: what is given, what fills the places between, and what says so."""

import numpy as np
import pytest
import torch

from scripts.data import SlabDataset
from scripts.data.packed_volume import PackedVolume
from scripts.data.sparsity import SparseScan, check_sparsity, filled_slab
from scripts.errors import CaseError
from scripts.slabs import missing_share

COUNT = 33
PLACES = np.arange(COUNT)


@pytest.mark.parametrize("k", [1, 2, 4, 8])
@pytest.mark.parametrize("phase", [0, 1])
def test_every_kth_slice_is_given_as_it_is_and_a_ramp_is_filled_exactly(k, phase):
    scan = SparseScan(float(k), float(phase))
    given = scan.missing(PLACES, COUNT) == 0
    reading = scan.reading(PLACES, COUNT)
    assert list(np.flatnonzero(given)) == list(range(phase % k, COUNT, k))
    np.testing.assert_array_equal(reading[given], np.eye(COUNT)[given])
    between = slice(phase % k, np.flatnonzero(given)[-1] + 1)
    np.testing.assert_allclose((reading @ PLACES)[between], PLACES[between], atol=1e-5)


def test_missing_grows_with_the_distance_to_the_nearest_given_slice():
    np.testing.assert_allclose(SparseScan(8.0).missing(np.arange(9), COUNT) * 8, [0, 1, 2, 3, 4, 3, 2, 1, 0])
    np.testing.assert_allclose(missing_share(np.array([0.5, 0.6, 8.0, 20.0])), [0, 0.075, 1, 1])


def test_thick_slices_average_what_they_cover_and_lose_what_alternates():
    thick, thin = SparseScan(4.0, 0.5, thickness=4.0), SparseScan(4.0, 0.0, thickness=0.0)
    alternating = (-1.0) ** PLACES
    assert np.abs(thick.reading(PLACES, COUNT) @ alternating)[8:-8].max() < 1e-6
    assert np.abs(thin.reading(PLACES, COUNT) @ alternating).max() == 1
    np.testing.assert_allclose(thick.reading(PLACES, COUNT).sum(axis=1), 1, atol=1e-6)


def test_what_is_outside_of_the_brain_is_not_mixed_in():
    inside = np.zeros((3, 1, 2), bool)
    inside[:, :, 0] = True
    inside[0, :, 1] = True
    volume = np.where(inside, 100, 0).astype(np.uint8)[None]
    scan = SparseScan(2.0)
    filled = filled_slab(volume, inside, scan.reading(np.array([1]), 3), within=np.ones((1, 1, 2), bool))
    assert filled.tolist() == [[[[100, 100]]]]
    nothing = filled_slab(volume, inside, scan.reading(np.array([1]), 3), within=np.zeros((1, 1, 2), bool))
    assert not nothing.any()


def _ramp() -> PackedVolume:
    """A subject whose slices are as bright as their places along z."""
    source = np.zeros((1, 1, COUNT, 16, 16), np.uint8)
    source[...] = (20 + 5 * PLACES)[:, None, None]
    target = np.full((1, COUNT, 16, 16), 200, np.uint8)
    histogram = np.zeros((1, 4096))
    histogram[0, 3200] = 1
    return PackedVolume("ramp", target, source, histogram, np.ones((1, COUNT), bool))


def test_the_dataset_gives_what_the_scan_left_and_says_which_slices_are_missing():
    dense = SlabDataset([_ramp()], 50, augment=False)
    sparse = SlabDataset([_ramp()], 50, augment=False, sparsity=[4])
    assert "missing" not in dense[0]
    seen = set()
    for index in range(50):
        item, same = sparse[index], dense[index]
        assert item["missing"].shape == item["target"].shape
        assert torch.equal(item["target"], same["target"])
        given = item["missing"].flatten(1).amax(1) == 0
        seen |= set((item["missing"].flatten(1).amax(1) * 8).round().int().tolist())
        assert torch.equal(item["source"][given], same["source"][given])
        between = ((same["source"] * 255 - 20) / 5 - 16).abs().amax((1, 2)) <= 12
        torch.testing.assert_close(item["source"][between], same["source"][between])  # a ramp is filled exactly
    assert seen == {0, 1, 2, 3}  # three of four beyond the last given slice


def test_a_dense_draw_leaves_every_item_as_it_is_without_sparsity():
    dense, mixed = SlabDataset([_ramp()], 8), SlabDataset([_ramp()], 8, sparsity=[1, 1])
    for index in range(8):
        item = mixed[index]
        assert not item.pop("missing").any()
        assert all(torch.equal(item[key], value) for key, value in dense[index].items())


def test_real_scans_are_drawn_between_their_limits():
    rng = np.random.default_rng(0)
    scans = [SparseScan.draw(rng, check_sparsity([[1.7, 5.3]])) for _ in range(200)]
    distances = [scan.distance for scan in scans]
    assert 1.7 <= min(distances) < 1.9
    assert 5.0 < max(distances) <= 5.3
    assert all(0 <= scan.phase < scan.distance and 0 < scan.thickness <= scan.distance for scan in scans)


@pytest.mark.parametrize("wrong", [4, [], [0], [[3, 2]], ["2"], [1.5]])
def test_other_distances_are_refused_in_a_sentence(wrong):
    with pytest.raises(CaseError, match="sparsity is"):
        check_sparsity(wrong)
