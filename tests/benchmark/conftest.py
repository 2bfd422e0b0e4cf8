"""A bundle small enough to be measured in seconds."""

import json

import numpy as np
import pytest
import torch

from scripts.benchmark import machine
from scripts.benchmark.bundle import fill_zeros
from scripts.conditioning.style_key import compute_style_key, save_style_keys
from scripts.networks import BridgeUNet
from tests.phantoms import TINY_NETWORK, write_head_ct


@pytest.fixture(autouse=True)
def small_products(monkeypatch):
    """Matrix products that take no time; how fast they are is not tested."""
    monkeypatch.setattr(machine, "SIZE", 64)


@pytest.fixture(scope="session")
def overlay(tmp_path_factory):
    """Path of an overlay of inference.json: a tiny network with random weights, voxels of 6 mm, a phantom's CT."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(1)
    torch.save(fill_zeros(BridgeUNet(**TINY_NETWORK)).state_dict(), folder / "model.pt")
    save_style_keys({"average": compute_style_key(np.random.default_rng(0).random(5000))}, folder / "keys.json")
    write_head_ct(folder / "heads" / "head.nii.gz")
    settings = {
        "dataset_dir": str(folder / "heads"),
        "network_def": {"_target_": "scripts.networks.BridgeUNet", **TINY_NETWORK},
        "weights": str(folder / "model.pt"),
        "style_keys_file": str(folder / "keys.json"),
        "spacing": [6.0, 6.0, 6.0],
        "size_multiple": 4,
        "dtype": "bfloat16",
        "num_inference_steps": 3,
    }
    path = folder / "tiny.json"
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="session")
def config_files(bundle_root, overlay):
    """Of the tiny bundle, as `Bundle` takes them."""
    return [str(bundle_root / "configs" / "inference.json"), str(overlay)]
