"""The sampler study: which settings, which curves, and a picture that a failing sampler does not flatten."""

import json

import numpy as np
import pytest
from PIL import Image

from scripts.evaluation.samplers import FIGURES, _range_without_outliers, curve_points, sampler_variants, write_samplers
from scripts.evaluation.study import Result
from scripts.inferers import ISTAInferer
from scripts.schedulers import BrownianBridgeScheduler

CURVES = [["mean_path", "linear"], ["implicit_2", "lambda"]]


def test_variants_are_settings_of_the_inferer():
    variants = sampler_variants(CURVES, [2, 10])
    assert list(variants) == [
        "F3 mean_path, linear, 2",
        "F3 mean_path, linear, 10",
        "F4 implicit_2, lambda, 2",
        "F4 implicit_2, lambda, 10",
    ]
    for variant in variants.values():
        assert variant.pop("style_key") == "average"
        ISTAInferer(BrownianBridgeScheduler(prediction_type="sample"), **variant)


@pytest.fixture
def results() -> list[Result]:
    return [
        Result(row, subject, dict.fromkeys(FIGURES, shift + settings["num_inference_steps"]), None, 2.0, 3.0)
        for row, settings in sampler_variants(CURVES, [10, 2]).items()
        for subject, shift in (("anna", 0.0), ("bert", 1.0))
    ]


def test_curves_are_means_over_subjects_by_steps(results):
    curves = curve_points(results)
    assert list(curves) == ["F3 mean_path, linear", "F4 implicit_2, lambda"]
    for points in curves.values():
        assert [(p["steps"], p["psnr_brain"], p["seconds"]) for p in points] == [(2, 2.5, 3.0), (10, 10.5, 3.0)]


def test_table_points_and_picture_are_written(results, tmp_path):
    write_samplers(results, tmp_path / "samplers.md", {"weights": "model.pt"})
    assert "| F4 implicit_2, lambda, 2 | 2 | 2.500 ± 0.707 |" in (tmp_path / "samplers.md").read_text()
    assert json.loads((tmp_path / "samplers.json").read_text())["curves"].keys() == curve_points(results).keys()
    with Image.open(tmp_path / "samplers.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5


def test_one_failing_sampler_does_not_stretch_the_axis():
    low, high = _range_without_outliers([18.0, 18.1, 18.2, 18.3, 18.4, 9.0])
    assert 17.5 < low < 18
    assert 18.4 < high < 18.6
    low, high = _range_without_outliers([5.0, 5.0])
    assert low < 5 < high
