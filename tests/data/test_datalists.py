"""Which files become cases, under which names."""

import json
import os

import pytest

from scripts.data.datalists import inference_ct_window, inference_datalist
from scripts.errors import CaseError
from scripts.volumes.find import case_name


@pytest.fixture
def folder(tmp_path):
    names = ["b.nii.gz", "a.nii", "deep/er/c.NRRD", "deep/d.mha", "e.mhd", "f.mgz", "20240101.nii", "two.dots.nii.gz"]
    others = ["e.raw", "notes.txt", "table.csv", ".hidden.nii.gz", ".cache/g.nii.gz", ".nii.gz", "old.nii.gz.bak"]
    for name in names + others:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "in"


def test_lists_volumes_nested_and_sorted(folder):
    items = inference_datalist(folder)
    assert [item["case"] for item in items] == ["20240101", "a", "b", "deep_d", "deep_er_c", "e", "f", "two.dots"]
    assert [item["image"] for item in items] == sorted(item["image"] for item in items)
    assert items[4] == {"image": str(folder / "deep/er/c.NRRD"), "case": "deep_er_c"}


def test_one_file_is_one_case(folder):
    path = folder / "deep" / "d.mha"
    assert inference_datalist(path) == [{"image": str(path), "case": "d"}]
    with pytest.raises(CaseError, match="The file given is no volume"):
        inference_datalist(folder / "notes.txt")


def test_a_folder_named_like_a_number(folder, monkeypatch):
    """The command line makes an int of it."""
    monkeypatch.chdir(folder.parent)
    folder.rename("20240101")
    assert len(inference_datalist(20240101)) == 8


def test_leaves_out_its_own_outputs(folder):
    (folder / "out").mkdir()
    (folder / "out" / "a_t1.nii.gz").touch()
    assert "out_a_t1" in {item["case"] for item in inference_datalist(folder)}
    assert len(inference_datalist(folder, folder / "out")) == 8


def test_outputs_into_the_folder_of_the_inputs_are_refused(folder):
    with pytest.raises(CaseError, match="give another output_dir"):
        inference_datalist(folder, folder)


def test_follows_links(folder, tmp_path):
    os.symlink(folder, tmp_path / "link")
    (tmp_path / "other").mkdir()
    os.symlink(folder / "deep", tmp_path / "other" / "sub")
    assert len(inference_datalist(tmp_path / "link")) == 8
    assert [item["case"] for item in inference_datalist(tmp_path / "other")] == ["sub_d", "sub_er_c"]


def test_links_that_lead_back_give_no_case_twice(folder, tmp_path):
    listed = inference_datalist(folder)
    os.symlink(folder, folder / "deep" / "back")
    os.symlink(folder / "deep", folder / "a_link")
    (tmp_path / "out").mkdir()
    os.symlink(tmp_path / "out", folder / "deep" / "results")
    (tmp_path / "out" / "a_t1.nii.gz").touch()
    assert inference_datalist(folder, tmp_path / "out") == listed


@pytest.mark.parametrize("pair", [("a.nii", "a.nii.gz"), ("a/b.nii", "a_b.nii"), ("a.nrrd", "a.mha")])
def test_a_clash_of_names_is_an_error(tmp_path, pair):
    for name in pair:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(CaseError, match="would both be named a") as caught:
        inference_datalist(tmp_path)
    assert all(name in str(caught.value) for name in pair)


def test_nothing_to_do_is_an_error(tmp_path):
    with pytest.raises(CaseError, match=r"There is no file or folder .*gone; check the path"):
        inference_datalist(tmp_path / "gone")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CaseError, match=r"The folder of scans holds no volume; give \.nii\.gz, .* or DICOM series"):
        inference_datalist(tmp_path)
    (tmp_path / "slice.dcm").touch()
    (item,) = inference_datalist(tmp_path)
    assert "1 file is marked or named as DICOM and cannot be read: empty" in item["failure"]


def test_case_name(tmp_path):
    assert case_name((tmp_path / "sub-01" / "ct.nii.gz").relative_to(tmp_path)) == "sub-01_ct"


def test_a_prepared_set_gives_its_sources_under_the_subjects_names(tmp_path):
    sections = {"training": ["bert", "anna"], "validation": [], "test": ["cleo"]}
    listed = {"ct_window": [0, 80]}
    for section, subjects in sections.items():
        listed[section] = [
            {"subject": s, **{key: f"{s}_{key}.nii.gz" for key in ("source", "target", "mask")}} for s in subjects
        ]
        for entry in listed[section]:
            for key in ("source", "target", "mask"):
                (tmp_path / entry[key]).touch()
    (tmp_path / "datalist.json").write_text(json.dumps(listed))
    items = inference_datalist(tmp_path)
    assert [item["case"] for item in items] == ["anna", "bert", "cleo"]
    assert [item["image"] for item in items] == [str(tmp_path / f"{s}_source.nii.gz") for s in ("anna", "bert", "cleo")]
    assert [item["case"] for item in inference_datalist(tmp_path, section="test")] == ["cleo"]
    with pytest.raises(CaseError, match="lists nobody under validation"):
        inference_datalist(tmp_path, section="validation")
    assert inference_ct_window(tmp_path) == [0, 80]


