"""The training call and the network's range."""

import pytest
import torch

from scripts.codec import OrthonormalCodec, PixelCodec
from scripts.inferers import BridgeInferer
from scripts.schedulers import BrownianBridgeScheduler


def test_ranges_are_inverse():
    images = torch.tensor([0.0, 0.25, 1.0, 1.5])
    assert PixelCodec().encode(images).tolist() == [-1.0, -0.5, 1.0, 2.0]
    assert torch.equal(PixelCodec().decode(PixelCodec().encode(images)), images)


@pytest.mark.parametrize("prediction_type", ["gradient", "unit_gradient", "sample"])
def test_a_network_that_hits_its_target_knows_the_image(prediction_type):
    """The call hands the network x_t and y in [-1, 1]; from them and the target x0 comes back."""
    inferer = BridgeInferer(BrownianBridgeScheduler(prediction_type=prediction_type))
    x0, y = (inferer.encode(slabs) for slabs in torch.rand(2, 2, 3, 8, 6, dtype=torch.float64))
    noise, timesteps, key = torch.randn_like(x0), torch.tensor([40, 700]), torch.rand(2, 3, 128, dtype=torch.float64)
    target = inferer.target(x0, noise, timesteps, y)

    def network(x, timesteps, context=None, source=None):
        assert torch.equal(source, y)
        assert torch.equal(context, key)
        for i, t in enumerate(timesteps.tolist()):
            original = inferer.scheduler.predict_original_sample(target[i : i + 1], t, x[i : i + 1], source[i : i + 1])
            torch.testing.assert_close(original[0], x0[i], rtol=0, atol=2e-6)
        return target

    assert torch.equal(inferer(x0, network, noise, timesteps, y, context=key), target)


def test_half_precision_is_autocast_and_trains_float_weights():
    inferer = BridgeInferer(BrownianBridgeScheduler(), dtype=torch.bfloat16)
    layer = torch.nn.Conv2d(3, 3, 1)
    seen = []

    def network(x, timesteps, context=None, source=None):
        assert context is None
        assert x.is_contiguous(memory_format=torch.channels_last)
        seen.append(layer(x))
        return seen[0]

    x0, y, noise = torch.rand(3, 2, 3, 8, 6)
    prediction = inferer(x0, network, noise, torch.tensor([3, 4]), y)
    prediction.square().mean().backward()
    assert seen[0].dtype == torch.bfloat16
    assert prediction.dtype == torch.float32
    assert layer.weight.grad.abs().sum() > 0


def test_a_slab_of_a_latent_is_that_of_each_slice_and_conditions_shrink_with_it():
    codec = OrthonormalCodec(2)
    inferer = BridgeInferer(BrownianBridgeScheduler(), codec=codec, channels={"source": 2, "missing": 1})
    source, missing = torch.rand(1, 6, 8, 8), torch.rand(1, 3, 8, 8)
    states = inferer.encode(source, 2).unflatten(1, (2, 4, 3))
    for contrast in range(2):
        for k in range(3):
            alone = codec.encode(source[:, 3 * contrast + k][:, None])
            assert torch.equal(states[:, contrast, :, k], alone)
    assert torch.equal(inferer.endpoint_in(states.flatten(1, 3)), states[:, 0].flatten(1, 2))

    def network(x, timesteps, context=None, source=None, missing=None):
        assert source.shape == (1, 24, 4, 4)
        torch.testing.assert_close(missing[0, 0, 0, 0], whole[0, 0, :2, :2].mean())
        return x

    whole, x0 = missing, inferer.encode(torch.rand(1, 3, 8, 8))
    inferer(x0, network, torch.randn_like(x0), torch.tensor([5]), states.flatten(1, 3), missing=missing)


@pytest.mark.parametrize("factor", [1, 2])
def test_what_is_no_slab_is_handed_on_as_it_is(factor):
    inferer = BridgeInferer(BrownianBridgeScheduler(), codec=OrthonormalCodec(factor) if factor > 1 else None)
    told = []

    def network(x, timesteps, context=None, source=None, target_contrast=None):
        told.append(target_contrast)
        return x

    x0 = inferer.encode(torch.rand(3, 3, 8, 8))
    wanted = torch.tensor([0.0, 4.0, 2.0])
    inferer(x0, network, torch.randn_like(x0), torch.tensor([5, 6, 7]), x0, target_contrast=wanted)
    assert torch.equal(told[0], wanted)
