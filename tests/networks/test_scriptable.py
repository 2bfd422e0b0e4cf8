"""The network under `torch.jit.script`, as MONAI's `ckpt_export` and the Model Zoo's checks call it."""

import io

import pytest
import torch
from torch import Tensor, nn

from scripts.networks import BridgeUNet

TINY = {"channels": (16, 32), "num_res_blocks": 1, "norm_num_groups": 8, "num_head_channels": 16}


@pytest.fixture(scope="module", params=[0, 1], ids=["dense", "missing"])
def network(request) -> BridgeUNet:
    torch.manual_seed(0)
    network = BridgeUNet(**TINY, style_embedding=True, space_to_depth=2, condition_channels=request.param)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)  # no layer starts at zero and hides those before it
    return network.eval()


@pytest.fixture(scope="module")
def scripted(network: BridgeUNet) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(network), file)
    file.seek(0)
    return torch.jit.load(file)


def inputs(network: BridgeUNet, batch: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    given = {
        "x": torch.randn((batch, 3, 20, 12), generator=generator),
        "timesteps": torch.randint(1000, (batch,), generator=generator),
        "context": torch.randn((batch, 3, 128), generator=generator),
        "source": torch.randn((batch, 3, 20, 12), generator=generator),
    }
    if network.slice_channels[2]:
        given["missing"] = torch.rand((batch, 3, 20, 12), generator=generator)
    return given


@pytest.mark.parametrize("batch", [1, 4])
def test_it_is_the_same_function_of_slabs_that_it_was_not_traced_with(network, scripted, batch):
    with torch.no_grad():
        torch.testing.assert_close(
            scripted(**inputs(network, batch)), network(**inputs(network, batch)), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("left_out", [("timesteps",), ("context",), ("timesteps", "context"), ("missing",)])
def test_arguments_may_be_left_out_and_one_may_stand_for_all(network, scripted, left_out):
    given = {name: value for name, value in inputs(network).items() if name not in left_out}
    shared = {name: value[:1] if name in ("timesteps", "context") else value for name, value in given.items()}
    for call in (given, shared):
        with torch.no_grad():
            torch.testing.assert_close(scripted(**call), network(**call), rtol=1e-4, atol=1e-5)


def test_one_tensor_is_state_source_and_condition(network, scripted):
    together = torch.cat([value for name, value in inputs(network).items() if name not in ("timesteps", "context")], 1)
    with torch.no_grad():
        torch.testing.assert_close(scripted(together), network(together), rtol=1e-4, atol=1e-5)


def test_the_network_is_left_as_it_was():
    network = BridgeUNet(**TINY).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.jit.script(network)
    assert network.training
    assert all(module.training for module in network.modules())
    assert {name: value.tolist() for name, value in network.state_dict().items()} == {
        name: value.tolist() for name, value in before.items()
    }
