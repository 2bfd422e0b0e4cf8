"""What the pages hold, read as HTML: volumes that decode to the right voxels, figures, warnings, nothing unescaped."""

import base64
import csv
import gzip
import json
import os
import shutil
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import CaseError
from scripts.files import sha256_of_file
from scripts.report import report
from scripts.report.charts import distribution
from scripts.report.pictures import UNCERTAINTY_COLOUR, still_picture
from scripts.report.volumes import LARGEST_GRID, ShownVolume, _shown_grid
from tests.report.phantom import BALL, NAMES, phantom


class Page(HTMLParser):
    """Text, links, tags, table cells and embedded volumes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.tags, self.cells, self.volumes, self.texts = [], [], [], {}, []
        self._inside = ("", {})
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self._inside = (tag, attributes)
        self.links += [attributes[a] for a in ("href", "src") if a in attributes]
        if tag == "td" and "data-value" in attributes:
            self.cells.append(attributes["data-value"])

    def handle_endtag(self, tag):
        self._inside = ("", {})

    def handle_data(self, data):
        tag, attributes = self._inside
        if tag == "script" and attributes.get("class") == "volume":
            self.volumes[attributes["data-key"]] = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(data)))
        elif data.strip():
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture(scope="module")
def pages(results, tmp_path_factory):
    """The report of the three cases: name -> parsed page; "folder" -> where they are."""
    out, dataset_dir, real = results
    folder = tmp_path_factory.mktemp("pages")
    report(str(out), str(dataset_dir), str(real), str(folder))
    parsed = {path.name: Page(path.read_text(encoding="utf-8")) for path in folder.glob("*.html")}
    return {**parsed, "folder": folder}


def test_every_link_leads_to_a_file_beside_it_and_none_to_the_network(pages):
    folder = pages["folder"]
    html = [page for name, page in pages.items() if name.endswith(".html")]
    assert len(html) == 4
    for page in html:
        local = [link for link in page.links if not link.startswith("data:")]
        assert all((folder / link).is_file() for link in local)
        assert {"assets/report.css", "assets/niivue.LICENSE.txt"} <= set(local)
    assert {"case-001.html", "case-002.html", "case-003.html"} <= set(pages["index.html"].links)
    assert "case-003.html" in pages["case-002.html"].links


def test_embedded_volumes_are_the_case_cropped_on_one_grid(pages):
    """The ball is on the patient's left in each image, at its place and with its value."""
    volumes = pages["case-001.html"].volumes
    assert list(volumes) == ["source", "synthetic", "real", "error"]
    expected = {"source": 70.0, "synthetic": 1.0, "real": 1.0, "error": 0.0}
    for key, image in volumes.items():
        assert image.get_data_dtype() == np.uint8
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        np.testing.assert_array_equal(image.affine, volumes["synthetic"].affine)
        voxel = tuple(np.rint(nib.affines.apply_affine(np.linalg.inv(image.affine), BALL)).astype(int))
        assert image.get_fdata()[voxel] == pytest.approx(expected[key], abs=0.7 if key == "source" else 0.005)
    _, t1, affine = phantom()
    shown = volumes["synthetic"]
    brain = np.argwhere(shown.get_fdata() > 0)
    original = np.argwhere(t1 > 0)
    np.testing.assert_allclose(
        nib.affines.apply_affine(shown.affine, brain).mean(axis=0),
        nib.affines.apply_affine(affine, original).mean(axis=0),
        atol=1e-3,
    )
    assert len(brain) == len(original)
    assert np.prod(shown.shape) < 0.8 * t1.size  # cropped


def test_the_error_map_is_signed_and_zero_outside_the_brain(pages):
    error = pages["case-002.html"].volumes["error"].get_fdata()
    synthetic = pages["case-002.html"].volumes["synthetic"].get_fdata()
    # real: (0.5 - 0.1) / 0.9 in the brain's body where the synthetic image is 0.5
    assert np.median(error[synthetic > 0]) == pytest.approx(0.5 - 0.4 / 0.9, abs=0.006)
    assert np.abs(error[synthetic == 0]).max() < 1e-6


