"""Where a NIfTI lies: by ramps whose values are their own places in mm, whatever its header says twice or wrong."""

import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import CaseError
from scripts.transforms.checks import CheckVolumed
from scripts.volumes.load import LoadVolume, read_volume

SHAPE = (12, 14, 16)
UPRIGHT = np.array([[0.9, 0, 0, -60], [0, 0.9, 0, -50], [0, 0, 2.5, -20], [0, 0, 0, 1.0]])
UNIT = np.eye(4)
TURNED = nib.affines.from_matvec(nib.eulerangles.euler2mat(z=np.radians(40)))  # the axes are still R, A and S
ORIENTATIONS = [
    np.array([flips[axis] * np.eye(3)[order.index(axis)] for axis in range(3)])
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def tilted(degrees: float, affine=UPRIGHT) -> np.ndarray:
    """The same slices, each moved along the second axis as by a gantry's tilt."""
    shear = np.eye(4)
    shear[1, 2] = np.tan(np.radians(degrees)) * affine[2, 2] / affine[1, 1]
    return affine @ shear


def write_ramp(path, truth, sform=None, qform=None, codes=(1, 1), pixdim=None, axis=0):
    """A volume of which each voxel's value is its place along R, A or S; forms and codes are sform, qform."""
    places = nib.affines.apply_affine(truth, np.moveaxis(np.indices(SHAPE), 0, -1))
    image = nib.Nifti1Image(places[..., axis].astype(np.float32), None)
    for form, code, setter in zip((sform, qform), codes, (image.set_sform, image.set_qform), strict=True):
        setter(truth if form is None else form, code=code)
    if pixdim is not None:
        image.header["pixdim"][1:4] = pixdim
    nib.save(image, path)
    return path


def assert_right(path, truth, axis=0, atol=2e-3):
    """Every voxel lies where its value says, in the main job's reader and in the one of everything else."""
    loaded = LoadVolume()(path)
    for values, affine in (
        (loaded.numpy(), loaded.affine.numpy()),
        (lambda i: (i.get_fdata(), i.affine))(read_volume(path)),
    ):
        places = nib.affines.apply_affine(affine, np.moveaxis(np.indices(values.shape), 0, -1))
        np.testing.assert_allclose(places[..., axis], values, atol=atol)
    return loaded


@pytest.mark.parametrize("turn", ORIENTATIONS)
def test_all_48_orientations(tmp_path, turn):
    truth = nib.affines.from_matvec(turn @ np.diag([0.9, 1.1, 2.5]), [10, -20, 30])
    for axis, codes in enumerate(((2, 0), (0, 1), (1, 1))):
        loaded = assert_right(write_ramp(tmp_path / "a.nii", truth, codes=codes, axis=axis), truth, axis)
        assert "doubt" not in loaded.meta


@pytest.mark.parametrize("turn", ORIENTATIONS[::5])
@pytest.mark.parametrize("pixdim", [(1, 1, 1), (2, 2, 2), (0.9, 2.5, 0.9)])
def test_a_right_sform_alone_is_never_replaced(tmp_path, turn, pixdim):
    """The qform has code 0: neither its rotation nor the voxel sizes say anything."""
    truth = nib.affines.from_matvec(turn @ np.diag([0.9, 1.1, 2.5]), [10, -20, 30])
    assert_right(write_ramp(tmp_path / "a.nii", truth, codes=(2, 0), pixdim=pixdim), truth)


@pytest.mark.parametrize("turn", ORIENTATIONS[::5])
@pytest.mark.parametrize("which", ["sform", "qform"])
def test_a_form_of_unit_voxels_beside_a_right_one(tmp_path, turn, which):
    truth = nib.affines.from_matvec(turn @ np.diag([0.9, 1.1, 2.5]), [10, -20, 30])
    path = write_ramp(tmp_path / "a.nii", truth, **{which: UNIT})
    if which == "qform":  # the voxel sizes are the qform's
        assert nib.load(path).header.get_zooms() == (1, 1, 1)
    loaded = assert_right(path, truth)
    assert "was taken" in loaded.meta["doubt"]


def test_a_little_shear_stays(tmp_path):
    truth = tilted(0.2)
    loaded = assert_right(write_ramp(tmp_path / "a.nii", truth, qform=UPRIGHT, axis=1), truth, axis=1)
    assert "doubt" not in loaded.meta


@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (1, 0), (4, 1)])
@pytest.mark.parametrize("degrees", [15, -15, 3])
def test_a_tilt_is_not_dropped(tmp_path, codes, degrees):
    """An upright qform beside it is the same scan without its tilt; so is one that a library made of the sform."""
    for qform in (UPRIGHT, tilted(degrees)):
        path = write_ramp(tmp_path / "a.nii", tilted(degrees), qform=qform, codes=codes, axis=1)
        with pytest.raises(CaseError, match=rf"a\.nii has axes that are {abs(degrees)}.0 degrees off a right angle"):
            read_volume(path, CheckVolumed("image", extent_limits=(1, 999)))


