import json
import logging
import os
import re
from pathlib import Path

import pytest

from scripts.errors import CaseError
from scripts.prepare.layouts import LAYOUTS, Layout, list_pairs
from scripts.prepare.pairs import Pair
from tests.trees import (
    TREES,
    bids_tree,
    brats2018_tree,
    brats2023_tree,
    contrasts_tree,
    csv_tree,
    ixi_tree,
    synthrad2023_tree,
    write_cube,
)

DEFAULTS = {
    "synthrad2023": ("CT", "T1"),
    "brats2023": ("FLAIR", "T1"),
    "brats2018": ("FLAIR", "T1"),
    "ixi": ("T2", "T1"),
    "bids": ("CT", "T1"),
    "csv": ("CT", "T1"),
    "t1": (None, "T1"),
}


def names(pairs) -> list[str]:
    return [pair.subject for pair in pairs]


def reason_of(incomplete, subject: str) -> str:
    return next(one["reason"] for one in incomplete if one["subject"] == subject)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_trees_are_listed_in_order_with_files_that_are_there(tmp_path, layout):
    TREES[layout](tmp_path)
    pairs, incomplete = list_pairs(layout, tmp_path)
    assert not incomplete
    assert len(pairs) == {"bids": 2, "csv": 2, "t1": 2}.get(layout, 3)
    assert names(pairs) == sorted(set(names(pairs)))
    for pair in pairs:
        assert pair.source is None if layout == "t1" else pair.source.is_file()
        assert pair.target.is_file()
        assert (pair.source_contrast, pair.target_contrast) == DEFAULTS[layout]
        assert pair.source != pair.target
        assert pair.mask is None  # SynthRAD's mask is the patient's outline


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_wrong_layout_names_the_one_that_fits(tmp_path, layout):
    TREES[layout](tmp_path)
    for other in LAYOUTS.keys() - {layout}:
        with pytest.raises(CaseError, match=f"the layout {layout} would fit"):
            list_pairs(other, tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_folder_and_none_are_refused(tmp_path, layout):
    with pytest.raises(CaseError, match=f"no subject of the layout {layout}, which looks for"):
        list_pairs(layout, tmp_path)
    with pytest.raises(CaseError, match="There is no file or folder"):
        list_pairs(layout, tmp_path / "absent")


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if not LAYOUTS[name].is_file])
def test_hidden_files_upper_case_and_links_that_lead_back(tmp_path, layout):
    root = TREES[layout](tmp_path / "set")
    whole = list_pairs(layout, root)
    for path in list(root.rglob("*.nii.gz")):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
        if layout != "bids":
            path.rename(path.with_name(path.name.upper()))
    for folder in [path for path in root.rglob("*") if path.is_dir()]:
        (folder / "back").symlink_to(root, target_is_directory=True)
        (folder / ".hidden").mkdir()
    pairs, incomplete = list_pairs(layout, root)
    assert not incomplete
    assert [pair.person for pair in pairs] == [pair.person for pair in whole[0]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_empty_and_broken_files_are_reported_and_the_rest_listed(tmp_path, layout):
    TREES[layout](tmp_path)
    pairs, _ = list_pairs(layout, tmp_path)
    first, *others = pairs
    first.target.unlink()
    pairs, incomplete = list_pairs(layout, tmp_path)
    assert names(pairs) == names(others)
    assert [one["subject"] for one in incomplete] == [first.subject]
    assert incomplete[0]["reason"].startswith(f"{first.subject}: ")
    first.target.write_bytes(b"")
    assert "is an empty file" in reason_of(list_pairs(layout, tmp_path)[1], first.subject)
    first.target.unlink()
    first.target.symlink_to("nowhere")
    assert "a link to a file that is not there" in reason_of(list_pairs(layout, tmp_path)[1], first.subject)


@pytest.mark.parametrize("below", ["", "Task1", "Task1/brain"])
def test_synthrad_from_any_of_its_folders(tmp_path, below):
    pairs, _ = list_pairs("synthrad2023", synthrad2023_tree(tmp_path) / below)
    assert names(pairs) == ["1BA001", "1BB014", "1BC032"]
    assert pairs[0].source.name == "ct.nii.gz"
    assert pairs[0].target.name == "mr.nii.gz"


def test_synthrad_subjects_that_lack_everything_or_have_two(tmp_path):
    brain = synthrad2023_tree(tmp_path) / "Task1" / "brain"
    (brain / "1BA005").mkdir()
    write_cube(brain / "1BB014" / "CT.nii")
    pairs, incomplete = list_pairs("synthrad2023", tmp_path)
    assert names(pairs) == ["1BA001", "1BC032"]
    assert "no volume at all" in reason_of(incomplete, "1BA005")
    assert "several CT: CT.nii, ct.nii.gz; keep one" in reason_of(incomplete, "1BB014")


def test_brats_time_points_are_one_person(tmp_path):
    pairs, _ = list_pairs("brats2023", brats2023_tree(tmp_path))
    assert [pair.person for pair in pairs] == ["BraTS-GLI-00000", "BraTS-GLI-00000", "BraTS-GLI-00002"]
    assert pairs[1].source.name == "BraTS-GLI-00000-001-t2f.nii.gz"
    assert pairs[1].target.name == "BraTS-GLI-00000-001-t1n.nii.gz"


def test_brats_in_the_folder_that_the_archive_makes(tmp_path):
    brats2023_tree(tmp_path / "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData")
    (tmp_path / "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData" / "BraTS-GLI-00009-000").mkdir()
    pairs, incomplete = list_pairs("brats2023", tmp_path)
    assert len(pairs) == 3
    assert "no volume at all" in reason_of(incomplete, "BraTS-GLI-00009-000")


def test_brats_other_contrasts(tmp_path):
    brats2023_tree(tmp_path)
    pairs, _ = list_pairs("brats2023", tmp_path, source_contrast="t1n", target_contrast="T1ce")
    assert pairs[0].source.name.endswith("-t1n.nii.gz")
    assert pairs[0].target.name.endswith("-t1c.nii.gz")
    assert (pairs[0].source_contrast, pairs[0].target_contrast) == ("T1", "T1ce")
    with pytest.raises(CaseError, match="no CT; give two of"):
        list_pairs("brats2023", tmp_path, source_contrast="CT")
    with pytest.raises(CaseError, match="There is no contrast 'x-ray'"):
        list_pairs("brats2023", tmp_path, source_contrast="x-ray")
    with pytest.raises(CaseError, match="both FLAIR"):
        list_pairs("brats2023", tmp_path, target_contrast="FLAIR")


@pytest.mark.parametrize("one_folder", [False, True])
def test_ixi_in_folders_by_contrast_or_in_one(tmp_path, one_folder):
    root = ixi_tree(tmp_path, one_folder=one_folder)
    pairs, _ = list_pairs("ixi", root)
    assert [(pair.subject, pair.person) for pair in pairs] == [
        ("IXI002-Guys-0828", "IXI002"),
        ("IXI012-HH-1211", "IXI012"),
        ("IXI035-IOP-0873", "IXI035"),
    ]
    assert pairs[1].source.name == "IXI012-HH-1211-T2.nii.gz"
    pairs, _ = list_pairs("ixi", root, source_contrast="PD")
    assert pairs[1].source.name == "IXI012-HH-1211-PD.nii.gz"


def test_bids_takes_one_source_contrast_for_the_whole_set(tmp_path):
    bids_tree(tmp_path, ["sub-01", "sub-02"], ["T1w", "FLAIR", "T2w"])
    assert {pair.source_contrast for pair in list_pairs("bids", tmp_path)[0]} == {"FLAIR"}
    bids_tree(tmp_path, ["sub-03"], ["T1w", "CT"])
    pairs, incomplete = list_pairs("bids", tmp_path)
    assert [(pair.subject, pair.source_contrast) for pair in pairs] == [("sub-03", "CT")]
    assert "there is no CT (*_CT.nii.gz), it has" in reason_of(incomplete, "sub-01")
    pairs, incomplete = list_pairs("bids", tmp_path, source_contrast="T2")
    assert names(pairs) == ["sub-01", "sub-02"]
    assert [one["subject"] for one in incomplete] == ["sub-03"]


def test_bids_sessions_are_subjects_of_one_person(tmp_path):
    bids_tree(tmp_path, ["sub-01"], sessions=["ses-a", "ses-b"])
    (tmp_path / "sub-01" / "ses-b" / "anat" / "sub-01_ses-b_T1w.nii.gz").unlink()
    (tmp_path / "sub-01" / "ses-c" / "func").mkdir(parents=True)  # nothing of use is no subject
    pairs, incomplete = list_pairs("bids", tmp_path)
    assert [(pair.subject, pair.person) for pair in pairs] == [("sub-01_ses-a", "sub-01")]
    assert [one["subject"] for one in incomplete] == ["sub-01_ses-b"]
    assert "ses-a" in str(pairs[0].source)


def test_bids_takes_the_plainest_of_several_and_says_so(tmp_path, caplog):
    anat = bids_tree(tmp_path, ["sub-01"]) / "sub-01" / "anat"
    (anat / "sub-01_T1w.nii.gz").unlink()
    for name in ("acq-a_run-1", "run-10", "run-2", "ce-gadolinium", "part-phase"):
        write_cube(anat / f"sub-01_{name}_T1w.nii.gz")
    with caplog.at_level(logging.WARNING):
        pairs, _ = list_pairs("bids", tmp_path)
    assert pairs[0].target.name == "sub-01_run-2_T1w.nii.gz"
    assert "sub-01_run-2_T1w.nii.gz" in caplog.text
    pairs, _ = list_pairs("bids", tmp_path, source_contrast="T1", target_contrast="T1ce")
    assert pairs[0].target.name == "sub-01_ce-gadolinium_T1w.nii.gz"


def test_bids_uncompressed_and_a_ct_beside_the_mri(tmp_path):
    for name in ("T1w.nii", "CT.nii"):
        write_cube(tmp_path / "sub-7" / "anat" / f"sub-7_{name}")
    assert names(list_pairs("bids", tmp_path)[0]) == ["sub-7"]


def test_bids_refuses_a_file_named_for_somebody_else(tmp_path):
    bids_tree(tmp_path)
    anat = tmp_path / "sub-01" / "anat"
    (anat / "sub-01_T1w.nii.gz").rename(anat / "sub-02_T1w.nii.gz")
    pairs, incomplete = list_pairs("bids", tmp_path)
    assert names(pairs) == ["sub-02"]
    assert "sub-02_T1w.nii.gz is named for another subject" in reason_of(incomplete, "sub-01")


def write_table(root: Path, text: str, encoding: str = "utf-8") -> Path:
    for name in ("a", "b", "c", "d"):
        write_cube(root / f"{name}.nii.gz")
    table = root / "pairs.csv"
    table.write_bytes(text.encode(encoding))
    return table


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_tables_of_any_program(tmp_path, delimiter, encoding, newline):
    lines = [["Subject", " target ", "SOURCE", "mask", "split", "person", "age"]]
    lines += [["Ömer, 1" if delimiter != "," else '"Ömer, 1"', "a.nii.gz", "b.nii.gz", "c.nii.gz", "test", "Ö", "7"]]
    lines += [["b2", "c.nii.gz", "d.nii.gz", "", "", "", ""], [""] * 7]
    table = write_table(tmp_path, newline.join(delimiter.join(line) for line in lines), encoding)
    pairs, incomplete = list_pairs("csv", table)
    assert not incomplete
    assert names(pairs) == ["_mer_1", "b2"]
    assert pairs[0].source == tmp_path / "b.nii.gz"
    assert pairs[0].mask == tmp_path / "c.nii.gz"
    assert (pairs[0].split, pairs[0].person) == ("test", "Ö")
    assert (pairs[1].split, pairs[1].person, pairs[1].mask) == (None, "b2", None)


def test_a_table_may_name_folders_of_dicom(tmp_path):
    table = write_table(tmp_path, "subject,source,target\nx,series,a.nii.gz\ny,void,b.nii.gz\n")
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "IM0001").write_bytes(b"slice")
    (tmp_path / "void" / "below").mkdir(parents=True)
    pairs, incomplete = list_pairs("csv", table)
    assert [pair.source for pair in pairs] == [tmp_path / "series"]
    assert "its DICOM folder is empty" in reason_of(incomplete, "y")


