"""What lies on disk after a case: where its voxels are, what its record says, and nothing half."""

import errno
import gzip
import json
import os

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, SaveImaged
from PIL import Image

from scripts.errors import CaseError, MachineError
from scripts.files import sha256_of_file
from scripts.outputs import saver as saver_module
from scripts.outputs.picture import _centre, three_planes
from scripts.outputs.saver import SaveSyntheticd
from scripts.volumes.load import LoadVolumed

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.1, -0.2, 0.3) @ np.diag([-2.0, 2.5, 3.0])[[0, 2, 1]], [11.0, -7.0, 5.0]
)
LOAD = Compose([LoadVolumed("image"), EnsureChannelFirstd("image")])
RECORD = {"bundle_version": "9.8.7", "num_inference_steps": 5, "spacing_mm": (1.5, 1.5, 1.5)}


def item_of(path, case="case"):
    source = LOAD({"image": str(path)})["image"]
    pred = MetaTensor(torch.rand(source.shape, generator=torch.Generator().manual_seed(0)), meta=source.meta)
    return {"pred": pred, "source": source, "case": case}


def write_source(path, codes=(1, 0), affine=OBLIQUE, qform=None):
    voxels = np.random.default_rng(0).integers(-1000, 1000, (12, 14, 10)).astype(np.int16)
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=codes[1])
    image.set_qform(affine if qform is None else qform, code=codes[0])
    image.header["descrip"] = b"Doe^Jane"
    image.header["db_name"] = b"DOE"
    image.header["intent_name"] = b"Jane"
    image.header["aux_file"] = b"jane_doe.txt"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Doe^Jane 1950"))
    nib.save(image, path)
    return path


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1), (2, 4), (0, 0), (3, 1)])
@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nii"])
def test_a_nifti_keeps_its_grid_and_both_codes(tmp_path, codes, name):
    path = write_source(tmp_path / name, codes)
    item = item_of(path)
    SaveSyntheticd(output_dir=tmp_path / "out")(item)
    made, source = nib.load(tmp_path / "out" / "case_t1.nii.gz"), nib.load(path)
    assert made.get_data_dtype() == np.float32
    np.testing.assert_array_equal(made.get_fdata(dtype=np.float32), item["pred"][0].numpy())
    assert (int(made.header["qform_code"]), int(made.header["sform_code"])) == codes
    np.testing.assert_array_equal(made.affine, source.affine)
    for form in ("get_sform", "get_qform"):
        np.testing.assert_array_equal(getattr(made, form)(coded=False), getattr(source, form)(coded=False))
    assert made.header.get_zooms() == source.header.get_zooms()
    assert made.header["xyzt_units"] == source.header["xyzt_units"]


def test_the_packed_file_is_the_same_every_time_and_read_by_others(tmp_path):
    path = write_source(tmp_path / "ct.nii.gz")
    item = item_of(path)
    item["pred"][:, :, 7:] = 0
    packed = []
    for folder in ("a", "b"):
        SaveSyntheticd(output_dir=tmp_path / folder)(item)
        packed.append((tmp_path / folder / "case_t1.nii.gz").read_bytes())
    assert packed[0] == packed[1]
    unpacked = gzip.decompress(packed[0])
    assert len(unpacked) == 352 + 4 * item["pred"].numel()
    nib.save(nib.load(tmp_path / "a" / "case_t1.nii.gz"), tmp_path / "plain.nii")
    assert unpacked == (tmp_path / "plain.nii").read_bytes()
    by_itk = itk.array_from_image(itk.imread(str(tmp_path / "a" / "case_t1.nii.gz")))
    np.testing.assert_array_equal(by_itk.transpose(), item["pred"][0])


