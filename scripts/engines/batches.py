"""From the data loader's batch to what a trainer or an evaluator calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..inferers import BridgeInferer
from ..schedulers import NamedChoice

PreparedBatch = tuple[Tensor, Tensor | tuple[Tensor, Tensor], tuple, dict[str, Tensor]]


class BridgePrepareBatch:
    """Batch of slabs -> what a trainer with a `BridgeInferer` needs: x0, the loss's target, noise, timesteps and so on.

    All draws come from PyTorch's default generator of the device, which `SeedEpochs` seeds.

    Args:
        inferer: the trainer's own; it knows the scheduler and the network's range.
        endpoint_fraction: share of the timesteps that are drawn from the last `endpoint_steps` alone: sampling starts
            there, and a uniform draw hardly ever sees it.
        endpoint_steps: number of those timesteps; 15 of 1000 are 985..999.
        style_dropout: share of the style keys that are replaced by zeros, the network's "no style".
        label_timesteps: whether the label is the pair (target, timesteps), as losses that weight by timestep need it.
    """

    def __init__(
        self,
        inferer: BridgeInferer,
        endpoint_fraction: float = 0.1,
        endpoint_steps: int = 15,
        style_dropout: float = 0.1,
        label_timesteps: bool = False,
    ) -> None:
        self.inferer = inferer
        self.endpoint_fraction = endpoint_fraction
        self.endpoint_steps = endpoint_steps
        self.style_dropout = style_dropout
        self.label_timesteps = label_timesteps

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: object,
    ) -> PreparedBatch:
        """Prepare one batch.

        Args:
            batchdata: "source", (B, C (2N+1), H, W), and "target", (B, 2N+1, H, W), [0, 1]; "style_key",
                (B, 3, number of bins); the inferer's further channels, "presence", (B, C), and "target_contrast", (B,),
                where they are.
            device: where to compute.
            non_blocking: whether the copy to the device may overlap.
            kwargs: further arguments of `torch.Tensor.to`.

        Returns:
            inputs of the inferer (the target as states), label of the loss, no positional arguments, and the inferer's
            keyword arguments `noise`, `timesteps`, `source` (states), `context`, and conditions by name.
        """
        source, target, style_key = (
            batchdata[key].to(device, non_blocking=non_blocking, **kwargs) for key in ("source", "target", "style_key")
        )
        conditions = {
            name: batchdata[name].to(device, non_blocking=non_blocking, **kwargs)
            for name in (*self.inferer.channels, "presence", "target_contrast")
            if name != "source" and name in batchdata
        }
        source = self.inferer.encode_source(source)
        presence = conditions.get("presence")
        target = self.inferer.encode(target)
        bridge = self._bridge(self.inferer.endpoint_in(source, presence), target)
        inputs = bridge.pop("inputs")
        label = self.inferer.target(target, bridge["noise"], bridge["timesteps"], source, presence)
        if self.label_timesteps:
            label = (label, bridge["timesteps"])
        return inputs, label, (), {**bridge, "source": source, "context": self._drop_styles(style_key), **conditions}

    def _bridge(self, endpoint: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The end of the bridge that is not the source, the noise and the timesteps; states all."""
        noise = torch.randn_like(target)
        return {"inputs": target, "noise": noise, "timesteps": self._timesteps(target)}

    def _timesteps(self, like: Tensor) -> Tensor:
        """(B,) timesteps, those of `_anywhere` but for the share at the end of the schedule."""
        count = self.inferer.scheduler.num_train_timesteps
        at_end = torch.rand(len(like), device=like.device) < self.endpoint_fraction
        position = torch.rand(len(like), device=like.device)
        last = count - self.endpoint_steps * (1 - position)
        return torch.where(at_end, last, self._anywhere(position)).long().clamp_(max=count - 1)

    def _anywhere(self, position: Tensor) -> Tensor:
        """Timesteps before rounding down, from uniform draws in [0, 1)."""
        return position * self.inferer.scheduler.num_train_timesteps

    def _drop_styles(self, style_key: Tensor) -> Tensor:
        kept = torch.rand(len(style_key), 1, 1, device=style_key.device) >= self.style_dropout
        return style_key * kept


class TimestepWeights(NamedChoice):
    """How often timesteps 0..T-1 are drawn: all as often, or t with the weight 2T - t, twice as often where the image
    is almost there as in noise (the code of GEM-3D by the author of Make-A-Volume; the paper does not say).
    """

    UNIFORM = "uniform"
    LINEAR = "linear"


class DiffusionPrepareBatch(BridgePrepareBatch):
    """Batches for diffusion from noise, whose last timesteps have no share of their own unless it is given.

    All slices of a slab share a timestep.

    Args:
        inferer, endpoint_fraction, endpoint_steps, style_dropout, label_timesteps: of `BridgePrepareBatch`.
        timestep_weights: see `TimestepWeights`.
    """

    def __init__(
        self,
        inferer: BridgeInferer,
        endpoint_fraction: float = 0.0,
        endpoint_steps: int = 15,
        style_dropout: float = 0.1,
        label_timesteps: bool = False,
        timestep_weights: str = TimestepWeights.UNIFORM,
    ) -> None:
        super().__init__(inferer, endpoint_fraction, endpoint_steps, style_dropout, label_timesteps)
        self.timestep_weights = TimestepWeights(timestep_weights)

    def _anywhere(self, position: Tensor) -> Tensor:
        if self.timestep_weights == TimestepWeights.UNIFORM:
            return super()._anywhere(position)
        count = self.inferer.scheduler.num_train_timesteps
        weights = 2 * count - torch.arange(count, device=position.device)
        drawn = weights.cumsum(0).to(position.dtype)
        return torch.searchsorted(drawn, position * weights.sum(), right=True).to(position.dtype)


