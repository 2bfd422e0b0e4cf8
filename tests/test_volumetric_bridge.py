"""The pixel bridge with layers along z, from its overlay on tiny volumes: training, tuning, the main job."""

import json
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow, run

from scripts.errors import CaseError
from scripts.exports import OnnxNetwork
from scripts.exports.export import example_inputs, export
from scripts.networks import BridgeUNet
from scripts.weights import load_weights
from tests.phantoms import write_head_ct, write_training_set

EDGE = 6.0
SIZES = {"channels": [8, 16], "num_res_blocks": 1, "norm_num_groups": 4, "num_head_channels": 8}
NETWORK = {f"network_def#{name}": value for name, value in SIZES.items()}
TRAINING = {
    **NETWORK,
    **{"spacing": [EDGE] * 3, "slab_shape": [24, 32], "max_epochs": 1, "iterations_per_epoch": 3, "batch_size": 2},
    **{"warmup_iterations": 1, "num_workers": 0, "prepare_workers": 1, "dtype": "float32"},
    **{"val_interval": 1, "num_inference_steps": 2, "device": "$torch.device('cpu')"},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Two round heads of noise for training, one for validation."""
    folder = tmp_path_factory.mktemp("pairs")
    write_training_set(folder, 2)
    return folder


@pytest.fixture
def train(bundle_root, pairs, tmp_path, monkeypatch):
    """Run train.json with the overlay; gives the losses, the validated PSNR and the weights file."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def function(**overrides):
        options = {**TRAINING, "dataset_dir": str(pairs), "output_dir": str(tmp_path / "run"), **overrides}
        files = [str(bundle_root / "configs" / f"{name}.json") for name in ("train", "volumetric_bridge")]
        workflow = ConfigWorkflow(config_file=files, workflow_type="train", logging_file=False, **options)
        workflow.initialize()
        losses = []
        trainer = workflow.trainer
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output["loss"].item()))
        workflow.run()
        psnr = workflow.parser.get_parsed_content("validate#evaluator").state.metrics["psnr_brain"]
        workflow.finalize()
        return losses, psnr, tmp_path / "run" / "model.pt"

    return function


@pytest.fixture
def translate(bundle_root, tmp_path, monkeypatch):
    """Run inference.json with the overlay on a head CT; gives the volume."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def function(weights, **overrides):
        write_head_ct(tmp_path / "ct.nii.gz")
        run(
            config_file=[str(bundle_root / "configs" / f"{name}.json") for name in ("inference", "volumetric_bridge")],
            logging_file=False,
            **{**NETWORK, "dataset_dir": str(tmp_path / "ct.nii.gz"), "output_dir": str(tmp_path / "out")},
            **{"dtype": "float32", "spacing": [EDGE] * 3, "device": "$torch.device('cpu')"},
            **({"weights": str(weights)} if weights else {}),
            **{"style_key": "none", **overrides},
        )
        return nib.load(tmp_path / "out" / "ct_t1.nii.gz").get_fdata()

    return function


def test_it_is_trained_from_nothing_validated_and_translates(train, translate):
    losses, psnr, path = train()
    assert len(losses) == 3
    assert np.isfinite([*losses, psnr]).all()
    weights = torch.load(path)
    assert weights["network.down_blocks.0.resnets.0.volumetric.residual.weight"].any()
    assert translate(path).std() > 0


@pytest.mark.parametrize("network_slab_size", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_layers_along_z_are_tuned_in_a_bridge_that_is_there(train, translate, tmp_path, network_slab_size):
    torch.manual_seed(0)
    sizes = {**SIZES, "space_to_depth": 2, "style_embedding": True, "resblock_updown": False, "condition_channels": 1}
    bridge = BridgeUNet(slab_size=network_slab_size, **sizes)
    for parameter in bridge.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(bridge.state_dict(), tmp_path / "bridge.pt")
    start = translate(tmp_path / "bridge.pt", **{"network_def#network_slab_size": network_slab_size})
    options = {"network_def#network_slab_size": network_slab_size, "network_def#tune": "volumetric"}
    _, _, path = train(**options, init_weights=str(tmp_path / "bridge.pt"), learning_rate=0.01)
    trained, given = torch.load(path), bridge.state_dict()
    moved = 0
    for name, value in trained.items():
        if ".volumetric." in name:
            moved += bool(value.any())
        else:
            plain = name.removeprefix("network.").replace(".block.", ".")
            torch.testing.assert_close(value, given[plain].to(value.dtype), rtol=0, atol=0)
    assert moved == 2 * 8
    tuned = translate(path, **{"network_def#network_slab_size": network_slab_size, "overwrite": True})
    assert np.abs(tuned - start).max() > 1e-4 * start.max()


def test_without_weights_the_main_job_says_so(translate):
    with pytest.raises(RuntimeError) as error:
        translate(None)
    cause = error.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert isinstance(cause, CaseError)
    assert "There is no weights file" in str(cause)


def test_the_shipped_bridge_may_be_the_start_of_tuning(bundle_root):
    networks = []
    for name in ("train", "inference"):
        parser = ConfigParser()
        parser.read_config([bundle_root / "configs" / f"{file}.json" for file in (name, "volumetric_bridge")])
        parser.update({"device": "cpu", "network_def#network_slab_size": 3, "network_def#tune": "volumetric"})
        networks.append(parser.get_parsed_content("network_def"))
        assert parser.get_parsed_content("channels") == {"source": 1, "missing": 1}
    shapes = [{name: value.shape for name, value in network.state_dict().items()} for network in networks]
    assert shapes[0] == shapes[1]
    load_weights(networks[0], bundle_root / "models" / "model.pt")
    parser["network_def#network_slab_size"] = 1
    with pytest.raises(CaseError, match="of another shape: network"):
        load_weights(parser.get_parsed_content("network_def"), bundle_root / "models" / "model.pt")
    tuned = {name for name, parameter in networks[0].named_parameters() if parameter.requires_grad}
    assert len(tuned) == 2 * 11
    assert all(".volumetric." in name for name in tuned)


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_it_is_exported_for_any_number_of_slabs_and_any_size(bundle_root, tmp_path, format):
    (tmp_path / "tiny.json").write_text(json.dumps({**NETWORK, "network_def#network_slab_size": 3}))
    files = [str(bundle_root / "configs" / f"{name}.json") for name in ("inference", "volumetric_bridge")]
    files.append(str(tmp_path / "tiny.json"))
    parser = ConfigParser()
    parser.read_config(files)
    network = parser.get_parsed_content("network_def")
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    output = tmp_path / "file"
    assert "off PyTorch's results" in export(format, files, str(tmp_path / "model.pt"), str(output))
    exported = OnnxNetwork(output) if format == "onnx" else torch.jit.load(output)
    inputs = example_inputs(network, 3, 5, 4)
    with torch.no_grad():
        torch.testing.assert_close(exported(*inputs), network.eval()(*inputs), rtol=0, atol=1e-4)
