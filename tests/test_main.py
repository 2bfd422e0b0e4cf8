"""The commands of `python -m scripts`, typed as a user types them."""

import os
import signal
import subprocess
import sys
import time
from pkgutil import resolve_name

import nibabel as nib
import numpy as np
import pytest

from scripts.__main__ import COMMANDS


@pytest.fixture(scope="module")
def scripts(bundle_root):
    """Run `python -m scripts` in the bundle's folder."""

    def function(*arguments):
        command = [sys.executable, "-m", "scripts", *arguments]
        return subprocess.run(command, cwd=bundle_root, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    return function


def test_help_lists_every_command_with_a_sentence(scripts):
    ended = scripts("--help")
    assert ended.returncode == 0
    shown = ended.stdout.splitlines()
    for name, function in COMMANDS.items():
        line = next(number for number, text in enumerate(shown) if text.strip() == name)
        assert shown[line + 1].strip() == resolve_name(function).__doc__.splitlines()[0]


def test_a_command_that_is_not_there_is_refused(scripts):
    ended = scripts("evalute")
    assert ended.returncode == 1
    assert ended.stderr.startswith("There is no command evalute. The commands are prepare, evaluate, ")


def test_an_option_that_is_not_there_is_refused_before_any_work(scripts, tmp_path):
    ended = scripts("evaluate", "--synthetic", "a", "--reel", "b", "--output_dir", str(tmp_path / "out"))
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1] == "There is no option reel; did you mean real?"
    assert not (tmp_path / "out").exists()


def test_evaluate_prints_a_table(scripts, tmp_path):
    volume = np.random.default_rng(0).random((12, 13, 14)) * (np.indices((12, 13, 14)).min(axis=0) > 1)
    for name in ("synthetic", "real"):
        nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / f"{name}.nii.gz")
    files = [str(tmp_path / f"{name}.nii.gz") for name in ("synthetic", "real")]
    ended = scripts("evaluate", *files, "--output_dir", str(tmp_path / "eval"))
    assert ended.returncode == 0
    assert "| inside the brain | Pearson | PSNR (dB) | SSIM |" in ended.stdout
    assert "\n| synthetic | 1.0000 | " in ended.stdout


@pytest.mark.slow
def test_ctrl_c_ends_prepare_with_a_sentence_and_without_children(bundle_root, tmp_path):
    """Typed in a terminal it reaches the command and its processes alike."""
    volume = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)
    for name in ("a", "b", "c", "d"):
        nib.save(nib.Nifti1Image(volume, 4 * np.eye(4)), tmp_path / f"{name}.nii.gz")
    (tmp_path / "pairs.csv").write_text("subject,source,target\nx,a.nii.gz,b.nii.gz\ny,c.nii.gz,d.nii.gz\n")
    command = [sys.executable, "-m", "scripts", "prepare", "csv", str(tmp_path / "pairs.csv"), str(tmp_path / "set")]
    command += ["--source_contrast", "FLAIR", "--registration", "False", "--num_workers", "2"]
    waiting = f"import pathlib, time; pathlib.Path({str(tmp_path / 'begun')!r}).touch(); time.sleep(99)"
    (tmp_path / "wait.py").write_text(waiting)
    command += ["--skull_strip", f"{sys.executable} {tmp_path / 'wait.py'} {{input}} {{mask}}"]
    with open(tmp_path / "stderr", "w") as stderr:
        process = subprocess.Popen(command, cwd=bundle_root, stdout=stderr, stderr=stderr, start_new_session=True)
    until = time.monotonic() + 90
    while not (tmp_path / "begun").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == -signal.SIGINT
    said = (tmp_path / "stderr").read_text()
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("Interrupted; files that were written are whole")


def test_errors_are_one_sentence_and_a_status(scripts, tmp_path):
    missing = str(tmp_path / "subjects.json")
    ended = scripts("prepare", "t1", missing, str(tmp_path / "set"))
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1] == f"There is no file or folder {missing}; check the input."
    assert "Traceback" not in ended.stderr