def test_rows_that_cannot_be_used_do_not_stop_the_others(tmp_path):
    (tmp_path / "e.dcm").write_bytes(b"slice")
    rows = ["good,a.nii.gz,b.nii.gz,", "none,,b.nii.gz,", "gone,x.nii.gz,b.nii.gz,", "one,e.dcm,b.nii.gz,"]
    rows += ["masked,c.nii.gz,d.nii.gz,x.nii.gz"]
    table = write_table(tmp_path, "subject,source,target,mask\n" + "\n".join(rows))
    pairs, incomplete = list_pairs("csv", table)
    assert names(pairs) == ["good"]
    assert "no source" in reason_of(incomplete, "none")
    assert "x.nii.gz is not there (its source)" in reason_of(incomplete, "gone")
    assert "e.dcm (its source) is no volume" in reason_of(incomplete, "one")
    assert "x.nii.gz is not there (its mask)" in reason_of(incomplete, "masked")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("subject,source\nx,a.nii.gz\n", "lacks the column target"),
        ("x,a.nii.gz,b.nii.gz\n", "lacks the column subject and source and target"),
        ("", "lacks the column"),
        ("subject,source,target,target\nx,a.nii.gz,b.nii.gz,\n", "the column target twice"),
        ("subject,source,target\nx,a.nii.gz,b.nii.gz\nx,c.nii.gz,d.nii.gz\n", "has the subject x twice"),
        ("subject,source,target\n,a.nii.gz,b.nii.gz\n", "line 2, names no subject"),
        ("subject,source,target\nx,a.nii.gz,b.nii.gz,c\n", "line 2, has more cells"),
        ("subject,source,target,split\nx,a.nii.gz,b.nii.gz,dev\n", "has the split 'dev'"),
        ("subject,source,target\nx/1,a.nii.gz,b.nii.gz\nX:1,c.nii.gz,d.nii.gz\n", "would both be named"),
        ("subject,source,target\n..,a.nii.gz,b.nii.gz\n", "cannot name a file"),
        ("subject,source,target\nx,a.nii.gz,b.nii.gz\ny,c.nii.gz,b.nii.gz\n", "the same target but are two persons"),
        (
            "subject,source,target,person,split\nx,a.nii.gz,b.nii.gz,p,training\ny,c.nii.gz,d.nii.gz,p,test\n",
            "the person p both in training and in test",
        ),
        (
            "subject,source,target,source_contrast\nx,a.nii.gz,b.nii.gz,CT\ny,c.nii.gz,d.nii.gz,FLAIR\n",
            "are CT and FLAIR, and a training set has one contrast",
        ),
        ("subject,source,target\n", "fill it in"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(tmp_path, text, reason):
    with pytest.raises(CaseError, match=reason):
        list_pairs("csv", write_table(tmp_path, text))


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_a_table_from_excel_is_read_as_it_looks_there(tmp_path, encoding):
    (tmp_path / "Jörg").mkdir()
    table = write_table(tmp_path, "Subject;Source;Target\r\nJörg;Jörg\\a.nii.gz;b.nii.gz\r\n;;\r\n", encoding)
    write_cube(tmp_path / "Jörg" / "a.nii.gz")
    [pair], incomplete = list_pairs("csv", table)
    assert (pair.subject, pair.person, pair.source) == ("J_rg", "Jörg", tmp_path / "Jörg" / "a.nii.gz")
    assert incomplete == []


def test_a_workbook_is_refused_with_the_way_out(tmp_path):
    table = write_table(tmp_path, "PK\x03\x04")
    with pytest.raises(CaseError, match="save the sheet as CSV UTF-8"):
        list_pairs("csv", table)


def test_names_in_other_letters_are_subjects_of_their_own(tmp_path):
    rows = "李明,a.nii.gz,b.nii.gz\n王芳,c.nii.gz,d.nii.gz\n"
    pairs, _ = list_pairs("csv", write_table(tmp_path, "subject,source,target\n" + rows))
    assert len({pair.subject for pair in pairs}) == 2
    assert all(re.fullmatch(r"subject_[0-9a-f]{8}", pair.subject) for pair in pairs)
    assert {pair.person for pair in pairs} == {"李明", "王芳"}


def test_the_split_of_a_person_holds_for_all_rows_of_the_person(tmp_path):
    rows = "x,a.nii.gz,b.nii.gz,p,test\ny,c.nii.gz,d.nii.gz,p,\n"
    pairs, _ = list_pairs("csv", write_table(tmp_path, "subject,source,target,person,split\n" + rows))
    assert [pair.split for pair in pairs] == ["test", "test"]


def test_contrasts_of_a_table(tmp_path):
    text = "subject,source,target,source_contrast\nx,a.nii.gz,b.nii.gz,t2f\ny,c.nii.gz,d.nii.gz,\n"
    table = write_table(tmp_path, text)
    pairs, incomplete = list_pairs("csv", table, source_contrast="FLAIR", target_contrast="T1ce")
    assert [(pair.source_contrast, pair.target_contrast) for pair in pairs] == [("FLAIR", "T1ce")] * 2
    assert not incomplete
    pairs, incomplete = list_pairs("csv", table, source_contrast="T2")
    assert names(pairs) == ["y"]
    assert "its source is FLAIR, and T2 was asked for" in reason_of(incomplete, "x")


def test_a_folder_with_two_tables_wants_to_know_which(tmp_path):
    csv_tree(tmp_path)
    (tmp_path / "other.csv").write_text("subject,source,target\n")
    with pytest.raises(CaseError, match="holds 2"):
        list_pairs("csv", tmp_path)


def test_one_file_under_two_names_is_one_subject(tmp_path):
    """A link to a subject's folder is not a second subject, which could be on the other side of a split."""
    brain = synthrad2023_tree(tmp_path) / "Task1" / "brain"
    (brain / "1BA000").symlink_to(brain / "1BA001", target_is_directory=True)
    assert names(list_pairs("synthrad2023", tmp_path)[0]) == ["1BA001", "1BB014", "1BC032"]


def test_subjects_in_linked_folders_are_found(tmp_path):
    real = bids_tree(tmp_path / "real")
    (tmp_path / "set").mkdir()
    for folder in real.glob("sub-*"):
        os.symlink(folder, tmp_path / "set" / folder.name, target_is_directory=True)
    assert names(list_pairs("bids", tmp_path / "set")[0]) == ["sub-01", "sub-02"]


def test_an_unknown_layout_lists_those_there_are(tmp_path):
    with pytest.raises(CaseError, match="give one of synthrad2023, brats2023, brats2018, ixi, bids, csv, t1"):
        list_pairs("nifti", tmp_path)


def test_a_layout_of_folders_refuses_a_file(tmp_path):
    with pytest.raises(CaseError, match="is a file, and the layout bids is a folder"):
        list_pairs("bids", csv_tree(tmp_path))


@pytest.fixture
def flat(monkeypatch):
    """A layout registered at run time: a folder with NAME.ct.nii and NAME.t1.nii."""

    def list_flat(root, source_contrast, target_contrast):
        pairs = [
            Pair(
                path.name[: -len(".ct.nii")],
                path.name,
                path,
                path.with_name(path.name.replace(".ct.", ".t1.")),
                source_contrast,
                target_contrast,
            )
            for path in sorted(root.glob("*.ct.nii"))
        ]
        return pairs, []

    monkeypatch.setitem(LAYOUTS, "flat", Layout(list_flat, "NAME.ct.nii and NAME.t1.nii", "CT", "T1"))


@pytest.mark.usefixtures("flat")
def test_a_new_layout_is_one_function_and_one_entry(tmp_path):
    for name in ("a.ct.nii", "a.t1.nii"):
        write_cube(tmp_path / name)
    [pair], incomplete = list_pairs("flat", tmp_path)
    assert not incomplete
    assert (pair.subject, pair.source_contrast, pair.target_contrast) == ("a", "CT", "T1")
    with pytest.raises(CaseError, match="the layout flat would fit, with 1 subjects"):
        list_pairs("ixi", tmp_path)
    with pytest.raises(CaseError, match=r"t1, flat\.$"):
        list_pairs("x", tmp_path)
    (tmp_path / "void").mkdir()
    with pytest.raises(CaseError, match=r"which looks for NAME\.ct\.nii and NAME\.t1\.nii"):
        list_pairs("flat", tmp_path / "void")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not valid JSON"),
        ("{}", "is no list of subjects"),
        ('[{"id": "a", "T1": "a.nii"}]', "Entry 1 of subjects.json lacks person and skull_stripped"),
    ],
)
def test_lists_of_t1_that_cannot_be_read_are_refused(tmp_path, text, sentence):
    (tmp_path / "subjects.json").write_text(text)
    with pytest.raises(CaseError, match=sentence):
        list_pairs("t1", tmp_path)


