"""Block matching against loops, its limits, and filters that change nothing until they are trained."""

import pytest
import torch
from torch import Tensor

from scripts.networks import BlockMatching, BridgeUNet, CooperativeFilter, use_cooperative_filtering

TINY = {
    **{"slab_size": 1, "channels": (8, 16), "num_res_blocks": 1, "norm_num_groups": 4, "num_head_channels": 8},
    **{"resblock_updown": False},
}


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matched_slowly(x: Tensor, patch: int, stride: int, top_k: int, temperature: float) -> Tensor:
    """One image (C, H, W), block by block."""
    places = [
        (i, j) for i in range(0, x.shape[1] - patch + 1, stride) for j in range(0, x.shape[2] - patch + 1, stride)
    ]
    blocks = [x[:, i : i + patch, j : j + patch] for i, j in places]
    total, counts = torch.zeros_like(x), torch.zeros_like(x)
    for (i, j), block in zip(places, blocks, strict=True):
        distances = [float((block - other).square().mean()) for other in blocks]
        nearest = sorted(range(len(blocks)), key=distances.__getitem__)[:top_k]
        weights = torch.tensor([-distances[n] / temperature for n in nearest], dtype=x.dtype).softmax(0)
        mean = sum(weight * blocks[n] for weight, n in zip(weights, nearest, strict=True))
        total[:, i : i + patch, j : j + patch] += mean
        counts[:, i : i + patch, j : j + patch] += 1
    return total / counts


@pytest.mark.parametrize(("patch", "stride", "top_k", "temperature"), [(4, 2, 8, 1.0), (3, 3, 5, 0.2), (2, 1, 99, 3.0)])
def test_block_matching_is_that_of_loops(patch, stride, top_k, temperature):
    x = features(2, 3, 6 + patch, 12)
    found = BlockMatching(patch, stride, top_k, temperature)(x)
    for image, expected in zip(found, x, strict=True):
        slow = matched_slowly(expected, patch, stride, top_k, temperature)
        torch.testing.assert_close(image, slow, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(1, 2, 12, 16), (2, 3, 7, 8), (1, 1, 2, 3), (1, 2, 9, 1)])
@pytest.mark.parametrize("options", [{"top_k": 1}, {"temperature": 1e-9}])
def test_a_block_alone_is_itself_at_any_size(shape, options):
    x = features(*shape)
    torch.testing.assert_close(BlockMatching(**options)(x), x, rtol=0, atol=1e-14)


def test_equal_blocks_do_not_take_a_block_s_place():
    """Blocks that differ by less than the rounding of their distances."""
    x = torch.ones(1, 2, 16, 16) * 1000 + torch.rand(1, 2, 16, 16) * 0.01
    torch.testing.assert_close(BlockMatching(top_k=1)(x), x, rtol=0, atol=1e-4)


def test_a_periodic_texture_is_kept_and_its_noise_is_not():
    i = torch.arange(32.0, dtype=torch.float64)
    texture = (torch.cos(i * torch.pi / 2)[:, None] + torch.sin(i * torch.pi / 4)).expand(1, 2, 32, 32)
    # 49 blocks lie a period from one another, vertically 4 pixels, horizontally 8
    torch.testing.assert_close(BlockMatching(top_k=8, temperature=100.0)(texture), texture, rtol=0, atol=1e-12)
    noise = 0.1 * features(1, 2, 32, 32)
    left = BlockMatching(top_k=8, temperature=100.0)(texture + noise) - texture
    assert float(left.square().mean()) < 0.3 * float(noise.square().mean())


@pytest.mark.parametrize("top_k", [4, 8, 16])
def test_the_variance_of_noise_falls_to_about_one_in_k(top_k):
    noise = features(2, 64, 32, 32)  # of many channels, so that the nearest are hardly nearer than others
    left = BlockMatching(patch=4, stride=4, top_k=top_k, temperature=1e3)(noise)
    assert float(left.var()) == pytest.approx(1 / top_k, rel=0.15)


def test_gradients_are_those_of_finite_differences():
    x = features(1, 2, 6, 6).requires_grad_()
    assert torch.autograd.gradcheck(BlockMatching(top_k=3, temperature=0.7), x)
    layer = CooperativeFilter(2, patch=2, top_k=3).double()
    layer.gain.data.fill_(0.5)
    assert torch.autograd.gradcheck(lambda y, *_: layer(y), (x, layer.gain, layer.thresholds))