def patched(path, **fields):
    """The file with other bytes in its header, as `b.nii`; srow_y is byte 296, qform_code 252, quatern_b 256."""
    stored = bytearray(path.read_bytes())
    for start, value in fields.items():
        stored[int(start[1:]) : int(start[1:]) + value.nbytes] = value.tobytes()
    (path.parent / "b.nii").write_bytes(stored)
    return path.parent / "b.nii"


@pytest.mark.parametrize("broken", [np.full(4, np.nan, "f4"), np.zeros(4, "f4")])
def test_a_broken_sform(tmp_path, broken):
    path = write_ramp(tmp_path / "a.nii", UPRIGHT)
    assert "singular" in assert_right(patched(path, _296=broken), UPRIGHT).meta["doubt"]
    with pytest.raises(CaseError, match=r"b\.nii has a singular affine"):
        LoadVolume()(patched(path, _296=broken, _252=np.zeros(1, "i2")))


def test_a_broken_qform(tmp_path):
    path = write_ramp(tmp_path / "a.nii", UPRIGHT)
    assert "qform cannot be read" in assert_right(patched(path, _256=np.full(2, 3, "f4")), UPRIGHT).meta["doubt"]


@pytest.mark.parametrize(
    ("sform", "qform", "sentence"),
    [
        (UPRIGHT @ np.diag([-1, 1, 1, 1]), UPRIGHT, "axes LAS and a qform with the axes RAS, which is mirrored"),
        (np.diag([-1, -1, 1, 1]) @ UPRIGHT, UPRIGHT, "axes LPS and a qform with the axes RAS, which is turned by 180"),
        (TURNED @ UPRIGHT, UPRIGHT, "has a sform that is turned by 40 degrees against its qform"),
        (
            UPRIGHT @ np.diag([3, 3, 3, 1]),
            UPRIGHT @ np.diag([2.6, 3, 3, 1]),
            "voxels of 2.7 x 2.7 x 7.5 mm and a qform",
        ),
    ],
)
def test_two_forms_of_which_neither_is_odd_are_refused(tmp_path, sform, qform, sentence):
    path = write_ramp(tmp_path / "a.nii", UPRIGHT, sform=sform, qform=qform)
    with pytest.raises(CaseError, match=f"^a.nii .*{sentence}.*; set the code of the wrong one to 0.$"):
        LoadVolume()(path)


def test_a_sform_that_contradicts_likelier_voxel_sizes_is_refused(tmp_path):
    path = write_ramp(tmp_path / "a.nii", UPRIGHT, sform=UNIT, codes=(1, 0), pixdim=(18, 16, 10))
    with pytest.raises(CaseError, match=r"^a.nii has a sform with voxels of 1 x 1 x 1 mm and voxel sizes"):
        LoadVolume()(path)


def test_an_alignment_to_a_template_is_no_contradiction(tmp_path):
    """Moved and turned rigidly, the sform is as good; stretched, the qform is the scanner's."""
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.1, 0.05), [9, 8, 7])
    loaded = assert_right(write_ramp(tmp_path / "a.nii", turn @ UPRIGHT, qform=UPRIGHT, codes=(2, 1)), turn @ UPRIGHT)
    assert "turned by" in loaded.meta["doubt"]
    stretched = np.diag([1.1, 1.2, 1.15, 1]) @ tilted(2)
    assert_right(write_ramp(tmp_path / "b.nii", UPRIGHT, sform=stretched, codes=(4, 1)), UPRIGHT)


