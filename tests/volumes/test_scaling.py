"""Scaling by a percentile of the brain."""

import pytest
import torch
from monai.data import MetaTensor

from scripts.errors import CaseError
from scripts.volumes.scaling import ScaleByBrainPercentiled


def test_the_background_has_no_say_and_comes_out_zero():
    image, mask = torch.full((1, 10, 10, 11), 1000.0), torch.zeros(1, 10, 10, 11)
    image[..., :10] = torch.arange(1000.0).reshape(1, 10, 10, 10) + 1
    mask[..., :10] = 1
    out = ScaleByBrainPercentiled("target", percentile=99.9)({"target": image, "mask": mask})["target"]
    torch.testing.assert_close(out[..., :10], (image[..., :10] / 999).clamp(max=1))
    assert out[..., 10].abs().max() == 0


@pytest.mark.parametrize(("value", "inside", "message"), [(1.0, 0, "is empty"), (-1.0, 1, "not positive")])
def test_nothing_to_scale_by(value: float, inside: int, message: str):
    volume = MetaTensor(torch.full((1, 4, 4, 4), value), meta={"filename_or_obj": "/data/head1_t1.nii.gz"})
    with pytest.raises(CaseError, match=rf"^[^/]*head1_t1\.nii\.gz .*{message}"):
        ScaleByBrainPercentiled("target")({"target": volume, "mask": torch.full((1, 4, 4, 4), inside)})
