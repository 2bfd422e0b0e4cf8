"""Whether the uncertainty of a synthetic image tells its error; the calibration that makes it do so."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from tqdm import tqdm

from ..calibration import Calibration, fit_calibration
from ..errors import CaseError
from .ablation import write_pair
from .figures import format_spread, markdown_table

FIGURES = {
    "rank_correlation": ("rank correlation with the error", 3),
    "coverage": ("share within 2 SD", 3),
    "mean": ("mean SD", 3),
    "rmse": ("RMSE", 3),
    "coverage_samples": ("share within 2 SD of the samples, not calibrated", 3),
}
_ENOUGH = 200_000  # voxels of a person that a fit needs


@dataclass(frozen=True)
class Doubt:
    """A person's image inside the brain.

    Attributes:
        subject: the name.
        section: of the prepared set.
        spread: (n,) standard deviation of the samples, not calibrated.
        error: (n,) synthetic minus real, both in [0, 1].
        translation: what was made of what, `T1 from T2 + FLAIR`, where that differs.
        person: whose image it is, where a person has several; empty for `subject`.
    """

    subject: str
    section: str
    spread: np.ndarray
    error: np.ndarray
    translation: str = ""
    person: str = ""

    @property
    def whose(self) -> str:
        """Whom it counts for."""
        return self.person or self.subject


def measure_doubt(
    pairs: Iterable[Mapping[str, Any]], inferer: Callable[..., torch.Tensor], network: Callable, device: Any = "cpu"
) -> list[Doubt]:
    """Translate each pair and compare its spread with its error, inside the brain.

    Args:
        pairs: "subject", "section", and "source", "target", "mask": (C or 1, H, W, Z), images in [0, 1]; a network that
            is told its target also "target_contrast", its index; see `Doubt` for "translation" and "person".
        inferer: an `UncertaintyInferer` without calibration.
        network: called as the inferer does.
        device: where the network is.
    """
    found = []
    for pair in tqdm(pairs, desc="uncertainty", unit="subject", disable=None):
        call = network
        if "translation" in pair:
            wanted = torch.tensor([float(pair["target_contrast"])], device=device)
            call = functools.partial(network, target_contrast=wanted)
        with torch.inference_mode():
            made = inferer(pair["source"][None].to(device), call)[0].float().cpu()
        inside = np.asarray(pair["mask"])[0] > 0
        image, spread = (np.asarray(channel)[inside] for channel in made)
        error = image - np.asarray(pair["target"])[0][inside]
        told = (str(pair.get(name, "")) for name in ("translation", "person"))
        found.append(Doubt(str(pair["subject"]), str(pair["section"]), spread, error, *told))
    return found


def doubt_figures(doubt: Doubt, calibration: Calibration) -> dict[str, float]:
    """Figures of a person by the names of `FIGURES`."""
    calibrated, wrong = calibration(doubt.spread), np.abs(doubt.error)
    return {
        "rank_correlation": float(spearmanr(calibrated, wrong).statistic),
        "coverage": float((wrong < 2 * calibrated).mean()),
        "mean": float(calibrated.mean()),
        "rmse": float(np.sqrt(np.square(doubt.error).mean())),
        "coverage_samples": float((wrong < 2 * doubt.spread).mean()),
    }


def fit_persons(doubts: Sequence[Doubt]) -> Calibration:
    """One calibration for all persons, each of which counts alike, however many images there are of one."""
    random = np.random.default_rng(0)
    count = min(_ENOUGH, *(len(doubt.spread) for doubt in doubts))
    images = Counter(doubt.whose for doubt in doubts)
    chosen = [random.choice(len(doubt.spread), count // images[doubt.whose], replace=False) for doubt in doubts]
    spread = np.concatenate([doubt.spread[index] for doubt, index in zip(doubts, chosen, strict=True)])
    error = np.concatenate([doubt.error[index] for doubt, index in zip(doubts, chosen, strict=True)])
    factor, floor = fit_calibration(spread, error)
    return Calibration(round(factor, 4), round(floor, 4))


def write_calibration(
    doubts: Sequence[Doubt],
    path: str | os.PathLike,
    fit_section: str,
    notes: Mapping[str, Any],
    weights_sha256: str,
    sampling: Mapping[str, Any],
) -> None:
    """Fit on one section, measure on the others, and write both: JSON for the main job, and a table beside it.

    Args:
        doubts: of `measure_doubt`.
        path: of the JSON; the Markdown table beside it has the same name.
        fit_section: whose persons the calibration is fitted to.
        notes: what was done, told below the table and in the JSON.
        weights_sha256, sampling: of the weights and the inferer's settings it holds for.

    Raises:
        CaseError: there is nobody to fit to.
    """
    fitted = [doubt for doubt in doubts if doubt.section == fit_section]
    if not fitted:
        raise CaseError(f"None of the subjects is of the section {fit_section}, to fit to; name some of its subjects.")
    calibration = fit_persons(fitted)
    rows = [_row(doubt, calibration) for doubt in doubts]
    measured = [(doubt, row) for doubt, row in zip(doubts, rows, strict=True) if doubt.section != fit_section]
    measured = measured or list(zip(doubts, rows, strict=True))
    means = _by_person(measured)
    content = {
        **{"factor": calibration.factor, "floor": calibration.floor},
        **{"weights_sha256": weights_sha256, "sampling": dict(sampling)},
        "fitted_on": list(dict.fromkeys(doubt.subject for doubt in fitted)),
        **{name: round(float(np.mean(values)), 4) for name, values in means.items()},
        **{"notes": dict(notes), "persons": rows},
    }
    lines = [
        [
            f"{row['subject']}{', ' if doubt.translation else ''}{doubt.translation}",
            row["section"],
            *(f"{row[name]:.{digits}f}" for name, (_, digits) in FIGURES.items()),
        ]
        for doubt, row in zip(doubts, rows, strict=True)
    ]
    for target in dict.fromkeys(doubt.translation.partition(" from ")[0] for doubt, _ in measured if doubt.translation):
        of_it = [(doubt, row) for doubt, row in measured if doubt.translation.startswith(f"{target} from ")]
        lines.append([f"mean to {target}", "not fitted", *_told(_by_person(of_it))])
    text = markdown_table(
        ["", "section", *(title for title, _ in FIGURES.values())], [*lines, ["mean", "not fitted", *_told(means)]]
    )
    text += f"\n\nSD = sqrt({calibration.floor:g}² + ({calibration.factor:g} s)²), s of the samples.\n\n"
    text += "\n".join(f"- {name}: {value}" for name, value in notes.items())
    write_pair(text, content, Path(path).with_suffix(".md"))


def _row(doubt: Doubt, calibration: Calibration) -> dict[str, Any]:
    made = {"translation": doubt.translation} if doubt.translation else {}
    return {"subject": doubt.subject, "section": doubt.section, **made, **doubt_figures(doubt, calibration)}


def _by_person(measured: Sequence[tuple[Doubt, Mapping[str, Any]]]) -> dict[str, list[float]]:
    """The figures of each person, a mean where there are several images of one, by the names of `FIGURES`."""
    people = dict.fromkeys(doubt.whose for doubt, _ in measured)
    own = [[row for doubt, row in measured if doubt.whose == person] for person in people]
    return {name: [float(np.mean([row[name] for row in rows])) for rows in own] for name in FIGURES}


def _told(means: Mapping[str, Sequence[float]]) -> list[str]:
    return [format_spread(means[name], digits) for name, (_, digits) in FIGURES.items()]
