"""Weights files: plain state dicts, loaded whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CaseError
from .files import sha256_of_file

__all__ = ["check_start", "file_beside", "load_codec", "load_start", "load_weights", "misfits", "read_tensors"]
__all__ += ["sha256_of_file", "some"]


_OF_TRAINING = ("model", "model_best")  # the names, without suffix, that every training gives its weights


def file_beside(weights: str | os.PathLike, name: str) -> str:
    """Path of a file that belongs to weights, such as their style keys. It lies in their folder.

    A training has a folder of its own, where `model.pt` and `model_best.pt` share one `style_keys.json`. Weights of any
    other name, such as `anna.pt`, have `anna_style_keys.json`, so that they are never taken for their neighbours'.

    Args:
        weights: path of the weights, in any format; it need not be there.
        name: of the file of a training, such as `style_keys.json`.
    """
    path = Path(weights)
    return str(path.with_name(name if path.stem in _OF_TRAINING else f"{path.stem}_{name}"))


def load_start(network: nn.Module, path: str | os.PathLike) -> str:
    """Load weights that a training starts from: as `load_weights`, and those of a simpler network.

    What the other network has not begins as its constructor left it (`MultiContrastUNet.started_from`). Only a training
    may do this: the prediction need not be what the weights were trained for.
    """
    return _load(network, path, getattr(network, "started_from", getattr(network, "widened", dict)))


def load_weights(network: nn.Module, path: str | os.PathLike) -> str:
    """Load a state dict into a network, on whatever device and in whatever floating type the network has.

    Weights of the same network without conditions load too, where it says how (`BridgeUNet.widened`).

    Args:
        network: keeps its own floating type: weights in half precision on disk are cast to it.
        path: file written by `torch.save(network.state_dict(), path)`.

    Returns:
        the file's SHA-256, 64 hexadecimal digits.

    Raises:
        CaseError: the file is missing, damaged, not a plain state dict, or does not fit the network in every key and
            shape; then nothing of it has been loaded.
    """
    return _load(network, path, getattr(network, "widened", dict))


def _load(network: nn.Module, path: str | os.PathLike, made: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> str:
    path = Path(path)
    state_dict = made(_read_state_dict(path))
    wrong = misfits(network.state_dict(), state_dict)
    if wrong:
        raise CaseError(
            f"The weights in {path.name} do not fit the network ({'; '.join(wrong)}): "
            "give the weights that were trained with this network_def, or the network_def of these weights."
        )
    network.load_state_dict(state_dict, strict=True)
    return sha256_of_file(path)


def check_start(trained: str | os.PathLike | None, config: str) -> None:
    """Refuse to tune a network that was never trained.

    Args:
        trained: its weights, or None.
        config: of the training that gives them, for the error.

    Raises:
        CaseError: there are none.
    """
    if trained is None:
        raise CaseError(
            f"Layers along z are tuned in a trained network of slices: give --init_weights, the model.pt of {config}."
        )


def load_codec(network: nn.Module, path: str | os.PathLike | None, trained: str | os.PathLike | None = None) -> None:
    """Load the codec of a latent network, or make sure that it is the one that the network was trained with.

    Args:
        network: with a module `codec`, such as `LatentUNet`.
        path: weights of the codec, as `configs/autoencoder.json` writes them, or of a network in its latent, which hold
            them under `codec.`; None keeps the network's own.
        trained: weights that the network has loaded, its codec among them; None for none.

    Raises:
        CaseError: neither is given, the file does not fit or was never trained, or the network had another
            codec in its training.
    """
    if not network.codec.state_dict():  # it has nothing to learn
        return
    if path is None and trained is None:
        raise CaseError(
            "A network in a latent needs its codec: give --codec, the model.pt that configs/autoencoder.json trained."
        )
    if path is None:
        return
    before = {key: value.clone() for key, value in network.codec.state_dict().items()}
    _load(network.codec, path, _codec_of)
    if not getattr(network.codec, "is_measured", True):
        raise CaseError(
            f"{Path(path).name} is a codec that was never trained, the scale of its latent is not known: give the "
            "model.pt that configs/autoencoder.json trained."
        )
    after = network.codec.state_dict()
    if trained is not None and not all(torch.equal(before[key], after[key]) for key in before):
        raise CaseError(
            f"{trained} was trained with another codec than {path}: leave --codec out, which keeps its own, or give "
            "the weights that were trained with this one."
        )


def _codec_of(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the codec that weights hold, or that they are of."""
    inside = {key.removeprefix("codec."): value for key, value in state_dict.items() if key.startswith("codec.")}
    return inside or dict(state_dict)


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CaseError(f"There is no weights file {path}: check the path, or train or download the weights first.")
    content = read_tensors(
        path, f"The weights file {path.name} is damaged or holds more than tensors: download or export it again."
    )
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        held = f"a dictionary of {some(map(str, content))}" if isinstance(content, Mapping) else type(content).__name__
        raise CaseError(f"{path.name} holds {held}, not a plain state dict: export the network's own state_dict().")
    return dict(content)


def read_tensors(path: Path, damaged: str, mmap: bool = False) -> Any:
    """What PyTorch saved in a file, of which nothing is run.

    Args:
        path: of a file that is there.
        damaged: sentence for one that cannot be read, or that holds objects.
        mmap: whether the tensors stay on the disk until they are used.

    Raises:
        CaseError: with that sentence.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except MemoryError:
        raise
    except Exception as error:  # of damaged bytes torch and pickle make anything, of a cut file "Invalid argument"
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise CaseError(damaged) from error


def misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What does not fit, in words; empty if all does."""
    missing = [key for key in wanted if key not in given]
    unknown = [key for key in given if key not in wanted]
    reshaped = [
        f"{key} {tuple(given[key].shape)} for {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in given and given[key].shape != tensor.shape
    ]
    kinds = {"missing": missing, "not in the network": unknown, "of another shape": reshaped}
    return [f"{len(keys)} {kind}: {some(keys)}" for kind, keys in kinds.items() if keys]


def some(names: Iterable[str], at_most: int = 3) -> str:
    """The first of some names, for a sentence."""
    names = list(names)
    return ", ".join(names[:at_most]) + (", ..." if len(names) > at_most else "")
