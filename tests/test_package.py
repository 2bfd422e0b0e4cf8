"""The package brain_ct_to_mri in a clone: what is typed becomes the main job, and arrays become images."""

import importlib
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import brain_ct_to_mri
from brain_ct_to_mri import api, cli, info, job
from scripts.errors import CaseError
from scripts.options import typed_options
from tests.phantoms import write_head_ct


@pytest.fixture
def typed(monkeypatch):
    """What reaches `python -m monai.bundle` of the words after `brain-ct-to-mri`: the config files, and the options."""

    def function(*words: str) -> tuple[list[str], dict[str, str | None]]:
        seen = []
        monkeypatch.setattr(sys, "argv", sys.argv)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr("runpy.run_module", lambda name, **_: seen.append((name, list(sys.argv))))
        cli.main(words)
        ((module, arguments),) = seen
        assert module == ("scripts" if arguments[1] == "cluster" else "monai.bundle")
        options = typed_options(["monai/bundle/__main__.py", *arguments[1:]])
        files = options.pop("config_file")
        return [name.rpartition("/")[2].split(".")[0] for name in files.strip("[]").split("', '")], options

    return function


def test_two_folders_are_enough(typed):
    assert typed("a b.nii", "out") == (["inference"], {"dataset_dir": "a b.nii", "output_dir": "out"})


def test_switches_are_config_files_in_the_order_that_they_need(typed):
    words = ("--dicom", "--config_file", "sparse", "in", "out", "--best", "--bids")
    assert typed(*words)[0] == ["inference", "best", "sparse", "bids", "dicom"]
    assert typed("in", "out", "--task", "flair_to_t1", "--fast")[0] == ["inference", "flair_to_t1", "fast"]


@pytest.mark.parametrize(
    "words",
    [
        ("in", "out", "--detail", "0", "--device=cpu", "--made_up", "[0, 80]", "--overwrite"),
        ("--detail", "0", "in", "--device", "cpu", "--made_up=[0, 80]", "out", "--overwrite"),
    ],
)
def test_other_options_pass_through_wherever_they_stand(typed, words):
    folders = {"dataset_dir": "in", "output_dir": "out"}
    assert typed(*words)[1] == {**folders, "detail": "0", "device": "cpu", "made_up": "[0, 80]", "overwrite": None}


def test_a_cluster_is_given_the_main_job_as_it_was_typed(typed):
    files, options = typed("in", "out", "--cluster", "2", "--workers", "4", "--fast")
    assert files == ["inference", "fast"]
    assert options == {"cluster": "2", "dataset_dir": "in", "output_dir": "out", "workers": "4"}


