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

from ..errors import CaseError
from .slab_dataset import PackedVolume
from .volume_cache import IMAGES, Arrays, prepared_arrays

DATALIST = "datalist.json"
_VOLUMES = ("source", "target", "mask")


def training_datalist(dataset_dir: str, section: str, pairs: str = "real", may_be_empty: bool = True) -> list[dict]:
    """One section of DATASET_DIR/datalist.json, with absolute paths.

    Args:
        dataset_dir: folder of datalist.json, to which its paths are relative.
        section: "training", "validation" or "test".
        pairs: "real" needs "source" and "target" of each subject, "simulated" the target alone.
        may_be_empty: whether a list without subjects is one.

    Returns:
        {"subject", "target", "source"?, "mask"?, "labels"?, "weight"?} for each subject. Without a mask the target's
        own file stands in for it: a skull-stripped volume is positive in the brain alone.

    Raises:
        CaseError: one sentence that says what is missing where.
    """
    if pairs not in ("real", "simulated"):
        raise CaseError(f"pairs is {pairs!r}; it takes 'real' (CT and MRI) or 'simulated' (MRI alone).")
    path, listed = _read_datalist(dataset_dir)
    if not isinstance(listed.get(section), list):
        raise CaseError(f"{path} has no list {section!r}; add it, empty if there is nobody to put there.")
    if not listed[section] and not may_be_empty:
        raise CaseError(f"The list {section!r} of {path} is empty; add subjects to it.")
    needed = ("source", "target") if pairs == "real" else ("target",)
    return [_absolute(entry, path, needed) for entry in listed[section]]


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
            f"There is no {path}; training reads its subjects from there (docs/README.md, Training, shows its form)."
        )
    try:
        listed = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CaseError(f"{path} is not valid JSON ({error}); repair it.") from error
    return path, listed if isinstance(listed, Mapping) else {}


def _absolute(entry: Mapping, path: Path, needed: Sequence[str]) -> dict:
    subject = entry.get("subject")
    if not subject:
        raise CaseError(f"{path} has an entry without 'subject'; name it.")
    missing = [key for key in needed if key not in entry]
    if missing:
        raise CaseError(f"Subject {subject} of {path} has no {missing[0]!r}; add its path, or leave the subject out.")
    item = {"mask": entry["target"], **entry}
    for key in IMAGES:
        if key in item:
            item[key] = str(path.parent / item[key])
            if not Path(item[key]).is_file():
                raise CaseError(f"The {key} of subject {subject}, {item[key]}, is not there; mend {path.name}.")
    return item


def prepare_pairs(
    items: Sequence[Mapping],
    volume_transform: Callable,
    source_transform: Callable | None = None,
    seed: int = 0,
    progress: Callable = iter,
    cache_dir: str | os.PathLike | None = None,
    num_workers: int | None = 1,
) -> list[dict]:
    """Whole volumes for validation and evaluation, each source drawn once and the same in every run.

    Args:
        items: entries of the datalist.
        volume_transform, source_transform: as in ``pack_volume``.
        seed: of the first subject's draw; the next ones count up, or go by an entry's "number".
        progress: wraps the loop (tqdm).
        cache_dir, num_workers: as in ``prepared_arrays``.

    Returns:
        {"subject", "source", "target", "mask": (1, H, W, Z) MetaTensors} for each, images in [0, 1].
    """
    make = functools.partial(
        _pair_arrays,
        volume_transform=volume_transform,
        source_transform=source_transform,
        seed=seed if source_transform else 0,
    )
    numbered = [{"number": number, **item} for number, item in enumerate(items)]
    unused = {"subject", "weight"} if source_transform else {"subject", "weight", "number"}
    prepared = []
    for item, arrays in zip(
        items, prepared_arrays(numbered, make, cache_dir, num_workers, progress, unused), strict=True
    ):
        affine = torch.from_numpy(arrays["affine"])
        volumes = {key: MetaTensor(torch.from_numpy(arrays[key]), affine=affine) for key in _VOLUMES}
        prepared.append({"subject": item["subject"], **volumes})
    return prepared


def _pair_arrays(item: Mapping, volume_transform: Callable, source_transform: Callable | None, seed: int) -> Arrays:
    """Source, target and mask of a subject, float32, and the affine of their grid."""
    data = volume_transform(dict(item))
    if source_transform is not None:
        source_transform.set_random_state(seed=seed + item["number"])
        data = source_transform(data)
    volumes = {key: torch.as_tensor(data[key]).float().contiguous().numpy() for key in _VOLUMES}
    return {**volumes, "affine": np.asarray(data["target"].affine, dtype=np.float64)}


def part_of(items: Sequence[Mapping], rank: int, num_processes: int) -> list[dict]:
    """The share of one of several processes that validate together, each entry with its "number" in the whole list.

    All shares have the same length, as the exchange of the metrics wants it: the first entries are repeated for that.
    """
    numbered = [{**item, "number": number} for number, item in enumerate(items)]
    length = math.ceil(len(items) / num_processes)
    return [numbered[index % len(items)] for index in range(rank, length * num_processes, num_processes)]


def training_style_keys(volumes: Sequence[PackedVolume], num_bins: int = 128) -> dict:
    """The style key of each packed volume, by subject: (3, num_bins) float32."""
    return {volume.subject: volume.style_key(num_bins) for volume in volumes}


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
