"""ReBrain from its overlays, on tiny volumes: the two trainings, the knowledge base, and the main job with both."""

import json
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow, run

from scripts.errors import CaseError
from scripts.knowledge_base import knowledge_base
from scripts.networks import BridgeUNet, SliceEncoder, controlled_bridge
from scripts.outputs import saver
from scripts.outputs.measures import case_warnings
from scripts.outputs.picture import three_planes
from scripts.weights import load_weights
from tests.phantoms import TINY_NETWORK, write_head_ct, write_training_set

EDGE = 6.0
SIZES = {**TINY_NETWORK, "style_embedding": True, "cross_attention_dim": 128, "resblock_updown": False}
SMALL = {"spacing": [EDGE] * 3, "slab_shape": [24, 32]}
TRAINING = {
    **SMALL,
    **{"max_epochs": 1, "iterations_per_epoch": 3, "batch_size": 4, "warmup_iterations": 1, "num_workers": 0},
    **{"prepare_workers": 1, "dtype": "float32", "device": "$torch.device('cpu')"},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Three round heads, each with a texture of its own, and a fourth for validation."""
    folder = tmp_path_factory.mktemp("pairs")
    write_training_set(folder, 3)
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory, bundle_root):
    """Paths of the training configs with small volumes, and weights of a sparse bridge."""
    folder = tmp_path_factory.mktemp("settings")
    (folder / "small.json").write_text(json.dumps(SMALL))
    torch.manual_seed(0)
    bridge = BridgeUNet(**SIZES, condition_channels=1)
    for parameter in bridge.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    torch.save(bridge.state_dict(), folder / "bridge.pt")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory, bundle_root, pairs, settings):
    folder = tmp_path_factory.mktemp("base") / "kb"
    configs = [str(bundle_root / "configs" / "train.json"), str(settings / "small.json")]
    knowledge_base("build", str(pairs), str(folder), config_file=configs)
    return folder


@pytest.fixture
def train(bundle_root, pairs, tmp_path, monkeypatch):
    """Run a training of train.json and an overlay; gives its losses and the weights it wrote."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def function(overlay, **overrides):
        options = {**TRAINING, "dataset_dir": str(pairs), "output_dir": str(tmp_path / overlay), **overrides}
        workflow = ConfigWorkflow(
            config_file=[str(bundle_root / "configs" / name) for name in ("train.json", overlay)],
            workflow_type="train",
            logging_file=False,
            **options,
        )
        workflow.initialize()
        losses = []
        trainer = workflow.trainer
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output["loss"].item()))
        workflow.run()
        workflow.finalize()
        return losses, tmp_path / overlay / "model.pt"

    return function


def test_the_retrieval_network_is_trained_and_becomes_an_encoder(train, bundle_root, pairs, settings, tmp_path):
    losses, path = train("rebrain_retrieval.json", iterations_per_epoch=12, learning_rate=0.003)
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    load_weights(SliceEncoder((24, 32)), path)
    figures = json.loads((path.parent / "retrieval.json").read_text())
    assert figures.keys() == {"pixels", "vit", "random", "oracle"}
    assert all(0 <= row["position_error"] <= 0.05 for row in figures.values())
    assert figures["oracle"]["target_rmse"] == min(row["target_rmse"] for row in figures.values())
    configs = [str(bundle_root / "configs" / "train.json"), str(settings / "small.json")]
    said = knowledge_base("build", str(pairs), str(tmp_path / "kb"), str(path), config_file=configs)
    assert "of 3 people" in said


def network_options(prefix="network_def#"):
    return {f"{prefix}{name}": value for name, value in SIZES.items() if name not in ("slab_size",)}


@pytest.mark.parametrize("target", ["own", "retrieved"])
def test_only_the_control_net_is_trained(train, base, settings, target):
    losses, path = train(
        "rebrain_control.json",
        knowledge_base=str(base),
        bridge_weights=str(settings / "bridge.pt"),
        reference_target=target,
        reference_threshold=-1.0,
        hint_dropout=0.0,
        **network_options(),
    )
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    trained, bridge = torch.load(path), torch.load(settings / "bridge.pt")
    for name, value in bridge.items():
        torch.testing.assert_close(trained[f"bridge.{name}"].float(), value, rtol=1e-3, atol=1e-3)
    assert trained["control.controlnet_mid_block.conv.weight"].any()


def test_the_control_net_needs_a_base(train, settings):
    with pytest.raises(RuntimeError) as error:
        train("rebrain_control.json", bridge_weights=str(settings / "bridge.pt"), **network_options())
    cause = error.value
    while not isinstance(cause, CaseError):
        cause = cause.__cause__
    assert "add --knowledge_base kb" in str(cause)


