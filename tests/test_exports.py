"""The network for other runtimes: what the files hold, and the main job through ONNX Runtime."""

import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, run
from monai.networks.trt_compiler import TrtCompiler

from scripts.conditioning.style_key import compute_style_key, save_style_keys
from scripts.errors import CaseError
from scripts.exports import OnnxNetwork, contiguous_inputs
from scripts.exports import export as module
from scripts.exports.export import example_inputs, export
from scripts.exports.onnx_network import INPUTS
from scripts.files import sha256_of_file
from scripts.networks import BridgeUNet
from tests.phantoms import TINY_NETWORK, EchoNetwork, write_head_ct

TINY = {**TINY_NETWORK, "style_embedding": True}
# Slabs, height and width in units of the network's multiple; none of them is what the export traces.
SIZES = ((1, 9, 7), (5, 8, 12))


def random_network(seed: int = 0, **options: object) -> BridgeUNet:
    network = BridgeUNet(**TINY, **options).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return network


@pytest.fixture(scope="module")
def network():
    return random_network()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, network):
    """A folder with a config overlay of a tiny network, its weights and style keys, and the overlay's path."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.save(network.state_dict(), folder / "model.pt")
    torch.save(random_network(1).state_dict(), folder / "other.pt")
    key = compute_style_key(np.random.default_rng(0).beta(2, 2, 5000))
    save_style_keys({"average": key}, folder / "style_keys.json")
    settings = {
        "network_def": {"_target_": "scripts.networks.BridgeUNet", **TINY},
        "weights": str(folder / "model.pt"),
        "style_keys_file": str(folder / "style_keys.json"),
        "spacing": [6.0, 6.0, 6.0],
        "size_multiple": 4,
    }
    (folder / "tiny.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def onnx_file(tiny):
    export(config_file=str(tiny / "tiny.json"))
    return tiny / "model.onnx"


@pytest.fixture(scope="module")
def sparse(tmp_path_factory, tiny):
    """The same of a network that takes `missing`: the network, and the paths of its overlay."""
    folder, network = tmp_path_factory.mktemp("sparse"), random_network(condition_channels=1)
    torch.save(network.state_dict(), folder / "model.pt")
    overlay = {"network_def#condition_channels": 1, "weights": str(folder / "model.pt")}
    (folder / "sparse.json").write_text(json.dumps(overlay))
    return network, [str(tiny / "tiny.json"), str(folder / "sparse.json")]


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_a_network_of_sparse_scans_takes_what_is_missing_too(sparse, tmp_path, format):
    network, configs = sparse
    export(format, config_file=configs, output=str(tmp_path / "file"))
    exported = OnnxNetwork(tmp_path / "file") if format == "onnx" else torch.jit.load(tmp_path / "file")
    inputs = example_inputs(network, *SIZES[0])
    assert len(inputs) == 5
    expected = eager(network, inputs)
    torch.testing.assert_close(exported(*inputs), expected, rtol=0, atol=1e-4)
    assert (exported(*inputs[:4], 1 - inputs[4]) - expected).abs().max() > 1e-3
    if format == "onnx":
        torch.testing.assert_close(exported(*inputs[:4]), eager(network, inputs[:4]), rtol=0, atol=1e-4)
        together = torch.cat([inputs[0], *inputs[3:]], dim=1)
        torch.testing.assert_close(exported(together), eager(network, (together,)), rtol=0, atol=1e-4)


def test_other_conditions_are_refused(sparse, tmp_path):
    _, configs = sparse
    (tmp_path / "two.json").write_text('{"network_def#condition_channels": 2}')
    with pytest.raises(CaseError, match="no condition but missing"):
        export(config_file=[*configs, str(tmp_path / "two.json")])


def eager(network, inputs):
    with torch.no_grad():
        return network(*inputs)


def test_onnx_takes_any_number_of_slabs_and_any_size(network, onnx_file):
    exported = OnnxNetwork(onnx_file)
    for size in SIZES:
        inputs = example_inputs(network, *size)
        torch.testing.assert_close(exported(*inputs), eager(network, inputs), rtol=0, atol=1e-4)
    x, timesteps, context, source = inputs
    one_for_all = exported(x, timesteps[:1], context=context[:1], source=source)
    torch.testing.assert_close(one_for_all, eager(network, (x, timesteps[:1], context[:1], source)), rtol=0, atol=1e-4)
    both = torch.cat([x, source], dim=1)
    torch.testing.assert_close(exported(both), eager(network, (both,)), rtol=0, atol=1e-4)


def test_onnx_uses_all_its_inputs(network, onnx_file):
    """A traced constant in place of an input would pass a comparison at that constant."""
    exported = OnnxNetwork(onnx_file)
    inputs = example_inputs(network, 2, 4, 4)
    before = exported(*inputs)
    for place, other in enumerate((-inputs[0], inputs[1] // 2, 1 - inputs[2], -inputs[3])):
        changed = exported(*inputs[:place], other, *inputs[place + 1 :])
        assert (changed - before).abs().max() > 1e-3


def test_torchscript_takes_any_number_of_slabs_and_any_size(network, tiny, tmp_path):
    said = export("torchscript", config_file=str(tiny / "tiny.json"), output=str(tmp_path / "new" / "a.ts"))
    assert said.startswith(f"{tmp_path / 'new' / 'a.ts'}: the network with model.pt")
    notes = {"weights_sha256": "", "weights": ""}
    exported = torch.jit.load(tmp_path / "new" / "a.ts", _extra_files=notes)
    assert notes == {"weights_sha256": sha256_of_file(tiny / "model.pt").encode(), "weights": b"model.pt"}
    for size in SIZES:
        inputs = example_inputs(network, *size)
        torch.testing.assert_close(exported(*inputs), eager(network, inputs), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_pt2_takes_any_number_of_slabs_and_any_size(sparse, tmp_path):
    network, configs = sparse
    export("pt2", config_file=configs, output=str(tmp_path / "a.pt2"))
    notes = {"weights_sha256": "", "weights": ""}
    exported = torch.export.load(tmp_path / "a.pt2", extra_files=notes).module()
    assert notes == {"weights_sha256": sha256_of_file(Path(configs[-1]).parent / "model.pt"), "weights": "model.pt"}
    for size in SIZES:
        inputs = example_inputs(network, *size)
        before = eager(network, inputs)
        torch.testing.assert_close(exported(*inputs), before, rtol=0, atol=1e-4)
    for place, other in enumerate((-inputs[0], inputs[1] // 2, 1 - inputs[2], -inputs[3], 1 - inputs[4])):
        assert (exported(*inputs[:place], other, *inputs[place + 1 :]) - before).abs().max() > 1e-3


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_a_file_that_differs_is_not_kept(tiny, tmp_path, monkeypatch, format):
    other = random_network(1)
    monkeypatch.setitem(module._FORMATS, format, module._FORMATS[format]._replace(read=lambda path: other))
    kept = tmp_path / "kept"
    kept.write_text("before")
    with pytest.raises(CaseError, match="off PyTorch's"):
        export(format, config_file=str(tiny / "tiny.json"), output=str(kept))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert kept.read_text() == "before"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"format": "tflite"}, "The format is tflite; use one of onnx, torchscript, pt2"),
        ({"weights": "/nowhere.pt"}, "There is no weights file /nowhere.pt"),
        ({"output": "/dev/null/a.onnx"}, "/dev/null is there already and no folder"),
    ],
)
def test_export_says_what_is_wrong(tiny, options, sentence):
    with pytest.raises(CaseError) as caught:
        export(**{"config_file": str(tiny / "tiny.json"), **options})
    assert str(caught.value).startswith(sentence)


def test_an_onnx_file_has_to_be_there_whole_and_of_the_weights(tiny, onnx_file, tmp_path):
    assert OnnxNetwork(onnx_file, tiny / "model.pt").runtime.startswith("ONNX Runtime ")
    command = f"`python -m scripts export onnx --weights {tiny / 'other.pt'} --output "
    with pytest.raises(CaseError, match="There is no ONNX file") as caught:
        OnnxNetwork(tmp_path / "none.onnx", tiny / "other.pt")
    assert command + str(tmp_path / "none.onnx") in str(caught.value)
    with pytest.raises(CaseError, match="is not of the weights") as caught:
        OnnxNetwork(onnx_file, tiny / "other.pt")
    assert command + str(onnx_file) in str(caught.value)
    (tmp_path / "half.onnx").write_bytes(onnx_file.read_bytes()[:5000])
    with pytest.raises(CaseError, match="cannot be read"):
        OnnxNetwork(tmp_path / "half.onnx")


def test_packages_that_are_missing_are_named(tiny, onnx_file, tmp_path, monkeypatch):
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CaseError, match=r"requirements-export\.txt"):
        OnnxNetwork(onnx_file)
    with pytest.raises(CaseError, match=r"requirements-export\.txt"):
        export(config_file=str(tiny / "tiny.json"), output=str(tmp_path / "a.onnx"))


@pytest.fixture
def translate(bundle_root, tiny, tmp_path, monkeypatch):
    """Run the main job of the tiny network under an overlay; gives the synthetic image and its record."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def function(*overlays, **overrides):
        configs = [bundle_root / "configs" / name for name in ("inference.json", *overlays)]
        folder = tmp_path / ("-".join(overlays) or "eager")
        run(
            config_file=[*map(str, configs), str(tiny / "tiny.json")],
            logging_file=False,
            **{"dataset_dir": str(tmp_path / "ct.nii.gz"), "output_dir": str(folder), **overrides},
        )
        return nib.load(folder / "ct_t1.nii.gz").get_fdata(), json.loads((folder / "ct_t1.json").read_text())

    return function


