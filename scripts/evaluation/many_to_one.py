"""Tables of any contrasts to any other: one network, and a row for each subset of the sources.

The rows are those of CoLa-Diff (Jiang et al., MICCAI 2023), tables 1 and 2, which trains a network for each target and
always has all sources. A case is a subject with all of its contrasts; a row hides those that are not its sources by
zeros, and always the target.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from ..errors import CaseError
from .ablation import by_row, paired_tests, quality_table, tests_table, write_pair
from .contrast_tasks import Task, Translation, published_table, subsets
from .figures import finite, mean_and_deviation, slice_figures
from .results import subject_figures
from .study import Result, run_study
from .systems import System, SystemSampler
from .tissue_dice import TISSUES_BY_BRIGHTNESS

FIGURES = (
    *("psnr_slices", "ssim_slices", "psnr", "ssim", "psnr_brain", "ssim_brain"),
    *("highpass_brain", "sharpness_brain", "dice_csf", "dice_gm", "dice_wm"),
)
TESTED = ("psnr_slices", "ssim_slices", "psnr_brain", "ssim_brain", "highpass_brain", "dice_gm", "dice_wm")
FEWEST = 3
"""People below which nothing is tested."""
DIFFERENT_PEOPLE = (
    "The rows are of different people, so that their means cannot be compared with one another; differences to one row "
    "are over the people who have both."
)
MATCHED = "{} itself, histogram matched"
THROUGH_CODEC = "{} itself, through the codec"


def contrast_figures(
    image: np.ndarray, reference: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], target_contrast: str
) -> dict[str, float]:
    """`subject_figures`, with the Dice of tissues, and `slice_figures`; arguments as there."""
    figures = subject_figures(image, reference, mask, spacing_mm, target_contrast)
    return {**figures, **slice_figures(image, reference, mask)}


def all_contrasts(case: Mapping[str, Any]) -> torch.Tensor:
    """The contrasts of a held-out case, (C, H, W, Z), with its target back in its place; an absent one is 0."""
    stack = torch.as_tensor(np.asarray(case["source"])).clone()
    stack[int(case["target_contrast"])] = torch.as_tensor(np.asarray(case["target"]))[0]
    return stack


def restricted(
    case: Mapping[str, Any], contrasts: Sequence[str], target: str, sources: Sequence[str]
) -> dict[str, Any] | None:
    """The case of a row: one contrast is the target, some others are the source, the rest is absent.

    Args:
        case: of `HoldOutContrastd`, whatever its target: "subject", "source" (C, H, W, Z), "target", "mask" (1, H, W,
            Z) and "target_contrast". A lesion that is known is not shown: it was drawn on the target, too.
        contrasts: names of the channels.
        target: is never in the source.
        sources: which contrasts are.

    Returns:
        "subject", "source", "target" and "mask", of the same shapes; None where the case lacks one of the contrasts.
    """
    stack, wanted = all_contrasts(case), [list(contrasts).index(name) for name in sources if name != target]
    image = stack[list(contrasts).index(target)]
    if not wanted or not image.any() or not all(stack[index].any() for index in wanted):
        return None
    source = torch.zeros_like(stack)
    source[wanted] = stack[wanted]
    return {"subject": case["subject"], "source": source, "target": image[None], "mask": case["mask"]}


def drawn_translations(
    case: Mapping[str, Any],
    contrasts: Sequence[str],
    targets: Sequence[str],
    with_fractions: Callable[[dict[str, Any]], dict[str, Any]],
    seed: Sequence[int] = (0,),
) -> list[dict[str, Any]]:
    """Each target that a case has from a subset of its other contrasts, every one of which is equally likely.

    Args:
        case: as of `restricted`; "section" and "person" are handed on.
        contrasts: names of the channels.
        targets: that may be made.
        with_fractions: as of `run_translations`.
        seed: of the draw.

    Returns:
        what `restricted` does, with "target_contrast", its index, and "translation", `T1 from T2 + FLAIR`.
    """
    stack, made = all_contrasts(case), []
    there = [name for name, image in zip(contrasts, stack, strict=True) if image.any()]
    for target in (name for name in targets if name in there):
        others = subsets([name for name in there if name != target])
        index = list(contrasts).index(target)
        if others:
            sources = others[np.random.default_rng([*seed, index]).integers(len(others))]
            pair = with_fractions(restricted(case, contrasts, target, sources))
            told = {"target_contrast": index, "translation": f"{target} from {row_name(sources)}"}
            made.append({**{name: case[name] for name in ("section", "person")}, **pair, **told})
    return made


def row_name(sources: Sequence[str]) -> str:
    """What a row of these sources is called."""
    return " + ".join(sources)


def run_translations(
    cases: Sequence[Mapping[str, Any]],
    contrasts: Sequence[str],
    wanted: Iterable[Translation],
    system: System,
    sampler: Callable[[System, str], SystemSampler],
    settings: Mapping[str, Any],
    folder: str | os.PathLike,
    row: str | None = None,
) -> dict[str, list[Result]]:
    """Each translation on each case that has its contrasts; what lies in the folder is not done again.

    Args:
        cases: as of `restricted`.
        contrasts: names of the channels.
        wanted: targets and their sources.
        system: a network that is told the target, its inferer, and the item `with_fractions`, which appends the
            structure of a row's sources to them.
        sampler: system and target -> what translates with it and measures.
        settings: of the inferer, as of `run_study`.
        folder: of the results.
        row: what the rows are called; None for their sources.

    Returns:
        target -> results, row by row; translations for which there is no case are left out.
    """
    results: dict[str, list[Result]] = {}
    with_fractions = system.parser.get_parsed_content("with_fractions")
    for target, sources in wanted:
        made = [restricted(case, contrasts, target, sources) for case in cases]
        pairs = [with_fractions(pair) for pair in made if pair is not None]
        if not pairs:
            continue
        rows = {row or row_name(sources): {**settings, "target_contrast": list(contrasts).index(target)}}
        if measured := run_study(pairs, rows, sampler(system, target), folder):
            results.setdefault(target, []).extend(measured)
    return results


def codec_results(
    cases: Sequence[Mapping[str, Any]],
    contrasts: Sequence[str],
    wanted: Iterable[Translation],
    system: System,
    sampler: Callable[[System, str], SystemSampler],
    folder: str | os.PathLike,
) -> dict[str, list[Result]]:
    """What a network in a latent could at best reach: each target as the codec gives it back, of all cases with it.

    Args:
        cases, contrasts, wanted, system, sampler, folder: as of `run_translations`.

    Returns:
        target -> results; none where the codec loses nothing.
    """
    results: dict[str, list[Result]] = {}
    targets = {} if system.inferer.codec.lossless else dict.fromkeys(target for target, _ in wanted)
    for target in targets:
        index = list(contrasts).index(target)
        images = [all_contrasts(case)[index, None].clone() for case in cases]  # a view would keep all contrasts
        pairs = [
            {"subject": case["subject"], "source": image, "target": image, "mask": case["mask"]}
            for case, image in zip(cases, images, strict=True)
            if image.any()
        ]
        if pairs:
            rows = {THROUGH_CODEC.format(target): {"codec_alone": True}}
            results[target] = run_study(pairs, rows, sampler(system, target), folder)
    return results


def run_parts(
    cases: Sequence[Mapping[str, Any]],
    contrasts: Sequence[str],
    task: Task,
    rows: Mapping[str, Mapping[str, Any]],
    config: Mapping[str, Any],
    sampler: Callable[[System, str], SystemSampler],
    settings: Mapping[str, Any],
    folder: str | os.PathLike,
    configs: str | os.PathLike,
) -> dict[str, list[Result]]:
    """One task by several networks; of subjects that have all of its contrasts.

    Args:
        cases, contrasts, sampler, settings, folder: as of `run_translations`.
        task: whose target and sources.
        rows: of `given_rows`.
        config, configs: as of `run_systems`.

    Returns:
        target -> results, row by row.
    """
    results: dict[str, list[Result]] = {}
    for row, entry in rows.items():
        overlays = [one if isinstance(one, Mapping) else str(Path(configs, one)) for one in entry["config"]]
        system = System(config, overlays, entry["weights"])
        wanted = [(task.target, task.sources)]
        made = run_translations(cases, contrasts, wanted, system, sampler, settings, folder, row)
        results = joined(results, made)
    return results


def joined(*results: Mapping[str, Sequence[Result]]) -> dict[str, list[Result]]:
    """Results by target, one after another."""
    targets = dict.fromkeys(target for one in results for target in one)
    return {target: [result for one in results for result in one.get(target, ())] for target in targets}


def matched_results(
    cases: Sequence[Mapping[str, Any]],
    contrasts: Sequence[str],
    wanted: Iterable[Translation],
    keys: Mapping[str, np.ndarray],
    figures: Callable[..., dict[str, float]],
) -> dict[str, list[Result]]:
    """The plain baseline without a network: each single source, its histogram matched to the training's of the target.

    Args:
        cases, contrasts, wanted: as of `run_translations`; of the translations those with one source.
        keys: style keys of the training, (3, B), by `SUBJECT#CONTRAST`.
        figures: of (image, reference, mask, target_contrast=target).

    Returns:
        target -> results; none of a target without a key.
    """
    results: dict[str, list[Result]] = {}
    for target, (source, *others) in wanted:
        histogram = mean_histogram(keys, target)
        for case in cases if histogram is not None and not others else ():
            if (pair := restricted(case, contrasts, target, [source])) is None:
                continue
            inside = np.asarray(pair["mask"])[0] > 0
            own = pair["source"][list(contrasts).index(source)].numpy()
            image = matched(own, inside, histogram, rises_with(source, target))
            measured = figures(image, pair["target"][0].numpy(), inside, target_contrast=target)
            results.setdefault(target, []).append(Result(MATCHED.format(source), str(case["subject"]), measured))
    return results


def mean_histogram(keys: Mapping[str, np.ndarray], contrast: str) -> np.ndarray | None:
    """The mean of a contrast's histograms in keys by `SUBJECT#CONTRAST`, (B,); None without one."""
    histograms = [key[0] for name, key in keys.items() if name.rpartition("#")[2] == contrast]
    return np.mean(histograms, axis=0) if histograms else None


