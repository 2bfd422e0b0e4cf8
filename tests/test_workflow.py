"""What all workflows share."""

import json
import re
import sys
import unicodedata
from pathlib import Path

import pytest
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from scripts import workflow
from scripts.errors import CaseError, reason
from scripts.options import is_text


def test_bundle_root(bundle_root):
    assert workflow.bundle_root() == str(bundle_root)


def test_start_shortens_errors_and_refuses_mistyped_options(bundle_root, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", default := sys.excepthook)  # put back afterwards
    monkeypatch.setattr(workflow, "keep_freed_memory", lambda: None)  # it holds for the whole process
    command = ["/site-packages/monai/bundle/__main__.py", "run"]
    command += ["--config_file", str(bundle_root / "configs" / "inference.json")]
    workflow.start([*command, "--dataset_dir", "x"])
    with pytest.raises(CaseError, match="did you mean dataset_dir"):
        workflow.start([*command, "--datset_dir", "x"])
    with pytest.raises(CaseError, match="The device cuda:99 is not here; use cpu"):
        workflow.start([*command, "--device", "cuda:99"])
    workflow.start([*command, "--device", "cpu"])
    assert sys.excepthook is not default


def test_a_workflow_is_started_as_its_command_would(bundle_root, monkeypatch):
    """What is typed is read as it is there, whatever this process was started with; its cases are looked for later."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(workflow, "keep_freed_memory", lambda: None)
    argv = list(sys.argv)
    config = f"--config_file={[str(bundle_root / 'configs' / 'inference.json')]}"
    words = [config, "--dataset_dir", "nowhere", "--output_dir=hs #2", "--overwrite=True", "--logging_file=False"]
    setting = workflow.started_workflow(words, cases=[]).parser.get_parsed_content
    assert setting("output_dir") == "hs #2"
    assert setting("overwrite") is True
    assert setting("own_cases") == []
    assert sys.argv == argv
    with pytest.raises(RuntimeError) as refused:
        workflow.started_workflow([config, "--datset_dir=x", "--logging_file=False"])
    assert reason(refused.value) == "There is no setting datset_dir; did you mean dataset_dir?"
    assert sys.argv == argv


WORDS = [
    *("hs #2", "Doe, Jane", "3.10", "1e5", "@x", "$1/0", "None", "True", "a:b", "~", "a/b #c/d", "50%"),
    *("{_target_: x}", "~no_such_user", "[x]"),
    *("'q\"", "line\nline", "ends ", "u\u0308", "\u00fc", "caf\udce9", "x::y", "@output_dir", "-1", "a@#b"),
]


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """Settings of a small config, started as `python -m monai.bundle run` starts it, with words typed."""
    monkeypatch.setattr(workflow, "shorten_errors", lambda: None)
    monkeypatch.setattr(workflow, "keep_freed_memory", lambda: None)

    def function(*words, written=None, **overrides):
        content = {
            "output_dir": "out",
            "dataset_dir": "data",
            "section": None,
            "window": [0, 80],
            "both": "$@dataset_dir + '|' + @output_dir",
            "initialize": [{"_target_": "scripts.workflow.start"}],
            **(written or {}),
        }
        (tmp_path / "config.json").write_text(json.dumps(content))
        command = ["/site-packages/monai/bundle/__main__.py", "run", "--config_file", str(tmp_path / "config.json")]
        monkeypatch.setattr(sys, "argv", [*command, *words])
        parser = ConfigParser(content)
        parser.update({name: value for name, value in overrides.items() if value is not None})  # as MONAI does
        parser.parse(reset=True)
        parser.get_parsed_content("initialize")
        return parser.get_parsed_content

    return function


@pytest.mark.parametrize("word", WORDS)
def test_paths_are_read_as_typed(typed, word):
    """Whatever fire and MONAI make of them: nothing is evaluated, no reference followed, no character changed."""
    setting = typed(f"--dataset_dir={word}", "--output_dir", "3.0", dataset_dir=DefaultParseValue(word), output_dir=3.0)
    text = str(Path.cwd() / word) if word == "~no_such_user" else word  # pathlib would look for the home of that user
    assert setting("dataset_dir") == text
    assert setting("both") == f"{text}|3.0"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_folder_is_found_however_its_accents_are_stored(typed, tmp_path, form):
    """macOS stores two characters where a keyboard types one."""
    stored = tmp_path / unicodedata.normalize(form, "J\u00fcrgen")
    stored.mkdir()
    for other in ("NFC", "NFD"):
        word = unicodedata.normalize(other, str(stored))
        assert typed("--dataset_dir", word, dataset_dir=word)("dataset_dir") == str(stored)


def test_what_is_no_text_is_left_to_the_command_line_but_none_is_none(typed):
    setting = typed("--window", "10,20", "--section", "None", window=(10, 20))
    assert setting("window") == (10, 20)
    assert setting("section") is None
    assert typed("--window", "None")("window") is None


def test_a_number_sign_in_a_config_file_stays_one(typed):
    setting = typed(written={"dataset_dir": "hs #2", "output_dir": "$'out' + @section", "section": "x"})
    assert setting("both") == "hs #2|outx"


def test_other_commands_change_nothing(typed, monkeypatch):
    setting = typed("--dataset_dir", "x")
    monkeypatch.setattr(sys, "argv", ["pytest", "--dataset_dir", "x"])
    assert setting("dataset_dir") == "x"
    workflow.start()


def test_every_workflow_starts_before_anything_else(bundle_root):
    """Else a typed path could be evaluated, or the errors of the first steps come with a traceback.

    The main job may be typed in any folder, from which MONAI finds this package only once it runs; what it does before
    needs no path and no name.
    """
    start = {"_target_": "scripts.workflow.start"}
    for path in (bundle_root / "configs").glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "inference.json":
            before = re.findall(r"@(\w+)", json.dumps(content["initialize"]))
            assert content["run"][0] == start
            assert not any(map(is_text, before))
        elif "initialize" in content:
            assert content["initialize"][0] == start, path.name
    assert json.loads((bundle_root / "configs" / "train.json").read_text(encoding="utf-8"))["initialize"]


def test_a_config_as_it_was_read_makes_another_one():
    config = {"name": "anna", "said": "$@name + '!'", "copy": "$workflow.config_as_read()"}
    parser = ConfigParser({"imports": ["$import scripts.workflow as workflow"], **config})
    assert parser.get_parsed_content("said") == "anna!"
    copied = parser.get_parsed_content("copy")
    assert {name: copied[name] for name in config} == config
    copied["name"] = "bert"
    assert ConfigParser(copied).get_parsed_content("said") == "bert!"
    assert parser["name"] == "anna"
    with pytest.raises(RuntimeError, match="no config is being evaluated"):
        workflow.config_as_read()
