"""`prepare`, killed at random moments and started again: in the end it is as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from tests.killing import contents, done_with_kills, prepare_all, random_waits

SHAPE = (24, 28, 24)
AFFINE = nib.affines.from_matvec(np.diag([7.0] * 3), [-81, -95, -81])
BAD = (b"", b"no volume", None)  # None: cut off in the middle
OPTIONS = {"source_contrast": "FLAIR", "spacing": 7.0, "bias_correction": False, "registration": False}
MEASURED = ("seconds", "peak_memory_mib")  # of a subject, other in each run


def is_bad(number):
    return number % 10 in (3, 8)


def write_subject(folder, number):
    """Two volumes of a brain of 1.1 L, other in each subject; every fifth source is bad. Gives a line of the table."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    inside = ((nib.affines.apply_affine(AFFINE, grid) / (62, 76, 58)) ** 2).sum(-1) < 1
    noise = ndimage.gaussian_filter(np.random.default_rng(number).normal(size=SHAPE), 1)
    target = np.where(inside, 600 + 150 * np.clip(noise / noise.std(), -2.5, 2.5), 0).astype(np.float32)
    names = [f"s{number:03d}_{key}.nii.gz" for key in ("source", "target")]
    for name, volume in zip(names, (np.where(inside, 1100 - 0.8 * target, 0), target), strict=True):
        nib.save(nib.Nifti1Image(volume.astype(np.float32), AFFINE), folder / name)
    if is_bad(number):
        bad, path = BAD[number // 5 % len(BAD)], folder / names[0]
        path.write_bytes(path.read_bytes()[:1000] if bad is None else bad)
    return f"s{number:03d},{','.join(names)}"


@pytest.fixture
def table(tmp_path):
    """Write so many subjects; gives the table that lists them."""

    def write(number):
        (folder := tmp_path / "scans").mkdir()
        lines = ["subject,source,target", *(write_subject(folder, subject) for subject in range(number))]
        (folder / "pairs.csv").write_text("\n".join(lines))
        return str(folder / "pairs.csv")

    return write


class Watch:
    """Looks, while nothing runs, that what is done is not made twice."""

    def __init__(self, out):
        self.out, self.made = out, {}

    def __call__(self):
        for subject in record_of(self.out)["subjects"] if (self.out / "prepare.json").exists() else ():
            for key in ("source", "target", "mask"):
                changed = (self.out / f"{subject}_{key}.nii.gz").stat().st_mtime_ns
                assert self.made.setdefault((subject, key), changed) == changed


def record_of(out):
    """prepare.json without what is other in each run."""
    record = json.loads((out / "prepare.json").read_text())
    for subject in record["subjects"].values():
        for key in MEASURED:
            subject.pop(key)
    return record


def check_same(out, whole, number):
    """Every good output is there, bit for bit, every bad subject is listed once, and nothing else is left."""
    made, expected = contents(out), contents(whole)
    assert made.keys() == expected.keys()
    assert {name for name in made if made[name] != expected[name]} <= {"prepare.json"}
    assert record_of(out) == record_of(whole)
    good = [f"s{subject:03d}" for subject in range(number) if not is_bad(subject)]
    assert sorted(record_of(out)["subjects"]) == good
    assert {f"{subject}_{key}.nii.gz" for subject in good for key in ("source", "target", "mask")} <= made.keys()
    failures = [failure["subject"] for failure in json.loads(made["failures.json"])]
    assert sorted(failures) == [f"s{subject:03d}" for subject in range(number) if is_bad(subject)]


@pytest.mark.slow
def test_prepare(tmp_path, table):
    """One process, killed in the middle of whatever it does."""
    out, whole, number = tmp_path / "out", tmp_path / "whole", 10
    pairs = table(number)
    done_with_kills(prepare_all, (pairs, str(whole), OPTIONS), [], lambda: None)
    killed = done_with_kills(prepare_all, (pairs, str(out), OPTIONS), random_waits(5, 0.6, seed=0), Watch(out))
    assert killed > 1  # it was at work
    check_same(out, whole, number)


def command(bundle_root, log, pairs, out):
    """Start it as it is typed, in a session of its own; what it says goes to a file, which no orphan holds open."""
    words = ["csv", pairs, str(out), *(f"--{name}={value}" for name, value in OPTIONS.items()), "--num_workers=3"]
    started = [sys.executable, "-m", "scripts", "prepare", *words]
    settings = {"cwd": bundle_root, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "start_new_session": True}
    with log.open("ab") as file:
        return subprocess.Popen(started, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **settings)


@pytest.mark.slow
def test_the_command_with_its_workers(bundle_root, tmp_path, table):
    """All its processes are killed at once, eight times."""
    out, whole, log, number = tmp_path / "out", tmp_path / "whole", tmp_path / "log", 40
    pairs, look, killed = table(number), Watch(tmp_path / "out"), 0
    assert command(bundle_root, log, pairs, whole).wait(600) == 0, log.read_text()
    for wait in random_waits(8, 1.0, seed=1):
        process, saved = command(bundle_root, log, pairs, out), set()
        while process.poll() is None and len(saved) < 3:  # before it started, at its start, after the first subject
            saved |= {path.stat().st_mtime_ns for path in out.glob("prepare.json")} or {0}
            time.sleep(0.02)
        time.sleep(wait)
        killed += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
        look()
    assert killed > 2
    assert command(bundle_root, log, pairs, out).wait(600) == 0, log.read_text()
    look()
    check_same(out, whole, number)
