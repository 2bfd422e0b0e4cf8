"""Samplers against their number of steps: quality, sharpness and time."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..schedulers import sampler_named
from .ablation import by_row, quality_table, write_pair
from .study import Result

FIGURES = (
    *("psnr_brain", "ssim_brain", "nrmse_brain", "pearson_brain"),
    *("sharpness_brain", "highpass_brain", "i_ssim_brain"),
)
PLOTTED = {
    "psnr_brain": "PSNR in the brain (dB)",
    "ssim_brain": "SSIM in the brain",
    "sharpness_brain": "gradient energy, share of the real image's",
    "seconds": "seconds a volume",
}


def sampler_variants(
    curves: Sequence[Sequence[str]], steps: Sequence[int], style_key: str | None = "average"
) -> dict[str, dict]:
    """Row name -> settings of the inferer, for each (sampler, timestep spacing) at each number of steps."""
    return {
        f"{sampler_named(sampler).paper_name} {sampler}, {spacing}, {number}".lstrip(): {
            "style_key": style_key,
            "sampler": sampler,
            "timestep_spacing": spacing,
            "num_inference_steps": number,
        }
        for sampler, spacing in curves
        for number in steps
    }


def curve_points(results: Sequence[Result]) -> dict[str, list[dict[str, float]]]:
    """Curve ("F3 mean_path, linear") -> its points by steps: mean over subjects of each plotted value."""
    curves: dict[str, list[dict[str, float]]] = {}
    for name, row in by_row(results).items():
        if name == "real":
            continue
        curve, _, steps = name.rpartition(", ")
        taken = [{**r.figures, "seconds": r.seconds} for r in row.values()]
        point = {key: sum(t[key] for t in taken) / len(taken) for key in PLOTTED}
        curves.setdefault(curve, []).append({"steps": int(steps), **point})
    return {curve: sorted(points, key=lambda p: p["steps"]) for curve, points in curves.items()}


def plot_curves(curves: Mapping[str, Sequence[Mapping[str, float]]], path: str | os.PathLike) -> None:
    """Draw each plotted value against the number of steps, a line for each curve, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (key, title) in zip(figure.subplots(2, 2).flat, PLOTTED.items(), strict=True):
        for curve, points in curves.items():
            style = "--" if "linear" in curve else "-"
            axes.plot([p["steps"] for p in points], [p[key] for p in points], style, marker="o", ms=3, label=curve)
        steps = sorted({p["steps"] for points in curves.values() for p in points})
        axes.set(xscale="log", xlabel="steps", title=title, yscale="log" if key == "seconds" else "linear")
        axes.set_xticks(steps, map(str, steps), minor=False)
        axes.set_xticks([], minor=True)
        axes.set_ylim(*_range_without_outliers([p[key] for points in curves.values() for p in points]))
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def _range_without_outliers(values: Sequence[float], reach: float = 3.0) -> tuple[float, float]:
    """Range of the values within `reach` interquartile ranges of the middle half, and a margin: one sampler that fails
    does not flatten the others' curves."""
    low, high = np.percentile(values, [25, 75])
    spread = reach * max(high - low, 1e-6)
    kept = [v for v in values if low - spread <= v <= high + spread]
    margin = 0.05 * max(max(kept) - min(kept), 1e-6)
    return min(kept) - margin, max(kept) + margin


def write_samplers(results: Sequence[Result], path: str | os.PathLike, notes: Mapping[str, object]) -> None:
    """Write the table as Markdown, the points as JSON and as a picture beside it; print the table.

    Args:
        results: of `run_study` with `sampler_variants`.
        path: of the Markdown file.
        notes: what was done, told below the table by name.
    """
    notes = {"subjects": ", ".join(dict.fromkeys(r.subject for r in results)), **notes}
    curves = curve_points(results)
    text = quality_table(results, FIGURES)
    text += "\n\nMean ± standard deviation over subjects. Evaluations: of the network on each slab.\n\n"
    text += "\n".join(f"- {name}: {value}" for name, value in notes.items())
    write_pair(text, {"notes": notes, "curves": curves}, path)
    plot_curves(curves, Path(path).with_suffix(".png"))
