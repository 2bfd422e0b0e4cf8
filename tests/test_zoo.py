"""What MONAI's Model Zoo asks of a bundle before it takes one.

Its own checks are ci/*.py of https://github.com/Project-MONAI/model-zoo; here each is said once more, the way the zoo
lays bundles out: as models/NAME, with relative paths, from the folder above. Those of metadata.json are in
test_metadata.py, those of the configs' properties in test_inference.py and test_train.py too.
"""

import ast
import json
import re
import shutil
import zipfile
from importlib.util import resolve_name
from pathlib import Path

import nibabel as nib
import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export, create_workflow, load, onnx_export
from monai.networks.utils import convert_to_onnx
from onnxruntime import InferenceSession

from scripts.networks import BridgeUNet
from scripts.packaging import LARGEST_FILE, NAME
from tests.phantoms import TINY_NETWORK, write_head_ct

SCHEMA = Path(__file__).with_name("meta_schema_20240725.json")


@pytest.fixture(scope="module")
def zoo(dist, tmp_path_factory) -> Path:
    """The zoo's folder with the packaged bundle as models/NAME, and the schema that its CI downloads beforehand."""
    folder = tmp_path_factory.mktemp("zoo")
    with zipfile.ZipFile(next(dist.glob("*.zip"))) as archive:
        archive.extractall(folder / "models")
    (folder / "models" / NAME / "eval").mkdir()
    shutil.copy(SCHEMA, folder / "models" / NAME / "eval" / "schema.json")
    return folder


@pytest.fixture(scope="module")
def bundle(zoo) -> Path:
    return zoo / "models" / NAME


@pytest.fixture(scope="module")
def config(bundle_root):
    """The configs of a workflow, merged, unparsed."""

    def function(*names: str) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config([str(bundle_root / "configs" / f"{name}.json") for name in names])
        return parser

    return function


# Files


def test_the_files_that_are_necessary_or_preferred_are_there(bundle):
    for name in (
        *("LICENSE", "metadata.json", "configs/metadata.json", "configs/inference.json", "configs/train.json"),
        *("configs/logging.conf", "models/model.pt", "docs/README.md", "docs/data_license.txt"),
    ):
        assert (bundle / name).is_file()
        assert not (bundle / name).is_symlink()


def test_no_file_is_larger_than_the_zoo_takes(bundle):
    assert all(path.stat().st_size <= LARGEST_FILE for path in bundle.rglob("*") if path.is_file())


def test_no_module_is_left_out_that_another_one_imports(bundle):
    modules = {
        path.relative_to(bundle).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path
        for path in (bundle / "scripts").rglob("*.py")
    }
    imported = set()
    for path in modules.values():
        package = ".".join(path.relative_to(bundle).parts[:-1])
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imported.add(resolve_name("." * node.level + (node.module or ""), package))
    assert {name for name in imported if name.split(".")[0] == "scripts"} <= modules.keys()
    assert "scripts.files" in imported


