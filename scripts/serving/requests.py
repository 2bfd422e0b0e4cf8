"""What a request to a server may change. It comes with a volume and holds for that volume alone.

MONAI Label builds the transforms and the inferer from the config, hands the transforms a dictionary that holds all the
request said, and the inferer nothing but the volume. The values travel with the volume, in its meta, and are never
evaluated. `inference.json` has no `displayable_configs`, which would list the settings in `/info/`: MONAI Label writes
a request's values there and parses the config again, with the last request's device in it, and a text that begins with
`%` is a file to load then. One request for the device "%x" made every later one fail.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import MapTransform
from torch import Tensor

from ..conditioning.style_key import named_style_key
from ..errors import CaseError
from ..inferers import SETTINGS, ISTAInferer

__all__ = ["KeepRequestd", "RequestInferer"]

_META_KEY = "request"
_WEIGHTS = "model.pt"  # what MONAI Label loads where nothing else is asked for
_EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha")  # the first where none is asked for


class KeepRequestd(MapTransform):
    """Puts what a request asks of the inferer into the meta of the volume; without a request it changes nothing there.

    MONAI Label names the result's type as `result_extension`; NIfTI is put there where a request has none.

    A list is a choice that nobody made: its first is the default. Nothing and an empty text are the default too.

    Args:
        keys: keys of the volumes, MetaTensors.
        names: arguments of the inferer that are looked for in the dictionary: its style key and its settings.
        allow_missing_keys: no error where a key is missing.

    Raises:
        CaseError: a device that is not there, weights of another task, or a type of result or file that holds no image.
    """

    def __init__(
        self, keys: KeysCollection, names: Sequence[str] = ("style_key", *SETTINGS), allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.names = tuple(names)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Keep the request with the volume at each key."""
        d = dict(data)
        _check_device(_chosen(d.get("device")))
        _check_weights(_chosen(d.get("model_filename")))
        _check_result_type(_chosen(d.get("result_dtype")))
        d["result_extension"] = _extension(_chosen(d.get("result_extension")))
        requested = {name: _chosen(d[name]) for name in self.names if name in d}
        for key in self.key_iterator(d):
            if requested:
                d[key].meta[_META_KEY] = {name: value for name, value in requested.items() if value not in (None, "")}
        return d


def _chosen(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, list) else value


def _check_device(device: Any) -> None:
    try:
        torch.zeros(0, device=device).cpu()  # the device "meta" has nothing to give back
    except (RuntimeError, AssertionError, TypeError) as error:
        raise CaseError(f"There is no device {device} here; leave device out, or ask for cpu.") from error


def _check_weights(name: Any) -> None:
    if name not in (None, "", _WEIGHTS):
        raise CaseError(
            f"model_filename is {name}, but only {_WEIGHTS} fits this model's preprocessing and style keys; leave it "
            "out, and serve another task as a model of its own (docs/monai_label.md)."
        )


def _check_result_type(name: Any) -> None:
    try:
        fits = name in (None, "") or np.issubdtype(np.dtype(name), np.floating)
    except (TypeError, ValueError, SyntaxError):  # what NumPy makes of a text that is none of its types
        fits = False
    if not fits:
        raise CaseError(
            f"result_dtype is {name}, but the result is an image from 0 to 1 and no label map, of which {name} would "
            "leave nothing; ask for float32. 3D Slicer and OHIF ask for label maps: docs/monai_label.md has the way to "
            "the image."
        )


def _extension(name: Any) -> str:
    if name in (None, ""):
        return _EXTENSIONS[0]
    if name not in _EXTENSIONS:
        raise CaseError(f"result_extension is {name}; use one of {', '.join(_EXTENSIONS)}.")
    return name


class RequestInferer(Inferer):
    """An inferer with other settings for a volume that came with a request (`KeepRequestd`).

    Args:
        inferer: any with `settings()`, `changed(**arguments)`, `evaluations`, `channels` and `style_key`, such as
            `ISTAInferer`.
        keys_file: where a style key is looked up by name. A request takes no paths: it would look into other files.
        max_evaluations: of the network on each slab that a request may ask for; meanwhile a server answers nobody else.
            The paper's most are 100.
        contrast: of the target, where the file has keys of several.
    """

    def __init__(
        self, inferer: ISTAInferer, keys_file: str | Path, max_evaluations: int = 100, contrast: str | None = None
    ) -> None:
        super().__init__()
        self.inferer = inferer
        self.keys_file = keys_file
        self.contrast = contrast
        self.max_evaluations = max_evaluations

    @property
    def batch_size_used(self) -> int | None:
        """Slabs a call at the end of the latest volume without a request."""
        return self.inferer.batch_size_used

    @property
    def channels(self) -> dict[str, int]:
        """Those of the inferer."""
        return self.inferer.channels

    def settings(self) -> dict[str, Any]:
        """Those of the inferer, which hold without a request."""
        return self.inferer.settings()

    def changed(self, **arguments: Any) -> ISTAInferer:
        """The inferer with other arguments, without requests."""
        return self.inferer.changed(**arguments)

    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor], style_key: np.ndarray | Tensor | None = None
    ) -> Tensor:
        """Translate source volumes, as the inferer does.

        Raises:
            CaseError: a setting of the request that cannot be.
        """
        if isinstance(network, torch.nn.Module):
            # a server builds it from network_def; in the layout of the key network bfloat16 rounds as in the main job
            network.to(memory_format=torch.channels_last)
        request = inputs.meta.get(_META_KEY) if isinstance(inputs, MetaTensor) else None
        if request is None:
            return self.inferer(inputs, network, style_key)
        output = self._requested(request)(inputs, network, style_key)
        if not torch.isfinite(output).all():
            raise CaseError(
                "The result has voxels that are NaN, so long were its corrections; ask for a smaller step_size."
            )
        return output

    def _requested(self, request: Mapping[str, Any]) -> ISTAInferer:
        """Another inferer with the request's settings, because two requests may be at work at once."""
        try:
            inferer = self.inferer.changed(**self._arguments(request))
        except ValueError as error:
            raise CaseError(str(error)) from error
        self._check_evaluations(inferer)
        return inferer

    def _arguments(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a request as arguments: the style key by its name, numbers that came as text as numbers."""
        arguments = {name: _number_like(getattr(self.inferer, name), value) for name, value in request.items()}
        if "style_key" in arguments:
            arguments["style_key"] = self._style_key(str(arguments["style_key"]))
        return arguments

    def _style_key(self, name: str) -> np.ndarray:
        try:
            return named_style_key(name, self.keys_file, contrast=self.contrast)
        except ValueError as error:
            raise CaseError(str(error)) from error

    def _check_evaluations(self, inferer: ISTAInferer) -> None:
        if inferer.evaluations > self.max_evaluations:
            raise CaseError(
                f"num_inference_steps is {inferer.num_inference_steps}, num_corrections {inferer.num_corrections} and "
                f"mirrored {inferer.mirrored}, which is more than {self.max_evaluations} evaluations of the network "
                "for a request; ask for fewer, or run the main job."
            )


def _number_like(default: Any, value: Any) -> Any:
    """A number that came as text, or a whole one as a float, as its argument's type; the inferer refuses the rest."""
    if isinstance(default, bool):
        return {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower(), value)
    if isinstance(default, int | float) and isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = type(default)(value)
        except OverflowError:
            return float("inf")
        except ValueError:
            return value
        return number if isinstance(value, str) or number == value else value
    return value
