"""What `prepare` makes of CT and T1 is what the training reads."""

import json
import sys

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser, ConfigWorkflow
from scipy import ndimage

from scripts.data import listed_ct_window
from scripts.errors import CaseError
from scripts.prepare.command import prepare
from tests.phantoms import TINY_TRAINING

SHAPE = (40, 46, 40)
AFFINE = nib.affines.from_matvec(np.diag([4.0] * 3), [-78, -90, -78])
TINY = {
    **TINY_TRAINING,
    "slab_shape": [32, 40],
    "max_epochs": 1,
    "iterations_per_epoch": 2,
    "warmup_iterations": 1,
    "val_interval": 0,
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Folder of a set's scans and table."""
    return tmp_path_factory.mktemp("raw")


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    """A set made of three people's stripped CT (-15 to 85 HU) and T1, one of whom is in each list."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in SHAPE), indexing="ij"))
    inside = (grid**2).sum(axis=0) < 1
    lines = ["subject,source,target,split"]
    for number, split in enumerate(("training", "validation", "test")):
        noise = ndimage.gaussian_filter(np.random.default_rng(number).normal(size=SHAPE), 1.5)
        tissue = np.clip(noise / noise.std(), -2.5, 2.5)
        volumes = {"ct": np.where(inside, 35 + 20 * tissue, -1000), "t1": np.where(inside, 600 + 150 * tissue, 0)}
        for name, volume in volumes.items():
            nib.save(nib.Nifti1Image(volume.astype(np.float32), AFFINE), raw / f"p{number}_{name}.nii.gz")
        lines.append(f"p{number},p{number}_ct.nii.gz,p{number}_t1.nii.gz,{split}")
    (raw / "pairs.csv").write_text("\n".join(lines))
    out = tmp_path_factory.mktemp("prepared")
    prepare("csv", str(raw), str(out), registration=False, bias_correction=False, spacing=4.0, num_workers=0)
    return out


def entry_of(prepared, section):
    [entry] = json.loads((prepared / "datalist.json").read_text())[section]
    return {key: str(prepared / entry[key]) for key in ("source", "target", "mask")}


def transforms_of(bundle_root, config, key, dataset_dir, **options):
    parser = ConfigParser()
    parser.read_config(bundle_root / "configs" / config)
    parser.update({"dataset_dir": str(dataset_dir), "spacing": TINY["spacing"], **options})
    return parser.get_parsed_content(key).transforms


def head_on_the_grid_of(raw, prepared, entry, path):
    """The first person's CT as scanned, on the prepared set's grid, with a skull about the brain."""
    mask = nib.load(entry["mask"])
    first = np.round(np.linalg.solve(AFFINE, mask.affine)[:3, 3]).astype(int)
    box = tuple(slice(start, start + count) for start, count in zip(first, mask.shape, strict=True))
    hu = nib.load(raw / "p0_ct.nii.gz").get_fdata(dtype=np.float32)[box]
    brain = mask.get_fdata() > 0
    outside = np.where(ndimage.binary_dilation(brain, iterations=2), 700, -1000)
    nib.save(nib.Nifti1Image(np.where(brain, hu, outside).astype(np.float32), mask.affine), path)


def test_training_reads_what_the_main_job_would_feed_the_network(raw, prepared, bundle_root, tmp_path):
    """Of a CT that reaches beyond the window of 0 to 80 HU before its slow trend is taken out."""
    assert listed_ct_window(str(prepared)) is None
    entry = entry_of(prepared, "training")
    data = dict(entry)
    for step in transforms_of(bundle_root, "train.json", "load", prepared):
        data = step(data)
    trained = np.asarray(data["source"][0])
    head_on_the_grid_of(raw, prepared, entry, tmp_path / "head.nii.gz")
    case = {"image": str(tmp_path / "head.nii.gz")}
    options = {"skull_strip": entry["mask"], "crop_margin": 500, "size_multiple": 1}  # no crop: the same grid
    for step in transforms_of(bundle_root, "inference.json", "preprocessing", tmp_path, **options):
        case = step(case)
    # what is left is the rounding of the interpolation that prepares
    np.testing.assert_allclose(np.asarray(case["image"][0]), trained, atol=1e-6)
    assert trained[np.asarray(data["mask"][0]) > 0].std() > 0.05


def test_a_prepared_set_trains(prepared, bundle_root, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the workflow changes it
    made = ConfigWorkflow(
        config_file=str(bundle_root / "configs" / "train.json"),
        meta_file=str(bundle_root / "configs" / "metadata.json"),
        logging_file=str(bundle_root / "configs" / "logging.conf"),
        workflow_type="train",
        **{**TINY, "dataset_dir": str(prepared), "output_dir": str(tmp_path / "out")},
    )
    made.initialize()
    made.run()
    made.finalize()
    assert np.isfinite(made.trainer.state.output["loss"].item())
    assert (tmp_path / "out" / "model.pt").is_file()


def test_a_list_without_a_window_is_of_hounsfield_units(tmp_path):
    (tmp_path / "datalist.json").write_text('{"training": []}')
    assert listed_ct_window(str(tmp_path)) is None
    (tmp_path / "datalist.json").write_text('{"ct_window": [0, 80], "training": []}')  # of an older version
    assert listed_ct_window(str(tmp_path)) == [0, 80]
    with pytest.raises(CaseError, match=r"There is no .*datalist\.json"):
        listed_ct_window(str(tmp_path / "elsewhere"))
