"""A calibration: found again from errors that were drawn with it, and read with a word about other weights."""

import json

import numpy as np
import pytest
import torch

from scripts.calibration import Calibration, fit_calibration, read_calibration


def test_factor_and_floor_are_found_again_and_then_two_deviations_cover_95_percent():
    random = np.random.default_rng(0)
    spread = random.gamma(2, 0.03, 400_000)
    error = random.normal(0, np.sqrt((1.5 * spread) ** 2 + 0.04**2))
    factor, floor = fit_calibration(spread, error)
    assert (factor, floor) == pytest.approx((1.5, 0.04), rel=0.05)
    assert np.mean(np.abs(error) < 2 * Calibration(factor, floor)(spread)) == pytest.approx(0.954, abs=0.003)


def test_a_spread_that_says_nothing_becomes_the_floor():
    random = np.random.default_rng(0)
    factor, floor = fit_calibration(random.gamma(2, 0.03, 100_000), random.normal(0, 0.1, 100_000))
    assert floor == pytest.approx(0.1, rel=0.05)
    assert factor < 0.3


def test_it_is_monotone_and_keeps_the_shape():
    spread = torch.linspace(0, 1, 10).reshape(1, 1, 10)
    calibrated = Calibration(2.0, 0.1)(spread)
    assert calibrated.shape == spread.shape
    assert float(calibrated[0, 0, 0]) == pytest.approx(0.1)
    assert (calibrated.diff() > 0).all()


def test_a_file_is_read_and_other_weights_are_told_of(tmp_path, caplog):
    path = tmp_path / "uncertainty.json"
    path.write_text(json.dumps({"factor": 1.5, "floor": 0.05, "weights_sha256": "a"}))
    assert read_calibration(path, "a") == Calibration(1.5, 0.05)
    assert not caplog.text
    assert read_calibration(path, "b").settings() == {"factor": 1.5, "floor": 0.05, "calibrated": False}
    assert "other weights" in caplog.text
    path.write_text(json.dumps({"factor": 1.5, "floor": 0.05, "weights_sha256": "a", "sampling": {"detail": 1.0}}))
    assert read_calibration(path, "a", {"detail": 1.0}).measured
    assert "other settings" not in caplog.text
    assert not read_calibration(path, "a", {"detail": 0.5}).measured
    assert "other settings of the sampler" in caplog.text
    assert read_calibration(tmp_path / "none.json", "a") == Calibration(measured=False)
    assert "not calibrated" in caplog.text


@pytest.mark.parametrize("text", ["[]", "{", '{"factor": 1}', '{"factor": "x", "floor": 0}'])
def test_something_else_is_refused_in_a_sentence(tmp_path, text):
    (tmp_path / "u.json").write_text(text)
    with pytest.raises(ValueError, match="is no calibration"):
        read_calibration(tmp_path / "u.json")
