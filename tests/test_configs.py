"""What the configs have to agree on."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def configs(bundle_root: Path) -> dict[str, dict]:
    return {name: json.loads((bundle_root / "configs" / f"{name}.json").read_text()) for name in ("inference", "train")}


@pytest.mark.parametrize(
    "key",
    [
        *("network_def", "scheduler", "spacing", "hu_window"),
        *(
            "sampler",
            "timestep_spacing",
            "num_inference_steps",
            "detail",
            "num_corrections",
            "slab_stride",
            "final_stride",
            "mirrored",
        ),
    ],
)
def test_what_is_trained_and_validated_is_what_is_shipped(configs: dict[str, dict], key: str):
    trained, shipped = configs["train"][key], configs["inference"][key]
    if isinstance(shipped, dict):
        assert trained.items() >= shipped.items()
    else:
        assert trained == shipped


def test_the_shipped_weights_fit_the_network_and_the_style_keys_are_there(bundle_root: Path):
    from monai.bundle import ConfigParser

    from scripts.conditioning.style_key import load_style_keys
    from scripts.weights import load_weights

    parser = ConfigParser()
    parser.read_config(bundle_root / "configs" / "inference.json")
    network = parser.get_parsed_content("network_def")
    assert len(load_weights(network, bundle_root / "models" / "model.pt")) == 64
    assert {"average", "colin27"} <= load_style_keys(bundle_root / "models" / "style_keys.json").keys()
    for path in (bundle_root / "models").iterdir():
        exported = path.suffix in (".onnx", ".ts", ".plan")  # the user's own; git ignores them
        assert exported or path.stat().st_size < 25 * 2**20


@pytest.mark.parametrize("overlay", ["evaluate", "ablation"])
def test_a_task_overlay_before_the_evaluation_chooses_weights_and_keys(bundle_root: Path, overlay: str, tmp_path: Path):
    from monai.bundle import ConfigParser

    task = tmp_path / "task.json"
    task.write_text(json.dumps({"shipped_weights": "other.pt", "shipped_style_keys": "other.json"}))
    parser = ConfigParser()
    parser.read_config([bundle_root / "configs" / "train.json", task, bundle_root / "configs" / f"{overlay}.json"])
    assert parser.get_parsed_content("weights") == "other.pt"
    assert parser.get_parsed_content("style_keys_file") == "other.json"


@pytest.mark.parametrize("key", ["contrasts", "target_contrasts", "structure", "channels", "endpoint", "network_def"])
def test_many_contrasts_are_translated_as_they_were_trained(bundle_root: Path, key: str):
    paths = (bundle_root / "configs" / f"{name}.json" for name in ("many_to_one", "many_to_one_train"))
    shipped, trained = (json.loads(path.read_text())[key] for path in paths)
    if key == "network_def":
        assert shipped.pop("target_contrast") == "$@contrasts.index(@target)"  # in training each slab has its own
    assert shipped == trained
