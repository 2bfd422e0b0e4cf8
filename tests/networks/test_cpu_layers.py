"""The layers for training on a CPU are the layers they replace: values, every gradient, names."""

import pytest
import torch
from monai.networks.nets.diffusion_model_unet import WrappedUpsample
from torch import Tensor, nn
from torch.nn import functional

from scripts.networks import BridgeUNet
from scripts.networks.cpu_layers import GroupNorm, UpsampleConv, use_cpu_layers

LAST = {"memory_format": torch.channels_last}
TINY = {"channels": (16, 32), "num_res_blocks": 1, "norm_num_groups": 4, "num_head_channels": 16, "space_to_depth": 2}


def features(*shape: int, mean: float = 0.3, dtype: torch.dtype = torch.float64) -> Tensor:
    """Features with channels last whose planes differ in mean and size."""
    generator = torch.Generator().manual_seed(sum(shape))
    x, planes = torch.randn(shape, generator=generator), torch.randn(2, *shape[:2], 1, 1, generator=generator)
    return (x * planes[0].exp() + planes[1] + mean).to(dtype).contiguous(**LAST)


def with_gradients(call: object, *inputs: Tensor) -> list[Tensor]:
    """The result of a call, and the gradients of the inputs for one random gradient of the result."""
    inputs = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in inputs]
    result = call(*inputs)
    along = features(*result.shape, dtype=result.dtype)
    return [result.detach(), *torch.autograd.grad(result, inputs, along)]


def film(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalisation, then scale and shift, in PyTorch's own operations."""
    h = functional.group_norm(x, 4, weight, bias, 1e-5)
    return (h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]).to(x.dtype)


