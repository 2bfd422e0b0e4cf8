"""Learning curves of one or several trainings, read from their TensorBoard events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ..errors import CaseError

_PANELS = (
    ("loss", "training loss"),
    ("psnr_brain", "validation PSNR in the brain (dB)"),
    ("ssim_brain", "validation SSIM in the brain"),
)


@dataclass(frozen=True)
class Curves:
    """What a training logged.

    Attributes:
        name: of its folder.
        minutes: wall time from the first to the last logged value, without the pauses between its starts.
        points: tag -> (iterations, values), iterations rising.
    """

    name: str
    minutes: float
    points: dict[str, tuple[np.ndarray, np.ndarray]]


def read_curves(folder: str | Path) -> Curves:
    """The curves of a training's output folder, of all its starts together.

    Validation is logged by epoch; its values are put at the iteration that was reached when they were written.

    Raises:
        CaseError: no logged loss in the folder.
    """
    folder = Path(folder)
    spans, logged = [], {tag: [] for tag, _ in _PANELS}
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda p: p.name.split(".")[3]):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        scalars = {tag: events.Scalars(tag) for tag in logged if tag in events.Tags()["scalars"]}
        for tag, values in scalars.items():
            logged[tag] += [(v.wall_time, v.step, v.value) for v in values]
        times = [v.wall_time for values in scalars.values() for v in values]
        spans += [(min(times), max(times))] if times else []
    if not logged["loss"]:
        raise CaseError(f"{folder} has no events with a loss; give the output folder of a training.")
    progress = np.array(sorted(logged["loss"]))
    points = {}
    for tag, values in logged.items():
        times, steps, numbers = np.array(sorted(values)).reshape(-1, 3).T
        iterations = steps if tag == "loss" else np.round(np.interp(times, progress[:, 0], progress[:, 1]))
        points[tag] = _latest(iterations, numbers)
    return Curves(folder.resolve().name, _covered(spans) / 60, points)


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals: several files of one start overlap, those of another start do not."""
    total, reached = 0.0, -np.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _latest(iterations: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By rising iteration; of those that a resumed training went through twice, the later one."""
    last = dict(zip(iterations.tolist(), values.tolist(), strict=True))
    return np.array(sorted(last)), np.array([last[iteration] for iteration in sorted(last)])


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Mean of about a fortieth of the values around each one, fewer at the ends."""
    reach = len(values) // 80
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def draw_curves(runs: Sequence[Curves]) -> Figure:
    """Loss, PSNR and SSIM against iterations, a line for each training, its wall time in the legend.

    A figure that none of the trainings logged has no panel.
    """
    panels = [(tag, title) for tag, title in _PANELS if any(len(run.points[tag][0]) for run in runs)]
    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    for axes, (tag, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, run in enumerate(runs):
            iterations, values = run.points[tag]
            label = f"{run.name}, {run.minutes:.0f} min"
            if tag == "loss":
                axes.plot(iterations, values, color=f"C{number}", alpha=0.2, linewidth=0.8)
                axes.plot(iterations, _smoothed(values), color=f"C{number}", label=label)
                axes.set_yscale("log")
            else:
                axes.plot(iterations, values, "o-", color=f"C{number}", markersize=3, label=label)
        axes.set_xlabel("iterations")
        axes.set_title(title, fontsize="medium")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    return figure


def learning_curves(*paths: str) -> str:
    """Draw the learning curves of trainings: RUN_DIR... OUTPUT.png

    Args:
        paths: output folders of trainings, then the picture to write (.png, .svg or .pdf).

    Returns:
        the picture's path.

    Raises:
        CaseError: no folder, no picture, or a folder without a training.
    """
    *folders, output = [Path(str(path)) for path in paths] or [Path()]
    if not folders or output.suffix not in (".png", ".svg", ".pdf"):
        raise CaseError("Learning curves need one or more folders of trainings, then a .png, .svg or .pdf to write.")
    figure = draw_curves([read_curves(folder) for folder in folders])
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    return str(output)
