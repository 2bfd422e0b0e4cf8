"""The zip for the Model Zoo: what gets in, what never does, and the bundle as someone downloads it."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import CaseError
from scripts.packaging import NAME, ZOO_URL, _belongs, build_package

VERSION = "1.2.3"
FILES = {
    "LICENSE": "Apache",
    "configs/metadata.json": json.dumps({"version": VERSION}),
    "configs/inference.json": "{}",
    "docs/README.md": "# Title",
    "docs/sample/head.nii.gz": "voxels",
    "models/model.pt": "weights",
    "scripts/__init__.py": "",
    "scripts/report/page.html": "<p>",
    "requirements.txt": "monai",
    # none of these is the bundle's
    "requirements-dev.txt": "pytest",
    "pyproject.toml": "",
    ".gitignore": "output/\n",
    ".ci/run": "",
    "tests/test_a.py": "",
    "scripts/.hidden.py": "",
}
PACKED = {
    *("LICENSE", "metadata.json", "configs/metadata.json", "configs/inference.json", "docs/README.md"),
    *("docs/sample/head.nii.gz", "models/model.pt", "scripts/__init__.py", "scripts/report/page.html"),
    "requirements.txt",
}


def git(root: Path, *arguments: str) -> None:
    person = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *person, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A small bundle with a link, without git."""
    root = tmp_path / "checkout"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "metadata.json").symlink_to("configs/metadata.json")
    return root


@pytest.fixture
def checkout(bundle: Path) -> Path:
    git(bundle, "init")
    git(bundle, "add", "--all")
    git(bundle, "commit", "-m", "all")
    return bundle


def build(root: Path, folder: str = "dist") -> tuple[zipfile.ZipFile, list[str]]:
    remarks = build_package(root, root / folder, ZOO_URL)
    return zipfile.ZipFile(root / folder / f"{NAME}_v{VERSION}.zip"), remarks


def names(archive: zipfile.ZipFile) -> set[str]:
    assert all(name.startswith(f"{NAME}/") for name in archive.namelist())
    return {name.removeprefix(f"{NAME}/") for name in archive.namelist()}


@pytest.mark.parametrize("kind", ["bundle", "checkout"])
def test_one_folder_holds_what_users_need_and_links_are_files(request, kind):
    root = request.getfixturevalue(kind)
    archive, _ = build(root)
    assert names(archive) == PACKED
    assert archive.read(f"{NAME}/metadata.json") == (root / "configs" / "metadata.json").read_bytes()
    for info in archive.infolist():
        assert info.external_attr >> 16 == 0o100644
        assert not info.extra
    assert archive.comment == b""


def test_what_git_does_not_know_stays_out_and_is_told(checkout):
    for name in ("docs/patient.nii.gz", "configs/new.json", "output/patient_t1.nii.gz", "models/model.onnx"):
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text("new")
    (checkout / "docs" / "README.md").write_text("# Other")
    (checkout / "LICENSE").unlink()
    archive, remarks = build(checkout)
    assert names(archive) == PACKED - {"LICENSE"}
    assert remarks[0].endswith("packed as it lies here: LICENSE, docs/README.md")
    assert remarks[1].endswith("git does not know it: configs/new.json, docs/patient.nii.gz")


def test_without_git_outputs_and_caches_stay_out(bundle):
    for name in (
        "output/a_t1.nii.gz",
        "runs/a.pt",
        "models/model.ts",
        "scripts/__pycache__/a.cpython-311.pyc",
        "a.nii",
    ):
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text("new")
    archive, remarks = build(bundle)
    assert names(archive) == PACKED
    assert remarks[0].startswith("git knows no file of this folder")


def test_the_same_files_give_the_same_bytes(checkout):
    first = build(checkout)[1]
    for path in checkout.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    (checkout / "LICENSE").chmod(0o755)
    second = build(checkout, "again")[1]
    assert (checkout / "dist" / f"{NAME}_v{VERSION}.zip").read_bytes() == (
        checkout / "again" / f"{NAME}_v{VERSION}.zip"
    ).read_bytes()
    assert first[-1].split(": ")[1] == second[-1].split(": ")[1]


def test_the_model_info_has_its_line_and_keeps_the_others(checkout):
    other = {"spleen_v0.1.0": {"checksum": "a", "source": "b"}, f"{NAME}_v{VERSION}": {"checksum": "", "source": ""}}
    (checkout / "dist").mkdir()
    (checkout / "dist" / "model_info.json").write_text(json.dumps(other))
    build_package(checkout, checkout / "dist", "http://127.0.0.1:80/")
    file = f"{NAME}_v{VERSION}.zip"
    checksum = hashlib.sha1((checkout / "dist" / file).read_bytes()).hexdigest()
    assert json.loads((checkout / "dist" / "model_info.json").read_text()) == {
        "spleen_v0.1.0": other["spleen_v0.1.0"],
        f"{NAME}_v{VERSION}": {"checksum": checksum, "source": f"http://127.0.0.1:80/{file}"},
    }
    (checkout / "dist" / "model_info.json").write_text("[]")
    with pytest.raises(CaseError, match="mend or remove it"):
        build(checkout)


def large_files(bundle: Path, **entry: str) -> None:
    (bundle / "large_files.json").write_text(json.dumps({"large_files": [{"path": "models/big.pt", **entry}]}))


def test_large_files_are_fetched_compared_and_their_list_removed(bundle, serve):
    content = os.urandom(26 * 1000**2)
    (bundle / "stored.bin").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    for url in ((bundle / "stored.bin").as_uri(), f"{serve(bundle)}/stored.bin"):
        large_files(bundle, url=url, hash_val=digest, hash_type="sha256")
        archive, _ = build(bundle)
        assert names(archive) == PACKED | {"models/big.pt"}
        assert archive.read(f"{NAME}/models/big.pt") == content


