"""A lesion mask beside the contrasts: where it comes to lie, what is refused, and what is told of it."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.errors import CaseError
from scripts.transforms.lesion_mask import LesionMaskd, require_lesion_masks

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
LESION = (slice(2, 6), slice(3, 5), slice(4, 8))


def write(path, change=lambda values: values, affine=AFFINE, shape=(10, 8, 12)):
    values = np.zeros(shape, np.float32)
    values[LESION] = 4  # a label of BraTS
    image = nib.Nifti1Image(change(values), affine)
    nib.save(image, path)
    return image


def case() -> dict:
    source = MetaTensor(torch.zeros(1, 10, 8, 12), affine=AFFINE, meta={"contrast": "T2"})
    return {"case": "anna", "source": source, "image": MetaTensor(torch.zeros(1, 10, 8, 12), affine=AFFINE)}


@pytest.mark.parametrize("name", ["anna.nii.gz", "anna_lesion.nii.gz", "anna-seg.nii"])
def test_the_mask_of_a_case_lies_where_it_was_drawn_and_is_told(tmp_path, name):
    write(tmp_path / name)
    made = LesionMaskd(tmp_path, "fractions")(case())
    expected = torch.zeros(1, 10, 8, 12)
    expected[(0, *LESION)] = 1
    assert torch.equal(made["lesion"].as_tensor(), expected)
    told = made["source"].meta["lesion_mask"]
    assert (told["file"], told["ml"]) == (name, pytest.approx(4 * 2 * 4 * 8 / 1000, abs=0.01))
    assert len(told["sha256"]) == 64


def test_voxels_in_another_order_are_the_same_mask(tmp_path):
    image = write(tmp_path / "here.nii")
    turned = image.as_reoriented(nib.orientations.axcodes2ornt("SLP", (("L", "R"), ("P", "A"), ("I", "S"))))
    (tmp_path / "turned").mkdir()
    nib.save(turned, tmp_path / "turned" / "anna.nii.gz")
    write(tmp_path / "anna.nii.gz")
    first, second = (LesionMaskd(folder, "labels")(case())["lesion"] for folder in (tmp_path, tmp_path / "turned"))
    assert torch.equal(first.as_tensor(), second.as_tensor())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"affine": np.diag([1.0, 2.0, 2.0, 1.0])}, "The lesion mask anna.nii.gz is not on the grid of the T2"),
        ({"shape": (10, 8, 11)}, "is not on the grid of the T2; save it on that grid"),
        ({"change": lambda values: values / 8}, "has values that are no labels"),
        ({"change": lambda values: -values}, "has values that are no labels"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(tmp_path, options, said):
    write(tmp_path / "anna.nii.gz", **options)
    with pytest.raises(CaseError, match=said):
        LesionMaskd(tmp_path, "fractions")(case())


def test_a_mask_that_says_no_sides_is_refused_though_it_would_fit_mirrored(tmp_path):
    shape = (10, 8, 12)
    about_0 = nib.affines.from_matvec(np.diag([2.0, 2.0, 2.0]), 1.0 - np.array(shape))
    source = MetaTensor(torch.zeros(1, *shape), affine=about_0, meta={"contrast": "T2"})
    image = write(tmp_path / "anna.nii.gz", affine=None)
    image.header.set_zooms((2, 2, 2))
    nib.save(image, tmp_path / "anna.nii.gz")
    with pytest.raises(CaseError, match="does not say how its axes lie; save it with the header of the T2"):
        LesionMaskd(tmp_path, "fractions")({"case": "anna", "source": source, "image": source})


def test_without_a_folder_or_a_mask_nothing_changes(tmp_path, caplog):
    given = case()
    assert LesionMaskd()(given).keys() == given.keys()
    assert not caplog.messages
    assert LesionMaskd(tmp_path, "fractions")(given).keys() == given.keys()
    assert caplog.messages == ["anna: it has no lesion mask in lesion_masks_dir; it is made without one."]
    with pytest.raises(CaseError, match="lesion_masks_dir is for weights that take a mask; give their structure"):
        LesionMaskd(tmp_path)
    with pytest.raises(CaseError, match=r"There is no folder .* of lesion_masks_dir"):
        LesionMaskd(tmp_path / "none", "fractions")


def test_a_run_none_of_whose_cases_has_a_mask_is_refused(tmp_path):
    cases = [{"case": "berta"}, {"case": "anna"}]
    require_lesion_masks(cases, LesionMaskd())
    masks = LesionMaskd(tmp_path, "fractions")
    require_lesion_masks([], masks)  # those of a worker come later
    with pytest.raises(CaseError, match=r"None of the cases has a lesion mask .*, such as berta_lesion\.nii\.gz"):
        require_lesion_masks(cases, masks)
    write(tmp_path / "anna_seg.nii.gz")
    require_lesion_masks(cases, masks)
