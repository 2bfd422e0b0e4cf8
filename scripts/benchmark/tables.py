"""What was measured as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..evaluation.figures import markdown_table

MEBIBYTE = 2**20


def as_markdown(measured: Mapping[str, Any]) -> str:
    """Tables of all parts that were measured, with a sentence on each, and the machine below them."""
    results = measured["results"]
    texts = [TABLES[part](results[part]) for part in TABLES if part in results]
    return "\n\n".join([*texts, _machine(measured)]) + "\n"


def _limit(limit: Mapping[str, Any]) -> str:
    rows = [[name, _rate(product["flop_per_second"])] for name, product in limit["products"].items()]
    size = limit["size"]
    return f"A matrix product of {size} x {size} by {size} x {size}:\n\n" + markdown_table(["", "GFLOP/s"], rows)


def _network(network: Mapping[str, Any]) -> str:
    header = [
        "",
        "ms a slab",
        "times faster (rounds)",
        "GFLOP a slab",
        "GFLOP/s",
        "of the matrix product",
        "memory of a batch",
        "first call",
    ]
    header += ["evaluations", "s a volume", "PSNR against float32"]
    rows = []
    for row in network["rows"]:
        faster = row["times_faster"]
        rounds = f"{faster['median']:.2f} ({faster['lowest']:.2f} to {faster['highest']:.2f})"
        flop = f"{row['flop_per_slab'] / 1e9:,.4g}"
        speed = [f"{1000 * row['seconds_per_slab']:.1f}", rounds, flop, _rate(row["flop_per_second"])]
        quality = "exact" if row["psnr_db"] is None else f"{row['psnr_db']:.1f} dB"
        share, volume = f"{100 * row['share_of_limit']:.0f} %", f"{row['seconds_per_volume']:.1f}"
        memory = [_mebibytes(row["memory_bytes"]), f"{row['first_call_seconds']:.1f} s"]
        rows.append([row["name"], *speed, share, *memory, f"{row['evaluations']:g}", volume, quality])
    height, width = network["slab_shape"]
    text = (
        f"One evaluation of the network ({network['parameters']:,} parameters) on slabs of {height} x {width}, "
        f"{network['batch_size']} at once. Some implementations take fewer FLOP than the network as it is defined."
    )
    return f"{text} {_how_sampled(network)}\n\n{markdown_table(header, rows)}"


def _how_sampled(network: Mapping[str, Any]) -> str:
    slices = network["rows"][0]["slices"]
    if network["weights"]:
        return f"A volume is the sample's {slices} slices, sampled whole; PSNR is that of its volume in [0, 1]."
    return (
        f"Without weights: the network is initialised at random (seed 0). A volume has {slices} such slabs, its time "
        "is computed from that of one; PSNR is that of one evaluation, the peak being the range of the float32 result."
    )


def _volume(volumes: Sequence[Mapping[str, Any]]) -> str:
    header = ["", "voxels", "mm", "wall time", "peak memory", "slices", "evaluations"]
    header += ["ms a slice and evaluation", "sampling's share"]
    rows = []
    for v in volumes:
        sampling = v["phases"]["sampling"]
        each = 1000 * sampling / (v["slices"] * v["evaluations"])
        size = [" x ".join(f"{a:g}" for a in v[key]) for key in ("shape", "spacing_mm")]
        work = [str(v["slices"]), f"{v['evaluations']:g}", f"{each:.1f}", f"{100 * sampling / v['seconds']:.0f} %"]
        rows.append([v["name"], *size, f"{v['seconds']:.1f} s", _mebibytes(v["peak_bytes"]), *work])
    names = list(dict.fromkeys(name for v in volumes for name in v["phases"]))
    spent = [[v["name"], *(f"{v['phases'].get(name, 0):.2f}" for name in names)] for v in volumes]
    return (
        f"The main job, from the command to the prompt:\n\n{markdown_table(header, rows)}\n\n"
        "Where the time goes, s (the steps one by one in another run; the rest is the wall time beyond them):\n\n"
        + markdown_table(["", *names], spent)
    )


def _growth(growth: Mapping[str, Any]) -> str:
    titles = {"slices": "Sampling, by slices", "cases": "The main job, by cases"}
    return "\n\n".join(_curve(titles[key], key, growth[key]) for key in titles if key in growth)


def _curve(title: str, key: str, curve: Mapping[str, Any]) -> str:
    """Points of a curve, and the straight line through them."""
    rows = [[str(p[key]), f"{p['seconds']:.1f}", _mebibytes(p["peak_bytes"])] for p in curve["points"]]
    seconds, memory = curve["seconds"], curve["peak_bytes"]
    line = (
        f"A straight line: {seconds['intercept']:.1f} s and {seconds['slope']:.3f} s for each; no point is further "
        f"from it than {100 * seconds['deviation']:.1f} %. Memory grows by "
        f"{memory['slope'] / MEBIBYTE:.2f} MiB for each"
    )
    arrays = f", {curve['arrays']:.1f} times a float32 slice." if "arrays" in curve else "."
    return f"{title}:\n\n{markdown_table([key, 'seconds', 'peak memory'], rows)}\n\n{line}{arrays}"


def _cohort(cohort: Mapping[str, Any]) -> str:
    phases = cohort["phases"]
    header = ["cases", "peak memory", *(f"{phase}, all" for phase in phases), "first to last case"]
    header += ["by preprocessing and sampling"]
    row = [str(cohort["cases"]), _mebibytes(cohort["peak_bytes"]), *(f"{s:.1f} s" for s in phases.values())]
    row += [f"{cohort['seconds']:.1f} s", f"{cohort['overhead']:.3f}"]
    return f"Many cases in one run, times counted by the run itself:\n\n{markdown_table(header, [row])}"


TABLES: dict[str, Callable[[Any], str]] = {
    "limit": _limit,
    "network": _network,
    "volume": _volume,
    "growth": _growth,
    "cohort": _cohort,
}
"""Part -> the text that tells it."""


def _machine(measured: Mapping[str, Any]) -> str:
    machine, versions = measured["machine"], measured["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads"
    return f"{where}; {named}.\n\n    {measured['command']}"


def _rate(flop_per_second: float) -> str:
    return f"{flop_per_second / 1e9:,.0f}"


def _mebibytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / MEBIBYTE:,.0f} MiB"