def test_the_zoo_s_yaml_list_works_too(bundle):
    (bundle / "stored.bin").write_bytes(b"big")
    (bundle / "large_files.yml").write_text(
        f'large_files:\n  - path: "models/big.pt"\n    url: {(bundle / "stored.bin").as_uri()}\n'
        '    hash_val: ""\n    hash_type: ""\n'
    )
    assert names(build(bundle)[0]) == PACKED | {"models/big.pt"}


def test_a_large_file_of_another_checksum_or_place_is_refused(bundle):
    (bundle / "stored.bin").write_bytes(b"other")
    url = (bundle / "stored.bin").as_uri()
    large_files(bundle, url=url, hash_val="0" * 40, hash_type="sha1")
    with pytest.raises(CaseError, match=r"large_files\.json names cannot be had"):
        build(bundle)
    large_files(bundle, url=url, path="../out.pt")
    with pytest.raises(CaseError, match="path traversal"):
        build(bundle)
    large_files(bundle, url=f"{url}.not")
    with pytest.raises(CaseError, match="cannot be had"):
        build(bundle)
    assert not (bundle / "dist").exists()


def test_a_file_above_25_mb_is_refused(bundle):
    with open(bundle / "models" / "model.pt", "wb") as file:
        file.truncate(25 * 1000**2)
    build(bundle)
    with open(bundle / "models" / "model.pt", "wb") as file:
        file.truncate(25 * 1000**2 + 1)
    with pytest.raises(CaseError, match=r"^models/model.pt is larger than 25 MB.*large_files\.yml"):
        build(bundle)


def test_paths_of_this_machine_and_links_out_of_the_bundle_are_refused(bundle, tmp_path):
    (bundle / "docs" / "README.md").write_text(f"see {bundle}/docs")
    with pytest.raises(CaseError, match=r"^docs/README.md holds .* a path of this machine"):
        build(bundle)
    (bundle / "docs" / "README.md").unlink()
    (tmp_path / "outside.md").write_text("secret")
    (bundle / "docs" / "README.md").symlink_to(tmp_path / "outside.md")
    with pytest.raises(CaseError, match="link to a file outside"):
        build(bundle)
    (tmp_path / "outside.md").unlink()
    with pytest.raises(CaseError, match="link to no file"):
        build(bundle)


def test_a_version_that_is_none_is_refused(bundle):
    (bundle / "configs" / "metadata.json").write_text(json.dumps({"version": "1.2"}))
    with pytest.raises(CaseError, match=r"write it as X\.Y\.Z"):
        build(bundle)


# The bundle itself


@pytest.fixture(scope="module")
def bundles(bundle_root, dist, serve, tmp_path_factory) -> Path:
    """A folder with the bundle as someone has it who downloaded it."""
    version = json.loads((bundle_root / "configs" / "metadata.json").read_text())["version"]
    url = f"{serve(dist)}/{NAME}_v{version}.zip"
    folder = tmp_path_factory.mktemp("bundles")
    options = ("--name", NAME, "--version", version, "--source", "github", "--url", url, "--bundle_dir", str(folder))
    command = [sys.executable, "-m", "monai.bundle", "download", *options]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def test_every_tracked_file_is_packed_but_those_for_development(bundle_root):
    if not (bundle_root / ".git").exists():
        pytest.skip("no git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=bundle_root, capture_output=True, text=True, check=True)
    left_out = {name.split("/")[0] for name in listed.stdout.splitlines() if not _belongs(name)}
    development = {".ci", ".gitattributes", ".gitignore", ".pre-commit-config.yaml", "setup.cfg", "tests"}
    package = {"brain_ct_to_mri", "pyproject.toml", "CITATION.cff"}
    others = {"requirements-dev.txt", "Dockerfile", ".dockerignore", "AGENTS.md", "deploy", "slicer"}
    assert left_out <= development | package | others


@pytest.mark.slow
def test_the_downloaded_bundle_runs_the_main_job_from_another_folder(bundles, python, tmp_path):
    downloaded = bundles / NAME
    python("-m", "monai.bundle", "run", "--config_file", f"{downloaded}/configs/inference.json", "--output_dir", "out")
    image = nib.load(tmp_path / "out" / "head_ct_t1.nii.gz")
    sample = nib.load(downloaded / "docs" / "sample" / "head_ct.nii.gz")
    assert image.shape == sample.shape
    np.testing.assert_allclose(image.affine, sample.affine)
    brain = image.get_fdata()[image.get_fdata() > 0]
    assert 0.4 < np.median(brain) < 0.9
    assert brain.max() <= 1
    record = json.loads((tmp_path / "out" / "head_ct_t1.json").read_text())
    weights = hashlib.sha256((downloaded / "models" / "model.pt").read_bytes()).hexdigest()
    version = json.loads((downloaded / "metadata.json").read_text())["version"]
    assert (record["weights_sha256"], record["bundle_version"]) == (weights, version)


def test_monai_loads_the_downloaded_network_with_its_weights(bundles, python):
    """As docs/README.md says: the bundle's folder is on PYTHONPATH."""
    code = f"""
import monai, torch
weights = torch.load("{bundles}/{NAME}/models/model.pt", weights_only=True)
for kind in ("inference", "train"):
    network = monai.bundle.load({NAME!r}, bundle_dir={str(bundles)!r}, workflow_type=kind, device="cpu")
    assert all(torch.equal(value, weights[name].to(value)) for name, value in network.state_dict().items())
    assert network(torch.zeros(1, 9, 16, 16)).shape == (1, 3, 16, 16)
print(type(network).__module__)
"""
    assert python("-c", code, PYTHONPATH=str(bundles / NAME)).split()[-1] == "scripts.networks.bridge_unet"
