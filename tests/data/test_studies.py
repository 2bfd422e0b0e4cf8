"""Several contrasts of one DICOM study."""

from pathlib import Path

import pydicom
import pytest

from scripts.data.datalists import inference_datalist
from scripts.errors import CaseError
from tests.trees import write_dicom_series

CONTRASTS = ["T2", "FLAIR"]


def add_mr(folder: Path, number: int, description: str, study: str) -> None:
    """A small MR series of this SeriesDescription."""

    def describe(slice_, _) -> None:
        slice_.SeriesDescription = description

    heights = [0, 5, 10, 15]
    write_dicom_series(
        folder, heights, number=number, modality="MR", voxels=8, spacing=30, study=study, change=describe
    )


def description_of(files: list[str]) -> str:
    return pydicom.dcmread(files[0], stop_before_pixels=True).SeriesDescription


def test_each_contrast_of_a_study_is_chosen_by_itself_and_an_absent_one_left_out(tmp_path):
    for number, description in enumerate(("ax FLAIR", "ax T2", "localizer"), start=1):
        add_mr(tmp_path / "a", number, description, "1.2.3.1")
    add_mr(tmp_path / "b", 1, "ax FLAIR", "1.2.3.2")
    add_mr(tmp_path / "c", 1, "ax PD", "1.2.3.3")
    both, one, none = inference_datalist(tmp_path, contrasts=CONTRASTS)
    assert [description_of(both[f"contrast_{name}"]) for name in CONTRASTS] == ["ax T2", "ax FLAIR"]
    assert both["image"] == both["contrast_T2"]
    assert one.keys() == {"image", "case", "contrast_FLAIR"}
    assert one["image"] == one["contrast_FLAIR"]
    assert none["case"].startswith("study_")
    assert "no MR series named T2" in none["failure"]
    assert "no MR series named FLAIR" in none["failure"]


ALL = ["T1", "T1ce", "T2", "FLAIR", "PD"]


@pytest.mark.parametrize(
    ("description", "contrast"),
    [
        *[("ax T1 SE", "T1"), ("T1 MPRAGE sag", "T1"), ("mprage", "T1"), ("t1_tse_tra pre GD", None)],
        *[("T1 post GD", "T1ce"), ("AX T1 +C", "T1ce"), ("t1_mprage_KM", "T1ce"), ("T1ce", "T1ce")],
        *[("T2 TSE", "T2"), ("T2 FLAIR", "FLAIR"), ("t2_tirm_dark-fluid", "FLAIR"), ("PD TSE", "PD")],
        *[("T2* GRE", None), ("t2 star", None), ("T1 map", None), ("T2map", None), ("DWI", None)],
    ],
)
def test_what_a_description_names(tmp_path, description, contrast):
    add_mr(tmp_path, 1, description, "1.2.3.1")
    (item,) = inference_datalist(tmp_path, contrasts=ALL)
    assert [key for key in item if key.startswith("contrast_")] == ([f"contrast_{contrast}"] if contrast else [])
    assert ("failure" in item) == (contrast is None)


def test_a_study_that_has_the_target_says_which_series_it_is(tmp_path):
    for number, description in enumerate(("T1", "T2"), start=1):
        add_mr(tmp_path / "a", number, description, "1.2.3.1")
    (item,) = inference_datalist(tmp_path, contrasts=ALL, target_contrast="T1")
    uid = pydicom.dcmread(next((tmp_path / "a").glob("1_*"))).SeriesInstanceUID
    assert f"has a T1 already, DICOM series {uid}; ask for another target_contrast" in item["failure"]
    (item,) = inference_datalist(tmp_path, contrasts=ALL, target_contrast="T1", use_contrasts="T2")
    assert description_of(item["contrast_T2"]) == "T2"
    assert item.keys() == {"image", "case", "contrast_T2"}


def test_series_are_not_named_for_several_contrasts(tmp_path):
    add_mr(tmp_path, 1, "ax FLAIR", "1.2.3.1")
    with pytest.raises(CaseError, match="series_uid names series of one contrast"):
        inference_datalist(tmp_path, contrasts=CONTRASTS, series_uid="1.2.3")