def test_differing_sform_and_qform_are_both_kept(tmp_path):
    turned = nib.eulerangles.euler2mat(0.1, -0.2, 0.1)  # as the head lay, beside its alignment to a template
    other = nib.affines.from_matvec(turned @ np.diag([2.0, 2.5, 3.0]), [1.0, 2.0, 3.0])
    sform = nib.affines.from_matvec(np.diag([2.0, 2.5, 3.0]), [9.0, 9.0, 9.0])
    path = write_source(tmp_path / "ct.nii.gz", (1, 2), sform, other)
    SaveSyntheticd(output_dir=tmp_path)(item_of(path))
    made, source = nib.load(tmp_path / "case_t1.nii.gz"), nib.load(path)
    np.testing.assert_array_equal(made.get_qform(), source.get_qform())
    np.testing.assert_array_equal(made.get_sform(), source.get_sform())
    assert not np.allclose(made.get_sform(), made.get_qform())


def test_a_form_that_was_not_believed_is_not_passed_on(tmp_path):
    """Whatever form a viewer goes by, the output lies where the source was taken to lie."""
    for name, codes, sform, qform in (
        ("a", (1, 2), np.eye(4), OBLIQUE),
        ("b", (1, 2), OBLIQUE, np.eye(4)),
        ("c", (0, 2), OBLIQUE, np.eye(4)),
    ):
        path = write_source(tmp_path / f"{name}.nii.gz", codes, sform, qform)
        SaveSyntheticd(output_dir=tmp_path)(item_of(path, name))
        made = nib.load(tmp_path / f"{name}_t1.nii.gz")
        for form in (made.get_sform(), made.get_qform(), nib.load(path).get_sform() if codes[0] == 0 else OBLIQUE):
            np.testing.assert_allclose(form, OBLIQUE, atol=1e-4)
        np.testing.assert_allclose(made.header.get_zooms(), nib.affines.voxel_sizes(OBLIQUE), rtol=1e-5)


@pytest.mark.parametrize(("space", "code"), [("RAS", 1), ("scanner-xyz", 2)])
def test_the_place_of_the_result_is_the_scanners_only_where_the_source_says_so(tmp_path, space, code):
    directions = "space directions: (2,0,0) (0,2,0) (0,0,3)"
    lines = f"space: {space}\n{directions}\nsizes: 4 5 6\nencoding: raw\nendian: little"
    voxels = np.arange(120, dtype="<i2").tobytes()
    (tmp_path / "ct.nrrd").write_bytes(f"NRRD0004\ntype: short\ndimension: 3\n{lines}\n\n".encode() + voxels)
    SaveSyntheticd(output_dir=tmp_path)(item_of(tmp_path / "ct.nrrd"))
    made = nib.load(tmp_path / "case_t1.nii.gz")
    assert (int(made.header["sform_code"]), int(made.header["qform_code"])) == (code, code)


@pytest.mark.parametrize("name", ["ct.nrrd", "ct.mha"])
def test_another_format_becomes_nifti_in_the_same_space(tmp_path, name):
    image = itk.image_from_array(np.arange(12 * 14 * 10, dtype=np.float32).reshape(12, 14, 10))
    turned = nib.eulerangles.euler2mat(0.1, -0.2, 0.3)
    image.SetDirection(itk.matrix_from_array(turned))
    image.SetSpacing([2.0, 3.0, 4.0])
    image.SetOrigin([5.0, 6.0, 7.0])
    itk.imwrite(image, str(tmp_path / name))
    SaveSyntheticd(output_dir=tmp_path)(item_of(tmp_path / name))
    made = nib.load(tmp_path / "case_t1.nii.gz")
    # voxel (1, 2, 3) by ITK, in LPS, and by nibabel, in RAS
    lps = turned @ (np.array([2.0, 3.0, 4.0]) * [1, 2, 3]) + [5, 6, 7]
    np.testing.assert_allclose(nib.affines.apply_affine(made.affine, [1, 2, 3]), lps * [-1, -1, 1], atol=1e-4)
    assert (int(made.header["qform_code"]), int(made.header["sform_code"])) == (1, 1)


