"""The rows of the table: ways to evaluate one and the same network. `WAYS` is the only list of them."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..exports import OnnxNetwork
from ..exports.export import export
from .bundle import Bundle, Way
from .plain import plain

MAIN_JOB = "main job"


def channels_last(bundle: Bundle) -> Way:
    """The same with the weights, and thereby all features, channels last."""
    network = copy.deepcopy(bundle.plain_network).to(memory_format=torch.channels_last)
    return Way("float32, channels last", network, torch.float32)


def main_job(bundle: Bundle) -> Way:
    """What the main job does: its network, its memory format, its floating type."""
    dtype = bundle.part("inferer").inferer.dtype
    return Way(f"{MAIN_JOB} ({str(dtype).removeprefix('torch.')})", bundle.network, dtype)


def compiled(bundle: Bundle) -> Way:
    """The main job's network through torch.compile; on a GPU with CUDA graphs."""
    way = main_job(bundle)
    graphs = bundle.device.type == "cuda"
    network = torch.compile(way.network, mode="reduce-overhead" if graphs else "default", dynamic=False)

    def call(*args: Any, **kwargs: Any) -> torch.Tensor:
        # the output of a CUDA graph is overwritten by its next run
        torch.compiler.cudagraph_mark_step_begin()
        return network(*args, **kwargs).clone() if graphs else network(*args, **kwargs)

    return Way(f"{way.name}, torch.compile", call, way.dtype)


def onnx(bundle: Bundle) -> Way:
    """The network as an ONNX file in ONNX Runtime, which computes in float32 on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        weights = Path(folder) / "weights.pt"
        torch.save(bundle.plain_network.state_dict(), weights)
        export("onnx", bundle.config_files, str(weights), str(file))
        return Way("ONNX Runtime (float32)", OnnxNetwork(file), torch.float32)


WAYS: dict[str, Callable[[Bundle], Way]] = {
    "plain": plain,
    "channels_last": channels_last,
    "main_job": main_job,
    "compile": compiled,
    "onnx": onnx,
}
"""Name of a row on the command line -> what makes it; `plain` is the baseline and always there."""
DEFAULT_WAYS = ("plain", "channels_last", "main_job")
