"""The recipes of docs/extending.md, typed exactly as they stand there, in a copy of the bundle."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter


class Recipe:
    """A section of the page, followed in a copy of the bundle.

    The page says "Append to `FILE`:", "Write `FILE`:" or "Type:" before each fenced block; nothing else is followed.
    """

    def __init__(self, section: str, bundle: Path) -> None:
        self.bundle = bundle
        self.output: list[str] = []
        pattern = r"^(?:\d+\. |- )?(Append to|Write|Type)(?: `([^`]+)`)?[^\n]*:\n\n *```\w*\n(.*?)\n *```$"
        self.steps = re.findall(pattern, section, re.MULTILINE | re.DOTALL)

    def follow(self, environment: dict[str, str]) -> None:
        """Do each step; what the typed commands print is kept in `output`."""
        for what, file, block in self.steps:
            block = re.sub(r"^   ", "", block, flags=re.MULTILINE) if block.startswith("   ") else block
            if what == "Type":
                self._type(block, environment)
            else:
                self._write(self.bundle / file, block, "a" if what == "Append to" else "w")

    @staticmethod
    def _write(path: Path, block: str, mode: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open(mode, encoding="utf-8") as file:
            file.write(f"\n\n{block}\n" if mode == "a" else f"{block}\n")

    def _type(self, command: str, environment: dict[str, str]) -> None:
        ended = subprocess.run(
            ["bash", "-e", "-c", command], cwd=self.bundle, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout[-2000:]}\n{ended.stderr[-3000:]}"
        self.output.append(ended.stdout + ended.stderr)


@pytest.fixture
def recipe(bundle_root: Path, tmp_path: Path):
    """Follow the recipe under a heading; gives the copy of the bundle and what was printed."""
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_root / "scripts", bundle / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(bundle_root / "configs", bundle / "configs")
    for folder in ("docs", "models", "tests"):
        (bundle / folder).symlink_to(bundle_root / folder)
    (bundle / "bin").mkdir()
    (bundle / "bin" / "python").symlink_to(sys.executable)
    page = (bundle_root / "docs" / "extending.md").read_text(encoding="utf-8")

    def follow(heading: str) -> Recipe:
        section = page.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
        made = Recipe(section, bundle)
        assert made.steps
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        made.follow({**os.environ, "PATH": path, "PYTHONPATH": str(bundle), "OMP_NUM_THREADS": "1"})
        return made

    follow.bundle = bundle
    return follow


SHAPE, SPACING = (30, 36, 28), 6.0


def brain(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A smooth brain (H, W, Z) of values about 0 in an ellipsoid, and the ellipsoid."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in SHAPE), indexing="ij"))
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 1.5)
    return np.clip(noise / noise.std(), -2.5, 2.5), (grid**2).sum(axis=0) < 1


def write(path: Path, volume: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    nib.save(nib.Nifti1Image(volume.astype(np.float32), affine), path)


def ct_and_t1(seed: int) -> tuple[np.ndarray, np.ndarray]:
    tissue, inside = brain(seed)
    return np.where(inside, 35 + 6 * tissue, -1000), np.where(inside, 600 + 150 * tissue, 0)


@pytest.fixture
def pairs(recipe) -> Path:
    """MY_PAIRS beside the configs: a datalist of CT and T1, as other recipes leave it."""
    folder, listed = recipe.bundle / "MY_PAIRS", {"training": [], "validation": [], "test": []}
    for number, section in enumerate(("training", "training", "validation")):
        source, target = ct_and_t1(number)
        write(folder / f"p{number}_source.nii.gz", source)
        write(folder / f"p{number}_target.nii.gz", target)
        names = {key: f"p{number}_{key}.nii.gz" for key in ("source", "target")}
        listed[section].append({"subject": f"p{number}", **names})
    (folder / "datalist.json").write_text(json.dumps(listed))
    return folder


ORDER = """
import torch
from scripts.inferers import ISTAInferer
from scripts.schedulers import BrownianBridgeScheduler

scheduler = BrownianBridgeScheduler(num_train_timesteps=200_001, prediction_type="sample")

