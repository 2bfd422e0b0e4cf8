"""Which files belong together."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import CaseError
from scripts.evaluation.pairs import pairs_of_folders, pairs_of_table, subject_of


@pytest.fixture
def tree(tmp_path):
    """Make empty files below the test's folder; gives the folder."""

    def make(*names: str) -> Path:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("name", "subject"),
    [("anna", "anna"), ("anna_t1", "anna"), ("1BA001_ct_t1", "1BA001"), ("1BA001_mr", "1BA001"), ("a_source_t1", "a"),
     ("a_Synthetic", "a"), ("anna_t2_flair", "anna"), ("a_T1ce", "a"), ("_t1", "_t1"), ("smart1", "smart1")],
)  # fmt: skip
def test_the_subject_is_what_remains_of_a_name(name, subject):
    assert subject_of(name) == subject


def test_files_meet_by_subject_in_each_layout(tree):
    root = tree(
        "ours/1BA001_ct_t1.nii.gz", "ours/anna.nii", "ours/bert_source_t1.nii.gz", "ours/cleo_synthetic.mha",
        "real/1BA001/mr.nii.gz", "real/anna.nii.gz", "real/bert_target.nii.gz", "real/bert_mask.nii.gz",
        "real/bert_source.nii.gz", "real/cleo_real.nii.gz",
    )  # fmt: skip
    pairs, left_out = pairs_of_folders(root / "ours", root / "real", source=root / "real", masks=root / "real")
    assert not left_out
    names = {p.subject: (p.synthetic.name, p.real.parent.name + "/" + p.real.name) for p in pairs}
    assert names == {
        "1BA001": ("1BA001_ct_t1.nii.gz", "1BA001/mr.nii.gz"),
        "anna": ("anna.nii", "real/anna.nii.gz"),
        "bert": ("bert_source_t1.nii.gz", "real/bert_target.nii.gz"),
        "cleo": ("cleo_synthetic.mha", "real/cleo_real.nii.gz"),
    }
    bert = next(p for p in pairs if p.subject == "bert")
    assert (bert.mask.name, bert.source.name) == ("bert_mask.nii.gz", "bert_source.nii.gz")


def test_the_other_images_of_a_case_are_no_synthetic_ones(tree):
    root = tree(*(f"ours/anna_t1{kind}.nii.gz" for kind in ("", "_uncertainty", "_watch")), "real/anna.nii.gz")
    pairs, left_out = pairs_of_folders(root / "ours", root / "real")
    assert [pair.synthetic.name for pair in pairs] == ["anna_t1.nii.gz"]
    assert not left_out


def test_in_a_prepared_set_the_real_image_is_the_target_not_the_source(tree):
    root = tree("ours/anna_t1.nii.gz", *(f"set/anna_{kind}.nii.gz" for kind in ("source", "target", "mask")))
    listed = {"subject": "anna", "source": "anna_source.nii.gz", "target": "anna_target.nii.gz"}
    (root / "set" / "datalist.json").write_text(json.dumps({"training": [], "validation": [], "test": [listed]}))
    pairs, _ = pairs_of_folders(root / "ours", root / "set", masks=root / "set", source=root / "set")
    files = pairs[0].real, pairs[0].mask, pairs[0].source
    assert [file.name for file in files] == ["anna_target.nii.gz", "anna_mask.nii.gz", "anna_source.nii.gz"]


def test_what_has_no_partner_or_two_is_left_out_with_the_reason(tree):
    root = tree(
        "ours/anna_t1.nii", "ours/bert_t1.nii", "ours/cleo_t1.nii", "ours/bert_synthetic.nii",
        "real/anna.nii", "real/bert.nii", "real/dora.nii",
    )  # fmt: skip
    pairs, left_out = pairs_of_folders(root / "ours", root / "real")
    assert [p.subject for p in pairs] == ["anna"]
    assert left_out.keys() == {"bert", "cleo", "dora"}
    assert "2 files could be its synthetic image (bert_synthetic, bert_t1)" in left_out["bert"]
    assert left_out["cleo"] == "there is no real image of it"
    assert left_out["dora"] == "there is no synthetic image of it"


def test_nothing_that_matches_is_an_error(tree):
    root = tree("ours/anna.nii", "real/bert.nii")
    with pytest.raises(CaseError, match=r"No file in .*ours has a partner in .*real"):
        pairs_of_folders(root / "ours", root / "real")


def test_two_files_are_one_pair(tmp_path):
    for name in ("anna_t1.nii", "someone.nii"):
        nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.float32), np.eye(4)), tmp_path / name)
    pairs, _ = pairs_of_folders(tmp_path / "anna_t1.nii", tmp_path / "someone.nii")
    assert [(p.subject, p.real.name) for p in pairs] == [("anna", "someone.nii")]