def test_t1_has_no_source(tmp_path):
    with pytest.raises(CaseError, match="The layout t1 has no source"):
        list_pairs("t1", TREES["t1"](tmp_path), source_contrast="CT")


def test_an_entry_without_a_t1_is_incomplete_and_the_others_go_on(tmp_path):
    """A CT alone stands in the same list as the T1 volumes."""
    write_cube(tmp_path / "a.nii")
    entries = [
        {"id": "a", "person": "a", "T1": "a.nii", "skull_stripped": True},
        {"id": "b", "person": "b", "CT": "b.nii", "skull_stripped": False},
    ]
    (tmp_path / "subjects.json").write_text(json.dumps(entries))
    [pair], incomplete = list_pairs("t1", tmp_path)
    assert pair.subject == "a"
    assert incomplete == [{"subject": "b", "reason": "b has no T1; add it or leave the subject out."}]


ALL = ("T1", "T1ce", "T2", "FLAIR", "PD", "CT")
THERE = {
    "synthrad2023": {"T1", "CT"},
    "brats2023": {"T1", "T1ce", "T2", "FLAIR"},
    "brats2018": {"T1", "T1ce", "T2", "FLAIR"},
    "ixi": {"T1", "T2", "PD"},
    "bids": {"T1", "FLAIR", "CT"},
}


