"""The skull strip on a head whose brain is known, on real heads, and through mask files and commands."""

import shlex
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd
from scipy import ndimage

from scripts.errors import CaseError
from scripts.transforms.ct_brain_mask import ct_brain_mask, foreground, is_stripped
from scripts.transforms.skull_strip import MaskFiles, SkullStripd, method_name, recorded_method
from tests.phantoms import centred_affine


def head(affine: np.ndarray, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """HU of a head on a table, and its brain: ellipsoids of scalp, skull and brain, a foramen with its canal, a neck.

    RAS mm from the middle of the brain; the foramen is at z = -56.
    """
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    x, y, z = np.moveaxis(nib.affines.apply_affine(affine, voxels), -1, 0)

    def ellipsoid(margin: float) -> np.ndarray:
        return (x / (66 + margin)) ** 2 + (y / (82 + margin)) ** 2 + (z / (60 + margin)) ** 2 < 1

    axis = np.hypot(x, y + 15)
    below = z < -50
    hu = np.full(shape, -1000.0, dtype=np.float32)
    hu[(np.abs(y + 108) < 3) & (np.abs(x) < 90)] = 300  # the table
    hu[below & (np.hypot(x, y) < 62)] = 50
    hu[ellipsoid(15)] = 20
    hu[ellipsoid(8)] = 900
    hu[below & (axis < 17)] = 600
    hu[ellipsoid(1)] = 6
    hu[below & (z > -74) & (axis < 14)] = 25
    hu[below & (axis < 9)] = 25
    brain = ellipsoid(0)
    hu[brain] = 30
    hu[((np.abs(x) - 12) / 8) ** 2 + (y / 35) ** 2 + (z / 12) ** 2 < 1] = 6
    return hu, brain


def grid(spacing: tuple[float, ...], low: float = -100, high: float = 84) -> tuple[np.ndarray, tuple[int, int, int]]:
    """RAS affine and shape of a field of view around the head, from `low` to `high` mm in z."""
    extent = np.array([180.0, 230.0, high - low])
    shape = tuple(int(n) for n in np.ceil(extent / spacing))
    affine = centred_affine(np.diag(spacing), shape)
    affine[2, 3] += (low + high) / 2
    return affine, shape


AFFINE, SHAPE = grid((3.0, 3.0, 3.0))
HU, BRAIN = head(AFFINE, SHAPE)


def noisy(hu: np.ndarray, sd: float = 6.0) -> np.ndarray:
    return (hu + np.random.default_rng(1).normal(0, sd, hu.shape)).astype(np.float32)


def image_of(hu: np.ndarray, affine: np.ndarray = AFFINE, path: str | Path = "folder/case.nii.gz") -> MetaTensor:
    return MetaTensor(torch.from_numpy(hu)[None], affine=torch.from_numpy(affine), meta={"filename_or_obj": str(path)})


def strip(hu: np.ndarray, **arguments) -> np.ndarray:
    return SkullStripd(**arguments)({"image": image_of(hu)})["mask"][0].numpy() > 0


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize(
    "spacing", [(1.5, 1.5, 1.5), (1.0, 1.0, 5.0), (2.0, 2.0, 7.0), (5.0, 1.2, 1.2), (4.0, 4.0, 4.0)]
)
def test_the_brain_is_found_at_any_voxel_size(spacing):
    affine, shape = grid(spacing)
    hu, brain = head(affine, shape)
    assert dice(ct_brain_mask(noisy(hu), affine), brain) > 0.93


def test_the_mask_ends_at_the_foramen_magnum_and_at_the_skull():
    mask = ct_brain_mask(noisy(HU), AFFINE)
    z = AFFINE[2, 2] * np.arange(SHAPE[2]) + AFFINE[2, 3]
    assert not mask[..., z < -68].any()
    assert mask[..., z > -56].sum() > 0.99 * mask.sum()
    assert HU[mask].max() < 100
    assert not mask[ndimage.binary_dilation(BRAIN, iterations=2) < mask].any()


def test_ventricles_are_inside_the_mask():
    mask = ct_brain_mask(noisy(HU), AFFINE)
    ventricles = (HU == 6) & ndimage.binary_erosion(BRAIN, iterations=4)
    assert ventricles.sum() > 500
    assert mask[ventricles].all()


@pytest.mark.parametrize("window", [(-1024, 3000), (0, 80)], ids=["HU", "window"])
def test_a_cyst_and_outer_fluid_at_the_edge_are_inside_the_mask(window):
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), axis=-1)
    away = np.linalg.norm(nib.affines.apply_affine(AFFINE, voxels) - [-50, 20, 10], axis=-1)
    cyst = BRAIN & (away < 28)
    front = (
        BRAIN
        & ~ndimage.binary_erosion(BRAIN, iterations=4)
        & (voxels[..., 1] > SHAPE[1] * 0.65)
        & (voxels[..., 2] > 25)
    )
    mask = ct_brain_mask(noisy(np.where(cyst | front, 3, HU)).clip(*window), AFFINE)
    assert cyst.sum() > 1000
    assert front.sum() > 1000
    assert mask[cyst].mean() > 0.97
    assert mask[front].mean() > 0.95