def test_the_uncertainty_lies_over_the_image_and_is_told(results, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(results[0], out)
    t1 = nib.load(out / "b_t1.nii.gz")
    spread = np.where(t1.get_fdata() > 0.9, 0.3, 0.1) * (t1.get_fdata() > 0)  # high in the ball
    nib.save(nib.Nifti1Image(spread.astype(np.float32), t1.affine), out / "b_t1_uncertainty.nii.gz")
    record = json.loads((out / "b_t1.json").read_text())
    record["measured"] |= {"uncertainty_mean": 0.1234, "uncertainty_high_share": 0.4}
    (out / "b_t1.json").write_text(json.dumps(record))
    report(str(out), str(results[1]), None, str(tmp_path / "pages"))
    with_it, without = (Page((tmp_path / "pages" / f"case-00{n}.html").read_text()) for n in (2, 1))
    assert list(with_it.volumes) == ["source", "synthetic", "uncertainty"]
    assert list(without.volumes) == ["source", "synthetic"]
    shown, image = (with_it.volumes[key] for key in ("uncertainty", "synthetic"))
    np.testing.assert_array_equal(shown.affine, image.affine)
    assert shown.get_fdata()[image.get_fdata() > 0.9] == pytest.approx(0.3, abs=0.002)
    assert shown.get_fdata()[image.get_fdata() == 0].max() == 0
    assert "0.123" in with_it.text
    assert "Uncertain: the standard deviation is above 0.15 in 40% of the brain" in with_it.text


def test_the_still_picture_colours_what_is_uncertain_over_the_image():
    affine = np.eye(4)
    image = np.full((9, 9, 9), 100, np.uint8)
    spread = np.zeros((9, 9, 9), np.uint8)
    spread[:4] = 255  # on the patient's left: at lower x, in the picture on the right
    volumes = [
        ShownVolume("synthetic", "", image, 1 / 200, 0, affine, (0, 1)),
        ShownVolume("uncertainty", "", spread, 1 / 255, 0, affine, (0, 1)),
    ]
    picture = np.asarray(still_picture(volumes, panel_width=90)).astype(int)
    panel = picture[26 + 20 : 26 + 80, 90 + 20 : 180]
    np.testing.assert_array_equal(panel[5, 5], [128, 128, 128])
    np.testing.assert_array_equal(panel[5, -10], UNCERTAINTY_COLOUR)


def test_what_a_user_gave_is_text_and_no_markup(pages):
    assert 'a <b>"&' in pages["case-001.html"].text
    assert "</script><script>alert(1)</script>" in pages["case-001.html"].text
    assert "d.nii.gz is <i>empty</i>; export it again." in pages["index.html"].text
    tags = {tag for name, page in pages.items() if name.endswith(".html") for tag, _ in page.tags}
    assert "i" not in tags
    scripts = [a for tag, a in pages["case-001.html"].tags if tag == "script" and a.get("class") != "volume"]
    assert [a["src"] for a in scripts] == ["assets/niivue.umd.js", "assets/case.js"]


def test_pages_say_what_they_show_and_warn(pages):
    case, index = pages["case-001.html"].text, pages["index.html"].text
    for text in (case, index):
        assert "not for diagnostic use" in text
    assert "Out of distribution" in case
    assert "Sparse CT, gaps of 4 mm" in case
    assert "Out of distribution" not in pages["case-002.html"].text  # 0.2, below its limit
    assert "PSNR (dB), brain" in index
    assert "radiological" in case.lower()
    assert "Distributions" in index


def test_the_table_has_the_raw_values_for_sorting(pages):
    cells = pages["index.html"].cells
    assert {"0.3", "0.2", "25.0"} <= {cell[:4] for cell in cells}
    assert all(name in cells for name in NAMES)


def test_a_source_that_changed_or_is_elsewhere_is_not_shown(results, tmp_path):
    out, dataset_dir, _ = results
    other = tmp_path / "other" / "Doe Jane"
    other.mkdir(parents=True)
    for path in (dataset_dir / "Doe Jane").iterdir():
        (other / path.name).write_bytes(path.read_bytes() + b" ")
    for given, said in ((None, "its folder was not given"), (str(other.parent), "another one than was translated")):
        report(str(out), given, output=str(tmp_path / "pages"))
        page = Page((tmp_path / "pages" / "case-002.html").read_text(encoding="utf-8"))
        assert list(page.volumes) == ["synthetic"]
        assert said in page.text


def test_an_evaluation_folder_brings_its_own_figures(results, tmp_path):
    out, dataset_dir, real = results
    rows = [
        {
            "subject": name,
            "synthetic": str(out / f"{name}_t1.nii.gz"),
            "real": str(real / f"{name}.nii.gz"),
            "source": str(dataset_dir / "Doe Jane" / f"{name}.nii.gz"),
            "mask": "",
        }
        for name in ("b", "c")
    ]
    for file, table in (
        ("cases.csv", rows),
        (
            "subjects.csv",
            [{"subject": s, "psnr_brain": p, "ssim_brain": "nan"} for s, p in (("b", 21.25), ("c", 7), ("mean", 9))],
        ),
    ):
        with (tmp_path / file).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, table[0].keys())
            writer.writeheader()
            writer.writerows(table)
    report(str(tmp_path))
    index = Page((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))
    assert "21.250" in index.text
    assert "21.25" in index.cells
    assert "mean" not in index.cells
    assert len(Page((tmp_path / "report" / "case-001.html").read_text(encoding="utf-8")).volumes) == 4


