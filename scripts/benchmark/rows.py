"""The rows of the table: ways to evaluate one and the same network. `WAYS` is the only list of them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ..errors import CaseError
from ..exports import OnnxNetwork
from ..exports.export import export
from ..workflow import bundle_root
from .bundle import Bundle, Way

BASELINE = "plain float32"
MAIN_JOB = "main job"


def plain(bundle: Bundle) -> Way:
    """Float32, contiguous, eager: what PyTorch does with the network as it is defined."""
    return Way(BASELINE, bundle.plain_network, torch.float32)


def channels_last(bundle: Bundle) -> Way:
    """The same with the weights, and thereby all features, channels last."""
    network = copy.deepcopy(bundle.plain_network).to(memory_format=torch.channels_last)
    return Way("float32, channels last", network, torch.float32)


def main_job(bundle: Bundle) -> Way:
    """What the main job does: its network, its memory format, its floating type."""
    dtype = bundle.inferer.dtype
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


class PlainProcess:
    """The baseline in a process of its own: what PyTorch does where nothing was done for speed; a context manager.

    The main job has the C library keep freed memory (`keep_freed_memory`), which holds for a whole process and makes
    plain PyTorch faster as well.

    Args:
        bundle: what is measured.
        slab_shape: height and width of a slab, pixels.
        batch_size: slabs in one call.

    Raises:
        CaseError: the process has ended.
    """

    def __init__(self, bundle: Bundle, slab_shape: Sequence[int], batch_size: int) -> None:
        settings = {
            "config_files": bundle.config_files,
            "device": str(bundle.device),
            "weights": bundle.has_weights,
            "slab_shape": list(slab_shape),
            "batch_size": batch_size,
        }
        command = [sys.executable, "-m", "scripts.benchmark.rows", json.dumps(settings)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self._process = subprocess.Popen(command, cwd=bundle_root(), **pipes)

    def __enter__(self) -> PlainProcess:
        self.slabs()  # until it has started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def slabs(self) -> None:
        """One evaluation of a batch, the same as `Bundle.slabs`."""
        self._ask("slabs")

    def volume(self) -> None:
        """One run of the config's sampler on its first volume."""
        self._ask("volume")

    def _ask(self, what: str) -> None:
        try:
            self._process.stdin.write(f"{what}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            raise CaseError("The process of the baseline has ended; the memory may be too small for both networks.")


@torch.no_grad()
def _serve(config_files: Sequence[str], device: str, weights: bool, slab_shape: Sequence[int], batch_size: int) -> None:
    """Do what each line of the standard input asks for, and answer with a line."""
    answers, sys.stdout = sys.stdout, sys.stderr
    bundle = Bundle(config_files, device, weights)
    way, slabs = plain(bundle), bundle.slabs(batch_size, *slab_shape)
    calls = {"slabs": lambda: way(slabs), "volume": lambda: bundle.sample(way, bundle.source)}
    for line in sys.stdin:
        calls[line.strip()]()
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    _serve(**json.loads(sys.argv[1]))
