"""Translation for programs: arrays and nibabel images in, a nibabel image out."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from .info import TASKS
from .job import bundle_modules, command_line, config_files

__all__ = ["CaseError", "translate"]

with bundle_modules():
    from scripts.errors import CaseError

_CASE = "image"
_OWN = ("dataset_dir", "output_dir", "cases")  # settings of the main job that a call has for itself
_NAMING_FILES = ("weights", "style_key", "style_keys_file", "source_keys_file", "uncertainty_file")
_kept: dict[str, _Translator] = {}  # the last one, which has its network loaded


def translate(
    image: Any,
    affine: Any = None,
    *,
    task: str = "ct_to_t1",
    fast: bool = False,
    best: bool = False,
    config_file: str | Sequence[str] = (),
    **options: Any,
) -> nib.Nifti1Image:
    """Translate one scan; the voxels are those that the bundle's main job writes of the same scan in a file.

    The network stays loaded for the next call with the same settings. One call runs at a time. Nothing is left on disk
    but what the bundle keeps in the user's cache folder.

    Args:
        image: a nibabel image, or an array (H, W, Z) with `affine`; CT in HU. For the task many_to_one several of one
            head, by contrast: `{"T2": image, "FLAIR": image}`; arrays then share the affine.
        affine: (4, 4), voxel to RAS+ mm, of an array.
        task: one of `TASKS`.
        fast: as --fast.
        best: as --best.
        config_file: further config files of the main job, paths or names of the bundle's ("sparse").
        options: any option of the main job (docs/inference.md), such as `device="cpu"` or `detail=0.25`.

    Returns:
        the synthetic image on the grid of the scan, float32, 0 to 1. Its `extra["record"]` is what the main job writes
        as JSON beside a result: settings, checksum of the weights, measures, findings of the lesion watch.

    Raises:
        CaseError: a ValueError; its one sentence says what is wrong with the scan or with an option, and what to do.
    """
    if task not in TASKS:
        raise CaseError(f"task is {task}; use one of {', '.join(TASKS)}.")
    if fast and best:
        raise CaseError("fast and best exclude each other; give one of them.")
    more = [config_file] if isinstance(config_file, str) else config_file
    if refused := [name for name in _OWN if name in options]:
        raise CaseError(f"{refused[0]} is no option here, where one image is given and one comes back; leave it out.")
    files = config_files(task, fast, best, more=more)
    with bundle_modules():
        key = repr((files, sorted(options.items())))
        if key not in _kept or _kept[key].is_outdated():
            _kept.clear()
            try:
                _kept[key] = _Translator(files, options)
            except RuntimeError as error:
                raise _root(error) from None
        return _kept[key](image, affine)


class _Translator:
    """The main job of some settings, with its network loaded.

    Args:
        files: config files.
        options: of the main job.
    """

    def __init__(self, files: Sequence[str], options: Mapping[str, Any]) -> None:
        from monai.bundle import ConfigWorkflow

        from scripts.devices import check_device
        from scripts.options import check_options

        check_options(command_line(files, options))
        if isinstance(options.get("device"), str):
            check_device(options["device"])
        self.folder = tempfile.TemporaryDirectory()
        folders = {"dataset_dir": f"{self.folder.name}/in", "output_dir": f"{self.folder.name}/out"}
        settings = {**folders, "cases": [], "inferer#inferer#progress": False, **options}
        workflow = ConfigWorkflow(files, workflow_type="infer", logging_file=False, **settings)
        workflow.parser.parse(reset=True)  # without what `initialize` does to the whole process
        setting = workflow.parser.get_parsed_content
        named = [*files, *options.values(), *map(setting, _NAMING_FILES)]
        self.stamps = {name: _stamp(name) for name in named if isinstance(name, str | Path)}
        setting("load_weights")
        self.evaluator = setting("evaluator")
        several = "contrasts" in workflow.parser
        self.contrasts = self._contrasts(setting) if several else None
        self.target = setting("target") if several else None

    def is_outdated(self) -> bool:
        """Whether a file that the settings name is not the one any more that was read."""
        return any(_stamp(name) != stamp for name, stamp in self.stamps.items())

    @staticmethod
    def _contrasts(setting: Callable[[str], Any]) -> list[str]:
        """The contrasts that are looked at, in the order of the network's channels."""
        from scripts.contrasts import contrasts_of

        return contrasts_of("use_contrasts", setting("use_contrasts"), setting("contrasts"))

    def __call__(self, image: Any, affine: Any) -> nib.Nifti1Image:
        """Translate one scan by way of files of its own."""
        import torch

        images = image if isinstance(image, Mapping) else {None: image}
        with tempfile.TemporaryDirectory(dir=self.folder.name) as folder:
            files = {name: str(_write(one, affine, Path(folder), name)) for name, one in images.items()}
            saver = self.evaluator.saver
            try:
                with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
                    told = self.evaluator.translate_case(self._item(files))
                if "failure" in told:
                    raise CaseError(told["failure"])
                return _read(saver.output_dir / f"{_CASE}{saver.suffix}.nii.gz")
            finally:
                shutil.rmtree(saver.output_dir, ignore_errors=True)  # an image of a patient

    def _item(self, files: Mapping[str | None, str]) -> dict[str, Any]:
        """The case that the main job makes of these files."""
        from scripts.contrasts import contrast_named
        from scripts.data.contrast_files import case_of, refuse_present_target

        if self.contrasts is None:
            if list(files) != [None]:
                raise CaseError("This task translates one image; give it alone, or give the task many_to_one.")
            return {"case": _CASE, "image": files[None]}
        if None in files:
            raise CaseError('This task takes images by contrast; give them as {"T2": image, "FLAIR": image}.')
        images: dict[str, str] = {}
        for name, file in files.items():
            if images.setdefault(contrast_named(name), file) != file:
                raise CaseError(f"Two of the images are {contrast_named(name)}, one as {name}; give one of them.")
        return refuse_present_target([case_of(_CASE, images, self.contrasts)], self.target)[0]


