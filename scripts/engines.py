"""What the training configs hang on MONAI's engines: batches of the bridge, averaged weights, seeds, checkpoints."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from ignite.utils import manual_seed
from monai.engines.utils import IterationEvents
from monai.handlers import CheckpointLoader, CheckpointSaver
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scripts.inferers import BridgeInferer

__all__ = [
    "BridgePrepareBatch",
    "ExponentialMovingAverage",
    "GradientClipper",
    "OneStepPrepareBatch",
    "ResumableTraining",
    "SeedEpochs",
    "VolumePrepareBatch",
    "cosine_decay",
    "latest_checkpoint",
    "save_atomically",
]

PreparedBatch = tuple[Tensor, Tensor, tuple, dict[str, Tensor]]


class BridgePrepareBatch:
    """Batch of slabs -> what a trainer with a `BridgeInferer` needs: x0, the loss's target, noise, timesteps and so on.

    All draws come from PyTorch's default generator of the device, which `SeedEpochs` seeds.

    Args:
        inferer: the trainer's own; it knows the scheduler and the network's range.
        endpoint_fraction: share of the timesteps that are drawn from the last `endpoint_steps` alone: sampling starts
            there, and a uniform draw hardly ever sees it.
        endpoint_steps: number of those timesteps; 15 of 1000 are 985..999.
        style_dropout: share of the style keys that are replaced by zeros, the network's "no style".
    """

    def __init__(
        self,
        inferer: BridgeInferer,
        endpoint_fraction: float = 0.1,
        endpoint_steps: int = 15,
        style_dropout: float = 0.1,
    ) -> None:
        self.inferer = inferer
        self.endpoint_fraction = endpoint_fraction
        self.endpoint_steps = endpoint_steps
        self.style_dropout = style_dropout

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: object,
    ) -> PreparedBatch:
        """Prepare one batch.

        Args:
            batchdata: "source" and "target", (B, 2N+1, H, W), [0, 1]; "style_key", (B, 3, number of bins).
            device: where to compute.
            non_blocking: whether the copy to the device may overlap.
            kwargs: further arguments of `torch.Tensor.to`.

        Returns:
            inputs of the inferer, target of the loss (the prediction's range), no positional arguments, and the
            inferer's keyword arguments `noise`, `timesteps`, `source`, `context`.
        """
        source, target, style_key = (
            batchdata[key].to(device, non_blocking=non_blocking, **kwargs) for key in ("source", "target", "style_key")
        )
        bridge = self._bridge(source, target)
        inputs = bridge.pop("inputs")
        labels = self.inferer.target(target, bridge["noise"], bridge["timesteps"], source)
        return inputs, labels, (), {**bridge, "source": source, "context": self._drop_styles(style_key)}

    def _bridge(self, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The end of the bridge that is not the source, the noise and the timesteps."""
        return {"inputs": target, "noise": torch.randn_like(target), "timesteps": self._timesteps(target)}

    def _timesteps(self, like: Tensor) -> Tensor:
        """(B,) timesteps, uniform over the schedule but for the share at its end."""
        count = self.inferer.scheduler.num_train_timesteps
        at_end = torch.rand(len(like), device=like.device) < self.endpoint_fraction
        position = torch.rand(len(like), device=like.device)
        anywhere, last = position * count, count - self.endpoint_steps * (1 - position)
        return torch.where(at_end, last, anywhere).long().clamp_(max=count - 1)

    def _drop_styles(self, style_key: Tensor) -> Tensor:
        kept = torch.rand(len(style_key), 1, 1, device=style_key.device) >= self.style_dropout
        return style_key * kept


class OneStepPrepareBatch(BridgePrepareBatch):
    """Batches of the baseline: one-step regression from the source, the bridge's last timestep without noise.

    There x_t = 0.001 x0 + 0.999 y would leak a trace of the target that sampling does not have, so that the source is
    put at both ends: the network sees x_t = y exactly, as a sampler with one step gives it.
    """

    def _bridge(self, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        last = self.inferer.scheduler.num_train_timesteps - 1
        timesteps = torch.full((len(source),), last, dtype=torch.long, device=source.device)
        return {"inputs": source, "noise": torch.zeros_like(source), "timesteps": timesteps}


class ExponentialMovingAverage:
    """Handler that keeps an exponential moving average of the network's weights and buffers.

    It is part of the checkpoint (`state_dict`, `load_state_dict`), so that a resumed training goes on with its average.

    Args:
        network: the trained network; of a `DistributedDataParallel` its module.
        decay: weight of the old average at each iteration.
        export_path: file to which the average is written after every epoch as a plain state dict; None for no file.
        export_dtype: floating type of the weights in that file.
    """

    def __init__(
        self,
        network: nn.Module,
        decay: float = 0.997,
        export_path: str | os.PathLike | None = None,
        export_dtype: torch.dtype = torch.float16,
    ) -> None:
        self.network = getattr(network, "module", network)
        self.averaged = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.averaged.requires_grad_(False)
        self.export_path = export_path
        self.export_dtype = export_dtype

    def attach(self, engine: Engine) -> None:
        """Update after each iteration of the trainer, export after each epoch."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        if self.export_path is not None:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.export)

    def update(self) -> None:
        """Take the network's present weights into the average; the first ones become the average."""
        self.averaged.update_parameters(self.network)

    def export(self) -> None:
        """Write the averaged weights in the network's own keys."""
        weights = self.averaged.module.state_dict()
        weights = {k: v.to(self.export_dtype) if v.is_floating_point() else v for k, v in weights.items()}
        save_atomically({k: v.cpu().contiguous() for k, v in weights.items()}, self.export_path)

    def state_dict(self) -> dict[str, Tensor]:
        """The average and the number of updates."""
        return self.averaged.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Go on from a saved average."""
        self.averaged.load_state_dict(state_dict)


class GradientClipper:
    """Handler that scales the gradients to an L2 norm of at most `max_norm`.

    Raises:
        RuntimeError: when a gradient is NaN or infinite: the last checkpoint is still good.
    """

    def __init__(self, network: nn.Module, max_norm: float = 1.0) -> None:
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Clip between the backward pass and the optimizer's step."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self) -> None:
        """Clip the gradients in place."""
        nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm, error_if_nonfinite=True)


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


class ResumableTraining:
    """Handler that saves the whole state after each epoch, and starts from the newest whole checkpoint of its folder.

    Args:
        folder: of the checkpoints, `checkpoint_epoch=N.pt`.
        objects: what belongs to the state beside the trainer's own counters: network, average, optimizer and so on.
        num_saved: newest checkpoints to keep.
        saves: whether this process saves; the first of several does.
        map_location: device that a checkpoint is loaded to.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        objects: Mapping[str, object],
        num_saved: int = 2,
        saves: bool = True,
        map_location: str | torch.device | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.objects = dict(objects)
        self.num_saved = num_saved
        self.saves = saves
        self.map_location = map_location

    def attach(self, engine: Engine) -> None:
        """Load at the trainer's start, save at the end of each epoch."""
        state = {**self.objects, "trainer": engine}
        newest = latest_checkpoint(self.folder)
        if newest is not None:
            CheckpointLoader(str(newest), state, map_location=self.map_location).attach(engine)
        if self.saves:
            CheckpointSaver(str(self.folder), state, save_interval=1, n_saved=self.num_saved).attach(engine)


class VolumePrepareBatch:
    """Batch of whole volumes -> (source, target), each (B, 1, H, W, Z), [0, 1]."""

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        """Take "source" and "target" to the device."""
        source, target = (batchdata[k].to(device, non_blocking=non_blocking, **kwargs) for k in ("source", "target"))
        return source, target


def cosine_decay(total: int, warmup: int = 0) -> Callable[[int], float]:
    """Factor of the learning rate at an iteration: linear rise over `warmup`, then half a cosine to 0 at `total`.

    Being a function, it is not stored by `LambdaLR`: a resumed training follows the `total` of its own config.
    """

    def factor(iteration: int) -> float:
        if iteration < warmup:
            return (iteration + 1) / warmup
        progress = (iteration - warmup) / max(1, total - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor


def latest_checkpoint(folder: str | os.PathLike) -> Path | None:
    """The newest whole `checkpoint_epoch=N.pt` of a folder, or None.

    A process that is killed while it saves leaves a file without its end, which is passed over.
    """
    epochs = {int(p.stem.rpartition("=")[2]): p for p in Path(folder).glob("checkpoint_epoch=*.pt")}
    whole = (epochs[number] for number in sorted(epochs, reverse=True) if zipfile.is_zipfile(epochs[number]))
    return next(whole, None)


def save_atomically(state_dict: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """`torch.save` to a temporary name beside `path`, then rename: a killed process leaves no half file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    torch.save(state_dict, temporary)
    os.replace(temporary, path)
