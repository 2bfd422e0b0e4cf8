"""The paired t-test between two runs."""

import math

import pytest
from scipy import stats

from scripts.evaluation.significance import compare_runs, paired_test

FIRST = {"anna": 20.0, "bert": 22.0, "cleo": 21.0, "dora": math.inf}
SECOND = {"cleo": 20.5, "bert": 20.0, "anna": 19.5, "dora": 3.0, "emil": 99.0}


def test_it_is_over_the_subjects_that_both_have():
    test = paired_test(FIRST, SECOND)
    expected = stats.ttest_rel([20.0, 22.0, 21.0], [19.5, 20.0, 20.5])
    assert (test.n, test.difference) == (3, pytest.approx(1.0))
    assert (test.t, test.p) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    assert paired_test(SECOND, FIRST).t == pytest.approx(-test.t)


def test_there_is_no_test_without_spread_or_with_one_subject():
    assert math.isnan(paired_test({"a": 1.1, "b": 2.1}, {"a": 1.0, "b": 2.0}).p)
    one = paired_test({"a": 1.5}, {"a": 1.0})
    assert (one.n, one.difference) == (1, 0.5)
    assert math.isnan(one.p)
    assert paired_test({"a": 1.0}, {"b": 1.0}).n == 0


def test_the_table_has_the_figures_that_both_runs_have():
    first = {s: {"psnr": v, "ssim": 0.5} for s, v in FIRST.items()}
    second = {s: {"psnr": v, "nrmse": 0.1} for s, v in SECOND.items()}
    lines = compare_runs(first, second).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| PSNR (dB) | 3 | +1.000 | 2.00 | 0.18 |")
    figures = ("i_ssim_reference", "i_ssim_reference_brain", "preference_score")
    run = {s: dict.fromkeys(figures, v) for s, v in FIRST.items()}
    assert [line.split(" | ")[0] for line in compare_runs(run, run).splitlines()[2:]] == ["| preference_score"]
    with pytest.raises(ValueError, match="no subject in common"):
        compare_runs(first, {"zoe": {"psnr": 1.0}})
