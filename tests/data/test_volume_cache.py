"""Prepared volumes on disk: what they belong to, and that nothing wrong comes back."""

import functools
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandGaussianNoise, ScaleIntensityRanged

from scripts.data import volume_cache
from scripts.data.volume_cache import fingerprint, prepared_arrays
from scripts.errors import CaseError


def doubled(item: dict, log: str, factor: float = 2.0) -> dict[str, np.ndarray]:
    """What a file says, times a factor; each call leaves a line in the log."""
    with open(log, "a") as file:
        file.write(item["subject"] + "\n")
    if not Path(item["target"]).read_text():
        raise CaseError(f"The target of {item['subject']} is empty.")
    return {"target": factor * np.float32([float(Path(item["target"]).read_text())])}


@pytest.fixture
def items(tmp_path: Path) -> list[dict]:
    entries = [{"subject": f"s{n}", "target": str(tmp_path / f"s{n}.txt")} for n in range(3)]
    for n, entry in enumerate(entries):
        Path(entry["target"]).write_text(str(n))
    return entries


@pytest.fixture
def prepare(tmp_path: Path, items: list[dict]):
    """Prepare the items; gives their values and the subjects that had to be made."""

    def function(more: dict | None = None, num_workers: int = 1, **settings: float) -> tuple[list[float], list[str]]:
        log = tmp_path / "log"
        log.write_text("")
        make = functools.partial(doubled, log=str(log), **settings)
        entries = [{**item, **(more or {})} for item in items]
        arrays = prepared_arrays(entries, make, tmp_path / "cache", num_workers, unused=("weight",))
        return [float(a["target"][0]) for a in arrays], sorted(log.read_text().split())

    return function


def test_a_contrasts_file_is_told_by_its_contents(prepare, tmp_path):
    path = tmp_path / "t2.txt"
    path.write_text("a")
    prepare({"contrast_T2": str(path)})
    moved = path.rename(tmp_path / "moved.txt")
    assert prepare({"contrast_T2": str(moved)})[1] == []
    moved.write_text("b")
    assert prepare({"contrast_T2": str(moved)})[1] == ["s0", "s1", "s2"]


def test_a_second_start_makes_nothing(prepare):
    assert prepare() == ([0, 2, 4], ["s0", "s1", "s2"])
    assert prepare() == ([0, 2, 4], [])
    assert prepare({"weight": 3.0}) == ([0, 2, 4], [])


def test_what_changed_is_made_again(prepare, items, tmp_path):
    prepare()
    Path(items[1]["target"]).write_text("7")
    assert prepare() == ([0, 14, 4], ["s1"])
    assert prepare(factor=3.0) == ([0, 21, 6], ["s0", "s1", "s2"])
    assert prepare({"protocol": 5})[1] == ["s0", "s1", "s2"]
    assert prepare() == ([0, 14, 4], [])  # the others stay


def test_a_damaged_file_is_made_again(prepare, tmp_path, caplog):
    prepare()
    cached = sorted((tmp_path / "cache").iterdir())
    assert len(cached) == 3
    cached[0].write_bytes(cached[0].read_bytes()[:100])
    content = bytearray(cached[1].read_bytes())
    content[content.index(b"NUMPY") + 128] ^= 1  # one bit of the voxels
    cached[1].write_bytes(bytes(content))
    values, made = prepare()
    assert values == [0, 2, 4]
    assert len(made) == 2
    assert caplog.text.count("is damaged") == 2
    assert prepare()[1] == []


def test_a_cache_that_cannot_be_written_does_not_stop(prepare, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file, no folder")
    assert prepare()[0] == [0, 2, 4]
    assert "cannot be written" in caplog.text


def test_an_error_is_the_subjects_own_and_the_good_ones_are_kept(prepare, items):
    Path(items[2]["target"]).write_text("")
    with pytest.raises(CaseError, match="The target of s2 is empty"):
        prepare()
    Path(items[2]["target"]).write_text("5")
    assert prepare() == ([0, 2, 10], ["s2"])


def refused(item: dict) -> dict[str, np.ndarray]:
    """What MONAI makes of a transform that refuses a subject."""
    return Compose([refusal])(item)


def refusal(item: dict) -> dict[str, np.ndarray]:
    raise CaseError(f"{item['subject']} is no CT.") from OSError("a reader's own words")


def test_the_sentence_survives_the_way_from_another_process(items):
    with pytest.raises(RuntimeError, match="applying transform"):
        refused(items[0])
    sent = pickle.loads(pickle.dumps(volume_cache._attempt(refused, items, 0)))
    assert isinstance(sent, CaseError)
    assert str(sent) == "s0 is no CT."


@pytest.mark.slow
def test_several_processes_give_the_same(prepare, items):
    assert prepare(num_workers=2) == ([0, 2, 4], ["s0", "s1", "s2"])
    Path(items[2]["target"]).write_text("")
    with pytest.raises(CaseError, match="The target of s2 is empty"):
        prepare(num_workers=2, factor=3.0)


def test_a_lambda_is_neither_cached_nor_sent(items, caplog):
    make = functools.partial(_apply, function=lambda item: {"a": np.ones(1)})
    arrays = prepared_arrays(items, make, "/nowhere/cache", num_workers=2)
    assert len(arrays) == 3
    assert "not kept" in caplog.text
    assert "one after the other" in caplog.text


def _apply(item: dict, function) -> dict:
    return function(item)


def test_a_fingerprint_tells_transforms_apart_and_not_their_random_state():
    make = lambda top: Compose([ScaleIntensityRanged("a", 0, top, 0, 1), RandGaussianNoise(std=0.2)])  # noqa: E731
    first, same, other = fingerprint(make(80)), make(80), fingerprint(make(81))
    same.set_random_state(5)
    assert fingerprint(same) == first != other
    json.dumps(first)
    assert fingerprint(functools.partial(max, key=torch.float16)) != fingerprint(functools.partial(max, key=None))


@pytest.mark.parametrize("overlays", [[], ["configs/simulated_ct.json"]], ids=["real", "simulated"])
@pytest.mark.slow
def test_the_shipped_preparation_has_the_same_fingerprint_in_every_process(bundle_root, overlays):
    code = (
        "import json; from monai.bundle import ConfigParser; from scripts.data.volume_cache import fingerprint;"
        f"p = ConfigParser(); p.read_config(['configs/train.json', *{overlays}]); p['ct_window'] = None;"
        "print(json.dumps([fingerprint(p.get_parsed_content(k)) for k in ('load', 'render')]))"
    )
    ran = [
        subprocess.run([sys.executable, "-c", code], cwd=bundle_root, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    first, second = (json.loads(done.stdout.splitlines()[-1]) for done in ran)
    assert first == second
    assert "FlattenHUTrend" in json.dumps(first)


def test_files_of_another_format_are_made_anew_with_one_line(prepare, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    prepare()
    assert caplog.text == ""
    for path in (tmp_path / "cache").iterdir():  # as they were called before there were formats
        path.rename(path.with_name(path.name.replace(f".v{volume_cache.FORMAT}", "")))
    assert prepare() == ([0, 2, 4], ["s0", "s1", "s2"])
    assert caplog.text.count("in another format") == 1
    caplog.clear()
    assert prepare() == ([0, 2, 4], [])
    assert "another format" not in caplog.text


def test_other_code_makes_other_files(prepare, monkeypatch):
    prepare()
    monkeypatch.setattr(volume_cache, "_code_digest", lambda: "another version")
    assert prepare()[1] == ["s0", "s1", "s2"]
