"""The contrasts of a subject brought to the first of them: which moves, how far, and what is refused."""

import logging

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.errors import CaseError
from scripts.registration import contrasts
from scripts.registration.contrasts import RegisterContrastsd, on_one_grid
from scripts.registration.rigid import Registration

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
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

    monkeypatch.setattr(contrasts, "register_rigid", register)
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


def test_without_registration_headers_are_trusted(found):
    given = {"contrast_T2": volume("t2"), "contrast_FLAIR": volume("f", np.diag([1.0, 1.0, 1.0, 1.0]))}
    made = RegisterContrastsd(KEYS, enabled=False)(given)
    assert found == []
    assert made["image"].meta["contrast"] == "T2"
    np.testing.assert_array_equal(made["contrast_FLAIR"].affine, np.eye(4))


def test_a_registration_that_cannot_be_right_names_the_subject(monkeypatch):
    worse = Registration(np.eye(4), 0.8, 0.2, 0.5, 1.5, 0.4, 0.2, 4.0)
    monkeypatch.setattr(contrasts, "register_rigid", lambda source, target: worse)
    given = {"case": "anna", "contrast_T1": volume("t1"), "contrast_T2": volume("t2", shape=(8, 9, 8))}
    with pytest.raises(CaseError, match=r"^anna, T2 to T1: registration did not raise the mutual information"):
        RegisterContrastsd(KEYS)(given)


def test_one_grid_is_told_by_where_voxels_lie():
    turned = np.array([[-2.0, 0, 0, 14], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    assert on_one_grid(volume("a"), volume("b", AFFINE + 1e-4))
    assert not on_one_grid(volume("a"), volume("b", turned))
    assert not on_one_grid(volume("a"), volume("b", shape=(8, 9, 8)))
