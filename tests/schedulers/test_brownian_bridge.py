"""The bridge's forward process, targets, sampling steps, grids and score, against exact results."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from scripts.schedulers import BridgePredictionType, BrownianBridgeScheduler, TimestepSpacing, sampler_named

SAMPLERS = ("ancestral", "implicit", "mean_path", "implicit_2", "mean_path_2")
PREDICTION_TYPES = ("gradient", "unit_gradient", "sample")
# Indices so fine that any m in [0.001, 0.999] is one of them, to 5e-7; m = 0.05 exactly.
FINE = 998_001
Y = -0.5


def images(seed: int, count: int = 4, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 5, 7, generator=generator, dtype=dtype) for _ in range(count)]


def index_of(m: np.ndarray | float) -> list[int]:
    """Timesteps of the fine scheduler at source weights m."""
    return np.rint((np.atleast_1d(m) - 0.001) / 0.998 * (FINE - 1)).astype(int).tolist()


@pytest.fixture(scope="module")
def fine() -> BrownianBridgeScheduler:
    return BrownianBridgeScheduler(num_train_timesteps=FINE, prediction_type="sample")


def run(scheduler, sampler, timesteps, x, denoise, noise=None):
    """Step x through the timesteps with x0_hat = denoise(x, m); no last x0_hat step."""
    source, history = torch.full_like(x, Y), None
    for t, u in pairwise(timesteps):
        original = denoise(x, float(scheduler.source_weights[t]))
        x, _ = scheduler.step(original, t, u, x, source, sampler, noise=noise, history=history)
        history = (t, original)
    return x


class GaussianMixture:
    """x0 ~ a mixture of Gaussians per pixel, with the exact posterior mean given x_t and y = Y."""

    def __init__(self, weights, means, stds):
        self.weights, self.means, self.stds = (torch.tensor(v, dtype=torch.float64) for v in (weights, means, stds))

    def log_density(self, x: torch.Tensor, m: float) -> torch.Tensor:
        """log p(x_t | y), pixel by pixel."""
        return torch.logsumexp(self._log_joint(x, m), -1)

    def posterior_mean(self, x: torch.Tensor, m: float) -> torch.Tensor:
        variance = (1 - m) ** 2 * self.stds**2 + 2 * (m - m * m)
        gain = (1 - m) * self.stds**2 / variance
        each = self.means + gain * (x[..., None] - (1 - m) * self.means - m * Y)
        return (torch.softmax(self._log_joint(x, m), -1) * each).sum(-1)

    def _log_joint(self, x, m):
        std = ((1 - m) ** 2 * self.stds**2 + 2 * (m - m * m)).sqrt()
        return self.weights.log() + torch.distributions.Normal((1 - m) * self.means + m * Y, std).log_prob(x[..., None])


# ---- forward process and targets


def test_the_schedule_is_the_bridge_of_the_papers():
    scheduler = BrownianBridgeScheduler()
    m = np.linspace(0.001, 0.999, 1000)
    np.testing.assert_allclose(scheduler.source_weights, m, rtol=1e-14)
    np.testing.assert_allclose(scheduler.variances, 2 * (m - m**2), rtol=1e-12)
    assert float(scheduler.transition_variances[0]) == pytest.approx(0.001998)
    # q(x_t | x_{t-1}) after q(x_{t-1} | x0) is q(x_t | x0).
    composed = scheduler.variances[:-1] * torch.tensor(((1 - m[1:]) / (1 - m[:-1])) ** 2)
    np.testing.assert_allclose(composed + scheduler.transition_variances[1:], scheduler.variances[1:], rtol=1e-12)


def test_the_ends_of_the_bridge_are_target_and_source():
    scheduler = BrownianBridgeScheduler(max_variance=0.5)
    x0, y, eps, _ = images(0)
    for t, near, far in ((0, x0, y), (999, y, x0)):
        x = scheduler.add_noise(x0, eps, torch.tensor([t, t]), y)
        torch.testing.assert_close(x, 0.999 * near + 0.001 * far + math.sqrt(0.000999) * eps)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("t", [0, 1, 300, 700, 950])
def test_the_target_as_prediction_gives_back_x0(prediction_type, t):
    scheduler = BrownianBridgeScheduler(prediction_type=prediction_type)
    x0, y, eps, _ = images(t)
    timesteps = torch.tensor([t, t])
    x = scheduler.add_noise(x0, eps, timesteps, y)
    prediction = scheduler.target(x0, eps, timesteps, y)
    torch.testing.assert_close(scheduler.predict_original_sample(prediction, t, x, y), x0, rtol=0, atol=1e-6)


def test_each_sample_of_a_batch_has_its_own_timestep():
    for prediction_type in PREDICTION_TYPES:
        scheduler = BrownianBridgeScheduler(prediction_type=prediction_type)
        x0, y, eps, _ = images(3)
        for function in (scheduler.add_noise, scheduler.target):
            both = function(x0, eps, torch.tensor([10, 900]), y)
            alone = [
                function(x0[i : i + 1], eps[i : i + 1], torch.tensor([t]), y[i : i + 1]) for i, t in ((0, 10), (1, 900))
            ]
            torch.testing.assert_close(both, torch.cat(alone), rtol=0, atol=0)


def test_gradient_target_is_the_way_from_x0():
    scheduler = BrownianBridgeScheduler(prediction_type="gradient")
    x0, y, eps, _ = images(4)
    t = torch.tensor([5, 500])
    torch.testing.assert_close(scheduler.target(x0, eps, t, y), scheduler.add_noise(x0, eps, t, y) - x0)


@pytest.mark.parametrize("distance", [0.0, 1e-6, 1e-3, 1.0, 130.0])
def test_unit_direction_has_its_inverse_at_any_distance(distance):
    scheduler = BrownianBridgeScheduler(prediction_type="unit_gradient")
    y, direction, eps, _ = images(5)
    direction = direction / torch.linalg.vector_norm(direction, dim=(-2, -1), keepdim=True)
    x0 = y - distance * direction
    for t in (0, 500, 999):
        timesteps = torch.tensor([t, t])
        x = scheduler.add_noise(x0, eps, timesteps, y)
        target = scheduler.target(x0, eps, timesteps, y)
        error = scheduler.predict_original_sample(target, t, x, y) - x0
        # The 1e-8 that keeps the direction finite shortens it; what it costs is never more than the distance itself.
        m = float(scheduler.source_weights[t])
        allowed = min(distance, m / (1 - m) * 1e-8 / max(distance, 1e-8))
        assert torch.linalg.vector_norm(error, dim=(-2, -1)).max() < 1.01 * allowed + 1e-9


def test_unit_direction_has_unit_norm_in_each_slice():
    scheduler = BrownianBridgeScheduler(prediction_type="unit_gradient")
    x0, y, _, _ = images(6)
    target = scheduler.target(x0, torch.zeros_like(x0), torch.tensor([500, 999]), y)
    norm = torch.linalg.vector_norm(target, dim=(-2, -1))
    torch.testing.assert_close(norm, scheduler.source_weights[[500, 999]][:, None].expand(2, 3), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("explained", "inverse", "literal"), [(1.0, 0.0, 0.052), (0.9, 5e-5, 0.136), (0.5, 0.093, 2.69), (0.0, 52.9, 51.9)]
)
def test_unit_direction_sampled_by_its_inverse_and_word_by_word(explained, inverse, literal):
    """How far from x0 sampling ends, of a source 52.9 away, if the network knows x0 and explains a share of the state's
    offset from the bridge as noise; with none of it, the source comes back."""
    generator = torch.Generator().manual_seed(0)
    x0, direction = torch.randn((2, 1, 1, 64, 64), generator=generator, dtype=torch.float64)
    direction /= direction.norm()
    y = x0 + 52.9 * direction
    for literal_sampling, expected in ((False, inverse), (True, literal)):
        scheduler = BrownianBridgeScheduler(prediction_type="unit_gradient", literal_sampling=literal_sampling)
        scheduler.set_timesteps(100)
        x, farthest = y, 0.0
        for t, u in pairwise([*scheduler.timesteps.tolist(), None]):
            m = float(scheduler.source_weights[t])
            offset = x - ((1 - m) * x0 + m * y)
            farthest = max(farthest, float(offset.norm()))
            x, _ = scheduler.step(m * direction + explained * offset, t, u, x, y)
        assert float((x - x0).norm()) == pytest.approx(expected, rel=0.05, abs=1e-9)
        if literal_sampling and explained == 1:
            assert farthest == pytest.approx(51.9 / math.e, rel=0.01)


def test_literal_sampling_is_for_the_unit_direction():
    with pytest.raises(ValueError, match="literal_sampling is for unit_gradient"):
        BrownianBridgeScheduler(prediction_type="sample", literal_sampling=True)


# ---- steps


def oracle(scheduler, x0, t, x, y):
    """The prediction whose x0_hat is x0."""
    if scheduler.prediction_type == "sample":
        return x0
    if scheduler.prediction_type == "gradient":
        return x - x0
    m, way = float(scheduler.source_weights[t]), y - x0
    return x - x0 - m * way + m * way / torch.linalg.vector_norm(way, dim=(-2, -1), keepdim=True)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_an_oracle_keeps_the_path_between_x0_and_source(prediction_type, sampler):
    """Without noise, x_t on the mean of the bridge steps to its mean at u, for every sampler."""
    scheduler = BrownianBridgeScheduler(prediction_type=prediction_type)
    x0, y, _, _ = images(7)
    t, u, zero = 700, 300, torch.zeros_like(x0)
    x = scheduler.add_noise(x0, zero, torch.tensor([t, t]), y)
    stepped, original = scheduler.step(
        oracle(scheduler, x0, t, x, y), t, u, x, y, sampler, noise=zero, history=(900, x0)
    )
    torch.testing.assert_close(original, x0, rtol=0, atol=1e-6)
    torch.testing.assert_close(stepped, scheduler.add_noise(x0, zero, torch.tensor([u, u]), y), rtol=0, atol=1e-6)
    last, original = scheduler.step(oracle(scheduler, x0, t, x, y), t, None, x, y, sampler)
    assert torch.equal(last, original)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("max_variance", [1.0, 0.25])
def test_implicit_steps_keep_the_marginal_of_the_bridge(eta, max_variance):
    """For a known x0, x_t of mean and variance of the bridge becomes x_u of mean and variance of the bridge."""
    scheduler = BrownianBridgeScheduler(max_variance=max_variance)
    for t, u in ((999, 500), (500, 499), (1, 0)):
        c = scheduler.step_coefficients(t, u, "implicit", eta)
        m_t, m_u = scheduler.source_weights[[t, u]].tolist()
        delta_t, delta_u = scheduler.variances[[t, u]].tolist()
        assert c.sample**2 * delta_t + c.noise**2 == pytest.approx(delta_u, rel=1e-12)
        assert c.sample * (1 - m_t) + c.original == pytest.approx(1 - m_u, rel=1e-12)
        assert c.sample * m_t + c.source == pytest.approx(m_u, rel=1e-12)


def test_implicit_at_eta_1_is_ancestral():
    scheduler = BrownianBridgeScheduler(max_variance=0.7)
    model_output, x, y, noise = images(8)
    for t, u in ((999, 998), (999, 0), (400, 20)):
        a, _ = scheduler.step(model_output, t, u, x, y, "implicit", eta=1.0, noise=noise)
        b, _ = scheduler.step(model_output, t, u, x, y, "ancestral", noise=noise)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_mean_path_is_ancestral_without_noise_and_follows_the_gradient():
    scheduler = BrownianBridgeScheduler()
    gradient, x, y, noise = images(9)
    t, u = 640, 120
    stepped, _ = scheduler.step(gradient, t, u, x, y, "mean_path")
    ancestral, _ = scheduler.step(gradient, t, u, x, y, "ancestral", noise=torch.zeros_like(noise))
    torch.testing.assert_close(stepped, ancestral)
    m_t, m_u = scheduler.source_weights[[t, u]]
    torch.testing.assert_close(stepped, x - (1 - m_u / m_t) * gradient)


@pytest.mark.parametrize(("second", "first"), [("implicit_2", "implicit"), ("mean_path_2", "mean_path")])
def test_second_order_steps_are_first_order_without_history_or_change(second, first):
    scheduler = BrownianBridgeScheduler(prediction_type="sample")
    original, x, y, before = images(10)
    expected, _ = scheduler.step(original, 600, 200, x, y, first)
    for history in (None, (900, original)):
        stepped, _ = scheduler.step(original, 600, 200, x, y, second, history=history)
        torch.testing.assert_close(stepped, expected, rtol=0, atol=0)
    changed, _ = scheduler.step(original, 600, 200, x, y, second, history=(900, before))
    assert (changed - expected).abs().max() > 0.01


def test_second_order_steps_are_those_of_the_formulas():
    scheduler = BrownianBridgeScheduler(prediction_type="sample", max_variance=0.6)
    original, x, y, before = images(11)
    p, t, u = 900, 600, 200
    m_p, m_t, m_u = scheduler.source_weights[[p, t, u]].tolist()
    lam_p, lam_t, lam_u = (0.5 * math.log((1 - m) / (1.2 * m)) for m in (m_p, m_t, m_u))
    k, h = math.sqrt(m_u * (1 - m_u) / (m_t * (1 - m_t))), lam_u - lam_t
    change = (original - before) / (lam_t - lam_p)
    integral = (1 - math.exp(-h)) * original + (h - 1 + math.exp(-h)) * change
    expected = k * x + (m_u - m_t * k) * y + (1 - m_u) * integral
    stepped, _ = scheduler.step(original, t, u, x, y, "implicit_2", history=(p, before))
    torch.testing.assert_close(stepped, expected, rtol=0, atol=1e-12)

    h = math.log(m_t / m_u)
    expected = m_u / m_t * x + (1 - m_u / m_t) * original
    expected += (h - 1 + math.exp(-h)) * (original - before) / math.log(m_p / m_t)
    stepped, _ = scheduler.step(original, t, u, x, y, "mean_path_2", history=(p, before))
    torch.testing.assert_close(stepped, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("ancestral", 0.1766),
        ("implicit", 0.2155),
        ("mean_path", 0.0021),
        ("implicit_2", 0.3018),
        ("mean_path_2", 0.0021),
    ],
)
def test_gaussian_target_in_five_steps(fine, sampler, expected):
    """x0 ~ N(0.7, 0.3^2), exact posterior mean, 5 intervals uniform in lam: standard deviation reached at m = 0.001.

    The maps are affine in x, with noise of known variance, so that nothing is drawn.
    """
    target = GaussianMixture([1.0], [0.7], [0.3])
    fine.set_timesteps(6, timestep_spacing="lambda")
    timesteps = fine.timesteps.tolist()
    assert len(timesteps) == 6

    def ends(noise):
        x = torch.tensor([0.0, 1.0], dtype=torch.float64)
        return run(fine, sampler, timesteps, x, target.posterior_mean, torch.full_like(x, noise))

    slope = float(ends(0.0)[1] - ends(0.0)[0])
    m = float(fine.source_weights[-1])
    variance = slope**2 * ((1 - m) ** 2 * 0.3**2 + 2 * (m - m * m))
    if sampler == "ancestral":
        variance += ancestral_variance(fine, timesteps, target)
    assert math.sqrt(variance) == pytest.approx(expected, abs=5e-5)
    exact = math.sqrt(0.999**2 * 0.3**2 + 2 * 0.000999)
    assert exact == pytest.approx(0.3030, abs=5e-5)


def ancestral_variance(scheduler, timesteps, target) -> float:
    """Variance that the noise of the ancestral steps leaves at the end, carried on by the affine maps."""
    variance = 0.0
    for t, u in pairwise(timesteps):
        x = torch.tensor([0.0, 1.0], dtype=torch.float64)
        stepped = run(scheduler, "ancestral", [t, u], x, target.posterior_mean, torch.zeros_like(x))
        slope = float(stepped[1] - stepped[0])
        variance = slope**2 * variance + scheduler.step_coefficients(t, u, "ancestral").noise ** 2
    return variance


@pytest.mark.parametrize("sampler", ["mean_path", "mean_path_2"])
@pytest.mark.parametrize("num_steps", [2, 4, 13])
def test_mean_path_is_exact_for_a_gaussian_at_any_step_count(fine, sampler, num_steps):
    target = GaussianMixture([1.0], [0.7], [0.3])
    x = torch.tensor([-1.0, -0.5, 0.4], dtype=torch.float64)
    fine.set_timesteps(num_steps, timestep_spacing="lambda")
    coarse = run(fine, sampler, fine.timesteps.tolist(), x, target.posterior_mean)
    fine.set_timesteps(2)
    at_once = run(fine, sampler, fine.timesteps.tolist(), x, target.posterior_mean)
    torch.testing.assert_close(coarse, at_once, rtol=0, atol=1e-12)


MIXTURE = GaussianMixture([0.5, 0.5], [0.7, -0.2], [0.3, 0.1])
STARTS = np.array([-0.6, -0.52, -0.45, -0.3])


def reference_flow(sampler: str) -> np.ndarray:
    """Solution at m = 0.05 of the flow that the sampler discretises, from STARTS at m = 0.999."""

    def original(x, m):
        return MIXTURE.posterior_mean(torch.from_numpy(x), m).numpy()

    def mean_path(m, x):
        return (x - original(x, m)) / m

    def implicit(m, x):
        x0 = original(x, m)
        return (Y - x0) + (1 - 2 * m) / (2 * (m - m * m)) * (x - (1 - m) * x0 - m * Y)

    flow = implicit if sampler.startswith("implicit") else mean_path
    return solve_ivp(flow, (0.999, 0.05), STARTS, method="DOP853", rtol=1e-12, atol=1e-14).y[:, -1]


@pytest.mark.parametrize(
    ("sampler", "order"), [("implicit", 1), ("implicit_2", 2), ("mean_path", 1), ("mean_path_2", 2)]
)
def test_order_of_convergence(fine, sampler, order):
    reference = torch.from_numpy(reference_flow(sampler))
    errors = []
    for n in (40, 80, 160):
        if sampler.startswith("implicit"):
            lam = np.linspace(*(0.5 * np.log((1 - m) / (2 * m)) for m in (0.999, 0.05)), n + 1)
            m = 1 / (1 + 2 * np.exp(2 * lam))
        else:
            m = np.geomspace(0.999, 0.05, n + 1)
        x = run(fine, sampler, index_of(m), torch.from_numpy(STARTS), MIXTURE.posterior_mean)
        errors.append(float((x - reference).abs().max()))
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(slopes, order, atol=0.2)
    assert slopes[-1] == pytest.approx(order, abs=0.1)


def test_score_is_the_gradient_of_the_log_density():
    for prediction_type in ("gradient", "sample"):
        scheduler = BrownianBridgeScheduler(prediction_type=prediction_type)
        x = torch.linspace(-1.5, 1.5, 15, dtype=torch.float64).reshape(1, 1, 3, 5).requires_grad_()
        for t in (0, 333, 999):
            m = float(scheduler.source_weights[t])
            (expected,) = torch.autograd.grad(MIXTURE.log_density(x, m).sum(), x)
            original = MIXTURE.posterior_mean(x, m).detach()
            output = oracle(scheduler, original, t, x.detach(), None)
            score = scheduler.score(output, t, x.detach(), torch.full_like(x, Y).detach())
            torch.testing.assert_close(score, expected, rtol=1e-9, atol=1e-9)


# ---- grids


def test_linear_grid_is_that_of_the_authors():
    scheduler = BrownianBridgeScheduler()
    expected = {1: [999], 2: [999, 0], 3: [999, 1, 0], 4: [999, 499, 1, 0], 5: [999, 666, 333, 1, 0]}
    for num_steps, timesteps in expected.items():
        scheduler.set_timesteps(num_steps)
        assert scheduler.timesteps.tolist() == timesteps
    for num_steps in (50, 100, 200):
        scheduler.set_timesteps(num_steps)
        authors = [*torch.arange(999, 1, step=-999 / (num_steps - 2)).long().tolist(), 1, 0]
        assert scheduler.timesteps.tolist() == authors
        assert len(authors) == num_steps == scheduler.num_inference_steps


def test_lambda_grid_is_uniform_in_lam():
    scheduler = BrownianBridgeScheduler(max_variance=0.5)
    for num_steps in (2, 5, 20):
        scheduler.set_timesteps(num_steps, timestep_spacing="lambda")
        timesteps = scheduler.timesteps
        assert timesteps[0] == 999
        assert timesteps[-1] == 0
        assert (timesteps.diff() < 0).all()
        m = scheduler.source_weights
        lam = 0.5 * torch.log((1 - m) / m)
        nodes = torch.linspace(float(lam[-1]), float(lam[0]), num_steps, dtype=torch.float64)
        # The index next to the wanted node is never nearer in m.
        wanted = 1 / (1 + torch.exp(2 * nodes))
        nearest = (m[None] - wanted[:, None]).abs().argmin(1).unique().flip(0)
        assert timesteps.tolist() == nearest.tolist()
    scheduler.set_timesteps(1, timestep_spacing="lambda")
    assert scheduler.timesteps.tolist() == [999]
    scheduler.set_timesteps(500, timestep_spacing="lambda")
    assert len(scheduler.timesteps) < 500


@pytest.mark.parametrize("spacing", ["linear", "lambda"])
@pytest.mark.parametrize("num_train_timesteps", [2, 3, 17])
def test_grids_of_a_short_schedule_stay_inside_it(spacing, num_train_timesteps):
    scheduler = BrownianBridgeScheduler(num_train_timesteps=num_train_timesteps)
    for num_steps in range(1, num_train_timesteps + 1):
        scheduler.set_timesteps(num_steps, spacing)
        assert scheduler.timesteps[0] == num_train_timesteps - 1
        assert num_steps == 1 or scheduler.timesteps[-1] == 0
        assert (scheduler.timesteps.diff() < 0).all()


def test_wrong_arguments_are_refused():
    scheduler = BrownianBridgeScheduler()
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        scheduler.set_timesteps(0)
    with pytest.raises(ValueError, match="cubic"):
        scheduler.set_timesteps(5, "cubic")
    with pytest.raises(ValueError, match="velocity"):
        BrownianBridgeScheduler(prediction_type="velocity")
    with pytest.raises(ValueError, match="goes down"):
        scheduler.step(x, 5, 5, x, x)
    with pytest.raises(ValueError, match="give it noise"):
        scheduler.step(x, 5, 4, x, x, "ancestral")
    with pytest.raises(ValueError, match="eta is 2"):
        scheduler.step(x, 5, 4, x, x, "implicit", eta=2)


def test_tensors_keep_their_floating_type():
    for dtype in (torch.float32, torch.float64):
        for prediction_type in PREDICTION_TYPES:
            scheduler = BrownianBridgeScheduler(prediction_type=prediction_type)
            x0, y, eps, before = images(12, dtype=dtype)
            t = torch.tensor([5, 6])
            results = [
                scheduler.add_noise(x0, eps, t, y),
                scheduler.target(x0, eps, t, y),
                scheduler.score(x0, 5, eps, y),
            ]
            for sampler in SAMPLERS:
                results += scheduler.step(x0, 500, 5, eps, y, sampler, noise=eps, history=(900, before))
            assert {r.dtype for r in results} == {dtype}


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (sampler_named, "ancestral, implicit, mean_path, implicit_2, mean_path_2"),
        (TimestepSpacing, "linear, lambda, quadratic, variance"),
        (BridgePredictionType, "gradient, unit_gradient, sample"),
    ],
)
def test_an_unknown_name_is_refused_with_those_there_are(choice, names):
    with pytest.raises(
        ValueError, match=f"'mean_pth' is not a valid {choice.__name__.removesuffix('_named')}; use one of {names}\\."
    ):
        choice("mean_pth")


def test_an_unknown_sampler_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'heun' is not a valid sampler; use one of ancestral, implicit, mean_path"):
        BrownianBridgeScheduler().step_coefficients(9, 3, "heun")


def closed_form(sampler: str, m_t: float, m_u: float, eta: float) -> tuple[float, float, float, float]:
    """The bridge's own formulas of BBDM and DBIM, written out with m and s = 1: sample, original, source, noise."""
    if sampler == "implicit":
        v = eta**2 * 2 * m_u * (1 - m_u / m_t)
        k = math.sqrt((2 * (m_u - m_u**2) - v) / (2 * (m_t - m_t**2)))
        return k, 1 - m_u - k * (1 - m_t), m_u - k * m_t, math.sqrt(v)
    ratio = m_u / m_t
    return ratio, 1 - ratio, 0.0, math.sqrt(2 * m_u * (1 - ratio)) if sampler == "ancestral" else 0.0


@pytest.mark.parametrize(("sampler", "eta"), [("ancestral", 0), ("mean_path", 0), ("implicit", 0), ("implicit", 0.7)])
@pytest.mark.parametrize(("t", "u"), [(999, 0), (999, 998), (500, 499), (1, 0), (700, 3)])
def test_the_affine_formulas_are_the_bridges_own(sampler, eta, t, u):
    scheduler = BrownianBridgeScheduler()
    m_t, m_u = (float(scheduler.source_weights[i]) for i in (t, u))
    c = scheduler.step_coefficients(t, u, sampler, eta)
    assert (c.sample, c.original, c.source, c.noise) == pytest.approx(closed_form(sampler, m_t, m_u, eta), abs=3e-13)
    if sampler != "implicit":
        assert c.source == 0  # y cancels


def test_the_state_of_a_scheduler_stays_what_it_was():
    assert set(BrownianBridgeScheduler().state_dict()) == {"source_weights", "variances", "transition_variances"}