def test_no_text_of_the_source_is_copied(tmp_path):
    path = write_source(tmp_path / "ct.nii")
    assert b"Doe" in path.read_bytes()
    SaveSyntheticd(output_dir=tmp_path / "out", record=RECORD)(item_of(path))
    unpacked = tmp_path / "made.nii"
    nib.save(nib.load(tmp_path / "out" / "case_t1.nii.gz"), unpacked)
    for file in (unpacked, tmp_path / "out" / "case_t1.json", tmp_path / "out" / "case_t1.png"):
        assert b"doe" not in file.read_bytes().lower()
        assert b"jane" not in file.read_bytes().lower()


@pytest.mark.parametrize(
    ("codes", "said"), [((1, 0), "header"), ((0, 2), "header"), ((0, 0), "left and right are a guess")]
)
def test_the_record_says_when_left_and_right_are_not_known(tmp_path, codes, said):
    SaveSyntheticd(output_dir=tmp_path / "out")(item_of(write_source(tmp_path / "ct.nii.gz", codes)))
    assert said in json.loads((tmp_path / "out" / "case_t1.json").read_text())["grid"]["orientation"]


def test_the_record_names_the_source_below_the_root_only(tmp_path):
    folder = tmp_path / "Doe^Jane" / "in"
    (folder / "sub").mkdir(parents=True)
    path = write_source(folder / "sub" / "ct.nii.gz")
    for root, named in ((folder, "sub/ct.nii.gz"), (None, "ct.nii.gz"), (path, "ct.nii.gz")):
        SaveSyntheticd(output_dir=tmp_path / "out", source_root=root, record=RECORD)(item_of(path))
        record = json.loads((tmp_path / "out" / "case_t1.json").read_text())
        assert record["source"] == {"file": named, "sha256": sha256_of_file(path)}
    assert record["bundle_version"] == "9.8.7"
    assert record["grid"]["voxels"] == [12, 14, 10]
    np.testing.assert_allclose(record["grid"]["spacing_mm"], nib.load(path).header.get_zooms(), atol=1e-5)
    assert "Doe" not in json.dumps(record)


def test_done_is_whole_and_alike(tmp_path):
    path = write_source(tmp_path / "ct.nii.gz")
    item = {"image": str(path), "case": "case"}
    saver = SaveSyntheticd(output_dir=tmp_path / "out", record=RECORD)
    assert not saver.is_done(item)
    saver(item_of(path))
    assert saver.is_done(item)
    assert not SaveSyntheticd(output_dir=tmp_path / "out", record={**RECORD, "num_inference_steps": 6}).is_done(item)
    assert not saver.is_done({**item, "case": "other"})
    (tmp_path / "out" / "case_t1.png").unlink()
    assert not saver.is_done(item)
    saver(item_of(path))
    write_source(path, codes=(1, 1))
    assert not saver.is_done(item)
    (tmp_path / "out" / "case_t1.json").write_text('{"half')
    assert not saver.is_done(item)


def test_a_case_with_another_lesion_mask_is_not_done(tmp_path):
    path, mask = write_source(tmp_path / "t2.nii.gz"), tmp_path / "case_seg.nii.gz"
    item = {"image": str(path), "case": "case", "contrast_T2": str(path)}

    def is_done() -> bool:
        return saver.is_done(item)

    def save() -> None:
        given = item_of(path)
        told = {"lesion_mask": {"file": mask.name, "sha256": sha256_of_file(mask), "ml": 1.0}} if mask.is_file() else {}
        contrasts = {"contrasts": {"T2": {"moved_mm": -1}}, "contrast_files": {"T2": str(path)}, "contrast": "T2"}
        given["source"].meta.update({**contrasts, **told})
        saver(given)

    saver = SaveSyntheticd(
        output_dir=tmp_path / "out", record=RECORD, lesion_mask_of=lambda case: mask if mask.is_file() else None
    )
    for change in (lambda: mask.write_text("drawn"), lambda: mask.write_text("corrected"), mask.unlink):
        save()
        assert is_done()
        change()
        assert not is_done()
    save()
    assert is_done()


