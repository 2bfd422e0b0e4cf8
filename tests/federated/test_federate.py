"""NVFlare trains two sites: the mean of their networks, and nothing else of them; needs requirements-federated.txt."""

import json
import sys
import types
from urllib.parse import quote

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from scripts.federated.command import federate, first_weights
from scripts.federated.site import take_part

pytestmark = pytest.mark.federated

TINY = {
    "network_def#channels": [8, 8],
    "network_def#norm_num_groups": 4,
    "network_def#num_head_channels": 8,
    "spacing": [4.0, 4.0, 4.0],
    "slab_shape": [32, 32],
    "num_rounds": 2,
    "iterations_per_epoch": 2,
    "batch_size": 2,
    "warmup_iterations": 1,
    "num_workers": 0,
    "prepare_workers": 1,
    "device": "$torch.device('cpu')",
    "dtype": "float32",
}


def site_of(folder, people):
    """A data set of people whose CT tells the T1."""
    folder.mkdir()
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (30, 36, 28)), indexing="ij"))
    mask, entries = (grid**2).sum(0) < 0.8, []
    for person in range(people):
        t1 = (0.3 + 0.6 * np.random.default_rng(person).random(mask.shape)) * mask
        volumes = {"target": 1000 * t1, "source": np.where(mask, 20 + 20 * t1, -1000), "mask": mask}
        entries.append({"subject": f"head{person}", **{key: f"{person}_{key}.nii.gz" for key in volumes}})
        for key, volume in volumes.items():
            nib.save(nib.Nifti1Image(volume.astype(np.float32), np.diag([4.0, 4, 4, 1])), folder / entries[-1][key])
    (folder / "datalist.json").write_text(json.dumps({"training": entries, "validation": [], "test": []}))
    return str(folder)


@pytest.fixture(scope="module")
def config_files(bundle_root, tmp_path_factory):
    tiny = tmp_path_factory.mktemp("config") / "tiny.json"
    tiny.write_text(json.dumps(TINY))
    return [*(str(bundle_root / "configs" / name) for name in ("train.json", "federated.json")), str(tiny)]


def test_after_a_round_the_network_is_the_weighted_mean_of_the_sites(config_files, tmp_path):
    sites = {2: site_of(tmp_path / "small site", 2), 6: site_of(tmp_path / "large", 6)}
    output = tmp_path / "out"
    said = federate(*sites.values(), output_dir=str(output), config_file=config_files)
    assert said == f"{output / 'model.pt'} and {output / 'style_keys.json'}"
    # each site kept its network of the last round; the global one is their mean by people
    kept = [torch.load(output / f"site-{n}" / "checkpoint_epoch=2.pt", weights_only=True)["network"] for n in (1, 2)]
    for name, value in torch.load(output / "model.pt", weights_only=True).items():
        mean = (2 * kept[0][name] + 6 * kept[1][name]) / 8
        assert not torch.equal(kept[0][name], kept[1][name])
        torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-6)
    # the key is that of the site with people enough alone
    keys = [json.loads((output / name / "style_keys.json").read_text())["keys"] for name in ("", "site-1", "site-2")]
    assert keys[0].keys() == {"average"}
    np.testing.assert_allclose(keys[0]["average"], keys[2]["average"], rtol=1e-5, atol=1e-6)
    assert not np.allclose(keys[0]["average"], keys[1]["average"], rtol=1e-5, atol=1e-6)


def test_only_weights_leave_a_site(config_files, tmp_path, monkeypatch):
    flare = pytest.importorskip("nvflare.client")
    rounds, sent = iter([True, False]), []

    def receive():
        parser = ConfigParser()
        parser.read_config(config_files)
        return types.SimpleNamespace(params={name: np.asarray(v) for name, v in first_weights(parser).items()})

    for name, function in {
        "init": lambda: None,
        "get_site_name": lambda: "site-1",
        "is_running": lambda: next(rounds),
        "receive": receive,
        "send": sent.append,
    }.items():
        monkeypatch.setattr(flare, name, function)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    training = {
        "config_files": config_files,
        "dataset_dir": site_of(tmp_path / "a", 2),
        "output_dir": str(tmp_path / "o"),
    }
    take_part(quote(json.dumps(training)))
    (model,) = sent
    network = torch.load(tmp_path / "o" / "checkpoint_epoch=1.pt", weights_only=True)["network"]
    assert model.params.keys() == network.keys()
    for name, value in network.items():
        torch.testing.assert_close(model.params[name], value, rtol=0, atol=0)
    assert model.meta == {"NUM_STEPS_CURRENT_ROUND": 2}
    others = {name: value for name, value in vars(model).items() if name not in ("params", "meta", "params_type")}
    assert not any(value for value in others.values()), others