@pytest.mark.parametrize("layout", THERE)
def test_several_contrasts_are_those_that_each_subject_has_in_the_order_asked(tmp_path, layout):
    TREES[layout](tmp_path)
    listed, incomplete = list_pairs(layout, tmp_path, contrasts=ALL)
    assert not incomplete
    assert names(listed) == names(list_pairs(layout, tmp_path)[0])
    for subject in listed:
        assert list(subject.files) == [name for name in ALL if name in THERE[layout]]
        assert all(file.is_file() and subject.person in file.name + str(file.parent) for file in subject.files.values())
        assert (subject.lesion is not None) == layout.startswith("brats")
    backwards, _ = list_pairs(layout, tmp_path, contrasts=ALL[::-1])
    assert list(backwards[0].files) == list(listed[0].files)[::-1]


def test_a_subject_keeps_the_contrasts_that_are_there_and_needs_two(tmp_path):
    root = ixi_tree(tmp_path)
    (root / "IXI-T1" / "IXI002-Guys-0828-T1.nii.gz").unlink()
    (root / "IXI-PD" / "IXI012-HH-1211-PD.nii.gz").write_bytes(b"")
    for name in ("T2", "PD"):
        (root / f"IXI-{name}" / f"IXI035-IOP-0873-{name}.nii.gz").unlink()
    listed, incomplete = list_pairs("ixi", root, contrasts=("T1", "T2", "PD"))
    assert {subject.person: list(subject.files) for subject in listed} == {
        "IXI002": ["T2", "PD"],
        "IXI012": ["T1", "T2"],
    }
    contrast, alone = incomplete
    assert (contrast["subject"], contrast["contrast"]) == ("IXI012-HH-1211", "PD")
    assert contrast["reason"].startswith("PD: IXI012-HH-1211-PD.nii.gz is an empty file")
    assert "contrast" not in alone
    assert alone["reason"] == "IXI035-IOP-0873: it has T1 alone, and two are needed."