def test_a_run_from_before_the_target_was_a_setting_is_done(tmp_path):
    path = write_source(tmp_path / "ct.nii.gz")
    item, record = {"image": str(path), "case": "case"}, tmp_path / "case_t1.json"
    SaveSyntheticd(output_dir=tmp_path, record=RECORD)(item_of(path))
    content = json.loads(record.read_text())
    assert content.pop("target_contrast") == "T1"
    record.write_text(json.dumps(content))
    assert SaveSyntheticd(output_dir=tmp_path, record=RECORD).is_done(item)
    assert not SaveSyntheticd(output_dir=tmp_path, record={**RECORD, "num_inference_steps": 6}).is_done(item)
    assert not SaveSyntheticd(output_dir=tmp_path, record=RECORD, target_contrast="T2").is_done(item)


def test_outputs_of_another_contrast_are_left_alone(tmp_path):
    path = write_source(tmp_path / "ct.nii.gz")
    item, out = {"image": str(path), "case": "case"}, tmp_path / "out"
    SaveSyntheticd(output_dir=out, record=RECORD, dicom=Series(2))(item_of(path))
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    saver = SaveSyntheticd(output_dir=out, record=RECORD, target_contrast="t2f", dicom=Series(3))
    assert not saver.is_done(item)
    saver(item_of(path))
    assert saver.is_done(item)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    new = {file.name for file in out.iterdir()} - {file.name for file in before}
    assert new == {f"case_flair{ending}" for ending in (".json", ".nii.gz", ".png", "_dicom")}
    assert json.loads((out / "case_flair.json").read_text())["target_contrast"] == "FLAIR"


def test_the_titles_name_both_contrasts(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        saver_module, "three_planes", lambda *args, **kwargs: titles.append(args[3]) or three_planes(*args, **kwargs)
    )
    saver = SaveSyntheticd(output_dir=tmp_path, source_window=None, source_contrast="T2", target_contrast="FLAIR")
    saver(item_of(write_source(tmp_path / "ct.nii.gz")))
    assert titles == [("source T2", "synthetic FLAIR")]


UNCERTAIN = {"uncertainty": {"samples": 8, "seed": 0, "factor": 1.5, "floor": 0.05}}


def uncertain_item(path):
    """The synthetic image with a second channel, 0.05 in the front half, 0.2 behind."""
    item = item_of(path)
    spread = torch.full_like(item["pred"], 0.05)
    spread[:, :6] = 0.2
    return {**item, "pred": torch.cat([item["pred"], spread]).copy_meta_from(item["pred"])}


def test_the_uncertainty_lies_where_the_image_lies_and_in_the_picture(tmp_path):
    path = write_source(tmp_path / "ct.nii.gz", (1, 2))
    item = uncertain_item(path)
    SaveSyntheticd(output_dir=tmp_path / "out", sampling=UNCERTAIN)(item)
    image, spread = (nib.load(tmp_path / "out" / f"case_t1{end}.nii.gz") for end in ("", "_uncertainty"))
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), item["pred"][0])
    np.testing.assert_array_equal(spread.get_fdata(dtype=np.float32), item["pred"][1])
    assert spread.get_data_dtype() == np.float32
    assert spread.header["cal_max"] == pytest.approx(0.3)
    for field in ("qform_code", "sform_code", "srow_x", "quatern_b", "pixdim"):
        np.testing.assert_array_equal(spread.header[field], image.header[field])
    SaveSyntheticd(output_dir=tmp_path / "plain")(item_of(path))
    picture, plain = (np.asarray(Image.open(tmp_path / folder / "case_t1.png")) for folder in ("out", "plain"))
    assert picture.shape[1] == plain.shape[1] * 3 // 2
    np.testing.assert_array_equal(picture[:, : plain.shape[1]], plain)
    levels = np.unique(picture[30:, plain.shape[1] :], return_counts=True)
    common = levels[0][np.argsort(levels[1])[-3:]]
    assert {round(255 * 0.05 / 0.3), round(255 * 0.2 / 0.3)} <= {int(level) for level in common}