def test_large_maps_are_matched_in_windows():
    x = features(1, 2, 32, 16)
    whole = BlockMatching(patch=4, stride=4, temperature=100.0)
    windows = BlockMatching(patch=4, stride=4, temperature=100.0, max_blocks=16)
    parts = torch.cat([whole(part) for part in x.split(16, dim=2)], dim=2)
    torch.testing.assert_close(windows(x), parts, rtol=0, atol=1e-14)
    assert (windows(x) - whole(x)).abs().max() > 0.01
    assert BlockMatching()._windows(25, 31) == (1, 1)
    down, across = BlockMatching()._windows(200, 100)
    assert -(-200 // down) * -(-100 // across) <= 1024


def test_images_of_a_batch_do_not_mix():
    x = features(3, 2, 8, 8)
    layer = CooperativeFilter(2).double()
    layer.gain.data.fill_(1.0)
    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("wavelet", ["a_trous", "haar"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_filter_is_the_identity_until_it_is_trained(wavelet, dtype):
    x = features(2, 3, 7, 9).to(dtype).contiguous(memory_format=torch.channels_last)
    layer = CooperativeFilter(3, wavelet=wavelet)
    assert torch.equal(layer(x), x)
    assert layer(x).dtype == dtype
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("wavelet", ["a_trous", "haar"])
def test_without_thresholds_and_matching_the_whole_filter_is_the_identity(wavelet):
    x = features(2, 3, 7, 9)
    layer = CooperativeFilter(3, wavelet=wavelet, threshold=0.0, top_k=1).double()
    layer.gain.data.fill_(1.0)
    torch.testing.assert_close(layer(x), x, rtol=0, atol=1e-14)


def test_thresholds_take_weak_details_away_along_the_width():
    edge = (torch.arange(16) > 7).double().expand(1, 1, 16, 16) * 0.1
    layer = CooperativeFilter(1, top_k=1).double()
    layer.gain.data.fill_(1.0)
    layer.requires_grad_(False)
    smooth = layer(edge)  # no detail of an edge of 0.1 is above the threshold of 0.1
    assert float(smooth.diff(dim=3).max()) < 0.05
    layer.thresholds.data[1].zero_()
    torch.testing.assert_close(layer(edge), edge, rtol=0, atol=1e-14)
    layer.thresholds.data[1].fill_(-0.1)  # a threshold is its size
    torch.testing.assert_close(layer(edge), smooth)


def test_gain_and_then_thresholds_are_trained():
    x, layer = features(1, 2, 8, 8).float(), CooperativeFilter(2)
    layer(x).square().sum().backward()
    assert layer.gain.grad.abs().min() > 0
    assert not layer.thresholds.grad.any()
    layer.gain.data.fill_(0.1)
    layer(x).square().sum().backward()
    assert layer.thresholds.grad.abs().min() > 0


def tiny(**options: object) -> BridgeUNet:
    torch.manual_seed(0)
    network = BridgeUNet(**{**TINY, **options}).eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize("options", [{}, {"attention_levels": (False, True)}, {"num_res_blocks": 2}, {"slab_size": 3}])
def test_a_network_with_filters_is_the_network_until_they_are_trained(options):
    plain, filtered = tiny(**options), use_cooperative_filtering(tiny(**options))
    x = features(2, 2 * plain.slab_size, 8, 12).float()
    with torch.no_grad():
        assert torch.equal(filtered(x), plain(x))
        assert plain(x).std() > 0.01
        filters = [module for module in filtered.modules() if isinstance(module, CooperativeFilter)]
        levels, blocks = 2, options.get("num_res_blocks", 1)
        assert len(filters) == 1 + levels * blocks + (levels - 1)  # the first layer, blocks, and steps between levels
        for layer in filters:
            before = filtered(x)
            layer.gain.fill_(1.0)
            assert (filtered(x) - before).abs().max() > 1e-4


def test_filters_add_few_parameters():
    plain, filtered = tiny(), use_cooperative_filtering(tiny())
    more = sum(p.numel() for p in filtered.parameters()) - sum(p.numel() for p in plain.parameters())
    assert more == 3 * (8 + 8 + 8 + 16)  # a gain and two thresholds for each channel of each skip connection


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="stride at most patch"):
        BlockMatching(patch=2, stride=3)
    with pytest.raises(ValueError, match="temperature is 0; it must be positive"):
        BlockMatching(temperature=0)
    with pytest.raises(ValueError, match="'db4' is not a valid Wavelet; use one of a_trous, haar"):
        CooperativeFilter(2, wavelet="db4")
