"""What comes from strangers is read, never run: weights, keys, lists, arrays, requests, names."""

import ast
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from scripts.conditioning.style_key import load_style_keys
from scripts.data.datalists import inference_datalist
from scripts.data.training import training_datalist
from scripts.engines.state import ResumableTraining
from scripts.errors import CaseError
from scripts.prepare.quality import quality_page
from scripts.prepare.volumes import convert_npz
from scripts.serving.requests import KeepRequestd
from scripts.weights import load_weights
from tests.phantoms import write_head_ct

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
# what would run or unpack what it is given
BANNED = {
    *("eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "os.system", "os.popen", "yaml.load"),
    *("shutil.unpack_archive", "subprocess.getoutput", "marshal.loads", "runpy.run_path", "joblib.load"),
}


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.fixture
def trap(tmp_path):
    """A trap, whose file must not be there at the end."""
    yield Trap(tmp_path / "sprung")
    assert not (tmp_path / "sprung").exists()


def test_no_source_calls_what_runs_or_unpacks_what_it_is_given():
    for path in SCRIPTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert called not in BANNED, f"{path.name}: {called}"
                assert not called.endswith((".extractall", ".extract")), f"{path.name}: {called}"
                assert keywords.get("shell", "False") == "False", f"{path.name}: {called} with a shell"
                assert keywords.get("allow_pickle", "False") == "False", f"{path.name}: {called} unpickles"
                if called == "torch.load":
                    assert keywords.get("weights_only") == "True", path.name


def test_weights(tmp_path, trap):
    torch.save({"weight": trap}, tmp_path / "model.pt")
    with pytest.raises(CaseError, match="more than tensors"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "model.pt")


def test_the_checkpoint_that_a_training_goes_on_from(tmp_path, trap):
    torch.save({"network": trap}, tmp_path / "checkpoint_epoch=1.pt")
    engine = Engine(lambda engine, batch: None)
    engine.state.rank = 0
    with pytest.raises(CaseError, match="holds more than tensors"):
        ResumableTraining(tmp_path, {"network": torch.nn.Linear(1, 1)}, 1, "cpu").attach(engine)


def test_an_array(tmp_path, trap):
    np.savez(tmp_path / "a.npz", vol=np.array([trap], dtype=object))
    with pytest.raises(CaseError, match="no array vol"):
        convert_npz(tmp_path / "a.npz", tmp_path / "a.nii")


def test_style_keys(tmp_path, trap):
    torch.save({"average": trap}, tmp_path / "keys.json")
    with pytest.raises(ValueError, match=r"keys\.json"):
        load_style_keys(tmp_path / "keys.json")


def test_a_list_of_cases_is_text_and_names_nothing_outside(tmp_path):
    """An expression in it is a name like any other; a subject that would be a path is refused, or fails alone."""
    write_head_ct(tmp_path / "in" / "a.nii.gz")
    entry = {"source": "a.nii.gz", "target": "a.nii.gz"}
    names = ["$open('sprung','w')", "../../outside", "/outside", "@output_dir"]
    listed = {"training": [{"subject": name, **entry} for name in names], "validation": [], "test": []}
    (tmp_path / "in" / "datalist.json").write_text(json.dumps(listed))
    cases = inference_datalist(tmp_path / "in", tmp_path / "out")
    assert sorted(case["case"] for case in cases if "failure" not in case) == ["$open('sprung','w')", "@output_dir"]
    assert all("/" not in case["case"] for case in cases)
    with pytest.raises(CaseError, match="no name of a file"):
        training_datalist(str(tmp_path / "in"), "training")


@pytest.mark.parametrize("name", ["device", "model_filename", "result_dtype", "result_extension"])
def test_a_request_for_something_else_is_refused(tmp_path, name):
    with pytest.raises(CaseError, match=name.split("_", maxsplit=1)[0]):
        KeepRequestd("image")({"image": MetaTensor(torch.zeros(1, 2, 2, 2)), name: expression(tmp_path)})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["style_key", "sampler", "num_inference_steps"])
def test_a_setting_of_a_request_stays_text(tmp_path, name):
    """It is looked up later, by `RequestInferer`, where nobody has that name."""
    data = {"image": MetaTensor(torch.zeros(1, 2, 2, 2)), name: expression(tmp_path)}
    assert KeepRequestd("image")(data)["image"].meta["request"] == {name: expression(tmp_path)}
    assert os.listdir(tmp_path) == []


def expression(folder: Path) -> str:
    """What MONAI's config would evaluate, to leave a file."""
    return f"$open({str(folder / 'sprung')!r}, 'w')"


def test_names_in_the_page_of_a_prepared_set():
    name = "<script>alert(1)</script>\"'&"
    record = {
        "person": name,
        "section": name,
        "registration": None,
        "brain": {"millilitres": 1, "from": name, "seen": 0.5},
        "target": {"contrast": name, "spacing_mm": [1, 1, 1]},
    }
    page = quality_page({name: record}, {name: name}, [{"subject": name, "reason": name}])
    assert "<script" not in page
    assert "onerror" not in page
    assert page.count("&lt;script&gt;") >= 8
