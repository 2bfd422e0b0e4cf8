"""The bridge's losses."""

import math

import pytest
import torch
from torch.nn import functional

from scripts.inferers.states import encode_slabs
from scripts.losses import (
    BridgeL1Loss,
    BridgeL2Loss,
    GradientL1Loss,
    LatentL2Loss,
    SliceContrastiveLoss,
    elbo_weights,
    kl_timestep_weights,
)
from scripts.schedulers import GaussianDiffusionScheduler


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


def test_the_loss_of_states_is_that_of_the_images_where_the_decoder_scales_channels() -> None:
    """A codec whose states are the pixels of blocks of 2 x 2 divided by scales, over slabs of three slices."""
    scales = torch.tensor([3.0, 0.5, 1.0, 0.25], dtype=torch.float64)
    images = torch.rand(2, 4, 3, 4, 6, dtype=torch.float64)

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return functional.pixel_unshuffle(pixels, 2) / scales[:, None, None]

    prediction, target = (encode_slabs(slabs, 1, encode) for slabs in images)
    loss = LatentL2Loss(scales.square())(prediction, target)
    torch.testing.assert_close(loss, torch.nn.MSELoss()(*images))
    timesteps = torch.tensor([0, 3, 5, 9])
    weighted = LatentL2Loss(scales.square(), 2 * torch.ones(10))(prediction, (target, timesteps))
    torch.testing.assert_close(weighted, 2 * loss)


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