def test_noise_makes_no_holes():
    mask, quiet = ct_brain_mask(noisy(HU, 15), AFFINE), ct_brain_mask(HU, AFFINE)
    np.testing.assert_array_equal(ndimage.binary_fill_holes(mask), mask)
    assert dice(mask, quiet) > 0.98


@pytest.mark.parametrize("axes", [[0], [1], [2], [0, 1, 2]])
def test_mirrored_voxels_give_the_mirrored_mask_exactly(axes):
    hu = noisy(HU)
    signs, offset = np.eye(4), np.zeros(3)
    for axis in axes:
        signs[axis, axis], offset[axis] = -1, SHAPE[axis] - 1
    signs[:3, 3] = offset
    mirrored = ct_brain_mask(np.flip(hu, axes), AFFINE @ signs)
    np.testing.assert_array_equal(np.flip(mirrored, axes), ct_brain_mask(hu, AFFINE))


def test_axes_in_another_order_give_the_same_mask():
    hu = noisy(HU)
    turned = ct_brain_mask(np.transpose(hu, (2, 0, 1)), AFFINE[:, [2, 0, 1, 3]])
    np.testing.assert_array_equal(np.transpose(turned, (1, 2, 0)), ct_brain_mask(hu, AFFINE))


@pytest.mark.parametrize(("low", "high"), [(-100, 40), (-40, 84), (-30, 45)], ids=["vertex cut", "base cut", "both"])
def test_a_field_of_view_that_cuts_the_head_keeps_the_brain_up_to_its_border(low, high):
    affine, shape = grid((3.0, 3.0, 3.0), low, high)
    hu, brain = head(affine, shape)
    mask = ct_brain_mask(noisy(hu), affine)
    assert dice(mask, brain) > 0.93
    for border in [-1] * (high < 60) + [0] * (low > -56):
        assert mask[..., border].sum() > 0.85 * brain[..., border].sum()


@pytest.mark.parametrize("padding", [-1024, -2000, -3024])
def test_padding_of_the_scanner_changes_nothing(padding):
    corner = np.hypot(*np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE[:2]], indexing="ij")) > 1.05
    padded = noisy(HU)
    padded[corner] = padding
    assert dice(ct_brain_mask(padded, AFFINE), ct_brain_mask(noisy(HU), AFFINE)) > 0.995


def test_noise_on_one_side_does_not_shift_the_mask():
    sd = np.where(np.arange(SHAPE[0]) < SHAPE[0] // 2, 3, 12)[:, None, None]
    mask = ct_brain_mask(noisy(HU, sd), AFFINE)
    left, right = mask[: SHAPE[0] // 2].sum(), mask[-(SHAPE[0] // 2) :].sum()
    assert left / right == pytest.approx(1, abs=0.04)


def test_a_hole_in_the_skull_lets_nothing_but_the_wound_in():
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), axis=-1)
    away = np.linalg.norm(nib.affines.apply_affine(AFFINE, voxels) - [68, 0, 20], axis=-1)
    bone = HU == 900
    hu = np.where(bone & (away < 35), 30, HU)
    mask = ct_brain_mask(noisy(hu), AFFINE)
    assert dice(mask, BRAIN) > 0.9
    outside = mask & ~BRAIN & ~(hu == 6)
    assert (away[outside] < 45).mean() > 0.9
    assert not mask[ndimage.distance_transform_edt(hu > -500, sampling=3) < 4].any()


