"""The main job as its user meets it: inference.json on tiny heads, with random or analytic networks."""

import copy
import filecmp
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, run
from monai.transforms import Compose, SaveImaged

from scripts.conditioning.style_key import compute_style_key, load_style_keys, save_style_keys
from scripts.errors import CaseError, reason
from scripts.files import sha256_of_file
from scripts.inferers.ista import ISTAInferer
from scripts.networks import BridgeUNet
from tests.phantoms import TINY_NETWORK, centred_affine, head_ct, write_head_ct

SUFFIXES = (".json", ".nii.gz", ".png")


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Overrides of inference.json: a tiny network with random weights, two random style keys, voxels of 6 mm."""
    folder = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    network = BridgeUNet(**TINY_NETWORK)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.03, generator=generator)
    torch.save(network.state_dict(), folder / "model.pt")
    keys = {name: compute_style_key(np.random.default_rng(i).beta(2 + i, 2, 5000)) for i, name in enumerate("pq")}
    save_style_keys({"average": keys["p"], "other": keys["q"]}, folder / "style_keys.json")
    return {
        "network_def": {"_target_": "scripts.networks.BridgeUNet", **TINY_NETWORK},
        "weights": str(folder / "model.pt"),
        "spacing": [6.0, 6.0, 6.0],
        "size_multiple": 4,
        "dtype": "float32",
        "lesion_watch": False,  # a random network loses everything
    }


@pytest.fixture
def translate(bundle_root, models, tmp_path, monkeypatch):
    """Run inference.json in this process; gives the program's last words, None where it ended well."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def function(dataset_dir, output_dir=tmp_path / "out", **overrides):
        config = str(bundle_root / "configs" / "inference.json")
        folders = {"dataset_dir": str(dataset_dir), "output_dir": str(output_dir)}
        try:
            run(config_file=config, logging_file=False, **copy.deepcopy({**models, **folders, **overrides}))
        except SystemExit as end:
            return end.code
        return None

    return function


@pytest.fixture
def echo(models, tmp_path):
    """Overrides for a network that returns the source."""
    torch.save({}, tmp_path / "echo.pt")
    return {
        "network_def": {"_target_": "tests.phantoms.EchoNetwork", "slab_size": 3},
        "weights": str(tmp_path / "echo.pt"),
        "style_key": "none",
    }


def outputs(folder):
    return sorted(path.name for path in folder.iterdir())


def output_names(*cases):
    return sorted(f"{case}_t1{suffix}" for case in cases for suffix in SUFFIXES)


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def innermost(error):
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def test_a_folder_becomes_three_files_a_case(tmp_path, translate, models):
    first, second = write_head_ct(tmp_path / "in" / "a.nii.gz"), tmp_path / "in" / "deep" / "er" / "b.mha"
    second.parent.mkdir(parents=True)
    image = itk.image_from_array(np.ascontiguousarray(nib.load(first).get_fdata(dtype=np.float32).T))
    image.SetSpacing([6.0, 6.0, 6.0])
    image.SetOrigin([-99.0, -117.0, -93.0])
    itk.imwrite(image, str(second))

    assert translate(tmp_path / "in", num_corrections=1, sampler="mean_path", num_inference_steps=4) is None
    assert outputs(tmp_path / "out") == output_names("a", "deep_er_b")
    made = nib.load(tmp_path / "out" / "a_t1.nii.gz")
    values = made.get_fdata()
    assert made.get_data_dtype() == np.float32
    assert values.shape == (34, 40, 32)
    assert values.min() == 0
    assert 0 < values.max() <= 1
    brain = values > 0
    assert 900 < brain.sum() * 6**3 / 1000 < 1700  # mL; the phantom has 1520
    assert (np.linalg.norm(np.argwhere(brain) - [16.5, 19.5, 15.5], axis=1) * 6 < 90).all()

    record = json.loads((tmp_path / "out" / "deep_er_b_t1.json").read_text())
    assert record["source"] == {"file": "deep/er/b.mha", "sha256": sha256_of_file(second)}
    assert record["weights_sha256"] == sha256_of_file(models["weights"])
    expected = {
        "bundle": "brain_ct_to_mri",
        "sampler": "mean_path",
        "timestep_spacing": "lambda",
        "num_inference_steps": 4,
        "num_corrections": 1,
        "style_key": "average",
        "skull_strip": "builtin",
        "mask_from": "builtin",
        "batch_size": 8,
        "batch_size_used": 8,
        "dtype": "float32",
        "seed": 0,
        "spacing_mm": [6.0, 6.0, 6.0],
        "hu_window": [0, 80],
        "ct_window": None,
        "style_keys_sha256": sha256_of_file(Path(models["weights"]).with_name("style_keys.json")),
    }
    assert {key: record[key] for key in expected} == expected
    assert "source_keys_sha256" not in record  # there are none beside the weights


