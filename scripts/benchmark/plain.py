"""The baseline in a process of its own: what PyTorch does with the network where nothing was done for speed.

The main job has the C library keep freed memory (`keep_freed_memory`), which holds for a whole process and makes plain
PyTorch faster as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType

import torch

from ..errors import CaseError
from ..workflow import bundle_root
from .bundle import Bundle, Way

BASELINE = "plain float32"


class PlainProcess:
    """Evaluates the config's network as it is defined, float32 and contiguous, on demand; a context manager.

    Args:
        bundle: what is measured.
        slab_shape: height and width of a slab, pixels.
        batch_size: slabs in one call.

    Raises:
        CaseError: the process has ended.
    """

    def __init__(self, bundle: Bundle, slab_shape: Sequence[int], batch_size: int) -> None:
        asked = {
            "config_files": bundle.config_files,
            "device": str(bundle.device),
            "weights": bundle.has_weights,
            "slab_shape": list(slab_shape),
            "batch_size": batch_size,
        }
        command = [sys.executable, "-m", "scripts.benchmark.plain", json.dumps(asked)]
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


def plain(bundle: Bundle) -> Way:
    """Float32, contiguous, eager: what PyTorch does with the network as it is defined."""
    return Way(BASELINE, bundle.plain_network, torch.float32)


@torch.no_grad()
def _serve(config_files: Sequence[str], device: str, weights: bool, slab_shape: Sequence[int], batch_size: int) -> None:
    """Do what each line of the standard input asks for, and answer with a line."""
    answers, sys.stdout = sys.stdout, sys.stderr
    bundle = Bundle(config_files, device, weights)
    way, slabs = plain(bundle), bundle.slabs(batch_size, *slab_shape)
    asked = {"slabs": lambda: way(slabs), "volume": lambda: bundle.sample(way, bundle.source)}
    for line in sys.stdin:
        asked[line.strip()]()
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    _serve(**json.loads(sys.argv[1]))
