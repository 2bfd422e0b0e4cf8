"""The bridge's losses."""

import pytest
import torch

from scripts.losses import BridgeL1Loss, BridgeL2Loss, GradientL1Loss, elbo_weights


@pytest.fixture
def schedule() -> torch.Tensor:
    """m_t of CT2MRI's code."""
    return torch.linspace(0.001, 0.999, 1000, dtype=torch.float64)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(4, 3, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2))


def test_elbo_weights_are_those_of_the_posterior_mean(schedule: torch.Tensor) -> None:
    """c_eps,t = (1 - m_{t-1}) delta_{t|t-1} / delta_t, written out step by step (BBDM, eq. 10)."""
    weights = elbo_weights(schedule)
    assert weights[0] == 1
    for t in (1, 2, 10, 500, 999):
        m, before = schedule[t].item(), schedule[t - 1].item()
        delta, delta_before = 2 * (m - m**2), 2 * (before - before**2)
        transition = delta - delta_before * (1 - m) ** 2 / (1 - before) ** 2
        assert weights[t].item() == pytest.approx((1 - before) * transition / delta, rel=1e-9)


def test_without_weights_they_are_pytorchs_own() -> None:
    prediction, target = batch()
    torch.testing.assert_close(BridgeL1Loss()(prediction, target), torch.nn.L1Loss()(prediction, target))
    torch.testing.assert_close(BridgeL2Loss()(prediction, target), torch.nn.MSELoss()(prediction, target))


@pytest.mark.parametrize(("loss", "power"), [(BridgeL1Loss, 1), (BridgeL2Loss, 2)])
def test_each_slab_is_weighted_by_its_timestep(loss: type, power: int, schedule: torch.Tensor) -> None:
    prediction, target = batch()
    timesteps = torch.tensor([0, 999, 3, 3])
    weights = elbo_weights(schedule)
    expected = sum(
        weights[t] * (prediction[i] - target[i]).abs().pow(power).mean() for i, t in enumerate(timesteps)
    ) / len(timesteps)
    torch.testing.assert_close(loss(weights)(prediction, (target, timesteps)), expected)


def test_equal_weights_weight_nothing() -> None:
    prediction, target = batch()
    timesteps = torch.tensor([5, 1, 9, 0])
    weighted = BridgeL2Loss(torch.ones(10))(prediction, (target, timesteps))
    torch.testing.assert_close(weighted, BridgeL2Loss()(prediction, target))


def test_weights_are_no_part_of_a_state_dict_and_need_timesteps() -> None:
    prediction, target = batch()
    loss = BridgeL1Loss(torch.ones(10))
    assert not loss.state_dict()
    with pytest.raises(TypeError, match="timesteps"):
        loss(prediction, target)


def test_best_constants_are_median_and_mean() -> None:
    """What L1 and L2 teach: the median and the mean of the targets."""
    targets = torch.tensor([0.0, 0.0, 0.0, 1.0, 4.0]).reshape(5, 1, 1, 1)
    guesses = torch.linspace(0, 4, 401)
    for loss, best in ((BridgeL1Loss(), 0.0), (BridgeL2Loss(), 1.0)):
        errors = torch.stack([loss(guess.expand_as(targets), targets) for guess in guesses])
        assert guesses[errors.argmin()].item() == pytest.approx(best, abs=1e-6)


def test_the_gradient_loss_of_an_offset_is_the_offset_and_of_a_ramp_its_slope_too() -> None:
    _, target = batch()
    offset = GradientL1Loss(5.0)(target + 0.25, target)
    assert offset.item() == pytest.approx(0.25)
    ramp = torch.arange(6, dtype=torch.float64).expand_as(target)
    assert GradientL1Loss(3.0)(target + 0.1 * ramp, target).item() == pytest.approx(0.1 * 2.5 + 3 * 0.1)
    tilted = ramp + 2 * torch.arange(5, dtype=torch.float64)[:, None]
    assert GradientL1Loss(1.0)(target - tilted, target).item() == pytest.approx(2.5 + 4 + 1 + 2)


def test_without_weight_the_gradient_loss_is_l1() -> None:
    prediction, target = batch()
    torch.testing.assert_close(GradientL1Loss(0.0)(prediction, target), torch.nn.L1Loss()(prediction, target))


def test_the_gradient_loss_tells_a_blurred_edge_from_a_sharp_one_of_the_same_error() -> None:
    """Two errors of the same mean absolute size, one smooth and one rough."""
    target = torch.zeros(1, 3, 8, 8)
    smooth, rough = target + 0.5, target + 0.5 * (-1.0) ** torch.arange(8)
    assert GradientL1Loss()(rough, target) > 2 * GradientL1Loss()(smooth, target)
