"""Diffusion to noise against exact Gaussians, DDPM's formulas and FastDPM's grids."""

import math
from itertools import accumulate, pairwise

import pytest
import torch
from monai.networks.schedulers import DDIMScheduler

from scripts.schedulers import GaussianDiffusionScheduler

MEAN, STD = 0.7, 0.3


def exact_original(scheduler, t: int, x: torch.Tensor) -> torch.Tensor:
    """E[x0 | x_t] of x0 ~ N(0.7, 0.3^2)."""
    b, variance = float(scheduler.target_weights[t]), float(scheduler.variances[t])
    return MEAN + b * STD**2 / (b**2 * STD**2 + variance) * (x - b * MEAN)


def exact_noise(scheduler, t: int, x: torch.Tensor) -> torch.Tensor:
    """E[eps | x_t] of the same."""
    b, variance = float(scheduler.target_weights[t]), float(scheduler.variances[t])
    return (x - b * exact_original(scheduler, t, x)) / variance**0.5


def sampled(scheduler, steps: int, spacing: str, sampler: str, noise: torch.Tensor) -> torch.Tensor:
    scheduler.set_timesteps(steps, spacing)
    x, history = scheduler.initial_sample(noise, noise), None
    timesteps = scheduler.timesteps.tolist()
    for t, u in pairwise([*timesteps, None]):
        output = exact_noise(scheduler, t, x)
        original = scheduler.predict_original_sample(output, t, x, x)
        x, _ = scheduler.step(output, t, u, x, x, sampler, history=history)
        history = (t, original)
    return x


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return torch.randn(1, 1, 500, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("steps", [2, 5, 20, 50])
@pytest.mark.parametrize("spacing", ["linear", "lambda", "variance"])
def test_the_mean_of_an_exact_gaussian_is_kept_at_any_number_of_steps(steps, spacing, noise):
    out = sampled(GaussianDiffusionScheduler(), steps, spacing, "implicit", noise - noise.mean())
    # the terminal signal sqrt(abar_T) is 0.0064, of which sampling from N(0, 1) knows nothing
    assert float(out.mean()) == pytest.approx(MEAN, abs=0.002)


def test_monais_ddim_leaves_its_own_grid(noise):
    """Why MONAI's scheduler does not sample here: with 5 steps the exact Gaussian of mean 0.700 comes out at 0.650."""
    monai = DDIMScheduler(num_train_timesteps=1000, schedule="linear_beta", clip_sample=False)
    monai.set_timesteps(5)
    ours, x = GaussianDiffusionScheduler(), noise - noise.mean()
    for t in monai.timesteps.tolist():
        x, _ = monai.step(exact_noise(ours, t, x), t, x)
    assert float(x.mean()) == pytest.approx(0.650, abs=0.005)


@pytest.mark.parametrize(
    ("steps", "sampler", "std"),
    [
        *((5, "implicit", 0.155), (10, "implicit", 0.230), (20, "implicit", 0.264), (50, "implicit", 0.286)),
        *((5, "implicit_2", 0.264), (10, "implicit_2", 0.328), (20, "implicit_2", 0.309), (50, "implicit_2", 0.301)),
    ],
)
def test_the_spread_at_the_last_node_nears_the_truth_with_steps(steps, sampler, std, noise):
    """The standard deviation at the last node, next to x0; 0.3 is true, and the second order is nearer."""
    scheduler = GaussianDiffusionScheduler()
    scheduler.set_timesteps(steps, "lambda")
    x, history = noise, None
    for t, u in pairwise(scheduler.timesteps.tolist()):
        original = exact_original(scheduler, t, x)
        x = scheduler.step_from_original_sample(original, t, u, x, x, sampler, history=history)
        history = (t, original)
    assert float(x.std()) == pytest.approx(std, abs=0.01)


def test_transition_variances_are_the_betas():
    scheduler = GaussianDiffusionScheduler()
    assert torch.allclose(scheduler.transition_variances, scheduler.betas.double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [1, 10, 500, 999])
def test_a_step_down_by_one_is_the_ddpm_posterior(t):
    """Ho et al. 2020, eq. 7."""
    scheduler = GaussianDiffusionScheduler()
    betas = scheduler.betas.double()
    product = torch.cumprod(1 - betas, 0)
    before, beta = product[t - 1], betas[t]
    c = scheduler.step_coefficients(t, t - 1, "ancestral")
    assert c.original == pytest.approx(float(before.sqrt() * beta / (1 - product[t])), rel=1e-9)
    assert c.sample == pytest.approx(float((1 - beta).sqrt() * (1 - before) / (1 - product[t])), rel=1e-9)
    assert c.noise**2 == pytest.approx(float((1 - before) / (1 - product[t]) * beta), rel=1e-9)
    assert c.source == 0


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_target_of_each_prediction_gives_x0_back(prediction_type):
    scheduler = GaussianDiffusionScheduler(prediction_type=prediction_type)
    x0, eps = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    for t in (0, 300, 999):
        timesteps = torch.full((2,), t)
        x = scheduler.add_noise(x0[:2], eps[:2], timesteps, x0[:2])
        output = scheduler.target(x0[:2], eps[:2], timesteps, x0[:2])
        assert torch.allclose(scheduler.predict_original_sample(output, t, x, x), x0[:2], atol=1e-9)


def test_grids_are_those_of_fastdpm():
    scheduler = GaussianDiffusionScheduler()
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249, 0]
    scheduler.set_timesteps(50, "quadratic")
    assert scheduler.timesteps[0] == 800
    assert len(scheduler.timesteps) == 49  # of 50, one is there twice
    scheduler.set_timesteps(100, "quadratic")
    assert len(scheduler.timesteps) == 96
    scheduler.set_timesteps(3, "lambda")
    first, middle, last = (scheduler.half_log_snr(t) for t in scheduler.timesteps.tolist())
    assert middle == pytest.approx((first + last) / 2, abs=0.01)