def test_a_case_with_uncertainty_is_done_only_for_the_same_samples(tmp_path):
    path = write_source(tmp_path / "ct.nii.gz")
    item, folder = {"image": str(path), "case": "case"}, tmp_path / "out"
    plain = SaveSyntheticd(output_dir=folder, record=RECORD)
    with_it = SaveSyntheticd(output_dir=folder, record=RECORD, sampling=UNCERTAIN)
    other = {"uncertainty": {**UNCERTAIN["uncertainty"], "samples": 4}}
    plain(item_of(path))
    assert plain.is_done(item)
    assert not with_it.is_done(item)
    with_it(uncertain_item(path))
    assert with_it.is_done(item)
    assert not plain.is_done(item)
    assert not SaveSyntheticd(output_dir=folder, record=RECORD, sampling=other).is_done(item)
    (folder / "case_t1_uncertainty.nii.gz").unlink()
    assert not with_it.is_done(item)


def test_a_run_without_uncertainty_leaves_no_older_one(tmp_path):
    path = write_source(tmp_path / "ct.nii.gz")
    SaveSyntheticd(output_dir=tmp_path / "out", sampling=UNCERTAIN)(uncertain_item(path))
    SaveSyntheticd(output_dir=tmp_path / "out")(item_of(path))
    assert not (tmp_path / "out" / "case_t1_uncertainty.nii.gz").exists()


def test_an_unknown_contrast_is_refused():
    with pytest.raises(CaseError, match=r"^There is no contrast 'T3'; give one of CT, T1, .*\.$"):
        SaveSyntheticd(target_contrast="T3")


