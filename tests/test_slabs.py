"""Slabs cover a volume and give it back."""

from itertools import pairwise

import pytest
import torch

from scripts.slabs import (
    add_slabs,
    end_fills,
    extract_slabs,
    pad_slices,
    repeats_end,
    slab_centres,
    slab_weights,
    slices_to_volume,
    volume_to_slices,
)


def test_volume_and_slices_are_inverse():
    volume = torch.rand(2, 3, 4, 5, 6)
    slices = volume_to_slices(volume)
    assert slices.shape == (2, 6, 3, 4, 5)
    assert torch.equal(slices[1, 3], volume[1, ..., 3])
    assert torch.equal(slices_to_volume(slices), volume)


@pytest.mark.parametrize("slab_size", [1, 3, 5])
@pytest.mark.parametrize("num_slices", [1, 2, 7])
def test_each_slab_is_centred_on_its_slice(num_slices, slab_size):
    n = slab_size // 2
    slices = torch.rand(1, num_slices, 1, 2, 3)
    padded = pad_slices(slices, slab_size, torch.full((1, 1, 1, 2, 3), -1.0))[0]
    assert padded.shape == (num_slices + 2 * n, 1, 2, 3)
    slabs = extract_slabs(padded, slab_centres(num_slices), slab_size)
    assert slabs.shape == (num_slices, slab_size, 2, 3)
    for i in range(num_slices):
        for k in range(slab_size):
            j = i + k - n
            expected = slices[0, j, 0] if 0 <= j < num_slices else torch.full((2, 3), -1.0)
            assert torch.equal(slabs[i, k], expected)


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("num_slices", [1, 2, 7])
def test_strided_centres_have_both_ends_and_every_slice_has_its_turn(num_slices, stride):
    turns = [slab_centres(num_slices, stride, offset).tolist() for offset in range(stride)]
    for centres in turns:
        assert centres[0] == 0
        assert centres[-1] == num_slices - 1
        assert all(0 < b - a <= stride for a, b in pairwise(centres))
    assert set().union(*turns) == set(range(num_slices))


@pytest.mark.parametrize("overlap_average", [True, False])
@pytest.mark.parametrize(
    ("slab_size", "stride", "offset"), [(1, 1, 0), (3, 1, 0), (3, 2, 1), (3, 3, 2), (5, 3, 0), (5, 5, 4)]
)
@pytest.mark.parametrize("num_slices", [1, 2, 7, 11])
def test_slabs_of_a_volume_give_it_back_in_any_batches(num_slices, slab_size, stride, offset, overlap_average):
    padded = torch.rand(num_slices + slab_size - 1, 2, 2, 3, dtype=torch.float64)
    centres = slab_centres(num_slices, stride, offset)
    weights = slab_weights(centres, num_slices, slab_size, overlap_average)
    total = torch.zeros_like(padded)
    for start in range(0, len(centres), 3):
        now = slice(start, start + 3)
        add_slabs(total, extract_slabs(padded, centres[now], slab_size), weights[now], centres[now])
    torch.testing.assert_close(total, padded)


def test_the_average_counts_every_slab_that_holds_a_slice():
    """Slabs that all carry their own number: a slice gets the mean over the slabs around it."""
    slabs = torch.arange(5, dtype=torch.float64)[:, None, None, None].expand(5, 3, 1, 1)
    average, own = torch.zeros(7, 1, 1, 1, dtype=torch.float64), torch.zeros(7, 1, 1, 1, dtype=torch.float64)
    centres = slab_centres(5)
    add_slabs(average, slabs, slab_weights(centres, 5, 3), centres)
    add_slabs(own, slabs, slab_weights(centres, 5, 3, overlap_average=False), centres)
    assert average.flatten().tolist() == pytest.approx([0, 0.5, 1, 2, 3, 3.5, 4])
    assert own.flatten().tolist() == [0, 0, 1, 2, 3, 4, 4]


def test_with_a_stride_a_slice_counts_the_slabs_that_are_there():
    """Slabs at slices 0, 2 and 4 alone: those between are the mean of two, those under a centre of one."""
    centres = slab_centres(5, stride=2)
    assert centres.tolist() == [0, 2, 4]
    slabs = centres.double()[:, None, None, None].expand(3, 3, 1, 1)
    average = torch.zeros(7, 1, 1, 1, dtype=torch.float64)
    add_slabs(average, slabs, slab_weights(centres, 5, 3), centres)
    assert average.flatten().tolist() == [0, 0, 1, 2, 3, 4, 4]


def test_an_end_is_repeated_where_the_brain_is_cut_and_nowhere_else():
    """Each end of each volume for itself; the few pixels of a brain's cap are no cut."""
    images = torch.zeros(2, 4, 1, 20, 20)
    images[0, 0, :, 5:15, 5:15] = 0.5
    images[0, -1, :, 9:11, 9:11] = 0.5
    images[1, -1, :, 5:15, 5:15] = 0.7
    background = torch.full((1, 1, 1, 20, 20), -1.0)
    states = 2 * images - 1
    fills = end_fills(images, states, background)
    padded = pad_slices(states, 3, fills)
    assert torch.equal(padded[0, 0], states[0, 0])
    assert (padded[0, -1] == -1).all()
    assert (padded[1, 0] == -1).all()
    assert torch.equal(padded[1, -1], states[1, -1])
    assert repeats_end(images[0, 0].numpy())
    assert not repeats_end(images[0, -1].numpy())
