"""Any contrasts to the one that is missing, as a user types it: configs/many_to_one.json over inference.json."""

import json
import logging
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.bundle import ConfigParser, run

from scripts.errors import CaseError, reason
from tests.phantoms import centred_affine, write_head_ct
from tests.trees import write_dicom_series

AXES = np.diag([-6.0, 6.0, 6.0])
SHAPE = (24, 28, 24)
TINY = {
    "network_def#channels": [8, 8, 8],
    "network_def#norm_num_groups": 4,
    "network_def#num_head_channels": 8,
    "spacing": [6.0, 6.0, 6.0],
    "dtype": "float32",
    "num_inference_steps": 2,
}
# Fluid, grey matter, white matter, and a lesion on the left; any unit, a CT in HU.
VALUES = {
    "T1": (120.0, 420.0, 610.0, 300.0),
    "T1ce": (120.0, 430.0, 600.0, 800.0),
    "T2": (900.0, 500.0, 350.0, 700.0),
    "FLAIR": (90.0, 480.0, 400.0, 800.0),
    "PD": (700.0, 650.0, 520.0, 640.0),
    "CT": (8.0, 38.0, 29.0, 20.0),
}


def tissue(points: np.ndarray) -> np.ndarray:
    """Index of the tissue at points (..., 3) in RAS mm of a stripped brain, -1 outside; left is not like right."""
    x, y, z = np.moveaxis(points, -1, 0)
    radius = np.sqrt((x / 62) ** 2 + (y / 75) ** 2 + (z / 60) ** 2)
    found = np.select([radius < 0.7, radius < 0.93, radius < 1], [2, 1, 0], -1)
    found[((np.abs(x) - 14) / 9) ** 2 + (y / 30) ** 2 + (z / 16) ** 2 < 1] = 0
    found[((x + 30) / 16) ** 2 + ((y - 25) / 14) ** 2 + (z / 14) ** 2 < 1] = 3
    return found


def brain(points: np.ndarray, contrast: str) -> np.ndarray:
    """Values at points (..., 3) in RAS mm; fine texture, as scans have it."""
    index = tissue(points)
    values = np.array([*VALUES[contrast], -1000.0 if contrast == "CT" else 0.0])[index]
    texture = 1 + 0.02 * np.sin(points @ [0.31, 0.23, 0.17])
    return np.where(index < 0, values, values * texture).astype(np.float32)


def write(path: Path, contrast: str, axes=AXES, shape=SHAPE, shift=(0.0, 0.0, 0.0)) -> None:
    """A scan of the brain; `shift` is how far, in mm, its header is off."""
    affine = centred_affine(axes, shape)
    values = brain(nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)), contrast)
    affine[:3, 3] += shift
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)


def write_subjects(root: Path) -> None:
    """T2 and FLAIR of one brain in every layout, and subjects who differ from it in one thing each."""
    for stem, names in {
        "anna/": ("t2", "flair"),
        "sub-01/anat/sub-01_": ("T2w", "FLAIR"),
        "Brats18_X_1/Brats18_X_1_": ("t2", "flair"),
        "BraTS-GLI-00001-000/BraTS-GLI-00001-000-": ("t2w", "t2f"),
    }.items():
        for name, contrast in zip(names, ("T2", "FLAIR"), strict=True):
            write(root / f"{stem}{name}.nii.gz", contrast)
    for contrast in ("T2", "PD"):
        write(root / f"IXI-{contrast}" / f"IXI012-HH-1211-{contrast}.nii.gz", contrast)
    write(root / "alone_t2.nii.gz", "T2")
    for contrast in ("T1ce", "T2", "FLAIR", "PD", "CT"):
        write(root / "all" / f"{contrast}.nii.gz", contrast)
    write_head_ct(root / "ct_only" / "ct.nii.gz")
    write(root / "moved" / "t2.nii.gz", "T2")
    write(root / "moved" / "flair.nii.gz", "FLAIR", shape=(26, 28, 26), shift=(9.0, -6.0, 3.0))
    write(root / "there" / "t1.nii.gz", "T1")
    write(root / "there" / "t2.nii.gz", "T2")
    write(root / "twice" / "t2.nii.gz", "T2")
    write(root / "twice" / "t2_2.nii.gz", "T2")
    (root / "notes.txt").write_text("nothing")
    for number, (contrast, name) in enumerate({"T2": "t2_tse", "FLAIR": "t2_flair"}.items(), start=1):
        write_series(root / "study", number, contrast, name)


