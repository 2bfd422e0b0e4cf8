"""Weights of conditions against the paper's formulas, and what an absent contrast must not change."""

import pytest
import torch
from monai.networks.nets.diffusion_model_unet import DiffusionUnetDownsample
from torch import Tensor, nn

from scripts.networks import (
    AttentionalFeatureFusion,
    AutoWeight,
    BottleneckResidual,
    BridgeUNet,
    FiLMResnetBlock,
    WideDownsample,
    parameter_groups,
    use_bottleneck_residuals,
    use_volumetric_layers,
    use_wide_downsampling,
)

GROUPS, CHANNELS = (2, 2, 2), 7  # three contrasts of two channels, and a tissue
TINY = {"slab_size": 1, "channels": (8, 16), "num_res_blocks": 1, "norm_num_groups": 4, "num_head_channels": 8}


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(module: nn.Module) -> nn.Module:
    """Random values for all parameters."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def number_of_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def auto_weight(**options: object) -> AutoWeight:
    return filled(AutoWeight(CHANNELS, GROUPS, **options)).requires_grad_(False)


def sigmoid(x: float) -> float:
    return float(torch.tensor(x, dtype=torch.float64).sigmoid())


def test_automatic_weights_are_the_paper_s_formulas():
    """Eq. 8 to 10, channel by channel."""
    y, layer = features(2, CHANNELS, 4, 5), auto_weight(activation="sigmoid")
    mu, nu, o = (p.tolist() for p in (layer.embedding_weight, layer.gate_weight, layer.gate_bias))
    for image, found in zip(y, layer(y), strict=True):
        g = [mu[c] * (float(image[c].square().sum()) + 1e-5) ** 0.5 for c in range(CHANNELS)]
        norm = (sum(value**2 for value in g) + 1e-5) ** 0.5
        for c in range(CHANNELS):
            gain = 1 + sigmoid(nu[c] * CHANNELS**0.5 * g[c] / norm + o[c])
            torch.testing.assert_close(found[c], image[c] * gain, rtol=1e-12, atol=0)


@pytest.mark.parametrize("presence", [None, [1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
def test_squares_have_the_mean_1_over_the_channels_that_are_there(presence):
    y, layer = 3 * features(1, CHANNELS, 4, 5), auto_weight()
    given = None if presence is None else torch.tensor([presence])
    squares = layer.normalised(y, given).square()
    count = CHANNELS if presence is None else 2 * sum(presence) + 1
    assert float(squares.sum()) == pytest.approx(count, rel=1e-5)


def test_gains_do_not_depend_on_scale_or_resolution():
    y, layer = 100 * features(1, CHANNELS, 16, 16), auto_weight()
    for other in (7 * y, y.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)):
        torch.testing.assert_close(layer.gains(other), layer.gains(y), rtol=0, atol=1e-7)


def test_the_start_is_the_identity_or_the_paper_s_one_and_a_half():
    y = features(2, CHANNELS, 4, 5)
    assert torch.equal(AutoWeight(CHANNELS, GROUPS).double()(y), y)
    assert torch.equal(AutoWeight(CHANNELS, activation="sigmoid").double()(y), 1.5 * y)


def test_gains_suppress_with_tanh_and_cannot_with_the_sigmoid():
    y = features(1, CHANNELS, 4, 5)
    for activation, low in (("tanh", 0.0), ("sigmoid", 1.0)):
        layer = auto_weight(activation=activation)
        layer.gate_weight.data.zero_()
        for bias, gain in ((-50.0, low), (50.0, 2.0)):
            layer.gate_bias.data.fill_(bias)
            assert float(layer.gains(y)[0, 0]) == pytest.approx(gain)


def test_gradients_are_finite_at_zero():
    y, layer = torch.zeros(1, CHANNELS, 4, 5, dtype=torch.float64, requires_grad=True), auto_weight()
    layer.requires_grad_(True)
    layer(y).sum().backward()
    assert y.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("absent", [(0,), (1,), (2,), (0, 1), (0, 2)])
def test_an_absent_contrast_is_to_the_bit_one_that_never_was(dtype, absent):
    layer, y = auto_weight(), features(3, CHANNELS, 9, 7).to(dtype)
    layer.to(torch.promote_types(dtype, torch.float32))
    there = [group not in absent for group in range(3)]
    kept = torch.tensor([there[c // 2] if c < 6 else True for c in range(CHANNELS)])
    smaller = AutoWeight(int(kept.sum()), GROUPS[: sum(there)]).to(layer.gate_bias.dtype)
    smaller.load_state_dict({name: value[kept] for name, value in layer.state_dict().items()})
    presence = torch.tensor(there).expand(3, 3)
    found = layer(y, presence)
    assert torch.equal(found[:, kept], smaller(y[:, kept]))
    assert not found[:, ~kept].any()
    anything = y.clone()
    anything[:, ~kept] = torch.nan
    assert torch.equal(layer(anything, presence), found)
    assert torch.equal(layer(anything.flip(1)[:, [6, 5, 4, 3, 2, 1, 0]], presence), found)


def test_each_volume_of_a_batch_has_its_own_presence():
    layer, y = auto_weight(), features(2, CHANNELS, 4, 5)
    presence = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    both = layer(y, presence)
    for n in range(2):
        assert torch.equal(both[n : n + 1], layer(y[n : n + 1], presence[n : n + 1]))
    assert torch.equal(layer(y, torch.ones(2, 3)), layer(y))


def test_nothing_there_at_all_is_no_division_by_zero():
    found = AutoWeight(4, (2, 2))(torch.ones(1, 4, 3, 3), torch.zeros(1, 2))
    assert not found.any()


def test_presence_and_groups_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"presence has shape \(1, 2\); it must be \(n, 3\)"):
        auto_weight()(features(1, CHANNELS, 2, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"groups are \[4, 4\], more than the 7 channels"):
        AutoWeight(7, (4, 4))
    with pytest.raises(ValueError, match="'relu' is not a valid Activation; use one of tanh, sigmoid"):
        AutoWeight(7, activation="relu")


def test_automatic_weights_are_spared_weight_decay_and_nothing_else():
    network = nn.Sequential(nn.Conv2d(4, 4, 1), AutoWeight(4))
    decayed, spared = parameter_groups(network, 0.02)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.02, 0.0)
    assert [p.shape for p in decayed["params"]] == [p.shape for p in network[0].parameters()]
    assert {id(p) for p in spared["params"]} == {id(p) for p in network[1].parameters()}
    torch.optim.AdamW(parameter_groups(network))
    assert len(parameter_groups(nn.Linear(2, 2))) == 1


def fusion(channels: int = 6) -> AttentionalFeatureFusion:
    return filled(AttentionalFeatureFusion(channels))


def test_attentional_fusion_lies_between_what_it_joins():
    x, y = features(2, 6, 5, 4), features(2, 6, 5, 4, seed=1)
    layer = fusion()
    found = layer(x, y)
    assert (found >= torch.minimum(x, y)).all()
    assert (found <= torch.maximum(x, y)).all()
    assert torch.equal(layer(x, x), x)
    share = (found - y) / (x - y)
    assert float(share.detach().std()) > 0.1
    torch.testing.assert_close(layer(y, x), x + y - found)  # the weights see the sum alone


def test_attentional_fusion_starts_as_the_mean_and_learns():
    x, y = features(2, 8, 5, 4), features(2, 8, 5, 4, seed=1)
    layer = AttentionalFeatureFusion(8).double()
    torch.testing.assert_close(layer(x, y), (x + y) / 2, rtol=0, atol=1e-15)
    layer(x, y).square().sum().backward()
    assert layer.local_attention[-1].weight.grad.abs().min() > 0
    assert layer.global_attention[-1].weight.grad.abs().min() > 0


@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
@pytest.mark.parametrize("depthwise", [True, False])
def test_wide_downsampling_gives_the_sizes_of_the_convolution_it_replaces(size, depthwise):
    x = features(2, 8, *size).float()
    plain = DiffusionUnetDownsample(2, 8, use_conv=True)
    assert WideDownsample(8, depthwise=depthwise)(x).shape == plain(x).shape


def test_wide_downsampling_sees_seven_pixels_and_has_its_sizes():
    layer = filled(WideDownsample(8))
    x = features(1, 8, 24, 24).requires_grad_()
    outputs = [convolution(x) for convolution in layer.convolutions]
    for output, reach in zip(outputs, (5, 7), strict=True):
        (gradient,) = torch.autograd.grad(output[0, 0, 6, 6], x, retain_graph=True)
        rows = gradient[0].abs().sum(dim=(0, 2)).nonzero().flatten()
        assert int(rows[-1] - rows[0]) + 1 == reach
        assert not gradient[0, 1:].any()
    assert number_of_parameters(WideDownsample(128)) == pytest.approx(27e3, rel=0.02)
    assert number_of_parameters(WideDownsample(128, depthwise=False)) == pytest.approx(1.23e6, rel=0.01)


def bridge(**options: object) -> BridgeUNet:
    torch.manual_seed(0)
    return BridgeUNet(**{**TINY, "resblock_updown": False, **options}).eval()


def test_a_network_takes_wide_downsampling():
    network = use_wide_downsampling(bridge(channels=(8, 16, 16)))
    assert [type(block.downsampler) for block in network.down_blocks] == [WideDownsample, WideDownsample, type(None)]
    assert network(torch.randn(2, 2, 8, 12)).shape == (2, 1, 8, 12)
    with pytest.raises(ValueError, match="give it resblock_updown=False"):
        use_wide_downsampling(bridge(resblock_updown=True))


@pytest.mark.parametrize("options", [{}, {"down": True}, {"up": True}, {"out_channels": 8}])
def test_a_bottleneck_starts_as_the_shortcut_like_the_block_it_replaces(options):
    plain = FiLMResnetBlock(2, 8, 16, norm_num_groups=4, **options)
    block = BottleneckResidual.like(plain)
    for name in ("skip_connection", "upsample", "downsample"):
        setattr(block, name, getattr(plain, name))
    x, emb = torch.randn(2, 8, 4, 6), torch.randn(2, 16)
    torch.testing.assert_close(block(x, emb), plain(x, emb))
    assert number_of_parameters(block) < number_of_parameters(plain) / 2


def test_a_bottleneck_sees_its_neighbours_and_the_embedding():
    block = filled(BottleneckResidual(2, 8, 16, norm_num_groups=4)).double()
    x, emb = features(1, 8, 9, 9), features(1, 16)
    changed = x.clone()
    changed[0, :, 4, 4] = x[0, torch.arange(7, -1, -1), 4, 4]
    assert (block(x, emb) - block(x, emb + 1)).abs().max() > 0.01
    assert (block(changed, emb) - block(x, emb))[0, :, 3:6, 3:6].abs().amax(0).min() > 1e-5


def test_a_network_takes_bottlenecks_in_its_encoder_and_layers_along_z_behind_them():
    network = use_bottleneck_residuals(bridge(num_res_blocks=2))
    assert all(isinstance(resnet, BottleneckResidual) for block in network.down_blocks for resnet in block.resnets)
    assert not any(isinstance(resnet, BottleneckResidual) for block in network.up_blocks for resnet in block.resnets)
    x = torch.randn(4, 2, 8, 12)
    expected = network(x)
    assert torch.equal(use_volumetric_layers(network, 2)(x), expected)
