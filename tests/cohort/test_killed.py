"""Cohorts whose process is killed at random moments: in the end they are as if nothing had happened."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.errors import TERMINATED
from tests.killing import contents, done_with_kills, random_waits, started, translate_all
from tests.phantoms import centred_affine, head_ct

SHAPE = (17, 20, 16)
AFFINE = centred_affine(np.diag([12.0] * 3), SHAPE)
BAD = (b"", b"no volume", None)  # None: cut off in the middle
SIZES = [pytest.param(12, 3, 1.5, id="small"), pytest.param(300, 20, 6.0, id="large")]


def write_case(path, number):
    """A small head, other in each case; every tenth is bad."""
    rng = np.random.default_rng(number)
    volume = head_ct(AFFINE, SHAPE) + rng.normal(0, 3, SHAPE) * (head_ct(AFFINE, SHAPE) > -900)
    nib.save(nib.Nifti1Image(volume.astype(np.int16), AFFINE), path)
    if number % 10 == 3:
        bad = BAD[number // 10 % len(BAD)]
        path.write_bytes(path.read_bytes()[:1000] if bad is None else bad)


def is_bad(number):
    return number % 10 == 3


def settings_for(folder, number):
    """The main job's options for so many cases, which it writes, and a network that returns the source."""
    (folder / "in").mkdir()
    for case in range(number):
        write_case(folder / "in" / f"c{case:03d}.nii.gz", case)
    torch.save({}, folder / "echo.pt")
    return {
        "dataset_dir": str(folder / "in"),
        "network_def": {"_target_": "tests.phantoms.EchoNetwork", "slab_size": 3},
        "weights": str(folder / "echo.pt"),
        "style_key": "none",
        **{"spacing": [12.0] * 3, "size_multiple": 1, "num_inference_steps": 1, "detail": 0.0},
        **{"dtype": "float32", "skull_strip": "none", "check_hounsfield": False, "lesion_watch": False},
    }


def stopped_while_saving(process, folder):
    """Stop (SIGSTOP) a process while it has a case half written."""
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        if list(folder.glob(".*.partial.case")):
            os.kill(process.pid, signal.SIGSTOP)
            while not stands_still(process.pid) and time.monotonic() < deadline:
                time.sleep(0.001)
            if any(path.is_file() for path in folder.glob(".*.partial.case/*")):
                return
            os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.001)
    process.kill()
    raise AssertionError("it was not met with a case half written")


def stands_still(pid):
    """Whether all threads of a process are stopped: SIGSTOP takes its time, and a thread of its own saves."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # of a thread that ends meanwhile
        stats = [(thread / "stat").read_text() for thread in Path(f"/proc/{pid}/task").iterdir()]
        return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)
    return False


@pytest.mark.slow
def test_sigterm_ends_it_when_the_case_that_is_being_saved_is_saved(bundle_root, tmp_path):
    """As SLURM ends a job whose time is over: SIGCONT, SIGTERM. Nothing half is left, hidden or not."""
    settings = {**settings_for(tmp_path, 12), "output_dir": str(tmp_path / "out")}
    process = started(translate_all, str(bundle_root / "configs" / "inference.json"), settings)
    stopped_while_saving(process, tmp_path / "out")
    process.terminate()
    os.kill(process.pid, signal.SIGCONT)
    process.join(60)
    assert process.exitcode == TERMINATED
    names = {path.name for path in (tmp_path / "out").iterdir()} - {"failures.json"}
    stems = {name.split(".")[0] for name in names}
    assert 1 <= len(stems) < 11
    assert names == {f"{stem}{ending}" for stem in stems for ending in (".json", ".nii.gz", ".png")}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "kills", "longest"), SIZES)
def test_the_main_job(bundle_root, tmp_path, number, kills, longest):
    """Every good output is there, bit for bit, none is made twice, every bad case is listed, nothing else is left."""
    settings = settings_for(tmp_path, number)
    config = str(bundle_root / "configs" / "inference.json")
    done_with_kills(translate_all, (config, {**settings, "output_dir": str(tmp_path / "whole")}), [], lambda: None)
    made = {}

    def look():
        for record in (tmp_path / "out").glob("c*.json"):
            image = record.with_suffix(".nii.gz")
            assert made.setdefault(record.name, image.stat().st_mtime_ns) == image.stat().st_mtime_ns

    work = (config, {**settings, "output_dir": str(tmp_path / "out")})
    killed = done_with_kills(translate_all, work, random_waits(kills, longest, seed=number), look)
    assert killed > kills // 3  # it was at work
    stems = [f"c{case:03d}_t1" for case in range(number) if not is_bad(case)]
    good = {f"{stem}{ending}" for stem in stems for ending in (".json", ".nii.gz", ".png")}
    assert contents(tmp_path / "out").keys() == {*good, "failures.json"}
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    failures = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert [failure["case"] for failure in failures] == [f"c{case:03d}" for case in range(number) if is_bad(case)]
