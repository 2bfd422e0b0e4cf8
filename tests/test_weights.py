"""Weights files: loaded whole or not at all."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from scripts.errors import CaseError
from scripts.networks import BridgeUNet
from scripts.weights import file_beside, load_weights, sha256_of_file


@pytest.mark.parametrize(
    ("weights", "file"),
    [
        ("models/model.pt", "models/style_keys.json"),
        ("/runs/train/model_best.pt", "/runs/train/style_keys.json"),
        ("model.onnx", "style_keys.json"),
        ("models/flair_to_t1.pt", "models/flair_to_t1_style_keys.json"),
        ("runs/train/model_of_anna.pt", "runs/train/model_of_anna_style_keys.json"),
        ("runs/checkpoint_epoch=3.pt", "runs/checkpoint_epoch=3_style_keys.json"),
        ("a.b/v1.2.pt", "a.b/v1.2_style_keys.json"),
    ],
)
def test_what_belongs_to_weights_is_called_after_them(weights: str, file: str) -> None:
    assert file_beside(weights, "style_keys.json") == file
    assert file_beside(Path(weights), "style_keys.json") == file


def network(seed: int = 0, **options: object) -> BridgeUNet:
    torch.manual_seed(seed)
    sizes = {"channels": (8, 16), "num_res_blocks": 1, "norm_num_groups": 4, "num_head_channels": 8}
    return BridgeUNet(**{**sizes, **options})


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


def refused(module: nn.Module, path: Path) -> str:
    """The error's sentence, after checking that the network is as it was."""
    before = weights_of(module)
    with pytest.raises(CaseError) as error:
        load_weights(module, path)
    after = module.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    message = str(error.value)
    assert "\n" not in message
    assert path.name in message
    return message


def test_loads_every_value_and_returns_the_files_hash(path: Path) -> None:
    trained, fresh = network(1), network(2)
    torch.save(trained.state_dict(), path)
    assert load_weights(fresh, path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in fresh.state_dict().items())


def test_half_precision_on_disk_is_cast_to_the_networks_type(path: Path) -> None:
    trained = network(1)
    torch.save({key: value.half() for key, value in trained.state_dict().items()}, path)
    for dtype in (torch.float32, torch.bfloat16):
        fresh = network(2).to(dtype)
        load_weights(fresh, path)
        for key, value in fresh.state_dict().items():
            assert value.dtype == dtype
            torch.testing.assert_close(value, trained.state_dict()[key].half().to(dtype), rtol=0, atol=0)


def test_missing_unknown_and_misshapen_weights_are_named(path: Path) -> None:
    weights = weights_of(network(1))
    del weights["conv_in.conv.bias"]
    weights["extra.weight"] = torch.zeros(1)
    weights["out.0.weight"] = torch.zeros(7)
    torch.save(weights, path)
    message = refused(network(2), path)
    assert "1 missing: conv_in.conv.bias;" in message
    assert "1 not in the network: extra.weight;" in message
    assert "1 of another shape: out.0.weight (7,) for (8,)" in message


def test_weights_of_another_network_are_refused_in_a_short_sentence(path: Path) -> None:
    torch.save(network(1, channels=(8, 32), style_embedding=True).state_dict(), path)
    message = refused(network(2), path)
    assert "class_embedding.1.weight" in message
    assert len(message) < 600


def test_a_training_checkpoint_is_told_from_weights(path: Path) -> None:
    torch.save({"network": network(1).state_dict(), "optimizer": {}}, path)
    assert "holds a dictionary of network, optimizer" in refused(network(2), path)


def test_missing_truncated_and_foreign_files_are_refused(path: Path) -> None:
    assert "no weights file" in refused(network(2), path)
    torch.save(network(1).state_dict(), path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"version https://git-lfs.github.com/spec/v1\n"):
        path.write_bytes(content)
        assert "damaged" in refused(network(2), path)


def test_a_file_that_was_cut_off_and_any_other_file_are_refused(path: Path) -> None:
    """Whatever torch makes of them: a cut archive gives it an OSError, a table an IndexError."""
    torch.save(network(1).state_dict(), path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-100], b"subject,T2\nanna,x\n", b"a"):
        path.write_bytes(content)
        assert "is damaged or holds more than tensors" in refused(network(2), path)
    torch.save({1: torch.zeros(2)}, path)
    assert "not a plain state dict" in refused(network(2), path)


def test_code_in_a_weights_file_is_not_run(path: Path) -> None:
    torch.save(network(1), path)  # the pickled network itself, which needs its classes to be imported
    assert "more than tensors" in refused(network(2), path)


def test_sha256_of_known_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of_file(tmp_path / "abc") == digest


@pytest.mark.parametrize("space_to_depth", [1, 2])
def test_weights_of_the_network_without_conditions_load_into_one_with_some(path: Path, space_to_depth: int) -> None:
    """A wrong place of the new channels in the first layer would mix up target and source."""
    narrow = network(1, space_to_depth=space_to_depth).eval()
    for parameter in narrow.parameters():
        nn.init.normal_(parameter, std=0.2)
    wide = network(2, space_to_depth=space_to_depth, condition_channels=1).eval()
    torch.save({key: value.half() for key, value in narrow.state_dict().items()}, path)
    load_weights(narrow, path)
    load_weights(wide, path)
    x, source, missing = torch.randn(3, 2, 3, 16, 24)
    with torch.no_grad():
        expected = narrow(x, torch.tensor([500]), source=source)
        assert torch.equal(wide(x, torch.tensor([500]), source=source, missing=torch.zeros_like(x)), expected)
        assert torch.equal(wide(x, torch.tensor([500]), source=source), expected)
        torch.testing.assert_close(wide(x, torch.tensor([500]), source=source, missing=missing), expected)
        nn.init.normal_(wide.conv_in[-1].conv.weight if space_to_depth > 1 else wide.conv_in.conv.weight)
        dense = wide(x, torch.tensor([500]), source=source)
        assert (wide(x, torch.tensor([500]), source=source, missing=missing) - dense).abs().max() > 1e-3


def test_no_other_width_is_filled_up(path: Path) -> None:
    torch.save(network(1, source_channels=2).state_dict(), path)
    assert "of another shape: conv_in" in refused(
        network(2, source_channels=2, condition_channels=3, slab_size=1), path
    )
    torch.save(network(1, condition_channels=1).state_dict(), path)
    assert "of another shape: conv_in" in refused(network(2), path)