def write_series(folder: Path, number: int, contrast: str, description: str) -> None:
    """A DICOM series of the brain in slices of 6 mm, of a patient with a name."""

    def describe(slice_, _) -> None:
        slice_.SeriesDescription = f"{description} of Petronella"

    def stored(points: np.ndarray) -> np.ndarray:  # LPS; an MR's stored values are these plus 1000
        return (brain(points * [-1, -1, 1], contrast) - 1000).round()

    heights = np.arange(-69, 70, 6.0)
    write_dicom_series(
        folder, heights, number=number, modality="MR", voxels=26, spacing=6.0, hu_of=stored, study="1.2.3.9",
        patient="Petronella", change=describe,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, bundle_root) -> dict:
    """Overrides with the weights of an untrained network in which contrasts and target have a say."""
    folder = tmp_path_factory.mktemp("tiny")
    parser = ConfigParser()
    parser.read_config([bundle_root / "configs" / name for name in ("inference.json", "many_to_one.json")])
    parser.update({key.replace("#", "::"): value for key, value in TINY.items()})
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def")
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(network.state_dict(), folder / "tiny.pt")
    keys = str(bundle_root / "models" / "style_keys.json")
    return {**TINY, "weights": str(folder / "tiny.pt"), "style_keys_file": keys}


@pytest.fixture(scope="module")
def translate(bundle_root, tiny):
    """Run the config; gives the program's last words."""
    hook = sys.excepthook

    def function(dataset_dir, output_dir, overlays=("many_to_one.json",), **overrides):
        files = [str(bundle_root / "configs" / name) for name in ("inference.json", *overlays)]
        folders = {"dataset_dir": str(dataset_dir), "output_dir": str(output_dir)}
        try:
            run(config_file=files, logging_file=False, **{**tiny, **folders, **overrides})
        except SystemExit as end:
            return end.code
        return None

    yield function
    sys.excepthook = hook


@pytest.fixture(scope="module")
def results(tmp_path_factory, translate) -> Path:
    """Everybody in one run to T1."""
    folder = tmp_path_factory.mktemp("many")
    write_subjects(folder / "in")
    ended = translate(folder / "in", folder / "out", target_contrast="T1")
    assert ended.startswith("2 of 12 cases failed")
    return folder


def image(results: Path, case: str, folder: str = "out") -> nib.Nifti1Image:
    return nib.load(results / folder / f"{case}_t1.nii.gz")


def record(results: Path, case: str, folder: str = "out") -> dict:
    return json.loads((results / folder / f"{case}_t1.json").read_text())


def dicom_case(results: Path) -> str:
    (path,) = (results / "out").glob("mr_*_t1.json")
    return path.name.removesuffix("_t1.json")


def test_the_same_scans_give_the_same_image_in_every_layout(results):
    anna = image(results, "anna").get_fdata()
    assert anna.std() > 0
    for case in ("sub-01", "Brats18_X_1", "BraTS-GLI-00001-000"):
        np.testing.assert_array_equal(image(results, case).get_fdata(), anna, err_msg=case)
        assert record(results, case)["contrasts_used"] == ["T2", "FLAIR"]
    assert record(results, "IXI012-HH-1211")["contrasts_used"] == ["T2", "PD"]


def test_the_record_says_what_was_used_and_for_what(results):
    made = record(results, "sub-01")
    assert made["target_contrast"] == "T1"
    assert made["source_contrast"] == "T2"
    assert made["source"] == made["sources"]["T2"]
    assert {name: source["file"] for name, source in made["sources"].items()} == {
        "T2": "sub-01/anat/sub-01_T2w.nii.gz",
        "FLAIR": "sub-01/anat/sub-01_FLAIR.nii.gz",
    }
    assert made["registered"] == {}
    assert record(results, "all")["contrasts_used"] == ["T1ce", "T2", "FLAIR", "PD", "CT"]
    assert record(results, "ct_only")["source_contrast"] == "CT"


