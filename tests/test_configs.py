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


EVALUATIONS = [
    *("evaluate", "ablation", "uncertainty", "evaluate_sparse", "evaluate_make_a_volume", "evaluate_many_to_one")
]


@pytest.mark.parametrize("overlay", EVALUATIONS)
def test_a_task_overlay_before_the_evaluation_chooses_weights_and_keys(bundle_root: Path, overlay: str, tmp_path: Path):
    task = tmp_path / "task.json"
    task.write_text(json.dumps({"shipped_weights": "other.pt"}))
    before = [bundle_root / "configs" / "train.json", task]
    assert files_of(*before, bundle_root / "configs" / f"{overlay}.json", names=["weights", "style_keys_file"]) == [
        "other.pt",
        "other_style_keys.json",
    ]


def files_of(*configs: Path, names: list[str], **typed: str) -> list[str]:
    """Settings of configs, with what was typed over them."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(list(configs))
    parser.update(typed)
    return [parser.get_parsed_content(name) for name in names]


NAMES = ("style_keys_file", "source_keys_file", "uncertainty_file")


@pytest.mark.parametrize("task", ["", "flair_to_t1", "many_to_one", "make_a_volume"])
def test_what_belongs_to_weights_lies_beside_them(bundle_root: Path, task: str):
    """Of the shipped weights every file is there but Make-A-Volume's calibration; of others it is looked for there."""
    configs = [bundle_root / "configs" / f"{name}.json" for name in ("inference", task) if name]
    begin = f"{task}_" if task else ""
    beside = [f"{begin}{name}.json" for name in ("style_keys", "source_keys", "uncertainty")]
    shipped = [Path(path) for path in files_of(*configs, names=list(NAMES))]
    assert shipped == [bundle_root / "models" / name for name in beside]
    assert [path.name for path in shipped if not path.is_file()] == ["make_a_volume_uncertainty.json"] * (
        task == "make_a_volume"
    )
    own = files_of(*configs, names=list(NAMES), weights="/runs/train/model.pt")
    assert own == [f"/runs/train/{name}.json" for name in ("style_keys", "source_keys", "uncertainty")]
    named = files_of(*configs, names=list(NAMES), weights="/runs/train/model.pt", source_keys_file="/other.json")
    assert named == [own[0], "/other.json", own[2]]


@pytest.mark.parametrize("overlay", EVALUATIONS)
@pytest.mark.parametrize("task", [(), ("flair_to_t1",), ("many_to_one_train",)])
def test_an_evaluation_of_other_weights_takes_the_style_keys_beside_them(bundle_root: Path, task, overlay: str):
    configs = [bundle_root / "configs" / f"{name}.json" for name in ("train", *task, overlay)]
    (shipped,) = files_of(*configs, names=["style_keys_file"])
    assert Path(shipped).is_file()
    begin = {(): "", ("flair_to_t1",): "flair_to_t1_", ("many_to_one_train",): "many_to_one_"}[task]
    assert Path(shipped) == bundle_root / "models" / f"{begin}style_keys.json"
    assert files_of(*configs, names=["style_keys_file"], weights="/a/anna.pt") == ["/a/anna_style_keys.json"]
    assert files_of(*configs, names=["style_keys_file"], weights="/a/anna.pt", style_keys_file="b") == ["b"]


def test_no_config_names_keys_of_fixed_weights(bundle_root: Path):
    """Beside other weights than its own such a file would go on holding for them."""
    for path in (bundle_root / "configs").glob("*.json"):
        for name, value in json.loads(path.read_text(encoding="utf-8")).items():
            if name in NAMES:
                beside = {"_target_": "scripts.weights.file_beside", "weights": "@weights"}
                assert value == {**beside, "name": f"{name.removesuffix('_file')}.json"}, path.name


@pytest.mark.parametrize("key", ["contrasts", "target_contrasts", "structure", "channels", "endpoint", "network_def"])
def test_many_contrasts_are_translated_as_they_were_trained(bundle_root: Path, key: str):
    paths = (bundle_root / "configs" / f"{name}.json" for name in ("many_to_one", "many_to_one_train"))
    shipped, trained = (json.loads(path.read_text())[key] for path in paths)
    if key == "network_def":
        assert shipped.pop("target_contrast") == "$@contrasts.index(@target)"  # in training each slab has its own
    assert shipped == trained
