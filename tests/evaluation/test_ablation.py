"""The ablation's table: means, deviations, paired tests, and what `best` took."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from scripts.evaluation.ablation import FIGURES, paired_tests, write_ablation
from scripts.evaluation.figures import adjacent_difference
from scripts.evaluation.study import Result

VALUES = {"real": [math.inf] * 3, "Pure BBDM": [20.0, 22.0, 21.0], "+SKC best +ISTA": [21.0, 23.5, 22.0]}


@pytest.fixture
def results() -> list[Result]:
    made = []
    for row, values in VALUES.items():
        for subject, value in zip(("anna", "bert", "cleo"), values, strict=True):
            figures = {name: value if name.startswith("psnr") else 0.5 for name in FIGURES}
            made.append(Result(row, subject, figures, "dora" if "best" in row else None, 19.0, 2.0))
    return made


def test_flicker_between_slices_is_what_the_difference_measures():
    mask = np.ones((4, 4, 6), dtype=bool)
    flicker = np.broadcast_to(0.5 + 0.1 * (-1.0) ** np.arange(6), (4, 4, 6))
    assert adjacent_difference(flicker, mask) == pytest.approx(0.2)
    mask[..., 1::2] = False  # no two adjacent slices are left but for the slice pairs that the mask still joins
    mask[..., 1] = True
    assert adjacent_difference(flicker, mask) == pytest.approx(0.2)
    assert adjacent_difference(np.full((4, 4, 6), 0.3), np.ones((4, 4, 6), dtype=bool)) == 0


def test_each_row_is_tested_against_the_baseline_on_the_same_subjects(results):
    tests = paired_tests(results, "Pure BBDM")
    assert list(tests) == ["+SKC best +ISTA"]
    test = tests["+SKC best +ISTA"]["psnr_brain"]
    expected = stats.ttest_rel(VALUES["+SKC best +ISTA"], VALUES["Pure BBDM"])
    assert (test.n, test.difference) == (3, pytest.approx(3.5 / 3))
    assert (test.t, test.p) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    assert math.isnan(tests["+SKC best +ISTA"]["ssim"].p)  # all differences are equal
    assert paired_tests(results[:3], "Pure BBDM") == {}


def test_the_table_has_mean_and_deviation_and_the_notes(results, tmp_path):
    write_ablation(results, tmp_path / "new" / "ablation.md", {"weights": "model.pt"})
    lines = (tmp_path / "new" / "ablation.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| Pure BBDM | 3 |"))
    assert "| 21.000 ± 1.000 |" in row
    assert row.endswith("| 19 | 2.0 |")
    assert any(line.startswith("| real | 3 | ") and "| inf |" in line for line in lines)
    assert any(line.startswith("| +SKC best +ISTA | 3 |") and "+1.167 (0.02" in line for line in lines)
    assert "- weights: model.pt" in lines
    assert "- best key: dora for anna, dora for bert, dora for cleo" in lines
    written = json.loads((tmp_path / "new" / "ablation.json").read_text())
    assert written["rows"]["+SKC best +ISTA"]["bert"]["figures"]["psnr"] == 23.5
    assert written["rows"]["real"]["anna"]["figures"]["psnr"] is None
    assert written["tests"]["+SKC best +ISTA"]["psnr"]["n"] == 3