def fused_film(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The same by the layer, whose parameters are given."""
    return torch.func.functional_call(norm_layer(), {"weight": weight, "bias": bias}, (x, scale, shift))


def norm_layer(channels: int = 12) -> GroupNorm:
    return GroupNorm.like(nn.GroupNorm(4, channels))


def film_inputs(mean: float, dtype: torch.dtype) -> list[Tensor]:
    x = features(3, 12, 18, 16, mean=mean, dtype=dtype)
    torch.manual_seed(0)
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    return [x, *(torch.randn(12, dtype=parameters) for _ in range(2)), *torch.randn(2, 3, 12, dtype=parameters)]


class TestGroupNorm:
    @pytest.mark.parametrize("mean", [0.3, 30.0])
    def test_values_and_gradients_are_those_of_group_norm_and_film(self, mean: float) -> None:
        inputs = film_inputs(mean, torch.float64)
        assert "GroupNormOfPlanes" in fused_film(*[t.requires_grad_() for t in inputs]).grad_fn.name()
        for ours, theirs in zip(with_gradients(fused_film, *inputs), with_gradients(film, *inputs), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("mean", [0.3, 30.0])
    def test_bfloat16_loses_as_little_as_pytorchs_own(self, mean: float) -> None:
        inputs = film_inputs(mean, torch.bfloat16)
        exact = with_gradients(film, *[t.double() for t in inputs])
        theirs, ours = with_gradients(film, *inputs), with_gradients(fused_film, *inputs)
        for a, b, c in zip(ours, theirs, exact, strict=True):
            assert (a - c).norm() <= 1.5 * (b - c).norm() + 5e-4 * c.norm()

    def test_a_constant_plane_has_a_finite_gradient(self) -> None:
        x = torch.full((2, 12, 16, 16), 0.7).contiguous(**LAST).requires_grad_()
        norm_layer()(x).square().sum().backward()
        assert x.grad.isfinite().all()

    def test_without_gradients_or_channels_last_it_is_pytorchs_own(self) -> None:
        norm, x = norm_layer(), features(2, 12, 16, 16, dtype=torch.float32)
        expected = functional.group_norm(x, 4)
        with torch.no_grad():
            torch.testing.assert_close(norm(x), expected, rtol=0, atol=0)
        assert "NativeGroupNorm" in norm(x.contiguous()).grad_fn.name()
        traced = torch.jit.trace(norm, x)
        assert "aten::group_norm" in str(traced.inlined_graph)


class TestUpsampleConv:
    @staticmethod
    def _block() -> WrappedUpsample:
        torch.manual_seed(0)
        sizes = {"spatial_dims": 2, "in_channels": 6, "out_channels": 6, "scale_factor": 2.0}
        post = nn.Sequential()
        post.add_module("conv", nn.Conv2d(6, 5, 3, padding=1))
        return WrappedUpsample(mode="nontrainable", interp_mode="nearest", align_corners=None, post_conv=post, **sizes)

    def test_values_and_gradients_are_those_of_both_steps(self) -> None:
        plain = self._block().double()
        assert UpsampleConv.replaces(plain)
        fused, conv = UpsampleConv(plain), plain.postconv.conv
        inputs = features(2, 6, 5, 7), conv.weight, conv.bias

        def call(block: nn.Module, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            given = {"postconv.conv.weight": weight, "postconv.conv.bias": bias}
            return torch.func.functional_call(block, given, (x,))

        results = [with_gradients(lambda *t, block=block: call(block, *t), *inputs) for block in (fused, plain)]
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs)

    @torch.no_grad()
    def test_without_a_gradient_it_is_the_same(self) -> None:
        plain, x = self._block().double(), features(2, 6, 5, 7)
        fused = UpsampleConv(plain)
        torch.testing.assert_close(fused(x), plain(x))
        assert torch.equal(fused(x.contiguous()), plain(x.contiguous()))  # these layouts stay with both steps

    def test_bfloat16_loses_as_little_as_both_steps(self) -> None:
        plain, x = self._block(), features(2, 6, 8, 8, dtype=torch.float32)
        exact = plain(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours, theirs = UpsampleConv(plain)(x), plain(x)
        assert ours.dtype == torch.bfloat16
        assert (ours - exact).norm() <= 1.5 * (theirs - exact).norm()

    def test_an_upsampling_without_a_convolution_stays(self) -> None:
        block = WrappedUpsample(2, 4, 4, 2.0, mode="nontrainable", interp_mode="nearest", align_corners=None)
        assert not UpsampleConv.replaces(block)


@pytest.mark.parametrize("resblock_updown", [False, True])
def test_gradients_of_a_whole_network_are_the_plain_ones(resblock_updown: bool) -> None:
    torch.manual_seed(0)
    network = BridgeUNet(**TINY, style_embedding=True, resblock_updown=resblock_updown).double()
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    x, source = torch.randn(2, 2, 3, 48, 64, dtype=torch.float64)
    style = torch.randn(2, 3, 128, dtype=torch.float64)
    taken, gradients = [], []
    for layout in (torch.channels_last, torch.contiguous_format):
        network.to(memory_format=layout).zero_grad()
        slabs = (slab.contiguous(memory_format=layout) for slab in (x, source))
        predicted = network(next(slabs), torch.tensor([3, 700]), style, next(slabs))
        taken.append(any("GroupNormOfPlanes" in name for name in functions_behind(predicted)))
        predicted.square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters()})
    assert taken == [True, False]
    torch.testing.assert_close(*gradients)


def functions_behind(result: Tensor) -> set[str]:
    """Names of the autograd functions that a result comes from."""
    names, todo, seen = set(), [result.grad_fn], set()
    while todo:
        function = todo.pop()
        if function is not None and function not in seen:
            seen.add(function)
            names.add(function.name())
            todo += [following for following, _ in function.next_functions]
    return names


def test_names_and_first_weights_stay() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 12, 3), nn.GroupNorm(4, 12, eps=1e-3), TestUpsampleConv._block())

    plain, replaced = build(), use_cpu_layers(build())
    assert [type(layer) for layer in replaced] == [nn.Conv2d, GroupNorm, UpsampleConv]
    assert replaced[1].eps == 1e-3
    assert list(replaced.state_dict()) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(replaced.state_dict()[name], value, rtol=0, atol=0)
