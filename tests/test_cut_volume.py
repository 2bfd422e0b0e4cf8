"""A CT whose first and last slice cut through the brain, with the shipped weights."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


@pytest.mark.slow
def test_a_ct_that_is_cut_in_the_brain_is_as_bright_at_its_ends_as_inside(bundle_root: Path, tmp_path: Path):
    """Beyond a cut the network sees the end slice again; background there would darken it by a third."""
    head = nib.load(bundle_root / "docs" / "sample" / "head_ct.nii.gz")
    nib.save(head.slicer[:, :, 29:53], tmp_path / "cut.nii.gz")
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    command += ["--dataset_dir", str(tmp_path / "cut.nii.gz"), "--output_dir", str(tmp_path / "out")]
    ended = subprocess.run(command, cwd=bundle_root, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    volume = nib.load(tmp_path / "out" / "cut_t1.nii.gz").get_fdata()
    medians = [np.median(plane[plane > 0]) for plane in np.moveaxis(volume, 2, 0)]
    inside = np.median(medians[4:-4])
    assert medians[0] == pytest.approx(inside, rel=0.1)
    assert medians[-1] == pytest.approx(inside, rel=0.1)