@pytest.mark.parametrize("step", ["three_planes", "case_record", "write_nifti", "case_warnings"])
def test_a_failure_leaves_nothing(tmp_path, monkeypatch, step):
    path = write_source(tmp_path / "ct.nii.gz")
    saver = SaveSyntheticd(output_dir=tmp_path / "out", record=RECORD)
    monkeypatch.setattr(saver_module, step, lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        saver(item_of(path))
    assert list(tmp_path.glob("out/*")) == []


def test_killed_between_two_files_is_not_done(tmp_path, monkeypatch):
    """The JSON comes last, and an older one goes first."""
    path = write_source(tmp_path / "ct.nii.gz")
    item = {"image": str(path), "case": "case"}
    saver = SaveSyntheticd(output_dir=tmp_path / "out", record=RECORD)
    saver(item_of(path))
    renamed = []

    def killed(source, target):
        if renamed:
            raise KeyboardInterrupt
        renamed.append(target.name)

    monkeypatch.setattr(saver_module.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        saver(item_of(path))
    assert renamed == ["case_t1.nii.gz"]
    assert not saver.is_done(item)


class Series:
    """Writes `count` files; the folder is the saver's matter."""

    def __init__(self, count):
        self.count = count

    def __call__(self, image, source, record, folder):
        folder.mkdir()
        for index in range(self.count):
            (folder / f"{index + 1:04d}.dcm").write_text(f"{self.count} {record['bundle_version']}")
        return {"series_uid": "1.2.3", "files": self.count}


def test_a_dicom_series_replaces_an_older_one_whole(tmp_path):
    path = write_source(tmp_path / "ct.nii.gz")
    item = {"image": str(path), "case": "case"}
    for count in (5, 3):
        saver = SaveSyntheticd(output_dir=tmp_path / "out", record=RECORD, dicom=Series(count))
        saver(item_of(path))
        written = sorted((tmp_path / "out" / "case_t1_dicom").iterdir())
        assert [file.read_text() for file in written] == [f"{count} 9.8.7"] * count
        assert saver.is_done(item)
        assert SaveSyntheticd(output_dir=tmp_path / "out", record=RECORD).is_done(item)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        f"case_t1{suffix}" for suffix in (".json", ".nii.gz", ".png", "_dicom")
    ]
    assert json.loads((tmp_path / "out" / "case_t1.json").read_text())["dicom"] == {"series_uid": "1.2.3", "files": 3}
    written[1].unlink()
    assert not saver.is_done(item)


def test_a_case_without_its_dicom_series_is_not_done(tmp_path):
    path = write_source(tmp_path / "ct.nii.gz")
    SaveSyntheticd(output_dir=tmp_path / "out", record=RECORD)(item_of(path))
    saver = SaveSyntheticd(output_dir=tmp_path / "out", record=RECORD, dicom=Series(5))
    assert not saver.is_done({"image": str(path), "case": "case"})


def test_a_dicom_series_that_fails_leaves_the_older_files_as_they_were(tmp_path):
    path = write_source(tmp_path / "ct.nii.gz")

    class Fails(Series):
        def __call__(self, *args):
            super().__call__(*args)
            raise OSError("No space left on device")

    SaveSyntheticd(output_dir=tmp_path / "out", record=RECORD, dicom=Series(2))(item_of(path))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}
    with pytest.raises(OSError, match="No space"):
        SaveSyntheticd(output_dir=tmp_path / "out", record=RECORD, dicom=Fails(4))(item_of(path))
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize("moment", range(5))
def test_killed_at_any_rename_the_dicom_series_is_an_old_or_a_new_one_and_the_next_run_mends_it(
    tmp_path, monkeypatch, moment
):
    path = write_source(tmp_path / "ct.nii.gz")
    item = {"image": str(path), "case": "case"}
    SaveSyntheticd(output_dir=tmp_path / "out", record=RECORD, dicom=Series(4))(item_of(path))
    saver = SaveSyntheticd(output_dir=tmp_path / "out", record={**RECORD, "seed": 1}, dicom=Series(3))
    replace, renames = saver_module.os.replace, []

    def killed(*names):
        if len(renames) == moment:
            raise KeyboardInterrupt
        renames.append(names)
        replace(*names)

    with monkeypatch.context() as patch:
        patch.setattr(saver_module.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            saver(item_of(path))
    folder = tmp_path / "out" / "case_t1_dicom"
    assert {len(list(folder.iterdir()))} <= {3, 4} if folder.exists() else moment == 3
    assert not saver.is_done(item)
    saver(item_of(path))
    assert saver.is_done(item)
    assert len(list(folder.iterdir())) == 3


def test_a_series_that_a_killed_run_left_without_its_json_is_not_kept_beside_a_new_image(tmp_path):
    path = write_source(tmp_path / "ct.nii.gz")
    SaveSyntheticd(output_dir=tmp_path / "out", record=RECORD, dicom=Series(4))(item_of(path))
    (tmp_path / "out" / "case_t1.json").unlink()  # as the run that replaces a case does first
    SaveSyntheticd(output_dir=tmp_path / "out", record={**RECORD, "seed": 1})(item_of(path))
    endings = (".json", ".nii.gz", ".png")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"case_t1{ending}" for ending in endings]


def test_a_source_that_vanished_is_not_done_and_no_error(tmp_path):
    path = write_source(tmp_path / "ct.nii.gz")
    saver = SaveSyntheticd(output_dir=tmp_path / "out", record=RECORD)
    saver(item_of(path))
    item = {"image": str(path), "case": "case"}
    assert saver.is_done(item)
    path.unlink()
    assert not saver.is_done(item)
    with pytest.raises(CaseError, match=r"ct\.nii\.gz cannot be read any more"):
        saver.source_recorder.record(str(path))


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM])
def test_on_a_file_system_without_renaming_the_case_is_saved_all_the_same(tmp_path, monkeypatch, number):
    def refused(source, target):
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    path = write_source(tmp_path / "ct.nii.gz")
    saver = SaveSyntheticd(output_dir=tmp_path / "out", record=RECORD, dicom=Series(2))
    monkeypatch.setattr(os, "replace", refused)
    for _ in range(2):  # the second replaces the first
        saver(item_of(path))
    assert saver.is_done({"image": str(path), "case": "case"})
    endings = ("_dicom", ".json", ".nii.gz", ".png")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"case_t1{ending}" for ending in sorted(endings)]


