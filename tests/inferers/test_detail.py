"""The dial from the mean to the sharpest image, on a problem that is solved exactly and on any network."""

import math
from itertools import pairwise

import pytest
import torch

from scripts.inferers import ISTAInferer
from scripts.schedulers import BrownianBridgeScheduler

MEAN, STD = 0.1, 0.15  # of the target, in [-1, 1]
DIAL = [n / 20 for n in range(21)]


class Gaussian:
    """E[x0 | x_t, y] of x0 ~ N(0.1, 0.15^2) in every pixel: what a perfect network predicts."""

    def __init__(self, scheduler):
        self.m = scheduler.source_weights
        self.timesteps = []

    def __call__(self, x, timesteps, context=None, source=None):
        self.timesteps.append(int(timesteps[0]))
        m = float(self.m[timesteps[0]])
        gain = (1 - m) * STD**2 / ((1 - m) ** 2 * STD**2 + 2 * m * (1 - m))
        return MEAN + gain * (x - (1 - m) * MEAN - m * source)


def bumpy(x, timesteps, context=None, source=None):
    """Any function of the state that stays within the network's range."""
    return 0.9 * torch.sin(3 * x + x.roll(1, -1) + source + timesteps[0] / 100)


def sampled(network=None, depth=4, **options):
    """The image of a source drawn with seed 0, in one batch: (1, 1, 60, 60, depth)."""
    scheduler = BrownianBridgeScheduler(prediction_type="sample")
    source = torch.rand(1, 1, 60, 60, depth, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"sampler": "implicit", "timestep_spacing": "lambda", "num_inference_steps": 5, **options}
    return ISTAInferer(scheduler, batch_size=100, **options)(source, network or Gaussian(scheduler))


def test_from_the_posterior_mean_to_a_sample_of_an_exact_gaussian():
    """With the start drawn as the bridge has it; [0, 1] halves the numbers."""
    images = [sampled(sampler="implicit_2", num_inference_steps=20, start_noise=True, detail=detail) for detail in DIAL]
    assert float((images[0] - (MEAN + 1) / 2).abs().max()) < 0.002
    assert float(images[-1].std()) == pytest.approx(STD / 2, rel=0.03)
    assert all(float(image.mean()) == pytest.approx((MEAN + 1) / 2, abs=0.002) for image in images)
    spreads = [float(image.std()) for image in images]
    assert all(low < high for low, high in pairwise(spreads))
    # every image lies on the line from the mean to the sample
    way = (images[-1] - images[0]).flatten()
    for image in images[1:]:
        assert float(torch.cosine_similarity((image - images[0]).flatten(), way, dim=0)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("sampler", ["implicit", "implicit_2", "mean_path", "ancestral"])
def test_the_ends_are_the_first_prediction_and_the_sampler_s_result(sampler):
    assert torch.equal(sampled(bumpy, sampler=sampler, detail=1), sampled(bumpy, sampler=sampler))
    first = sampled(bumpy, sampler="mean_path", timestep_spacing="linear", num_inference_steps=1)
    assert torch.equal(sampled(bumpy, sampler=sampler, detail=0), first)
    assert not torch.equal(first, sampled(bumpy, sampler=sampler))


def test_between_two_predictions_lies_a_straight_line():
    nodes = [sampled(bumpy, detail=n / 4) for n in range(5)]
    for (low, high), n in zip(pairwise(nodes), range(4), strict=True):
        torch.testing.assert_close(sampled(bumpy, detail=(n + 0.3) / 4), 0.7 * low + 0.3 * high, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_corrections", [0, 2])
@pytest.mark.parametrize(("num_steps", "detail"), [(5, 0), (5, 0.2), (5, 0.5), (5, 1), (11, 0.7), (1, 0.5), (2, 0.5)])
def test_evaluations_that_the_result_does_not_need_are_not_made(num_steps, detail, num_corrections):
    network = Gaussian(BrownianBridgeScheduler())
    options = {"num_inference_steps": num_steps, "num_corrections": num_corrections, "detail": detail}
    sampled(network, **options)
    steps = math.ceil(detail * (num_steps - 1) - 1e-6)  # 0.7 x 10 is 7.000000000000001 in floating point
    assert len(network.timesteps) == 1 + steps * (1 + num_corrections)
    assert len(network.timesteps) == ISTAInferer(BrownianBridgeScheduler(), **options).evaluations
    assert network.timesteps[0] == 999


@pytest.mark.parametrize(("detail", "slabs"), [(0, [10]), (0.5, [5, 10]), (0.25, [10, 10])])
def test_what_the_result_is_made_of_has_all_slabs(detail, slabs):
    """Of 10 slabs a stride of 2 sees about half, but for the evaluations that are in the image."""
    seen = []

    def counted(x, *args, **kwargs):
        seen.append(len(x))
        return bumpy(x, *args, **kwargs)

    sampled(counted, depth=10, num_inference_steps=3, slab_stride=2, detail=detail)
    assert len(seen) == len(slabs)
    assert all(made == wanted or (wanted == 5 and made < 8) for made, wanted in zip(seen, slabs, strict=True))


@pytest.mark.parametrize("detail", [-0.1, 1.01, math.nan, True, "much", None])
def test_a_dial_outside_its_range_is_refused_in_a_sentence(detail):
    with pytest.raises(ValueError, match=rf"^detail is {detail!r}; it must be a number from 0 .* to 1 .*\.$"):
        ISTAInferer(BrownianBridgeScheduler(), detail=detail)
