"""Whose a file is and what it is of, in the layouts that people have, and tables of files."""

import json
import re
from pathlib import Path

import pytest

from scripts.data.datalists import inference_datalist
from scripts.errors import CaseError
from tests.trees import bids_tree, brats2023_tree, ixi_tree, write_cube, write_dicom_series

CONTRASTS = ["T1", "T1ce", "T2", "FLAIR", "PD", "CT"]


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(root: Path, **options) -> dict:
    """CASE -> {contrast: path below the root}, or the failure."""
    items = inference_datalist(root, contrasts=CONTRASTS, **options)
    for item in items:
        keys = [key for key in item if key.startswith("contrast_")]
        assert ("failure" in item) != bool(keys)
        assert not keys or item["image"] == item[keys[0]]
    return {
        item["case"]: item.get("failure")
        or {
            key.removeprefix("contrast_"): Path(path).relative_to(root).as_posix()
            for key, path in item.items()
            if key.startswith("contrast_")
        }
        for item in items
    }


def test_brats_of_both_years(tmp_path):
    brats2023_tree(tmp_path / "new", ["BraTS-GLI-00000-000"])
    found = listed(tmp_path / "new")
    name = "BraTS-GLI-00000-000"
    endings = {"T1": "t1n", "T1ce": "t1c", "T2": "t2w", "FLAIR": "t2f"}
    assert found == {name: {contrast: f"{name}/{name}-{end}.nii.gz" for contrast, end in endings.items()}}
    old = "Brats18_TCIA01_1"
    touch(tmp_path / "old", *[f"HGG/{old}/{old}_{end}.nii.gz" for end in ("t1", "t1ce", "t2", "flair", "seg")])
    (case,) = listed(tmp_path / "old").items()
    assert case[0] == f"HGG_{old}"
    assert [Path(path).name for path in case[1].values()] == [
        f"{old}_{e}.nii.gz" for e in ("t1", "t1ce", "t2", "flair")
    ]
    # one subject's own folder
    assert list(listed(tmp_path / "old" / "HGG" / old)) == [old]


@pytest.mark.parametrize("one_folder", [True, False])
def test_ixi_in_one_folder_or_one_a_contrast(tmp_path, one_folder):
    found = listed(ixi_tree(tmp_path, ["IXI012-HH-1211", "IXI002-Guys-0828"], one_folder=one_folder))
    assert {case: list(files) for case, files in found.items()} == {
        name: ["T1", "T2", "PD"] for name in ("IXI002-Guys-0828", "IXI012-HH-1211")
    }


def test_bids_with_sessions_and_an_agent(tmp_path, caplog):
    bids_tree(tmp_path, ["sub-01"], ("T1w", "FLAIR", "CT"), ["ses-a", "ses-b"])
    place = "sub-01/ses-a/anat/sub-01_ses-a"
    touch(tmp_path, f"{place}_ce-gad_T1w.nii.gz", f"{place}_run-2_T1w.nii.gz", f"{place}_ce-gad_FLAIR.nii.gz")
    found = listed(tmp_path)
    assert {case: list(files) for case, files in found.items()} == {
        "sub-01_ses-a": ["T1", "T1ce", "FLAIR", "CT"],
        "sub-01_ses-b": ["T1", "FLAIR", "CT"],
    }
    assert found["sub-01_ses-a"]["T1"] == f"{place}_T1w.nii.gz"
    assert found["sub-01_ses-a"]["FLAIR"] == f"{place}_FLAIR.nii.gz"
    assert "sub-01_ses-a_T1w.nii.gz is used, which has the fewest entities" in caplog.text


