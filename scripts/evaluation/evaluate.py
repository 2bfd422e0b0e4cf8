"""Figures of synthetic volumes against the real ones, whichever method made them: files in, tables out."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to
from scipy import ndimage
from tqdm import tqdm

from ..contrasts import contrast_named
from ..errors import CaseError, reason
from ..files import check_folder, write_whole
from ..options import whole_number
from ..processes import run_isolated
from ..transforms.checks import CheckVolumed
from ..volumes.load import read_volume
from ..volumes.scaling import check_not_negative
from .figures import case_rows, pearson
from .pairs import ResultPair, pairs_of_folders, pairs_of_table, recorded_contrast
from .results import (
    Evaluation,
    SubjectFigures,
    check_against,
    comparison,
    measure_subject,
    read_subjects,
    write_failures,
    write_results,
)

_PERCENTILE = 99.9  # of the brain becomes 1, as in training
_LARGEST_BRAIN = 2.2  # litres, with its cerebrospinal fluid; a whole head has at least 3
_LEAST_COVER = 0.5  # share of the real brain that the synthetic image has to hold
_UNIT_TOPS = {"real": (0.5, 1.2), "synthetic": (0.0, 1.5)}  # percentiles of a brain that is taken to be in [0, 1]
_CLEARLY = 0.7  # a mirrored image fits clearly better where 1 - Pearson correlation falls to this share
_FITS = 0.3  # least Pearson correlation of an image that fits at all: a poor one fits by chance either way round


def evaluate(
    synthetic: str | None = None,
    real: str | None = None,
    pairs: str | None = None,
    masks: str | None = None,
    source: str | None = None,
    output_dir: str = "eval",
    against: str | None = None,
    workers: int = 1,
    target_contrast: str | None = None,
    source_contrast: str | None = None,
    erode_mm: float = 0.0,
) -> None:
    """Measure synthetic MRI, also of other methods, against the real ones: a table by subject and a summary.

    Args:
        synthetic: folder of synthetic volumes, or one file, whose table then has the halves as well.
        real: folder of the real ones with the same names, but for endings such as _t1, _target, _synthetic.
        pairs: instead of both, a CSV with the columns subject, synthetic, real, and as you like mask, source.
        masks: folder of brain masks; without, the brain is where the real volume is above 0.
        source: folder of the sources, or one file; adds what the best map of their single grey levels could reach, and
            of CTs in HU the tissues that their own values give.
        output_dir: receives subjects.csv, summary.md, cases.csv. Alone with --against: the evaluation to compare.
        against: another evaluation's folder; adds a paired t-test for each figure.
        workers: processes.
        target_contrast: what the volumes are of, where no JSON beside the synthetic ones tells it; T1 without.
        source_contrast: what the sources are, where no JSON beside the synthetic ones tells it.
        erode_mm: how far inside the brain's edge to compare.
    """
    whole_number("workers", workers, least=0)
    check_against(against, output_dir)
    if pairs is None and synthetic is None and real is None and against is not None:
        text = comparison(read_subjects(output_dir), against)
        folder = Path(output_dir) if Path(output_dir).is_dir() else Path(output_dir).parent
        write_whole(folder / "against.md", text)
        print(text)
        return
    listed, left_out = _listed(synthetic, real, pairs, masks, source, target_contrast)
    folder = check_folder(output_dir)
    evaluation = evaluate_pairs(listed, workers, erode_mm, source_contrast)
    evaluation.failures = {**left_out, **evaluation.failures}
    if not evaluation.figures:
        write_failures(evaluation.failures, folder)
        subject, why = next(iter(evaluation.failures.items()))
        raise CaseError(f"No pair could be evaluated. The first, {subject}: {why}")
    print(write_results(evaluation, output_dir, against))
    print(f"Evaluated {len(evaluation.figures)} subjects; the tables are in {Path(output_dir).resolve()}")


def _listed(
    synthetic: str | None,
    real: str | None,
    pairs: str | None,
    masks: str | None,
    source: str | None,
    target_contrast: str | None,
) -> tuple[list[ResultPair], dict[str, str]]:
    if pairs is not None and synthetic is None and real is None:
        return pairs_of_table(str(pairs), target_contrast)
    if pairs is None and synthetic is not None and real is not None:
        return pairs_of_folders(str(synthetic), str(real), masks, source, target_contrast)
    raise CaseError("Give either --pairs CSV, or --synthetic DIR and --real DIR.")


@dataclass(frozen=True)
class PairFigures:
    """What is measured of a pair.

    Attributes:
        measured: its figures, baselines and tissues.
        rows: `case_rows`; empty where the pair is one of several.
        notes: what was done to the volumes.
    """

    measured: SubjectFigures
    rows: dict[str, dict[str, float]]
    notes: list[str]


def evaluate_pairs(
    pairs: list[ResultPair], workers: int = 1, erode_mm: float = 0.0, source_contrast: str | None = None
) -> Evaluation:
    """Figures of all pairs; one that cannot be compared is noted among the failures, and the rest go on."""
    about = {"pairs": f"{len(pairs)} files of each kind"}
    if erode_mm:
        about["inside the brain"] = f"at least {erode_mm:g} mm from its edge"
    evaluation = Evaluation(about=about, target_contrast=pairs[0].target_contrast)
    with tqdm(total=len(pairs), desc="evaluate", unit="subject", disable=None) as bar:
        for pair, outcome in zip(pairs, _outcomes(pairs, workers, erode_mm, source_contrast), strict=True):
            if isinstance(outcome, str):
                evaluation.failures[pair.subject] = outcome
                tqdm.write(f"{pair.subject} is left out: {outcome}")
            else:
                _add(evaluation, pair, outcome)
            bar.update()
    return evaluation


def _add(evaluation: Evaluation, pair: ResultPair, outcome: PairFigures) -> None:
    evaluation.add(pair.subject, outcome.measured)
    evaluation.notes[pair.subject] = outcome.notes
    evaluation.rows = outcome.rows
    files = {kind: getattr(pair, kind) for kind in ("synthetic", "real", "source", "mask")}
    evaluation.cases[pair.subject] = {kind: path for kind, path in files.items() if path is not None}


def _outcomes(
    pairs: list[ResultPair], workers: int, erode_mm: float, source_contrast: str | None
) -> Iterator[PairFigures | str]:
    """What `_figures_or_reason` gives for each pair, in order; a process that is killed fails its pair alone."""
    chosen = source_contrast and contrast_named(source_contrast)
    measure = partial(_figures_or_reason, erode_mm=erode_mm, alone=len(pairs) == 1, source_contrast=chosen)
    if workers <= 1 or len(pairs) == 1:
        yield from map(measure, pairs)
        return
    killed = "its process was killed, most likely for want of memory; give fewer workers"
    done: dict[str, PairFigures | str] = {}
    waiting = deque(pairs)
    for pair, outcome in run_isolated(measure, pairs, workers):
        done[pair.subject] = outcome or killed
        while waiting and waiting[0].subject in done:
            yield done.pop(waiting.popleft().subject)


def _figures_or_reason(
    pair: ResultPair, erode_mm: float, alone: bool, source_contrast: str | None
) -> PairFigures | str:
    try:
        compared = load_pair(pair, erode_mm)
        volumes = compared.synthetic, compared.real, compared.mask, compared.spacing_mm
        is_ct = (source_contrast or recorded_contrast(pair.synthetic, "source_contrast")) == "CT"
        measured = measure_subject(*volumes, pair.target_contrast, compared.source, is_ct)
        return PairFigures(measured, case_rows(*volumes, compared.source) if alone else {}, compared.notes)
    except ValueError as error:  # CaseError, and volumes that have no figures
        return str(error)
    except Exception as error:
        return reason(error)


@dataclass(frozen=True)
class ComparedPair:
    """Two volumes that can be compared.

    Attributes:
        synthetic, real: (H, W, Z) float32, [0, 1], on the real image's grid with axes nearest to R, A, S.
        mask: (H, W, Z) bool, the brain.
        spacing_mm: voxel size.
        notes: what was done to them.
        source: (H, W, Z) on the same grid, in its own unit, where there is one.
    """

    synthetic: np.ndarray
    real: np.ndarray
    mask: np.ndarray
    spacing_mm: tuple[float, ...]
    notes: list[str]
    source: np.ndarray | None = None


def load_pair(pair: ResultPair, erode_mm: float = 0.0) -> ComparedPair:
    """Read a pair, bring the synthetic image to the real one's grid, and both to [0, 1].

    Args:
        pair: its files.
        erode_mm: how far inside the brain's edge the mask ends.

    Raises:
        CaseError: a file that cannot be read, a brain that cannot be told from the head, values that are negative in
            the brain, images that do not show the same place, or no voxel that far inside the brain.
    """
    real, synthetic = _read(pair.real), _read(pair.synthetic)
    reference = real.get_fdata(dtype=np.float32)
    mask = _brain(pair, real)
    notes = []
    image = synthetic.get_fdata(dtype=np.float32)
    if synthetic.shape != real.shape or not np.allclose(synthetic.affine, real.affine, atol=1e-2):
        inside = resample_from_to(_like(synthetic, np.ones_like(image)), real, order=0).get_fdata(dtype=np.float32) > 0
        image = resample_from_to(synthetic, real, order=1).get_fdata(dtype=np.float32)
        notes.append("synthetic image resampled to the real one's grid (linear)")
        _check_cover(pair, inside & mask, mask, "field of view")
    if (reference[~mask] != 0).any():  # a mask was given for a head that has its skull
        reference, image = reference * mask, image * mask
        notes.append("both images set to 0 outside the given mask")
    check_not_negative(reference[mask], pair.real.name)
    check_not_negative(image[mask], pair.synthetic.name)
    top = np.percentile(image[mask], _PERCENTILE)
    _check_cover(pair, mask & (image > 0.02 * max(top, 0)), mask, "brain")
    reference = _scaled(reference, mask, "real", pair.real, notes)
    image = _scaled(image, mask, "synthetic", pair.synthetic, notes)
    _check_sides(pair, image, reference, mask)
    spacing = tuple(map(float, nib.affines.voxel_sizes(real.affine)))
    source = None if pair.source is None else _on_grid(_read(pair.source), real)
    return ComparedPair(image, reference, _eroded(mask, spacing, erode_mm, pair), spacing, notes, source)


def _on_grid(image: nib.Nifti1Image, grid: nib.Nifti1Image) -> np.ndarray:
    if image.shape != grid.shape or not np.allclose(image.affine, grid.affine, atol=1e-2):
        image = resample_from_to(image, grid, order=1)
    return image.get_fdata(dtype=np.float32)


def _eroded(mask: np.ndarray, spacing: tuple[float, ...], erode_mm: float, pair: ResultPair) -> np.ndarray:
    if not erode_mm:
        return mask
    mask = ndimage.distance_transform_edt(mask, spacing) > erode_mm
    if not mask.any():
        raise CaseError(f"Nothing of {pair.real.name} lies {erode_mm:g} mm inside its brain; lower erode_mm.")
    return mask


def _read(path: Path) -> nib.Nifti1Image:
    """A volume of one channel, checked, axes nearest to R, A, S."""
    return read_volume(path, CheckVolumed("image"))


def _like(image: nib.Nifti1Image, data: np.ndarray) -> nib.Nifti1Image:
    return nib.Nifti1Image(data, image.affine)


def _brain(pair: ResultPair, real: nib.Nifti1Image) -> np.ndarray:
    """The brain on the real image's grid: the given mask, or where a stripped image is above 0."""
    if pair.mask is not None:
        mask = resample_from_to(_read(pair.mask), real, order=0).get_fdata(dtype=np.float32) > 0
        if not mask.any():
            raise CaseError(f"The mask {pair.mask.name} is empty within {pair.real.name}; check what belongs together.")
        return mask
    values = real.get_fdata(dtype=np.float32)
    mask = values > 0
    litres = mask.sum() * float(np.prod(nib.affines.voxel_sizes(real.affine))) / 1e6
    if values.min() < 0 or mask.mean() > 0.9 or litres > _LARGEST_BRAIN:
        raise CaseError(
            f"{pair.real.name} is not skull-stripped (0 outside the brain); strip it or give its brain mask."
        )
    return mask


