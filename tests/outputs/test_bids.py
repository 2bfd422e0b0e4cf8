"""A BIDS derivative: names as BIDS wants them, one image a case, and what its own validator says."""

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import CaseError
from scripts.outputs.bids import _sidecar, derivative_name, write_derivative
from tests.phantoms import write_head_ct

COARSE = {"spacing": [8.0, 8.0, 8.0], "lesion_watch": False}


@pytest.mark.parametrize(
    ("case", "image", "named"),
    [
        ("sub-01_anat_sub-01_CT", "/d/sub-01/anat/sub-01_CT.nii.gz", "sub-01/anat/sub-01_space-CT_desc-synthetic_T1w"),
        (
            "x",
            "/d/sub-01_ses-b_acq-bone_run-2_CT.nii",
            "sub-01/ses-b/anat/sub-01_ses-b_acq-bone_run-2_space-CT_desc-synthetic_T1w",
        ),
        # what is made has no contrast agent
        ("x", "/d/sub-01_ce-iodine_CT.nii", "sub-01/anat/sub-01_space-CT_desc-synthetic_T1w"),
        # an entity that BIDS does not have for an image of the head is left out
        ("x", "/d/sub-01_foo-1_CT.nii", "sub-01/anat/sub-01_space-CT_desc-synthetic_T1w"),
        ("head_ct", "/d/head_ct.nii.gz", "sub-headct/anat/sub-headct_space-CT_desc-synthetic_T1w"),
        ("ct_123456789012", ["/d/1", "/d/2"], "sub-ct123456789012/anat/sub-ct123456789012_space-CT_desc-synthetic_T1w"),
        ("äß", "/d/äß.nii", "sub-unnamed/anat/sub-unnamed_space-CT_desc-synthetic_T1w"),
    ],
)
def test_the_name_has_the_source_s_entities_or_the_letters_of_the_case(case, image, named):
    assert derivative_name({"case": case, "image": image}, "T1", "CT") == Path(named)


def test_a_target_has_bids_own_suffix():
    item = {"case": "a", "image": "a.nii"}
    assert derivative_name(item, "T1ce", "T2").name == "sub-a_ce-gadolinium_space-T2_desc-synthetic_T1w"
    assert derivative_name(item, "FLAIR", "T1").name == "sub-a_space-T1_desc-synthetic_FLAIR"


@pytest.fixture
def made(tmp_path):
    """Results of a run, by CASE: what a saver knows of them."""

    def function(*cases: str, target: str = "T1") -> SimpleNamespace:
        record = {"bundle": "brain_ct_to_mri", "bundle_version": "1.2.3", "target_contrast": target}
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        for case in cases:
            write_head_ct(out / f"{case}_t1.nii.gz", shape=(6, 7, 8))
            (out / f"{case}_t1.json").write_text(json.dumps({**record, "source_contrast": "CT", "seed": 0}))
        return SimpleNamespace(
            record=record,
            output_dir=out,
            suffix="_t1",
            target_contrast=target,
            source_contrast="CT",
            is_done=lambda one: one["case"] in cases,
        )

    return function


def items(*cases: str, folder: str = "/d") -> list[dict[str, str]]:
    return [{"case": case, "image": f"{folder}/{case}.nii.gz"} for case in cases]


def images(saver: SimpleNamespace) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in saver.output_dir.glob("derivatives/**/*.nii.gz")}


def test_cases_that_are_done_are_there_and_what_is_made_alike_is_left(made):
    saver = made("a", "b")
    cases = [*items("a", "b", "not_yet"), {"case": "c", "image": "c", "failure": "no CT"}]
    write_derivative(cases, saver, "/d")
    first = images(saver)
    assert set(first) == {f"sub-{name}_space-CT_desc-synthetic_T1w.nii.gz" for name in "ab"}
    record = json.loads((saver.output_dir / "b_t1.json").read_text())
    (saver.output_dir / "b_t1.json").write_text(json.dumps({**record, "seed": 1}))
    write_derivative(cases, saver, "/d")
    changed = {name for name, when in images(saver).items() if when != first[name]}
    assert changed == {"sub-b_space-CT_desc-synthetic_T1w.nii.gz"}


def test_two_cases_of_one_name_are_told_and_the_others_written(made):
    saver = made("a_b", "ab", "c")
    with pytest.raises(CaseError, match="results of a_b and ab would have one name, so that the second was left out"):
        write_derivative(items("a_b", "ab", "c"), saver, "/d")
    assert len(images(saver)) == 2


