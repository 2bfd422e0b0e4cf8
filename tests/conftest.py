"""Fixtures that every room's tests share."""

import functools
import os
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from monai.bundle import run

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10; pytest needs tomli there
    import tomli as tomllib

import scripts  # noqa: F401  before brain_ct_to_mri, which would import another copy for itself


def pytest_configure() -> None:
    """Tests that run side by side share the cores, and so do the commands that they start."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        threads = max(1, (os.cpu_count() or 1) // workers)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        torch.set_num_threads(threads)


LONGEST_FILES = (  # of a minute or so each: begun first, so that no worker is left with one at the end
    "dicom_node/test_node.py",
    "test_zoo.py",
    "test_train.py",
    "test_inference.py",
    "test_main.py",
    "test_extending.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST_FILES))


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory):
    """The user's cache folder, for the commands that tests start as well, is one of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder := tmp_path_factory.mktemp("cache")))
        yield folder


@pytest.fixture(scope="session")
def bundle_root() -> Path:
    """The repository's root, which is the bundle's."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def pyproject(bundle_root: Path) -> dict:
    """pyproject.toml, read."""
    return tomllib.loads((bundle_root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def shared_data(bundle_root: Path) -> Path:
    """Folder of real volumes beside the checkout; tests that use it are skipped where it is absent."""
    folder = bundle_root.parent / "shared" / "data"
    if not (folder / "subjects.json").exists():
        pytest.skip("the volumes of ../shared/data are not here")
    return folder


@pytest.fixture
def echo_settings(bundle_root: Path, tmp_path: Path) -> dict:
    """Overrides of inference.json for a network that returns the source."""
    torch.save({}, tmp_path / "echo.pt")
    return {
        "network_def": {"_target_": "tests.phantoms.EchoNetwork", "slab_size": 3},
        "weights": str(tmp_path / "echo.pt"),
        "style_keys_file": str(bundle_root / "models" / "style_keys.json"),
        "spacing": [4.0, 4.0, 4.0],
        "dtype": "float32",
    }


@pytest.fixture
def translate_echo(bundle_root: Path, echo_settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run config files in this process with that network; gives the program's last words, None where it ended well."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def function(configs, dataset_dir, output_dir=tmp_path / "out", **overrides):
        files = [str(bundle_root / "configs" / name) for name in configs]
        folders = {"dataset_dir": str(dataset_dir), "output_dir": str(output_dir)}
        try:
            run(config_file=files, logging_file=False, **{**echo_settings, **folders, **overrides})
        except SystemExit as end:
            return end.code
        return None

    return function


@pytest.fixture(scope="session")
def dist(bundle_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `python -m scripts package` writes, of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "scripts", "package", "--output_dir", str(folder)]
    ended = subprocess.run(command, cwd=bundle_root, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="session")
def serve():
    """Serve a folder over http on a port of this machine; gives its address."""
    servers = []

    def function(folder: Path) -> str:
        handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}"

    yield function
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def python(tmp_path: Path):
    """Run Python in a folder that is not the bundle's, and that finds no package there by itself; gives its output."""
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def function(*arguments: str, folder: Path = tmp_path, **environment: str) -> str:
        command, variables = [sys.executable, *arguments], {**outside, **environment}
        ended = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    return function
