"""Options: mistyped ones are refused, and values are checked in one way."""

import inspect
import json
from collections.abc import Sequence
from math import inf, nan
from pkgutil import resolve_name
from typing import Any, get_args

import fire
import pytest

from scripts.__main__ import COMMANDS
from scripts.errors import CaseError
from scripts.options import (
    check_options,
    config_files,
    is_text,
    names,
    number,
    one_of,
    taking_text,
    true_or_false,
    two_increasing,
    typed_options,
    whole_number,
)

MONAI_BUNDLE = "/site-packages/monai/bundle/__main__.py"


@pytest.fixture
def config(bundle_root):
    return str(bundle_root / "configs" / "inference.json")


@pytest.mark.parametrize(
    "options",
    [
        ["--dataset_dir", "x", "--output-dir=y", "--batch_size", "-1"],
        ["--network_def#channels", "[1]", "--inferer::eta=0.5", "--logging_file", "x", "--+imports", "[]"],
    ],
)
def test_known_options_pass(config, options):
    check_options([MONAI_BUNDLE, "run", "--config_file", config, *options])
    check_options([MONAI_BUNDLE, "run", f"--config_file={[config, config]}", *options])


@pytest.mark.parametrize(
    ("option", "nearest"), [("--datset_dir", "dataset_dir"), ("--networkdef#channels", "network_def")]
)
def test_a_mistyped_option_is_refused(config, option, nearest):
    with pytest.raises(CaseError, match=rf"There is no setting \w+; did you mean {nearest}\?"):
        check_options([MONAI_BUNDLE, "run", "--config_file", config, option, "x"])


def test_a_path_without_a_value_is_refused(config):
    for words in (["--output_dir"], ["--output_dir", "-x"], ["--output_dir", "--seed", "1"], ["--output_dir="]):
        with pytest.raises(CaseError, match="output_dir has no value"):
            check_options([MONAI_BUNDLE, "run", "--config_file", config, *words])
    check_options([MONAI_BUNDLE, "run", "--config_file", config, "--output_dir=-x", "--overwrite"])


def test_words_are_told_apart_as_fire_does():
    """Fire itself is the reference: it gives the same names to the same words, but makes Python of some values."""
    words = ["--a=b=c", "-bc", "x y", "--d-e", "-1", "--f", "--g#h", "", "--f=2", "--i", "Doe, Jane #3"]
    seen = {}
    fire.Fire({"run": fire.decorators.SetParseFn(str)(lambda **options: seen.update(options))}, ["run", *words])
    typed = typed_options([MONAI_BUNDLE, "run", *words])
    assert typed == {"a": "b=c", "bc": "x y", "d_e": "-1", "f": "2", "g#h": "", "i": "Doe, Jane #3"}
    assert {name: value for name, value in typed.items() if value is not None} == seen


def test_every_path_and_name_of_the_configs_is_known_to_be_text(bundle_root):
    """A setting that says a file, a folder or weights has to be in the list, or the command line mangles its value."""
    for path in (bundle_root / "configs").glob("*.json"):
        for name, value in json.loads(path.read_text(encoding="utf-8")).items():
            looks = isinstance(value, str) and ("_root + '/" in value or "_dir + '/" in value or "shipped_" in value)
            if looks and "#" not in name and "(" not in value:
                assert is_text(name), f"{name} of {path.name}"
    assert not any(map(is_text, ("batch_size", "dtype", "device", "hu_window", "config_file", "logging_file")))


@pytest.mark.parametrize(
    "word", ["hs #2", "Doe, Jane", "3.10", "1e5", "@x", "$x", "True", "None", "a:b", "~", "{a: b}", "[x]", "'q'", " x "]
)
def test_a_command_gets_its_texts_as_typed_and_its_numbers_as_numbers(word):
    def command(folder: str, spacing: float = 1.0, window: Sequence[float] = (), anything: Any = None, **more: Any):
        return folder, spacing, window, anything, more

    typed = [word, "--spacing", "1.50", "--window", "0,80", "--anything", "[1,2]", "--style_key", word]
    expected = (word, 1.5, (0, 80), [1, 2], {"style_key": word})
    assert fire.Fire(taking_text(command), typed, serialize=lambda _: None) == expected


def test_none_and_lists_where_they_are_allowed():
    def command(a: str | None = "x", b: Sequence[str] | str = (), c: Sequence[str] | str = (), *paths: str):
        return a, b, c, paths

    typed = ["None", "[p, q]", "p, q", "3.10", "hs #2"]
    assert fire.Fire(taking_text(command), typed, serialize=lambda _: None) == (
        None,
        ["p", "q"],
        "p, q",
        ("3.10", "hs #2"),
    )


