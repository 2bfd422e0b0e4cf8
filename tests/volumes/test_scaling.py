"""Scaling by a percentile of the brain."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.errors import CaseError
from scripts.volumes.scaling import (
    ScaleByBrainModed,
    ScaleByBrainPercentiled,
    mode_of_brain,
    scaled_by_mode,
    scaled_by_percentile,
)


def test_the_background_has_no_say_and_comes_out_zero():
    image, mask = torch.full((1, 10, 10, 11), 1000.0), torch.zeros(1, 10, 10, 11)
    image[..., :10] = torch.arange(1000.0).reshape(1, 10, 10, 10) + 1
    mask[..., :10] = 1
    out = ScaleByBrainPercentiled("target", percentile=99.9)({"target": image, "mask": mask})["target"]
    torch.testing.assert_close(out[..., :10], (image[..., :10] / 999).clamp(max=1))
    assert out[..., 10].abs().max() == 0


@pytest.mark.parametrize(("value", "inside", "message"), [(1.0, 0, "is empty"), (0.0, 1, "not positive")])
def test_nothing_to_scale_by(value: float, inside: int, message: str):
    volume = MetaTensor(torch.full((1, 4, 4, 4), value), meta={"filename_or_obj": "/data/head1_t1.nii.gz"})
    with pytest.raises(CaseError, match=rf"^[^/]*head1_t1\.nii\.gz .*{message}"):
        ScaleByBrainPercentiled("target")({"target": volume, "mask": torch.full((1, 4, 4, 4), inside)})


def flair_values(seed: int = 0, unit: float = 300.0) -> torch.Tensor:
    """Voxels of a brain in a FLAIR, (1, 40, 40, 40): fluid, then white and grey matter, whose peaks overlap."""
    rng = np.random.default_rng(seed)
    tissues = [rng.normal(level, spread, n) for level, spread, n in ((0.25, 0.05, 12_000), (1.0, 0.08, 32_000))]
    tissues.append(rng.normal(1.2, 0.1, 20_000))
    return MetaTensor(torch.from_numpy(unit * np.concatenate(tissues)).float().reshape(1, 40, 40, 40))


def test_the_commonest_value_is_that_of_the_dominant_tissue_in_any_unit():
    whole = torch.ones(1, 40, 40, 40)
    for unit in (0.01, 300.0):
        assert mode_of_brain(flair_values(unit=unit), whole).item() == pytest.approx(1.03 * unit, rel=0.04)


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_a_bright_oedema_leaves_the_other_tissue_where_it_was(share: float):
    """The percentile moves it by a quarter or more; the mode by less than 4 %, even where a fifth of the brain leaves
    the white matter."""
    volume, mask = flair_values(), torch.ones(1, 40, 40, 40)
    lesion = torch.zeros(mask.shape, dtype=torch.bool)
    lesion.view(-1)[12_000 : 12_000 + int(share * 64_000)] = True
    with_oedema = torch.where(lesion, 2.2 * volume, volume)
    elsewhere = ~lesion
    moved = {}
    for scale in (scaled_by_mode, scaled_by_percentile):
        before, after = scale(volume, mask, name="a"), scale(with_oedema, mask, name="a")
        moved[scale] = (after[elsewhere].median() / before[elsewhere].median()).item()
    assert moved[scaled_by_mode] == pytest.approx(1, abs=0.04)
    assert moved[scaled_by_percentile] < 0.75
    # the oedema is brighter than all else, and nothing is lost at the top
    scaled = scaled_by_mode(with_oedema, mask, name="a")
    assert scaled[lesion].median() > scaled[elsewhere].quantile(0.99)
    assert scaled.max() < 1


def test_scaling_by_the_mode_is_linear_below_the_knee_and_rises_above():
    volume, mask = flair_values(), torch.ones(1, 40, 40, 40)
    scaled = scaled_by_mode(volume, mask, anchor=0.6, knee=0.8, name="a")
    ratio = (scaled / volume)[(scaled > 0.05) & (scaled < 0.8)]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    order = volume.view(-1).argsort()
    assert (scaled.view(-1)[order].diff() >= 0).all()
    transform = ScaleByBrainModed("source", anchor=0.6, knee=0.8)
    torch.testing.assert_close(transform({"source": volume, "mask": mask})["source"], scaled)
    half = torch.cat([mask[:, :20], 0 * mask[:, 20:]], dim=1)
    assert not scaled_by_mode(volume, half, name="a")[:, 20:].any()


@pytest.mark.parametrize("scale", [scaled_by_mode, scaled_by_percentile])
def test_a_brain_with_negative_values_is_refused(scale):
    """A z-scored FLAIR would lose half of its brain; what interpolation leaves below 0 is no matter."""
    volume, mask = flair_values(unit=1.0), torch.ones(1, 40, 40, 40)
    with pytest.raises(CaseError, match=r"^\d+% of the brain is negative in a\.nii .*give the original file"):
        scale((volume - volume.mean()) / volume.std(), mask, name="a.nii")
    slightly = torch.where(volume < 0.2, -0.01 * volume, volume)
    assert scale(slightly, mask, name="a.nii").min() == 0