def log_signal(t: float) -> float:
    """ln abar at any t, of betas linear in t, by the gamma function (FastDPM, section 3)."""
    first, last, steps = 1e-4, 0.02, 1000
    rise = (last - first) / (steps - 1)
    start = (1 - first) / rise
    return (t + 1) * math.log(rise) + math.lgamma(start + 1) - math.lgamma(start - t)


def bisected(function, low: float, high: float) -> float:
    """Where a falling function is 0."""
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return low


def test_the_signal_at_any_time_goes_through_that_of_the_schedule():
    exact = torch.log1p(-torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumsum(0)
    assert max(abs(log_signal(t) - float(exact[t])) for t in range(1000)) < 2e-10


@pytest.mark.parametrize("steps", [2, 3, 5, 10, 20, 50])
def test_the_variance_grid_is_that_of_fastdpm(steps):
    """Betas of its own, linear to the one with the same signal at the end, and the times of their signals."""

    def betas(last: float) -> list[float]:
        return [1e-4 + (last - 1e-4) * i / (steps - 1) for i in range(steps)]

    def time_of(log: float) -> float:
        return bisected(lambda t: log_signal(t) - log, 0, 999)

    last = bisected(lambda beta: sum(math.log1p(-b) for b in betas(beta)) - log_signal(999), 1e-4, 1 - 1e-9)
    sums = accumulate(math.log1p(-beta) for beta in betas(last))
    scheduler = GaussianDiffusionScheduler()
    scheduler.set_timesteps(steps, "variance")
    assert scheduler.timesteps.tolist() == sorted({round(time_of(log)) for log in sums}, reverse=True)
    assert len(scheduler.timesteps) == steps


def test_the_variance_grid_of_all_steps_is_all_timesteps():
    scheduler = GaussianDiffusionScheduler()
    for steps, timesteps in ((1000, list(range(999, -1, -1))), (1, [999])):
        scheduler.set_timesteps(steps, "variance")
        assert scheduler.timesteps.tolist() == timesteps


def test_what_needs_a_source_or_noise_is_refused_in_a_sentence():
    scheduler = GaussianDiffusionScheduler()
    with pytest.raises(ValueError, match="mean_path_2 steps in the weight of the source"):
        scheduler.step_coefficients(9, 3, "mean_path_2")
    with pytest.raises(ValueError, match="noise"):
        scheduler.initial_sample(torch.zeros(1))
    with pytest.raises(ValueError, match="num_inference_steps is 0; it must be from 1 to 1000"):
        scheduler.set_timesteps(0)
    with pytest.raises(ValueError, match="'cosine' is not a valid timestep_spacing; use one of linear"):
        scheduler.set_timesteps(5, "cosine")
