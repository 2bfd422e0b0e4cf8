"""The floating type of the network's calls: as set, or the faster one on the machine at hand, measured once and kept.

That a processor has instructions for bfloat16 does not say that they are fast: on some Intel processors this bundle's
network takes 56 ms a slab in bfloat16 and 36 ms in float32. So `auto` measures the network itself.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import CaseError
from .files import write_whole
from .inferers.bridge import call_network

__all__ = ["compute_dtype", "measured_types", "type_chosen_by"]

logger = logging.getLogger(__name__)

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MARGIN = 1.03
"""Times that bfloat16 has to be as fast as float32 to be chosen: what is nearly a tie goes to the exact one."""
BATCH = (8, 104, 128)
"""Slabs of the main job's call, and their height and width."""
SMALL = (1, 32, 32)
LARGE = (1, 104, 128)
MEDIUM = (1, 64, 64)
"""Two calls from which `BATCH` is extrapolated on a CPU: the small one, and the large one if there is time for it."""
LIMIT = 1.0  # seconds
"""No round of the measurement starts that would end later than this after its beginning."""
TOO_SLOW = 0.25  # seconds
"""A network whose small call takes longer is represented by typical layers."""
SETTLED = 1.05
"""Times have settled when the two lowest of each call differ by less than this factor."""
CLEARLY = 1.25
"""Times that float32 has to be as fast as bfloat16 to be chosen when the times have not settled."""

_in_memory: dict[str, dict[str, Any]] = {}


def compute_dtype(name: str, device: torch.device | str, network: nn.Module | None = None) -> torch.dtype:
    """The floating type of the network's calls.

    Args:
        name: "float32", "bfloat16" or "float16", or "auto": bfloat16 where the processor or GPU has it and it is the
            faster one for this network, else float32. That is measured when it is first asked for, and kept in the
            user's cache folder, so that it is the same from run to run; `dtype` set to a type is measured nowhere.
            On a machine too busy to measure it is bfloat16, unless float32 is clearly faster, for this run only.
        device: where the network runs.
        network: called as `network(x, timesteps, context=style_key, source=y)`; it is neither moved nor changed. None,
            and one that takes other inputs, is represented by layers such as networks of slabs have.

    Returns:
        the type. Training takes that of the forward pass: its backward pass is of the same layers, and gains alike (on
        two cores of an AMD EPYC, 1.7 times for the forward pass and 1.8 for both).

    Raises:
        CaseError: another name.
    """
    if name in TYPES:
        return TYPES[name]
    if name != "auto":
        raise CaseError(f"dtype is {name}; use one of auto, {', '.join(TYPES)}.")
    device = torch.device(device)
    if not _has_bfloat16(device):
        return torch.float32
    chosen, where = _kept_or_measured(device, network)
    faster = f"bfloat16 is {chosen['times_as_fast']:.2f} times as fast as float32 here"
    if not chosen.get("settled", True):
        faster = f"the machine is too busy for a reliable measurement, in which {faster}"
    logger.info(f"dtype auto: {chosen['dtype']}; {faster} (kept in {where}).")
    return TYPES[chosen["dtype"]]


def type_chosen_by(name: str, device: torch.device | str) -> str:
    """What `compute_dtype` goes by: "setting", "measured", or "processor" where there is no bfloat16 to measure."""
    if name != "auto":
        return "setting"
    return "measured" if _has_bfloat16(torch.device(device)) else "processor"


def _has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 natively; where it is emulated it is many times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _kept_or_measured(device: torch.device, network: nn.Module | None) -> tuple[dict[str, Any], str]:
    """The choice, {"dtype", "times_as_fast"} and "settled" where it is not, and where it is kept."""
    key, file = _key(device, network), _cache_file()
    chosen = _in_memory.get(key) or _read(file).get(key)
    if chosen is None:
        chosen = _choice(measured_types(device, network))
        # of several processes on one machine, the first whose times settle decides for all
        chosen = _keep(file, key, chosen) if chosen.get("settled", True) else _read(file).get(key, chosen)
    _in_memory[key] = chosen
    return chosen, str(file) if key in _read(file) else "memory, until the program ends"


