"""Distributions as inline SVG: a histogram with a dot for each case below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT, LEFT, BARS, DOTS = 300, 118, 8, 66, 84


def distribution(values: Mapping[str, float], links: Mapping[str, str], digits: int = 3) -> Markup:
    """SVG of the values of several cases; each dot bears its case's name and leads to its page.

    Args:
        values: case -> value.
        links: case -> page.
        digits: decimals of what is written.
    """
    numbers = np.array(list(values.values()), dtype=float)
    low, high = numbers.min(), numbers.max()
    spread = (high - low) or max(abs(high), 1.0) * 0.1
    low, high = low - 0.05 * spread, high + 0.05 * spread
    counts, edges = np.histogram(numbers, bins=min(max(int(np.sqrt(len(numbers)) * 2), 4), 24), range=(low, high))

    def across(value: float) -> float:
        return LEFT + (WIDTH - 2 * LEFT) * (value - low) / (high - low)

    parts = [Markup('<svg class="chart" viewBox="0 0 {} {}" role="img">').format(WIDTH, HEIGHT)]
    parts += _bars(counts, [across(edge) for edge in edges])
    for name, value in values.items():
        dot = '<a href="{}"><circle class="dot" cx="{:.1f}" cy="{}" r="4"><title>{}: {}</title></circle></a>'
        parts.append(Markup(dot).format(links[name], across(value), DOTS, name, f"{value:.{digits}f}"))
    median = float(np.median(numbers))
    parts.append(Markup('<line class="median" x1="{0:.1f}" x2="{0:.1f}" y1="4" y2="92"/>').format(across(median)))
    for value, place, anchor in ((low, LEFT, "start"), (median, across(median), "middle"), (high, WIDTH - LEFT, "end")):
        if anchor == "middle" and not 60 < place < WIDTH - 60:
            continue  # the ends' numbers are there
        text = '<text x="{:.1f}" y="110" text-anchor="{}">{}</text>'
        parts.append(Markup(text).format(place, anchor, f"{value:.{digits}f}"))
    return Markup("").join([*parts, Markup("</svg>")])


def _bars(counts: Sequence[int], edges: Sequence[float]) -> list[Markup]:
    bars = []
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        height = BARS * count / max(counts)
        bar = '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
        bars.append(Markup(bar).format(left + 0.5, 4 + BARS - height, max(right - left - 1, 1), height))
    return bars
