"""Every way in which a file is no head scan is refused by its own sentence, and a good one passes unchanged."""

import gzip

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from scripts.errors import CaseError
from scripts.transforms.checks import CheckMagnituded, CheckNoLabelsd, CheckVolumed, one_volume
from scripts.volumes.load import LoadVolumed, file_name

LOAD = Compose([LoadVolumed("image"), EnsureChannelFirstd("image"), CheckVolumed("image")])
SHAPE = (20, 22, 24)


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)


def load(path):
    """The volume, or the innermost error as a test wants to see it."""
    try:
        return LOAD({"image": str(path)})["image"]
    except RuntimeError as error:
        while error.__cause__ is not None and not isinstance(error, CaseError):
            error = error.__cause__
        raise error from None


def write_itk(path, voxels, compress=False):
    image = itk.image_from_array(np.ascontiguousarray(voxels.T))
    image.SetSpacing([2.0, 2.0, 3.0])
    itk.imwrite(image, str(path), compress)
    return path


def write_nifti(path, voxels, affine=None):
    nib.save(nib.Nifti1Image(voxels, np.diag([-2.0, 2.0, 3.0, 1.0]) if affine is None else affine), path)
    return path


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.nrrd", "ct.nhdr", "ct.mha", "ct.mhd"])
def test_reads_every_format_alike(tmp_path, voxels, name):
    writer = write_nifti if ".nii" in name else write_itk
    volume = load(writer(tmp_path / name, voxels))
    assert volume.shape == (1, *SHAPE)
    assert volume.dtype == torch.float32
    np.testing.assert_array_equal(volume[0].numpy(), voxels)
    np.testing.assert_allclose(volume.pixdim, [2, 2, 3])
    assert file_name(volume) == name


def test_reads_mgz(tmp_path, voxels):
    nib.save(nib.MGHImage(voxels, np.diag([-2.0, 2.0, 3.0, 1.0])), tmp_path / "ct.mgz")
    np.testing.assert_array_equal(load(tmp_path / "ct.mgz")[0].numpy(), voxels)


@pytest.mark.parametrize(
    ("space", "signs"), [("left-anterior-superior", (-1, 1, 1)), ("right-anterior-superior", (1, 1, 1))]
)
def test_heeds_the_space_of_an_nrrd(tmp_path, voxels, space, signs):
    """A left that is read as right is the error that nobody sees."""
    header = f"NRRD0004\ntype: short\ndimension: 3\nspace: {space}\nsizes: 20 22 24\nencoding: raw\nendian: little\n"
    header += "space directions: (2,0,0) (0,2,0) (0,0,3)\nspace origin: (5,6,7)\n\n"
    (tmp_path / "ct.nrrd").write_bytes(header.encode() + voxels.tobytes(order="F"))
    affine = load(tmp_path / "ct.nrrd").affine.numpy()
    np.testing.assert_allclose(affine[:3, :3].diagonal(), np.array(signs) * [2, 2, 3])
    np.testing.assert_allclose(affine[:3, 3], np.array(signs) * [5, 6, 7])


def test_is_a_load_imaged():
    """MONAI Label looks for that class, and asks for the header too."""
    assert issubclass(LoadVolumed, LoadImaged)
    assert LoadVolumed("image", image_only=False)._loader.image_only is False


@pytest.mark.parametrize("kept", [0, 100, 0.5])
@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.nrrd", "ct.mha"])
def test_refuses_truncated_files(tmp_path, voxels, name, kept):
    path = (write_nifti if ".nii" in name else write_itk)(tmp_path / name, voxels)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    what = "cannot be read and is damaged, truncated or no image .*" if kept else "is empty .*"
    with pytest.raises(CaseError, match=rf"^{name} {what}\.$"):
        load(path)


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.mgz", "ct.nrrd", "ct.mha", "ct.mhd"])
def test_no_folder_and_nothing_of_the_reader_stands_in_the_sentence(tmp_path, name):
    folder = tmp_path / "doe_jane"
    folder.mkdir()
    for content in ("", "no image", "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementDataFile = other.raw\n"):
        (folder / name).write_text(content)
        with pytest.raises(CaseError) as caught:
            load(folder / name)
        assert "doe_jane" not in str(caught.value)
        assert "ITK" not in str(caught.value)


def test_refuses_what_is_no_image(tmp_path):
    (tmp_path / "ct.nii.gz").write_bytes(gzip.compress(b"a letter, not a scan"))
    with pytest.raises(CaseError, match="damaged, truncated or no image"):
        load(tmp_path / "ct.nii.gz")
    with pytest.raises(CaseError, match=r"^gone\.nii is not there"):
        load(tmp_path / "gone.nii")


@pytest.mark.parametrize("kind", ["int8", "uint8", "uint16", "int32", "int64", "float", "double"])
def test_reads_every_type_of_voxel(tmp_path, kind):
    header = f"NRRD0004\ntype: {kind}\ndimension: 3\nsizes: 4 5 6\nencoding: raw\nendian: little\n\n"
    voxels = np.arange(120).reshape(4, 5, 6).astype({"float": "f4", "double": "f8"}.get(kind, kind))
    (tmp_path / "ct.nrrd").write_bytes(header.encode() + voxels.tobytes(order="F"))
    np.testing.assert_array_equal(LoadVolumed("image")({"image": tmp_path / "ct.nrrd"})["image"].numpy(), voxels)


