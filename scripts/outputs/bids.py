"""The results of a run as a BIDS derivative, for the programs that take data sets in that form."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CaseError
from ..files import check_folder, write_whole, written_whole
from ..volumes.find import stem_of
from .saver import SaveSyntheticd

__all__ = ["derivative_name", "write_derivative"]

BIDS_VERSION = "1.10.0"
# contrast -> further entities and the suffix that BIDS has for it; there is none for a CT
_SUFFIXES = {
    **{"T1": ({}, "T1w"), "T1ce": ({"ce": "gadolinium"}, "T1w"), "T2": ({}, "T2w")},
    **{"FLAIR": ({}, "FLAIR"), "PD": ({}, "PDw")},
}
_ENTITIES = ("sub", "ses", "acq", "ce", "rec", "run", "space", "desc")  # in their order
_README = """Synthetic {contrast} images, made by a neural network ({name} {version}). They are for research and
demonstration. They are not for diagnosis: they may show what is not there and miss what is. The JSON file beside each
image says how it was made.
"""


def write_derivative(cases: Sequence[Mapping[str, Any]], saver: SaveSyntheticd, dataset_dir: Any) -> None:
    """Copy the results of all cases that are done to OUT/derivatives/brain_ct_to_mri, named as BIDS wants it.

    What is there already and made alike is left as it is. The JSON file of an image holds the record of its case
    (`case_record`) as `BrainCtToMri`, and is written after the image.

    Args:
        cases: items of the run, `{"case": CASE, "image": path or paths}`.
        saver: where their results are.
        dataset_dir: what the run was given. Of a BIDS data set, the sources are named by URI.

    Raises:
        CaseError: the target is a CT, or two cases would have one name; the others are written.
    """
    if saver.target_contrast not in _SUFFIXES:
        raise CaseError(f"BIDS has no name for a synthetic {saver.target_contrast}; leave configs/bids.json out.")
    root = Path(str(dataset_dir)).expanduser()
    raw = root if (root / "dataset_description.json").is_file() else None
    folder = check_folder(saver.output_dir / "derivatives" / saver.record["bundle"])
    _write_description(folder, saver.record, raw)
    written: dict[Path, str] = {}
    clashes = []
    for item in cases:
        if "failure" in item or not saver.is_done(item):
            continue
        result = saver.output_dir / f"{item['case']}{saver.suffix}"
        record = json.loads(Path(f"{result}.json").read_text(encoding="utf-8"))
        name = derivative_name(item, record["target_contrast"], record["source_contrast"])
        if name in written:
            clashes.append(f"{written[name]} and {item['case']}")
        else:
            written[name] = item["case"]
            _write_case(Path(f"{result}.nii.gz"), folder / name, _sidecar(record, item, raw))
    if clashes:
        raise CaseError(
            f"In BIDS the results of {clashes[0]} would have one name, so that {len(clashes)} were left out; "
            "letters and digits alone count there: rename the sources."
        )


def derivative_name(item: Mapping[str, Any], target: str, source: str) -> Path:
    """Path below the derivative of a case's image, without suffix.

    A source that is named as BIDS wants it keeps its entities; of others the letters and digits of CASE name the
    subject.

    Args:
        item: `{"case": CASE, "image": path or paths}`.
        target: contrast of the image.
        source: contrast on whose grid it lies.
    """
    more, suffix = _SUFFIXES[target]
    entities = {**_entities_of(item), **more, "space": source, "desc": "synthetic"}
    folders = [f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities]
    named = [f"{key}-{entities[key]}" for key in _ENTITIES if key in entities]
    return Path(*folders, "anat", "_".join([*named, suffix]))


def _entities_of(item: Mapping[str, Any]) -> dict[str, str]:
    stem = "" if isinstance(item["image"], list) else stem_of(Path(item["image"]))
    entities = dict(re.findall(r"(?:^|_)([a-z]+)-([A-Za-z0-9]+)(?=_)", stem))
    if stem.startswith("sub-") and "sub" in entities:
        return {key: value for key, value in entities.items() if key in _ENTITIES}
    return {"sub": re.sub("[^A-Za-z0-9]", "", item["case"]) or "unnamed"}


def _write_case(result: Path, start: Path, told: Mapping[str, Any]) -> None:
    """The image, then its JSON, which says that the image is there."""
    sidecar = json.dumps(told, indent=2) + "\n"
    image, beside = (start.with_name(start.name + ending) for ending in (".nii.gz", ".json"))
    if image.is_file() and beside.is_file() and beside.read_text(encoding="utf-8") == sidecar:
        return
    check_folder(start.parent)
    beside.unlink(missing_ok=True)
    with written_whole(image) as temporary:
        shutil.copyfile(result, temporary)
    write_whole(beside, sidecar)


def _sidecar(record: Mapping[str, Any], item: Mapping[str, Any], raw: Path | None) -> dict[str, Any]:
    files = [] if raw is None or isinstance(item["image"], list) else [item["image"]]
    sources = [f"bids:raw:{Path(file).relative_to(raw).as_posix()}" for file in files if raw in Path(file).parents]
    told = {"Sources": sources, "SpatialReference": sources[0]} if sources else {"SpatialReference": "orig"}
    return {
        "Description": f"Synthetic {record['target_contrast']} image, made by a neural network; not for diagnosis",
        **told,
        "SkullStripped": True,
        "BrainCtToMri": dict(record),
    }


def _write_description(folder: Path, record: Mapping[str, Any], raw: Path | None) -> None:
    """What the data set is and which program made it."""
    name, version = record["bundle"], record["bundle_version"]
    description = {
        "Name": f"Synthetic {record['target_contrast']} images",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": name, "Version": version, "Description": "Brain CT to MRI, a MONAI Bundle"}],
    }
    if raw is not None:
        description["DatasetLinks"] = {"raw": _link(raw, folder)}
    write_whole(folder / "dataset_description.json", json.dumps(description, indent=2) + "\n")
    readme = _README.format(contrast=record["target_contrast"], name=name, version=version)
    write_whole(folder / "README.md", readme)


def _link(raw: Path, folder: Path) -> str:
    """From the derivative to the data set; by URI where they are on different drives."""
    try:
        return Path(os.path.relpath(raw.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return raw.resolve().as_uri()
