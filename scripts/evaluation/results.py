"""What an evaluation leaves: subjects.csv, summary.md and cases.csv, whoever has made the volumes."""

import csv
import importlib.metadata
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events

from ..errors import CaseError
from ..files import check_folder, write_whole, writing_into
from ..text import number_in, read_table
from .figures import (
    LOWPASS_MM,
    case_table,
    digits_of,
    format_spread,
    label,
    markdown_table,
    mean_and_deviation,
    pointwise_figures,
    unsharp_figures,
    volume_figures,
)
from .significance import compare_runs
from .tissue_dice import SYNTHETIC, TISSUE_FIGURES, TISSUES_BY_BRIGHTNESS, tissue_rows, tissue_table

CASE_COLUMNS = ("subject", "synthetic", "real", "source", "mask", "target_contrast")
_SUMMARIES = ("mean", "std")  # names of the last rows of subjects.csv, which are no subjects
POINTWISE, UNSHARP = "pointwise map of the source", "unsharp mask"
_PACKAGES = ("torch", "monai", "numpy", "scipy", "dipy", "nibabel")


@dataclass
class Evaluation:
    """Figures of several subjects.

    Attributes:
        figures: subject -> figure -> value.
        cases: subject -> "synthetic", "real", "source", "mask" -> file.
        notes: subject -> what was done to its volumes.
        failures: subject -> why it was left out.
        about: what was done to all, by name.
        target_contrast: what the volumes are of.
        baselines: `POINTWISE`, `UNSHARP` -> subject -> figures; the first of those with a source.
        tissues: subject -> `tissue_rows`.
        rows: of a single case, `case_rows`.
    """

    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    cases: dict[str, dict[str, Path]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    target_contrast: str = "T1"
    baselines: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    tissues: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    rows: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, subject: str, measured: "SubjectFigures") -> None:
        """Enter what was measured of a subject."""
        self.figures[subject] = measured.figures
        for name, figures in measured.baselines.items():
            self.baselines.setdefault(name, {})[subject] = figures
        if measured.tissues:
            self.tissues[subject] = measured.tissues


@dataclass(frozen=True)
class SubjectFigures:
    """What is measured of a subject.

    Attributes:
        figures: `subject_figures`.
        baselines: `POINTWISE` (with a source), `UNSHARP` -> figures.
        tissues: `tissue_rows`.
    """

    figures: dict[str, float]
    baselines: dict[str, dict[str, float]]
    tissues: dict[str, dict[str, float]]


def subject_figures(
    image: np.ndarray, reference: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], target_contrast: str = "T1"
) -> dict[str, float]:
    """`volume_figures` and those of the tissues of one synthetic image, (H, W, Z) in [0, 1] and bool."""
    tissues = tissue_rows(image, reference, mask, spacing_mm, target_contrast)
    return {**volume_figures(image, reference, mask, spacing_mm), **tissues.get(SYNTHETIC, {})}


def measure_subject(
    image: np.ndarray,
    reference: np.ndarray,
    mask: np.ndarray,
    spacing_mm: Sequence[float],
    target_contrast: str = "T1",
    source: np.ndarray | None = None,
    source_is_ct: bool = False,
) -> SubjectFigures:
    """All figures of one subject: `subject_figures`, and beside them what the image has to beat.

    Args:
        image, reference: (H, W, Z), [0, 1].
        mask: (H, W, Z) bool, the brain.
        spacing_mm: voxel size.
        target_contrast: of both.
        source: (H, W, Z), in its own unit.
        source_is_ct: whether it is in HU.
    """
    where = mask, spacing_mm
    tissues = tissue_rows(image, reference, *where, target_contrast, source, source_is_ct)
    baselines = {} if source is None else {POINTWISE: pointwise_figures(source, reference, *where)}
    baselines[UNSHARP] = unsharp_figures(image, reference, *where)
    figures = volume_figures(image, reference, *where)
    return SubjectFigures({**figures, **tissues.get(SYNTHETIC, {})}, baselines, tissues)


def write_results(
    evaluation: Evaluation, output_dir: str | os.PathLike, against: str | os.PathLike | None = None
) -> str:
    """Write subjects.csv, summary.md and cases.csv, and failures.json where there are any; returns the summary.

    Args:
        evaluation: of at least one subject.
        output_dir: made if it is not there.
        against: another evaluation's folder or subjects.csv; the summary then has a paired t-test for each figure.

    Raises:
        CaseError: the other evaluation cannot be read or has no subject in common; all files but the summary are there.
    """
    folder = check_folder(output_dir)
    _write_subjects(evaluation.figures, folder / "subjects.csv")
    _write_cases(evaluation, folder)
    write_failures(evaluation.failures, folder)
    text = summary(evaluation)
    if against is not None:
        text += "\n" + comparison(evaluation.figures, against)
    write_whole(folder / "summary.md", text)
    return text