def test_every_contrast_has_a_say(results):
    anna, alone, everything = (image(results, case).get_fdata() for case in ("anna", "alone", "all"))
    assert np.abs(anna - alone).mean() > 1e-4
    assert np.abs(anna - everything).mean() > 1e-4


def test_the_result_lies_where_the_first_contrast_does(results):
    source, made = nib.load(results / "in" / "anna" / "t2.nii.gz"), image(results, "anna")
    assert made.shape == source.shape
    np.testing.assert_array_equal(made.affine, source.affine)
    assert (made.get_fdata()[source.get_fdata() == 0] == 0).all()
    assert (results / "out" / "anna_t1.png").is_file()


def test_what_is_there_already_or_twice_fails_alone(results):
    failures = {one["case"]: one["reason"] for one in json.loads((results / "out" / "failures.json").read_text())}
    assert failures.keys() == {"there", "twice"}
    assert failures["there"].startswith("there has a T1 already, t1.nii.gz; ask for another target_contrast")
    assert failures["twice"].startswith("twice has several T2, t2.nii.gz and t2_2.nii.gz; keep one")


def test_what_is_on_another_grid_is_registered(results):
    """The header was off by 11 mm; brought back, the image is anna's but for one more interpolation."""
    registered = record(results, "moved")["registered"]
    assert registered["FLAIR"]["to"] == "T2"
    assert registered["FLAIR"]["moved_mm"] == pytest.approx(np.linalg.norm([9, 6, 3]), abs=1.5)
    anna, moved, alone = (image(results, case).get_fdata() for case in ("anna", "moved", "alone"))
    assert np.abs(moved - anna).mean() < 0.3 * np.abs(alone - anna).mean()


def preprocessing_of(bundle_root: Path, folder: Path, **settings):
    """What brings a case to the network."""
    parser = ConfigParser()
    parser.read_config([bundle_root / "configs" / name for name in ("inference.json", "many_to_one.json")])
    parser.update({"registration": False, "spacing": [6.0, 6.0, 6.0], "dataset_dir": str(folder), **settings})
    return parser.get_parsed_content("preprocessing")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"endpoint": "last"}, "use one of first, mean_present"), ({"use_contrasts": "T7"}, "There is no contrast 'T7'")],
)
def test_a_wrong_option_is_told_before_weights_that_are_missing(translate, tmp_path, wrong, told):
    (tmp_path / "t2.nii.gz").touch()
    with pytest.raises(RuntimeError) as raised:
        translate(tmp_path, tmp_path / "out", **{"weights": str(tmp_path / "none.pt"), **wrong})
    assert told in reason(raised.value)


def test_fractions_of_the_sources_follow_them(bundle_root, tmp_path):
    write(tmp_path / "t2.nii.gz", "T2")
    preprocessing = preprocessing_of(bundle_root, tmp_path, structure="fractions")
    made = preprocessing({"case": "anna", "contrast_T2": str(tmp_path / "t2.nii.gz")})["image"]
    assert made.shape[0] == 6 + 4
    brain = made[2].numpy() > 0
    np.testing.assert_allclose(made[6:9].numpy().sum(0)[brain], 1, atol=1e-5)
    assert not made[6:, ~brain].numpy().any()
    assert not made[9].numpy().any()
    affine = nib.load(tmp_path / "t2.nii.gz").affine
    lesion = tissue(nib.affines.apply_affine(affine, np.moveaxis(np.indices(SHAPE), 0, -1))) == 3
    nib.save(nib.Nifti1Image(lesion.astype(np.uint8), affine), tmp_path / "anna_seg.nii.gz")
    preprocessing = preprocessing_of(bundle_root, tmp_path, structure="fractions", lesion_masks_dir=str(tmp_path))
    with_mask = preprocessing({"case": "anna", "contrast_T2": str(tmp_path / "t2.nii.gz")})
    assert with_mask["image"][9].sum() == lesion.sum()
    assert with_mask["source"].meta["lesion_mask"]["file"] == "anna_seg.nii.gz"


