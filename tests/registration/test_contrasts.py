"""The contrasts of a subject brought to the first of them: which moves, how far, and what is refused."""

import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from scripts.errors import CaseError
from scripts.registration import rigid
from scripts.registration.contrasts import RegisterContrastsd, on_one_grid
from scripts.registration.rigid import Registration

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
HALF = nib.affines.from_matvec(np.zeros((3, 3)), [1, 0, 0]) - np.diag([0, 0, 0, 1])
KEYS = ["contrast_T1", "contrast_T2", "contrast_FLAIR"]


def volume(name: str, affine: np.ndarray = AFFINE, shape: tuple[int, ...] = (8, 9, 7)) -> MetaTensor:
    values = torch.rand((1, *shape), generator=torch.Generator().manual_seed(len(name)))
    meta = {"filename_or_obj": f"/in/{name}.nii.gz", "original_affine": affine}
    return MetaTensor(values, affine=affine, meta=meta)


@pytest.fixture
def found(monkeypatch):
    """In the place of the search a shift of 4 mm along x, target to source; gives what was registered."""
    matrix = np.eye(4)
    matrix[0, 3] = 4.0
    calls = []

    def register(source, target):
        calls.append((source, target))
        return Registration(matrix, 0.2, 0.8, 0.5, 1.5, 0.4, 0.2, 4.0)

    monkeypatch.setattr(rigid, "register_rigid", register)
    return calls


def test_what_is_on_another_grid_moves_and_what_is_on_one_is_trusted(found, caplog):
    other = AFFINE.copy()
    other[:3, 3] = [1.0, 0.0, 0.0]
    given = {
        "case": "anna",
        "contrast_T2": volume("t2"),
        "contrast_T1": volume("t1"),
        "contrast_FLAIR": volume("f", other),
    }
    with caplog.at_level(logging.INFO):
        made = RegisterContrastsd(KEYS)(given)
    assert len(found) == 1
    assert made["image"].meta["contrast"] == "T1"
    torch.testing.assert_close(made["image"].as_tensor(), given["contrast_T1"].as_tensor())
    # the head's place x in the T1 is x + 4 in the FLAIR, so that the FLAIR's voxels lie at x - 4
    np.testing.assert_allclose(made["contrast_FLAIR"].affine[:3, 3], [-3.0, 0.0, 0.0])
    assert made["contrast_FLAIR"].as_tensor() is not None
    np.testing.assert_array_equal(given["contrast_FLAIR"].affine, other)
    np.testing.assert_array_equal(made["contrast_T2"].affine, AFFINE)
    moved = {name: told["moved_mm"] for name, told in made["image"].meta["contrasts"].items()}
    assert moved == {"T1": -1.0, "T2": -1.0, "FLAIR": 4.0}
    assert made["image"].meta["contrast_files"]["T2"] == "/in/t2.nii.gz"
    assert "anna: used are T1, T2, FLAIR; registered to the T1: FLAIR was moved by 4.0 mm." in caplog.text


def test_a_header_that_says_no_sides_is_told_and_not_trusted(found, caplog):
    """A reader takes such a file for one about 0 whose first axis goes to the left: on a grid about 0, for mirrored."""
    about_0 = nib.affines.from_matvec(np.diag([2.0, 2.0, 3.0]), -(np.array([8, 9, 7]) - 1) / 2 * [2, 2, 3])
    guessed = volume("t2", np.diag([-1.0, 1.0, 1.0, 1.0]) @ about_0)
    guessed.meta["unplaced"] = True
    given = {"contrast_T1": volume("t1", about_0), "contrast_T2": guessed}
    RegisterContrastsd(KEYS)(given)
    assert len(found) == 1  # which finds out whether it is mirrored
    assert "t2.nii.gz does not say how its axes lie, so that left and right are a guess" in caplog.text
    given["contrast_T1"].meta["unplaced"] = True
    RegisterContrastsd(KEYS)(given)
    assert len(found) == 1  # both are a guess, and the same one


def test_without_registration_headers_are_trusted(found):
    given = {"contrast_T2": volume("t2"), "contrast_FLAIR": volume("f", np.diag([1.0, 1.0, 1.0, 1.0]))}
    made = RegisterContrastsd(KEYS, enabled=False)(given)
    assert found == []
    assert made["image"].meta["contrast"] == "T2"
    np.testing.assert_array_equal(made["contrast_FLAIR"].affine, np.eye(4))