def test_brats_2018_person_segmentation_and_folders(tmp_path):
    listed, _ = list_pairs("brats2018", brats2018_tree(tmp_path), contrasts=("T2", "T1"))
    assert [subject.person for subject in listed] == ["Brats18_2013_10", "Brats18_CBICA_AAB", "Brats18_TCIA01_147"]
    assert listed[2].lesion == tmp_path / "LGG" / "Brats18_TCIA01_147_1" / "Brats18_TCIA01_147_1_seg.nii.gz"
    assert listed[0].files["T1"].name == "Brats18_2013_10_1_t1.nii.gz"  # not that of T1ce


def test_a_table_with_a_column_for_each_contrast(tmp_path):
    subjects = {"anna": ("T1", "T2", "FLAIR"), "bert": ("T2", "FLAIR"), "cleo": ("T1",), "dora": ("T1", "PD")}
    table = contrasts_tree(tmp_path, subjects, split=["test", "", "", "train"], person=["p", "p", "", ""])
    listed, incomplete = list_pairs("csv", table, contrasts=("FLAIR", "T1", "T2", "PD"))
    assert {one.subject: list(one.files) for one in listed} == {
        "anna": ["FLAIR", "T1", "T2"],
        "bert": ["FLAIR", "T2"],
        "dora": ["T1", "PD"],
    }
    assert [one.split for one in listed] == ["test", "test", "training"]
    assert [one["subject"] for one in incomplete] == ["cleo"]
    (tmp_path / "anna_T2.nii.gz").unlink()
    listed, incomplete = list_pairs("csv", table, contrasts=("T1", "T2", "FLAIR"))
    assert list(listed[0].files) == ["T1", "FLAIR"]
    assert {one["subject"]: one.get("contrast") for one in incomplete} == {"anna": "T2", "cleo": None, "dora": None}
    with pytest.raises(CaseError, match="no files in two columns of T1ce, CT; name a column after each contrast"):
        list_pairs("csv", table, contrasts=("T1ce", "CT"))


def test_one_file_under_two_persons_is_refused_in_any_column(tmp_path):
    table = contrasts_tree(tmp_path, {"anna": ("T1", "T2"), "bert": ("T1", "T2")})
    table.write_text(table.read_text().replace("bert_T2", "anna_T2"))
    with pytest.raises(CaseError, match="anna and bert have the same t2 but are two persons"):
        list_pairs("csv", table, contrasts=("T1", "T2"))


def test_layouts_without_two_of_the_contrasts_say_so(tmp_path):
    ixi_tree(tmp_path / "ixi")
    with pytest.raises(CaseError, match="none or one of T1, CT; give two of T1, T2, PD"):
        list_pairs("ixi", tmp_path / "ixi", contrasts=("T1", "CT"))
    with pytest.raises(CaseError, match="table with a column for each contrast"):
        list_pairs("t1", TREES["t1"](tmp_path / "t1"), contrasts=("T1", "T2"))