def test_what_a_contrast_does_not_show_is_background_of_it_alone(bundle_root, tmp_path):
    """What the network is given of an upper half of a FLAIR, and of a CT on a grid of its own."""
    affine = centred_affine(AXES, SHAPE)
    for contrast in ("T2", "FLAIR"):
        write(tmp_path / f"{contrast}.nii.gz", contrast)
    write(tmp_path / "CT.nii.gz", "CT", np.diag([5.0, 5.0, 6.0]), (28, 32, 12))
    nib.save(nib.load(tmp_path / "FLAIR.nii.gz").slicer[:, :, 12:], tmp_path / "upper.nii.gz")
    preprocessing = preprocessing_of(bundle_root, tmp_path)
    files = {"T2": "T2", "FLAIR": "FLAIR", "CT": "CT"}
    whole, cut = (
        preprocessing({"case": "anna", **{f"contrast_{c}": str(tmp_path / f"{f}.nii.gz") for c, f in names.items()}})
        for names in (files, {**files, "FLAIR": "upper"})
    )
    t1, t1ce, t2, flair, pd, ct, *shown = cut["image"].numpy()
    assert len(shown) == 6
    assert cut["image"].shape == whole["image"].shape
    assert all(not one.any() for one in (t1, t1ce, pd))
    np.testing.assert_array_equal(t2, whole["image"][2])
    heights = float(cut["image"].affine[2, 3]) + 6 * np.arange(flair.shape[-1])
    below, above = heights < affine[2, 3] + 6 * 11.4, heights > affine[2, 3] + 6 * 12.6
    assert not flair[..., below].any()
    assert np.abs(flair - whole["image"][3].numpy())[..., above].mean() < 0.03
    # the CT shows 36 mm up and down, and is windowed: grey matter of 38 HU, the median brought to 31
    shown = np.abs(heights) < 30
    assert not ct[..., np.abs(heights) > 39].any()
    assert np.median(ct[..., shown][t2[..., shown] > 0]) == pytest.approx(31 / 80, abs=0.05)


def test_a_contrast_that_shows_little_of_the_brain_is_as_if_it_had_never_been(results, translate):
    """Elsewhere it would halve the mean of the contrasts. Told in the record; and the case is done."""
    folder = results / "slab"
    write(folder / "in" / "slab" / "t2.nii.gz", "T2")
    write(folder / "in" / "slab" / "flair.nii.gz", "FLAIR", shape=(24, 28, 6))
    assert translate(folder / "in", folder / "out", target_contrast="T1", registration=False) is None
    np.testing.assert_array_equal(image(folder, "slab").get_fdata(), image(results, "alone").get_fdata())
    made = record(folder, "slab")
    assert made["contrasts_used"] == ["T2"]
    assert made["seen"]["T2"] == 1
    assert 0.2 < made["seen"]["FLAIR"] < 0.5
    assert made["sources"].keys() == {"T2", "FLAIR"}
    before = (folder / "out" / "slab_t1.json").stat().st_mtime_ns
    assert translate(folder / "in", folder / "out", target_contrast="T1", registration=False) is None
    assert (folder / "out" / "slab_t1.json").stat().st_mtime_ns == before


def test_a_study_of_dicom_and_no_name_of_its_patient(results):
    case = dicom_case(results)
    made = record(results, case)
    assert made["contrasts_used"] == ["T2", "FLAIR"]
    uids = {source["series_uid"] for source in made["sources"].values()}
    assert len(uids) == 2
    assert made["registered"] == {}
    assert image(results, case).shape == (26, 26, 24)
    told = "".join(path.read_text() for path in (results / "out").glob("*.json"))
    assert "petronella" not in told.lower()