def test_a_section_knows_the_names_of_the_others(made):
    with pytest.raises(CaseError, match="results of a_b and ab would have one name"):
        write_derivative(items("ab", "c"), saver := made("a_b", "ab", "c"), "/d", items("a_b", "ab", "c"))
    assert list(images(saver)) == ["sub-c_space-CT_desc-synthetic_T1w.nii.gz"]


def test_an_error_of_one_case_does_not_end_the_others_or_hide_failures(made, caplog):
    saver = made("a", "b")
    (saver.output_dir / "a_t1.json").write_text("{")
    write_derivative(items("a", "b"), saver, "/d", failed=True)
    assert list(images(saver)) == ["sub-b_space-CT_desc-synthetic_T1w.nii.gz"]
    assert "Unforeseen JSONDecodeError" in caplog.text
    with pytest.raises(CaseError, match="Unforeseen"):
        write_derivative(items("a", "b"), saver, "/d")


def test_the_pair_of_a_case_that_is_not_done_any_more_is_removed(made):
    saver = made("a", "b", "c")
    write_derivative(items("a", "b", "c"), saver, "/d")
    saver.is_done = lambda one: one["case"] == "c"
    write_derivative([{**items("a")[0], "failure": "no CT"}, *items("b", "c")], saver, "/d")
    left = [path.name for path in saver.output_dir.glob("derivatives/**/sub-*.*")]
    assert {name.split("_")[0] for name in left} == {"sub-c"}
    assert len(left) == 2


def test_the_sidecar_names_all_sources_and_no_patient():
    files = {name: f"/d/sub-1_{name}w.nii.gz" for name in ("T1", "T2", "PD")}
    item = {"case": "x", "image": files["T1"], **{f"contrast_{name}": file for name, file in files.items()}}
    dicom = {"file": "Anna", "series_uid": "1.2", "patient_name": "Anna", "patient_id": "7"}
    record = {"target_contrast": "FLAIR", "contrasts_used": ["T1", "PD"], "source": dicom, "sources": {"T1": dicom}}
    told = _sidecar(record, item, Path("/d"))
    assert told["Sources"] == ["bids:raw:sub-1_T1w.nii.gz", "bids:raw:sub-1_PDw.nii.gz"]
    assert told["SpatialReference"] == "bids:raw:sub-1_T1w.nii.gz"
    assert told["BrainCtToMri"]["source"] == told["BrainCtToMri"]["sources"]["T1"] == {"series_uid": "1.2"}


def test_bids_has_no_synthetic_ct(made):
    with pytest.raises(CaseError, match=r"no name for a synthetic CT; leave configs/bids\.json out"):
        write_derivative(items("a"), made("a", target="CT"), "/d")


@pytest.mark.slow
@pytest.mark.parametrize("is_bids", [True, False])
def test_its_own_validator_finds_no_error(made, tmp_path, is_bids):
    validator = shutil.which("bids-validator-deno") or shutil.which("bids-validator")
    if validator is None:
        pytest.skip("the BIDS validator (pip install bids-validator-deno) is not installed")
    if is_bids:
        (tmp_path / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.10.0"}')
    cases = ("sub-01_CT", "sub-02_ses-a_CT") if is_bids else ("head_ct",)
    saver = made(*cases)
    write_derivative(items(*cases, folder=str(tmp_path)), saver, tmp_path)
    folder = saver.output_dir / "derivatives" / "brain_ct_to_mri"
    ended = subprocess.run([validator, "--ignoreWarnings", str(folder)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.slow
def test_the_main_job_writes_it_beside_the_results(tmp_path, translate_echo):
    raw = tmp_path / "raw"
    write_head_ct(raw / "sub-01" / "anat" / "sub-01_CT.nii.gz")
    (raw / "dataset_description.json").write_text("{}")
    assert translate_echo(["inference.json", "bids.json"], raw, **COARSE) is None
    folder = tmp_path / "out" / "derivatives" / "brain_ct_to_mri"
    start = folder / "sub-01" / "anat" / "sub-01_space-CT_desc-synthetic_T1w"
    image, result = nib.load(f"{start}.nii.gz"), nib.load(tmp_path / "out" / "sub-01_anat_sub-01_CT_t1.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(result.dataobj))
    told = json.loads(Path(f"{start}.json").read_text())
    assert told["Sources"] == ["bids:raw:sub-01/anat/sub-01_CT.nii.gz"]
    assert told["BrainCtToMri"] == json.loads((tmp_path / "out" / "sub-01_anat_sub-01_CT_t1.json").read_text())
    description = json.loads((folder / "dataset_description.json").read_text())
    assert (folder / description["DatasetLinks"]["raw"]).resolve() == raw.resolve()
    assert description["GeneratedBy"][0]["Version"] == told["BrainCtToMri"]["bundle_version"]