def rises_with(source: str, target: str) -> bool:
    """Whether what is brighter in one contrast is mostly brighter in the other, by the order of the tissues.

    PD, whose fluid may be the darkest or the brightest, is taken for a T2; CT has the order of a FLAIR.
    """
    known = {**TISSUES_BY_BRIGHTNESS, "PD": TISSUES_BY_BRIGHTNESS["T2"], "CT": TISSUES_BY_BRIGHTNESS["FLAIR"]}
    first, second = ([known[name].index(tissue) for tissue in known["T1"]] for name in (source, target))
    return float(np.corrcoef(first, second)[0, 1]) > 0


def matched(image: np.ndarray, mask: np.ndarray, histogram: np.ndarray, rising: bool = True) -> np.ndarray:
    """The image with the histogram of another contrast inside the mask, 0 outside: a monotone map of grey levels.

    Args:
        image: (H, W, Z).
        mask: (H, W, Z) bool.
        histogram: (B,) in equal bins over [0, 1], of any total.
        rising: whether the map rises; else the brightest becomes the darkest.
    """
    values = image[mask]
    share = (rankdata(values if rising else -values) - 0.5) / len(values)
    below = np.concatenate([[0.0], np.cumsum(histogram, dtype=np.float64)])
    edges = np.linspace(0, 1, len(below))
    made = np.zeros(image.shape, np.float32)
    made[mask] = np.interp(share, below / below[-1], edges)
    return made