class TestSliceContrastiveLoss:
    PLACES = (
        torch.tensor([0, 0, 0, 0, 1, 1, 1, 2]),
        torch.tensor([4, 5, 6, 20, 4, 5, 20, 9]),
        -torch.tensor([0.10, 0.13, 0.16, 0.70, 0.11, 0.14, 0.66, 0.30]),
    )

    @staticmethod
    def vectors(seed=0, layers=3):
        draws = torch.randn((layers + 1, 8, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        embeddings, *features = functional.normalize(draws, dim=-1)
        return embeddings, features

    def slow(self, similarity, offsets, negatives, tolerance):
        """Eq. 8 slice by slice."""
        scan, index, position = (values.tolist() for values in self.PLACES)
        terms = []
        for p in range(8):
            ahead = [q for q in range(8) if scan[q] == scan[p] and 0 < index[q] - index[p] <= offsets]
            others = [q for q in range(8) if not (scan[q] == scan[p] and abs(index[q] - index[p]) <= offsets)]
            if negatives == "position":
                others = [q for q in others if abs(position[q] - position[p]) > tolerance]
            above = sum(math.exp(similarity[p, q]) for q in ahead)
            if ahead:
                terms.append(-math.log(above / (above + sum(math.exp(similarity[p, q]) for q in others))))
        return sum(terms) / len(terms)

    @pytest.mark.parametrize("negatives", ["position", "all"])
    def test_it_is_the_sum_over_slices_written_out(self, negatives):
        embeddings, features = self.vectors()
        loss = SliceContrastiveLoss(0.2, 0.5, 0.7, (1, 2), negatives, offsets=2)
        expected = self.slow(embeddings @ embeddings.T / 0.2, 2, negatives, 0.05)
        for layer in (1, 2):
            distance = torch.cdist(features[layer], features[layer]) ** 2
            expected += 0.25 * self.slow(-distance / 0.7, 2, negatives, 0.05)
        assert float(loss((embeddings, features), self.PLACES)) == pytest.approx(expected, abs=1e-9)

    def test_on_unit_vectors_the_second_term_is_the_first_at_half_its_temperature(self):
        vectors = self.vectors()
        beta = 0.8
        second = SliceContrastiveLoss(1.0, 1.0, beta, None)(vectors, self.PLACES)
        second = second - SliceContrastiveLoss(1.0, 0.0, beta, None)(vectors, self.PLACES)
        first = SliceContrastiveLoss(beta / 2, 0.0)(vectors, self.PLACES)
        torch.testing.assert_close(second, first, rtol=0, atol=1e-12)

    def test_the_order_of_the_batch_does_not_matter(self):
        (embeddings, features), loss = self.vectors(), SliceContrastiveLoss(offsets=2)
        order = torch.tensor([3, 7, 0, 2, 6, 1, 5, 4])
        shuffled = (embeddings[order], [feature[order] for feature in features])
        places = tuple(values[order] for values in self.PLACES)
        torch.testing.assert_close(loss(shuffled, places), loss((embeddings, features), self.PLACES))

    def test_other_people_at_the_same_height_are_pushed_away_by_the_papers_negatives_alone(self):
        """Slices 1 and 5 are of two people at one height."""
        embeddings, features = self.vectors()
        for negatives, pushed in (("position", False), ("all", True)):
            moved = embeddings.clone().requires_grad_()
            loss = SliceContrastiveLoss(percept_weight=0.0, negatives=negatives, offsets=1)
            places = tuple(values[[0, 1, 5]] for values in self.PLACES)
            loss((moved[[0, 1, 5]], [f[[0, 1, 5]] for f in features]), places).backward()
            assert bool(moved.grad[5].any()) is pushed

    def test_a_batch_without_neighbours_has_no_loss(self):
        (embeddings, features), places = self.vectors(), self.PLACES
        loss = SliceContrastiveLoss()((embeddings.requires_grad_(), features), (torch.arange(8), *places[1:]))
        loss.backward()
        assert loss.item() == 0

    @pytest.mark.parametrize("options", [{"temperature": 0}, {"percept_temperature": -1}, {"negatives": "some"}])
    def test_impossible_options_are_refused(self, options):
        with pytest.raises(ValueError, match=r"positive|position or all"):
            SliceContrastiveLoss(**options)


@pytest.mark.parametrize("t", [1, 2, 10, 500, 999])
def test_kl_weights_are_the_divergence_of_the_posterior_for_an_error_of_the_noise(t: int) -> None:
    """Two normal distributions of the same variance, one for the true noise and one for a prediction."""
    scheduler = GaussianDiffusionScheduler()
    x0, eps, error = torch.tensor([0.3, 0.8, -0.05], dtype=torch.float64)
    state = scheduler.add_noise(x0.reshape(1, 1, 1), eps.reshape(1, 1, 1), torch.tensor([t]))
    step = scheduler.step_coefficients(t, t - 1, "ancestral")
    means = [
        step.sample * state + step.original * scheduler.predict_original_sample(noise, t, state)
        for noise in (eps, eps + error)
    ]
    posteriors = [torch.distributions.Normal(mean, step.noise) for mean in means]
    divergence = float(torch.distributions.kl_divergence(*posteriors))
    term = (kl_timestep_weights(scheduler.target_weights) - 1) * mean_kl_term(scheduler)
    assert divergence == pytest.approx(float(term[t] * error**2), rel=1e-9)


def mean_kl_term(scheduler: GaussianDiffusionScheduler) -> float:
    """w_1 of DDPM's eq. 12 by what it is in the weights: 1 + w_1 / mean(w)."""
    beta, signal = scheduler.betas.double(), scheduler.target_weights**2
    first = float(beta[1] / (2 * (1 - beta[1]) * (1 - signal[0])))
    return first / float(kl_timestep_weights(scheduler.target_weights)[1] - 1)


def test_kl_terms_of_the_paper_s_schedule() -> None:
    scheduler = GaussianDiffusionScheduler()
    weights = kl_timestep_weights(scheduler.target_weights)
    mean = mean_kl_term(scheduler)
    terms = (weights - 1) * mean
    found = [float(terms[t]) for t in (1, 10, 100, 999)]
    assert found == pytest.approx([0.600, 0.0793, 0.0102, 0.0102], rel=0.005)
    assert 999 * mean == pytest.approx(10.17, abs=0.01)
    assert weights[0] == 1  # nothing lies before the first timestep
    assert float(weights[1:].mean()) == pytest.approx(2)
    assert torch.equal(kl_timestep_weights(scheduler.target_weights, 0), torch.ones(1000, dtype=torch.float64))
    assert float(kl_timestep_weights(scheduler.target_weights, 0.1)[1:].mean()) == pytest.approx(1.1)
    with pytest.raises(ValueError, match="predicts the noise, and this one predicts sample"):
        kl_timestep_weights(scheduler.target_weights, prediction_type="sample")


def test_kl_weights_are_those_of_a_loss() -> None:
    loss = BridgeL2Loss(kl_timestep_weights(GaussianDiffusionScheduler().target_weights, 0.5))
    prediction, timesteps = torch.full((2, 1, 4, 4), 2.0), torch.tensor([0, 999])
    expected = 4 * (1 + loss.timestep_weights[999]) / 2
    assert float(loss(prediction, (torch.zeros_like(prediction), timesteps))) == pytest.approx(float(expected))
