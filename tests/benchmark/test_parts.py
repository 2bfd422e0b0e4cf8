"""The parts on a tiny bundle: what is compared is the same, and what is measured is what was done."""

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.benchmark import tasks
from scripts.benchmark.bundle import Bundle
from scripts.benchmark.network import measure_network
from scripts.benchmark.rows import WAYS, channels_last, main_job, plain
from scripts.benchmark.volumes import measure_cases, measure_cohort, measure_slices, write_resampled
from tests.phantoms import write_head_ct

NETWORK_ROWS = ["plain float32", "float32, channels last", "main job (bfloat16)"]


@pytest.fixture(scope="module")
def bundle(config_files):
    return Bundle(config_files, "cpu")


def test_ways_are_of_the_same_weights(bundle):
    """The baseline is not touched by what the config does with the network."""
    ways = [plain(bundle), channels_last(bundle), main_job(bundle)]
    states = [way.network.state_dict() for way in ways]
    assert all(torch.equal(states[0][key], state[key]) for state in states[1:] for key in states[0])
    layouts = [way.network.conv_in[1].conv.weight.is_contiguous() for way in ways]
    assert layouts == [True, False, False]


def test_evaluations_are_those_of_the_config(bundle):
    sampling = bundle.sample(main_job(bundle), bundle.source)
    assert sampling.evaluations == bundle.part("inferer").inferer.evaluations == 2  # half of 3 steps' way
    assert sampling.slabs == 2 * bundle.source.shape[-1]


@pytest.mark.slow
def test_network_rows(bundle):
    """Rows of one network differ by rounding alone, float32 by less than bfloat16."""
    limit, network = measure_network(bundle, ["main_job", "channels_last"], (16, 24), batch_size=2, rounds=2)
    assert set(limit["products"]) == {"float32", "bfloat16"}
    rows = {row["name"]: row for row in network["rows"]}
    assert sorted(rows) == sorted(NETWORK_ROWS)
    assert {len(row["seconds"]) for row in rows.values()} == {2}
    exact, float32, bfloat16 = (rows[name]["psnr_db"] for name in NETWORK_ROWS)
    assert exact == float("inf")
    assert float32 > bfloat16 > 20
    assert rows["plain float32"]["times_faster"]["median"] == 1
    assert {row["evaluations"] for row in rows.values()} == {2}


def test_a_network_without_weights_is_the_same_each_time(config_files):
    bundles = [Bundle(config_files, "cpu", weights=False) for _ in range(2)]
    slabs = bundles[0].slabs(1, 16, 24)
    first, second = (plain(bundle)(slabs) for bundle in bundles)
    assert torch.equal(first, second)
    assert first.std() > 0.01
    assert not torch.equal(first, plain(Bundle(config_files, "cpu"))(slabs))


def test_network_without_weights_is_computed_for_a_head(config_files):
    bundle = Bundle(config_files, "cpu", weights=False)
    _, network = measure_network(bundle, [], (16, 24), batch_size=1, rounds=1)
    (row,) = network["rows"]
    assert (row["evaluations"], row["slices"]) == (2, 160)
    assert row["seconds_per_volume"] == pytest.approx(row["seconds_per_slab"] * 160 * 2)


def test_onnx_row(bundle):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    slabs = bundle.slabs(2, 16, 24)
    torch.testing.assert_close(WAYS["onnx"](bundle)(slabs), plain(bundle)(slabs), atol=1e-4, rtol=1e-4)


def test_phases_are_the_main_job_step_by_step(config_files, tmp_path):
    """Its transforms in their order, the sampling between them, and the outputs it leaves."""
    measured = tasks.phases(config_files, {"output_dir": str(tmp_path)}, "cpu", started=0.0)
    (case,) = measured["cases"]
    assert set(measured["once"]) == {"imports", "network", "evaluator"}
    names = [step["name"] for step in case["steps"]]
    assert names.index("LoadVolumed") < names.index("SkullStripd") < names.index("sampling") < names.index("Invertd")
    assert names[-1] == "SaveSyntheticd"
    phases = {"loading", "skull strip", "preprocessing", "sampling", "inverse", "postprocessing", "saving"}
    assert set(case["phases"]) == phases
    assert sum(case["phases"].values()) == pytest.approx(sum(step["seconds"] for step in case["steps"]))
    assert (case["shape"], case["spacing_mm"]) == ([34, 40, 32], [6.0, 6.0, 6.0])
    assert (tmp_path / "head_t1.nii.gz").is_file()


def test_growth_repeats_the_volume(config_files, tmp_path):
    np.save(tmp_path / "source.npy", np.random.default_rng(0).random((16, 24, 5), dtype=np.float32))
    measured = tasks.growth(config_files, str(tmp_path / "source.npy"), 12, True, "cpu", started=0.0)
    assert measured["slices"] == 12
    assert measured["volume_bytes"] == 16 * 24 * 12 * 4
    assert measured["peak_bytes"] > measured["volume_bytes"]


def test_resampled_head_is_the_same_head(tmp_path):
    """Finer, in HU as a scanner stores it, every tissue where it was."""
    source = nib.load(write_head_ct(tmp_path / "head.nii.gz"))
    fine = nib.load(write_resampled(tmp_path / "head.nii.gz", tmp_path / "fine.nii.gz", 3.0))
    assert fine.get_data_dtype() == np.int16
    assert fine.header.get_zooms() == (3.0, 3.0, 3.0)
    np.testing.assert_allclose(fine.affine[:3, 3], source.affine[:3, 3], atol=1e-3)
    every_other = np.asarray(fine.dataobj)[::2, ::2, ::2]
    difference = every_other - np.asarray(source.dataobj)[tuple(slice(n) for n in every_other.shape)]
    assert np.abs(difference).max() < 30
    assert difference.std() == pytest.approx(4.0, rel=0.1)


@pytest.mark.slow
def test_growth_and_cohort_in_processes_of_their_own(bundle):
    slices = measure_slices(bundle, [8, 16])
    assert [point["slices"] for point in slices["points"]] == [8, 16]
    cases = measure_cases(bundle, [1, 2], spacing=6.0)
    assert [point["cases"] for point in cases["points"]] == [1, 2]
    cohort = measure_cohort(bundle, 3, spacing=6.0)
    assert set(cohort["phases"]) == {"loading", "preprocessing", "sampling", "postprocessing"}
    assert 0 < cohort["computing"] < sum(cohort["phases"].values())
    assert cohort["overhead"] == pytest.approx(cohort["seconds"] / cohort["computing"])