def _choice(measured: Mapping[str, float]) -> dict[str, Any]:
    """The faster type; where the times have not settled, one that hardly depends on them, marked as such."""
    ratio, spread = measured["float32"] / measured["bfloat16"], measured.get("spread", 1.0)
    if spread < SETTLED:
        return {"dtype": "bfloat16" if ratio >= MARGIN else "float32", "times_as_fast": round(ratio, 3)}
    clearly_slower = ratio * CLEARLY <= 1 and spread < CLEARLY
    return {"dtype": "float32" if clearly_slower else "bfloat16", "times_as_fast": round(ratio, 3), "settled": False}


def _key(device: torch.device, network: nn.Module | None) -> str:
    """What the choice depends on: processor or GPU, PyTorch, and the network's layers."""
    if device.type == "cuda":
        machine = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    else:
        machine = f"{_processor()}, one thread"
    return f"{machine}, PyTorch {torch.__version__}, network {_digest(repr(network))}"


def _processor() -> str:
    """Name of the processor, and a digest of what it can do."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    flags = facts.get("flags") or facts.get("Features", "")  # on ARM
    return f"{facts.get('model name', platform.machine())}, flags {_digest(flags)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]


def _cache_file() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(folder) / "brain_ct_to_mri" / "floating_type.json"


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """The choices that are kept; what is not there, damaged or of another form is left out."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: entry for key, entry in kept.items() if _is_choice(entry)} if isinstance(kept, dict) else {}


def _is_choice(entry: Any) -> bool:
    known = isinstance(entry, dict) and entry.get("dtype") in ("float32", "bfloat16")
    return known and isinstance(entry.get("times_as_fast"), int | float)


def _keep(file: Path, key: str, chosen: dict[str, Any]) -> dict[str, Any]:
    """Keep a choice, unless another process has kept its own meanwhile: then that one counts."""
    kept = {key: chosen, **_read(file)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(kept, indent=1) + "\n")
    except OSError as error:
        logger.info(f"The floating type is not kept beyond this run: {error}")
    return kept[key]


def measured_types(device: torch.device, network: nn.Module | None, least_rounds: int = 3) -> dict[str, float]:
    """Seconds of one call of a network with `BATCH` in "float32" and "bfloat16", and their "spread".

    The types take turns and the least of several times counts: whatever else the machine does makes a call longer,
    never shorter. There are more turns until the times have settled, within about a second. On a CPU it is the
    processor time of a single thread: several threads wait for one another when another process holds up one of them,
    and a call of 20 ms was seen to take a second.

    Args:
        device: where it is called.
        network: see `compute_dtype`.
        least_rounds: turns before the times may count as settled.

    Returns:
        the seconds (on a CPU, those of one thread), and as "spread" the ratio of the two lowest times of a call, the
        largest of all calls': 1 is perfect, from `SETTLED` the times are not reliable, infinite with a single time.
    """
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):  # the run's random numbers stay what they are
        typical = _TypicalLayers()
    for candidate in (network, typical):
        if candidate is None or not any(p.is_floating_point() for p in candidate.parameters()):
            continue
        try:
            copied = copy.deepcopy(candidate).to(device, memory_format=torch.channels_last).eval()
            if device.type == "cuda":
                return _seconds_of_batch(copied, device, least_rounds)
            with _one_thread():
                return _seconds_extrapolated(copied, device, least_rounds, start + LIMIT)
        except (RuntimeError, TypeError, ValueError):  # it takes other inputs, or more time or memory than there is
            logger.debug("the network cannot be tried", exc_info=True)
    return {"float32": 1.0, "bfloat16": 1.0, "spread": math.inf}


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _seconds_of_batch(network: nn.Module, device: torch.device, least_rounds: int) -> dict[str, float]:
    """On a GPU: fewer slabs would wait for the next kernel and not for its arithmetic."""
    calls = _calls(network, device, BATCH)
    for call in calls.values():  # a first call loads and chooses its kernels, for seconds
        _seconds(call, device)
    times = _in_turns(calls, device, least_rounds, time.perf_counter() + LIMIT)
    return {name: min(values) for name, values in times.items()} | {"spread": _spread(times)}


