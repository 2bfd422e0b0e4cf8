"""What was measured as one picture: a panel for each part."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

GIBIBYTE = 2**30
_WIDTH = 6.0  # inches of a panel
_HEIGHT = 3.6


def plot(results: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Draw the parts that were measured as PNG, two panels a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(draw, results[part]) for part in PANELS if part in results for draw in PANELS[part](results[part])]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (draw, result) in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
        draw(axes, result)
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _speeds(axes: Any, network: Mapping[str, Any]) -> None:
    """Times of a slab as bars, with what share of the machine's limit they reach."""
    rows = network["rows"]
    times = [1000 * row["seconds_per_slab"] for row in rows]
    bars = axes.barh([row["name"] for row in rows], times, color=_colours(len(rows)))
    labels = [
        f"{row['times_faster']['median']:.2f} times, {100 * row['share_of_limit']:.0f} % of the limit" for row in rows
    ]
    axes.bar_label(bars, labels, padding=4, fontsize=8)
    axes.set(xlabel="ms a slab", xlim=(0, 1.8 * max(times)), title="One evaluation of the network")
    axes.invert_yaxis()


def _limits(axes: Any, limit: Mapping[str, Any]) -> None:
    names = list(limit["products"])
    rates = [limit["products"][name]["flop_per_second"] / 1e9 for name in names]
    axes.bar_label(axes.barh(names, rates, color=_colours(len(names))), fmt="%.0f", padding=4, fontsize=8)
    axes.set(xlabel="GFLOP/s", xlim=(0, 1.2 * max(rates)), title=f"Matrix product, {limit['size']} a side")
    axes.invert_yaxis()


def _phases(axes: Any, volumes: Sequence[Mapping[str, Any]]) -> None:
    """What the wall time of each volume is spent on, as stacked bars."""
    names = list(dict.fromkeys(name for v in volumes for name in v["phases"]))
    labels = [f"{v['name']}\n{' x '.join(map(str, v['shape']))}" for v in volumes]
    left = np.zeros(len(volumes))
    for name, colour in zip(names, _colours(len(names)), strict=True):
        seconds = np.array([max(v["phases"].get(name, 0.0), 0.0) for v in volumes])
        axes.barh(labels, seconds, left=left, label=name, color=colour, height=0.5)
        left += seconds
    axes.set(xlabel="s", title="The main job, from command to prompt")
    axes.set_ylim(-0.6 - 0.5 * len(volumes), len(volumes) - 0.4)
    axes.legend(fontsize=7, ncols=3, loc="lower center")


def _curve(key: str, value: str, unit: float, label: str, title: str) -> Callable[[Any, Mapping[str, Any]], None]:
    """A panel: points and their straight line."""

    def draw(axes: Any, growth: Mapping[str, Any]) -> None:
        points, line = growth[key]["points"], growth[key][value]
        x = np.array([p[key] for p in points])
        axes.plot(x, [p[value] / unit for p in points], "o", ms=4)
        axes.plot(x, (line["intercept"] + line["slope"] * x) / unit, "-", lw=1, alpha=0.6)
        top = max(p[value] for p in points) / unit
        axes.set(xlabel=key, ylabel=label, title=title, xlim=(0, None), ylim=(0, 1.1 * top), xticks=[0, *x])
        axes.grid(alpha=0.3)

    return draw


def _cohort(axes: Any, cohort: Mapping[str, Any]) -> None:
    names = ["wall time", "computing"]
    bars = axes.barh(names, [cohort["seconds"], cohort["computing"]], color=_colours(2))
    axes.bar_label(bars, fmt="%.1f s", padding=4, fontsize=8)
    axes.set(xlabel="s", xlim=(0, 1.2 * cohort["seconds"]), title=f"{cohort['cases']} cases in one run")


def _colours(number: int) -> list[str]:
    """Colours of as many things, by matplotlib's names."""
    return [f"C{n % 10}" for n in range(number)]


def _growth(growth: Mapping[str, Any]) -> list[Callable[[Any, Any], None]]:
    curves = [
        _curve("slices", "seconds", 1, "s", "Sampling, by slices"),
        _curve("slices", "peak_bytes", GIBIBYTE, "GiB", "Peak memory, by slices"),
    ]
    return [*curves, _curve("cases", "seconds", 1, "s", "The main job, by cases")] if "cases" in growth else curves


PANELS: dict[str, Callable[[Any], list[Callable[[Any, Any], None]]]] = {
    "limit": lambda _: [_limits],
    "network": lambda _: [_speeds],
    "volume": lambda _: [_phases],
    "growth": _growth,
    "cohort": lambda _: [_cohort],
}
"""Part -> its panels, given its result; each is called (axes, result)."""