def test_results_of_several_contrasts_are_cases_of_their_own(results, tmp_path):
    out, _, real = results
    for contrast in ("T1", "FLAIR"):
        stem = f"b_{contrast.lower()}"
        (tmp_path / f"{stem}.nii.gz").write_bytes((out / "b_t1.nii.gz").read_bytes())
        record = json.loads((out / "b_t1.json").read_text()) | {"target_contrast": contrast}
        (tmp_path / f"{stem}.json").write_text(json.dumps(record))
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "b_flair.nii.gz").write_bytes((real / "b.nii.gz").read_bytes())
    report(str(tmp_path), real=str(tmp_path / "real"))
    pages = {n: Page((tmp_path / "report" / f"case-00{n}.html").read_text(encoding="utf-8")) for n in (1, 2)}
    index = Page((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))
    assert {"b (FLAIR)", "b (T1)"} <= set(index.cells)
    assert "real FLAIR" in pages[1].text
    assert "T1" not in pages[1].text.replace("b_t1", "")
    assert "synthetic T1" in pages[2].text
    assert "There is no real image named like this case." in pages[2].text


def test_a_case_of_several_contrasts_tells_what_it_was_made_from(results, tmp_path):
    out, dataset_dir, real = results
    shutil.copytree(out, tmp_path / "out", ignore=shutil.ignore_patterns("report"))
    path = next(path for path in sorted((tmp_path / "out").glob("*.json")) if path.with_suffix(".nii.gz").is_file())
    record = json.loads(path.read_text())
    moved = {"T2": {"to": "FLAIR", "moved_mm": 1.3}}
    several = {"contrasts_used": ["FLAIR", "T2"], "source_contrast": "FLAIR", "registered": moved}
    far = {"T2": {"source_distance": 0.71, "source_distance_limit": 0.3}}
    several["seen"] = {"FLAIR": 1.0, "T2": 0.621}
    several["measured"] = {"brain_ml": 1200, "by_contrast": far}
    path.write_text(json.dumps({**record, **several}))
    report(str(tmp_path / "out"), str(dataset_dir), str(real), str(tmp_path / "pages"))
    page = Page((tmp_path / "pages" / "case-001.html").read_text(encoding="utf-8"))
    assert "Made from FLAIR, T2; the FLAIR, on whose grid it lies, is shown." in page.text
    assert "The T2 shows 62.1% of the brain." in page.text
    assert "The FLAIR shows" not in page.text
    assert "contrasts_used FLAIR, T2" in page.text
    assert "registered.T2.moved_mm 1.3" in page.text
    assert "T2: distance from training 0.7100 at most 0.300" in page.text
    assert "the intensities of the T2 are far from the training's" in page.text
    assert list(page.volumes) == ["source", "synthetic", "real", "error"]
    other = Page((tmp_path / "pages" / "case-002.html").read_text(encoding="utf-8"))
    assert "on whose grid it lies" not in other.text