@pytest.fixture
def translate(bundle_root, base, settings, tmp_path, monkeypatch):
    """The main job with rebrain.json; gives the image and the record."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def function(weights, name="out", overlays=("rebrain.json",), **overrides):
        options = {
            **{"dataset_dir": str(tmp_path / "ct.nii.gz"), "output_dir": str(tmp_path / name), "dtype": "float32"},
            **{"weights": str(weights), "spacing": SMALL["spacing"], "device": "$torch.device('cpu')"},
            **{"style_keys_file": str(bundle_root / "models" / "style_keys.json"), **network_options()},
        }
        files = [str(bundle_root / "configs" / file) for file in ("inference.json", *overlays)]
        run(config_file=files, logging_file=False, **{**options, **overrides})
        record = json.loads((tmp_path / name / "ct_t1.json").read_text())
        return nib.load(tmp_path / name / "ct_t1.nii.gz").get_fdata(), record

    return function


@pytest.fixture
def weights(settings, tmp_path):
    """A bridge with a ControlNet that says something."""
    torch.manual_seed(1)
    network = controlled_bridge(2, 1, **SIZES)
    load_weights(network.bridge, settings / "bridge.pt")
    network.control.copy_from(network.bridge)
    for name, parameter in network.control.named_parameters():
        if name.startswith("controlnet_"):
            torch.nn.init.normal_(parameter, std=0.3)
    torch.save(network.state_dict(), tmp_path / "rebrain.pt")
    return tmp_path / "rebrain.pt"


def sparse_ct(tmp_path):
    """A head CT whose slices are 18 mm apart, on a grid of 6 mm in the plane."""
    write_head_ct(tmp_path / "ct.nii.gz", np.diag([EDGE, EDGE, 3 * EDGE]), (34, 40, 11))


def test_the_picture_says_that_slices_are_of_others(translate, base, weights, tmp_path, monkeypatch):
    sparse_ct(tmp_path)
    titles = []
    monkeypatch.setattr(saver, "three_planes", lambda *a, **k: titles.append(a[3]) or three_planes(*a, **k))
    options = {"knowledge_base": str(base), "reference_threshold": -1.0, "overlays": ("sparse.json", "rebrain.json")}
    translate(weights, **options)
    assert titles == [("source CT, gaps of 18 mm", "synthetic T1, others' slices")]


def test_references_change_the_missing_slices_of_a_sparse_scan(translate, base, weights, settings, tmp_path):
    sparse_ct(tmp_path)
    plain, _ = translate(settings / "bridge.pt", "plain", overlays=())
    hinted, record = translate(weights, "hinted", knowledge_base=str(base), reference_threshold=-1.0)
    none, _ = translate(weights, "none", knowledge_base=str(base), reference_threshold=2.0)
    assert plain.shape == hinted.shape
    assert np.abs(hinted - plain).max() > 0.01
    assert np.abs(hinted - none).max() > 1e-3
    assert len(record["knowledge_base_sha256"]) == 64
    assert record["hint"] == ["source", "target"]
    counts = record["references"]
    assert 0 < counts["found"] <= counts["missing"]
    assert counts["threshold"] == -1
    said = f"Another person's slice was used as a reference at {counts['found']} of {counts['missing']} missing slices."
    assert said in case_warnings(record)


def test_a_dense_scan_is_the_bridges(translate, base, weights, settings, tmp_path):
    axes = np.diag([EDGE, EDGE, 2.5])
    write_head_ct(tmp_path / "ct.nii.gz", axes, (34, 40, 72))
    plain, _ = translate(settings / "bridge.pt", "plain", overlays=())
    hinted, record = translate(weights, "hinted", knowledge_base=str(base))
    np.testing.assert_array_equal(hinted, plain)
    assert record["references"]["found"] == 0
    assert not any("Another person" in warning for warning in case_warnings(record))


def test_the_main_job_ends_with_a_sentence_without_a_base_or_with_another(translate, base, weights, tmp_path):
    sparse_ct(tmp_path)
    for overrides, sentence in (
        ({}, "No knowledge base is given"),
        ({"knowledge_base": str(tmp_path)}, "There is no knowledge base in"),
        ({"knowledge_base": str(base), "spacing": [5.0] * 3}, "spacing 6 x 6 x 6, and this is 5 x 5 x 5"),
        ({"knowledge_base": str(base), "source_contrast": "FLAIR"}, "source contrast CT, and this is FLAIR"),
    ):
        with pytest.raises(RuntimeError) as error:
            translate(weights, **overrides)
        cause = error.value
        while cause.__cause__ is not None:
            cause = cause.__cause__
        assert sentence in str(cause)
        assert isinstance(cause, CaseError)


def test_the_rows_of_the_sparse_tables(bundle_root, pairs, base, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    names = ("train", "rebrain_control", "evaluate_sparse", "evaluate_rebrain")
    rows = (
        "sparse bridge",
        "+ ControlNet",
        "+ ControlNet, no tau",
        "+ ControlNet, random slice",
        "+ ControlNet, oracle",
    )
    run(
        config_file=[str(bundle_root / "configs" / f"{name}.json") for name in names],
        logging_file=False,
        **{**TRAINING, **network_options(), "dataset_dir": str(pairs), "output_dir": str(tmp_path / "eval")},
        **{"val_section": "training", "subjects": "p0", "every": [4], "slices": 9, "weights": str(weights)},
        **{"knowledge_base": str(base), "rows": list(rows), "style_key": "average", "num_inference_steps": 2},
        **{"style_keys_file": str(bundle_root / "models" / "style_keys.json")},
    )
    content = json.loads((tmp_path / "eval" / "sparse.json").read_text())["every"]["4"]
    figures = {row: content[row]["p0"]["figures"]["psnr_missing"] for row in rows}
    assert len(set(figures.values())) >= 3
    assert "+ ControlNet, no tau" in (tmp_path / "eval" / "sparse.md").read_text()


def test_training_and_main_job_name_the_same_network(bundle_root):
    parsers = []
    for name in ("inference", "train"):
        overlay = "rebrain" if name == "inference" else "rebrain_control"
        parsers.append(ConfigParser())
        parsers[-1].read_config([bundle_root / "configs" / f"{file}.json" for file in (name, overlay)])
        parsers[-1]["device"] = "cpu"
    with torch.device("meta"):
        shapes = [
            {key: value.shape for key, value in parser.get_parsed_content("network_def").state_dict().items()}
            for parser in parsers
        ]
    assert shapes[0] == shapes[1]
    assert parsers[0].get_parsed_content("channels") == parsers[1].get_parsed_content("channels")
