"""Files of a network and its weights for other runtimes, compared with PyTorch before they are kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from monai.bundle import ConfigParser
from monai.networks.utils import convert_to_onnx, convert_to_torchscript
from monai.utils import optional_import
from torch import Tensor, nn

from ..errors import CaseError
from ..files import check_folder, written_whole
from ..networks.scriptable import EXPORTED_CHANNELS, NOT_EXPORTED
from ..options import config_files
from ..weights import load_weights
from ..workflow import bundle_root
from .onnx_network import INPUTS, REQUIREMENTS, OnnxNetwork

TOLERANCE = 1e-4
"""Largest difference from PyTorch that a file may have, in the network's range [-1, 1]."""


class _Format(NamedTuple):
    suffix: str
    write: Callable[[nn.Module, Path, dict[str, str]], None]
    read: Callable[[Path], Callable[..., Tensor]]


def export(
    format: str = "onnx",
    config_file: str | Sequence[str] | None = None,
    weights: str | None = None,
    output: str | None = None,
) -> str:
    """Write a network and its weights as one file for ONNX Runtime, TorchScript or torch.export.

    The file takes the inputs x, timesteps, context and source of the network, and missing where it has that, in
    float32, of any number of slabs and of any height and width that the network takes. It holds the SHA-256 of the
    weights as `weights_sha256`. It is kept only where its results are PyTorch's to within 1e-4.

    Args:
        format: onnx, torchscript (traced) or pt2 (torch.export, which follows TorchScript).
        config_file: a config with network_def and weights, or a list of configs that are merged; configs/inference.json
            if none is given.
        weights: weights file instead of the config's.
        output: file to write; if not given, the weights file's name with .onnx, .ts or .pt2, beside it.
    """
    if format not in _FORMATS:
        raise CaseError(f"The format is {format}; use one of {', '.join(_FORMATS)}.")
    parser = ConfigParser()
    parser.read_config(config_files(config_file or str(Path(bundle_root(), "configs", "inference.json"))))
    network = parser.get_parsed_content("network_def").eval()
    if getattr(network, "slice_channels", EXPORTED_CHANNELS[0]) not in EXPORTED_CHANNELS:
        raise CaseError(NOT_EXPORTED)
    weights_file = Path(weights or parser.get_parsed_content("weights"))
    notes = {"weights": weights_file.name, "weights_sha256": load_weights(network, weights_file)}
    chosen = _FORMATS[format]
    path = Path(output) if output else weights_file.with_suffix(chosen.suffix)
    check_folder(path.parent)  # before the network is traced
    with written_whole(path) as partial, warnings.catch_warnings():
        # the network's checks of shapes are no part of the graph, and both ways of tracing are meant
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        chosen.write(network, partial, notes)
        difference = _largest_difference(network, chosen.read(partial))
        if not difference <= TOLERANCE:
            raise CaseError(f"The exported network is {difference:.1g} off PyTorch's, so {path} was not written.")
    return f"{path}: the network with {weights_file.name}, at most {difference:.1g} off PyTorch's results"


def example_inputs(network: nn.Module, slabs: int, rows: int, columns: int) -> tuple[Tensor, ...]:
    """Random inputs of a `BridgeUNet` in the order of `INPUTS`; height and width in units of `size_multiple`."""
    generator = torch.Generator().manual_seed(0)
    shape = (slabs, network.slab_size, rows * network.size_multiple, columns * network.size_multiple)
    inputs = (
        torch.randn(shape, generator=generator),
        torch.randint(1, 1000, (slabs,), generator=generator),
        torch.rand((slabs, *network.style_shape), generator=generator),
        torch.rand(shape, generator=generator) * 2 - 1,
    )
    has_missing = getattr(network, "slice_channels", EXPORTED_CHANNELS[0])[2] == 1
    return (*inputs, torch.rand(shape, generator=generator)) if has_missing else inputs


@torch.no_grad()
def _largest_difference(network: nn.Module, exported: Callable[..., Tensor]) -> float:
    """Largest difference of predictions, for other numbers of slabs and other sizes than it was traced with."""
    examples = (example_inputs(network, *size) for size in ((1, 5, 4), (3, 6, 7)))
    return max(float((exported(*example) - network(*example)).abs().max()) for example in examples)


def _write_onnx(network: nn.Module, path: Path, notes: dict[str, str]) -> None:
    onnx, found = optional_import("onnx")
    if not found:
        raise CaseError(f"The package onnx is not installed: {REQUIREMENTS}")
    image_axes = {0: "slabs", 2: "height", 3: "width"}
    example = example_inputs(network, 2, 4, 6)
    inputs = INPUTS[: len(example)]
    axes = {name: image_axes for name in (*inputs, "prediction") if name not in ("timesteps", "context")}
    # dynamo=False: its graph is 4 to 18 % faster here than that of the newer exporter, which needs onnxscript as well
    model = convert_to_onnx(
        network,
        example,
        input_names=list(inputs),
        output_names=["prediction"],
        dynamic_axes={**axes, "timesteps": {0: "slabs"}, "context": {0: "slabs"}},
        filename=str(path),
        dynamo=False,
    )
    onnx.helper.set_model_props(model, notes)
    onnx.save(model, path)


def _write_torchscript(network: nn.Module, path: Path, notes: dict[str, str]) -> None:
    example = example_inputs(network, 2, 4, 6)
    convert_to_torchscript(network, str(path), extra_files=notes, inputs=example, use_trace=True, check_trace=False)


def _write_pt2(network: nn.Module, path: Path, notes: dict[str, str]) -> None:
    example = example_inputs(network, 2, 4, 6)
    slabs, rows, columns = map(torch.export.Dim, ("slabs", "rows", "columns"))
    # in units of what the network takes, or the checks of sizes in it would be part of the program
    image = {0: slabs, 2: network.size_multiple * rows, 3: network.size_multiple * columns}
    shapes = [{0: slabs} if name in ("timesteps", "context") else image for name in INPUTS[: len(example)]]
    with torch.no_grad(), path.open("wb") as file:  # a name without .pt2 would be warned of
        torch.export.save(torch.export.export(network, example, dynamic_shapes=shapes), file, extra_files=notes)


def _read_pt2(path: Path) -> Callable[..., Tensor]:
    with path.open("rb") as file:
        return torch.export.load(file).module()


_FORMATS = {
    "onnx": _Format(".onnx", _write_onnx, OnnxNetwork),
    "torchscript": _Format(".ts", _write_torchscript, lambda path: torch.jit.load(str(path))),
    "pt2": _Format(".pt2", _write_pt2, _read_pt2),
}
