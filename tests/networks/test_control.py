"""The ControlNet beside the frozen bridge: nothing at the start, and nothing where no slice is missing."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scripts.inferers import ISTAInferer
from scripts.networks import BridgeControlNet, BridgeUNet, ControlledBridgeUNet
from scripts.schedulers import BrownianBridgeScheduler

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "inference.json"
COMPACT = json.loads(SHIPPED.read_text())["network_def"]
COMPACT = {name: COMPACT[name] for name in COMPACT.keys() - {"_target_", "condition_channels"}}
TINY = {
    **{"channels": (8, 16), "num_res_blocks": 1, "norm_num_groups": 4, "num_head_channels": 8, "space_to_depth": 2},
    "style_embedding": True,
}
BOTH = pytest.mark.parametrize("conditions", [0, 1], ids=["dense bridge", "sparse bridge"])


def as_if_trained(network: nn.Module) -> nn.Module:
    """Fill the layers that start at zero and hide everything before them."""
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return network


def pair(conditions: int = 1) -> ControlledBridgeUNet:
    torch.manual_seed(0)
    bridge = as_if_trained(BridgeUNet(**TINY, condition_channels=conditions))
    control = BridgeControlNet(**TINY)
    control.copy_from(bridge)
    return ControlledBridgeUNet(bridge, control).eval()


def slabs(batch: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    missing = torch.zeros(batch, 3, 16, 24)
    missing[0, 1], missing[1, :2] = 0.3, 0.2  # of the third slab, no slice is missing
    return {
        "x": torch.randn((batch, 3, 16, 24), generator=generator),
        "timesteps": torch.randint(1000, (batch,), generator=generator),
        "context": torch.rand((batch, 3, 128), generator=generator),
        "source": torch.randn((batch, 3, 16, 24), generator=generator),
        "hint": torch.rand((batch, 6, 16, 24), generator=generator),
        "missing": missing,
    }


def plain(network: ControlledBridgeUNet, batch: dict[str, Tensor]) -> Tensor:
    """The bridge alone."""
    names = ("x", "timesteps", "context", "source", *["missing"] * network.bridge.slice_channels[2])
    return network.bridge(**{name: batch[name] for name in names})


def train(network: ControlledBridgeUNet, steps: int) -> None:
    batch, target = slabs(), torch.rand(3, 3, 16, 24)
    optimizer = torch.optim.Adam(network.control.parameters(), lr=0.01)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        (network(**batch) - target).square().mean().backward()
        optimizer.step()
    network.eval()


@BOTH
def test_at_the_start_it_is_the_bridge_and_later_not(conditions):
    network, batch = pair(conditions), slabs()
    with torch.no_grad():
        assert torch.equal(network(**batch), plain(network, batch))
    before = {name: value.clone() for name, value in network.bridge.state_dict().items()}
    train(network, 3)
    with torch.no_grad():
        assert (network(**batch) - plain(network, batch))[:2].abs().max() > 1e-4
    assert all(torch.equal(value, before[name]) for name, value in network.bridge.state_dict().items())
    assert all(parameter.grad is None for parameter in network.bridge.parameters())
    assert not network.bridge.training


@BOTH
def test_without_a_hint_or_where_nothing_is_missing_it_is_the_bridge_at_any_weights(conditions):
    network, batch = pair(conditions), slabs()
    as_if_trained(network.control)
    with torch.no_grad():
        output = network(**batch)
        assert torch.equal(network(**{**batch, "hint": None}), plain(network, batch))
        dense = {**batch, "missing": torch.zeros_like(batch["missing"])}
        assert torch.equal(network(**dense), plain(network, dense))
        assert torch.equal(network(**{**dense, "missing": None}), plain(network, dense))
        assert torch.equal(output[2], plain(network, batch)[2])
        assert (output - plain(network, batch))[:2].abs().amax((1, 2, 3)).min() > 1e-4


def test_a_bridge_that_is_not_frozen_gives_the_same_for_one_style_of_all_slabs():
    network, batch = pair(), slabs()
    bridge = BridgeUNet(**TINY, condition_channels=1)
    bridge.load_state_dict(network.bridge.state_dict())
    batch |= {"context": batch["context"][:1].expand(3, -1, -1), "missing": torch.zeros_like(batch["missing"])}
    with torch.no_grad():
        expected = bridge(**{name: value for name, value in batch.items() if name != "hint"})
        assert torch.equal(network(**batch), expected)


def test_the_hint_matters_from_the_third_step_on():
    network, batch = pair(), slabs()

    def effect() -> float:
        hints = (torch.zeros_like(batch["hint"]), torch.ones_like(batch["hint"]))
        with torch.no_grad():
            return float((network(**{**batch, "hint": hints[0]}) - network(**{**batch, "hint": hints[1]})).abs().max())

    effects = []
    for _ in range(4):
        effects.append(effect())
        train(network, 1)
    assert effects[:2] == [0, 0]
    assert effects[-1] > 0


def test_every_input_reaches_the_output_and_slabs_do_not_see_each_other():
    network, batch = pair().double(), slabs()
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    as_if_trained(network.control)
    with torch.no_grad():
        output = network(**batch)
        for name in ("x", "timesteps", "context", "source", "hint"):
            changed = batch[name] // 2 if name == "timesteps" else batch[name] + 0.5
            assert (network(**{**batch, name: changed}) - output)[0].abs().max() > 1e-5, name
        alone = [network(**{name: value[i : i + 1] for name, value in batch.items()}) for i in range(3)]
    torch.testing.assert_close(output, torch.cat(alone), rtol=0, atol=1e-12)


def test_it_copies_the_encoder_and_refuses_another():
    network = pair()
    bridge, control = (module.state_dict() for module in (network.bridge, network.control))
    shared = [name for name in control if not name.startswith("controlnet_")]
    assert all(torch.equal(control[name], bridge[name]) for name in shared if name != "conv_in.1.conv.weight")
    assert torch.equal(control["conv_in.1.conv.weight"], bridge["conv_in.1.conv.weight"][:, :24])
    for options in ({"channels": (16, 16)}, {"num_res_blocks": 2}, {"style_embedding": False}):
        with pytest.raises(ValueError, match="than the bridge"):
            BridgeControlNet(**{**TINY, **options}).copy_from(network.bridge)


def test_the_state_dict_comes_back(tmp_path):
    network, other = pair(), pair()
    as_if_trained(network.control)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    assert {name.split(".")[0] for name in network.state_dict()} == {"bridge", "control"}
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    with torch.no_grad():
        assert torch.equal(other(**slabs()), network(**slabs()))


def test_it_cannot_be_exported():
    with pytest.raises(ValueError, match="export the bridge"):
        torch.jit.script(pair())


def test_sizes_and_work_of_the_compact_network():
    with torch.device("meta"):
        bridge, control = BridgeUNet(**COMPACT), BridgeControlNet(**COMPACT)
        parameters = sum(parameter.numel() for parameter in control.parameters())
        assert parameters == 3_973_456 + 3_456
        both = torch.zeros(1, 6, 104, 128)
        work = []
        for call in (lambda: bridge(both), lambda: control(both, None, torch.zeros(1, 9, 104, 128))):
            with FlopCounterMode(display=False) as counter:
                result = call()
            work.append(counter.get_total_flops() / 1e9)
    assert work == pytest.approx([8.0, 2.4], abs=0.1)
    assert sum(work) < 1.6 * work[0]
    down, middle = result
    assert [tuple(residual.shape[1:]) for residual in down] == [
        *((64, 52, 64), (64, 52, 64), (64, 26, 32), (128, 26, 32), (128, 13, 16), (192, 13, 16))
    ]
    assert tuple(middle.shape[1:]) == (192, 13, 16)


@pytest.fixture(scope="module")
def translated():
    """A volume of 7 slices through the bridge and through both, with and without missing slices."""
    network = pair()
    as_if_trained(network.control)
    generator = torch.Generator().manual_seed(2)
    source, hint = (
        torch.rand((1, 1, 16, 24, 7), generator=generator),
        torch.rand((1, 2, 16, 24, 7), generator=generator),
    )
    missing = torch.zeros(7)
    missing[2:4] = 0.25
    channels = {"source": 1, "missing": 1, "hint": 2}

    def function(with_control: bool, sparse: bool) -> Tensor:
        condition = (missing * sparse).expand(1, 1, 16, 24, 7)
        parts = [source, condition, hint][: 2 + with_control]
        inferer = ISTAInferer(
            BrownianBridgeScheduler(prediction_type="sample"),
            num_inference_steps=3,
            channels=dict(list(channels.items())[: 2 + with_control]),
        )
        return inferer(torch.cat(parts, dim=1), network if with_control else network.bridge)

    return function


def test_a_dense_volume_is_the_bridges(translated):
    assert torch.equal(translated(True, sparse=False), translated(False, sparse=False))


def test_the_control_reaches_what_is_missing_and_its_neighbours(translated):
    change = (translated(True, sparse=True) - translated(False, sparse=True)).abs().amax((0, 1, 2, 3))
    assert (change[1:5] > 1e-5).all()
