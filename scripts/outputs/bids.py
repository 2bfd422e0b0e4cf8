"""The results of a run as a BIDS derivative, for the programs that take data sets in that form."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..contrasts import contrasts_in
from ..errors import CaseError, MachineError, reason
from ..files import check_folder, remove, write_whole, written_whole
from ..volumes.find import stem_of
from .saver import SaveSyntheticd

__all__ = ["derivative_name", "write_derivative"]

logger = logging.getLogger(__name__)

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


def write_derivative(
    cases: Sequence[Mapping[str, Any]],
    saver: SaveSyntheticd,
    dataset_dir: Any,
    all_cases: Sequence[Mapping[str, Any]] | None = None,
    failed: bool = False,
) -> None:
    """Copy the results of all cases that are done to OUT/derivatives/brain_ct_to_mri, named as BIDS wants it.

    What is there already and made alike is left as it is; the pair of a case that is not done any more is removed.
    The JSON file of an image holds the record of its case (`case_record`), without whose scan it was, as
    `BrainCtToMri`, and is written after the image.

    Args:
        cases: items of the run, `{"case": CASE, "image": path or paths}`.
        saver: where their results are.
        dataset_dir: what the run was given. Of a BIDS data set, the sources are named by URI.
        all_cases: among which two may not have one name, the first of which has it; `cases` alone if None.
        failed: cases of the run failed, which is what the program is to end with: the log alone tells what is wrong.

    Raises:
        CaseError: the target is a CT, or a case could not be written, such as one of two of one name; the others are.
        MachineError: the disk is full, or the like.
    """
    problems = list(_written(cases, cases if all_cases is None else all_cases, saver, dataset_dir))
    for problem in problems:
        logger.error(problem)
    if problems and not failed:
        raise CaseError(problems[0])


def _written(
    cases: Sequence[Mapping[str, Any]], all_cases: Sequence[Mapping[str, Any]], saver: SaveSyntheticd, dataset_dir: Any
) -> Iterator[str]:
    """Write the derivative; gives a sentence for each case of which that was not possible."""
    if saver.target_contrast not in _SUFFIXES:
        yield f"BIDS has no name for a synthetic {saver.target_contrast}; leave configs/bids.json out."
        return
    root = Path(str(dataset_dir)).expanduser()
    raw = root if (root / "dataset_description.json").is_file() else None
    folder = check_folder(saver.output_dir / "derivatives" / saver.record["bundle"])
    _write_description(folder, saver.record, raw)
    owners: dict[Path, str] = {}
    for item in all_cases:
        if "failure" not in item:
            owners.setdefault(_name(item, saver), item["case"])
    for item in cases:
        try:
            _write_or_remove(item, saver, folder, raw, owners)
        except MachineError:
            raise
        except Exception as error:
            yield reason(error)


def _name(item: Mapping[str, Any], saver: SaveSyntheticd) -> Path:
    """`derivative_name` of a case, done or not."""
    return derivative_name(item, saver.target_contrast, next(iter(contrasts_in(item)), saver.source_contrast))


def _write_or_remove(
    item: Mapping[str, Any], saver: SaveSyntheticd, folder: Path, raw: Path | None, owners: Mapping[Path, str]
) -> None:
    """The pair of a case that is done; that of one that is not, or not any more, is removed."""
    name = _name(item, saver)
    if (owner := owners.get(name, item["case"])) != item["case"]:
        if "failure" in item:
            return
        raise CaseError(
            f"In BIDS the results of {owner} and {item['case']} would have one name, so that the second was left out; "
            "letters and digits alone count there: rename the sources."
        )
    if "failure" in item or not saver.is_done(item):
        for ending in (".json", ".nii.gz"):
            remove(folder / name.with_name(name.name + ending))
        return
    result = saver.output_dir / f"{item['case']}{saver.suffix}"
    record = json.loads(Path(f"{result}.json").read_text(encoding="utf-8"))
    _write_case(Path(f"{result}.nii.gz"), folder / name, _sidecar(record, item, raw))


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
        of_image = {**entities, "ce": None}  # that of the source is not the image's
        return {key: value for key, value in of_image.items() if key in _ENTITIES and value}
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
    images = contrasts_in(item)
    used = [images[name] for name in record.get("contrasts_used", ()) if name in images] or [item["image"]]
    sources = [uri for uri in (_uri(image, raw) for image in used) if uri is not None]
    return {
        "Description": f"Synthetic {record['target_contrast']} image, made by a neural network; not for diagnosis",
        **({"Sources": sources} if sources else {}),
        "SpatialReference": _uri(item["image"], raw) or "orig",
        "SkullStripped": True,
        "BrainCtToMri": _without_patient(record),
    }


def _uri(image: Any, raw: Path | None) -> str | None:
    """A volume of the data set; None for any other, and for DICOM."""
    if raw is None or isinstance(image, list) or raw not in Path(image).parents:
        return None
    return f"bids:raw:{Path(image).relative_to(raw).as_posix()}"


def _without_patient(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without what `keep_names` adds of a DICOM series: whose it is, and its folder."""
    left_out = ("patient_name", "patient_id")

    def shown(source: Mapping[str, Any]) -> dict[str, Any]:
        hidden = (*left_out, "file") if "series_uid" in source else left_out
        return {key: value for key, value in source.items() if key not in hidden}

    told = dict(record)
    if "source" in told:
        told["source"] = shown(told["source"])
    if "sources" in told:
        told["sources"] = {name: shown(source) for name, source in told["sources"].items()}
    return told


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
