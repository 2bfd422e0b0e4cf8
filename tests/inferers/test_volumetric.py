"""Slabs that a volumetric network sees at once, through the sampling of whole volumes."""

import pytest
import torch
from torch import Tensor, nn

from scripts.codec import OrthonormalCodec
from scripts.inferers import ISTAInferer
from scripts.networks import BridgeUNet, VolumetricUNet
from scripts.schedulers import BrownianBridgeScheduler, GaussianDiffusionScheduler

TINY = {"channels": (8, 16), "num_res_blocks": 1, "norm_num_groups": 4, "num_head_channels": 8}
K = 5
SAMPLING = {"num_inference_steps": 3, "sampler": "implicit", "timestep_spacing": "lambda", "batch_size": 4}


def networks(k: int = K, **options: object) -> tuple[BridgeUNet, VolumetricUNet]:
    """A network of slices, and the untuned one of slabs around its like."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        network = BridgeUNet(slab_size=1, **TINY, **options).double().eval()
        for parameter in network.parameters():
            if parameter.ndim > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.2)
        made.append(network)
    return made[0], VolumetricUNet(made[1], k).double()


def tuned(k: int = K, **options: object) -> VolumetricUNet:
    network = networks(k, **options)[1]
    for name, parameter in network.named_parameters():
        if ".volumetric." in name:
            nn.init.normal_(parameter, std=0.1)
    return network


def volume(num_slices: int, channels: int = 1, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(num_slices)
    return torch.rand((batch, channels, 8, 12, num_slices), generator=generator, dtype=torch.float64)


def bridge(**options: object) -> ISTAInferer:
    return ISTAInferer(BrownianBridgeScheduler(prediction_type="sample"), **{**SAMPLING, **options})


@pytest.mark.parametrize("num_slices", [1, 3, 5, 13])
@pytest.mark.parametrize("stride", [1, 3, K])
def test_untuned_slabs_are_slices_alone(num_slices, stride):
    slices, slabs = networks()
    source = volume(num_slices, batch=2)
    expected = bridge(slab_size=1)(source, slices)
    assert expected.std() > 0.05
    output = bridge(slab_size=K, slab_stride=stride)(source, slabs)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-9)
    chunks = bridge(slab_size=K, slab_stride=stride, co_prediction=False)(source, slabs)
    torch.testing.assert_close(chunks, expected, rtol=0, atol=1e-9)


def test_channels_of_latents_contrasts_and_conditions_keep_their_order():
    """A codec of four channels, two contrasts of which one is absent, and missing slices."""
    slices, slabs = networks(target_channels=4, source_channels=8, condition_channels=1)
    source = volume(7, 3, batch=2)
    source[1, 1] = 0
    options = {"codec": OrthonormalCodec(), "channels": {"source": 2, "missing": 1}, "endpoint": "mean_present"}
    expected = bridge(slab_size=1, **options)(source, slices)
    output = bridge(slab_size=K, slab_stride=3, **options)(source, slabs)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("co_prediction", [True, False])
@pytest.mark.parametrize("num_slices", [1, 2, 4])
def test_a_slab_may_be_larger_than_the_volume(num_slices, co_prediction):
    slices, slabs = networks(9)
    source = volume(num_slices)
    options = {"slab_size": 9, "slab_stride": 9, "co_prediction": co_prediction}
    torch.testing.assert_close(bridge(**options)(source, slabs), bridge(slab_size=1)(source, slices), rtol=0, atol=1e-9)
    other = source.clone()
    other[..., -1] = 1 - other[..., -1]
    network = tuned(9)
    change = (bridge(**options)(source, network) - bridge(**options)(other, network)).abs().amax((0, 1, 2, 3))
    assert change.shape == (num_slices,)
    assert (change > 1e-6).all()  # every slice sees the last one


def test_tuned_slabs_are_one_function_of_the_volume_alone():
    """No batch size and no company changes a volume."""
    network, source = tuned(), volume(11, batch=2)
    for options in ({}, {"slab_stride": K}, {"slab_stride": K, "co_prediction": False}):
        together = bridge(slab_size=K, **options)(source, network)
        alone = [bridge(slab_size=K, **{**options, "batch_size": 1})(one[None], network) for one in source]
        torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-9)
        assert (together - bridge(slab_size=1)(source, networks()[0])).abs().max() > 1e-2


def middle_of(x: Tensor, timesteps: Tensor, context: Tensor | None = None, source: Tensor | None = None) -> Tensor:
    """An image whose slices all are the middle one of the slab's source."""
    return source[:, K // 2 : K // 2 + 1].expand_as(source)


def ramp(num_slices: int = 23) -> Tensor:
    """Each slice brighter by 0.02 than the one below."""
    return (0.3 + 0.02 * torch.arange(num_slices)).expand(1, 1, 8, 12, num_slices).double()


def coronal_steps(**options: object) -> Tensor:
    """Differences of neighbouring slices of the ramp, as a coronal picture shows them, in units of its slope."""
    output = bridge(slab_size=K, **options)(ramp(), middle_of)
    return output[0, 0, 4, 6].diff() / 0.02


def test_chunks_leave_steps_between_them_and_co_prediction_none():
    chunks = coronal_steps(slab_stride=K, co_prediction=False)
    # centres 0, 5, ... 20 and the last slice, 22, whose chunk takes over between them
    jumps = {2: 5, 7: 5, 12: 5, 17: 5, 21: 2}
    expected = torch.zeros(22).double()
    for slice_before, height in jumps.items():
        expected[slice_before] = height
    torch.testing.assert_close(chunks, expected, rtol=0, atol=1e-5)
    for stride in (1, 2, 3, K):
        steps = coronal_steps(slab_stride=stride)
        # in the middle; at the ends, the end slice is repeated
        torch.testing.assert_close(steps[4:-4], torch.ones(14).double(), rtol=0, atol=1e-6)
        assert steps.max() < 1.5


def calls_of(num_slices: int = 23, **options: object) -> list[int]:
    """Slabs of each call of the network."""
    seen = []

    def network(x: Tensor, timesteps: Tensor, context: Tensor | None = None, source: Tensor | None = None) -> Tensor:
        seen.append(len(x))
        return source

    bridge(slab_size=K, batch_size=100, **options)(ramp(num_slices), network)
    return seen


def test_chunks_cost_one_evaluation_of_each_slice_in_every_step():
    assert calls_of(slab_stride=K, co_prediction=False) == [6, 6, 6]
    assert calls_of(slab_stride=K)[-1] == 23
    assert calls_of(num_slices=5, slab_stride=K, co_prediction=False) == [2, 2, 2]


@pytest.mark.parametrize("num_slices", [10, 11, 13, 15])
def test_chunks_know_nothing_of_each_other(num_slices):
    """But for the last one, which takes slices from the one before where they are no multiple of K."""
    network, source = tuned(), volume(num_slices)
    chunks = ((torch.arange(num_slices) + K // 2) // K).clamp(max=(num_slices - 1) // K)

    def changed(z: int, **options: object) -> Tensor:
        """Which slices change with slice z of the source."""
        other = source.clone()
        other[..., z] = 1 - other[..., z]
        inferer = bridge(slab_size=K, slab_stride=K, **options)
        return (inferer(source, network) != inferer(other, network)).flatten(0, 3).any(0)

    for z in range(1, num_slices - 1):  # the end slices are repeated beyond the volume
        alone = changed(z, co_prediction=False)
        assert alone[z]
        assert (chunks[alone] == chunks[z]).all()
    assert len(chunks[changed(num_slices // 2)].unique()) > 1


MEAN, STD = 0.5, 0.08


class ExactNoise:
    """E[eps | x_t] of volumes N(MEAN, STD^2) in [0, 1] whose slices correlate as the noise does."""

    def __init__(self, scheduler: GaussianDiffusionScheduler) -> None:
        self.scheduler = scheduler

    def __call__(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, source: Tensor | None = None
    ) -> Tensor:
        t = int(timesteps[0])
        b, variance = float(self.scheduler.target_weights[t]), float(self.scheduler.variances[t])
        mean, spread = 2 * MEAN - 1, (2 * STD) ** 2  # in [-1, 1]
        original = mean + b * spread / (b**2 * spread + variance) * (x - b * mean)
        return (x - b * original) / variance**0.5


@pytest.mark.parametrize("options", [{}, {"slab_stride": K}, {"slab_stride": K, "co_prediction": False}])
@pytest.mark.parametrize("rho", [0.0, 0.8, 1.0])
def test_an_exact_gaussian_has_its_mean_spread_and_correlation_along_z(rho, options):
    scheduler = GaussianDiffusionScheduler()
    sampling = {"num_inference_steps": 30, "sampler": "implicit_2", "timestep_spacing": "lambda"}
    inferer = ISTAInferer(scheduler, slab_size=K, noise_correlation=rho, **sampling, **options)
    output = inferer(torch.zeros(1, 1, 64, 64, 9, dtype=torch.float64), ExactNoise(scheduler))
    assert output.mean() == pytest.approx(MEAN, abs=0.004)
    assert output.std() == pytest.approx(STD, rel=0.05)
    deviation = (output - output.mean()) / output.std(correction=0)
    neighbours = deviation[..., :-1] * deviation[..., 1:]
    assert neighbours.mean() == pytest.approx(rho, abs=0.03)