def test_any_other_names(tmp_path, caplog):
    touch(
        tmp_path,
        *("anna/t2.nii.gz", "anna/3D_FLAIR.nii.gz", "anna/seg.nii.gz", "bert_flair.nii.gz", "bert_t1_gd.nii"),
        *("FLAIR/cleo.nii.gz", "T2/cleo.nii.gz", "dora/T1/1.nii.gz", "dora/PD/2.nii.gz", "scout.nii.gz"),
    )
    with caplog.at_level("INFO"):
        found = listed(tmp_path)
    assert found == {
        "anna": {"T2": "anna/t2.nii.gz", "FLAIR": "anna/3D_FLAIR.nii.gz"},
        "bert": {"T1ce": "bert_t1_gd.nii", "FLAIR": "bert_flair.nii.gz"},
        "cleo": {"T2": "T2/cleo.nii.gz", "FLAIR": "FLAIR/cleo.nii.gz"},
        "dora": {"T1": "dora/T1/1.nii.gz", "PD": "dora/PD/2.nii.gz"},
    }
    assert "1 volumes are left out, since no name tells their contrast" in caplog.text
    assert "since by their names they are no scans to use: 1 labels" in caplog.text
    assert listed(tmp_path / "anna") == {"anna": {"T2": "t2.nii.gz", "FLAIR": "3D_FLAIR.nii.gz"}}


@pytest.mark.parametrize(
    "unclear",
    [
        *("anna/T1/T1_KM_old.nii.gz", "anna/T1/post.nii.gz", "anna/T1/post/1.nii.gz", "anna/KM/t1.nii.gz"),
        *("anna/T1ce/anna_t1.nii.gz", "anna/T1/gd.nii.gz", "anna/T2/T2_star.nii.gz", "anna/T2/anna_T2_hemo.nii.gz"),
        *("sub-01/anat/T1w/sub-01_T2starw.nii.gz", "sub-01/anat/sub-01_acq-post_T1w.nii.gz", "anna/T1_FLAIR.nii.gz"),
        *("sub-01/anat/sub-01_acq-T2star_T2w.nii.gz", "sub-01/anat/sub-01_acq-T1FLAIR_FLAIR.nii.gz"),
        *("sub-01/anat/sub-01_inv-1_MP2RAGE.nii.gz", "anna/dwi_t2.nii.gz", "anna/T2/dsc.nii.gz"),
        *("anna/post_gad/t1.nii.gz", "anna/T1/with_contrast.nii.gz", "anna/T2/flash.nii.gz"),
    ],
)
def test_what_is_unclear_is_left_out_with_a_warning(tmp_path, caplog, unclear):
    touch(tmp_path, unclear, "bert/pd.nii.gz")
    assert listed(tmp_path) == {"bert": {"PD": "bert/pd.nii.gz"}}
    assert "1 volumes are left out, since no name tells their contrast" in caplog.text


@pytest.mark.parametrize(
    ("name", "case", "contrast"),
    [
        *[("anna/anna_ce_t1.nii.gz", "anna", "T1ce"), ("anna/T1/T1_KM.nii.gz", "anna", "T1ce")],
        *[("anna/T1/anna_T1_contrast.nii.gz", "anna", "T1ce"), ("anna/T2_dark-fluid.nii.gz", "anna", "FLAIR")],
        *[("sub-01/anat/sub-01_acq-gd_T1w.nii.gz", "sub-01", "T1ce"), ("anna/T1/pre.nii.gz", "anna", "T1")],
        *[("sub-01/anat/sub-01_ce-none_T1w.nii.gz", "sub-01", "T1"), ("p1/p10_flair.nii.gz", "p1_p10", "FLAIR")],
        *[("sub-01/ses-post/anat/sub-01_ses-post_T1w.nii.gz", "sub-01_ses-post", "T1")],
        *[("an/anna_t2.nii.gz", "an_anna", "T2"), ("an/an_t2.nii.gz", "an", "T2")],
    ],
)
def test_whose_a_file_is_and_of_what(tmp_path, name, case, contrast):
    touch(tmp_path, name, "bert/pd.nii.gz")
    assert listed(tmp_path) == {case: {contrast: name}, "bert": {"PD": "bert/pd.nii.gz"}}


