"""The command `evaluate`: whatever grid and unit the files have, what is compared is the same brain."""

import csv
import importlib
import json
import os
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.processing import resample_from_to
from scipy import ndimage

from scripts.errors import CaseError, MachineError
from scripts.evaluation.evaluate import evaluate, load_pair
from scripts.evaluation.figures import pearson
from scripts.evaluation.metrics import psnr
from scripts.evaluation.pairs import ResultPair
from scripts.evaluation.results import read_subjects
from scripts.report import report

module = importlib.import_module("scripts.evaluation.evaluate")  # the name is also that of its function
SHAPE = (30, 34, 28)
AFFINE = np.array([[4.0, 0, 0, -58], [0, 4, 0, -66], [0, 0, 4, -54], [0, 0, 0, 1]])


def brain(seed: int = 0) -> np.ndarray:
    """A brain of three noisy tissues in [0, 1], other on the left than on the right, 0 outside."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    rng = np.random.default_rng(seed)
    tissue = np.select([radius < 0.4, radius < 0.65, radius < 0.85], [0.8, 0.5, 0.2])
    texture = ndimage.gaussian_filter(rng.normal(0, 1, SHAPE), 1.5)
    return np.clip(tissue + 2 * texture, 0.05, 1) * (radius < 0.85)


@pytest.fixture
def save(tmp_path):
    def function(name, volume, affine=AFFINE):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.asarray(volume, np.float32), affine), path)
        return path

    return function


def pair_of(save, synthetic, real, mask=None, affine=AFFINE) -> ResultPair:
    files = {"synthetic": save("s.nii.gz", synthetic, affine), "real": save("r.nii.gz", real)}
    return ResultPair("anna", mask=None if mask is None else save("m.nii.gz", mask), **files)


def rows_of(file) -> dict[str, dict[str, str]]:
    with open(file, newline="") as opened:
        return {row["subject"]: row for row in csv.DictReader(opened)}


def test_the_unit_has_no_say_and_is_told(save):
    real = brain()
    real = np.clip(real / np.percentile(real[real > 0], 99.9), 0, 1)
    plain = load_pair(pair_of(save, 0.8 * real, real))
    assert plain.notes == []
    scaled = load_pair(pair_of(save, 0.8 * real, 700 * real))
    np.testing.assert_allclose(scaled.real, plain.real, atol=1e-3)
    assert scaled.notes == ["real image divided by 700, the 99.9 percentile of its brain"]
    np.testing.assert_array_equal(plain.mask, real > 0)
    assert plain.spacing_mm == (4, 4, 4)


@pytest.mark.parametrize("unit", [0.005, 0.3, 3000])
def test_a_real_image_of_any_unit_is_the_same(save, unit):
    real = brain()
    here = load_pair(pair_of(save, real, unit * real))
    top = np.percentile(real[real > 0], 99.9)
    np.testing.assert_allclose(here.real, np.clip(real / top, 0, 1), rtol=1e-3)
    assert here.notes == [f"real image divided by {unit * top:.4g}, the 99.9 percentile of its brain"]


def test_a_synthetic_image_that_overshoots_is_clipped_and_one_of_another_unit_divided(save):
    real = brain()
    image = 0.6 * real
    lone = np.unravel_index(real.argmax(), SHAPE)
    image[lone] = 1.6  # one voxel is no percentile
    here = load_pair(pair_of(save, image, real))
    assert here.notes == []
    image[lone] = 1
    np.testing.assert_allclose(here.synthetic, image, atol=1e-6)
    here = load_pair(pair_of(save, 1.2 * real, real))
    assert here.notes[0].startswith("synthetic image clipped at 1; the 99.9 percentile of its brain is 1.")
    np.testing.assert_allclose(here.synthetic, np.clip(1.2 * real, 0, 1), atol=1e-6)
    here = load_pair(pair_of(save, 255 * real, real))
    assert here.notes[0].startswith("synthetic image divided by ")


def test_an_image_that_is_negative_in_the_brain_is_refused(save):
    real = brain()
    with pytest.raises(CaseError, match=r"of the brain is negative in s\.nii\.gz \(-0\.\d+ to "):
        load_pair(pair_of(save, 2 * real - 1, real))
    with pytest.raises(CaseError, match=r"of the brain is negative in r\.nii\.gz"):
        load_pair(pair_of(save, real, 2 * real - 1, mask=real > 0))
    undershot = np.where(real > 0, real - 0.06, 0)  # down to -0.01
    np.testing.assert_allclose(load_pair(pair_of(save, undershot, real)).synthetic, np.clip(undershot, 0, 1), atol=1e-6)


def test_order_and_direction_of_the_axes_have_no_say(save):
    real, image = brain(), 0.9 * brain()
    turned = nib.Nifti1Image(image, AFFINE).as_reoriented([[1, -1], [0, 1], [2, -1]])
    here = load_pair(pair_of(save, np.asarray(turned.dataobj), real, affine=turned.affine))
    np.testing.assert_allclose(here.synthetic, image, atol=1e-6)
    assert here.notes == []


def test_another_grid_is_resampled_and_told(save):
    real = ndimage.gaussian_filter(brain(), 1)
    finer = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    image = resample_from_to(nib.Nifti1Image(real, AFFINE), (tuple(2 * n for n in SHAPE), finer), order=1)
    mask = real > 0.02
    here = load_pair(pair_of(save, np.asarray(image.dataobj), real, mask, finer))
    assert "resampled" in here.notes[0]
    assert np.abs(here.synthetic - real)[mask].mean() < 0.01


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("shifted", "holds .*% of the brain of r.nii.gz, so they lie elsewhere"),
        ("mirrored", "fits r.nii.gz better with left and right exchanged"),
        ("upside down", "fits r.nii.gz better with top and bottom exchanged"),
        ("whole head", "r.nii.gz is not skull-stripped"),
        ("black", "s.nii.gz is empty"),
    ],
)
def test_what_does_not_show_the_same_is_refused(save, change, sentence):
    real, image, affine = brain(), brain(), AFFINE.copy()
    if change == "shifted":
        affine[:3, 3] += 70
    elif change == "mirrored":
        image = image[::-1]
    elif change == "upside down":
        image = image[:, :, ::-1]
    elif change == "whole head":
        real = real + 0.1
    else:
        image = 0 * image
    with pytest.raises(CaseError, match=sentence):
        load_pair(pair_of(save, image, real, affine=affine))


def test_an_image_that_fits_neither_way_round_is_bad_but_its_header_is_not_blamed(save):
    real = brain()
    odd = real - real[::-1]  # correlates with the real image and, with the other sign, with its mirror image
    noise = np.random.default_rng(1).normal(0, 0.11, SHAPE)
    image = np.clip(0.5 - 0.4 * odd + noise, 0.01, 1) * (real > 0)
    assert -0.3 < pearson(image, real, real > 0) < -0.2 < 0.2 < pearson(image[::-1], real, real > 0) < 0.3
    np.testing.assert_array_equal(load_pair(pair_of(save, image, real)).mask, real > 0)


def test_a_mask_makes_a_whole_head_comparable(save):
    real = brain()
    head = np.where(real > 0, real, 0.3)
    here = load_pair(pair_of(save, 0.9 * real, head, mask=real > 0))
    np.testing.assert_array_equal(here.mask, real > 0)
    np.testing.assert_allclose(here.real, real, atol=1e-6)
    assert here.notes == ["both images set to 0 outside the given mask"]


def folders(save, tmp_path, factor: float = 1.0):
    """Three subjects of which one is broken; gives the two folders."""
    for seed, name in enumerate(("anna", "bert", "cleo")):
        noise = np.random.default_rng(seed).normal(0, 0.05 * factor, SHAPE)
        real = brain(seed)
        save(f"ours{factor}/{name}_t1.nii.gz", np.clip(real + noise, 0, 1) * (real > 0))
        save(f"real/{name}.nii.gz", 500 * real)
    save("real/dora.nii.gz", brain())
    (tmp_path / f"ours{factor}" / "cleo_t1.nii.gz").write_bytes(b"no volume")
    return str(tmp_path / f"ours{factor}"), str(tmp_path / "real")


def test_folders_give_tables_and_a_bad_pair_does_not_stop_the_rest(save, tmp_path):
    out = tmp_path / "eval"
    evaluate(*folders(save, tmp_path), output_dir=str(out))
    rows = rows_of(out / "subjects.csv")
    assert list(rows) == ["anna", "bert", "mean", "std"]
    here = load_pair(ResultPair("anna", tmp_path / "ours1.0/anna_t1.nii.gz", tmp_path / "real/anna.nii.gz"))
    expected = psnr(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (here.synthetic, here.real, here.mask)))
    assert float(rows["anna"]["psnr_brain"]) == pytest.approx(expected.item(), abs=1e-3)
    assert float(rows["anna"]["psnr"]) > float(rows["anna"]["psnr_brain"])
    values = [float(rows[s]["ssim"]) for s in ("anna", "bert")]
    assert float(rows["mean"]["ssim"]) == pytest.approx(np.mean(values), rel=1e-4)
    assert float(rows["std"]["ssim"]) == pytest.approx(np.std(values, ddof=1), rel=1e-3)
    failures = {f["subject"]: f["reason"] for f in json.loads((out / "failures.json").read_text())}
    assert failures.keys() == {"cleo", "dora"}
    assert "cannot be read" in failures["cleo"]
    text = (out / "summary.md").read_text()
    assert "| PSNR (dB) | " in text
    assert "n = 2" in text
    assert "- anna: real image divided by" in text
    assert "- dora: there is no synthetic image of it" in text
    cases = rows_of(out / "cases.csv")
    assert (out / cases["bert"]["synthetic"]).resolve() == tmp_path / "ours1.0" / "bert_t1.nii.gz"
    assert cases["bert"]["mask"] == ""


def test_two_runs_are_tested_against_each_other(save, tmp_path, capsys):
    for factor in (1.0, 2.0):
        evaluate(*folders(save, tmp_path, factor), output_dir=str(tmp_path / f"eval{factor}"))
    evaluate(*folders(save, tmp_path), output_dir=str(tmp_path / "eval1.0"), against=str(tmp_path / "eval2.0"))
    line = next(
        ln for ln in (tmp_path / "eval1.0" / "summary.md").read_text().splitlines() if "| PSNR (dB) | 2 | +" in ln
    )
    first, second = (read_subjects(tmp_path / f"eval{factor}") for factor in (1.0, 2.0))
    difference = np.mean([first[s]["psnr"] - second[s]["psnr"] for s in first])
    assert f"| {difference:+.3f} |" in line
    capsys.readouterr()
    evaluate(output_dir=str(tmp_path / "eval2.0"), against=str(tmp_path / "eval1.0" / "subjects.csv"))
    assert f"| PSNR (dB) | 2 | {-difference:+.3f} |" in capsys.readouterr().out
    assert (tmp_path / "eval2.0" / "against.md").is_file()


def test_nothing_to_evaluate_is_an_error(save, tmp_path):
    synthetic = save("ours/anna.nii.gz", 0 * brain())
    real = save("real/anna.nii.gz", brain())
    with pytest.raises(CaseError, match="No pair could be evaluated"):
        evaluate(str(synthetic.parent), str(real.parent), output_dir=str(tmp_path / "eval"))
    (failure,) = json.loads((tmp_path / "eval" / "failures.json").read_text())
    assert failure["subject"] == "anna"
    assert "anna.nii.gz is empty" in failure["reason"]
    with pytest.raises(CaseError, match="Give either --pairs CSV"):
        evaluate(str(synthetic.parent))
    with pytest.raises(CaseError, match=r"There is no .*subjects\.csv"):
        evaluate(str(synthetic.parent), str(real.parent), against=str(tmp_path / "ours"))


@pytest.mark.parametrize("itself", ["eval", "ours/../eval", "eval/subjects.csv"])
def test_an_evaluation_is_not_compared_with_itself(save, tmp_path, itself):
    ours, real = (str(save(f"{kind}/anna.nii.gz", brain()).parent) for kind in ("ours", "real"))
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "subjects.csv").write_text("subject,psnr\nanna,20\n")
    for folders in ((ours, real), ()):
        with pytest.raises(CaseError, match="is this evaluation's own folder"):
            evaluate(*folders, output_dir=str(tmp_path / "eval"), against=str(tmp_path / itself))
    assert read_subjects(tmp_path / "eval") == {"anna": {"psnr": 20.0}}


def test_with_sources_a_pointwise_map_stands_beside_the_gain(save, tmp_path):
    ours, real = folders(save, tmp_path)
    for seed, name in enumerate(("anna", "bert")):
        save(f"sources/{name}_ct.nii.gz", 20 + 30 * brain(seed))
    evaluate(ours, real, source=str(tmp_path / "sources"), output_dir=str(tmp_path / "eval"))
    text = (tmp_path / "eval" / "summary.md").read_text()
    assert "| inside the brain | there, pointwise map of the source | there, unsharp mask |" in text
    cells = next(line for line in text.splitlines() if line.startswith("| Pearson |")).split(" | ")
    assert float(cells[-2].split()[0]) > 0.99  # a source that tells everything
    assert "Pointwise map (2 with a source)" in text
    assert rows_of(tmp_path / "eval" / "subjects.csv")["anna"].keys() >= {"highpass_brain", "lowpass_brain"}


def test_t2_to_flair_is_called_what_it_is_from_pairs_to_report(save, tmp_path):
    """What the main job leaves of a T2 to FLAIR, its real images, a table and a report."""
    for seed, name in enumerate(("anna", "bert")):
        real = brain(seed)
        path = save(f"ours/{name}_t2_flair.nii.gz", 0.95 * real)
        contrasts = {"source_contrast": "T2", "target_contrast": "FLAIR"}
        path.with_name(f"{name}_t2_flair.json").write_text(json.dumps({"bundle": "b", **contrasts}))
        for contrast, image in (("flair", 300 * real), ("t1", 0.9 - real), ("t2", 200 * real[::-1])):
            save(f"real/{name}_{contrast}.nii.gz", np.where(real > 0, image, 0))
    out = tmp_path / "eval"
    evaluate(str(tmp_path / "ours"), str(tmp_path / "real"), output_dir=str(out))
    text = (out / "summary.md").read_text()
    assert "- target contrast: FLAIR" in text
    assert float(rows_of(out / "subjects.csv")["mean"]["pearson_brain"]) > 0.99
    assert {row["target_contrast"] for row in rows_of(out / "cases.csv").values()} == {"FLAIR"}
    report(str(out))
    report(str(tmp_path / "ours"), real=str(tmp_path / "real"), output=str(tmp_path / "pages"))
    for folder in (out / "report", tmp_path / "pages"):
        pages = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.html"))]
        assert all(title in pages[0] for title in ("synthetic FLAIR", "real FLAIR"))
        text += "".join(re.sub(r'<script type="text/plain".*?</script>|base64,[^"]*', "", page) for page in pages)
    assert not re.search(r"\bT1\b|_t1\b", text)
    index = (tmp_path / "pages" / "index.html").read_text(encoding="utf-8")
    assert all(f">{name}_t2<" in index for name in ("anna", "bert"))


def test_a_contrast_whose_tissues_have_no_order_has_no_dice_and_says_so(save, tmp_path):
    files = [save(f"{kind}/anna_pd.nii.gz", brain()) for kind in ("ours", "real")]
    evaluate(*map(str, files), output_dir=str(tmp_path / "eval"), target_contrast="PD")
    assert not [name for name in rows_of(tmp_path / "eval" / "subjects.csv")["anna"] if "dice" in name]
    assert "No Dice: the tissues of PD have no fixed order of brightness." in (tmp_path / "eval/summary.md").read_text()


@pytest.mark.slow
def test_names_that_are_no_utf8_go_through_evaluation_and_report(save, tmp_path, capsys):
    """In the tables they are letters; the report finds the files by them."""
    name = os.fsdecode("Müller".encode("cp1252"))
    for kind in ("syn", "real"):
        save(f"{kind}/{name}.nii.gz", brain())
        save(f"{kind}/b.nii.gz", brain(1))
    evaluate(str(tmp_path / "syn"), str(tmp_path / "real"), output_dir=str(tmp_path / "ev"))
    assert read_subjects(tmp_path / "ev").keys() == {"Müller", "b"}
    assert "Müller" not in capsys.readouterr().err  # nothing is wrong with it
    report(str(tmp_path / "ev"))
    assert "Müller" in (tmp_path / "ev" / "report" / "index.html").read_text(encoding="utf-8")
    assert not (tmp_path / "ev" / "report" / "case-003.html").exists()
    assert "2 of 2 cases shown" in capsys.readouterr().out


def test_tables_from_a_german_excel(save, tmp_path):
    """Of pairs, with semicolons and the letters of Windows; and an evaluation saved again, with decimal commas."""
    for kind in ("syn", "real"):
        save(f"{kind}/Jörg.nii.gz", brain())
    table = tmp_path / "pairs.csv"
    table.write_bytes("Subject;Synthetic;Real\r\nJörg;syn\\Jörg.nii.gz;real\\Jörg.nii.gz\r\n".encode("cp1252"))
    evaluate(pairs=str(table), output_dir=str(tmp_path / "ev"))
    figures = read_subjects(tmp_path / "ev")
    saved = tmp_path / "other.csv"
    plain = (tmp_path / "ev" / "subjects.csv").read_text(encoding="utf-8")
    saved.write_bytes(plain.replace(",", ";").replace(".", ",").encode("cp1252"))
    assert read_subjects(saved)["Jörg"] == pytest.approx(figures["Jörg"], nan_ok=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_whatever_goes_wrong_with_a_pair_is_its_own(save, tmp_path, workers):
    for kind in ("syn", "real"):
        for number, name in enumerate("abc"):
            save(f"{kind}/{name}.nii.gz", brain(number))
    (tmp_path / "syn" / "a.json").write_text(json.dumps({"bundle": "x", "target_contrast": "no such"}))
    (tmp_path / "real" / "b.nii.gz").unlink()
    (tmp_path / "real" / "b.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    evaluate(str(tmp_path / "syn"), str(tmp_path / "real"), output_dir=str(tmp_path / "ev"), workers=workers)
    assert read_subjects(tmp_path / "ev").keys() == {"c"}
    failures = {f["subject"]: f["reason"] for f in json.loads((tmp_path / "ev" / "failures.json").read_text())}
    assert "There is no contrast" in failures["a"]
    assert "is not there" in failures["b"]


def test_an_unforeseen_error_and_a_folder_that_cannot_be_written(save, tmp_path, monkeypatch):
    for kind in ("syn", "real"):
        for number, name in enumerate("ab"):
            save(f"{kind}/{name}.nii.gz", brain(number))
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="give another folder"):
        evaluate(str(tmp_path / "syn"), str(tmp_path / "real"), output_dir=str(tmp_path / "file"))
    load = module.load_pair
    monkeypatch.setattr(module, "load_pair", lambda pair, mm: 1 / 0 if pair.subject == "a" else load(pair, mm))
    evaluate(str(tmp_path / "syn"), str(tmp_path / "real"), output_dir=str(tmp_path / "ev"))
    assert read_subjects(tmp_path / "ev").keys() == {"b"}


def test_several_processes_give_the_same(save, tmp_path):
    ours, real = folders(save, tmp_path)
    for workers in (1, 2):
        evaluate(ours, real, output_dir=str(tmp_path / f"eval{workers}"), workers=workers)
    one, two = ((tmp_path / f"eval{workers}" / "subjects.csv").read_text() for workers in (1, 2))
    assert one == two