ROTATION = nib.eulerangles.euler2mat(0.25, -0.15, 0.35)
GRIDS = {
    "RAS": (np.diag([4.0, 4.0, 4.0]), (48, 56, 46)),
    "LAS, thick slices": (np.diag([-3.0, 3.0, 5.0]), (64, 74, 36)),
    "permuted": (np.diag([4.0, 4.0, 4.0])[:, [2, 0, 1]] * [-1, 1, -1], (46, 48, 56)),
    "oblique": (ROTATION @ np.diag([-4.0, 4.0, 4.0]), (54, 60, 54)),
    "oblique, permuted": (ROTATION @ np.diag([4.0, 5.0, 4.0])[:, [1, 2, 0]] * [1, -1, 1], (48, 54, 54)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_everything_comes_out_where_it_was(tmp_path, translate, echo, name):
    """With a network that returns its source, the output is the windowed CT of the brain, left still left."""
    axes, shape = GRIDS[name]
    path = write_head_ct(tmp_path / "ct.nii.gz", axes, shape)
    assert translate(path, spacing=[3.0, 3.0, 3.0], **echo) is None
    source, made = nib.load(path), nib.load(tmp_path / "out" / "ct_t1.nii.gz")
    np.testing.assert_array_equal(made.affine, source.affine)
    assert made.shape == source.shape
    values, hu = made.get_fdata(), source.get_fdata()

    # away from the bone at the mask's rim
    position = nib.affines.apply_affine(source.affine, np.moveaxis(np.indices(shape), 0, -1))
    inner = np.linalg.norm(position / [80, 95, 75], axis=-1) < 0.75
    bleed = position[inner & (values > 0.65)].mean(axis=0)
    np.testing.assert_allclose(bleed, position[hu == 70].mean(axis=0), atol=0.7)
    np.testing.assert_allclose(bleed, [-40, 0, 0], atol=1.5)
    # the tissue's median is moved from 34 to 31 HU on the way
    assert np.abs(values - np.clip((hu - 3) / 80, 0, 1))[inner].mean() < 0.025


def test_outputs_do_not_depend_on_axes(tmp_path, translate):
    """The same head stored with other axes gives the same image in space."""
    shape, axes = (34, 40, 32), np.diag([6.0, 6.0, 6.0])
    for name, image_axes, image_shape in (("ras", axes, shape), ("other", -axes[:, [2, 1, 0]], shape[::-1])):
        write_head_ct(tmp_path / "in" / f"{name}.nii.gz", image_axes, image_shape)
    assert translate(tmp_path / "in") is None
    first, second = (nib.as_closest_canonical(nib.load(tmp_path / "out" / f"{n}_t1.nii.gz")) for n in ("ras", "other"))
    np.testing.assert_allclose(first.affine, second.affine, atol=1e-5)
    np.testing.assert_allclose(first.get_fdata(), second.get_fdata(), atol=1e-4)


def test_bad_cases_do_not_stop_the_others(tmp_path, translate):
    folder = tmp_path / "in"
    for name in ("a", "b", "e"):
        write_head_ct(folder / f"{name}.nii.gz")
    whole = (folder / "b.nii.gz").read_bytes()
    (folder / "b.nii.gz").write_bytes(whole[: len(whole) // 2])
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9, 2), np.int16), np.eye(4) * 6), folder / "c.nii.gz")
    affine = centred_affine(np.diag([6.0, 6.0, 6.0]), (34, 40, 32))
    air = np.full((34, 40, 32), -1000, np.int16)
    air[:20, :20, :20] = 30  # soft tissue, but no skull around it
    air[22:28, :20, :20] = 900
    nib.save(nib.Nifti1Image(air, affine), folder / "d.nii.gz")

    said = translate(folder)
    assert said == f"3 of 5 cases failed; {tmp_path / 'out' / 'failures.json'} tells why."
    assert outputs(tmp_path / "out") == sorted([*output_names("a", "e"), "failures.json"])
    failures = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert [(f["case"], f["file"]) for f in failures] == [("b", "b.nii.gz"), ("c", "c.nii.gz"), ("d", "d.nii.gz")]
    for failure, words in zip(failures, ("truncated", "not one 3D volume", "brain"), strict=True):
        assert words in failure["reason"]

    before = times(tmp_path / "out")
    (folder / "b.nii.gz").write_bytes(whole)
    (folder / "c.nii.gz").unlink()
    (folder / "d.nii.gz").unlink()
    assert translate(folder) is None
    after = times(tmp_path / "out")
    assert sorted(after) == output_names("a", "b", "e")
    assert all(before[name] == after[name] for name in output_names("a", "e"))


