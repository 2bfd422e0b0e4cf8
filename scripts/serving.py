"""What a request to a server may change. It comes with a volume and holds for that volume alone.

MONAI Label builds the transforms and the inferer from the config, hands the transforms a dictionary that holds all the
request said, and the inferer nothing but the volume. It also writes the request's values into `displayable_configs`.
No key of the config refers to those: a text that begins with `$` is Python there, and a request is a stranger's. The
values travel with the volume instead, in its meta, and are never evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from .files import CaseError
from .inferers import CorrectionNorm, ISTAInferer
from .schedulers import BridgeSampler
from .style_key import load_style_keys, resolve_style_key

__all__ = ["KeepRequestd", "RequestISTAInferer", "correction_norm_choices", "sampler_choices", "style_key_choices"]

_META_KEY = "request"
_WEIGHTS = "model.pt"  # what MONAI Label loads where nothing else is asked for


def style_key_choices(default: str, keys_file: str | Path) -> list[str]:
    """Names of style keys, the default first, as a server's clients show a choice."""
    return _default_first(str(default), load_style_keys(keys_file))


def sampler_choices(default: str) -> list[str]:
    """Names of samplers, the default first."""
    return _default_first(default, BridgeSampler)


def correction_norm_choices(default: str) -> list[str]:
    """Names of correction norms, the default first."""
    return _default_first(default, CorrectionNorm)


def _default_first(default: str, names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([default, *map(str, names)]))


class KeepRequestd(MapTransform):
    """Puts what a request asks of the inferer into the meta of the volume; without a request it does nothing.

    A list is a choice that nobody made: its first is the default. Nothing and an empty text are the default too.

    Args:
        keys: keys of the volumes, MetaTensors.
        names: settings, arguments of `ISTAInferer`, that are looked for in the dictionary.
        allow_missing_keys: no error where a key is missing.

    Raises:
        CaseError: a device that is not there, weights of another task, or a type of result that holds no image.
    """

    def __init__(self, keys: KeysCollection, names: Sequence[str], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.names = tuple(names)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Keep the request with the volume at each key."""
        d = dict(data)
        _check_device(_chosen(d.get("device")))
        _check_weights(_chosen(d.get("model_filename")))
        _check_result_type(_chosen(d.get("result_dtype")))
        asked = {name: _chosen(d[name]) for name in self.names if name in d}
        for key in self.key_iterator(d):
            if asked:
                d[key].meta[_META_KEY] = {name: value for name, value in asked.items() if value not in (None, "")}
        return d


def _chosen(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, list) else value


def _check_device(device: Any) -> None:
    try:
        torch.zeros(0, device=device)
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
    except TypeError:
        fits = False
    if not fits:
        raise CaseError(
            f"result_dtype is {name}, but the result is an image from 0 to 1 and no label map, of which {name} would "
            "leave nothing; ask for float32. 3D Slicer and OHIF ask for label maps: docs/monai_label.md has the way to "
            "the image."
        )


class RequestISTAInferer(ISTAInferer):
    """`ISTAInferer` with other settings for a volume that came with a request (`KeepRequestd`).

    Args:
        keys_file: where a style key is looked up by name, see `resolve_style_key`.
        arguments: of `ISTAInferer`.
    """

    def __init__(self, keys_file: str | Path, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.keys_file = keys_file

    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor], style_key: np.ndarray | Tensor | None = None
    ) -> Tensor:
        """Translate source volumes, as `ISTAInferer` does.

        Raises:
            CaseError: a setting of the request that cannot be.
        """
        request = inputs.meta.get(_META_KEY) if isinstance(inputs, MetaTensor) else None
        if request is None:
            return super().__call__(inputs, network, style_key)
        if isinstance(network, torch.nn.Module):
            # a server builds it from network_def; in the layout of the key network bfloat16 rounds as in the main job
            network.to(memory_format=torch.channels_last)
        try:
            # another inferer, because two requests may be at work at once
            inferer = self.changed(**self._arguments(request))
        except ValueError as error:
            raise CaseError(str(error)) from error
        return inferer(inputs, network, style_key)

    def _arguments(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a request as arguments: the style key by its name, numbers that came as text as numbers."""
        arguments = {name: _number_like(getattr(self, name), value) for name, value in request.items()}
        if "style_key" in arguments:
            arguments["style_key"] = resolve_style_key(str(arguments["style_key"]), self.keys_file)
        return arguments


def _number_like(default: Any, value: Any) -> Any:
    if isinstance(value, str) and isinstance(default, int | float):
        try:
            return type(default)(value)
        except ValueError:
            return value  # the inferer says what is wrong with it
    return value
