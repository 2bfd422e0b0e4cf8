"""Measures of a case and the warnings they give."""

import json
import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.conditioning.style_key import compute_style_key, save_style_keys
from scripts.outputs.measures import CaseMeasures, border_area, case_warnings
from scripts.outputs.saver import SaveSyntheticd

SHAPE = (20, 24, 16)


def brain_in(low: float, high: float, seed: int = 0) -> torch.Tensor:
    """(1, H, W, Z): values spread over [low, high] inside a box, 0 around it."""
    values = torch.zeros(1, *SHAPE)
    generator = torch.Generator().manual_seed(seed)
    values[:, 4:16, 4:20, 3:13] = low + (high - low) * torch.rand(12, 16, 10, generator=generator)
    return values


@pytest.fixture
def keys_file(tmp_path):
    """Keys of five people whose brains span 0.3 to 0.7."""
    keys = {f"p{n}": compute_style_key(brain_in(0.3 + 0.01 * n, 0.7 + 0.01 * n, n)) for n in range(5)}
    save_style_keys(keys, tmp_path / "keys.json")
    return tmp_path / "keys.json"


def case(network_input: torch.Tensor, hu: torch.Tensor | None = None) -> dict:
    source = MetaTensor(brain_in(20, 40) if hu is None else hu, affine=np.diag([2.0, 2.0, 3.0, 1.0]))
    return {
        "image": network_input,
        "source": source,
        "mask": (brain_in(1, 2) > 0).float(),
        "synthetic": brain_in(0.3, 0.7),
    }


def test_a_usual_case_has_measures_and_no_warning(keys_file):
    measured = CaseMeasures(keys_file, keys_file)(case(brain_in(0.31, 0.71, 9)))
    assert measured["source_median"] == pytest.approx(30, abs=0.5)
    assert measured["brain_ml"] == pytest.approx(12 * 16 * 10 * 12 / 1000)
    assert measured["brain_at_border_cm2"] == 0
    assert measured["source_distance"] < measured["source_distance_limit"]
    assert measured["source_contrast"] == pytest.approx(0.8 * 0.4, abs=0.02)
    assert not case_warnings({"measured": measured, "hu_window": [0, 80], "grid": {"spacing_mm": [2, 2, 2.5]}})


@pytest.mark.parametrize(
    ("network_input", "said"),
    [
        (brain_in(0.8, 1.0), "Out of distribution: the intensities of the source"),
        (brain_in(0.49, 0.51), "Low contrast"),
        (torch.zeros(1, *SHAPE), "Out of distribution: the intensities of the source"),
    ],
)
def test_strange_sources_are_told(keys_file, network_input, said):
    measured = CaseMeasures(keys_file, keys_file)(case(network_input))
    warnings = case_warnings({"measured": measured, "hu_window": [0, 80]})
    assert any(said in warning for warning in warnings)
    assert not any("synthetic" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"measured": {"source_median": 61.0}, "hu_window": [0, 80]}, "the brain's median is 61 HU"),
        ({"measured": {"brain_at_border_cm2": 55.0}}, "The brain is cut off: 55 cm²"),
        ({"sparse": {"gap_mm": 5.04}}, "Sparse CT, gaps of 5 mm: slices between are inferred"),
        ({"grid": {"orientation": "unknown: left and right are a guess"}}, "Orientation unknown"),
        ({"grid": {"doubt": "its sform is singular"}}, "contradicts itself: its sform is singular"),
        (
            {"measured": {"shape_margin": 40, "shape_likelihood": -6, "shape_front": -2, "shape_top": 3}},
            "its forehead is at the back and its crown at the top",
        ),
        ({"measured": {"source_median": 610.0}, "hu_window": None}, None),  # an MRI has no unit
        ({"measured": {"uncertainty_high_share": 0.42}}, "above 0.15 in 42% of the brain"),
        ({"measured": {"uncertainty_high_share": 0.1}}, None),
        ({"measured": {"brain_at_border_cm2": 9.0}}, None),
        ({}, None),
    ],
)
def test_what_a_record_is_warned_about(record, said):
    warnings = case_warnings(record)
    assert len(warnings) == (said is not None)
    assert said is None or said in warnings[0]


def test_the_uncertainty_is_measured_in_the_brain_alone(keys_file):
    item = case(brain_in(0.3, 0.7))
    assert "uncertainty_mean" not in CaseMeasures(keys_file, keys_file)(item)
    spread = torch.ones(1, *SHAPE)
    inside = item["mask"][0] > 0.5
    spread[0][inside] = 0.1
    spread[0, :10][inside[:10]] = 0.2  # half of the brain
    measured = CaseMeasures(keys_file, keys_file)({**item, "uncertainty": spread})
    assert measured["uncertainty_mean"] == pytest.approx(0.15)
    assert measured["uncertainty_high_share"] == pytest.approx(0.5)