def test_a_source_that_vanished_after_a_run_fails_alone_and_the_new_case_is_done(tmp_path, translate, echo):
    """Its link leads nowhere; what was made of it stays."""
    sources = [write_head_ct(tmp_path / "elsewhere" / name / "x.nii.gz") for name in ("a", "b")]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.nii.gz").symlink_to(sources[0])
    assert translate(tmp_path / "in", **echo) is None
    sources[0].unlink()
    (tmp_path / "in" / "b.nii.gz").symlink_to(sources[1])
    assert translate(tmp_path / "in", **echo).startswith("1 of 2 cases failed")
    [failure] = json.loads((tmp_path / "out" / "failures.json").read_text())
    reason = "a.nii.gz is a link to a file that is not there; mend it, or fetch the file (datalad get, git annex get)."
    assert failure == {"case": "a", "file": "a.nii.gz", "reason": reason}
    assert outputs(tmp_path / "out") == sorted([*output_names("a", "b"), "failures.json"])


def test_a_name_that_would_be_too_long_fails_before_it_is_computed(tmp_path, translate, echo):
    """CASE joins the names of the folders, each of which the disk allows."""
    write_head_ct(tmp_path / "in" / ("d" * 200) / ("f" * 200 + ".nii.gz"))
    write_head_ct(tmp_path / "in" / "b.nii.gz")
    assert translate(tmp_path / "in", **echo).startswith("1 of 2 cases failed")
    [failure] = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert "shorten these names" in failure["reason"]
    assert outputs(tmp_path / "out") == sorted([*output_names("b"), "failures.json"])


