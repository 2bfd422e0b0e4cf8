"""What the figures mean: FLOP, turns, memory, straight lines, and how alike two results are."""

import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from scripts.benchmark.measuring import (
    alternate,
    as_json,
    count_flop,
    memory_of,
    peak_memory,
    psnr,
    straight_line,
    times_faster,
)
from scripts.benchmark.tasks import run_measured
from scripts.errors import CaseError

MEBIBYTE = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux tells it")


def test_flop_of_a_convolution():
    """Each output pixel of each channel sums over the kernel and the channels: two operations a term."""
    layer = nn.Conv2d(5, 7, 3, padding=1, bias=False)
    flop = count_flop(lambda: layer(torch.zeros(2, 5, 11, 13)))
    assert flop == 2 * 2 * 7 * 11 * 13 * 5 * 3 * 3


def test_calls_take_turns():
    order = []
    seconds = alternate({name: lambda name=name: order.append(name) for name in "abc"}, rounds=4)
    assert "".join(order) == "abc" * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_times_faster_is_of_each_round():
    """A disturbance of a whole round falls on both, and the ratio does not see it."""
    assert times_faster([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == {"median": 2.0, "lowest": 2.0, "highest": 2.0}


@linux
def test_memory_of_a_call():
    """What it takes and gives back counts; what was taken and given back before does not."""
    del (before := [bytearray(b"1") * (200 * MEBIBYTE)])[:]
    assert not before
    result, peak = memory_of(lambda: float(torch.ones(61 * MEBIBYTE // 4).sum()))
    assert result == 61 * MEBIBYTE // 4
    assert 60 * MEBIBYTE <= peak < 100 * MEBIBYTE  # the kernel counts in lots of pages


@linux
def test_a_childs_memory_is_its_own():
    """Of a child started directly, the system would tell at least the parent's memory."""
    held = bytearray(b"1") * (300 * MEBIBYTE)
    assert peak_memory() > len(held)
    run = run_measured([sys.executable, "-c", f"held = bytearray(b'1') * {80 * MEBIBYTE}"], "the child")
    assert 80 * MEBIBYTE < run.peak_bytes < 200 * MEBIBYTE
    assert run.seconds > 0


def test_the_error_of_a_child_that_fails_has_its_last_line():
    with pytest.raises(CaseError, match=r"^The child could not be measured; it ended with: no such head$"):
        run_measured([sys.executable, "-c", "import sys; sys.exit('one\\nno such head')"], "The child")


def test_psnr_of_identical_results_is_infinite_and_valid_json():
    volume = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    assert math.isinf(psnr(volume, volume))
    text = json.dumps(as_json({"rows": [{"psnr_db": psnr(volume, volume)}, {"psnr_db": 1.5}]}), allow_nan=False)
    assert json.loads(text) == {"rows": [{"psnr_db": None}, {"psnr_db": 1.5}]}


def test_psnr_takes_the_references_range_as_its_peak():
    """So that the unit of both plays no part."""
    reference = torch.linspace(-3, 3, 100)
    assert psnr(reference + 0.06, reference) == pytest.approx(40.0, abs=1e-4)
    assert psnr(10 * reference + 0.6, 10 * reference) == pytest.approx(40.0, abs=1e-4)


def test_straight_line():
    line = straight_line([20, 50, 100], [7.0, 13.0, 23.0])
    assert line["slope"] == pytest.approx(0.2)
    assert line["intercept"] == pytest.approx(3.0)
    assert line["deviation"] == pytest.approx(0.0, abs=1e-9)
    # the best line through (0, 1), (1, 2), (2, 1) is flat
    assert straight_line([0, 1, 2], [1.0, 2.0, 1.0])["deviation"] == pytest.approx(1 / 3)


def test_the_launcher_passes_on_the_status(bundle_root, tmp_path):
    launcher = bundle_root / "scripts" / "benchmark" / "launcher.py"
    command = [
        sys.executable,
        str(launcher),
        str(tmp_path / "figures.json"),
        sys.executable,
        "-c",
        "raise SystemExit(3)",
    ]
    assert subprocess.run(command).returncode == 3
    assert set(json.loads((tmp_path / "figures.json").read_text())) == {"seconds", "peak_bytes"}