def test_the_border_area_is_that_of_the_face_cut_most():
    mask = np.zeros((10, 10, 10), bool)
    mask[2:8, 3:7, 5:] = True  # through the top: 6 x 4 voxels
    affine = nib.affines.from_matvec(np.diag([-10.0, 10.0, 5.0]))
    assert border_area(mask, affine) == pytest.approx(24.0)
    mask[:, 3:7, 5:] = True  # and the sides: 4 x 5 voxels of 10 x 5 mm
    assert border_area(mask, affine) == pytest.approx(40.0)
    assert border_area(np.zeros_like(mask), affine) == 0


def test_without_keys_the_rest_is_measured_and_the_log_says_so(keys_file, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        measures = CaseMeasures(tmp_path / "none.json", keys_file)
    assert "not measured" in caplog.text
    assert "none.json" in caplog.text
    measured = measures(case(brain_in(0.8, 1.0)))
    assert "source_distance" not in measured
    assert {"source_median", "synthetic_distance"} <= measured.keys()


@pytest.fixture
def contrast_keys(tmp_path):
    """Keys of four people: dark T1, bright T2 with little contrast in one, and the PD of one of them."""
    ranges = {"T1": (0.2, 0.5), "T2": (0.5, 0.9)}
    keys = {
        f"p{n}#{contrast}": compute_style_key(brain_in(low + 0.01 * n, high + 0.01 * n, n))
        for n in range(4)
        for contrast, (low, high) in ranges.items()
    }
    save_style_keys({**keys, "p0#PD": keys["p0#T2"]}, tmp_path / "contrasts.json")
    return tmp_path / "contrasts.json"


def test_each_contrast_is_compared_with_the_trainings_of_the_same_contrast(contrast_keys, caplog):
    """A T2 like a T1 of the training is told, and no other; the synthetic T1 is compared with the T1."""
    names = ["T1", "T2", "FLAIR", "PD"]
    settings = {"num_contrasts": 4, "contrasts": names, "target_contrast": "T1"}
    with caplog.at_level(logging.WARNING):
        measures = CaseMeasures(contrast_keys, contrast_keys, **settings)
    assert not caplog.text  # nobody needs FLAIR yet
    dark, bright, absent = brain_in(0.21, 0.51, 9), brain_in(0.51, 0.91, 9), torch.zeros(1, *SHAPE)

    def told(*contrasts: torch.Tensor, synthetic: torch.Tensor = dark) -> tuple[dict, str]:
        measured = measures({**case(torch.cat([*contrasts, dark])), "synthetic": synthetic})
        return measured, " ".join(case_warnings({"measured": measured}))

    usual, said = told(dark, bright, absent, absent)
    assert usual["by_contrast"].keys() == {"T1", "T2"}
    assert not {"source_distance", "source_contrast"} & usual.keys()
    assert not said
    assert "of the T2 are far from the training's" in told(dark, dark, absent, absent)[1]
    assert "of the T1" not in told(dark, dark, absent, absent)[1]
    assert "of the synthetic image" in told(dark, bright, absent, absent, synthetic=bright)[1]
    flat = told(dark, brain_in(0.7, 0.72), absent, absent)[1]
    assert "Low contrast: 80 % of the brain in the T2 lie" in flat
    assert not caplog.text
    for _ in range(2):
        assert told(absent, absent, absent, bright)[0]["by_contrast"] == {}
    assert caplog.text.count("How far a PD is from the training is not measured: The training keys are of 1 p") == 1


def test_the_saver_writes_what_was_measured_and_warns(keys_file, tmp_path, caplog):
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.float32), np.eye(4)), tmp_path / "ct.nii.gz")
    item = case(brain_in(0.8, 1.0))
    meta = {"filename_or_obj": str(tmp_path / "ct.nii.gz"), "original_affine": np.eye(4)}
    item["source"] = MetaTensor(item["source"], meta=meta)
    saver = SaveSyntheticd(output_dir=tmp_path / "out", measures=CaseMeasures(keys_file, keys_file))
    with caplog.at_level(logging.WARNING):
        saver({**item, "pred": item["synthetic"], "case": "a"})
    record = json.loads((tmp_path / "out" / "a_t1.json").read_text())
    assert record["measured"]["source_distance"] > record["measured"]["source_distance_limit"]
    assert "ct.nii.gz: Out of distribution" in caplog.text