def test_a_command_line_that_cannot_be_understood_ends_with_2(capsys):
    for words in ([], ["in"], ["in", "out", "--fast", "--best"], ["in", "out", "--task", "tea"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(words)
    assert "invalid choice: 'tea'" in capsys.readouterr().err


def test_a_report_follows_though_cases_failed_and_the_status_stays(monkeypatch, tmp_path):
    def run(name, **_):
        sys.exit("1 of 2 cases failed; failures.json tells why.")

    reports = []
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr("runpy.run_module", run)
    monkeypatch.setattr("scripts.report.report", lambda *folders: reports.append(folders))
    with pytest.raises(SystemExit, match="1 of 2 cases failed"):
        cli.main(["in", str(tmp_path), "--report"])
    assert reports == [(str(tmp_path), "in")]


def test_help_tells_every_documented_option_and_needs_no_library():
    code = (
        "import sys\nfrom brain_ct_to_mri import cli\ntry:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print({'torch', 'monai', 'numpy'} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=info.bundle_root()).stdout
    assert told.splitlines()[-1] == "set()"
    documented = [name for name, _, _ in cli._documented()]
    assert len(documented) > 25
    assert all(f"{name} [VALUE]" in told for name in documented)
    # but for those of an overlay, each is a setting of the main job
    assert {name[2:] for name in documented} - info.settings_of("ct_to_t1").keys() == {"output_spacing"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_options_and_choices(capsys, shell):
    pytest.importorskip("shtab")
    cli.main(["completion", shell])
    told = capsys.readouterr().out
    for word in ("style_key", "report", "flair_to_t1"):
        assert word in told


def test_info_tells_the_weights_and_where_the_bundle_is(capsys):
    cli.main(["info", "--path"])
    assert capsys.readouterr().out.strip() == str(info.bundle_root())
    told = info.info()
    for task in told["tasks"].values():
        assert len(told["sha256"][task["weights"]]) == 64
        assert all((info.bundle_root() / file).is_file() for file in task["config_files"])
    assert (told["tasks"]["ct_to_t1"]["sources"], told["tasks"]["many_to_one"]["targets"][0]) == (["CT"], "T1")
    cli.main(["info"])
    assert told["sha256"]["models/model.pt"] in capsys.readouterr().out


# From Python

COARSE = {"spacing": [8.0, 8.0, 8.0], "lesion_watch": False}


@pytest.fixture
def echo(echo_settings):
    """Options of a network that returns the source."""
    return {**echo_settings, **COARSE, "device": "cpu"}


@pytest.mark.slow
def test_an_image_becomes_what_the_main_job_writes(tmp_path, translate_echo, echo):
    oblique = nib.eulerangles.euler2mat(0.1, -0.2, 0.3) @ np.diag([-6.0, 6.5, 6.0])[[0, 2, 1]]
    path = write_head_ct(tmp_path / "scans" / "anna.nii.gz", oblique)
    assert translate_echo(["inference.json", "fast.json"], path, **COARSE) is None
    wanted = nib.load(tmp_path / "out" / "anna_t1.nii.gz")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    source = nib.load(path)

    made = brain_ct_to_mri.translate(source, fast=True, **echo)
    array = brain_ct_to_mri.translate(np.asarray(source.dataobj), source.affine, fast=True, **echo)

    for image in (made, array):
        np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(wanted.dataobj))
    assert made.get_fdata().max() > 0.1
    assert made.header == wanted.header
    np.testing.assert_allclose(array.affine, source.affine, atol=1e-5)
    (kept,) = api._kept.values()
    assert list(Path(kept.folder.name).rglob("*")) == []
    record = made.extra["record"]
    assert (record["detail"], record["source"]) == (0.0, {"file": "anna.nii.gz"})
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_what_is_wrong_is_one_sentence(tmp_path, echo):
    path = write_head_ct(tmp_path / "bert.nii.gz")
    image = nib.load(path)
    with pytest.raises(CaseError, match=r"^bert.nii.gz is empty"):
        brain_ct_to_mri.translate(named(image, 0.0), **echo)
    with pytest.raises(CaseError, match="This task translates one image; give it alone"):
        brain_ct_to_mri.translate({"CT": image}, **echo)
    with pytest.raises(CaseError, match="There is no setting detale; did you mean detail"):
        brain_ct_to_mri.translate(image, **echo, detale=0)
    with pytest.raises(CaseError, match="give its affine"):
        brain_ct_to_mri.translate(image.get_fdata(), **echo)
    with pytest.raises(brain_ct_to_mri.CaseError, match="task is tea"):
        brain_ct_to_mri.translate(image, task="tea")


def test_settings_of_the_folders_are_refused(tmp_path, echo):
    image = nib.load(write_head_ct(tmp_path / "bert.nii.gz", shape=(8, 8, 8)))
    for name in ("dataset_dir", "output_dir", "cases"):
        with pytest.raises(CaseError, match=f"^{name} is no option here"):
            brain_ct_to_mri.translate(image, **echo, **{name: str(tmp_path)})


def test_an_affine_that_was_changed_after_loading_counts(tmp_path):
    image = nib.load(write_head_ct(tmp_path / "bert.nii.gz", shape=(8, 8, 8)))
    image.affine[0, 3] += 20
    nib.save(image, tmp_path / "saved.nii.gz")
    wanted = nib.load(tmp_path / "saved.nii.gz")
    made = api._as_float(image)
    np.testing.assert_array_equal(made.affine, wanted.affine)
    assert (made.header["sform_code"], made.header["qform_code"]) == tuple(
        wanted.header[code] for code in ("sform_code", "qform_code")
    )


@pytest.fixture
def of_many(tmp_path):
    """The main job of several contrasts in a call, with a network that returns nothing of use."""
    torch.save({}, tmp_path / "none.pt")
    return {
        "network_def": {"_target_": "tests.phantoms.EchoNetwork", "slab_size": 3},
        "weights": str(tmp_path / "none.pt"),
        **{"task": "many_to_one", "spacing": [8.0, 8.0, 8.0], "device": "cpu", "target_contrast": "t1w"},
    }


def test_several_contrasts_are_taken_as_the_main_job_takes_them(tmp_path, of_many):
    image = nib.load(write_head_ct(tmp_path / "bert.nii.gz", shape=(8, 8, 8)))
    with pytest.raises(CaseError, match=r"^image has a T1 already, bert\.nii\.gz; .* use_contrasts T2"):
        brain_ct_to_mri.translate({"T1": image, "T2": image}, **of_many)
    with pytest.raises(CaseError, match=r"^Two of the images are T2, one as t2w"):
        brain_ct_to_mri.translate({"T2": image, "t2w": image}, **of_many)
    with pytest.raises(CaseError, match=r"^image has none of FLAIR: it has T1, T2"):
        brain_ct_to_mri.translate({"T1": image, "T2": image}, **of_many, use_contrasts="FLAIR")
    with pytest.raises(CaseError, match="There is no contrast 'tea'"):
        brain_ct_to_mri.translate({"T2": image}, **{**of_many, "target_contrast": "tea"})


def test_weights_that_were_written_anew_are_loaded_anew(tmp_path, echo):
    image = nib.load(write_head_ct(tmp_path / "bert.nii.gz", shape=(8, 8, 8)))
    for state in ({}, {"wrong": torch.zeros(1)}):
        torch.save(state, echo["weights"])
        with pytest.raises(CaseError, match="do not fit the network" if state else "bert"):
            brain_ct_to_mri.translate(named(image, 0.0), **echo)


def named(image, factor):
    """The image with its values times a factor, under its own name."""
    made = nib.Nifti1Image(image.get_fdata() * factor, image.affine)
    made.set_filename(image.get_filename())
    return made


def test_another_package_of_the_same_name_is_left_alone(tmp_path, monkeypatch):
    ours = sys.modules["scripts"]
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "__init__.py").write_text("WHOSE = 'the bundle'")
    (tmp_path / "scripts" / "late.py").write_text("from . import WHOSE")
    monkeypatch.setattr(job, "bundle_root", lambda: tmp_path)
    monkeypatch.setattr(job, "_modules", {})
    path = list(sys.path)
    for _ in range(2):
        with job.bundle_modules():
            assert importlib.import_module("scripts.late").WHOSE == "the bundle"
        assert sys.modules["scripts"] is ours
        assert "scripts.late" not in sys.modules
    assert sys.path == path