def test_a_session_may_be_told_by_the_folder_alone(tmp_path):
    touch(tmp_path, "sub-01/ses-1/anat/sub-01_T2w.nii.gz", "sub-01/ses-2/anat/sub-01_FLAIR.nii.gz")
    found = listed(tmp_path)
    assert {case: list(files) for case, files in found.items()} == {"sub-01_ses-1": ["T2"], "sub-01_ses-2": ["FLAIR"]}


def test_other_names_in_the_folders_of_contrasts_may_be_of_other_visits(tmp_path, caplog):
    touch(tmp_path, *("anna/t2/2019.nii.gz", "anna/flair/2021.nii.gz", "bert/t2/1.nii.gz", "bert/flair/1.nii.gz"))
    assert set(listed(tmp_path)) == {"anna", "bert"}
    told = "are taken for scans of one visit, since their folders say no more"
    assert re.search(rf"anna: 20..\.nii\.gz and 20..\.nii\.gz {told}", caplog.text)
    assert "bert:" not in caplog.text


def test_a_table_names_no_folder_and_no_file_twice_and_is_checked(tmp_path, caplog):
    touch(tmp_path, "a_t2.nii.gz", "flair.nii.gz")
    folder = tmp_path / "Petronella_Smith_1950"
    for number, kind in ((1, "T2 TSE"), (2, "FLAIR")):
        write_dicom_series(
            *(folder / kind, [0, 5, 10, 15]),
            number=number,
            modality="MR",
            voxels=8,
            spacing=30,
            change=lambda data, index, kind=kind: setattr(data, "SeriesDescription", kind),
        )
    rows = [
        "a,Petronella_Smith_1950,",
        "b,a_t2.nii.gz,a_t2.nii.gz",
        "c,Petronella_Smith_1950/FLAIR,",
        "d,flair.nii.gz,",
        "e,Petronella_Smith_1951,",
    ]
    (tmp_path / "t.csv").write_text("\n".join(["subject,T2,FLAIR", *rows]))
    a, b, c, d, e = inference_datalist(tmp_path / "t.csv", contrasts=CONTRASTS)
    assert a["image"] == ""
    assert "Petronella" not in str(a)
    assert e["failure"] == "e, T2: what the table names is not there; correct its path in the table."
    assert e["image"] == ""
    assert b["failure"] == "b has the same file under T2 and FLAIR; correct the table."
    assert "failure" not in {**c, **d}
    assert "c, T2: the DICOM series is described as FLAIR; check the table." in caplog.text
    assert "d, T2: flair.nii.gz is named as FLAIR; check the table." in caplog.text


def test_empty_folders_are_counted(tmp_path, caplog):
    touch(tmp_path, "anna/t2.nii.gz")
    for name in ("bert", "out", ".hidden"):
        (tmp_path / name).mkdir()
    assert set(listed(tmp_path, output_dir=tmp_path / "out")) == {"anna"}
    assert "1 folders hold no file" in caplog.text


def test_a_contrast_twice_is_the_subject_s_failure_alone(tmp_path):
    touch(tmp_path, *("anna/t2.nii.gz", "anna/t2_2.nii.gz", "anna/flair.nii.gz", "bert/t2.nii.gz"))
    found = listed(tmp_path)
    assert "anna has several T2, t2.nii.gz and t2_2.nii.gz; keep one" in found["anna"]
    assert found["bert"] == {"T2": "bert/t2.nii.gz"}
    # nor do others suffer where one file is there packed and unpacked
    touch(tmp_path, "cleo/t2.nii.gz", "cleo/t2.nii")
    assert listed(tmp_path)["cleo"].startswith("cleo has several T2, t2.nii and t2.nii.gz; keep one")
    assert listed(tmp_path)["bert"] == found["bert"]
    (tmp_path / "cleo/t2.nii").unlink()
    (tmp_path / "cleo/t2.nii.gz").unlink()
    # what is not looked at cannot be ambiguous
    assert listed(tmp_path, use_contrasts="FLAIR") == {
        "anna": {"FLAIR": "anna/flair.nii.gz"},
        "bert": "bert has none of FLAIR: it has T2; add one of them, or leave it out.",
    }


