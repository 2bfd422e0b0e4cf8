"""The application of MONAI Deploy as a plain Python program: the main job's files, or clear words why there are none.

In the environment of docs/deploy.md: python -m pytest -n 0 -m deploy tests/deploy
"""

import json
import os
import re
import subprocess
import sys

import pydicom
import pytest
import torch
import yaml

from scripts.networks import BridgeUNet
from tests.killing import contents
from tests.phantoms import TINY_NETWORK
from tests.test_inference_dicom import SECRETS, STUDY, head_series

NO_CT = "has no axial CT series to translate (MR of 31 slices: modality MR)"


def test_its_versions_are_those_of_the_bundle(bundle_root):
    manifest = yaml.safe_load((bundle_root / "deploy" / "app.yaml").read_text())
    metadata = json.loads((bundle_root / "configs" / "metadata.json").read_text())
    assert manifest["application"]["version"] == metadata["version"]
    ours, theirs = (
        dict(re.findall(r"^([\w-]+)==([\w.]+)", (bundle_root / name).read_text(), re.MULTILINE))
        for name in ("requirements.txt", "deploy/requirements.txt")
    )
    shared = ours.keys() & theirs.keys()
    assert {"torch", "monai", "numpy", "pydicom"} <= shared
    assert {name: theirs[name] for name in shared} == {name: ours[name] for name in shared}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """An overlay of a tiny network with drawn weights."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    network = BridgeUNet(**TINY_NETWORK)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.03)
    torch.save(network.state_dict(), folder / "tiny.pt")
    settings = {
        "network_def": {"_target_": "scripts.networks.BridgeUNet", **TINY_NETWORK},
        "weights": str(folder / "tiny.pt"),
        "style_key": "none",
        **{"spacing": [6.0, 6.0, 6.0], "size_multiple": 4, "num_inference_steps": 2},
        **{"dtype": "float32", "device": "cpu"},
    }
    (folder / "tiny.json").write_text(json.dumps(settings))
    return folder / "tiny.json"


@pytest.fixture
def run(bundle_root, tiny, tmp_path):
    """Run a program of this Python in a folder of its own; gives status, and the lines of its output and errors."""
    config = tmp_path / "app.yaml"
    config.write_text(yaml.safe_dump({"main_job": {"overlays": [str(tiny.with_suffix(""))]}}))

    def function(*words, **environment):
        command = [sys.executable, *words]
        variables = {**os.environ, "HOLOSCAN_CONFIG_PATH": str(config), **environment}
        ended = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=600)
        return ended.returncode, ended.stdout.splitlines(), ended.stderr.splitlines()

    return function


@pytest.fixture
def app(run, bundle_root):
    """Run the application."""
    return lambda *words, **environment: run(str(bundle_root / "deploy" / "app.py"), *words, **environment)


@pytest.mark.deploy
def test_a_study_becomes_what_the_main_job_makes_of_it(app, run, bundle_root, tiny, tmp_path):
    """File by file, bit by bit; no name gets into the log."""
    scans = tmp_path / "Folder_of_Petronella"
    uid = head_series(scans)
    status, said, errors = app("-i", str(scans), "-o", str(tmp_path / "out"))
    assert status == 0, errors
    files = [str(bundle_root / "configs" / name) for name in ("inference.json", str(tiny), "dicom.json")]
    options = ("--config_file", str(files), "--dataset_dir", str(scans), "--output_dir", str(tmp_path / "main"))
    assert run("-m", "monai.bundle", "run", *options, PYTHONPATH=str(bundle_root))[0] == 0
    made = contents(tmp_path / "out")
    assert len([name for name in made if name.endswith(".dcm")]) == 31
    assert made == contents(tmp_path / "main")
    log = "\n".join([*said, *errors]).lower()
    assert uid in log
    assert [secret for secret in SECRETS if secret in log] == []


@pytest.mark.deploy
def test_the_series_lies_on_the_ct_and_says_what_it_is(app, tmp_path):
    """As in the container, where folders are given as variables."""
    head_series(tmp_path / "in")
    out = tmp_path / "out"
    status, *_ = app(HOLOSCAN_INPUT_PATH=str(tmp_path / "in"), HOLOSCAN_OUTPUT_PATH=str(out))
    assert status == 0
    source, made = (
        {tuple(ds.ImagePositionPatient): ds for ds in map(pydicom.dcmread, folder.iterdir())}
        for folder in (tmp_path / "in", next(out.glob("*_dicom")))
    )
    assert source.keys() == made.keys()
    for place, ct in source.items():
        mr = made[place]
        for name in ("ImageOrientationPatient", "PixelSpacing", "Rows", "StudyInstanceUID", "FrameOfReferenceUID"):
            assert mr[name].value == ct[name].value
        assert (mr.Modality, ct.Modality) == ("MR", "CT")
        assert "not for diagnostic use" in mr.SeriesDescription
    assert max(ds.pixel_array.max() for ds in made.values()) > 1000


@pytest.mark.deploy
def test_a_study_without_ct_is_one_sentence_and_the_others_are_made(app, bundle_root, tmp_path):
    head_series(tmp_path / "in" / "mr", modality="MR")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "brain_ct_to_mri").symlink_to(bundle_root)
    words = ("-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-m", str(tmp_path / "models"))
    status, _, errors = app(*words)
    assert status == 1
    assert NO_CT in errors[-1]
    assert "Traceback" not in "\n".join(errors)
    assert list((tmp_path / "out").iterdir()) == []
    head_series(tmp_path / "in" / "ct", study=f"{STUDY}.2")
    status, said, errors = app(*words, "-l", "ERROR")
    assert status == 1
    assert [line for line in said if "INFO" in line] == []
    assert [NO_CT in line for line in errors].count(True) == 1
    assert len(list((tmp_path / "out").glob("*_dicom/*.dcm"))) == 31


@pytest.mark.deploy
def test_what_cannot_begin_says_why(app, tmp_path):
    (tmp_path / "in").mkdir()
    status, _, errors = app("-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"))
    assert (status, errors[-1].partition(";")[0]) == (1, "The folder of scans holds no volume")
    status, _, errors = app("-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-m", str(tmp_path / "in"))
    assert status == 1
    assert errors[-1] == (
        f"There is no bundle in {tmp_path / 'in'} (configs/inference.json); give the folder that holds it with -m."
    )