def test_an_unforeseen_error_is_one_case_s_too(tmp_path, translate, monkeypatch):
    for name in ("a", "b"):
        write_head_ct(tmp_path / "in" / f"{name}.nii.gz")
    calls = []
    whole_call = ISTAInferer.__call__

    def fails_once(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole_call(self, *args, **kwargs)

    monkeypatch.setattr(ISTAInferer, "__call__", fails_once)
    assert translate(tmp_path / "in").startswith("1 of 2 cases failed")
    failure = json.loads((tmp_path / "out" / "failures.json").read_text())[0]
    assert failure == {"case": "a", "file": "a.nii.gz", "reason": reason(torch.OutOfMemoryError())}
    assert outputs(tmp_path / "out") == sorted([*output_names("b"), "failures.json"])


def test_runs_again_only_what_is_not_done_alike(tmp_path, translate):
    path = write_head_ct(tmp_path / "ct.nii.gz")
    assert translate(path) is None
    first = times(tmp_path / "out")
    assert translate(path) is None
    assert times(tmp_path / "out") == first
    changed = times(tmp_path / "out")
    changes = {"overwrite": True, "num_inference_steps": 3, "detail": 0.5, "style_key": "other", "batch_size": 3}
    for name, value in changes.items():
        assert translate(path, **{name: value}) is None
        last, changed = changed, times(tmp_path / "out")
        assert all(changed[name] > last[name] for name in last)


def test_another_mask_or_another_command_is_another_case(tmp_path, translate, echo):
    """Whoever mends a mask and types the same command is not to see the old brain."""
    path = write_head_ct(tmp_path / "ct.nii.gz")
    source = nib.load(path)

    def brain(radius):
        distance = np.linalg.norm(np.argwhere(np.ones(source.shape)) - (np.array(source.shape) - 1) / 2, axis=1)
        return nib.Nifti1Image((distance < radius).reshape(source.shape).astype(np.uint8), source.affine)

    def brain_ml(**options):
        assert translate(path, **echo, **options) is None
        return json.loads((tmp_path / "out" / "ct_t1.json").read_text())["measured"]["brain_ml"]

    (tmp_path / "masks").mkdir()
    nib.save(brain(9), tmp_path / "masks" / "ct.nii.gz")
    nib.save(brain(8), tmp_path / "smaller.nii.gz")
    first = brain_ml(skull_strip=str(tmp_path / "masks"))
    before = times(tmp_path / "out")
    assert brain_ml(skull_strip=str(tmp_path / "masks")) == first
    assert times(tmp_path / "out") == before
    os.replace(tmp_path / "smaller.nii.gz", tmp_path / "masks" / "ct.nii.gz")
    assert brain_ml(skull_strip=str(tmp_path / "masks")) < 0.8 * first
    record = json.loads((tmp_path / "out" / "ct_t1.json").read_text())
    assert record["mask_sha256"] == sha256_of_file(tmp_path / "masks" / "ct.nii.gz")
    (tmp_path / "masks" / "ct.nii.gz").unlink()
    assert translate(path, **echo, skull_strip=str(tmp_path / "masks")) is not None

    nib.save(brain(9), tmp_path / "large.nii.gz")
    nib.save(brain(8), tmp_path / "small.nii.gz")
    commands = [f"sh -c 'cp {tmp_path / name} $1' -- {{mask}} {{input}}" for name in ("large.nii.gz", "small.nii.gz")]
    made = [brain_ml(skull_strip=command) for command in commands]
    assert made[1] < 0.8 * made[0]
    assert str(tmp_path) not in (tmp_path / "out" / "ct_t1.json").read_text()  # a command may name a patient


@pytest.mark.parametrize("option", [{"crop_margin": 1}, {"size_multiple": 16}, {"check_hounsfield": False}])
def test_settings_that_are_not_the_samplers_count_too(tmp_path, translate, echo, option):
    path = write_head_ct(tmp_path / "ct.nii.gz")
    assert translate(path, **echo) is None
    before = times(tmp_path / "out")
    assert translate(path, **{**echo, **option}) is None
    assert all(later > before[name] for name, later in times(tmp_path / "out").items())


def test_two_runs_are_bit_identical_and_settings_matter(tmp_path, translate):
    path = write_head_ct(tmp_path / "ct.nii.gz")
    runs = {
        "one": {},
        "two": {},
        "style": {"style_key": "other"},
        "steps": {"num_inference_steps": 3},
        "mean": {"detail": 0},
    }
    for name, overrides in runs.items():
        assert translate(path, tmp_path / name, **overrides) is None
    names = output_names("ct")
    assert filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", names, shallow=False) == (names, [], [])
    for other in ("style", "steps", "mean"):
        assert filecmp.cmpfiles(tmp_path / "one", tmp_path / other, names, shallow=False)[1] == names


def test_overlap_changes_no_byte(tmp_path, translate):
    """A cohort of unlike grids, one by one and overlapped."""
    for name, (axes, shape) in zip("abc", list(GRIDS.values())[-3:], strict=True):
        write_head_ct(tmp_path / "in" / f"{name}.nii.gz", axes, shape)
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"no image")
    names = [*output_names(*"abc"), "failures.json"]
    for overlap in ("none", "saving", "all"):
        assert translate(tmp_path / "in", tmp_path / overlap, overlap=overlap).startswith("1 of 4 cases failed")
        assert outputs(tmp_path / overlap) == sorted(names)
        assert filecmp.cmpfiles(tmp_path / "none", tmp_path / overlap, names, shallow=False) == (names, [], [])


def test_a_source_that_changes_while_it_is_translated_is_not_taken_for_what_was_translated(
    tmp_path, translate, echo, monkeypatch
):
    """As one that is still being copied when the run begins."""
    path, whole = write_head_ct(tmp_path / "in" / "ct.nii.gz"), tmp_path / "whole.nii.gz"
    source = nib.load(path)
    values = np.where(np.arange(source.shape[0])[:, None, None] < 15, source.get_fdata(), -1000)
    nib.save(nib.Nifti1Image(source.get_fdata().astype(np.int16), source.affine), whole)
    nib.save(nib.Nifti1Image(values.astype(np.int16), source.affine), path)
    whole_call = ISTAInferer.__call__

    def copied_meanwhile(self, *args, **kwargs):
        if whole.exists():
            os.replace(whole, path)
        return whole_call(self, *args, **kwargs)

    monkeypatch.setattr(ISTAInferer, "__call__", copied_meanwhile)
    options = {**echo, "skull_strip": "none", "check_hounsfield": False}
    assert translate(path, **options).startswith("1 of 1 cases failed")
    [failure] = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert failure["reason"].startswith("The source of ct was changed while it was translated")
    assert outputs(tmp_path / "out") == ["failures.json"]
    assert translate(path, **options) is None
    assert json.loads((tmp_path / "out" / "ct_t1.json").read_text())["source"]["sha256"] == sha256_of_file(path)