def _seconds_extrapolated(
    network: nn.Module, device: torch.device, least_rounds: int, deadline: float
) -> dict[str, float]:
    """On a CPU: what each call takes, whatever its size, and what each pixel takes; the whole would take seconds."""
    small = _calls(network, device, SMALL)
    for name, call in small.items():  # a first call chooses its kernels
        if _seconds(call, device) > TOO_SLOW:
            raise RuntimeError(f"a call in {name} takes too long to be repeated")
    size = _size_that_fits(small, deadline, least_rounds)
    large = _calls(network, device, size)
    for call in large.values():
        call()
    calls = {("small", name): call for name, call in small.items()} | {("large", n): c for n, c in large.items()}
    times = _in_turns(calls, device, least_rounds, deadline)
    seconds = {key: min(values) for key, values in times.items()}
    pixels, fewer, more = (math.prod(shape) for shape in (BATCH, SMALL, size))
    factor = (pixels - fewer) / (more - fewer)
    return {
        name: seconds["small", name] + factor * max(0.0, seconds["large", name] - seconds["small", name])
        for name in small
    } | {"spread": _spread(times)}


def _size_that_fits(small: Mapping[str, Callable[[], Any]], deadline: float, least_rounds: int) -> tuple[int, int, int]:
    """`LARGE` if there is time for it by what small calls take now, a call not counted and the small ones included."""
    start = time.perf_counter()
    for call in small.values():
        call()
    now = time.perf_counter()
    per_pixel = (now - start) / math.prod(SMALL)
    needed = per_pixel * (least_rounds + 1) * (math.prod(LARGE) + math.prod(SMALL))
    return LARGE if now + needed < deadline else MEDIUM


def _in_turns(
    calls: Mapping[Hashable, Callable[[], Any]], device: torch.device, least_rounds: int, deadline: float
) -> dict[Hashable, list[float]]:
    """Seconds of each call, round by round until they settle, or another round might pass the deadline."""
    times: dict[Hashable, list[float]] = {key: [] for key in calls}
    longest = 0.0
    for done in itertools.count(1):
        start = time.perf_counter()
        for key, call in calls.items():
            times[key].append(_seconds(call, device))
        now = time.perf_counter()
        longest = max(longest, now - start)
        if now + longest > deadline or (done >= least_rounds and _spread(times) < SETTLED):
            break
    return times


def _spread(times: Mapping[Hashable, list[float]]) -> float:
    """The second lowest time by the lowest, the largest of all calls'; infinite where there is no second one."""
    lowest = (sorted(values)[:2] for values in times.values())
    return max(pair[1] / max(pair[0], 1e-9) if len(pair) == 2 else math.inf for pair in lowest)


def _calls(network: nn.Module, device: torch.device, size: tuple[int, int, int]) -> dict[str, Callable[[], Tensor]]:
    """One call of a network in each type, as the inferers call it, for slabs of (number, H, W)."""
    number, *plane = size
    factor = getattr(getattr(network, "codec", None), "factor", 1)
    plane = [pixels // factor for pixels in plane]
    slab_size = getattr(network, "slab_size", 3)
    target_and_source = getattr(network, "slice_channels", (1, 1, 0))[:2]
    # values do not matter; random ones would change those of the run
    sample, source = (
        torch.linspace(-1, 1, c * math.prod(plane)).reshape(1, c, *plane).repeat(number, 1, 1, 1).to(device)
        for c in (channels * slab_size for channels in target_and_source)
    )
    call = torch.no_grad()(partial(call_network, network, sample=sample, source=source, timesteps=500))
    return {name: partial(call, dtype=TYPES[name]) for name in ("float32", "bfloat16")}


def _seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    """Wall time of a call on a GPU, its work included; on a CPU the calling thread's time on the processor."""
    if device.type != "cuda":
        start = time.thread_time()
        call()
        return time.thread_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


class _TypicalLayers(nn.Module):
    """Layers such as networks of slabs have, with their sizes in this bundle's: convolutions, norms, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(24, 64, 3, padding=1)
        self.convolutions = nn.ModuleList(nn.Conv2d(64, 64, 3, padding=1) for _ in range(4))
        self.norms = nn.ModuleList(nn.GroupNorm(16, 64) for _ in range(4))
        self.down = nn.Conv2d(64, 192, 4, stride=4)
        self.projection = nn.Linear(192, 3 * 192)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, source: Tensor | None = None):
        """(n, 3, H, W) slabs -> (n, 192, H/8, W/8) features."""
        h = self.stem(functional.pixel_unshuffle(torch.cat([x, source], dim=1), 2))
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = h + convolution(functional.silu(norm(h)))
        h = self.down(h)
        tokens = self.projection(h.flatten(2).transpose(1, 2)).unflatten(-1, (3, 3, 64)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*tokens).transpose(1, 2).flatten(2)
        return h + attended.transpose(1, 2).reshape(h.shape)
