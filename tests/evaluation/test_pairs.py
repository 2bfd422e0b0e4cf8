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
     ("a_Synthetic", "a"), ("_t1", "_t1"), ("smart1", "smart1")],
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
        ("subject,real\n", "has no column synthetic"),
        ("subject,synthetic,real\n", "no complete row"),
    ],
)
def test_a_bad_table_is_refused(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "pairs.csv").write_text(content)
    with pytest.raises(CaseError, match=sentence):
        pairs_of_table(tmp_path / "pairs.csv")
