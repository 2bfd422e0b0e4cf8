"""From a datalist of subjects to what the trainer and the validation read."""

import functools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor

from ..contrasts import contrast_key, contrast_named, contrasts_in
from ..errors import CaseError
from .volume_cache import Arrays, is_image, prepared_arrays

DATALIST = "datalist.json"
_VOLUMES = ("source", "target", "mask")
_MORE = ("fractions", "target_contrast")  # where they are


def training_datalist(
    dataset_dir: str,
    section: str,
    needed: Sequence[str] = ("source", "target"),
    contrasts: Sequence[str] | None = None,
    may_be_empty: bool = True,
    failures: list[dict[str, str]] | None = None,
    targets: Sequence[str] = (),
) -> list[dict]:
    """One section of DATASET_DIR/datalist.json, with absolute paths.

    An entry names its source by `"source": path`, or by contrast, `"sources": {"T2": path, "FLAIR": path}`; with both,
    `sources` is what counts.

    Args:
        dataset_dir: folder of datalist.json, to which its paths are relative.
        section: "training", "validation" or "test".
        needed: which of "source" and "target" each subject has to have.
        contrasts: of the sources, in the order of the network's channels; None for one of any name.
        may_be_empty: whether a list without subjects is one.
        failures: receives {"subject", "reason"} of each subject that lacks something; without, the first is an error.
        targets: contrasts of which the target is drawn; each subject then has to have one of them and another contrast.

    Returns:
        {"subject", "target", "source"?, "mask"?, "labels"?, "weight"?} for each subject. Without a mask the target's
        own file stands in for it: a skull-stripped volume is positive in the brain alone. With several contrasts
        `contrast_NAME`, for each that the subject has, stand in the place of "source": what `StackContrastsd` reads. A
        "source" without a name is then the first contrast.

    Raises:
        CaseError: one sentence that says what is missing where.
    """
    path, listed = _read_datalist(dataset_dir)
    if not isinstance(listed.get(section), list):
        raise CaseError(f"{path} has no list {section!r}; add it, empty if there is nobody to put there.")
    if not listed[section] and not may_be_empty:
        raise CaseError(f"The list {section!r} of {path} is empty; add subjects to it.")
    names = None if contrasts is None else [contrast_named(name) for name in contrasts]
    items = []
    for entry in listed[section]:
        try:
            items.append(_with_paths(entry, path, needed, names))
            if targets:
                _check_targets(items[-1], path, [contrast_named(name) for name in targets])
        except CaseError as error:
            if failures is None or not entry.get("subject"):
                raise
            failures.append({"subject": str(entry["subject"]), "reason": str(error)})
    return items


def listed_ct_window(dataset_dir: str) -> list[float] | None:
    """The HU that 0 and 1 stand for in the sources of a prepared set, `ct_window` of its datalist; None without.

    Raises:
        CaseError: no datalist that can be read.
    """
    return _read_datalist(dataset_dir)[1].get("ct_window")


def _read_datalist(dataset_dir: str) -> tuple[Path, Mapping]:
    path = Path(dataset_dir) / DATALIST
    if not path.is_file():
        raise CaseError(
            f"There is no {path}; training reads its subjects from there (docs/training.md shows its form)."
        )
    try:
        listed = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CaseError(f"{path} is not valid JSON ({error}); repair it.") from error
    return path, listed if isinstance(listed, Mapping) else {}


def _with_paths(entry: Mapping, path: Path, needed: Sequence[str], contrasts: Sequence[str] | None) -> dict:
    """An entry of the datalist at `path` with its sources under the keys of the contrasts, and paths absolute."""
    subject = entry.get("subject")
    if not subject:
        raise CaseError(f"{path} has an entry without 'subject'; name it.")
    if Path(str(subject)).name != str(subject):  # it names files, which must not land in another folder
        raise CaseError(f"{path} has the subject {subject}, which is no name of a file; leave out the folders.")
    sources = _source_paths(entry, path, contrasts)
    others = {key: value for key, value in entry.items() if key not in ("source", "sources")}
    missing = [key for key in needed if key not in others and not (key == "source" and sources)]
    if missing:
        raise CaseError(f"Subject {subject} of {path} has no {missing[0]!r}; add its path, or leave the subject out.")
    item = {**sources, **others}
    if "target" in item:
        item.setdefault("mask", item["target"])
    for key in filter(is_image, list(item)):
        item[key] = str(path.parent / item[key])
        if not Path(item[key]).is_file():
            raise CaseError(f"The {key} of subject {subject}, {item[key]}, is not there; mend {path.name}.")
    return item


def _check_targets(item: Mapping, path: Path, targets: Sequence[str]) -> None:
    """Refuse a subject without a contrast that may be the target, or without another one as its source."""
    there = list(contrasts_in(item))
    if len(there) < 2 or not set(targets) & set(there):
        raise CaseError(
            f"Subject {item['subject']} of {path} has {' and '.join(there) or 'no contrast'} alone; one of "
            f"{', '.join(targets)} and another contrast are needed: add one, or leave the subject out."
        )


