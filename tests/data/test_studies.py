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


def test_series_are_not_named_for_several_contrasts(tmp_path):
    add_mr(tmp_path, 1, "ax FLAIR", "1.2.3.1")
    with pytest.raises(CaseError, match="series_uid names series of one contrast"):
        inference_datalist(tmp_path, contrasts=CONTRASTS, series_uid="1.2.3")
