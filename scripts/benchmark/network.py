"""The part "network": seconds a slab of each way to evaluate it, in turns, and how far its result is from float32."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..devices import keep_freed_memory
from . import machine
from .bundle import Bundle, Way
from .measuring import alternate, count_flop, memory_of, psnr, seconds_of, times_faster
from .rows import BASELINE, WAYS, PlainProcess

SLABS_OF_A_HEAD = 160
"""Slabs of the volume whose time is computed where it is too long to be measured."""


@torch.no_grad()
def measure_network(
    bundle: Bundle, names: Sequence[str], slab_shape: tuple[int, int], batch_size: int, rounds: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time the ways and the matrix products in turns, then sample the config's volume in each way.

    Args:
        bundle: what is measured.
        names: of `WAYS`; the baseline comes first in any case.
        slab_shape: height and width of a slab, pixels.
        batch_size: slabs in one call.
        rounds: times that each way is timed.

    Returns:
        results of the parts "limit" and "network".
    """
    ways = [WAYS[name](bundle) for name in dict.fromkeys(["plain", *names])]
    slabs = bundle.slabs(batch_size, *slab_shape)
    calls = {way.name: partial(way, slabs) for way in ways}
    rows, predictions = {}, {}
    for name, call in calls.items():
        first = seconds_of(call, bundle.device)
        predictions[name], memory = memory_of(call, bundle.device)
        # ONNX Runtime keeps what its first call took
        rows[name] = {"first_call_seconds": first, "memory_bytes": memory or None}
    # from here on as in the main job, but for the baseline
    keep_freed_memory()
    dtypes = dict.fromkeys([*machine.DTYPES, *(way.dtype for way in ways)])
    products = machine.matrix_products(bundle.device, list(dtypes))
    with PlainProcess(bundle, slab_shape, batch_size) as baseline:
        calls[BASELINE] = baseline.slabs
        alternate(calls, 1, bundle.device)
        seconds = alternate({**products, **calls}, rounds, bundle.device)
        sampled = _sampled(bundle, ways, baseline) if bundle.has_weights else None
    # last, because the counter keeps torch.compile from compiling
    flop = {way.name: count_flop(partial(way, slabs)) / batch_size for way in ways}
    limit = machine.rates({name: seconds[name] for name in products})
    for way in ways:
        product = seconds[machine.name_of(way.dtype)]
        # what runs outside of PyTorch's operations cannot be counted; it stands for what the plain network does
        counted = flop[way.name] or flop[BASELINE]
        rows[way.name] |= _speed(seconds[way.name], seconds[BASELINE], product, counted, batch_size)
    sampled = sampled or _computed(bundle, ways, rows, predictions)
    result = {
        "parameters": sum(p.numel() for p in bundle.plain_network.parameters()),
        "weights": bundle.has_weights,
        "slab_shape": list(slab_shape),
        "batch_size": batch_size,
        "flop_per_slab": flop[BASELINE],
        "rows": [{"name": way.name, **rows[way.name], **sampled[way.name]} for way in ways],
    }
    return limit, result


def _speed(
    seconds: Sequence[float], baseline: Sequence[float], product: Sequence[float], flop: float, batch_size: int
) -> dict[str, Any]:
    """Seconds a slab, FLOP per second, and both beside the baseline and the matrix product of the same rounds."""
    slab = statistics.median(seconds) / batch_size
    limits = [2 * machine.SIZE**3 / p for p in product]
    shares = [flop * batch_size / s / most for s, most in zip(seconds, limits, strict=True)]
    return {
        "seconds": list(seconds),
        "seconds_per_slab": slab,
        "times_faster": times_faster(baseline, seconds),
        "flop_per_slab": flop,
        "flop_per_second": flop / slab,
        "share_of_limit": statistics.median(shares),
    }


def _sampled(bundle: Bundle, ways: Sequence[Way], baseline: PlainProcess) -> dict[str, dict[str, Any]]:
    """The config's sampler on its first volume, in each way: evaluations, seconds, and PSNR against the baseline."""
    figures: dict[str, dict[str, Any]] = {}
    volumes: dict[str, Tensor] = {}

    def sample(way: Way) -> None:
        sampling = bundle.sample(way, bundle.source)
        volumes[way.name] = sampling.volume
        figures[way.name] = {"evaluations": sampling.evaluations, "slices": bundle.source.shape[-1]}

    for way in ways:
        bundle.sample(way, _short(bundle))
    calls = {way.name: partial(sample, way) for way in ways}
    calls[BASELINE]()  # its volume comes from here, its time from a process of its own
    calls[BASELINE] = baseline.volume
    for name, (seconds,) in alternate(calls, 1, bundle.device).items():
        figures[name] |= {"seconds_per_volume": seconds, "psnr_db": psnr(volumes[name], volumes[BASELINE])}
    return figures


def _short(bundle: Bundle) -> Tensor:
    """The first slices of the volume: batches of both sizes that the whole of it has, so that neither is new later."""
    size = bundle.default_batch_size()
    return bundle.source[..., : size + bundle.source.shape[-1] % size]


def _computed(
    bundle: Bundle, ways: Sequence[Way], rows: Mapping[str, Mapping[str, Any]], predictions: Mapping[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """As `_sampled` for a network without weights: PSNR of one evaluation, and a volume's time from that of a slab."""
    echo = Way("", lambda x, *_, **__: x, torch.float32)
    evaluations = bundle.sample(echo, torch.zeros(1, 1, 8, 8, SLABS_OF_A_HEAD)).evaluations
    return {
        way.name: {
            "evaluations": evaluations,
            "slices": SLABS_OF_A_HEAD,
            "seconds_per_volume": rows[way.name]["seconds_per_slab"] * SLABS_OF_A_HEAD * evaluations,
            "psnr_db": psnr(predictions[way.name], predictions[BASELINE]),
        }
        for way in ways
    }
