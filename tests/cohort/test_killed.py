"""Cohorts whose process is killed at random moments: in the end they are as if nothing had happened."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.killing import contents, done_with_kills, random_waits, translate_all
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


@pytest.mark.slow
@pytest.mark.parametrize(("number", "kills", "longest"), SIZES)
def test_the_main_job(bundle_root, tmp_path, number, kills, longest):
    """Every good output is there, bit for bit, none is made twice, every bad case is listed, nothing else is left."""
    (tmp_path / "in").mkdir()
    for case in range(number):
        write_case(tmp_path / "in" / f"c{case:03d}.nii.gz", case)
    torch.save({}, tmp_path / "echo.pt")
    settings = {
        "dataset_dir": str(tmp_path / "in"),
        "network_def": {"_target_": "tests.phantoms.EchoNetwork", "slab_size": 3},
        "weights": str(tmp_path / "echo.pt"),
        **{"spacing": [12.0] * 3, "size_multiple": 1, "num_inference_steps": 1, "detail": 0.0},
        **{"dtype": "float32", "skull_strip": "none", "check_hounsfield": False, "lesion_watch": False},
    }
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