def test_a_table_names_files_beside_it(tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text(
        "subject,synthetic,real,mask\nanna,a/s.nii,/x/r.nii,\nbert,b.nii,,\ncleo,c.nii,r.nii,m.nii\ncleo,d.nii,r.nii,\n"
    )
    pairs, left_out = pairs_of_table(table)
    assert [(p.subject, p.synthetic, p.real, p.mask) for p in pairs] == [
        ("anna", tmp_path / "a/s.nii", Path("/x/r.nii"), None)
    ]
    assert left_out.keys() == {"bert", "cleo"}
    assert "twice" in left_out["cleo"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "There is no"),
        ("subject,real\n", "lacks the column synthetic"),
        ("subject,synthetic,real\n", "no complete row"),
    ],
)
def test_a_bad_table_is_refused(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "pairs.csv").write_text(content)
    with pytest.raises(CaseError, match=sentence):
        pairs_of_table(tmp_path / "pairs.csv")


def record(root: Path, *names: str, **content) -> None:
    for name in names:
        (root / f"{name}.json").write_text(json.dumps({"bundle": "brain_ct_to_mri", **content}))


def test_the_records_say_which_contrast_is_looked_for(tree):
    root = tree(
        "ours/anna_t2_flair.nii.gz", "ours/bert_flair.nii.gz", "ours/cleo_flair.nii.gz",
        "real/anna_flair.nii.gz", "real/anna_t2.nii.gz", "real/anna_t1.nii.gz", "real/anna_target.nii.gz",
        "real/bert.nii.gz", "real/bert_t2.nii.gz", "real/cleo_t1.nii.gz",
    )  # fmt: skip
    contrasts = {"target_contrast": "FLAIR", "source_contrast": "T2"}
    record(root / "ours", "anna_t2_flair", "bert_flair", "cleo_flair", **contrasts)
    pairs, left_out = pairs_of_folders(root / "ours", root / "real", source=root / "real")
    names = {p.subject: (p.synthetic.name, p.real.name, p.target_contrast) for p in pairs}
    assert names == {
        "anna": ("anna_t2_flair.nii.gz", "anna_flair.nii.gz", "FLAIR"),
        "bert": ("bert_flair.nii.gz", "bert.nii.gz", "FLAIR"),
    }
    assert [p.source.name for p in pairs] == ["anna_t2.nii.gz", "bert_t2.nii.gz"]
    # a T1 is no stand-in for the FLAIR
    assert left_out == {"cleo": "there is no real image of it"}


def test_several_contrasts_make_no_common_table_and_one_can_be_chosen(tree):
    root = tree("ours/anna_t1.nii", "ours/anna_flair.nii", "real/anna_t1.nii", "real/anna_flair.nii")
    record(root / "ours", "anna_t1")  # of a version that does not say
    record(root / "ours", "anna_flair", target_contrast="FLAIR")
    with pytest.raises(CaseError, match=r"are of FLAIR and T1, .* choose one by --target_contrast"):
        pairs_of_folders(root / "ours", root / "real")
    for contrast in ("T1", "flair"):
        pairs, left_out = pairs_of_folders(root / "ours", root / "real", target_contrast=contrast)
        assert [(p.synthetic.name, p.real.name) for p in pairs] == [(f"anna_{contrast.lower()}.nii",) * 2]
        assert not left_out


def test_without_records_the_contrast_is_given(tree):
    root = tree("ours/anna_flair.nii", "real/anna_flair.nii")
    with pytest.raises(CaseError, match=r"of T1 images \(--target_contrast\)"):
        pairs_of_folders(root / "ours", root / "real")
    pairs, _ = pairs_of_folders(root / "ours", root / "real", target_contrast="FLAIR")
    assert [(p.subject, p.target_contrast) for p in pairs] == [("anna", "FLAIR")]


def test_rows_of_a_table_tell_their_contrast(tree):
    root = tree("a.nii", "b.nii")
    (root / "pairs.csv").write_text(
        "subject,synthetic,real,target_contrast\nanna,a.nii,r.nii,t2f\nbert,b.nii,r.nii,T1\n"
    )
    with pytest.raises(CaseError, match="FLAIR and T1"):
        pairs_of_table(root / "pairs.csv")
    pairs, left_out = pairs_of_table(root / "pairs.csv", "FLAIR")
    assert [(p.subject, p.target_contrast) for p in pairs] == [("anna", "FLAIR")]
    assert left_out == {"bert": "its synthetic image is of T1, not FLAIR"}