class OneStepPrepareBatch(BridgePrepareBatch):
    """Batches of the baseline: one-step regression from the source, the bridge's last timestep without noise.

    There x_t = 0.001 x0 + 0.999 y would leak a trace of the target that sampling does not have, so that the source is
    put at both ends: the network sees x_t = y exactly, as a sampler with one step gives it.
    """

    def _bridge(self, endpoint: Tensor, target: Tensor) -> dict[str, Tensor]:
        last = self.inferer.scheduler.num_train_timesteps - 1
        timesteps = torch.full((len(endpoint),), last, dtype=torch.long, device=endpoint.device)
        return {"inputs": endpoint, "noise": torch.zeros_like(endpoint), "timesteps": timesteps}


def prepare_volumes(
    batchdata: Mapping[str, Tensor],
    device: str | torch.device | None = None,
    non_blocking: bool = False,
    channels: Sequence[str] = ("source",),
    **kwargs: object,
) -> tuple:
    """Batch of whole volumes -> inputs of the inferer, and target with mask (B, 2, H, W, Z) as the label.

    Args:
        batchdata: "target", [0, 1], and "mask", (B, 1, H, W, Z) each; each of `channels`, (B, its channels, H, W, Z);
            "target_contrast", (B,), the same one for all, where the network has to be told.
        device, non_blocking, kwargs: of `torch.Tensor.to`.
        channels: names of the inferer's `channels`, in their order.

    Returns:
        the channels one after another, (B, C, H, W, Z), and the label; with a target contrast also the inferer's
        positional arguments, none, and its keyword arguments.
    """
    *parts, target, mask = (
        batchdata[key].to(device, non_blocking=non_blocking, **kwargs) for key in (*channels, "target", "mask")
    )
    source = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    label = torch.cat([target, mask.to(target)], dim=1)
    if "target_contrast" not in batchdata:
        return source, label
    return source, label, (), {"target_contrast": batchdata["target_contrast"].to(source.device)[:1]}


def prepare_slices(
    batchdata: Mapping[str, Tensor],
    device: str | torch.device | None = None,
    non_blocking: bool = False,
    **kwargs: object,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Batch of neighbouring slices -> inputs of the slice encoder, and as the label where each slice lies.

    Args:
        batchdata: of `NeighbourSlices`: "slices", (B, n, H, W), [0, 1]; "scan", "index" and "position", (B, n).
        device, non_blocking, kwargs: of `torch.Tensor.to`.

    Returns:
        (B n, 1, H, W), and scan, index and position, (B n,) each.
    """
    slices, *places = (
        batchdata[key].to(device, non_blocking=non_blocking, **kwargs).flatten(0, 1)
        for key in ("slices", "scan", "index", "position")
    )
    return slices[:, None], tuple(places)


class AutoencoderPrepareBatch:
    """Batch of slabs -> all the images in it, of the sources and of the target, which a codec has to give back."""

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        """Prepare one batch.

        Args:
            batchdata: "source", (B, C K, H, W), and "target", (B, K, H, W), [0, 1]; "presence", (B, C), where there are
                several contrasts: absent ones are left out.
            device: where to compute.
            non_blocking: whether the copy to the device may overlap.
            kwargs: further arguments of `torch.Tensor.to`.

        Returns:
            images (n, 1, H, W), as input and as label.
        """
        source, target = (batchdata[k].to(device, non_blocking=non_blocking, **kwargs) for k in ("source", "target"))
        slabs = [target, source]
        if "presence" in batchdata:
            contrasts = source.unflatten(1, (batchdata["presence"].shape[1], -1))
            slabs[1] = contrasts[batchdata["presence"].to(source.device) > 0]
        images = torch.cat([slab.flatten(0, 1) for slab in slabs])[:, None]
        return images, images


def prepare_reconstructions(
    batchdata: Mapping[str, Tensor],
    device: str | torch.device | None = None,
    non_blocking: bool = False,
    **kwargs: object,
) -> tuple[Tensor, Tensor]:
    """Batch of whole volumes -> sources and targets, each with itself and the mask as the label.

    Args:
        batchdata: "source", (B, C, H, W, Z), "target" and "mask", (B, 1, H, W, Z), images in [0, 1].
        device, non_blocking, kwargs: of `torch.Tensor.to`.

    Returns:
        targets and then each contrast of the sources, (n, 1, H, W, Z), and labels (n, 2, H, W, Z); absent contrasts
        are left out.
    """
    source, target, mask = (
        batchdata[key].to(device, non_blocking=non_blocking, **kwargs) for key in ("source", "target", "mask")
    )
    images = torch.cat([target, source], dim=1).flatten(0, 1)[:, None]
    masks = mask.expand(-1, 1 + source.shape[1], *mask.shape[2:]).flatten(0, 1)[:, None].to(images)
    there = images.flatten(1).any(dim=1)
    return images[there], torch.cat([images, masks], dim=1)[there]