def by_person(results: Iterable[Result], person_of: Mapping[str, str]) -> list[Result]:
    """Results of people instead of subjects: the mean over the subjects of one person, of the finite values."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.row, person_of.get(result.subject, result.subject)), []).append(result)
    return [_mean(group, person) for (_, person), group in groups.items()]


def _mean(results: Sequence[Result], subject: str) -> Result:
    first, number = results[0], len(results)
    figures = {name: mean_and_deviation([one.figures[name] for one in results])[0] for name in first.figures}
    costs = {name: sum(getattr(one, name) for one in results) / number for name in ("evaluations", "seconds")}
    return replace(first, subject=subject, figures=figures, **costs)


def by_number(results: Iterable[Result]) -> list[Result]:
    """Rows by the number of sources: each person's mean over the subsets of that size that the person has.

    Of the numbers that more than half of the people have, over the people who have all of these, so that all rows are
    of the same people.
    """
    numbered: dict[str, dict[int, list[Result]]] = {}
    for result in results:
        if "itself" not in result.row:
            of = numbered.setdefault(result.subject, {})
            of.setdefault(len(result.row.split(" + ")), []).append(result)
    counts = Counter(number for of in numbered.values() for number in of)
    common = sorted(number for number, count in counts.items() if 2 * count > len(numbered))
    people = sorted(person for person, of in numbered.items() if of.keys() >= set(common))
    return [
        _mean([replace(one, row=_sources(number)) for one in numbered[person][number]], person)
        for number in common
        for person in people
    ]


def _sources(number: int) -> str:
    return "one source" if number == 1 else f"{number} sources"


def best_single_source(results: Sequence[Result]) -> str | None:
    """The row of one source with the best mean PSNR in the brain, over the people whom all these rows have.

    Of rows of at least `FEWEST` people, those of most people first; one with which fewer people would be left is out.

    Returns:
        Its name; None without such a row.
    """
    rows = {n: row for n, row in by_row(results).items() if " + " not in n and "itself" not in n}
    candidates: list[str] = []
    people: set[str] = set()
    for name in sorted(rows, key=lambda name: -len(rows[name])):
        left = people & rows[name].keys() if candidates else set(rows[name])
        if len(left) >= FEWEST:
            candidates, people = [*candidates, name], left
    means = {name: np.mean([rows[name][person].figures["psnr_brain"] for person in people]) for name in candidates}
    return max(means, key=lambda name: means[name], default=None)


def compared(results: Sequence[Result], baseline: str | None, figures: Sequence[str] = FIGURES) -> list[str]:
    """Lines of Markdown: a table of rows, and the differences to one of them, tested where there are people enough.

    Without a baseline nothing is tested, and a line says so.
    """
    shown = [figure for figure in figures if any(figure in one.figures for one in results)]
    text = [quality_table([_with_all(one, shown) for one in results], shown), ""]
    if len({frozenset(row) for row in by_row(results).values()}) > 1:
        text += [DIFFERENT_PEOPLE, ""]
    if baseline is None:
        return [*text, f"Nothing is tested, since no single source has {FEWEST} people.", ""]
    tested = [figure for figure in TESTED if figure in shown]
    tests = paired_tests([_with_all(one, tested) for one in results], baseline, tested)
    enough = {row: of for row, of in tests.items() if max(test.n for test in of.values()) >= FEWEST}
    if enough:
        text += [f"Mean difference to {baseline} (p of the paired t-test over the n people who have both):", ""]
        text += [tests_table(enough, tested), ""]
    if len(enough) < len(tests):
        few = ", ".join(row for row in tests if row not in enough)
        text += [f"Not tested against {baseline}, since fewer than {FEWEST} people have both: {few}.", ""]
    return text


def _with_all(result: Result, figures: Sequence[str]) -> Result:
    """With NaN for figures that a target does not have, such as the Dice of PD."""
    return replace(result, figures={**dict.fromkeys(figures, float("nan")), **result.figures})


def write_many_to_one(
    results: Mapping[str, Sequence[Result]],
    path: str | os.PathLike,
    notes: Mapping[str, object],
    person_of: Mapping[str, str],
    task: str | None = None,
) -> None:
    """Write the tables of all targets as Markdown and every subject's figures as JSON beside it; print the tables.

    Args:
        results: target -> results, those of `matched_results` among them.
        path: of the Markdown file.
        notes: what was done, told below the tables by name.
        person_of: subject -> person.
        task: name of the task whose published figures are printed; None for those of all.
    """
    text: list[str] = []
    for target, measured in results.items():
        people = by_person(measured, person_of)
        text += [f"## To {target}", "", *compared(people, best_single_source(people))]
        numbers = by_number(people)
        if len({one.row for one in numbers}) > 1:
            text += ["By the number of sources, over the same people:", ""]
            text += compared(numbers, numbers[0].row)
        else:
            text += ["Nothing is compared by the number of sources: no two numbers are those of most people.", ""]
        if (published := published_table(target, task)) is not None:
            text += ["The paper's:", "", published, ""]
    _write(text, results, notes, path)


def write_parts(
    results: Mapping[str, Sequence[Result]],
    path: str | os.PathLike,
    notes: Mapping[str, object],
    person_of: Mapping[str, str],
    baseline: str,
) -> None:
    """As `write_many_to_one`: a table for each target with a row for each network, tested against one of them."""
    text: list[str] = []
    for target, measured in results.items():
        text += [f"## To {target}", "", *compared(by_person(measured, person_of), baseline)]
    _write(text, results, notes, path)


def _write(
    text: Sequence[str], results: Mapping[str, Sequence[Result]], notes: Mapping[str, object], path: str | os.PathLike
) -> None:
    if not results:
        raise CaseError(
            "There is nothing to tell: no held-out subject has the contrasts that are wanted, or no row its style key; "
            "give other targets, another task or another style_keys_file."
        )
    lines = [*text, "Mean ± standard deviation over people; n is how many have the contrasts of a row.", ""]
    lines += [f"- {name}: {value}" for name, value in notes.items()]
    content = {
        target: {
            row: {subject: {"figures": finite(one.figures), "seconds": one.seconds} for subject, one in of.items()}
            for row, of in by_row(list(measured)).items()
        }
        for target, measured in results.items()
    }
    write_pair("\n".join(lines), {"notes": dict(notes), "targets": content}, path)