def test_the_commands_take_paths_as_text():
    """`taking_text` goes by annotations, so that each folder and file of a command has to be annotated as text."""
    for target in COMMANDS.values():
        for name, parameter in inspect.signature(resolve_name(target), eval_str=True).parameters.items():
            if name.endswith(("dir", "paths")) or name in ("input", "output", "synthetic", "real", "weights", "spool"):
                assert str in {parameter.annotation, *get_args(parameter.annotation)}, f"{name} of {target}"


def test_other_programs_options_are_their_own(config):
    check_options(["/bin/pytest", "run", "--config_file", config, "--anything", "x"])
    check_options([MONAI_BUNDLE, "run", "--args_file", "args.json", "--anything", "x"])


def test_what_fits_is_given_back():
    assert one_of("format", "onnx", {"onnx": 1, "torchscript": 2}) == "onnx"
    assert true_or_false("bias_correction", False) is False
    assert [whole_number("cases", value, least=0, most=2) for value in (0, 2)] == [0, 2]
    assert [number("margin", value, most=20) for value in (0, 2.5, 20)] == [0.0, 2.5, 20.0]
    assert number("test_fraction", 0.99, below=1) == 0.99
    assert two_increasing("hu_window", [0, 80], "HU") == two_increasing("hu_window", (0.0, "80"), "HU") == (0.0, 80.0)


@pytest.mark.parametrize("typed", ["b,a", "[b, a]", ("b", "a"), ["b", "a", "b"]])
def test_names_come_in_the_order_of_those_there_are(typed):
    assert names("rows", typed, known=["a", "b", "c"]) == ["a", "b"]
    assert names("rows", typed) == ["b", "a"]


def test_no_names():
    assert names("rows", None, known="ab") == names("rows", "") == names("rows", ()) == []
    assert names("subjects", 7, known=["6", "7"]) == ["7"]  # the command line makes a number of it


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: one_of("format", "tflite", ["onnx", "ts"]), "format is tflite; use one of onnx, ts."),
        (lambda: names("rows", "a,d", "abc"), "rows names d, which is not there; use some of a, b, c."),
        (lambda: true_or_false("registration", "no"), "registration is no; use True or False."),
        (lambda: whole_number("cases", 0), "cases is 0; use a whole number of at least 1."),
        (lambda: whole_number("cases", 2.0), "cases is 2.0; use a whole number of at least 1."),
        (lambda: whole_number("cases", True), "cases is True; use a whole number of at least 1."),
        (lambda: whole_number("steps", 9, 1, 8), "steps is 9; use a whole number from 1 to 8."),
        (lambda: number("margin", -1, unit="mm"), "margin is -1; use a number of at least 0 mm."),
        (lambda: number("margin", "wide", 0.2, 20), "margin is wide; use a number from 0.2 to 20."),
        (lambda: number("share", 1, below=1), "share is 1; use a number of at least 0 and below 1."),
        (lambda: number("margin", nan), "margin is nan; use a number of at least 0."),
        (lambda: number("margin", inf), "margin is inf; use a number of at least 0."),
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(call, sentence):
    with pytest.raises(CaseError) as error:
        call()
    assert str(error.value) == sentence


@pytest.mark.parametrize("typed", [80, (80, 0), (0, 0), "0,80,90", (0, inf), (nan, 1), None])
def test_a_window_is_two_increasing_numbers(typed):
    with pytest.raises(CaseError, match=r"^hu_window is .*; use two increasing numbers of HU, for example 0,80\.$"):
        two_increasing("hu_window", typed, "HU")


def test_config_files_that_are_not_there_or_damaged_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.json").write_text('{"a": 1}')
    (tmp_path / "damaged.json").write_text('{"a": 1')
    (tmp_path / "notes.txt").write_text("a")
    assert config_files("good.json") == [str(tmp_path / "good.json")]
    for typed in ("['good.json', 'good.json']", "good.json,good.json", ["good.json", "good.json"]):
        assert config_files(typed) == [str(tmp_path / "good.json")] * 2
    for typed in ("good.json,absent.json", "['good.json','absent.json']", ["good.json", "absent.json"]):
        with pytest.raises(CaseError, match=r"^There is no config file absent\.json; check config_file\.$"):
            config_files(typed)
    for name in ("damaged.json", "notes.txt"):
        with pytest.raises(CaseError, match=rf"^{name} is no config file \(.*\); repair it, or check config_file\.$"):
            config_files(name)
