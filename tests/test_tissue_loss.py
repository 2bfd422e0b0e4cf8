"""The loss of tissue probabilities."""

import copy

import pytest
import torch
from monai.bundle import ConfigParser
from torch import Tensor

from scripts.networks.tissue_segmenter import TissueSegmenter
from scripts.tissue_loss import TissueConsistencyLoss

ERRORS = ("l1", "dice")


class Thresholds(torch.nn.Module):
    """A segmenter that is a formula: classes lie around 0, 0.3, 0.6 and 0.9."""

    def forward(self, images: Tensor) -> Tensor:
        levels = torch.tensor([0.0, 0.3, 0.6, 0.9]).reshape(1, 4, 1, 1, 1)
        return -(((images[:, None] - levels) / 0.07) ** 2)


def slabs(seed: int = 0) -> Tensor:
    """Squares of the three tissues before a background, (4, 3, 32, 32) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    tissue = torch.randint(1, 4, (4, 3, 4, 4), generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    images = 0.3 * tissue.float()
    images[..., :8, :] = 0
    return 2 * images - 1


@pytest.fixture(scope="module")
def segmenter() -> TissueSegmenter:
    torch.manual_seed(0)
    return TissueSegmenter(features=(8, 8, 8, 8, 8, 8))


@pytest.mark.parametrize("error", ERRORS)
def test_it_is_zero_for_equal_images_and_grows_with_the_difference(segmenter, error):
    loss = TissueConsistencyLoss(segmenter, error=error)
    target = slabs()
    assert loss(target, target).item() == pytest.approx(0, abs=1e-6)
    near, far = (loss(target + step * torch.randn(target.shape), target).item() for step in (0.05, 0.5))
    assert 0 < near < far


@pytest.mark.parametrize("error", ERRORS)
def test_the_gradient_flows_to_the_prediction_alone(segmenter, error):
    loss = TissueConsistencyLoss(segmenter, error=error).train()
    before = copy.deepcopy(segmenter.state_dict())
    prediction, target = (slabs(seed).requires_grad_() for seed in (0, 1))
    loss(prediction, target).backward()
    assert prediction.grad.abs().sum() > 0
    assert target.grad is None
    assert all(parameter.grad is None for parameter in segmenter.parameters())
    # a batch normalisation in training mode would have moved its statistics
    assert all(torch.equal(value, before[key]) for key, value in segmenter.state_dict().items())


def test_tissue_in_another_tissues_place_is_what_it_counts():
    """One pixel in four is surely of another tissue: two of its four probabilities are off by 1."""
    loss = TissueConsistencyLoss(Thresholds(), weight=1.0)
    target = torch.full((2, 3, 8, 8), 2 * 0.6 - 1)
    prediction = target.clone()
    prediction[..., :2, :] = 2 * 0.9 - 1
    assert loss(prediction, target).item() == pytest.approx(0.25 * 2 / 4, abs=1e-3)
    dice = TissueConsistencyLoss(Thresholds(), weight=1.0, error="dice")
    # grey: 2 * 0.75 / 1.75; white: the target has none; fluid: neither has any
    assert dice(prediction, target).item() == pytest.approx(((1 - 1.5 / 1.75) + 1 + 0) / 3, abs=1e-2)


@pytest.mark.parametrize("error", ERRORS)
def test_weight_batch_and_timesteps(segmenter, error):
    """Twice the weight is twice the loss; a batch that is repeated, or that has timesteps, is the same."""
    prediction, target = slabs(0), slabs(1)
    loss = TissueConsistencyLoss(segmenter, error=error)(prediction, target)
    twice = TissueConsistencyLoss(segmenter, weight=0.2, error=error)
    torch.testing.assert_close(twice(prediction, target), 2 * loss)
    repeated = TissueConsistencyLoss(segmenter, error=error)
    torch.testing.assert_close(repeated(prediction.repeat(2, 1, 1, 1), target.repeat(2, 1, 1, 1)), loss)
    torch.testing.assert_close(repeated(prediction, (target, torch.tensor([1, 2, 3, 4]))), loss)


def test_background_has_no_say_and_an_empty_slab_no_loss():
    loss = TissueConsistencyLoss(Thresholds(), weight=1.0)
    target, prediction = slabs(), slabs()
    prediction[..., :8, :] = 0.2  # where the target is background
    assert loss(prediction, target).item() == pytest.approx(0, abs=1e-3)
    empty = torch.full((1, 3, 8, 8), -1.0)
    assert loss(empty, empty).item() == pytest.approx(0, abs=1e-6)


def test_an_unknown_error_is_refused(segmenter):
    with pytest.raises(ValueError, match="l1 or dice"):
        TissueConsistencyLoss(segmenter, error="l2")


def test_the_overlay_adds_it_to_whatever_loss_the_training_has(bundle_root):
    """With the shipped weights, whose segmenter is small enough to come along."""
    parser = ConfigParser()
    parser.read_config([str(bundle_root / "configs" / name) for name in ("train.json", "loss_tissue.json")])
    parser["bundle_root"], parser["device"] = str(bundle_root), "cpu"
    loss, tissue_loss = (parser.get_parsed_content(key) for key in ("loss", "tissue_loss"))
    parser.get_parsed_content("initialize#3")  # loads the weights
    prediction, target = slabs(0), slabs(1)
    both = parser.get_parsed_content("train#trainer#loss_function")(prediction, target)
    torch.testing.assert_close(both, loss(prediction, target) + tissue_loss(prediction, target))
    assert tissue_loss(prediction, target) > 0
    assert not any(parameter.requires_grad for parameter in tissue_loss.parameters())
    assert (bundle_root / "models" / "tissue_segmenter.pt").stat().st_size < 2e6