def _root(error: BaseException) -> BaseException:
    """The `CaseError` that MONAI wrapped, else the error."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, CaseError):
        cause = cause.__cause__
    return error if cause is None else cause


def _stamp(name: str | Path) -> tuple[str, int, int] | None:
    """Path, size (bytes) and time of change (ns) of a file; None where there is none of that name."""
    try:
        told = Path(name).stat()
    except (OSError, ValueError):
        return None
    return str(Path(name).resolve()), told.st_size, told.st_mtime_ns


def _write(image: Any, affine: Any, folder: Path, contrast: str | None) -> Path:
    """Write an image as NIfTI under its own name, with which errors call it; its values as the main job reads them."""
    if isinstance(image, nib.spatialimages.SpatialImage):
        name = Path(image.get_filename() or "image.nii").name
        made = _as_float(image)
    elif affine is None:
        raise CaseError("An array has no place in space; give its affine, or give a nibabel image.")
    else:
        name, made = "image.nii", nib.Nifti1Image(np.asarray(image, dtype=np.float32), np.asarray(affine))
        made.set_sform(made.affine, code=1)
        made.set_qform(made.affine, code=1)
    if not name.lower().endswith((".nii", ".nii.gz", ".mgz")):
        name = f"{name.split('.')[0]}.nii"
    folder = folder / str(contrast)  # several may have one name
    folder.mkdir()
    (folder / name).write_bytes(made.to_bytes())  # files are read by what they hold, not by their suffix
    return folder / name


def _as_float(image: nib.spatialimages.SpatialImage) -> nib.Nifti1Image:
    """The image with its scaled values, on its own grid."""
    if image.get_data_dtype().kind not in "iufb":
        raise CaseError("The image holds colours or complex numbers, not one value a voxel; give the scan itself.")
    values = np.asarray(image.dataobj, dtype=np.float32)
    if isinstance(image, nib.Nifti1Pair):
        header = image.header.copy()
        header.set_data_dtype(np.float32)
        return nib.Nifti1Image(values, image.affine, header)  # an affine that was changed since counts, as in nib.save
    made = nib.Nifti1Image(values, image.affine)
    made.set_sform(image.affine, code=1)
    return made


def _read(path: Path) -> nib.Nifti1Image:
    """A result, whole in memory, with its record."""
    image = nib.load(path)
    record = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text(encoding="utf-8"))
    record["source"].pop("sha256", None)  # of a file that was made for this alone
    return nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header, extra={"record": record})