def test_a_source_that_vanishes_while_it_is_translated_is_told_as_such(tmp_path, translate, echo, monkeypatch):
    """As of a disk of the network that is gone: whoever read that it was changed would look for the wrong thing."""
    path, whole_call = write_head_ct(tmp_path / "in" / "ct.nii.gz"), ISTAInferer.__call__

    def removed_meanwhile(self, *args, **kwargs):
        path.unlink()
        return whole_call(self, *args, **kwargs)

    monkeypatch.setattr(ISTAInferer, "__call__", removed_meanwhile)
    options = {**echo, "skull_strip": "none", "check_hounsfield": False}
    assert translate(tmp_path / "in", **options).startswith("1 of 1 cases failed")
    [failure] = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert failure["reason"] == (
        "The source of ct is not there any more, so nothing was saved; put it back, and type the command again."
    )
    assert outputs(tmp_path / "out") == ["failures.json"]


def test_a_single_case_is_translated_as_in_a_run(tmp_path, translate, bundle_root, models):
    """`translate_case`, which needs no loader: the same bytes; a case that fails gives its reason."""
    cases = [{"case": name, "image": str(tmp_path / "in" / f"{name}.nii.gz")} for name in ("a", "bad")]
    write_head_ct(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"no image")
    assert translate(tmp_path / "in", tmp_path / "run").startswith("1 of 2 cases failed")
    (noted,) = json.loads((tmp_path / "run" / "failures.json").read_text())

    parser = ConfigParser()
    parser.read_config(str(bundle_root / "configs" / "inference.json"))
    folders = {
        "bundle_root": str(bundle_root),
        "dataset_dir": str(tmp_path / "in"),
        "output_dir": str(tmp_path / "one"),
    }
    parser.update({**models, **folders})
    parser.get_parsed_content("load_weights")
    evaluator = parser.get_parsed_content("evaluator")
    for _ in range(2):  # a case does not depend on those before it
        good, bad = (evaluator.translate_case(item) for item in cases)
        assert sorted(good) == ["case", "seconds"]
        assert good["case"] == "a"
        assert good["seconds"] > 0
        assert (bad["case"], bad["failure"]) == ("bad", noted["reason"])
        names = output_names("a")
        assert outputs(tmp_path / "one") == names
        assert filecmp.cmpfiles(tmp_path / "run", tmp_path / "one", names, shallow=False) == (names, [], [])


