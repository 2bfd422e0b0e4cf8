"""How a brain lies, told by its shape: the sample's brain under the headers that a file may have."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from scripts.transforms.ct_brain_mask import ct_brain_mask
from scripts.watch.brain_shape import moments_of, orientation_by_shape


@pytest.fixture(scope="module")
def brain(request):
    """Mask of the sample, whose template is none of the brains the moments are of; RAS voxels."""
    image = nib.as_closest_canonical(nib.load(request.config.rootpath / "docs" / "sample" / "head_ct.nii.gz"))
    return ct_brain_mask(image.get_fdata(dtype=np.float32), image.affine), image.affine


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_header_that_lies_is_found_out(brain, order):
    """All orientations but the right one and its mirror image, which looks alike."""
    mask, affine = brain
    edges = nib.affines.voxel_sizes(affine)
    for signs in itertools.product((1, -1), repeat=3):
        header = np.eye(4)
        for axis in range(3):
            header[order[axis], :3] = np.eye(3)[axis] * edges[axis] * signs[axis]
        found = orientation_by_shape(mask, header)
        # the brain's front is the second voxel axis, its top the third
        assert found.front == (order[1] + 1) * signs[1]
        assert found.top == (order[2] + 1) * signs[2]
        right = order == (0, 1, 2) and signs[1:] == (1, 1)
        assert found.margin == 0 if right else found.margin > 15
        assert found.log_likelihood > -10


@pytest.mark.parametrize("degrees", [-20, 20])
@pytest.mark.parametrize("axes", [(0, 1), (0, 2), (1, 2)])
def test_a_head_that_is_bent_is_no_other_orientation(brain, degrees, axes):
    mask, affine = brain
    turn = np.eye(4)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[np.ix_(axes, axes)] = [[c, -s], [s, c]]
    assert orientation_by_shape(mask, turn @ affine).margin < 5


def test_what_has_no_shape_is_not_judged():
    assert orientation_by_shape(np.zeros((9, 9, 9), bool), np.eye(4)) is None
    assert orientation_by_shape(np.ones((99, 99, 1), bool), np.eye(4)) is None
    ball = np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0) < 18
    assert orientation_by_shape(ball, np.eye(4)).log_likelihood < -25


def test_moments_are_those_of_a_box_that_is_skewed_along_one_axis():
    """Uniform along x and z; along y the third moment of an exponential, which is 2."""
    random = np.random.default_rng(0)
    points = np.stack(
        [random.uniform(-3, 3, 200_000), random.exponential(2, 200_000), random.uniform(0, 1, 200_000)], 1
    )
    moments = moments_of(points)
    np.testing.assert_allclose(moments[:2], np.log([np.sqrt(3) / 2, 1 / np.sqrt(12) / 2]), atol=0.01)
    np.testing.assert_allclose(moments[4], 2, atol=0.1)
    np.testing.assert_allclose(np.delete(moments, [0, 1, 4]), 0, atol=0.03)