def test_a_target_that_is_there_is_named_and_others_go_on(tmp_path):
    touch(tmp_path, "anna/t1.nii.gz", "anna/t2.nii.gz", "bert/t2.nii.gz", "cleo/t1.nii.gz")
    found = listed(tmp_path, target_contrast="t1w")
    assert found["anna"] == (
        "anna has a T1 already, t1.nii.gz; ask for another target_contrast, or make one of the others by "
        "use_contrasts T2."
    )
    assert found["bert"] == {"T2": "bert/t2.nii.gz"}
    assert found["cleo"] == "cleo has a T1 already, t1.nii.gz; ask for another target_contrast."
    found = listed(tmp_path, target_contrast="T1", use_contrasts=["FLAIR", "T2"])
    assert found["anna"] == {"T2": "anna/t2.nii.gz"}


def test_a_table_of_files(tmp_path):
    touch(tmp_path, "scans/a.nii.gz", "scans/b.nii.gz", "scans/notes.txt")
    for number in (1, 2):
        write_dicom_series(tmp_path / f"dicom{number}", [0, 5, 10, 15], modality="MR", voxels=8, spacing=30)
    write_cube(tmp_path / "scans" / "c.nii.gz")
    table = tmp_path / "scans.csv"
    rows = ["anna,40,scans/a.nii.gz,scans/b.nii.gz", "bert,50,,dicom1", "cleo,60,scans/lost.nii.gz,", "dora,70,,"]
    table.write_text("\n".join(["subject,age,t2w,FLAIR", *rows, "emil,80,scans/notes.txt,"]), encoding="utf-8")
    anna, bert, cleo, dora, emil = inference_datalist(table, contrasts=CONTRASTS)
    paths = {"T2": str(tmp_path / "scans/a.nii.gz"), "FLAIR": str(tmp_path / "scans/b.nii.gz")}
    assert anna == {"image": paths["T2"], "case": "anna", **{f"contrast_{name}": path for name, path in paths.items()}}
    assert [Path(path).parent.name for path in bert["image"]] == ["dicom1"] * 4
    assert bert["image"] == bert["contrast_FLAIR"]
    assert cleo["failure"] == "cleo, T2: lost.nii.gz is not there; correct its path in the table."
    assert "dora has none of T2, FLAIR: it has no volume at all" in dora["failure"]
    assert "emil, T2: what the table names is no volume that is read" in emil["failure"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("subject,t1,T1w\na,x,y\n", "has two columns of T1, t1 and t1w; keep one"),
        ("subject,age\na,40\n", "has no column of a contrast; add some of T1, T1ce, T2, FLAIR, PD, CT"),
        ("subject,t2\na,x\na,y\n", "has the subject a twice"),
        ("subject,t2\n../a,x\n", "line 2, has the subject '../a'; give a name without folders"),
        ("subject,t2\n", "has no row below its first line"),
        ("who,t2\na,x\n", "lacks the column subject"),
    ],
)
def test_a_table_that_contradicts_itself(tmp_path, text, match):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(CaseError, match=match):
        inference_datalist(tmp_path / "t.csv", contrasts=CONTRASTS)


def test_a_prepared_set_may_be_limited_to_one_contrast(tmp_path):
    touch(tmp_path, "a2.nii", "af.nii", "b1.nii")
    entries = [
        {"subject": "a", "sources": {"T2": "a2.nii", "FLAIR": "af.nii"}},
        {"subject": "b", "sources": {"T1": "b1.nii"}},
    ]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": entries, "validation": [], "test": []}))
    assert listed(tmp_path, use_contrasts="FLAIR") == {
        "a": {"FLAIR": "af.nii"},
        "b": "b has none of FLAIR: it has T1; add one of them, or leave it out.",
    }
    assert listed(tmp_path, target_contrast="T1")["b"].startswith("b has a T1 already, b1.nii")