def test_an_interrupt_ends_the_skull_strip_of_the_next_case(tmp_path, translate, monkeypatch):
    """While the first case is sampled, an external program that never ends is at work on the second."""
    for name in ("a", "b"):
        write_head_ct(tmp_path / "in" / f"{name}.nii.gz")
    mark, program = tmp_path / "pid", tmp_path / "strip.py"
    program.write_text(
        "import os, shutil, sys, time\n"
        "from pathlib import Path\n"
        f"first, mark = Path({str(tmp_path / 'first')!r}), Path({str(mark)!r})\n"
        "if first.exists():\n"
        "    mark.with_suffix('.new').write_text(str(os.getpid()))\n"
        "    mark.with_suffix('.new').rename(mark)\n"
        "    time.sleep(40)\n"
        "    mark.with_suffix('.end').touch()\n"
        "first.touch()\n"
        "shutil.copy(sys.argv[1], sys.argv[2])\n"
    )

    def interrupted(self, *args, **kwargs):
        until = time.monotonic() + 30
        while not mark.exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(ISTAInferer, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        translate(tmp_path / "in", skull_strip=f"{sys.executable} {program} {{input}} {{mask}}", overlap="all")
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
    assert not mark.with_suffix(".end").exists()
    assert not outputs(tmp_path / "out")


def test_batch_size_and_bfloat16_change_next_to_nothing(tmp_path, translate):
    path = write_head_ct(tmp_path / "ct.nii.gz")
    runs = {"one": {"batch_size": 1}, "many": {"batch_size": 7}, "half": {"dtype": "bfloat16"}}
    for name, overrides in runs.items():
        assert translate(path, tmp_path / name, **overrides) is None
    one, many, half = (nib.load(tmp_path / name / "ct_t1.nii.gz").get_fdata() for name in runs)
    assert np.abs(one - many).max() < 1e-5
    assert 10 * np.log10(1 / ((one - half) ** 2).mean()) > 40


def test_a_windowed_ct_needs_the_option(tmp_path, translate):
    shape, affine = (34, 40, 32), centred_affine(np.diag([6.0, 6.0, 6.0]), (34, 40, 32))
    grey = np.round(np.clip((head_ct(affine, shape) + 1000) / 2000, 0, 1) * 255).astype(np.uint8)
    nib.save(nib.Nifti1Image(grey, affine), tmp_path / "ct.nii.gz")
    assert translate(tmp_path / "ct.nii.gz") is not None
    assert "--ct_window" in json.loads((tmp_path / "out" / "failures.json").read_text())[0]["reason"]
    assert translate(tmp_path / "ct.nii.gz", ct_window=[-1000, 1000]) is None
    assert json.loads((tmp_path / "out" / "ct_t1.json").read_text())["ct_window"] == [-1000, 1000]


def test_another_contrast_needs_no_hounsfield_units(tmp_path, translate):
    voxels = np.zeros((34, 40, 32), np.float32)
    voxels[6:28, 6:34, 6:26] = np.random.default_rng(0).uniform(100, 900, (22, 28, 20))
    nib.save(nib.Nifti1Image(voxels, centred_affine(np.diag([6.0, 6.0, 6.0]), voxels.shape)), tmp_path / "flair.nii.gz")
    assert translate(tmp_path / "flair.nii.gz", skull_strip="none") is not None
    assert translate(tmp_path / "flair.nii.gz", skull_strip="none", check_hounsfield=False) is None


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"style_key": "nobody"}, "The style key nobody is neither"),
        ({"output_dir": "/dev/null/out"}, "/dev/null/out is no folder, or a part of its path is none"),
        ({"dataset_dir": "/nowhere"}, "There is no file or folder /nowhere"),
        ({"weights": "/nowhere.pt"}, "There is no weights file /nowhere.pt"),
        ({"network_def#channels": [16, 32]}, "do not fit the network"),
        ({"dtype": "float8"}, "dtype is float8"),
        ({"overlap": "some"}, "overlap is some"),
        ({"ct_window": [80, 0]}, "ct_window is"),
        ({"skull_strip": "guess"}, "The skull-strip method 'guess'"),
        ({"sampler": "mean_path_2", "timestep_spacing": "linear"}, "use timestep_spacing lambda"),
    ],
)
def test_settings_that_cannot_work_end_the_run_before_any_case(tmp_path, translate, overrides, sentence):
    path = write_head_ct(tmp_path / "ct.nii.gz")
    with pytest.raises((RuntimeError, CaseError)) as caught:
        translate(**{"dataset_dir": path, **overrides})
    assert sentence in str(innermost(caught.value))
    assert str(innermost(caught.value)) == reason(caught.value)
    assert not list(tmp_path.glob("out/*"))


def test_clashing_names_end_the_run(tmp_path, translate):
    write_head_ct(tmp_path / "in" / "a" / "b.nii.gz")
    write_head_ct(tmp_path / "in" / "a_b.nii.gz")
    with pytest.raises(RuntimeError) as caught:
        translate(tmp_path / "in")
    assert "would both be named a_b" in reason(caught.value)


def test_as_monai_label_calls_it(tmp_path, bundle_root, models):
    """A dictionary with a text `image_path`, the header asked for, the saver taken out, a batch for the inferer."""
    path = write_head_ct(tmp_path / "ct.nii.gz", np.diag([-6.0, 6.0, 6.0]))
    parser = ConfigParser()
    parser.read_config(str(bundle_root / "configs" / "inference.json"))
    parser.update({**models, "device": "cpu", "bundle_root": str(bundle_root)})
    preprocessing = parser.get_parsed_content("preprocessing").transforms
    preprocessing[0]._loader.image_only = False
    postprocessing = [
        t for t in parser.get_parsed_content("postprocessing").transforms if not isinstance(t, SaveImaged)
    ]
    network = parser.get_parsed_content("network_def").eval()

    data = Compose(preprocessing)({"image": str(path), "image_path": str(path), "image_id": "ct"})
    data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network)[0]
    pred = Compose(postprocessing)(data)["pred"]
    assert pred.shape == (1, 34, 40, 32)
    assert pred.dtype == torch.float32
    np.testing.assert_allclose(pred.affine, nib.load(path).affine)
    assert data["image_path"] == str(path)


