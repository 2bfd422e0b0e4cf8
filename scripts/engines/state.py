"""What a training leaves behind and goes on from: averaged weights, seeds, checkpoints."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from ignite.utils import manual_seed
from monai.handlers import CheckpointLoader
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..conditioning.style_key import save_style_keys
from ..errors import CaseError
from ..files import write_whole, written_whole
from .processes import check_shared, tell_lost_loader

logger = logging.getLogger(__name__)


def averaged_model(network: nn.Module, decay: float = 0.997) -> AveragedModel:
    """PyTorch's exponential moving average of a network's weights and buffers, called like the network itself.

    Args:
        network: the trained network, on its device; of a `DistributedDataParallel` its module is averaged.
        decay: weight of the old average at each update; the first update copies.
    """
    module = getattr(network, "module", network)
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return averaged.requires_grad_(False).eval()


def save_weights(averaged: AveragedModel, path: str | os.PathLike, dtype: torch.dtype = torch.float16) -> None:
    """Write averaged weights as a plain state dict under the network's own keys, whole or not at all.

    Args:
        averaged: from `averaged_model`.
        path: file to write.
        dtype: floating type on disk.
    """
    weights = averaged.module.state_dict()
    weights = {k: v.detach().to("cpu", dtype if v.is_floating_point() else v.dtype) for k, v in weights.items()}
    _save_whole({k: v.contiguous() for k, v in weights.items()}, Path(path))


def save_keys(keys: Mapping[str, np.ndarray], path: str | os.PathLike) -> None:
    """`save_style_keys`, whole or not at all."""
    with written_whole(path) as temporary:
        save_style_keys(keys, temporary)


def _save_whole(content: Mapping[str, object], path: Path) -> None:
    """`torch.save`, whole or not at all; by way of memory, because torch does not say what a disk refused."""
    packed = io.BytesIO()
    torch.save(content, packed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, packed.getbuffer())


class AverageWeights:
    """Handler that updates an average after each iteration, and writes it to a file after each epoch.

    Args:
        network: the trained network.
        averaged: its `averaged_model`.
        path: file of the averaged weights; None for no file.
    """

    def __init__(self, network: nn.Module, averaged: AveragedModel, path: str | os.PathLike | None = None) -> None:
        self.network = getattr(network, "module", network)
        self.averaged = averaged
        self.path = path

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: self.averaged.update_parameters(self.network))
        if self.path is not None:
            engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: save_weights(self.averaged, self.path))


class KeepBest:
    """Handler of a validation that writes the averaged weights whenever the key metric (higher is better) rises.

    The best value so far is its state, so that a resumed training keeps it.

    Args:
        averaged: the weights that are validated.
        path: file to write; None for no file.
    """

    def __init__(self, averaged: AveragedModel, path: str | os.PathLike | None) -> None:
        self.averaged = averaged
        self.path = path
        self.best = -math.inf

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Compare, and write."""
        value = engine.state.metrics[engine.state.key_metric_name]
        if value > self.best:
            self.best = value
            if self.path is not None:
                save_weights(self.averaged, self.path)

    def state_dict(self) -> dict[str, float]:
        """The best value."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: Mapping[str, float]) -> None:
        """Take over the best value of an earlier run."""
        self.best = state_dict["best"]


class SeedEpochs:
    """Handler that seeds each epoch by its number, so that a resumed training draws what an uninterrupted one would.

    Args:
        seed: of the training.
        rank: of the process; each draws its own noise.
        dataset: told the epoch's number by `set_epoch`, if given.
    """

    def __init__(self, seed: int = 0, rank: int = 0, dataset: object | None = None) -> None:
        self.seed = seed
        self.rank = rank
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Seed before the epoch's first batch is drawn."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed Python, NumPy and PyTorch."""
        epoch = engine.state.epoch
        # a sequence of its own for each rank and epoch: a linear rule would give rank 1 rank 0's next epoch
        sequence = torch.Generator().manual_seed(self.seed + 1_000_003 * epoch + 7_368_787 * self.rank)
        manual_seed(int(torch.randint(2**31, (), generator=sequence)))
        if self.dataset is not None:
            self.dataset.set_epoch(epoch)


def _another_training(folder: Path, name: str) -> CaseError:
    return CaseError(
        f"The checkpoints in {folder} are of another training (its {name} is another); give another output_dir."
    )


