"""A real MONAI Label server on loopback, with the stock sample app and three bundles, and what the main job makes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from scripts.conditioning.style_key import compute_style_key, save_style_keys
from scripts.networks import BridgeUNet
from tests.label.served import GRIDS, Server
from tests.phantoms import TINY_NETWORK, centred_affine, write_head_ct


@pytest.fixture(scope="session")
def studies(tmp_path_factory, bundle_root) -> Path:
    """A folder of NIfTI: heads on unlike grids, the sample, a stripped FLAIR, and what cannot be translated."""
    folder = tmp_path_factory.mktemp("studies")
    for name, (axes, shape) in GRIDS.items():
        write_head_ct(folder / f"{name}.nii.gz", axes, shape)
    shutil.copy(bundle_root / "docs" / "sample" / "head_ct.nii.gz", folder)
    head = nib.load(folder / "ras.nii.gz")
    (folder / "text.nii.gz").write_text("no image\n")
    whole = (folder / "ras.nii.gz").read_bytes()
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    nib.save(nib.Nifti1Image(np.stack([head.get_fdata()] * 2, -1), head.affine), folder / "series.nii.gz")
    mri = np.where(head.get_fdata() > -500, 3000 + 40 * head.get_fdata(), 0).astype(np.float32)
    nib.save(nib.Nifti1Image(mri, head.affine), folder / "mri.nii.gz")
    _write_stripped_flair(folder / "flair.nii.gz")
    return folder


def _write_stripped_flair(path: Path) -> None:
    """A brain alone, brighter on its left."""
    affine = centred_affine(np.diag([-4.0, 4.0, 4.0]), (44, 52, 40))
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in (44, 52, 40)], indexing="ij"), axis=-1)
    x, y, z = np.moveaxis(nib.affines.apply_affine(affine, voxels), -1, 0)
    brain = (x / 65) ** 2 + (y / 80) ** 2 + (z / 60) ** 2 < 1
    nib.save(nib.Nifti1Image(np.where(brain, 400 - 2 * x + 50 * np.sin(y / 9), 0).astype(np.float32), affine), path)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory, bundle_root) -> dict[str, Path]:
    """The bundle, the one of FLAIR to T1 that docs/monai_label.md makes of it, and one for sparse scans, too, with a
    tiny random network."""
    folder = tmp_path_factory.mktemp("bundles")
    flair = _copied(bundle_root, folder / "brain_flair_to_t1")
    shutil.copy(flair / "models" / "flair_to_t1.pt", flair / "models" / "model.pt")
    configs = [flair / "configs" / name for name in ("inference.json", "flair_to_t1.json")]
    merged = ConfigParser.load_config_files([str(path) for path in configs])
    ConfigParser.export_config_file(merged, str(configs[0]), indent=4)

    tiny = _copied(bundle_root, folder / "tiny_ct_to_mri")
    torch.manual_seed(0)
    network = BridgeUNet(**TINY_NETWORK)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.03)
    torch.save(network.state_dict(), tiny / "models" / "model.pt")
    keys = {name: compute_style_key(np.random.default_rng(i).beta(2 + i, 2, 5000)) for i, name in enumerate("pq")}
    save_style_keys({"average": keys["p"], "other": keys["q"]}, tiny / "models" / "style_keys.json")
    names = [str(tiny / "configs" / name) for name in ("inference.json", "sparse.json")]
    config = ConfigParser.load_config_files(names)
    config |= {"network_def": {"_target_": "scripts.networks.BridgeUNet", **TINY_NETWORK}, "spacing": [6.0, 6.0, 6.0]}
    (tiny / "configs" / "inference.json").write_text(json.dumps({**config, "size_multiple": 4}))
    return {"brain_ct_to_mri": bundle_root, flair.name: flair, tiny.name: tiny}


def _copied(bundle: Path, folder: Path) -> Path:
    for part in ("configs", "scripts", "models", "docs/sample"):
        shutil.copytree(bundle / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory, studies, bundles) -> Iterator[Server]:
    """The server as docs/monai_label.md starts it; it must be up within two minutes."""
    if importlib.util.find_spec("monailabel") is None:
        pytest.fail("MONAI Label is not installed here; see requirements-label.txt")
    folder = tmp_path_factory.mktemp("server")
    app, temporary = folder / "app", folder / "tmp"
    shutil.copytree(Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle", app)
    (app / "model").mkdir(exist_ok=True)
    for name, bundle in bundles.items():
        (app / "model" / name).symlink_to(bundle)
    temporary.mkdir()
    port = _free_port()
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", app, "--studies", studies]
    command += ["--conf", "models", ",".join(bundles), "--conf", "zoo_source", "local", "-i", "127.0.0.1", "-p", port]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    environment.pop("PYTHONPATH", None)
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [str(word) for word in command], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    served = Server(f"http://127.0.0.1:{port}", app, temporary)
    try:
        _wait_until_up(served, process, folder / "log")
        yield served
    finally:
        process.terminate()
        process.wait(30)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait_until_up(server: Server, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            server.info()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"The server did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.3)


@pytest.fixture(scope="session")
def main_job(tmp_path_factory) -> Callable[..., Path]:
    """Run `python -m monai.bundle run` of a bundle on a file or folder, from elsewhere; gives the folder of outputs."""

    def function(bundle: Path, dataset_dir: Path, *options: str, configs: tuple[str, ...] = ()) -> Path:
        folder = tmp_path_factory.mktemp("main_job")
        files = [str(bundle / "configs" / name) for name in ("inference.json", *configs)]
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files)]
        command += ["--dataset_dir", str(dataset_dir), "--output_dir", str(folder / "out"), *options]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        return folder / "out"

    return function