def write_failures(failures: Mapping[str, str], folder: Path) -> None:
    """Write failures.json of subject -> reason; where there are none, there is no such file afterwards."""
    file = folder / "failures.json"
    if failures:
        listed = [{"subject": subject, "reason": reason} for subject, reason in failures.items()]
        write_whole(file, json.dumps(listed, indent=2) + "\n")
    else:
        file.unlink(missing_ok=True)


def summary(evaluation: Evaluation) -> str:
    """The Markdown page: figures over the whole volume and inside the brain, then how they came about."""
    count = len(evaluation.figures)
    about = {"target contrast": evaluation.target_contrast, **evaluation.about, "versions": versions()}
    lines = [
        f"# Evaluation of {count} subject{'s' if count != 1 else ''}",
        "",
        _figures_table(evaluation),
        "",
        *([tissue_table(evaluation.tissues), ""] if evaluation.tissues else []),
        *([case_table(evaluation.rows), ""] if evaluation.rows else []),
        _explanation(evaluation),
        "",
        *(f"- {name}: {value}" for name, value in about.items()),
    ]
    lines += _section("What was done to single subjects", {s: "; ".join(n) for s, n in evaluation.notes.items() if n})
    lines += _section("Left out", evaluation.failures)
    return "\n".join(lines) + "\n"


def _figures_table(evaluation: Evaluation) -> str:
    """A line for each figure, and a column for each baseline; tissues have a table of their own."""
    spreads = _spreads(evaluation.figures)
    baselines = {name: _spreads(figures) for name, figures in evaluation.baselines.items()}
    rows = []
    for name in dict.fromkeys(name.removesuffix("_brain") for name in spreads if name not in TISSUE_FIGURES):
        columns = spreads.get(name, ""), spreads.get(f"{name}_brain", "")
        rows.append([label(name), *columns, *(texts.get(name, "") for texts in baselines.values())])
    return markdown_table(["", "whole volume", "inside the brain", *(f"there, {name}" for name in baselines)], rows)