def test_a_full_disk_is_told_by_the_name_of_the_folder_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = write_source(tmp_path / "ct.nii.gz")
    monkeypatch.setattr(saver_module, "write_nifti", full)
    with pytest.raises(MachineError, match=r"out is full.*free space on it, or give another folder"):
        SaveSyntheticd(output_dir=tmp_path / "out")(item_of(path))
    assert list(tmp_path.glob("out/*")) == list(tmp_path.glob("out/.*")) == []


def test_is_a_save_imaged():
    """MONAI Label takes that class out, and nothing else of the postprocessing."""
    assert isinstance(SaveSyntheticd(), SaveImaged)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5])
def test_the_picture_is_cut_at_the_median_of_the_foreground(share):
    volume = (np.random.default_rng(0).random((9, 14, 11)) < share).astype(np.float32)
    inside = np.argwhere(volume)
    expected = np.median(inside, axis=0) if len(inside) else np.array(volume.shape) // 2
    assert _centre(volume) == [int(c) for c in expected]


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR", "SLA"])
def test_the_picture_is_radiological_and_true_to_scale(axcodes):
    """A ball on the patient's left, in front and above shows where radiologists look for it, and is round."""
    spacing, shape, middle = np.array([3.0, 3.0, 6.0]), np.array([60, 80, 26]), np.array([-40.0, 60.0, 40.0])
    ras = nib.affines.from_matvec(np.diag(spacing), -spacing * (shape - 1) / 2)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    ball = (np.linalg.norm(nib.affines.apply_affine(ras, grid) - middle, axis=-1) < 22).astype(np.float32)
    turn = nib.orientations.ornt_transform(nib.io_orientation(ras), nib.orientations.axcodes2ornt(axcodes))
    affine = ras @ nib.orientations.inv_ornt_aff(turn, ball.shape)
    ball = torch.as_tensor(nib.apply_orientation(ball, turn).copy())

    shown, empty = (
        np.asarray(three_planes(80 * v, v, affine, ("source", "synthetic"), (0, 80), panel_width=240)).astype(float)
        for v in (ball, torch.zeros_like(ball))
    )
    assert shown.shape == (24 + 240 + 156 + 156, 480)  # a pixel is a millimetre
    np.testing.assert_array_equal(shown[24:, :240], shown[24:, 240:])
    spot = np.abs(shown - empty)[:, :240] > 128
    # centre of the ball in each panel, right and down from the panel's middle, mm
    expected = {(24, 264): (40, -60), (264, 420): (40, -40), (420, 576): (-60, -40)}
    for (top, bottom), (right, down) in expected.items():
        rows, columns = np.nonzero(spot[top:bottom])
        assert columns.mean() - 119.5 == pytest.approx(right, abs=3)
        assert rows.mean() - (bottom - top - 1) / 2 == pytest.approx(down, abs=3)
        assert np.ptp(rows) == pytest.approx(44, abs=7)
        assert np.ptp(columns) == pytest.approx(44, abs=7)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_saved(tmp_path, value):
    item = item_of(write_source(tmp_path / "ct.nii.gz"))
    item["pred"][0, 3, 4, 5] = value
    with pytest.raises(CaseError, match=r"^The synthetic image of ct\.nii\.gz has voxels that are NaN or infinite"):
        SaveSyntheticd(output_dir=tmp_path / "out")(item)
    assert not list(tmp_path.glob("out/*"))
