"""The overlays evaluate, ablation and samplers as their user meets them: a tiny trained network on tiny volumes."""

import csv
import json
import re
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from scripts.calibration import Calibration, read_calibration
from scripts.conditioning.style_key import save_style_keys, style_key_from_histogram
from scripts.errors import CaseError, reason
from scripts.evaluation.evaluate import evaluate
from scripts.evaluation.results import read_subjects
from scripts.evaluation.uncertainty import Doubt, doubt_figures, write_calibration

TINY = {
    "network_def#channels": [8, 8],
    "network_def#norm_num_groups": 4,
    "network_def#num_head_channels": 8,
    "spacing": [4.0, 4.0, 4.0],
    "target_contrast": "T1",
    "num_inference_steps": 2,
    "device": "$torch.device('cpu')",
    "dtype": "float32",
    "prepare_workers": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two heads of four tissues, listed for validation and test, and style keys by name."""
    root = tmp_path_factory.mktemp("pairs")
    shape, affine = (30, 36, 28), np.diag([4.0, 4.0, 4.0, 1.0])
    radius = np.sqrt((np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")) ** 2).sum(0))
    mask, items = radius < 0.9, []
    for number in range(2):
        noise = 0.05 * np.random.default_rng(number).standard_normal(shape)
        t1 = (np.select([radius < 0.4, radius < 0.7], [0.8, 0.5], 0.2) + noise).clip(0.02, 1) * mask
        volumes = {"target": 1000 * t1, "source": np.where(mask, 20 + 20 * t1, -1000), "mask": mask}
        entry = {"subject": f"head{number}"}
        for key, volume in volumes.items():
            entry[key] = f"head{number}_{key}.nii.gz"
            nib.save(nib.Nifti1Image(volume.astype(np.float32), affine), root / entry[key])
        items.append(entry)
    (root / "datalist.json").write_text(json.dumps({"training": items, "validation": items, "test": items}))
    flat = style_key_from_histogram(np.ones(128))
    low = style_key_from_histogram(np.linspace(2, 0, 128))
    save_style_keys({"average": flat, "head0": flat, "dora": low}, root / "keys.json")
    return root


@pytest.fixture
def run(bundle_root, folder, tmp_path, monkeypatch):
    """Run train.json with overlays on random weights; gives the output folder."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the workflow changes it

    def function(*overlays, **overrides):
        made = ConfigWorkflow(
            config_file=[str(bundle_root / "configs" / name) for name in ("train.json", *overlays)],
            meta_file=str(bundle_root / "configs" / "metadata.json"),
            logging_file=str(bundle_root / "configs" / "logging.conf"),
            workflow_type="train",
            **{
                **TINY,
                "dataset_dir": str(folder),
                "output_dir": str(tmp_path / "eval"),
                "weights": str(tmp_path / "weights.pt"),
                "style_keys_file": str(folder / "keys.json"),
                **overrides,
            },
        )
        torch.manual_seed(0)
        network = made.parser.get_parsed_content("network_def")
        if not (tmp_path / "weights.pt").exists():
            # the last layer of a new network is zero: drawn weights make it heed its inputs
            state = {name: value + 0.1 * torch.randn_like(value) for name, value in network.state_dict().items()}
            torch.save(state, tmp_path / "weights.pt")
        made.initialize()
        made.run()
        return tmp_path / "eval"

    return function


def rows_of(file) -> dict[str, dict[str, str]]:
    with open(file, newline="") as opened:
        return {row["subject"]: row for row in csv.DictReader(opened)}


def test_saved_volumes_give_the_same_figures_to_the_command(run, tmp_path):
    out = run("evaluate.json", save_volumes=True)
    rows = rows_of(out / "subjects.csv")
    assert list(rows) == ["head0", "head1", "mean", "std"]
    assert "- weights: weights.pt, SHA-256 " in (out / "summary.md").read_text()
    assert rows_of(out / "cases.csv")["head1"]["source"] == "head1_source.nii.gz"
    evaluate(pairs=str(out / "cases.csv"), output_dir=str(tmp_path / "again"))
    first, second = read_subjects(out), read_subjects(tmp_path / "again")
    for subject, figures in first.items():
        assert second[subject] == pytest.approx(figures, abs=2e-4, nan_ok=True)


@pytest.mark.slow
def test_the_best_key_is_that_of_another_person(run):
    best = read_subjects(run("evaluate.json", style_key="best", subjects="head0"))
    dora = read_subjects(run("evaluate.json", style_key="dora"))
    average = read_subjects(run("evaluate.json"))
    assert list(best) == ["head0"]
    assert best["head0"] == pytest.approx(dora["head0"], nan_ok=True)
    assert best["head0"]["psnr"] != average["head0"]["psnr"]


def test_a_wrong_path_to_compare_with_fails_before_anything_is_translated(run, folder, tmp_path):
    for against, sentence in ((folder, r"There is no .*subjects\.csv"), (tmp_path / "eval", "own folder")):
        with pytest.raises(RuntimeError, match="Failed") as refused:
            run("evaluate.json", against=str(against))
        assert re.search(sentence, reason(refused.value))
    assert not (tmp_path / "eval" / "subjects.csv").exists()


def test_the_ablation_has_the_rows_of_the_paper(run, capsys):
    out = run("ablation.json", evaluations=4, rows="Pure BBDM,+SKC colin,+ISTA,+SKC avg +ISTA cp-only,+SKC best +ISTA")
    content = json.loads((out / "ablation.json").read_text())
    assert list(content["rows"]) == ["real", "Pure BBDM", "+ISTA", "+SKC avg +ISTA cp-only", "+SKC best +ISTA"]
    assert "The row +SKC colin is left out: The style key colin27" in capsys.readouterr().out
    evaluations = {row: subjects["head1"]["evaluations"] for row, subjects in content["rows"].items()}
    # 4 steps; with a correction S + (S - 1) evaluations may not be more, so that S is 2
    assert evaluations == {"real": 0, "Pure BBDM": 4, "+ISTA": 3, "+SKC avg +ISTA cp-only": 4, "+SKC best +ISTA": 3}
    assert content["rows"]["+SKC best +ISTA"]["head0"]["style_key"] == "dora"
    assert content["tests"]["+ISTA"]["psnr"]["n"] == 2
    kept = {path: path.stat().st_mtime_ns for path in (out / "ablation").iterdir()}
    run("ablation.json", evaluations=4, rows="Pure BBDM,+ISTA")
    assert {path: path.stat().st_mtime_ns for path in (out / "ablation").iterdir()} == kept


def test_the_sampler_study_writes_table_points_and_picture(run):
    curves = [["ancestral", "linear"], ["implicit_2", "lambda"]]
    out = run("ablation.json", "samplers.json", curves=curves, steps=[2, 4], slices=9, subjects="head1")
    content = json.loads((out / "samplers.json").read_text())
    assert {name: [p["steps"] for p in points] for name, points in content["curves"].items()} == {
        "F1 ancestral, linear": [2, 4],
        "F4 implicit_2, lambda": [2, 4],
    }
    assert "- slices: the 9 in the middle of the brain" in (out / "samplers.md").read_text()
    assert (out / "samplers.png").is_file()


@pytest.mark.slow
def test_the_study_of_the_dial_has_bands_dice_and_a_filtered_mean(run):
    out = run("ablation.json", "detail.json", steps=[3], details=[0.5, 1], unsharp_amounts=[0.5], subjects="head1")
    rows = {name: row["head1"] for name, row in json.loads((out / "detail.json").read_text())["rows"].items()}
    dial = ("F2 implicit, lambda, 3, detail 0.5", "F2 implicit, lambda, 3, detail 1")
    assert list(rows) == ["real", "mean", "mean, mirrored", "unsharp mask of the mean, 0.5", *dial]
    assert [row["evaluations"] for row in rows.values()] == [0, 1, 2, 1, 2, 3]
    assert rows["real"]["figures"]["highpass_brain"] == pytest.approx(1)
    assert rows["real"]["figures"]["dice_gm"] == 1
    sharpness = {name: row["figures"]["sharpness_brain"] for name, row in rows.items()}
    assert sharpness["unsharp mask of the mean, 0.5"] > sharpness["mean"]
    assert "high-pass correlation, brain" in (out / "detail.md").read_text()


def test_the_uncertainty_is_calibrated_on_one_section_and_measured_on_the_other(run):
    output = run("uncertainty.json", uncertainty=2)
    made = json.loads((output / "uncertainty.json").read_text())
    assert made["fitted_on"] == ["head0", "head1"]
    assert [(row["subject"], row["section"]) for row in made["persons"]] == [
        *(("head0", "validation"), ("head1", "validation"), ("head0", "test"), ("head1", "test"))
    ]
    # the same people in both sections: the figures are the same, and what was fitted covers
    assert made["persons"][0]["coverage"] == made["persons"][2]["coverage"] > 0.8
    assert made["coverage"] == pytest.approx(np.mean([row["coverage"] for row in made["persons"]]), abs=1e-4)
    assert read_calibration(output / "uncertainty.json", made["weights_sha256"], made["sampling"]).measured
    assert made["sampling"]["num_inference_steps"] >= 1
    assert "| mean | not fitted |" in (output / "uncertainty.md").read_text()


def test_a_person_counts_once_however_many_images_there_are(tmp_path):
    """Two people, one with three images whose error is twice the spread: the fit lies between both, not near three."""
    spread = np.random.default_rng(0).uniform(0.1, 0.3, 3000)
    once = Doubt("a", "validation", spread, spread * np.resize([1, -1], 3000))
    thrice = [
        Doubt("b", "validation", spread, 2 * spread * np.resize([1, -1], 3000), f"T{n} from PD", "b") for n in (1, 2, 2)
    ]
    write_calibration([once, *thrice], tmp_path / "made.json", "validation", {}, "", {})
    made = json.loads((tmp_path / "made.json").read_text())
    assert made["factor"] == pytest.approx(np.sqrt((1 + 4) / 2), rel=0.05)
    assert made["fitted_on"] == ["a", "b"]
    assert made["rmse"] == pytest.approx((1 + 2) / 2 * np.sqrt((spread**2).mean()), rel=0.01)
    assert "b, T2 from PD" in (tmp_path / "made.md").read_text()


def test_a_calibration_without_anybody_to_fit_to_is_refused():
    doubt = Doubt("a", "test", np.ones(3), np.ones(3))
    with pytest.raises(CaseError, match="None of the subjects is of the section validation"):
        write_calibration([doubt], "none.json", "validation", {}, "", {})


def test_a_spread_that_ranks_the_errors_has_their_rank_correlation():
    error = np.linspace(-1, 1, 101)
    figures = doubt_figures(Doubt("a", "test", np.abs(error), error), Calibration(1.0, 0.0))
    assert figures["rank_correlation"] == pytest.approx(1)
    assert figures["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    opposite = doubt_figures(Doubt("a", "test", 1 - np.abs(error), error), Calibration(1.0, 0.0))
    assert opposite["rank_correlation"] == pytest.approx(-1)
    # |e| < 2 (1 - |e|) up to two thirds
    assert opposite["coverage"] == pytest.approx(2 / 3, abs=0.01)