def _spreads(figures: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Figure -> mean ± standard deviation over the subjects."""
    names = next(iter(figures.values()), {})
    return {name: format_spread([row[name] for row in figures.values()], digits_of(name)) for name in names}


def _explanation(evaluation: Evaluation) -> str:
    contrast = evaluation.target_contrast
    divided = "the bundle's segmenter" if contrast == "T1" else "a hidden Markov random field"
    tissues = f"Tissues: all images divided alike by {divided}, a CT's own classes by HU; bias: of the volume."
    if contrast not in TISSUES_BY_BRIGHTNESS:
        tissues = f"No Dice: the tissues of {contrast} have no fixed order of brightness."
    pointwise = (
        f" Pointwise map ({len(evaluation.baselines.get(POINTWISE, {}))} with a source): each grey level of the source "
        "replaced by the mean of the real image there, which is the best that any such map could do."
    )
    return (
        f"Mean ± standard deviation, n = {len(evaluation.figures)} where no other is told: of the subjects that have "
        "the figure (too small a brain has no Dice). Data range 1, images clipped to [0, 1]. NRMSE: over the range of "
        "the real image. SSIM: uniform window of 7 voxels, 3D. I-SSIM: of adjacent axial slices; nearer to the real "
        "image's is better. Sharpness: gradient energy as a share of the real image's. High-pass and low-pass "
        f"correlation: Pearson, of what is finer and what is coarser than a Gaussian of {LOWPASS_MM:g} mm. Unsharp "
        "mask: the synthetic image made as sharp as the real one without new detail; a gain in sharpness counts where "
        f"high-pass correlation is above its. {tissues}{pointwise if POINTWISE in evaluation.baselines else ''}"
    )


def _section(title: str, items: Mapping[str, str]) -> list[str]:
    return ["", f"## {title}", "", *(f"- {name}: {text}" for name, text in items.items())] if items else []


def comparison(figures: Mapping[str, Mapping[str, float]], against: str | os.PathLike) -> str:
    """Markdown section: paired t-test of every figure against another evaluation.

    Raises:
        CaseError: the other evaluation cannot be read or has no subject in common.
    """
    other = read_subjects(against)
    try:
        table = compare_runs(figures, other)
    except ValueError as error:
        raise CaseError(str(error)) from error
    return f"## Against {Path(against).name}\n\nPaired t-test, two-sided; difference: this one minus that.\n\n{table}\n"


def check_against(against: str | os.PathLike | None, output_dir: str | os.PathLike) -> None:
    """Refuse another evaluation that cannot be compared, before the work rather than after it.

    Args:
        against: its folder or subjects.csv, or None.
        output_dir: of this evaluation.

    Raises:
        CaseError: the other evaluation cannot be read, or is this one.
    """
    if against is None:
        return
    folders = [p.parent if p.suffix == ".csv" else p for p in map(Path, (against, output_dir))]
    if folders[0].resolve() == folders[1].resolve():
        raise CaseError(f"{against} is this evaluation's own folder; give another one as --against or --output_dir.")
    read_subjects(against)


def read_subjects(path: str | os.PathLike) -> dict[str, dict[str, float]]:
    """Subject -> figure -> value of a subjects.csv, or of the folder that holds it.

    Raises:
        CaseError: not there, or no such table.
    """
    file = Path(path)
    file = file / "subjects.csv" if file.is_dir() else file
    if not file.is_file():
        raise CaseError(f"There is no {file}; give the folder of an evaluation, or its subjects.csv.")
    try:
        rows = {row.pop("subject"): row for _, row in read_table(file, ("subject",))}
        return {s: {k: number_in(v) for k, v in row.items()} for s, row in rows.items() if s not in _SUMMARIES}
    except ValueError as error:
        raise CaseError(f"{file} is no table of an evaluation ({error}); give a subjects.csv.") from error


def versions() -> str:
    """The bundle's version and those of what computes the figures."""
    metadata = json.loads((Path(__file__).parents[2] / "configs" / "metadata.json").read_text(encoding="utf-8"))
    packages = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    return ", ".join([f"{metadata['name']} {metadata['version']}", f"Python {platform.python_version()}", *packages])


def _write_subjects(figures: Mapping[str, Mapping[str, float]], file: Path) -> None:
    names = list(next(iter(figures.values())))
    spreads = [mean_and_deviation([row[name] for row in figures.values()]) for name in names]
    rows = [[subject, *(row[name] for name in names)] for subject, row in figures.items()]
    rows += [[summary, *(spread[n] for spread in spreads)] for n, summary in enumerate(_SUMMARIES)]
    cells = [[row[0], *(f"{float(value):.6g}" for value in row[1:])] for row in rows]
    _write_csv([["subject", *names], *cells], file)


def _write_csv(rows: Sequence[Sequence[str]], file: Path) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_whole(file, text.getvalue())


def _write_cases(evaluation: Evaluation, folder: Path) -> None:
    """Paths relative to the folder; none where the volumes were not kept."""
    if not evaluation.cases:
        (folder / "cases.csv").unlink(missing_ok=True)
        return
    rows = []
    for subject, files in evaluation.cases.items():
        paths = ["" if (p := files.get(c)) is None else os.path.relpath(p, folder) for c in CASE_COLUMNS[1:-1]]
        rows.append([subject, *paths, evaluation.target_contrast])
    _write_csv([CASE_COLUMNS, *rows], folder / "cases.csv")


class SubjectResults:
    """Handler of an evaluator: the figures of every subject, and at the end the files of `write_results`.

    Args:
        output_dir: of the files.
        spacing_mm: voxel size of the volumes.
        save_volumes: whether to keep each subject's volumes as OUTPUT/SUBJECT_{synthetic,real,source,mask}.nii.gz.
        against: see `write_results`.
        about: what was done, told in the summary by name.
        target_contrast: what the volumes are of.
        hu_window: HU that 0 and 1 stand for in the sources; None where they are no CTs.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        spacing_mm: Sequence[float],
        save_volumes: bool = False,
        against: str | os.PathLike | None = None,
        about: Mapping[str, str] | None = None,
        target_contrast: str = "T1",
        hu_window: Sequence[float] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.spacing_mm = tuple(spacing_mm)
        self.save_volumes = save_volumes
        self.against = against
        self.about = dict(about or {})
        self.target_contrast = target_contrast
        self.hu_window = hu_window
        self.evaluation = Evaluation()

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator whose batch and output are decollated."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _begin(self, engine: Engine) -> None:
        self.evaluation = Evaluation(about=self.about, target_contrast=self.target_contrast)

    def _add(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            subject = str(item["subject"])
            image = torch.as_tensor(output["pred"])[0].float().cpu().numpy()
            reference, mask = (torch.as_tensor(a).float().cpu().numpy() for a in output["label"])
            volumes = {
                "synthetic": image,
                "real": reference,
                "mask": mask,
                "source": np.asarray(item["source"].cpu())[0],
            }
            where = mask > 0, self.spacing_mm
            source = self._in_own_unit(volumes["source"]), self.hu_window is not None
            self.evaluation.add(subject, measure_subject(image, reference, *where, self.target_contrast, *source))
            if self.save_volumes:
                affine = np.asarray(getattr(item["target"], "affine", np.diag([*self.spacing_mm, 1.0])), dtype=float)
                self.evaluation.cases[subject] = {k: self._save(subject, k, v, affine) for k, v in volumes.items()}

    def _in_own_unit(self, source: np.ndarray) -> np.ndarray:
        low, high = self.hu_window or (0.0, 1.0)
        return low + (high - low) * source

    def _save(self, subject: str, kind: str, volume: np.ndarray, affine: np.ndarray) -> Path:
        file = self.output_dir / f"{subject}_{kind}.nii.gz"
        dtype = np.uint8 if kind == "mask" else np.float32
        with writing_into(self.output_dir):
            nib.save(nib.Nifti1Image(np.clip(volume, 0, 1).astype(dtype), affine), file)
        return file

    def __call__(self, engine: Engine) -> None:
        """Write the files; print the summary."""
        print(write_results(self.evaluation, self.output_dir, self.against))