def _check_cover(pair: ResultPair, covered: np.ndarray, mask: np.ndarray, what: str) -> None:
    share = covered.sum() / mask.sum()
    if share < _LEAST_COVER:
        raise CaseError(
            f"The {what} of {pair.synthetic.name} holds {share:.0%} of the brain of {pair.real.name}, so they lie "
            "elsewhere by their headers; register them or check which belong together."
        )


def _scaled(image: np.ndarray, mask: np.ndarray, kind: str, path: Path, notes: list[str]) -> np.ndarray:
    """[0, 1]; images of another unit by the percentile of their brain."""
    top = float(np.percentile(image[mask], _PERCENTILE))
    if top <= 0:
        raise CaseError(f"{path.name} is not positive inside the brain; check the file and its mask.")
    least, most = _UNIT_TOPS[kind]
    if not least <= top <= most:
        image = image / top
        notes.append(f"{kind} image divided by {top:.4g}, the {_PERCENTILE} percentile of its brain")
    elif top > 1.001:
        notes.append(f"{kind} image clipped at 1; the {_PERCENTILE} percentile of its brain is {top:.4g}")
    return np.clip(image, 0, 1)


def _check_sides(pair: ResultPair, image: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> None:
    """Refuse an image that fits clearly better when mirrored: its header contradicts what it shows."""
    box = tuple(slice(i.min(), i.max() + 1) for i in np.nonzero(mask))
    image, reference, mask = image[box], reference[box], mask[box]
    as_is = pearson(image, reference, mask)
    for axis, sides in enumerate(("left and right", "front and back", "top and bottom")):
        both = mask & np.flip(mask, axis)
        mirrored = pearson(np.flip(image, axis), reference, both) if both.any() else -1.0
        if mirrored > _FITS and 1 - mirrored < _CLEARLY * (1 - as_is):
            raise CaseError(
                f"{pair.synthetic.name} fits {pair.real.name} better with {sides} exchanged (correlation "
                f"{mirrored:.2f} instead of {as_is:.2f}); one of the two headers is wrong: mend it."
            )