def test_codes_of_0_are_a_guess_that_is_told(tmp_path):
    assert LoadVolume()(write_ramp(tmp_path / "a.nii", UPRIGHT, codes=(0, 0))).meta["unplaced"]
    assert "unplaced" not in LoadVolume()(write_ramp(tmp_path / "a.nii", UPRIGHT)).meta


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_packed_or_not_whatever_the_name_says(tmp_path, kind):
    write_ramp(tmp_path / "a.nii", UPRIGHT)
    nib.save(kind.from_image(nib.load(tmp_path / "a.nii")), tmp_path / "b.nii")
    plain = (tmp_path / "b.nii").read_bytes()
    (tmp_path / "plain.nii.gz").write_bytes(plain)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(plain))
    for name in ("plain.nii.gz", "packed.nii"):
        assert_right(tmp_path / name, UPRIGHT)
    (tmp_path / "cut.nii.gz").write_bytes(plain[: len(plain) // 2])
    with pytest.raises(CaseError, match=r"^cut\.nii\.gz cannot be read"):
        LoadVolume()(tmp_path / "cut.nii.gz")


def test_mgz_that_is_not_packed(tmp_path):
    image = nib.MGHImage(nib.load(write_ramp(tmp_path / "a.nii", UPRIGHT)).get_fdata(dtype=np.float32), UPRIGHT)
    nib.save(image, tmp_path / "a.mgh")
    (tmp_path / "a.mgz").write_bytes((tmp_path / "a.mgh").read_bytes())
    assert "unplaced" not in assert_right(tmp_path / "a.mgz", UPRIGHT).meta


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_mgz_without_a_place_is_a_guess(tmp_path, pack):
    image = nib.MGHImage(nib.load(write_ramp(tmp_path / "a.nii", UPRIGHT)).get_fdata(dtype=np.float32), UPRIGHT)
    nib.save(image, tmp_path / "a.mgh")
    stored = bytearray((tmp_path / "a.mgh").read_bytes())
    for flag in (1, 0):
        stored[28:30] = flag.to_bytes(2, "big")
        (tmp_path / "a.mgz").write_bytes(pack(stored))
        loaded = LoadVolume()(tmp_path / "a.mgz")
        assert loaded.meta.get("unplaced", False) == (not flag)
        assert loaded.shape == SHAPE


@pytest.mark.parametrize(
    ("kind", "unplaced"), [(nib.Nifti1Pair, False), (nib.AnalyzeImage, True), (nib.Spm99AnalyzeImage, True)]
)
def test_pairs_of_header_and_voxels(tmp_path, kind, unplaced):
    """Analyze has no orientation: the image is read, and that left and right are a guess is told."""
    values = nib.load(write_ramp(tmp_path / "a.nii", UPRIGHT)).get_fdata(dtype=np.float32)
    kind(values, UPRIGHT if kind is nib.Nifti1Pair else np.diag([-0.9, 0.9, 2.5, 1])).to_filename(tmp_path / "b.hdr")
    (tmp_path / "b.mat").unlink(missing_ok=True)
    for name in ("b.hdr", "b.img"):
        loaded = LoadVolume()(tmp_path / name)
        assert loaded.meta.get("unplaced", False) == unplaced
        np.testing.assert_array_equal(loaded.numpy(), values)
        np.testing.assert_allclose(np.abs(loaded.affine.numpy()[:3, :3]), np.diag([0.9, 0.9, 2.5]), atol=1e-6)


LPS = "space: LPS\nspace directions: (2,0,0) (0,2,0) (0,0,3)\n"


SPACES = {"left-anterior-superior": False, "scanner-xyz": True, "3D-left-handed": True}


@pytest.mark.parametrize(
    ("lines", "unplaced"),
    [
        *((LPS, False), ("spacings: 2 2 3\n", True)),
        *((LPS.replace("LPS", space), unplaced) for space, unplaced in SPACES.items()),
    ],
)
def test_an_nrrd_without_a_space_of_the_patient_is_a_guess(tmp_path, lines, unplaced):
    header = f"NRRD0004\ntype: short\ndimension: 3\n{lines}sizes: 4 5 6\nencoding: raw\nendian: little\n\n"
    (tmp_path / "a.nrrd").write_bytes(header.encode() + np.arange(120, dtype="<i2").tobytes())
    assert LoadVolume()(tmp_path / "a.nrrd").meta.get("unplaced", False) == unplaced


def test_a_sheared_nrrd_keeps_its_shear(tmp_path):
    directions = "space: RAS\nspace directions: (2,0,0) (0,2,0) (0,1,3)\n"
    header = f"NRRD0004\ntype: short\ndimension: 3\n{directions}sizes: 9 9 9\nencoding: raw\nendian: little\n\n"
    (tmp_path / "a.nrrd").write_bytes(header.encode() + np.arange(729, dtype="<i2").tobytes())
    with pytest.raises(CaseError, match=r"a\.nrrd has axes that are 18.4 degrees off"):
        read_volume(tmp_path / "a.nrrd", CheckVolumed("image"))
