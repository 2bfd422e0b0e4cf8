"""Means over subjects of whom one may lack a figure."""

import math

import pytest

from scripts.evaluation.figures import format_spread, mean_and_deviation
from scripts.evaluation.results import Evaluation, read_subjects, write_results
from scripts.evaluation.tissue_dice import TISSUE_FIGURES


def test_a_value_that_is_missing_does_not_spoil_the_mean():
    assert mean_and_deviation([1.0, math.nan, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
    assert mean_and_deviation([math.inf, 3.0]) == (3.0, 0.0)
    assert mean_and_deviation([math.inf, math.inf])[0] == math.inf
    assert math.isnan(mean_and_deviation([math.nan])[0])


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1, 3], "2.00 ± 1.41"),
        ([1, math.nan, 3], "2.00 ± 1.41 (n = 2)"),
        ([math.nan, 3], "3.00 (n = 1)"),
        ([3], "3.00"),
        ([math.nan, math.nan], "nan"),
        ([math.inf, math.inf], "inf"),
    ],
)
def test_how_many_values_are_finite_is_told_where_some_are_not(values, text):
    assert format_spread(values, 2) == text


def test_the_tables_of_an_evaluation_have_the_mean_of_those_who_have_the_figure(tmp_path):
    dice = {"anna": 0.5, "bert": math.nan, "cleo": 0.7}
    figures = {subject: {"psnr": 20.0, "psnr_brain": 18.0, "dice_gm": value} for subject, value in dice.items()}
    tissues = {s: {"synthetic image": {**dict.fromkeys(TISSUE_FIGURES, 1.0), "dice_gm": v}} for s, v in dice.items()}
    text = write_results(Evaluation(figures, tissues=tissues), tmp_path)
    assert "| synthetic image | 1.000 ± 0.000 | 0.600 ± 0.141 (n = 2) |" in text
    assert "| PSNR (dB) | 20.000 ± 0.000 | 18.000 ± 0.000 |" in text
    assert "\nmean,20,18,0.6\n" in (tmp_path / "subjects.csv").read_text().replace("\r", "")
    assert math.isnan(read_subjects(tmp_path)["bert"]["dice_gm"])
