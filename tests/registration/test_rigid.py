from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from scripts.errors import CaseError
from scripts.registration.rigid import check_registration, longest_way, register_rigid
from tests.phantoms import centred_affine

SHAPE = (38, 46, 36)
VOXEL = 5.0  # mm
# Grey values of air, scalp, skull, and five tissues of the brain.
CT = np.array([-1000.0, 15.0, 900.0, 8.0, 25.0, 33.0, 41.0, 65.0])
T1 = np.array([0.0, 700.0, 60.0, 90.0, 520.0, 380.0, 250.0, 600.0])


def tissues(person: int, points: np.ndarray) -> np.ndarray:
    """Index of the tissue at points (..., 3) in RAS mm, of a head made of random ellipsoids, one head for a number."""
    random = np.random.default_rng(person)
    size = np.array([76.0, 92.0, 74.0]) * random.uniform(0.94, 1.06, 3)
    radius = np.linalg.norm(points / size, axis=-1)
    tissue = np.select([radius < 0.84, radius < 0.92, radius < 1.0], [5, 2, 1], 0)
    for _ in range(60):
        centre, axes = random.uniform(-0.65, 0.65, 3) * size, random.uniform(6, 22, 3)
        blob = np.linalg.norm((points - centre) / axes, axis=-1) < 1
        tissue[blob & (radius < 0.84)] = random.integers(3, 8)
    return tissue


def scan(person: int, contrast: np.ndarray, axes: np.ndarray | None = None, moved: np.ndarray | None = None):
    """A noisy scan of a head; axes (3, 3) mm; moved (4, 4): RAS mm of the scan -> RAS mm of the head."""
    affine = centred_affine(np.eye(3) * VOXEL if axes is None else axes, SHAPE)
    to_head = affine if moved is None else moved @ affine
    eighths = np.stack(np.meshgrid(*[(-0.25, 0.25)] * 3), axis=-1).reshape(-1, 3)
    voxels = np.moveaxis(np.indices(SHAPE), 0, -1)
    data = np.mean([contrast[tissues(person, nib.affines.apply_affine(to_head, voxels + e))] for e in eighths], axis=0)
    noise = np.random.default_rng(1).normal(0, 0.01 * np.ptp(contrast[3:]), SHAPE)
    return nib.Nifti1Image((data + noise).astype(np.float32), affine)


def mirrored(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The data mirrored left to right, the header as it was."""
    return nib.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), image.affine)


def way(found: np.ndarray, known: np.ndarray) -> float:
    """How far apart two transforms bring a point of the head, at most; mm."""
    return longest_way(np.linalg.inv(known) @ found, 80 * np.concatenate([np.eye(3), -np.eye(3)]))


@pytest.fixture(scope="module")
def moved_pair():
    """An oblique, left-handed CT, 32 mm and 17 degrees from its T1; and the (4, 4) that is to be found."""
    rotation = Rotation.from_euler("xyz", [8, -12, 9], degrees=True)
    move = nib.affines.from_matvec(rotation.as_matrix(), [14, -20, 20])
    oblique = Rotation.from_euler("x", 18, degrees=True).as_matrix() @ np.diag([-VOXEL, VOXEL, VOXEL])
    return scan(0, CT, oblique, np.linalg.inv(move)), scan(0, T1), move


@pytest.fixture(scope="module")
def registration(moved_pair):
    source, target, _ = moved_pair
    return register_rigid(source, target)


def test_known_transform_is_found_to_half_a_voxel(moved_pair, registration):
    assert way(registration.matrix, moved_pair[2]) < VOXEL / 2
    assert registration.mutual_information_after > 1.2 * registration.mutual_information_before
    assert 30 < registration.displacement_mm < 70
    check_registration(registration, "anna")


def test_registration_is_deterministic(moved_pair, registration):
    source, target, _ = moved_pair
    again = register_rigid(source, target)
    for name, value in vars(registration).items():
        np.testing.assert_array_equal(getattr(again, name), value, err_msg=name)


def test_aligned_pair_stays_where_it_is():
    registration = register_rigid(scan(2, CT), scan(2, T1))
    assert registration.displacement_mm < 0.5
    check_registration(registration, "anna")


def test_headers_without_overlap_are_no_obstacle():
    """A header that is off by so much that not one point of the target falls into the source."""
    near, shift = scan(2, CT), nib.affines.from_matvec(np.eye(3), [260, 0, -400])
    registration = register_rigid(nib.Nifti1Image(np.asarray(near.dataobj), shift @ near.affine), scan(2, T1))
    assert way(registration.matrix, shift) < VOXEL / 2
    assert registration.mutual_information_before == 0
    check_registration(registration, "anna")


def test_volumes_that_overlap_nowhere_are_refused_by_name():
    """A source of 20 mm in a target of 600 mm: wherever it is, next to none of the target's points are in it."""
    random = np.random.default_rng(0)
    target = nib.Nifti1Image(random.uniform(1, 2, (60, 60, 60)).astype(np.float32), np.diag([10.0, 10, 10, 1]))
    source = nib.Nifti1Image(random.uniform(1, 2, (20, 20, 20)).astype(np.float32), np.diag([1.0, 1, 1, 1]))
    with pytest.raises(CaseError, match=r"^anna: no place was found at which source and target overlap"):
        check_registration(register_rigid(source, target), "anna")


def test_mirrored_image_is_refused_by_name(moved_pair):
    source, target, _ = moved_pair
    with pytest.raises(CaseError, match=r"anna.*mirrored left to right"):
        check_registration(register_rigid(source, mirrored(target)), "anna")


def test_other_person_is_refused_by_name(moved_pair):
    with pytest.raises(CaseError, match=r"anna.*different people"):
        check_registration(register_rigid(moved_pair[0], scan(1, T1)), "anna")


def test_no_gain_is_refused(registration):
    lower = 0.9 * registration.mutual_information_before
    with pytest.raises(CaseError, match=r"anna.*raise"):
        check_registration(replace(registration, mutual_information_after=lower), "anna")


def test_empty_volume_is_refused():
    empty = nib.Nifti1Image(np.zeros(SHAPE, dtype=np.float32), np.eye(4))
    with pytest.raises(CaseError, match="one value"):
        register_rigid(empty, empty)


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("subject", ["3", "5", "23"])
def test_real_pairs_that_are_apart_come_out_registered(shared_data, subject):
    """12 to 34 mm apart by their headers; another person's FLAIR fits the same T1 no better than its mirror image."""
    target = nib.load(shared_data / "nichart" / "t1" / f"Subj{subject}_T1.nii.gz")
    registration = register_rigid(nib.load(shared_data / "nichart" / "fl" / f"Subj{subject}_FL.nii.gz"), target)
    check_registration(registration, subject)
    assert registration.mutual_information_after > 1.5 * registration.mutual_information_before
    assert registration.displacement_mm > 8
    with pytest.raises(CaseError, match="different people"):
        check_registration(register_rigid(nib.load(shared_data / "nichart" / "fl" / "Subj16_FL.nii.gz"), target), "x")


@pytest.mark.slow
@pytest.mark.shared_data
def test_symmetric_templates_are_not_refused(shared_data):
    folder = shared_data / "ct_t1_templates"
    pair = (nib.load(folder / f"{name}_unsmooth_96x96x96.nii.gz") for name in ("scct", "sct1"))
    check_registration(register_rigid(*pair), "template")