def test_the_main_job_gives_the_same_image_through_onnx_runtime(tmp_path, translate, onnx_file):
    write_head_ct(tmp_path / "ct.nii.gz")
    image, record = translate("onnx.json", onnx_file=str(onnx_file))
    expected, eager_record = translate(dtype="float32", device="cpu")
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-4)
    assert record.pop("runtime").startswith("ONNX Runtime ")
    assert record == eager_record


def test_the_overlay_looks_beside_the_weights_of_its_task(bundle_root):
    parser = ConfigParser()
    parser.read_config([bundle_root / "configs" / f"{name}.json" for name in ("inference", "flair_to_t1", "onnx")])
    assert parser.get_parsed_content("onnx_file") == str(bundle_root / "models" / "flair_to_t1.onnx")


def test_the_main_job_ends_with_a_sentence_without_the_onnx_file(tmp_path, translate):
    write_head_ct(tmp_path / "ct.nii.gz")
    with pytest.raises(RuntimeError) as caught:
        translate("onnx.json", onnx_file=str(tmp_path / "none.onnx"))
    error = caught.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert isinstance(error, CaseError)
    assert str(error).startswith(f"There is no ONNX file {tmp_path / 'none.onnx'}")
    assert not (tmp_path / "onnx.json").exists()


def test_without_tensorrt_its_overlay_is_pytorch_s_main_job(tmp_path, translate):
    write_head_ct(tmp_path / "ct.nii.gz")
    image, record = translate("inference_trt.json", device="cpu")
    expected, eager_record = translate(dtype="float32", device="cpu")
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-5)
    assert record.pop("runtime") == "PyTorch"
    assert record == eager_record