def test_an_image_of_an_earlier_run_is_no_success_of_the_latest(results, tmp_path):
    out, _, _ = results
    for path in [*out.glob("*_t1.nii.gz"), *out.glob("*_t1.json")]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    failure = {"case": "b", "file": "b.nii.gz", "reason": "It is cut off; copy it again."}
    (tmp_path / "failures.json").write_text(json.dumps([failure]))
    report(str(tmp_path))
    said = "This image is of an earlier run; in the latest one the case failed: It is cut off; copy it again."
    pages = [path.read_text(encoding="utf-8") for path in sorted((tmp_path / "report").glob("*.html"))]
    assert [page.count(said) for page in pages if said in page] == [1, 1]  # the case's own page, and the table


def test_a_case_that_cannot_be_read_is_told_and_the_others_are_shown(results, tmp_path):
    out, _, _ = results
    for path in out.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "b_t1.nii.gz").write_bytes(b"half")
    (tmp_path / "failures.json").unlink()
    report(str(tmp_path))
    index = Page((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))
    assert "b_t1.nii.gz cannot be read" in index.text
    assert {"case-001.html", "case-002.html"} <= set(index.links)
    assert "case-003.html" not in index.links


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda record: "{ half", "b_t1.json is not valid JSON"),
        (lambda record: "[1]", "b_t1.json is no record of a case"),
        (lambda record: json.dumps({**record, "target_contrast": "no such"}), "There is no contrast"),
        (lambda record: json.dumps({**record, "measured": {"source_distance": "far"}}), "b_t1.nii.gz is damaged"),
        (lambda record: json.dumps({**record, "grid": 7}), "b_t1.nii.gz is damaged"),
    ],
)
def test_a_damaged_record_costs_its_case_alone(results, tmp_path, damage, said):
    out, _, _ = results
    for path in [*out.glob("*_t1.nii.gz"), *out.glob("*_t1.json")]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    record = json.loads((tmp_path / "b_t1.json").read_text())
    (tmp_path / "b_t1.json").write_text(damage(record))
    report(str(tmp_path))
    index = Page((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))
    assert said in index.text
    assert {"case-001.html", "case-002.html"} <= set(index.links)
    assert "case-003.html" not in index.links


def test_a_name_that_is_no_utf8_is_shown_in_letters(results, tmp_path):
    out, _, _ = results
    name = os.fsdecode("Müller".encode("cp1252"))
    for ending in ("nii.gz", "json"):
        (tmp_path / f"{name}_t1.{ending}").write_bytes((out / f"b_t1.{ending}").read_bytes())
    failure = {"case": name, "file": f"{name}.nii", "reason": f"{name} is bad."}
    (tmp_path / "failures.json").write_text(json.dumps([failure]))
    report(str(tmp_path))
    index = Page((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))
    assert "Müller" in index.cells
    assert "Müller is bad." in index.text


def test_a_file_of_one_subject_that_is_gone_costs_that_subject_alone(results, tmp_path):
    out, _, real = results
    rows = "".join(f"{name};{out}/{name}_t1.nii.gz;{real}/{name}.nii.gz;;\r\n" for name in ("b", "c", "gone"))
    (tmp_path / "cases.csv").write_bytes(("subject;synthetic;real;source;mask\r\n" + rows).encode("utf-16"))
    (tmp_path / "subjects.csv").write_text("subject;psnr_brain\nb;21,25\nc;7,5\n")
    report(str(tmp_path))
    index = Page((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))
    assert "The synthetic of gone" in index.text
    assert {"21.25", "7.5"} <= set(index.cells)  # also as Excel saves them