def network(x, timesteps, context=None, source=None):
    # the posterior mean of x0 ~ N(0.2, 0.3^2), exactly
    m, variance = scheduler.source_weights[timesteps[0]], scheduler.variances[timesteps[0]]
    gain = (1 - m) * 0.09 / ((1 - m) ** 2 * 0.09 + variance)
    return 0.2 + gain * (x - (1 - m) * 0.2 - m * source)

source = torch.rand(1, 1, 4, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

def sampled(sampler, steps):
    arguments = dict(num_inference_steps=steps, timestep_spacing="lambda", sampler=sampler, start_noise=True)
    return ISTAInferer(scheduler, **arguments)(source, network)

truth = sampled("implicit_2", 640)
for sampler in ("implicit", "midpoint"):
    errors = [float((sampled(sampler, steps) - truth).abs().max()) for steps in (21, 41)]
    print(sampler, errors[0] / errors[1])
"""


@pytest.mark.slow
def test_a_sampler_of_second_order_keeps_its_order_through_the_inferer(recipe):
    """Half the step is a quarter of the error; a sampler of first order halves it."""
    made = recipe("A sampler")
    record = json.loads((made.bundle / "results" / "head_ct_t1.json").read_text())
    assert record["sampler"] == "midpoint"
    environment = {**os.environ, "PYTHONPATH": str(made.bundle)}
    command = [sys.executable, "-c", ORDER]
    ended = subprocess.run(command, cwd=made.bundle, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    ratios = {name: float(ratio) for name, ratio in (line.split() for line in ended.stdout.splitlines())}
    assert 1.7 < ratios["implicit"] < 2.5
    assert 3.2 < ratios["midpoint"] < 5


@pytest.mark.slow  # .ci/run runs it
def test_a_layout_lists_prepares_and_trains(recipe):
    for number in range(4):
        ct, t1 = ct_and_t1(number)
        write(recipe.bundle / "MY_SCANS" / f"p{number}" / "head_ct.nii.gz", ct)
        write(recipe.bundle / "MY_SCANS" / f"p{number}" / "brain_t1.nii.gz", t1)
    recipe("Try it small")
    made = recipe("A layout of raw data")
    listed = json.loads((made.bundle / "MY_PAIRS" / "datalist.json").read_text())
    assert sorted(len(listed[section]) for section in ("training", "validation", "test")) == [1, 1, 2]
    assert (made.bundle / "runs" / "hospital" / "model.pt").is_file()


@pytest.mark.slow  # .ci/run runs it
def test_another_contrast_is_called_what_it_is_from_raw_pairs_to_the_report(recipe):
    lines = ["subject,source,target,split"]
    for number, section in enumerate(("training", "training", "validation")):
        tissue, inside = brain(number)
        for name, volume in (("t2", 500 - 100 * tissue), ("flair", 300 + 80 * tissue)):
            write(recipe.bundle / f"p{number}_{name}.nii.gz", np.where(inside, volume, 0))
        lines.append(f"p{number},p{number}_t2.nii.gz,p{number}_flair.nii.gz,{section}")
    (recipe.bundle / "MY_TABLE.csv").write_text("\n".join(lines))
    for folder, name in (("MY_T2", "t2"), ("MY_FLAIR", "flair")):
        (recipe.bundle / folder).mkdir()
        shutil.copy(recipe.bundle / f"p2_{name}.nii.gz", recipe.bundle / folder / f"anna_{name}.nii.gz")
    recipe("Try it small")
    made = recipe("A contrast")
    record = json.loads((made.bundle / "MY_RESULTS" / "anna_t2_flair.json").read_text())
    assert (record["source_contrast"], record["target_contrast"]) == ("T2", "FLAIR")
    assert "anna" in (made.bundle / "MY_TABLES" / "subjects.csv").read_text()
    pages = [path.read_text(encoding="utf-8") for path in (made.bundle / "MY_RESULTS").rglob("*.html")]
    assert any("synthetic FLAIR" in page for page in pages)
    assert not any("synthetic T1" in page or "real T1" in page for page in pages)


@pytest.mark.slow
@pytest.mark.parametrize(("heading", "run"), [("A network", "plain_conv"), ("A system", "diffusion")])
def test_a_network_and_a_system_are_overlays_that_train(recipe, pairs, heading, run):
    recipe("Try it small")
    recipe(heading)
    assert (recipe.bundle / "runs" / run / "model.pt").is_file()
