"""Codecs: ranges, inverses, and the state of a latent run that is the pixels' own."""

from types import SimpleNamespace

import pytest
import torch
from monai.bundle import ConfigParser
from monai.losses import JukeboxLoss
from monai.networks.nets import AutoencoderKL
from torch import nn

from scripts.codec import LatentCodec, OrthonormalCodec, PixelCodec
from scripts.engines import decoder_sensitivity
from scripts.errors import CaseError
from scripts.inferers import BridgeInferer, ISTAInferer
from scripts.losses import AutoencoderLoss
from scripts.schedulers import SAMPLERS, BrownianBridgeScheduler, GaussianDiffusionScheduler, Sampler
from scripts.weights import load_codec


@pytest.mark.parametrize("codec", [PixelCodec(), OrthonormalCodec(2)])
def test_codecs_are_exact_inverses(codec):
    images = torch.rand(3, 1, 4, 6, dtype=torch.float64)
    states = codec.encode(images)
    assert states.shape == (3, codec.channels, 4 // codec.factor, 6 // codec.factor)
    torch.testing.assert_close(codec.decode(states), images, rtol=0, atol=1e-15)
    torch.testing.assert_close(states.square().sum(), (2 * images - 1).square().sum())


@pytest.mark.parametrize("sampler", ["implicit", "mean_path"])
def test_a_latent_run_of_the_conjugated_network_is_the_pixel_run(sampler):
    def network(x, timesteps, context=None, source=None):
        return torch.tanh(x.roll(1, 1) - 0.5 * source)

    def pixels(slabs):
        return torch.nn.functional.pixel_shuffle(slabs.unflatten(1, (4, 3)).movedim(1, 2).flatten(1, 2), 2)

    def latent(x, timesteps, context=None, source=None):
        predicted = torch.nn.functional.pixel_unshuffle(network(pixels(x), timesteps, source=pixels(source)), 2)
        return predicted.unflatten(1, (3, 4)).movedim(1, 2).flatten(1, 2)

    volume = torch.rand(2, 1, 6, 8, 5, dtype=torch.float64)
    options = {"num_inference_steps": 5, "sampler": sampler, "num_corrections": 1, "correction_norm": "reference_code"}
    scheduler = BrownianBridgeScheduler(prediction_type="sample")
    expected = ISTAInferer(scheduler, **options)(volume, network)
    found = ISTAInferer(scheduler, codec=OrthonormalCodec(2), **options)(volume, latent)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("codec", [OrthonormalCodec(2), OrthonormalCodec(4)])
def test_an_echo_in_a_latent_is_the_source_voxel_by_voxel(codec):
    """Nothing is moved or exchanged on the way through slabs, codec and windows."""

    def echo(x, timesteps, context=None, source=None):
        return source

    volume = torch.rand(2, 1, 8, 12, 23, dtype=torch.float64)
    windows = {"slab_size": 9, "slab_stride": 9, "final_stride": 5, "num_inference_steps": 3}
    inferer = ISTAInferer(BrownianBridgeScheduler(prediction_type="sample"), codec=codec, **windows)
    torch.testing.assert_close(inferer(volume, echo), volume, rtol=0, atol=1e-14)


class DeafCodec(OrthonormalCodec):
    """Its decoder makes nothing of the last channel and twice as much of the first."""

    def decode(self, states):
        return super().decode(states * torch.tensor([2.0, 1.0, 1.0, 0.0])[:, None, None])


def test_channels_are_worth_what_the_decoder_makes_of_them():
    slabs = [{"target": torch.rand(3, 8, 6)} for _ in range(5)]
    torch.testing.assert_close(decoder_sensitivity(OrthonormalCodec(2), slabs), torch.ones(4))
    expected = torch.tensor([4.0, 1.0, 1.0, 0.0]) * 4 / 6
    torch.testing.assert_close(decoder_sensitivity(DeafCodec(2), slabs), expected)


def test_a_gaussian_comes_out_of_diffusion_whatever_the_steps():
    """x0 ~ N(0.4, 0.1^2) in the network's range, with its exact noise."""
    scheduler = GaussianDiffusionScheduler()

    def network(x, timesteps, context=None, source=None):
        b, d = float(scheduler.target_weights[timesteps[0]]), float(scheduler.variances[timesteps[0]])
        return d**0.5 * (x - b * 0.4) / (b**2 * 0.01 + d)

    inferer = ISTAInferer(scheduler, num_inference_steps=200, sampler="implicit", slab_size=1)
    states = 2 * inferer(torch.rand(1, 1, 32, 32, 8, dtype=torch.float64), network) - 1
    assert float(states.mean()) == pytest.approx(0.4, abs=0.005)
    assert float(states.std()) == pytest.approx(0.1, abs=0.01)


def test_monai_s_ddim_leaves_its_own_grid_and_ours_does_not():
    """The mean of x0 ~ N(0.7, 0.3^2) under exact noise, from the exact mean at the last timestep."""
    from monai.networks.schedulers import DDIMScheduler

    theirs, ours = DDIMScheduler(num_train_timesteps=1000, clip_sample=False), GaussianDiffusionScheduler()
    theirs.set_timesteps(5)
    ours.set_timesteps(5)

    def noise(x, t):
        b, d = float(ours.target_weights[t]), float(ours.variances[t])
        return d**0.5 * (x - b * 0.7) / (b**2 * 0.09 + d)

    x = torch.full((1, 1, 1, 1), 0.7 * float(ours.target_weights[-1]), dtype=torch.float64)
    y = x.clone()
    for t in theirs.timesteps.tolist():
        x = theirs.step(noise(x, t), t, x)[0]
    steps = ours.timesteps.tolist()
    for t, u in zip(steps, [*steps[1:], None], strict=True):
        y = ours.step(noise(y, t), t, u, y, y, "implicit")[0]
    assert float(y) == pytest.approx(0.7, abs=1e-6)
    assert float(x) == pytest.approx(0.650, abs=0.002)


def test_a_new_sampler_is_a_function_and_an_entry(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "mine", Sampler(lambda s, t, u, eta, p: s.implicit_step(t, u), second_order=True))
    with pytest.raises(ValueError, match="lambda grid only"):
        ISTAInferer(BrownianBridgeScheduler(), sampler="mine")
    options = {"timestep_spacing": "lambda", "num_inference_steps": 4}
    volume = torch.rand(1, 1, 4, 4, 3)
    mine, known = (
        ISTAInferer(BrownianBridgeScheduler(), sampler=name, **options)(volume, lambda x, *_, **__: x.sin())
        for name in ("mine", "implicit")
    )
    assert torch.equal(mine, known)
    monkeypatch.setitem(SAMPLERS, "heun", SAMPLERS["mine"]._replace(evaluations=2))
    with pytest.raises(ValueError, match="2 times a step"):
        ISTAInferer(BrownianBridgeScheduler(), sampler="heun", **options)


def test_a_latent_is_not_mirrored():
    """Mirroring the latent would not mirror the image."""
    images = torch.rand(1, 1, 4, 6)
    codec = OrthonormalCodec(2)
    assert not torch.equal(codec.decode(codec.encode(images).flip(-2)), images.flip(-2))
    with pytest.raises(ValueError, match="mirrored is for pixels"):
        ISTAInferer(BrownianBridgeScheduler(), codec=codec, mirrored=True)


def test_noise_is_correlated_along_z():
    inferer = ISTAInferer(BrownianBridgeScheduler(), noise_correlation=0.8)
    slices = torch.zeros(1, 6, 1, 200, 200)
    drawn = SimpleNamespace(num_slices=4, window=slice(0, 6))  # slabs of three: one slice more at each end
    noise = inferer._noise(slices, torch.Generator().manual_seed(0), drawn)[0].flatten(1)
    expected = 0.8 ** (torch.arange(6)[:, None] - torch.arange(6)).abs()
    torch.testing.assert_close(torch.corrcoef(noise), expected, rtol=0, atol=0.03)


def test_several_contrasts_tell_the_network_which_are_there():
    seen = {}

    def network(x, timesteps, context=None, source=None, presence=None, tissue=None):
        seen.update(source=source.shape, presence=presence[0].tolist(), tissue=tissue.shape)
        return x

    volume = torch.rand(1, 4, 6, 6, 4)
    volume[:, 1] = 0
    channels = {"source": 2, "tissue": 2}
    inferer = ISTAInferer(BrownianBridgeScheduler(), num_inference_steps=2, channels=channels, endpoint="mean_present")
    assert inferer(volume, network).shape == (1, 1, 6, 6, 4)
    assert seen == {"source": (4, 6, 6, 6), "presence": [1, 0], "tissue": (4, 6, 6, 6)}


def tiny_codec(measured=True, **kwargs):
    torch.manual_seed(0)
    no_attention = {"with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False}
    sizes = {"channels": (8, 8, 8), "num_res_blocks": 1, "latent_channels": 4, "norm_num_groups": 4}
    levels = {"attention_levels": (False,) * 3, **no_attention}
    codec = LatentCodec(AutoencoderKL(2, 1, 1, **sizes, **levels), **kwargs).eval()
    if measured:
        codec.measure(torch.rand(6, 1, 16, 24))
    return codec


def test_the_compact_codec_has_its_size(bundle_root):
    parser = ConfigParser()
    parser.read_config([str(bundle_root / "configs" / name) for name in ("train.json", "autoencoder.json")])
    codec = parser.get_parsed_content("network_def")
    assert sum(parameter.numel() for parameter in codec.parameters()) == 697_761
    assert (codec.channels, codec.factor) == (8, 4)


def test_the_paper_s_codec_has_its_size(bundle_root):
    parser = ConfigParser()
    names = ("train.json", "autoencoder.json", "autoencoder_paper.json")
    parser.read_config([str(bundle_root / "configs" / name) for name in names])
    codec = parser.get_parsed_content("network_def")
    assert sum(parameter.numel() for parameter in codec.parameters()) == 28_105_128
    assert (codec.channels, codec.factor) == (3, 4)


@torch.no_grad()
def test_a_latent_is_the_encoder_s_mean_and_never_a_draw():
    codec, images = tiny_codec(), torch.rand(5, 2, 16, 24)
    states = codec.encode(images)
    assert states.shape == (5, 8, 4, 6)
    assert torch.equal(states, codec.encode(images))
    mean, _ = codec.autoencoder.encode(2 * images[:, 1:] - 1)
    torch.testing.assert_close(states[:, 4:] * codec.latent_std + codec.latent_mean, mean, rtol=0, atol=1e-5)
    assert codec.decode(states[:, :4]).shape == (5, 1, 16, 24)
    decoded = (codec.autoencoder.decode(mean) + 1) / 2
    torch.testing.assert_close(codec.decode(states[:, 4:]), decoded, rtol=0, atol=1e-5)


@torch.no_grad()
def test_each_channel_of_a_measured_latent_is_standardised():
    codec, images = tiny_codec(), torch.rand(40, 1, 16, 24)
    codec.measure(images)
    std, mean = torch.std_mean(codec.encode(images), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(std, torch.ones(4), rtol=0, atol=1e-4)


def test_empty_images_are_encoded_as_one(monkeypatch):
    """Absent contrasts cost nothing, and what is there has the state it has alone, in its own place."""
    codec, images = tiny_codec(batch_size=2), torch.rand(4, 3, 16, 24)
    images[:, 1] = 0
    images[2] = 0
    alone = torch.cat([codec.encode(image[None, None]) for image in images.flatten(0, 1)]).unflatten(0, (4, 3))
    encoded, encode = [], codec.autoencoder.encode
    monkeypatch.setattr(codec.autoencoder, "encode", lambda part: encoded.append(len(part)) or encode(part))
    states = codec.encode(images)
    torch.testing.assert_close(states, alone.flatten(1, 2), rtol=0, atol=1e-5)
    assert torch.equal(states[2, :4], states[0, 4:8])
    assert sum(encoded) == 6 + 1
    encoded.clear()
    codec.encode(torch.zeros(2, 1, 16, 24))
    assert sum(encoded) == 1


def test_a_codec_without_a_scale_is_refused():
    with pytest.raises(ValueError, match="has not been trained"):
        tiny_codec(measured=False).encode(torch.rand(1, 1, 16, 16))


def test_a_codec_that_was_never_trained_is_named(tmp_path):
    untrained, network = tiny_codec(measured=False), nn.Module()
    network.codec = tiny_codec(measured=False)
    torch.save(untrained.state_dict(), tmp_path / "mine.pt")
    with pytest.raises(CaseError, match=r"^mine\.pt is a codec that was never trained"):
        load_codec(network, tmp_path / "mine.pt")
    torch.save(tiny_codec().state_dict(), tmp_path / "mine.pt")
    load_codec(network, tmp_path / "mine.pt")
    assert network.codec.is_measured


def test_the_codec_of_a_network_in_its_latent_serves_another(tmp_path):
    codec, other, network = tiny_codec(), nn.Module(), nn.Module()
    other.codec, other.network = codec, nn.Linear(2, 2)
    torch.save(other.state_dict(), tmp_path / "whole.pt")
    network.codec = tiny_codec(measured=False)
    load_codec(network, tmp_path / "whole.pt")
    torch.testing.assert_close(network.codec.state_dict(), codec.state_dict(), rtol=0, atol=0)


@torch.no_grad()
def test_a_slice_does_not_depend_on_its_company():
    codec, alone = tiny_codec(), tiny_codec(batch_size=1)
    images = torch.rand(5, 1, 16, 24)
    torch.testing.assert_close(codec.encode(images), alone.encode(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(codec.encode(images.double()).float(), codec.encode(images), rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_source_is_its_state_and_then_its_pixels():
    codec, plain, images = tiny_codec(source_pixels=True), tiny_codec(), torch.rand(2, 3, 16, 24)
    assert (codec.channels, codec.source_channels, plain.source_channels) == (4, 20, 4)
    assert torch.equal(plain.encode_source(images), codec.encode(images))
    states, pixels = codec.encode_source(images).unflatten(1, (3, 20)).split([4, 16], dim=2)
    assert torch.equal(states.flatten(1, 2), codec.encode(images))
    lossless = OrthonormalCodec(4).decode(pixels.flatten(0, 1)).unflatten(0, (2, 3))[:, :, 0]
    torch.testing.assert_close(lossless, images, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("endpoint", ["first", "mean_present"])
def test_training_and_sampling_see_one_source_and_start_from_its_state(endpoint):
    codec, scheduler, seen = tiny_codec(source_pixels=True), BrownianBridgeScheduler(prediction_type="sample"), []
    arguments = {"codec": codec, "channels": {"source": 2}, "endpoint": endpoint}
    volume = torch.rand(1, 2, 16, 24, 3)

    def network(x, timesteps, source=None, **_):
        seen.append((x, source))
        return x

    ISTAInferer(scheduler, slab_size=3, num_inference_steps=1, **arguments)(volume, network)
    slab = volume.movedim(-1, 2).flatten(1, 2)
    training = BridgeInferer(scheduler, **arguments)
    source = training.encode_source(slab)
    assert source.shape == (1, 2 * 20 * 3, 4, 6)
    state, whole = seen[0][0][1:2], seen[0][1][1:2]  # the slab in the middle
    assert torch.equal(whole, source)
    start = training.endpoint_in(source, torch.ones(1, 2))
    each = [training.encode(contrast) for contrast in slab.split(3, dim=1)]
    torch.testing.assert_close(start, each[0] if endpoint == "first" else sum(each) / 2, rtol=0, atol=1e-6)
    torch.testing.assert_close(state, start, rtol=0, atol=1e-6)


def test_the_fingerprint_is_that_of_the_weights_on_disk():
    codec, same, other = tiny_codec(), tiny_codec(measured=False), tiny_codec()
    half = {name: value.half() for name, value in codec.state_dict().items()}
    same.load_state_dict(half)
    other.latent_mean += 0.01
    assert codec.fingerprint() == same.fingerprint() != other.fingerprint()


def test_what_a_codec_is_trained_by():
    """Mean absolute error, squared error of the spectrum's amplitudes, KL divergence of N(mean, std^2) to N(0, 1)."""
    images, reconstruction = torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    mean, std = torch.randn(2, 3, 2, 2), torch.rand(2, 3, 2, 2) + 0.5
    normal = torch.distributions.Normal
    divergence = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).sum() / 2
    wanted = 2 * images - 1
    expected = (reconstruction - wanted).abs().mean() + 0.1 * JukeboxLoss(spatial_dims=2)(reconstruction, wanted)
    loss = AutoencoderLoss(kl_weight=0.01)((reconstruction, mean, std), images)
    torch.testing.assert_close(loss, expected + 0.01 * divergence)


def test_a_constant_image_has_a_gradient():
    """Its amplitudes are 0, where the square root has none."""
    reconstruction = torch.full((1, 1, 8, 8), -0.5, requires_grad=True)
    latent = torch.zeros(1, 1, 2, 2)
    AutoencoderLoss()((reconstruction, latent, latent + 1), torch.zeros(1, 1, 8, 8)).backward()
    assert reconstruction.grad.isfinite().all()