def test_has_the_properties_of_an_inference_bundle(bundle_root, models):
    config = str(bundle_root / "configs" / "inference.json")
    workflow = ConfigWorkflow(config, workflow_type="infer", logging_file=False, **models)
    workflow.initialize()
    assert workflow.check_properties() == []
    assert workflow.bundle_root == str(bundle_root)


@pytest.fixture
def typed(tmp_path, bundle_root, models):
    """The command as typed, in a folder that is not the bundle's."""
    (tmp_path / "tiny.json").write_text(json.dumps(models))
    configs = [str(bundle_root / "configs" / "inference.json"), str(tmp_path / "tiny.json")]

    def function(*options):
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configs), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return function


def test_typed_with_a_bad_case(tmp_path, typed):
    write_head_ct(tmp_path / "20240101" / "a.nii.gz")
    (tmp_path / "20240101" / "b.nii.gz").write_bytes(b"no image")
    done = typed("--dataset_dir", "20240101", "--output_dir", "out")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.strip().endswith(f"1 of 2 cases failed; {tmp_path / 'out' / 'failures.json'} tells why.")
    assert "cases: 100%" in done.stderr
    assert "sampling:" in done.stderr
    assert f"Translated 1 of 2; the outputs are in {tmp_path / 'out'}" in done.stdout
    assert outputs(tmp_path / "out") == sorted([*output_names("a"), "failures.json"])


def test_typed_with_an_unknown_style_key(tmp_path, typed):
    write_head_ct(tmp_path / "a.nii.gz")
    done = typed("--dataset_dir", "a.nii.gz", "--output_dir", "out", "--style_key", "nobody")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("The style key nobody is neither")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def own_weights(models, tmp_path):
    """The tiny weights in the folder of a training, with style keys and source keys of its own."""
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(models["weights"], folder / "model.pt")
    rng = np.random.default_rng(5)
    for name in ("style_keys", "source_keys"):
        keys = {person: compute_style_key(rng.beta(2, 2, 5000)) for person in ("average", *"abc")}
        save_style_keys(keys, folder / f"{name}.json")
    return folder / "model.pt"


def keys_in_record(folder, case="a"):
    record = json.loads((folder / f"{case}_t1.json").read_text())
    return [record.get(name) for name in ("style_keys_sha256", "source_keys_sha256", "style_key_sha256")]


def test_weights_alone_bring_their_keys(tmp_path, typed, models, own_weights):
    """In the place of those that the config's weights have; a path that is typed too is taken."""
    write_head_ct(tmp_path / "a.nii.gz")
    own = [sha256_of_file(own_weights.with_name(f"{kind}.json")) for kind in ("style_keys", "source_keys")]
    done = typed("--dataset_dir", "a.nii.gz", "--output_dir", "out", "--weights", str(own_weights))
    assert done.returncode == 0, done.stderr
    assert "is not measured" not in done.stderr + done.stdout
    *files, used = keys_in_record(tmp_path / "out")
    assert files == own
    average = load_style_keys(own_weights.with_name("style_keys.json"))["average"]
    assert used == hashlib.sha256(average.tobytes()).hexdigest()
    options = ("--style_keys_file", "runs/source_keys.json", "--source_keys_file", "runs/style_keys.json")
    done = typed("--dataset_dir", "a.nii.gz", "--output_dir", "other", "--weights", "runs/model.pt", *options)
    assert done.returncode == 0, done.stderr
    assert keys_in_record(tmp_path / "other")[:2] == own[::-1]


def test_weights_without_keys_are_not_given_those_of_others(tmp_path, translate, own_weights, caplog):
    path = write_head_ct(tmp_path / "a.nii.gz")
    keys = own_weights.with_name("style_keys.json")
    own_weights.with_name("source_keys.json").unlink()
    keys.unlink()
    with pytest.raises((RuntimeError, CaseError)) as caught:
        translate(path, weights=str(own_weights))
    assert reason(caught.value) == (
        f"There is no {keys} with the keys of these weights; give --style_keys_file, or --style_key none or the path "
        "of a skull-stripped T1 volume."
    )
    assert not (tmp_path / "out").exists()
    assert translate(path, weights=str(own_weights), style_key="none") is None
    assert keys_in_record(tmp_path / "out")[:2] == [None, None]
    missing = own_weights.with_name("source_keys.json")
    assert f"How far cases are from the training is not measured: There is no {missing} with the keys" in caplog.text