def test_a_stripped_ct_is_left_alone():
    stripped = np.where(BRAIN, noisy(HU), 0).astype(np.float32)
    assert is_stripped(stripped)
    assert not is_stripped(noisy(HU))
    assert not is_stripped(HU)  # constant air is no proof
    d = SkullStripd()({"image": image_of(stripped)})
    np.testing.assert_array_equal(d["mask"][0].numpy() > 0, BRAIN)
    assert d["mask"].meta["skull_strip"] == "already stripped"
    assert torch.equal(d["image"], image_of(stripped))


def test_method_none_takes_what_is_not_background_or_everything():
    np.testing.assert_array_equal(strip(np.where(BRAIN, HU, -1000).astype(np.float32), method="none"), BRAIN)
    assert foreground(noisy(HU)).all()


def test_no_brain_is_an_error_that_names_the_file():
    distance = np.linalg.norm(np.argwhere(np.ones(SHAPE)).reshape(*SHAPE, 3) * 3.0 - [90, 115, 92], axis=-1)
    water = noisy(np.where(distance < 70, 30, -1000))
    for hu in (water, noisy(np.full(SHAPE, -1000.0)), noisy(HU) + 1024):
        with pytest.raises(CaseError, match=r"^case\.nii\.gz shows no brain.*mL") as error:
            strip(hu)
        assert str(error.value).count(".") - str(error.value).count("nii.gz") * 2 == 1


def write(path: Path, mask: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), path)
    return path


def test_mask_and_image_share_grid_and_trace_and_invert_alike():
    hu = np.roll(HU, (2, 3), axis=(0, 1))[::-1, ::-1]
    lps = image_of(np.ascontiguousarray(hu), AFFINE @ np.diag([-1, -1, 1, 1]))
    transforms = Compose([Orientationd("image", "RAS", labels=None), SkullStripd()])
    d = transforms({"image": lps})
    assert d["mask"].shape == d["image"].shape
    assert str(d["mask"].applied_operations) == str(d["image"].applied_operations)
    torch.testing.assert_close(d["mask"].affine, d["image"].affine)
    inverted = Invertd("mask", transforms, orig_keys="image", nearest_interp=True)(d)["mask"]
    torch.testing.assert_close(inverted.affine, lps.affine)
    np.testing.assert_array_equal(inverted[0].numpy() > 0, ct_brain_mask(lps[0].numpy(), lps.affine.numpy()))


def test_a_mask_file_is_taken_as_it_is_or_resampled(tmp_path):
    same = strip(HU, method=write(tmp_path / "same.nii.gz", BRAIN))
    np.testing.assert_array_equal(same, BRAIN)
    fine = grid((2.0, 2.0, 2.0))
    assert dice(strip(HU, method=write(tmp_path / "fine.nii.gz", head(*fine)[1], fine[0])), BRAIN) > 0.98


def test_a_mask_with_mirrored_voxels_on_an_oblique_grid_fits_to_the_border(tmp_path):
    sine, cosine = np.sin(0.3), np.cos(0.3)
    oblique = np.array([[1, 0, 0, 0.1], [0, cosine, -sine, 0], [0, sine, cosine, 0.7], [0, 0, 0, 1]]) @ AFFINE
    mirror = np.diag([-1.0, -1, -1, 1])
    mirror[:3, 3] = np.array(SHAPE) - 1
    body = HU > -500
    turned = write(tmp_path / "turned.nii.gz", np.flip(body), oblique @ mirror)
    mask = SkullStripd(method=turned)({"image": image_of(HU, oblique)})["mask"][0].numpy() > 0
    assert body[..., 0].any()
    np.testing.assert_array_equal(mask, body)


def test_a_mask_that_does_not_fit_is_an_error(tmp_path):
    moved = AFFINE.copy()
    moved[0, 3] += 500
    with pytest.raises(CaseError, match=r"far\.nii\.gz does not fit case\.nii\.gz: 100 %"):
        strip(HU, method=write(tmp_path / "far.nii.gz", BRAIN, moved))
    with pytest.raises(CaseError, match="empty"):
        strip(HU, method=write(tmp_path / "none.nii.gz", BRAIN & False))


