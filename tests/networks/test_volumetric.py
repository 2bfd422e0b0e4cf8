"""Layers along z: nothing at the start, and slices that see each other once they are tuned."""

import io

import pytest
import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from scripts.errors import CaseError
from scripts.networks import BridgeUNet, VolumetricLayer, VolumetricUNet, use_volumetric_layers, volumetric_bridge
from scripts.weights import load_weights

KINDS = ("dirac", "residual", "depthwise")
TINY = {
    **{"channels": (8, 16), "num_res_blocks": 1, "norm_num_groups": 4, "num_head_channels": 8, "style_embedding": True},
    **{"target_channels": 2, "source_channels": 4, "condition_channels": 1, "resblock_updown": False},
}
COMPACT = {
    **{"slab_size": 1, "target_channels": 8, "source_channels": 8, "channels": (64, 128, 192), "num_res_blocks": 1},
    **{"attention_levels": (False, False, True), "norm_num_groups": 16, "style_embedding": True},
    **{"resblock_updown": False},
}
K = 5


def filled(network: nn.Module, std: float = 0.2) -> nn.Module:
    """Fill the layers that start at zero and hide everything before them."""
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=std)
    return network.eval()


def of_slices(slab_size: int = 1, **options: object) -> BridgeUNet:
    torch.manual_seed(0)
    return filled(BridgeUNet(slab_size=slab_size, **{**TINY, **options}))


def tune(network: VolumetricUNet, std: float = 0.1) -> VolumetricUNet:
    """Volumetric layers as if they had been tuned."""
    torch.manual_seed(1)
    for name, parameter in network.named_parameters():
        if ".volumetric." in name:
            parameter.data += std * torch.randn_like(parameter)
    return network


def slabs(batch: int = 2, k: int = K, missing: bool = True) -> dict[str, Tensor]:
    """Slabs of a target of two channels, two contrasts of two channels each, and a condition."""
    generator = torch.Generator().manual_seed(2)
    given = {"timesteps": torch.randint(1000, (batch,), generator=generator)}
    given["context"] = torch.rand((batch, 3, 128), generator=generator)
    channels = {"x": 2, "source": 4, **({"missing": 1} if missing else {})}
    return given | {name: torch.randn((batch, c * k, 8, 12), generator=generator) for name, c in channels.items()}