def test_renamed_weights_are_not_given_the_keys_of_their_neighbours(tmp_path, translate, own_weights):
    path = write_head_ct(tmp_path / "a.nii.gz")
    renamed = own_weights.rename(own_weights.with_name("anna.pt"))
    with pytest.raises((RuntimeError, CaseError)) as caught:
        translate(path, weights=str(renamed))
    assert "There is no " + str(renamed.with_name("anna_style_keys.json")) in reason(caught.value)
    own_weights.with_name("style_keys.json").rename(own_weights.with_name("anna_style_keys.json"))
    assert translate(path, weights=str(renamed)) is None
    expected = sha256_of_file(own_weights.with_name("anna_style_keys.json"))
    assert keys_in_record(tmp_path / "out")[:2] == [expected, None]


def test_the_lesion_watch_decides_what_counts_as_done(tmp_path, translate):
    """A random network loses what the CT shows: marks on the image's grid, as many millilitres as the record tells."""
    write_head_ct(tmp_path / "in" / "a.nii.gz")
    folder = tmp_path / "out"
    assert translate(tmp_path / "in") is None
    assert "lesion_watch" not in json.loads((folder / "a_t1.json").read_text())
    assert translate(tmp_path / "in", lesion_watch=True) is None
    assert outputs(folder) == sorted([*output_names("a"), "a_t1_watch.nii.gz"])
    marks, image = nib.load(folder / "a_t1_watch.nii.gz"), nib.load(folder / "a_t1.nii.gz")
    np.testing.assert_array_equal(marks.affine, image.affine)
    assert marks.get_data_dtype() == np.uint8
    findings = json.loads((folder / "a_t1.json").read_text())["lesion_watch"]
    millilitres = np.count_nonzero(marks.dataobj) * np.prod(marks.header.get_zooms()) / 1000
    assert sum(finding["ml"] for finding in findings) == pytest.approx(millilitres, rel=0.3)
    before = times(folder)
    assert translate(tmp_path / "in", lesion_watch=True) is None
    assert times(folder) == before
    (folder / "a_t1_watch.nii.gz").unlink()
    assert translate(tmp_path / "in", lesion_watch=True) is None
    assert (folder / "a_t1_watch.nii.gz").is_file()
    assert translate(tmp_path / "in") is None
    assert outputs(folder) == output_names("a")


def test_the_uncertainty_is_a_further_file_and_leaves_the_image_as_it_is(tmp_path, translate):
    """On a grid of another orientation it lies where the image lies; it is done once, and again for other samples."""
    write_head_ct(tmp_path / "in" / "a.nii.gz", np.diag([6.0, 6.0, 6.0])[[1, 0, 2]] * [1, -1, 1], (40, 34, 32))
    calibration = tmp_path / "uncertainty.json"
    calibration.write_text(json.dumps({"factor": 2.0, "floor": 0.05, "weights_sha256": "of others"}))
    options = {"num_inference_steps": 2, "uncertainty_file": str(calibration)}
    assert translate(tmp_path / "in", tmp_path / "plain", **options) is None
    assert translate(tmp_path / "in", uncertainty=3, **options) is None
    folder = tmp_path / "out"
    assert outputs(folder) == sorted([*output_names("a"), "a_t1_uncertainty.nii.gz"])
    assert filecmp.cmp(folder / "a_t1.nii.gz", tmp_path / "plain" / "a_t1.nii.gz", shallow=False)
    image, spread = (nib.load(folder / f"a_t1{end}.nii.gz") for end in ("", "_uncertainty"))
    np.testing.assert_array_equal(spread.affine, image.affine)
    inside = image.get_fdata() > 0
    assert spread.shape == image.shape
    assert spread.get_fdata()[inside].min() > 0.04  # the floor, but for interpolation at the edge
    record, plain = (json.loads((f / "a_t1.json").read_text()) for f in (folder, tmp_path / "plain"))
    styles = "of the training"
    expected = {"samples": 3, "seed": 0, "styles": styles, "factor": 2.0, "floor": 0.05, "calibrated": False}
    assert record["uncertainty"] == expected
    assert record["measured"]["uncertainty_mean"] > 0.05
    assert "uncertainty" not in plain
    before = times(folder)
    assert translate(tmp_path / "in", uncertainty=3, **options) is None
    assert times(folder) == before
    assert translate(tmp_path / "in", uncertainty=2, style_key="other", **options) is None
    assert json.loads((folder / "a_t1.json").read_text())["uncertainty"]["styles"] == "as chosen"
    with pytest.raises(RuntimeError) as caught:
        translate(tmp_path / "in", uncertainty=1, **options)
    assert "at least 2" in reason(caught.value)