def test_the_readme_has_the_template_s_sections_in_its_order(bundle):
    text = re.sub(r"```.*?```", "", (bundle / "docs" / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ .*$", text, flags=re.MULTILINE)
    assert [line for line in headings if line.startswith("# ")] == headings[:1]
    template = (
        *("### **Authors**", "### **Tags**", "## **Model Description**", "## **Data**", "#### **Preprocessing**"),
        *("## **Performance**", "## **System Configuration**", "## **Limitations**", "## **Citation Info**"),
        "## **References**",
    )
    assert [line for line in headings if line in template] == list(template)


# metadata.json


def test_what_its_ci_installs_is_what_requirements_txt_installs(bundle):
    """The zoo makes one requirement of each package that metadata.json names."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    named = {name: metadata[f"{key}_version"] for name, key in (("monai", "monai"), ("torch", "pytorch"))}
    named |= {"numpy": metadata["numpy_version"]}
    named |= metadata["required_packages_version"] | metadata.get("optional_packages_version", {})
    lines = (bundle / "requirements.txt").read_text().splitlines()
    pins = (line.partition("#")[0].split("==") for line in lines)
    assert named == {pin[0]: pin[1].strip() for pin in pins if len(pin) == 2}


# Configs


def test_every_config_file_is_json_without_comments(bundle):
    for path in (bundle / "configs").glob("*.json"):
        assert isinstance(json.loads(path.read_text(encoding="utf-8")), dict)


@pytest.mark.parametrize(
    "names",
    [
        ("inference",),
        ("inference", "flair_to_t1"),
        ("inference", "onnx"),
        ("inference", "inference_trt"),
        ("inference", "fast", "dicom"),
        ("inference", "best", "bids"),
        ("inference", "sparse"),
        ("inference", "sparse", "rebrain"),
        ("inference", "many_to_one"),
        ("inference", "many_to_one", "dicom"),
        ("inference", "many_to_one", "cola_diff"),
        ("train",),
        ("train", "train_gpu"),
        ("train", "flair_to_t1"),
        ("train", "flair_to_t1", "evaluate"),
        ("train", "simulated_ct", "one_step", "train_cpu_2mm"),
        ("train", "simulated_ct", "evaluate"),
        ("train", "multi_gpu_train"),
        ("train", "federated"),
        ("train", "mlflow"),
        ("train", "ablation", "samplers"),
        ("train", "simulated_ct", "ablation", "detail"),
        ("train", "simulated_ct", "uncertainty"),
        ("train", "simulated_ct", "evaluate_sparse"),
        ("train", "rebrain_retrieval"),
        ("train", "rebrain_control", "evaluate_sparse", "evaluate_rebrain"),
        ("train", "tissue_segmenter"),
        ("train", "loss_tissue"),
        ("train", "loss_paper"),
        ("train", "network_paper"),
        ("train", "autoencoder", "adversarial"),
        ("train", "autoencoder", "autoencoder_paper"),
        ("train", "make_a_volume_slice"),
        ("train", "make_a_volume_volume"),
        ("inference", "make_a_volume"),
        ("train", "volumetric_bridge"),
        ("train", "pix2pix"),
        ("train", "simulated_ct", "evaluate_make_a_volume"),
        ("train", "many_to_one_train", "evaluate_many_to_one"),
        ("train", "many_to_one_train", "uncertainty", "many_to_one_uncertainty"),
        ("train", "many_to_one_train", "simulated_contrasts"),
        ("train", "many_to_one_train", "cola_diff_train"),
        ("train", "palette"),
        ("inference", "palette"),
        ("inference", "network_paper"),
        ("inference", "slab_parallel"),
    ],
    ids="+".join,
)
def test_every_reference_of_a_config_has_its_item(config, names):
    """Of all that a run comes to."""
    parser = config(*names)
    parser.parse(reset=True)
    resolver = parser.ref_resolver
    seen, waiting = set(), [key for key in ("initialize", "run", "finalize") if key in parser]
    while waiting:
        seen.add(item := waiting.pop())
        for reference in resolver.find_refs_in_config(resolver.get_item(item).get_config(), id=item):
            assert resolver.get_item(reference) is not None, f"{item} refers to {reference}"
            if reference not in seen:
                waiting.append(reference)
    assert len(seen) > 20


def test_every_config_file_is_in_one_of_those_workflows(bundle):
    mark = next(mark for mark in test_every_reference_of_a_config_has_its_item.pytestmark if mark.name == "parametrize")
    seen = {name for names in mark.args[1] for name in names}
    assert seen == {path.stem for path in (bundle / "configs").glob("*.json")} - {"metadata"}


def test_the_keys_have_the_names_that_other_programs_look_for(config):
    inference, train = config("inference"), config("train")
    for key in ("bundle_root", "device", "network_def", "inferer", "dataset_dir", "output_dir"):
        assert key in inference
    for key in ("bundle_root", "device", "dataset_dir", "output_dir", "val_interval"):
        assert key in train
    for key in (
        *("train#trainer#max_epochs", "train#dataset#data", "train#handlers", "train#inferer"),
        *("validate#evaluator", "validate#handlers", "validate#dataset#data"),
    ):
        assert key in train
    # what an engine is given has the name that the zoo expects, beside the engine
    for section, argument, key in (
        ("train#trainer", "key_train_metric", "key_metric"),
        ("validate#evaluator", "key_val_metric", "key_metric"),
        ("validate#evaluator", "postprocessing", "postprocessing"),
        ("validate#evaluator", "inferer", "inferer"),
        ("validate#dataset", "transform", "preprocessing"),
    ):
        assert train[f"{section}#{argument}"] == f"@{section.split('#')[0]}#{key}"
        assert train[f"{section.split('#')[0]}#{key}"]
    handlers = [handler for handler in train["train#handlers"] if handler["_target_"] == "ValidationHandler"]
    assert [handler["interval"] for handler in handlers] == ["@val_interval"]


# Behaviour


ZOO_CHECKS = """
import sys, torch
from monai.bundle import ckpt_export, create_workflow, verify_metadata, verify_net_in_out

root = "models/" + sys.argv[1]
sys.path = [root, *sys.path]  # as the zoo's CI does
files = {"meta_file": root + "/configs/metadata.json", "config_file": root + "/configs/inference.json"}
verify_metadata(meta_file=files["meta_file"], filepath=root + "/eval/schema.json")
workflow = create_workflow(
    workflow_type="inference", bundle_root=root, logging_file=root + "/configs/logging.conf", **files
)
assert workflow.check_properties() == []
assert workflow.bundle_root == root
verify_net_in_out(net_id="network_def", bundle_root=root, **files)
ckpt_export(
    net_id="network_def",
    filepath=root + "/models/verify_model.ts",
    ckpt_file=root + "/models/model.pt",
    bundle_root=root,
    **files,
)
network = workflow.network_def.eval()
network.load_state_dict(torch.load(root + "/models/model.pt", weights_only=True))
slabs = torch.rand(3, 9, 24, 40, device=next(network.parameters()).device)
with torch.no_grad():
    torch.testing.assert_close(
        torch.jit.load(root + "/models/verify_model.ts")(slabs.cpu()), network.cpu()(slabs.cpu()), rtol=1e-4, atol=1e-4
    )
print("all is well")
"""


def test_the_zoo_s_sequence_of_checks_passes_on_the_package(zoo, python):
    assert python("-c", ZOO_CHECKS, NAME, folder=zoo).splitlines()[-1] == "all is well"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, object]:
    """Overrides of inference.json: a tiny network with random weights, large voxels, a head CT."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    torch.save(BridgeUNet(**TINY_NETWORK).state_dict(), folder / "model.pt")
    return {
        "network_def": {"_target_": "scripts.networks.BridgeUNet", **TINY_NETWORK},
        "weights": str(folder / "model.pt"),
        "style_key": "none",
        "spacing": [6.0, 6.0, 6.0],
        "size_multiple": 4,
        "device": "cpu",
        "dataset_dir": str(write_head_ct(folder / "first.nii.gz")),
    }


def test_a_workflow_gives_and_takes_properties_and_runs(bundle_root, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.excepthook", __import__("sys").excepthook)  # the workflow changes it
    config = str(bundle_root / "configs" / "inference.json")
    workflow = create_workflow(
        config_file=config, workflow_type="infer", logging_file=False, output_dir=str(tmp_path / "out"), **tiny
    )
    assert isinstance(workflow.network_def, BridgeUNet)
    assert workflow.dataset_dir == tiny["dataset_dir"]
    assert str(workflow.device) == "cpu"
    assert workflow.version == json.loads((bundle_root / "configs" / "metadata.json").read_text())["version"]
    workflow.dataset_dir = str(write_head_ct(tmp_path / "second.nii.gz"))
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    assert nib.load(tmp_path / "out" / "second_t1.nii.gz").shape == (34, 40, 32)
    assert not list((tmp_path / "out").glob("first*"))


def test_torchscript_written_by_ckpt_export_can_be_loaded_by_name(bundle, zoo, monkeypatch):
    """With MONAI's defaults, in the bundle's folder."""
    monkeypatch.chdir(bundle)
    ckpt_export(config_file="configs/inference.json")
    network, metadata, _ = load(NAME, bundle_dir=zoo / "models", load_ts_module=True, source="github", device="cpu")
    assert network(torch.zeros(2, 9, 16, 24)).shape == (2, 3, 16, 24)
    assert metadata["name"] == json.loads((bundle / "metadata.json").read_text())["name"]


@pytest.fixture
def same_results(tiny):
    """Compare an ONNX file that takes one tensor with the tiny network, for slabs of the given shape."""

    def function(path: Path, shape: tuple[int, ...]) -> None:
        network = BridgeUNet(**TINY_NETWORK).eval()
        network.load_state_dict(torch.load(tiny["weights"], weights_only=True))
        session = InferenceSession(path, providers=["CPUExecutionProvider"])
        slabs = torch.rand(shape)
        (given,) = session.run(None, {session.get_inputs()[0].name: slabs.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(given), network(slabs), rtol=1e-4, atol=1e-4)

    return function


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (2, 6, 16, 24)),
        (
            {
                "use_trace": True,
                "converter_kwargs": {"dynamo": False, "input_names": ["x"], "dynamic_axes": {"x": [0, 2, 3]}},
            },
            (3, 6, 24, 40),
        ),
    ],
    ids=["of one size", "of any size"],
)
def test_onnx_export_gives_the_network_s_results(bundle_root, tiny, tmp_path, same_results, options, shape):
    onnx_export(
        "network_def",
        filepath=str(tmp_path / "network.onnx"),
        ckpt_file=tiny["weights"],
        meta_file=str(bundle_root / "configs" / "metadata.json"),
        config_file=str(bundle_root / "configs" / "inference.json"),
        input_shape=[2, 6, 16, 24],
        network_def=tiny["network_def"],
        **options,
    )
    same_results(tmp_path / "network.onnx", shape)


def test_trt_export_by_onnx_is_given_a_graph_of_any_number_of_slabs(tiny, tmp_path, same_results):
    """What `trt_export --use_onnx True` does before it needs a GPU."""
    network = BridgeUNet(**TINY_NETWORK)
    network.load_state_dict(torch.load(tiny["weights"], weights_only=True))
    axes = {"input_0": {0: "batchsize"}, "output_0": {0: "batchsize"}}
    graph, inputs = tmp_path / "graph.onnx", [torch.rand(2, 6, 16, 24)]
    convert_to_onnx(network, inputs, ["input_0"], ["output_0"], dynamic_axes=axes, filename=str(graph), use_trace=False)
    same_results(graph, (5, 6, 16, 24))