def test_a_plain_folder_has_no_sections(folder):
    with pytest.raises(CaseError, match=r"has no datalist\.json"):
        inference_datalist(folder, section="test")


def test_what_is_no_prepared_set_is_in_hounsfield_units(folder):
    assert inference_ct_window(folder) is None
    assert inference_ct_window(folder / "deep" / "d.mha") is None


@pytest.fixture
def several(tmp_path):
    """Two people with T2 and FLAIR, one with FLAIR alone, and what does not belong to them."""
    names = ["anna_flair", "anna_t2", "anna_t1", "bert/FLAIR", "bert/T2", "cleo_FLAIR", "nobody", "scout_2"]
    for name in names:
        path = tmp_path / "in" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "in"


def test_contrasts_are_told_apart_by_what_names_end_in(several, caplog):
    items = inference_datalist(several, contrasts=["T2", "FLAIR"])
    paths = [{key: value.removeprefix(f"{several}/") for key, value in item.items()} for item in items]
    anna = {"image": "anna_t2.nii.gz", "contrast_T2": "anna_t2.nii.gz", "contrast_FLAIR": "anna_flair.nii.gz"}
    bert = {"image": "bert/T2.nii.gz", "contrast_T2": "bert/T2.nii.gz", "contrast_FLAIR": "bert/FLAIR.nii.gz"}
    cleo = {"image": "cleo_FLAIR.nii.gz", "contrast_FLAIR": "cleo_FLAIR.nii.gz"}
    assert paths == [{"case": "anna", **anna}, {"case": "bert", **bert}, {"case": "cleo", **cleo}]
    assert "2 volumes are left out, since no name tells their contrast; end the names in _t2, _flair" in caplog.text
    first = inference_datalist(several, contrasts=["FLAIR", "T2"])[0]
    assert list(first) == ["image", "case", "contrast_FLAIR", "contrast_T2"]
    assert first["image"] == first["contrast_FLAIR"]


def test_of_one_contrast_what_is_named_otherwise_is_left_out(several, caplog):
    """A CT is known by its values; an MRI only by its name, where that tells."""
    assert inference_datalist(several, contrasts=["FLAIR"]) == inference_datalist(several, contrast="FLAIR")
    assert len(inference_datalist(several)) == 8
    caplog.clear()
    cases = [item["case"] for item in inference_datalist(several, contrast="FLAIR")]
    assert cases == ["anna_flair", "bert_FLAIR", "cleo_FLAIR", "nobody", "scout_2"]
    assert "3 volumes are left out, since their names say T1, T2, not FLAIR: anna_t1.nii.gz, anna_t2.nii.gz, T2" in (
        caplog.text
    )


def test_a_folder_without_the_contrast_and_a_file_that_was_meant(tmp_path, caplog):
    for name in ("a_t1", "a_t2", "a_seg"):
        (tmp_path / f"{name}.nii.gz").touch()
    with pytest.raises(CaseError, match=r"no volume that may be a FLAIR: .* the 3 there are T1, T2, labels"):
        inference_datalist(tmp_path, contrast="FLAIR")
    assert len(inference_datalist(tmp_path / "a_t1.nii.gz", contrast="FLAIR")) == 1
    assert "a_t1.nii.gz is taken for a FLAIR, though its name says T1" in caplog.text


def test_names_that_tell_no_contrast_are_an_error(folder):
    with pytest.raises(CaseError, match="holds no volume whose name tells its contrast; end the names in _t2, _flair"):
        inference_datalist(folder, contrasts=["T2", "FLAIR"])


def test_a_prepared_set_gives_the_contrasts_that_each_subject_has(tmp_path):
    sources = {"anna": {"T2": "a2.nii", "FLAIR": "af.nii"}, "bert": {"FLAIR": "bf.nii"}}
    entries = [{"subject": name, "target": "t.nii", "sources": files} for name, files in sources.items()]
    for name in ("t.nii", "a2.nii", "af.nii", "bf.nii"):
        (tmp_path / name).touch()
    (tmp_path / "datalist.json").write_text(json.dumps({"training": entries, "validation": [], "test": []}))
    anna, bert = inference_datalist(tmp_path, contrasts=["T2", "FLAIR"])
    assert anna["image"] == anna["contrast_T2"] == str(tmp_path / "a2.nii")
    assert anna["contrast_FLAIR"] == str(tmp_path / "af.nii")
    assert bert == {"image": str(tmp_path / "bf.nii"), "case": "bert", "contrast_FLAIR": str(tmp_path / "bf.nii")}


def test_a_folder_s_name_tells_the_contrast_where_the_file_s_does_not(tmp_path, caplog):
    for name in ("FLAIR/anna.nii.gz", "T1/anna.nii.gz", "masks/seg/1.nii.gz", "b/scan/2.nii.gz", "T1/c_flair.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    cases = [item["case"] for item in inference_datalist(tmp_path, contrast="FLAIR")]
    assert cases == ["FLAIR_anna", "T1_c_flair", "b_scan_2"]
    assert "2 volumes are left out, since their names say T1, labels, not FLAIR" in caplog.text
    assert len(inference_datalist(tmp_path / "T1", contrast="FLAIR")) == 2  # whoever names the folder knows it