def digest(network: nn.Module) -> str:
    """SHA-256 of a network's layers, their sizes and which are trained, whatever its weights; 64 hexadecimal digits."""
    weights = network.state_dict(keep_vars=True).items()
    sizes = [f"{name} {tuple(value.shape)} {value.requires_grad}" for name, value in weights]
    return hashlib.sha256(f"{network}\n{sizes}".encode()).hexdigest()


class SameTraining:
    """What a training is of, kept in its checkpoints: another task or other people do not go on from them.

    Args:
        identity: setting -> value, plain values.
        folder: of the checkpoints, for the error.
    """

    def __init__(self, identity: Mapping[str, object], folder: str | os.PathLike) -> None:
        self.identity = dict(identity)
        self.folder = Path(folder)

    def state_dict(self) -> dict[str, object]:
        """The settings."""
        return self.identity

    def load_state_dict(self, state_dict: Mapping[str, object]) -> None:
        """Compare with an earlier run's.

        Raises:
            CaseError: a setting differs.
        """
        for name, value in self.identity.items():
            # checkpoints of earlier versions do not tell everything
            if name in state_dict and state_dict[name] != value:
                raise _another_training(self.folder, name)


class ResumableTraining:
    """Handler that saves the whole state after each epoch, and starts from the newest whole checkpoint of its folder.

    Older checkpoints are removed when the new one is whole; where it cannot be written, they stay.

    Args:
        folder: of the checkpoints, `checkpoint_epoch=N.pt`.
        objects: what belongs to the state beside the trainer's own counters: network, average, optimizer and so on.
        num_saved: newest checkpoints to keep.
        map_location: device that a checkpoint is loaded to.

    Raises:
        CaseError: when it is attached, where the checkpoints are of a training with other objects, or the newest cannot
            be read, or where several processes find different ones; in the run, a process that loads slabs was killed.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        objects: Mapping[str, object],
        num_saved: int = 2,
        map_location: str | torch.device | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.objects = dict(objects)
        self.num_saved = num_saved
        self.map_location = map_location

    def attach(self, engine: Engine) -> None:
        """Load at the trainer's start, save at the end of each epoch."""
        tell_lost_loader(engine)
        state = {**self.objects, "trainer": engine}
        newest = latest_checkpoint(self.folder)
        check_shared(self.folder, newest)
        if newest is not None:
            self._check_parts(newest, state)
            CheckpointLoader(str(newest), state, map_location=self.map_location).attach(engine)
        # of several processes the first one writes, but all take part
        save = self._save if engine.state.rank == 0 else _save_nothing
        epoch = {"score_name": "epoch", "score_function": lambda engine: engine.state.epoch}
        engine.add_event_handler(Events.EPOCH_COMPLETED, Checkpoint(state, save, n_saved=None, **epoch))

    def _check_parts(self, path: Path, state: Mapping[str, object]) -> None:
        """Refuse the checkpoint of a training that has other parts, such as one without a discriminator."""
        try:
            kept = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            raise CaseError(
                f"{path} is damaged or holds more than tensors; remove it, or give another output_dir."
            ) from error
        others = state.keys() ^ kept.keys()
        if others:
            raise _another_training(self.folder, min(others))

    def _save(self, checkpoint: Mapping[str, object], filename: str, metadata: Mapping[str, object]) -> None:
        _save_whole(checkpoint, self.folder / filename)
        logger.info(f"Saved {filename}")
        # ignite's n_saved counts only what this process saved; a resumed one would leave its forerunner's
        for path in checkpoints(self.folder)[self.num_saved :]:
            path.unlink()


def _save_nothing(*_: object) -> None:
    pass


def checkpoints(folder: str | os.PathLike) -> list[Path]:
    """The files `checkpoint_epoch=N.pt` of a folder, newest epoch first."""
    return sorted(Path(folder).glob("checkpoint_epoch=*.pt"), key=lambda p: -int(p.stem.rpartition("=")[2]))


def latest_checkpoint(folder: str | os.PathLike) -> Path | None:
    """The newest whole checkpoint of a folder, or None.

    A file without its end, as a power failure leaves it, is passed over.
    """
    return next((path for path in checkpoints(folder) if zipfile.is_zipfile(path)), None)
