"""Datalists of a training: sources by name, what is needed, and whose keys they give."""

import json
from pathlib import Path

import pytest

from scripts.data.training import keys_by_person, training_datalist
from scripts.errors import CaseError


@pytest.fixture
def listed(tmp_path: Path):
    """Write a datalist of these entries, and the files that they name; gives the folder."""

    def function(*entries: dict) -> str:
        for entry in entries:
            files = {k: v for k, v in entry.items() if k in ("source", "target", "mask")}
            for name in [*files.values(), *filter(None, (entry.get("sources") or {}).values())]:
                (tmp_path / name).touch()
        (tmp_path / "datalist.json").write_text(json.dumps({"training": entries}))
        return str(tmp_path)

    return function


BOTH = {"subject": "a", "target": "a_t1.nii", "sources": {"t2w": "a_t2.nii", "FLAIR": "a_fl.nii"}}


def keys_of(items: list[dict]) -> list[list[str]]:
    return [sorted(item.keys() - {"subject", "weight"}) for item in items]


def test_a_source_without_a_name_is_the_source(listed, tmp_path):
    folder = listed({"subject": "a", "target": "a_t1.nii", "source": "a_ct.nii", "weight": 2})
    for contrasts in (None, ["CT"]):
        (item,) = training_datalist(folder, "training", contrasts=contrasts)
        assert item == {
            "subject": "a",
            "weight": 2,
            "target": str(tmp_path / "a_t1.nii"),
            "mask": str(tmp_path / "a_t1.nii"),  # stands in for one
            "source": str(tmp_path / "a_ct.nii"),
        }


def test_several_contrasts_come_under_their_names_and_an_absent_one_is_left_out(listed, tmp_path):
    one = {"subject": "b", "target": "b_t1.nii", "sources": {"T2": "b_t2.nii", "FLAIR": None}}
    unnamed = {"subject": "c", "target": "c_t1.nii", "source": "c_fl.nii"}
    folder = listed(BOTH, one, unnamed)
    items = training_datalist(folder, "training", contrasts=["FLAIR", "t2"])
    assert keys_of(items) == [
        ["contrast_FLAIR", "contrast_T2", "mask", "target"],
        ["contrast_T2", "mask", "target"],
        ["contrast_FLAIR", "mask", "target"],
    ]
    assert items[0]["contrast_T2"] == str(tmp_path / "a_t2.nii")


def test_one_contrast_of_several_is_the_source(listed, tmp_path):
    folder = listed({**BOTH, "source": "a_t2.nii"})
    (item,) = training_datalist(folder, "training", contrasts=["FLAIR"])
    assert item["source"] == str(tmp_path / "a_fl.nii")
    with pytest.raises(CaseError, match="sources of several contrasts, T2, FLAIR"):
        training_datalist(folder, "training")
    with pytest.raises(CaseError, match=r"Subject a of .* has no 'source'"):
        training_datalist(folder, "training", contrasts=["CT"])


def test_what_is_needed_has_to_be_there(listed):
    folder = listed({"subject": "a", "target": "a_t1.nii"})
    assert keys_of(training_datalist(folder, "training", needed=["target"])) == [["mask", "target"]]
    with pytest.raises(CaseError, match=r"Subject a of .* has no 'source'; add its path"):
        training_datalist(folder, "training")
    with pytest.raises(CaseError, match=r"Subject a of .* has no 'source'"):
        training_datalist(folder, "training", contrasts=["T2", "FLAIR"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sources": {"T9": "a.nii"}}, "There is no contrast 'T9'"),
        ({"sources": ["a.nii"]}, "'sources' of subject a of .* is no table"),
        ({"sources": {"T2": "missing.nii"}}, "The source of subject a, .*missing.nii, is not there"),
    ],
)
def test_bad_sources_are_refused_in_one_sentence(tmp_path, change, sentence):
    (tmp_path / "a_t1.nii").touch()
    (tmp_path / "a.nii").touch()
    entry = {"subject": "a", "target": "a_t1.nii", **change}
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [entry]}))
    with pytest.raises(CaseError, match=sentence):
        training_datalist(str(tmp_path), "training")


def test_keys_of_a_persons_second_scan_carry_the_persons_name():
    items = [{"subject": "a1", "person": "a"}, {"subject": "a2", "person": "a"}, {"subject": "b"}]
    keys = {"a1": 1, "a2#0": 2, "a2#1": 3, "b": 4}
    assert keys_by_person(keys, items) == {"a#a1": 1, "a#a2#0": 2, "a#a2#1": 3, "b": 4}
