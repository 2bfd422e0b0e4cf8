"""metadata.json against its schema, the installed versions, the network and MONAI's own tools.

`meta_schema_20240725.json` beside this file is the schema that metadata.json names.
"""

import json
import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export, verify_metadata, verify_net_in_out

import brain_ct_to_mri

SCHEMA = Path(__file__).with_name("meta_schema_20240725.json")


@pytest.fixture(scope="module")
def files(bundle_root):
    configs = bundle_root / "configs"
    return {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.json")}


@pytest.fixture(scope="module")
def metadata(files):
    return json.loads(Path(files["meta_file"]).read_text())


def test_fits_the_schema(files, metadata, tmp_path):
    assert metadata["schema"].endswith(f"/{SCHEMA.name}")
    shutil.copy(SCHEMA, tmp_path / "schema.json")  # MONAI would download it otherwise
    verify_metadata(files["meta_file"], filepath=str(tmp_path / "schema.json"))


def test_lies_at_the_top_too(bundle_root, files):
    assert (bundle_root / "metadata.json").resolve() == Path(files["meta_file"]).resolve()


def test_version_is_the_latest_of_the_changelog_and_that_of_the_wheel(metadata, bundle_root, pyproject):
    numbers = {
        tuple(map(int, re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", version).groups())) for version in metadata["changelog"]
    }
    assert ".".join(map(str, max(numbers))) == metadata["version"]
    assert pyproject["project"]["dynamic"] == ["version"]
    source = pyproject["tool"]["hatch"]["version"]
    found = re.search(source["pattern"], (bundle_root / source["path"]).read_text(encoding="utf-8"))
    assert found["version"] == brain_ct_to_mri.__version__ == metadata["version"]


def test_wheel_and_sdist_have_every_list_of_requirements(bundle_root, pyproject):
    wanted = {path.name for path in bundle_root.glob("requirements*.txt")} - {"requirements-dev.txt"}
    targets = pyproject["tool"]["hatch"]["build"]["targets"]
    assert wanted <= set(targets["wheel"]["force-include"])
    assert wanted <= set(targets["sdist"]["only-include"])


def test_the_pages_name_this_version(metadata, bundle_root):
    """In the names of images, wheels and zips, and where a command asks for a version."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted((bundle_root / "docs").glob("*.md")))
    named = re.findall(r"(?:brain[-_]ct[-_]to[-_]mri[\w-]*(?:[:-]|_v)|--version )(\d+\.\d+\.\d+)", text)
    assert len(named) >= 8
    assert set(named) == {metadata["version"]}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="NumPy and others have no such version for Python 3.10")
def test_names_the_versions_it_is_tested_with(metadata):
    named = {**metadata["required_packages_version"]}
    named |= {
        package: metadata[f"{key}_version"]
        for package, key in (("monai", "monai"), ("torch", "pytorch"), ("numpy", "numpy"))
    }
    assert named == {package: version(package).split("+")[0] for package in named}


def test_names_the_monai_label_it_is_tested_with(metadata, bundle_root):
    pins = (bundle_root / "requirements-label-no-deps.txt").read_text().splitlines()
    assert f"monailabel=={metadata['supported_apps']['monai-label']}" in pins


def test_network_takes_and_gives_what_is_said(files):
    for n in (1, 3):
        verify_net_in_out("network_def", **files, device="cpu", n=n)


def test_network_and_preprocessing_agree(files, metadata):
    parser = ConfigParser()
    parser.read_config(files["config_file"])
    network = parser.get_parsed_content("network_def")
    assert network.size_multiple == parser["size_multiple"]
    image, pred = (metadata["network_data_format"][k][n] for k, n in (("inputs", "image"), ("outputs", "pred")))
    assert image["spatial_shape"] == pred["spatial_shape"] == [f"{network.size_multiple}*n"] * 2
    assert (image["num_channels"], pred["num_channels"]) == (
        (2 + parser["network_def#condition_channels"]) * parser["network_def#slab_size"],
        parser["network_def#slab_size"],
    )


def test_exports_to_torchscript_by_tracing(files, tmp_path):
    parser = ConfigParser()
    parser.read_config(files["config_file"])
    small = {**parser["network_def"], "channels": [64, 64], "num_res_blocks": 1}
    parser["network_def"] = small
    network = parser.get_parsed_content("network_def").eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(tmp_path / "model.pt"),
        **files,
        use_trace=True,
        input_shape=[1, 9, 16, 16],
        network_def=small,
    )
    slabs = torch.randn(2, 9, 24, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(slabs), network(slabs), rtol=1e-4, atol=1e-5)