def test_refuses_colours(tmp_path, voxels):
    colours = itk.image_from_array(np.zeros((*SHAPE, 3), np.uint8), is_vector=True)
    for name in ("ct.nrrd", "ct.mha"):
        itk.imwrite(colours, str(tmp_path / name))
        with pytest.raises(CaseError, match="colours"):
            load(tmp_path / name)
    write_nifti(tmp_path / "ct.nii.gz", np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    with pytest.raises(CaseError, match="colours"):
        load(tmp_path / "ct.nii.gz")


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nrrd"])
def test_refuses_4d_but_takes_a_fourth_axis_of_one(tmp_path, voxels, name):
    several = np.stack([voxels, voxels], -1)
    path = write_nifti(tmp_path / name, several) if ".nii" in name else tmp_path / name
    if ".nii" not in name:
        itk.imwrite(itk.image_from_array(np.ascontiguousarray(several.T)), str(path))
    with pytest.raises(CaseError, match=r"not one 3D volume but several or colours \(2 of 20 x 22 x 24 voxels\)"):
        load(path)
    for extra in (voxels[..., None], voxels[..., None, None]):
        assert load(write_nifti(tmp_path / "one.nii.gz", extra)).shape == (1, *SHAPE)


def test_refuses_single_slices(tmp_path, voxels):
    for slices in (voxels[..., 0], voxels[..., :1], voxels[:, :1]):
        with pytest.raises(CaseError, match=r"^ct\.nii is a single slice"):
            load(write_nifti(tmp_path / "ct.nii", slices))
    with pytest.raises(CaseError, match="has only 2 slices"):
        load(write_nifti(tmp_path / "ct.nii", voxels[..., :2]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_values_that_are_not_finite(tmp_path, voxels, value):
    broken = voxels.astype(np.float32)
    broken[3, 4, 5] = value
    with pytest.raises(CaseError, match=r"^ct\.nii has 1 voxels that are NaN or infinite"):
        load(write_nifti(tmp_path / "ct.nii", broken))


def test_refuses_a_constant_volume(tmp_path, voxels):
    with pytest.raises(CaseError, match=r"^ct\.nii is empty: every voxel is -7;"):
        load(write_nifti(tmp_path / "ct.nii", np.full_like(voxels, -7)))


def volume_with(axes):
    affine = np.eye(4)
    affine[:3, :3] = axes
    return {"image": MetaTensor(torch.arange(24**3).reshape(1, 24, 24, 24).float(), affine=affine)}


def rotation(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("axes", "sentence"),
    [
        ([[2, 0, 0], [0, 2, 0], [0, 2, 0]], "singular affine"),
        (np.diag([2, 2, 0]), "singular affine"),
        (np.diag([2, 2, np.nan]), "singular affine"),
        (np.diag([2, 2, 50]), "voxels of 2 x 2 x 50 mm"),
        (np.diag([2, 2, 0.001]), "voxels of 2 x 2 x 0.001 mm"),
        (np.diag([0.1, 2, 2]), "spans 2.4 x 48 x 48 mm"),
        ([[2, 0, 0], [0, 2, 2 * np.tan(np.radians(18.5))], [0, 0, 2]], "18.5 degrees off a right angle"),
    ],
)
def test_refuses_grids_that_cannot_be_resampled(axes, sentence):
    with pytest.raises(CaseError, match=sentence):
        CheckVolumed("image")(volume_with(axes))


@pytest.mark.parametrize("axes", [np.diag([-2, 2, 5]), rotation(30) @ np.diag([2, 3, 4]), np.eye(3)[[2, 0, 1]] * 3])
def test_takes_any_orthogonal_grid(axes):
    given = volume_with(axes)
    assert CheckVolumed("image")(given)["image"] is given["image"]


def test_each_reason_is_one_sentence():
    """It ends with a full stop and has none before it that ends a sentence."""
    with pytest.raises(CaseError) as caught:
        one_volume(torch.zeros(3, 5, 5, 5), "ct.nii.gz")
    assert str(caught.value).endswith(".")
    assert ". " not in str(caught.value)


def test_an_mri_whose_air_is_below_zero_is_refused():
    """A head z-scored with its air, and one that was shifted; ringing around a stripped brain passes."""
    head = torch.from_numpy(np.random.default_rng(0).uniform(0, 20, (1, *SHAPE))).float()
    head[:, 5:15, 5:17, 6:18] += 500
    check = CheckMagnituded("image")
    named = {"filename_or_obj": "/in/f.nii.gz"}
    for changed in ((head - head.mean()) / head.std(), head - 100, -head):
        with pytest.raises(CaseError, match=r"^f\.nii\.gz has values from -.* is below 0.*give the original file"):
            check({"image": MetaTensor(changed, meta=named)})
    ringing = torch.where(head < 20, -0.5 * head, head)
    for passed in (head, ringing):
        assert check({"image": passed})["image"] is passed


def test_maps_of_labels_are_refused_and_scans_are_not():
    """Few numbers, and an atlas of many; a scan of 8 bits, however smooth, is none."""
    random, place = np.random.default_rng(0), np.indices((40, 44, 36))
    tumour = random.choice([0, 1, 2, 4], (40, 44, 36))
    atlas = 1000 + place[0] // 10 * 100 + place[1] // 8 * 10 + place[2] // 9
    check = CheckNoLabelsd("image")
    for labels, count in ((tumour, 4), (tumour > 0, 2), (atlas * (place[0] > 4), len(np.unique(atlas)) + 1)):
        volume = MetaTensor(torch.as_tensor(labels)[None].float(), meta={"filename_or_obj": "/in/seg.nii.gz"})
        with pytest.raises(CaseError, match=rf"^seg\.nii\.gz holds {count} whole numbers, .*give the scan itself"):
            check({"image": volume})
    smooth = 100 + 50 * np.sin(place[0] / 8) * np.cos(place[1] / 9) + random.normal(0, 3, place[0].shape)
    for scan in (smooth.round(), smooth, 0.5 * tumour):
        assert check({"image": MetaTensor(torch.as_tensor(scan)[None].float())})