def test_pages_of_removed_cases_are_deleted_and_nothing_else(results, tmp_path):
    out, _, _ = results
    for name in NAMES[1:]:
        for ending in ("nii.gz", "json"):
            (tmp_path / f"{name}_t1.{ending}").write_bytes((out / f"{name}_t1.{ending}").read_bytes())
    folder = tmp_path / "report"
    report(str(tmp_path))
    kept = ("case-notes.html", "case-002.html.bak", "my-case-003.html", "case-2.html")
    for name in (*kept, "case-1000.html"):
        (folder / name).write_text("by somebody")
    (tmp_path / f"{NAMES[2]}_t1.json").unlink()
    report(str(tmp_path))
    assert {path.name for path in folder.iterdir()} == {"index.html", "assets", "case-001.html", *kept}


def test_the_viewer_s_version_is_that_of_its_file(pages, bundle_root):
    viewer = bundle_root / "scripts" / "report" / "niivue"
    version = (viewer / "VERSION").read_text().strip()
    assert '{version:"' + version + '"}' in (viewer / "niivue.umd.js").read_text(encoding="utf-8")
    assert sha256_of_file(viewer / "niivue.umd.js") in (viewer / "README.md").read_text()
    assert f"NiiVue {version}," in (bundle_root / "docs" / "data_license.txt").read_text()
    assert f"NiiVue {version} (" in pages["index.html"].text


@pytest.mark.parametrize("content", [None, "empty"])
def test_a_folder_without_cases_is_refused_by_name(tmp_path, content):
    folder = tmp_path / "results"
    if content:
        folder.mkdir()
        (folder / "notes.json").write_text(json.dumps({"no": "case"}))
    with pytest.raises(CaseError, match=r"results (is no folder|holds no case)"):
        report(str(folder))


def test_real_images_that_fit_no_case_are_refused(results, tmp_path):
    out, _, _ = results
    (tmp_path / "x.nii.gz").touch()
    for real, said in ((tmp_path, "no image named like a case"), (tmp_path / "x.nii.gz", "is one image for 3 cases")):
        with pytest.raises(CaseError, match=said):
            report(str(out), real=str(real), output=str(tmp_path / "pages"))


def test_a_fine_grid_is_shown_at_a_millimetre_over_the_same_field():
    affine = nib.affines.from_matvec(np.diag([0.5, 0.5, 4.0]), [10.0, 20.0, 30.0])
    image = nib.Nifti1Image(np.zeros((500, 520, 28), np.uint8), affine)
    assert np.prod(image.shape) > LARGEST_GRID
    shown = _shown_grid(image)
    assert shown.shape == (250, 260, 28)
    np.testing.assert_allclose(nib.affines.voxel_sizes(shown.affine), [1, 1, 4])
    corners = [nib.affines.apply_affine(i.affine, [-0.5, -0.5, -0.5]) for i in (image, shown)]
    np.testing.assert_allclose(*corners)


def test_the_still_picture_is_radiological():
    """A bright corner at the patient's left, front and top: right and up in the axial plane."""
    voxels = np.full((20, 24, 16), 50, np.uint8)
    voxels[:6, 18:, :] = 255
    volume = ShownVolume("synthetic", "", voxels, 1 / 255, 0.0, np.eye(4), (0.0, 1.0))
    axial = np.asarray(still_picture([volume], panel_width=240).convert("L"))[26 : 26 + 240]
    rows, columns = np.nonzero(axial > 200)
    rows, columns = rows[np.abs(rows - 120) < 110], columns[np.abs(rows - 120) < 110]
    assert np.median(columns) > 150
    assert np.median(rows) < 100


def test_dots_of_a_distribution_lead_to_their_pages():
    chart = Page(str(distribution({"a": 1.0, "<b>": 3.0}, {"a": "1.html", "<b>": "2.html"})))
    places = [float(a["cx"]) for tag, a in chart.tags if tag == "circle"]
    assert places[0] < 100 < 200 < places[1]
    assert chart.links == ["1.html", "2.html"]
    assert "b" not in {tag for tag, _ in chart.tags}
