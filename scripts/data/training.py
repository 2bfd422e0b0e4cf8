"""From a datalist of subjects to what the trainer and the validation read."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from scripts.data.slab_dataset import PackedVolume
from scripts.files import CaseError

_IMAGES = ("source", "target", "mask", "labels")


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
        raise CaseError(f"pairs is '{pairs}'; it takes 'real' (CT and MRI) or 'simulated' (MRI alone).")
    path = Path(dataset_dir) / "datalist.json"
    if not path.is_file():
        raise CaseError(
            f"There is no {path}; training reads its subjects from there (docs/README.md, Training, shows its form)."
        )
    try:
        listed = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CaseError(f"{path} is not valid JSON ({error}); repair it.") from error
    if not isinstance(listed, Mapping) or not isinstance(listed.get(section), list):
        raise CaseError(f"{path} has no list '{section}'; add it, empty if there is nobody to put there.")
    if not listed[section] and not may_be_empty:
        raise CaseError(f"The list '{section}' of {path} is empty; add subjects to it.")
    needed = ("source", "target") if pairs == "real" else ("target",)
    return [_absolute(entry, path, needed) for entry in listed[section]]


def _absolute(entry: Mapping, path: Path, needed: Sequence[str]) -> dict:
    subject = entry.get("subject")
    if not subject:
        raise CaseError(f"{path} has an entry without 'subject'; name it.")
    missing = [key for key in needed if key not in entry]
    if missing:
        raise CaseError(f"Subject {subject} of {path} has no '{missing[0]}'; add its path, or leave the subject out.")
    item = {"mask": entry["target"], **entry}
    for key in _IMAGES:
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
) -> list[dict]:
    """Whole volumes for validation and evaluation, each source drawn once and the same in every run.

    Args:
        items: entries of the datalist.
        volume_transform, source_transform: as in ``pack_volume``.
        seed: of the first subject's draw; the next ones count up.
        progress: wraps the loop (tqdm).

    Returns:
        {"subject", "source", "target", "mask": (1, H, W, Z)} for each, images in [0, 1].
    """
    prepared = []
    for number, item in enumerate(progress(items)):
        data = volume_transform(dict(item))
        if source_transform is not None:
            source_transform.set_random_state(seed=seed + number)
            data = source_transform(data)
        volumes = {key: torch.as_tensor(data[key]).float().contiguous() for key in ("source", "target", "mask")}
        prepared.append({"subject": item["subject"], **volumes})
    return prepared


def training_style_keys(volumes: Sequence[PackedVolume], num_bins: int = 128) -> dict:
    """The style key of each packed volume, by subject: (3, num_bins) float32."""
    return {volume.subject: volume.style_key(num_bins) for volume in volumes}