def test_a_mask_that_says_no_sides_is_not_mirrored_in_silence(tmp_path, caplog):
    """nibabel takes it for one about 0 whose first axis goes to the left."""
    affine = centred_affine(np.diag([3.0, 3.0, 3.0]), SHAPE)
    half = BRAIN & (np.arange(SHAPE[0]) < SHAPE[0] // 2)[:, None, None]
    for name, mask in (("a", half), ("b", half[:, :, 1:])):
        image = nib.Nifti1Image(mask.astype(np.uint8), None)
        image.header.set_zooms((3, 3, 3))
        nib.save(image, tmp_path / f"{name}.nii.gz")
    made = SkullStripd(method=tmp_path / "a.nii.gz")({"image": image_of(HU, affine)})
    np.testing.assert_array_equal(made["mask"][0].numpy() > 0, half)
    assert "a.nii.gz of case.nii.gz does not say how its axes lie; it is taken voxel by voxel" in caplog.text
    with pytest.raises(CaseError, match="has other voxels than the image"):
        SkullStripd(method=tmp_path / "b.nii.gz")({"image": image_of(HU, affine)})
    series = image_of(HU, affine)
    series.meta["series_uid"] = "1.2.3"  # which dcm2niix would store upside down
    with pytest.raises(CaseError, match="programs store the slices of a DICOM series in different orders"):
        SkullStripd(method=tmp_path / "a.nii.gz")({"image": series})


def test_a_folder_of_masks_is_searched_by_the_longest_name(tmp_path):
    masks = tmp_path / "masks"
    write(masks / "sub1_ct.nii.gz", BRAIN)
    write(masks / "sub2" / "ct.nii.gz", ~BRAIN)
    write(masks / "ct.nii.gz", np.ones(SHAPE))
    transform = SkullStripd(method=masks)
    found = [
        transform({"image": image_of(HU, path=tmp_path / "in" / name / "ct.nii.gz")})["mask"][0].numpy() > 0
        for name in ("sub1", "sub2", "sub3")
    ]
    for mask, expected in zip(found, (BRAIN, ~BRAIN, np.ones(SHAPE)), strict=True):
        np.testing.assert_array_equal(mask, expected)
    with pytest.raises(CaseError, match=r"holds no mask for mri\.nii\.gz"):
        transform({"image": image_of(HU, path=tmp_path / "mri.nii.gz")})


SCRIPT = """
import sys, time
import nibabel as nib
source, target, what = sys.argv[1:]
if what == "fail":
    print("reading", file=sys.stderr)
    sys.exit(print("the model is not there", file=sys.stderr) or 3)
if what == "sleep":
    time.sleep(60)
image = nib.load(source)
if what == "mask":
    nib.save(nib.Nifti1Image((image.get_fdata() > 0).astype("uint8"), image.affine), target)
"""


@pytest.fixture
def command(tmp_path):
    """Command lines of a small program, which lies in a folder with a blank."""
    script = tmp_path / "my tools" / "strip.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    return lambda what: f"{shlex.quote(sys.executable)} {shlex.quote(str(script))} {{input}} {{mask}} {what}"


def test_a_command_gives_the_mask(command):
    np.testing.assert_array_equal(strip(HU, method=command("mask")), HU > 0)


def test_a_command_that_fails_is_an_error_with_its_last_words(command):
    with pytest.raises(CaseError, match=r"failed for case\.nii\.gz with exit code 3 and said: the model is not there$"):
        strip(HU, method=command("fail"))
    with pytest.raises(CaseError, match=r"wrote no mask for case\.nii\.gz"):
        strip(HU, method=command("nothing"))
    with pytest.raises(CaseError, match="took longer than 1 s"):
        strip(HU, method=command("sleep"), timeout=1)
    with pytest.raises(CaseError, match="cannot be started"):
        strip(HU, method="no_such_program_here {input} {mask}")


def test_the_shell_has_no_part_in_a_command(command, tmp_path):
    with pytest.raises(CaseError):
        strip(HU, method=command("fail") + f"; touch {tmp_path / 'made'}")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("method", ["program {input}", "buildin", "program '{input} {mask}", "/no/such/mask.nii.gz"])
def test_a_method_that_cannot_work_is_an_error_before_the_first_case(method):
    with pytest.raises(CaseError):
        SkullStripd(method=method)


@pytest.mark.shared_data
@pytest.mark.parametrize("window", [(-1024, 3000), (0, 80)], ids=["HU", "window"])
def test_dice_with_the_brains_of_the_templates(shared_data, window):
    """The brain of the CT template fills the skull; that of the T1 template, of other people, lies in it."""
    folder = shared_data / "ct_t1_templates"
    ct = nib.load(folder / "scct_unsmooth_96x96x96.nii.gz")
    mask = ct_brain_mask(ct.get_fdata(dtype=np.float32).clip(*window), ct.affine)

    def brain(name: str) -> np.ndarray:
        image = nib.load(folder / name)
        inside = ndimage.binary_fill_holes(image.get_fdata() != 0).astype(float)
        to_image = np.linalg.inv(image.affine) @ ct.affine
        return ndimage.affine_transform(inside, to_image, output_shape=ct.shape, order=1) > 0.5

    t1 = brain("betsct1_unsmooth.nii.gz")
    assert dice(mask, brain("scct_unsmooth_SS_0.01.nii.gz")) >= 0.97
    assert dice(mask, t1) >= 0.92  # the two brains have 0.93 between them
    assert (t1 & ~mask).sum() <= 0.01 * t1.sum()


@pytest.mark.shared_data
def test_the_stripped_template_is_left_alone(shared_data):
    ct = nib.load(shared_data / "ct_t1_templates" / "scct_unsmooth_SS_0.01.nii.gz").get_fdata(dtype=np.float32)
    assert is_stripped(ct)
    mask = foreground(ct)
    assert mask[ct != 0].all()
    assert 0 <= mask.sum() - (ct != 0).sum() < 1000


@pytest.mark.shared_data
def test_the_patient_with_gantry_tilt(shared_data, tmp_path):
    """Thick uneven slices, a head holder, padding of -1500: the mask holds soft tissue only, above the foramen."""
    dcm2niix = pytest.importorskip("dcm2niix")
    folder = shared_data / "ct_dicom_gantry_tilt"
    dcm2niix.main(["-f", "ct", "-o", str(tmp_path), str(folder)], capture_output=True)
    image = nib.load(next(tmp_path.glob("ct_Tilt_Eq*.nii")))
    hu = image.get_fdata(dtype=np.float32)
    mask = ct_brain_mask(hu, image.affine)
    volume = mask.sum() * np.prod(image.header.get_zooms()) / 1000
    assert 1380 < volume < 1490  # seen in three planes to fill the skull at 1434 mL
    assert np.mean((hu[mask] > -20) & (hu[mask] < 100)) > 0.98
    slices = np.flatnonzero(mask.any(axis=(0, 1)))
    assert slices[0] > 0
    assert slices[-1] < mask.shape[2] - 1
    assert 110 < (slices[-1] - slices[0] + 1) * image.header.get_zooms()[2] < 145


def test_records_name_a_method_without_folders_or_arguments():
    assert method_name("builtin") == "builtin"
    assert method_name("/data/jane doe/mask.nii.gz") == "mask.nii.gz"
    assert method_name("/opt/tools/strip --patient jane {input} {mask}") == "strip"


def test_records_tell_the_arguments_of_a_command_apart():
    commands = [f"/opt/tools/strip --patient jane -f {share} {{input}} {{mask}}" for share in (0.3, 0.5)]
    first, second = map(recorded_method, commands)
    assert first != second
    assert first.startswith("strip, arguments ")
    assert "jane" not in first + second
    assert recorded_method("masks/hd") == "hd"


def test_the_file_of_a_mask_is_known_before_the_volume_is_read(tmp_path):
    path = write(tmp_path / "masks" / "deep_a.nii.gz", BRAIN)
    masks = MaskFiles(str(tmp_path / "masks"))
    assert masks(str(tmp_path / "deep" / "a.nrrd"), "deep_a") == path
    assert MaskFiles(path)(str(tmp_path / "b.nii"), "b") == path
    assert MaskFiles("builtin")(str(tmp_path / "b.nii"), "b") is None
    with pytest.raises(CaseError, match="holds no mask for b"):
        masks(str(tmp_path / "b.nii"), "b")


@pytest.mark.parametrize(("contrast", "expected"), [("CT", "builtin"), ("T2", "hd-bet"), (None, "hd-bet")])
def test_auto_goes_by_the_contrast(monkeypatch, contrast, expected):
    called = []
    for name in ("ct_brain_mask", "mri_brain_mask"):
        monkeypatch.setattr(
            f"scripts.transforms.skull_strip.{name}",
            lambda volume, *_, name=name: called.append(name) or np.ones(volume.shape, bool),
        )
    values = torch.rand((1, 40, 40, 40), generator=torch.Generator().manual_seed(0)) + 1
    meta = {} if contrast is None else {"contrast": contrast}
    made = SkullStripd("image", method="auto")({"image": MetaTensor(values, affine=np.eye(4) * 5, meta=meta)})
    assert made["mask"].meta["skull_strip"] == expected
    assert called == ["ct_brain_mask" if expected == "builtin" else "mri_brain_mask"]