def _source_paths(entry: Mapping, path: Path, contrasts: Sequence[str] | None) -> dict[str, str]:
    """The files of an entry's source by the item's keys: "source", or one key for each of several contrasts."""
    sources = _named_sources(entry, path)
    several = contrasts is not None and len(contrasts) > 1
    if not sources:
        return {contrast_key(contrasts[0]) if several else "source": entry["source"]} if "source" in entry else {}
    if several:
        return {contrast_key(name): sources[name] for name in contrasts if name in sources}
    if contrasts is None and len(sources) > 1:
        raise CaseError(
            f"Subject {entry['subject']} of {path} has sources of several contrasts, {', '.join(sources)}; give those "
            "wanted as contrasts."
        )
    wanted = next(iter(sources)) if contrasts is None else contrasts[0]
    return {"source": sources[wanted]} if wanted in sources else {}


def _named_sources(entry: Mapping, path: Path) -> dict[str, str]:
    """`sources` of an entry under the names of `CONTRASTS`, an absent one (null) left out."""
    sources = entry.get("sources") or {}
    if not isinstance(sources, Mapping):
        raise CaseError(
            f'\'sources\' of subject {entry["subject"]} of {path} is no table; give {{"T2": path, "FLAIR": path}}.'
        )
    return {contrast_named(name): file for name, file in sources.items() if file}


def prepare_pairs(
    items: Sequence[Mapping],
    load: Callable,
    render: Callable | None = None,
    seed: int = 0,
    progress: Callable = iter,
    cache_dir: str | os.PathLike | None = None,
    num_workers: int | None = 1,
) -> list[dict]:
    """Whole volumes for validation and evaluation, each source drawn once and the same in every run.

    Args:
        items: entries of the datalist.
        load, render: as in ``pack_volume``.
        seed: of the first subject's draw; the next ones count up, or go by an entry's "number".
        progress: wraps the loop (tqdm).
        cache_dir, num_workers: as in ``prepared_arrays``.

    Returns:
        {"subject", "source", "target", "mask": (C or 1, H, W, Z) MetaTensors} for each, images in [0, 1]; also
        "fractions" and "target_contrast", where `load` or `render` gives them.
    """
    make = functools.partial(_pair_arrays, load=load, render=render, seed=seed if render else 0)
    numbered = [{"number": number, **item} for number, item in enumerate(items)]
    unused = {"subject", "weight"} if render else {"subject", "weight", "number"}
    prepared = []
    for item, arrays in zip(
        items, prepared_arrays(numbered, make, cache_dir, num_workers, progress, unused), strict=True
    ):
        affine = torch.from_numpy(arrays["affine"])
        volumes = {key: MetaTensor(torch.from_numpy(arrays[key]), affine=affine) for key in _VOLUMES}
        more = {key: torch.from_numpy(arrays[key]) for key in _MORE if key in arrays}
        prepared.append({"subject": item["subject"], **volumes, **more})
    return prepared


def _pair_arrays(item: Mapping, load: Callable, render: Callable | None, seed: int) -> Arrays:
    """Source, target and mask of a subject, float32, and the affine of their grid."""
    data = load(dict(item))
    if render is not None:
        render.set_random_state(seed=seed + item["number"])
        data = render(data)
    there = [key for key in (*_VOLUMES, *_MORE) if key in _VOLUMES or key in data]
    volumes = {key: torch.as_tensor(data[key]).float().contiguous().numpy() for key in there}
    return {**volumes, "affine": np.asarray(data["target"].affine, dtype=np.float64)}


def part_of(items: Sequence[Mapping], rank: int, num_processes: int) -> list[dict]:
    """The share of one of several processes that validate together, each entry with its "number" in the whole list.

    All shares have the same length, as the exchange of the metrics wants it: the first entries are repeated for that.
    """
    numbered = [{**item, "number": number} for number, item in enumerate(items)]
    length = math.ceil(len(items) / num_processes)
    return [numbered[index % len(items)] for index in range(rank, length * num_processes, num_processes)]


def keys_by_person(keys: Mapping[str, np.ndarray], items: Sequence[Mapping]) -> dict[str, np.ndarray]:
    """The same keys under names that begin with the person: `PERSON#SUBJECT`, where the datalist tells another person.

    What lies far from the training is judged against other people, not against the same one's second scan.

    Args:
        keys: subject, or subject with `#k` behind it -> key.
        items: entries of the datalist.
    """
    person = {str(item["subject"]): str(item.get("person", item["subject"])) for item in items}
    renamed = {}
    for name, key in keys.items():
        subject = name.split("#")[0]
        who = person.get(subject, subject)
        renamed[name if who == subject else f"{who}#{name}"] = key
    return renamed