def test_a_study_gets_a_series_beside_that_of_its_first_contrast(results, translate):
    ended = translate(results / "in" / "study", results / "series", ("many_to_one.json", "dicom.json"))
    assert ended is None
    (folder,) = (results / "series").glob("mr_*_t1_dicom")
    made = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    assert len(made) == 24
    assert made[0].SeriesDescription == "Synthetic T1 from T2 series 1, not for diagnostic use"
    first = pydicom.dcmread(results / "in" / "study" / "1_001")
    np.testing.assert_allclose(made[0].ImagePositionPatient, first.ImagePositionPatient)


@pytest.fixture(scope="module")
def others(results, translate) -> Path:
    """A table, one contrast in use, another spelling of the target; its folder is `table`."""
    rows = ["anna,in/anna/t2.nii.gz,in/anna/flair.nii.gz,", "there,in/there/t2.nii.gz,,in/there/t1.nii.gz"]
    (results / "subjects.csv").write_text("\n".join(["subject,T2w,flair,t1", *rows]) + "\n")
    table = results / "subjects.csv"
    assert translate(table, results / "table", use_contrasts="T2", target_contrast="t1w", registration=False) is None
    return results


def test_an_absent_contrast_is_as_if_it_had_never_been(others):
    """Not in use, not there: bit for bit the same; and the target may be there where it is not in use."""
    alone = image(others, "alone").get_fdata()
    for case in ("anna", "there"):
        np.testing.assert_array_equal(image(others, case, "table").get_fdata(), alone)
        made = record(others, case, "table")
        assert made["contrasts_used"] == ["T2"]
        assert made["source"]["file"] == "t2.nii.gz"


def test_the_target_decides_what_is_made(results, translate):
    assert translate(results / "in" / "anna", results / "flair", target_contrast="FLAIR", use_contrasts="T2") is None
    made = nib.load(results / "flair" / "anna_flair.nii.gz")
    assert json.loads((results / "flair" / "anna_flair.json").read_text())["target_contrast"] == "FLAIR"
    assert np.abs(made.get_fdata() - image(results, "alone").get_fdata()).mean() > 1e-4


def test_only_what_was_made_from_other_contrasts_is_made_anew(results, translate, caplog):
    folder = results / "again"
    for case in ("anna", "sub-01"):
        shutil.copytree(results / "in" / case, folder / "in" / case)
    assert translate(folder / "in", folder / "out") is None
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "out").glob("*.json")}
    shutil.copy(results / "in" / "IXI-PD" / "IXI012-HH-1211-PD.nii.gz", folder / "in" / "anna" / "pd.nii.gz")
    with caplog.at_level(logging.INFO):
        assert translate(folder / "in", folder / "out") is None
    assert "1 of 2 cases are done already" in caplog.text
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "out").glob("*.json")}
    assert {name for name in after if after[name] != before[name]} == {"anna_t1.json"}
    assert record(folder, "anna")["contrasts_used"] == ["T2", "FLAIR", "PD"]
    assert translate(folder / "in", folder / "out", endpoint="first") is None
    begun = {path.name: path.stat().st_mtime_ns for path in (folder / "out").glob("*.json")}
    assert all(begun[name] > after[name] for name in after)  # another beginning is another image


def test_a_style_key_of_another_contrast_ends_the_run_at_once(results, translate):
    with pytest.raises(RuntimeError) as raised:
        # MONAI takes the # of a value for ::, which the program undoes in what is typed
        translate(results / "in", results / "never", style_key="$'anna' + chr(35) + 'T2'")
    assert "The style key anna#T2 is of a T2, but a T1 is made" in reason(raised.value)
    assert not (results / "never").exists()


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("CT", "The weights have not learned to make a CT; give as target_contrast T1, T1ce, T2, FLAIR or PD"),
        ("swi", "There is no contrast 'swi'"),
    ],
)
def test_a_target_that_was_not_learned_ends_the_run_at_once(results, translate, target, match):
    with pytest.raises(RuntimeError) as error:
        translate(results / "in", results / "never", target_contrast=target)
    cause = error.value
    while not isinstance(cause, CaseError):
        cause = cause.__cause__
    assert match in str(cause)
    assert not (results / "never").exists()