@pytest.mark.parametrize("conditions", [0, 1])
def test_tensorrt_is_given_the_network_s_graph(bundle_root, tmp_path, monkeypatch, conditions):
    """MONAI's compiler, up to the ONNX graph that TensorRT would read: any size, and every input of a call."""
    network = random_network(condition_channels=conditions)
    parser = ConfigParser()
    parser.read_config([bundle_root / "configs" / "inference.json", bundle_root / "configs" / "inference_trt.json"])
    parser["network_def#condition_channels"] = conditions
    graph = tmp_path / "graph.onnx"
    monkeypatch.setattr(TrtCompiler, "_onnx_to_trt", lambda self, path: shutil.copy(path, graph) and b"")
    compiler = TrtCompiler(network, str(tmp_path / "plan"), **parser.get_parsed_content("trt_args"))
    given = dict(zip(INPUTS, example_inputs(network, 2, 8, 8), strict=False))
    compiler._build_and_save(network, {**compiler.defaults, **given})
    inputs = example_inputs(network, 3, 9, 12)
    torch.testing.assert_close(OnnxNetwork(graph)(*inputs), eager(network, inputs), rtol=0, atol=1e-4)


def test_contiguous_inputs_reach_the_network(network):
    """What stands for all slabs is expanded, without memory of its own for each."""

    class Strides(EchoNetwork):
        def forward(self, x, timesteps=None, context=None, source=None):
            self.seen = [tensor.is_contiguous() for tensor in (x, timesteps, context, source)]
            return x

    strides = contiguous_inputs(Strides())
    x, _, context, source = example_inputs(network, 3, 4, 4)
    x = x.to(memory_format=torch.channels_last)
    strides(x, torch.tensor(5).expand(3), context=context[:1].expand(3, -1, -1), source=source)
    assert strides.seen == [True] * 4