def slice_by_slice(network: BridgeUNet, batch: dict[str, Tensor], k: int = K) -> Tensor:
    """The network of slices on all slices of all slabs, put together by loops."""
    images = ("x", "source", "missing")
    slices = {name: [] for name in batch}
    for n in range(len(batch["x"])):
        for z in range(k):
            for name, value in batch.items():
                # channel c of slice z is c K + z
                slices[name].append(value[n][z::k] if name in images else value[n])
    predictions = network(**{name: torch.stack(value) for name, value in slices.items()})
    found = torch.empty_like(batch["x"], dtype=predictions.dtype)
    for i, prediction in enumerate(predictions):
        found[i // k][i % k :: k] = prediction
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("placement", ["block", "convolution"])
@pytest.mark.parametrize("kind", KINDS)
def test_before_tuning_it_is_the_network_of_slices_to_the_bit(kind, placement, dtype):
    network, batch = VolumetricUNet(of_slices(), K, kind, placement), slabs()
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        expected = slice_by_slice(of_slices(), batch)
        assert torch.equal(network(**batch), expected)
    assert expected.std() > 0.01
    with torch.no_grad():
        assert (tune(network)(**batch) - expected).abs().max() > 0.01


@pytest.mark.parametrize("space_to_depth", [1, 2])
def test_paper_blocks_and_pixels_as_channels_are_the_network_of_slices_too(space_to_depth):
    sizes = {"space_to_depth": space_to_depth, "resblock_updown": True}
    for placement in ("block", "convolution"):
        network, batch = VolumetricUNet(of_slices(**sizes), K, placement=placement), slabs()
        with torch.no_grad():
            assert torch.equal(network(**batch), slice_by_slice(of_slices(**sizes), batch))


def test_any_unet_of_monai_takes_the_layers():
    torch.manual_seed(0)
    options = {"channels": (8, 16), "num_res_blocks": 1, "norm_num_groups": 4, "attention_levels": (False, True)}
    network = filled(DiffusionModelUNet(2, 1, 1, num_head_channels=8, **options))
    x, timesteps = torch.randn(6, 1, 8, 8), torch.tensor([100]).expand(6)
    with torch.no_grad():
        before = network(x, timesteps)
        use_volumetric_layers(network, num_slices=3)
        assert torch.equal(network(x, timesteps), before)
    assert sum(isinstance(module, VolumetricLayer) for module in network.modules()) == 2 * 1 + 2 + 2 * 2


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_a_convolution_over_the_slices_of_each_slab(kind, layout):
    torch.manual_seed(0)
    layer = VolumetricLayer(4, num_slices=K, kind=kind)
    x = torch.randn(2 * K, 4, 3, 2).contiguous(memory_format=layout)
    assert torch.equal(layer(x), x)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    weight, bias = (dict(layer.named_parameters())[f"{kind}.{name}"].detach() for name in ("weight", "bias"))
    output = layer(x)
    assert output.is_contiguous(memory_format=layout)
    for z in range(2 * K):
        expected = bias[:, None, None].expand(4, 3, 2).clone()
        for k in range(3):
            neighbour = z + k - 1
            if neighbour // K != z // K:  # beyond the slab
                continue
            w = weight[:, :, k, 0]
            mixing = "oi,ohw->ohw" if kind == "depthwise" else "oi,ihw->ohw"
            expected += torch.einsum(mixing, w, x[neighbour])
        expected += 0 if kind == "dirac" else x[z]
        torch.testing.assert_close(output[z], expected)


@pytest.mark.parametrize("size", [3, 5])
def test_a_network_of_small_slabs_is_averaged_over_those_in_the_large_one(size):
    sizes = {"slab_size": size, "target_channels": 1, "source_channels": 1, "condition_channels": 0}
    network, small = VolumetricUNet(of_slices(**sizes), 7), of_slices(**sizes)
    batch = {name: value for name, value in slabs().items() if name in ("timesteps", "context")}
    batch |= {name: torch.randn(2, 7, 8, 12) for name in ("x", "source")}
    total, count = torch.zeros(2, 7, 8, 12), torch.zeros(7)
    with torch.no_grad():
        for first in range(7 - size + 1):
            part = slice(first, first + size)
            total[:, part] += small(**{**batch, "x": batch["x"][:, part], "source": batch["source"][:, part]})
            count[part] += 1
        torch.testing.assert_close(network(**batch), total / count[:, None, None], rtol=0, atol=1e-5)


@pytest.fixture
def moved():
    """By how much each slice of three slabs of nine moves when the source of slice 4 of the second one changes."""

    def function(network: VolumetricUNet) -> Tensor:
        batch = slabs(3, 9)
        other = batch["source"].clone()
        other[1, 4::9] += 1
        with torch.no_grad():
            change = network(**{**batch, "source": other}) - network(**batch)
        return change.unflatten(1, (2, 9)).abs().mean((1, 3, 4))

    return function


@pytest.mark.parametrize("placement", ["block", "convolution"])
@pytest.mark.parametrize("kind", KINDS)
def test_tuned_slices_see_their_neighbours_and_no_other_volume(moved, kind, placement):
    network = VolumetricUNet(of_slices(), 9, kind, placement)
    untuned = moved(network)
    assert untuned[1, 4] > 0
    assert untuned.count_nonzero() == 1
    tuned = moved(tune(network, 0.02))
    assert not tuned[[0, 2]].any()
    assert (tuned[1] > 0).all()
    below, above = tuned[1, :5].flip(0), tuned[1, 4:]
    assert (below.diff() < 0).all()
    assert (above.diff() < 0).all()


def test_slices_may_change_places_before_tuning_only():
    network, batch = VolumetricUNet(of_slices(), K), slabs()
    order = torch.tensor([3, 0, 4, 1, 2])

    def shuffled(value: Tensor) -> Tensor:
        return value.unflatten(1, (-1, K))[:, :, order].flatten(1, 2) if value.ndim == 4 else value

    def difference() -> float:
        with torch.no_grad():
            after = shuffled(network(**batch))
            return float((network(**{name: shuffled(value) for name, value in batch.items()}) - after).abs().max())

    assert difference() < 1e-6
    tune(network)
    assert difference() > 1e-3


def trained(network: VolumetricUNet, steps: int = 3) -> set[bool]:
    """Train with AdamW on all parameters; for those that moved, whether they are volumetric."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.1)
    batch = slabs()
    for _ in range(steps):
        optimizer.zero_grad()
        (network(**batch) - 1).square().mean().backward()
        optimizer.step()
    moved = [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]
    assert sum(".volumetric." in name for name in moved) == 2 * 8  # all of them: weight and bias of each layer
    return {".volumetric." in name for name in moved}


@pytest.mark.parametrize("kind", KINDS)
def test_tuning_moves_volumetric_layers_alone_unless_told(kind):
    assert trained(VolumetricUNet(of_slices(), K, kind)) == {True}
    assert trained(VolumetricUNet(of_slices(), K, kind, tune="all")) == {True, False}


def test_tuned_layers_learn_what_no_network_of_slices_can():
    """Each target is the source of the slice above, of which a slice alone knows nothing."""
    one = {"target_channels": 1, "source_channels": 1, "condition_channels": 0}
    network = VolumetricUNet(of_slices(**one), K)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(60):
        source = torch.randn(4, K, 8, 12)
        target = torch.cat([source[:, 1:], torch.zeros(4, 1, 8, 12)], dim=1)
        loss = (network(torch.zeros_like(source), source=source) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    best_of_slices = 1 - 1 / K  # the variance of the targets
    assert losses[0] > best_of_slices
    assert sum(losses[-5:]) / 5 < 0.7 * best_of_slices


def test_all_slices_of_a_slab_share_its_timestep_style_and_presence():
    network, batch, seen = VolumetricUNet(of_slices(), K), slabs(), {}

    def record(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.update(zip(("x", "timesteps", "context"), args, strict=True), **kwargs)

    network.network.register_forward_pre_hook(record, with_kwargs=True)
    with torch.no_grad():
        network(**batch, presence=torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        assert seen["x"].shape == (2 * K, 2, 8, 12)
        for name in ("timesteps", "context"):
            assert all(torch.equal(seen[name][n * K + z], batch[name][n]) for n in range(2) for z in range(K))
        assert seen["presence"].tolist() == [[1, 0]] * K + [[1, 1]] * K
        one = network(**{**batch, "timesteps": torch.tensor(7), "context": batch["context"][0]})
        all_ = {**batch, "timesteps": torch.tensor([7, 7]), "context": batch["context"][:1].expand(2, -1, -1)}
        torch.testing.assert_close(one, network(**all_), rtol=0, atol=1e-6)
        together = torch.cat([batch.pop(name) for name in ("x", "source", "missing")], dim=1)
        assert torch.equal(network(together, **batch), network(**slabs()))
        left_out = {**slabs(), "missing": torch.zeros(2, K, 8, 12)}
        assert torch.equal(network(**slabs(missing=False)), network(**left_out))


class TestWeights:
    @pytest.mark.parametrize("placement", ["block", "convolution"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_of_the_network_of_slices_are_the_start(self, tmp_path, kind, placement):
        torch.save(of_slices().half().state_dict(), tmp_path / "model.pt")
        slices = of_slices()
        load_weights(slices, tmp_path / "model.pt")
        network = tune(VolumetricUNet(of_slices(channels=(8, 16)), K, kind, placement))  # what it had is gone
        load_weights(network, tmp_path / "model.pt")
        with torch.no_grad():
            assert torch.equal(network(**slabs()), slice_by_slice(slices, slabs()))

    def test_of_a_network_without_the_condition_too(self, tmp_path):
        narrow = of_slices(condition_channels=0)
        torch.save(narrow.state_dict(), tmp_path / "model.pt")
        for placement in ("block", "convolution"):
            network = VolumetricUNet(of_slices(), K, placement=placement)
            load_weights(network, tmp_path / "model.pt")
            with torch.no_grad():
                expected = slice_by_slice(narrow, slabs(missing=False))
                torch.testing.assert_close(network(**slabs()), expected, rtol=0, atol=1e-5)

    def test_tuned_ones_serve_slabs_of_any_size(self, tmp_path):
        tuned = tune(VolumetricUNet(of_slices(), K))
        torch.save(tuned.state_dict(), tmp_path / "model.pt")
        wider = VolumetricUNet(of_slices(), 9)
        load_weights(wider, tmp_path / "model.pt")
        assert all(torch.equal(value, tuned.state_dict()[name]) for name, value in wider.state_dict().items())

    def test_inside_a_larger_network_keep_its_prefix(self):
        slices, network = of_slices(), VolumetricUNet(of_slices(), K)
        given = {f"network.{name}": value for name, value in slices.state_dict().items()} | {"codec.w": torch.ones(1)}
        made = network.widened(given, "network.")
        assert made.keys() == {"codec.w"} | {f"network.{name}" for name in network.state_dict()}
        assert network.widened(made, "network.").keys() == made.keys()

    @pytest.mark.parametrize("options", [{"channels": (8, 24)}, {"num_res_blocks": 2}, {"style_embedding": False}])
    def test_of_another_network_are_refused(self, tmp_path, options):
        torch.save(of_slices(**options).state_dict(), tmp_path / "model.pt")
        network = VolumetricUNet(of_slices(), K)
        before = network.state_dict()["network.conv_in.conv.weight"].clone()
        with pytest.raises(CaseError, match="do not fit the network"):
            load_weights(network, tmp_path / "model.pt")
        assert torch.equal(network.state_dict()["network.conv_in.conv.weight"], before)

    @pytest.mark.parametrize("other", [{"kind": "dirac"}, {"placement": "convolution"}, {"kernel_size": 5}])
    def test_tuned_in_another_way_are_refused(self, tmp_path, other):
        torch.save(VolumetricUNet(of_slices(), K, **other).state_dict(), tmp_path / "model.pt")
        with pytest.raises(CaseError, match="volumetric"):
            load_weights(VolumetricUNet(of_slices(), K), tmp_path / "model.pt")


def test_what_it_cannot_be_is_refused_in_a_sentence():
    for slab_size, least in ((4, 1), (1, 3)):
        with pytest.raises(ValueError, match=f"slab_size is {slab_size}; .* at least {least}"):
            VolumetricUNet(of_slices(least), slab_size)
    with pytest.raises(ValueError, match="use one of dirac, residual, depthwise"):
        VolumetricUNet(of_slices(), K, "attention")
    with pytest.raises(ValueError, match="use one of block, convolution"):
        VolumetricUNet(of_slices(), K, placement="stem")
    with pytest.raises(ValueError, match="use one of volumetric, all"):
        VolumetricUNet(of_slices(), K, tune="none")
    with pytest.raises(ValueError, match="kernel_size is 4"):
        VolumetricUNet(of_slices(), K, kernel_size=4)
    network = VolumetricUNet(of_slices(), K)
    with pytest.raises(ValueError, match="got 9 channels; it takes slabs of 5 slices"):
        network(torch.zeros(1, 9, 8, 8))
    with pytest.raises(ValueError, match="got 3 channels; it takes 7: 2 slices of the target"):
        network(torch.zeros(1, 15, 8, 8))
    with pytest.raises(ValueError, match="8 x 9, but this network needs multiples of 2"):
        network(torch.zeros(1, 35, 8, 9))


@pytest.mark.parametrize(("kind", "more"), [("dirac", 738_816), ("residual", 738_816), ("depthwise", 6_144)])
def test_layers_of_the_compact_latent_network(kind, more):
    """One behind each of eleven residual blocks: 7 % more parameters, or next to none; 28 layers the other way."""
    counts = {}
    with torch.device("meta"):
        counts["slices"] = BridgeUNet(**COMPACT)
        for placement in ("block", "convolution"):
            counts[placement] = VolumetricUNet(BridgeUNet(**COMPACT), 9, kind, placement)
    layers = {n: sum(isinstance(m, VolumetricLayer) for m in network.modules()) for n, network in counts.items()}
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in counts.items()}
    assert layers == {"slices": 0, "block": 11, "convolution": 28}
    assert sizes["slices"] == 10_339_592
    assert sizes["block"] - sizes["slices"] == more
    assert 2 * sizes["convolution"] < 25e6


def pixel_bridge(condition_channels: int = 1) -> VolumetricUNet:
    torch.manual_seed(0)
    sizes = {"channels": (8, 16), "num_res_blocks": 1, "norm_num_groups": 4, "num_head_channels": 8}
    options = {"condition_channels": condition_channels, "space_to_depth": 2, "style_embedding": True}
    return tune(filled(volumetric_bridge(K, **sizes, **options)))


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("condition_channels", [0, 1])
def test_a_pixel_bridge_is_scripted_for_any_number_of_slabs_and_any_size(condition_channels, batch):
    network, file = pixel_bridge(condition_channels), io.BytesIO()
    torch.jit.save(torch.jit.script(network), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    names = ("x", "source", *["missing"] * condition_channels)
    given = {name: torch.randn(batch, K, 20, 12) for name in names}
    given |= {"timesteps": torch.randint(1000, (batch,)), "context": torch.rand(batch, 3, 128)}
    with torch.no_grad():
        torch.testing.assert_close(scripted(**given), network(**given), rtol=1e-4, atol=1e-5)


def test_a_latent_one_cannot_be_exported():
    with pytest.raises(ValueError, match="Only a network of one contrast"):
        torch.jit.script(VolumetricUNet(of_slices(), K))