def test_a_registration_that_cannot_be_right_names_the_subject(monkeypatch):
    worse = Registration(np.eye(4), 0.8, 0.2, 0.5, 1.5, 0.4, 0.2, 4.0)
    monkeypatch.setattr(rigid, "register_rigid", lambda source, target: worse)
    given = {"case": "anna", "contrast_T1": volume("t1"), "contrast_T2": volume("t2", shape=(8, 9, 8))}
    with pytest.raises(CaseError, match=r"^anna, T2 to T1: registration did not raise the mutual information"):
        RegisterContrastsd(KEYS)(given)


@pytest.mark.parametrize("order", [("contrast_T1", "contrast_T2"), ("contrast_T2", "contrast_T1")])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_what_is_too_thin_to_be_registered_is_named(order, layers):
    """2.5 to 7.5 mm: at the coarsest level, 8 mm, there may be no voxel of it."""
    whole, thin = order
    slab = volume("slab", np.diag([2.0, 2.0, 2.5, 1.0]), (60, 60, layers))
    given = {"case": "anna", whole: volume("whole", shape=(60, 60, 40)), thin: slab}
    told = rf"^anna, T2 to T1: slab.nii.gz is only {2.5 * layers} mm thick, and 8 mm are needed to register it"
    with pytest.raises(CaseError, match=told):
        RegisterContrastsd(KEYS)(given)


def test_a_volume_of_one_value_is_refused_with_the_subject():
    blank = MetaTensor(torch.zeros(1, 20, 20, 20), affine=AFFINE)
    given = {"case": "anna", "contrast_T1": volume("t1", shape=(20, 20, 21)), "contrast_T2": blank}
    with pytest.raises(CaseError, match=r"^anna, T2 to T1: A volume has one value everywhere"):
        RegisterContrastsd(KEYS)(given)


def test_one_grid_is_told_by_where_voxels_lie():
    assert on_one_grid(volume("a"), volume("b", AFFINE + 1e-4))
    assert not on_one_grid(volume("a"), volume("b", AFFINE + np.diag([0.03, 0, 0, 0])))  # 0.2 mm at the far side
    assert not on_one_grid(volume("a"), volume("b", shape=(8, 9, 8)))


TURN = Rotation.from_euler("xyz", [40, 44, -30], degrees=True).as_matrix()
OBLIQUE = nib.affines.from_matvec(TURN * [2, 2, 3], [5, 6, 7])


@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE])
@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (-1, 1, -1)])
def test_the_order_in_which_voxels_are_stored_makes_no_other_grid(affine, axes, flips):
    """The same voxels, by nibabel's reorientation, are one grid; half a voxel on, or with one more, they are not."""
    image = nib.Nifti1Image(np.zeros((8, 9, 7), dtype=np.float32), affine)
    stored = image.as_reoriented(np.column_stack([axes, flips]))
    assert on_one_grid(volume("a", affine), volume("b", stored.affine, stored.shape))
    assert on_one_grid(volume("b", stored.affine, stored.shape), volume("a", affine))
    assert not on_one_grid(volume("a", affine), volume("b", stored.affine @ (np.eye(4) + 0.5 * HALF), stored.shape))
    assert not on_one_grid(volume("a", affine), volume("b", stored.affine, np.add(stored.shape, (1, 0, 0))))


def test_a_grid_of_the_same_box_with_other_voxels_is_another():
    """9 x 8 voxels in the box of 8 x 9, corners on corners."""
    other = np.diag([2.0 * 7 / 8, 2.0 * 8 / 7, 3.0, 1.0])
    assert not on_one_grid(volume("a"), volume("b", other, (9, 8, 7)))


def test_what_is_stored_in_another_order_is_trusted(found):
    flipped = AFFINE @ nib.affines.from_matvec(np.diag([-1, 1, 1]), [7, 0, 0])
    given = {"contrast_T1": volume("t1"), "contrast_T2": volume("t2", flipped)}
    made = RegisterContrastsd(KEYS)(given)
    assert found == []
    np.testing.assert_array_equal(made["contrast_T2"].affine, flipped)
    assert made["image"].meta["contrasts"]["T2"]["moved_mm"] == -1
