"""What is measured: the network, the sampler and the volume of the main job, as its config files name them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from ..inferers import call_network
from ..weights import load_weights


@dataclass(frozen=True)
class Sampling:
    """One run of the sampler.

    Attributes:
        volume: (1, 1, H, W, Z), [0, 1].
        evaluations: of the network, on each slice.
        slabs: that the network was given, in all evaluations together.
    """

    volume: Tensor
    evaluations: float
    slabs: int


@dataclass(frozen=True)
class Way:
    """One way to evaluate the network.

    Attributes:
        name: what tables call it.
        network: called as the inferer does.
        dtype: of `call_network`.
    """

    name: str
    network: Callable[..., Tensor]
    dtype: torch.dtype | None

    def __call__(self, slabs: Mapping[str, Any]) -> Tensor:
        """One evaluation of a batch, see `Bundle.slabs`."""
        return call_network(self.network, dtype=self.dtype, **slabs)


class Bundle:
    """The parts of the main job, each made when it is first asked for.

    Args:
        config_files: of the main job, later ones over earlier ones.
        device: where the network runs, None for the config's choice.
        weights: whether to load the config's weights; otherwise the network is initialised at random, with the seed 0.
    """

    def __init__(self, config_files: Sequence[str], device: str | None = None, weights: bool = True) -> None:
        self.config_files = list(config_files)
        self.parser = ConfigParser(ConfigParser.load_config_files(self.config_files))
        if device is not None:
            self.parser["device"] = str(device)
        self.has_weights = weights

    def part(self, name: str) -> Any:
        """A part of the config, such as "inferer"; the same object each time."""
        return self.parser.get_parsed_content(name)

    @cached_property
    def device(self) -> torch.device:
        return torch.device(self.part("device"))

    @cached_property
    def plain_network(self) -> nn.Module:
        """The network as it is defined, float32 and contiguous; made before the config does anything with it."""
        torch.manual_seed(0)
        network = self.part("network_def")
        if self.has_weights:
            load_weights(network, self.part("weights"))
        else:
            fill_zeros(network)
        return copy.deepcopy(network).to(self.device).eval()

    @cached_property
    def network(self) -> nn.Module:
        """The main job's network, in its memory format."""
        _ = self.plain_network
        return self.part("network").eval()

    @cached_property
    def inferer(self) -> Any:
        """The config's inferer, whose floating type may be chosen by what the network takes."""
        _ = self.plain_network
        return self.part("inferer").inferer  # without what requests may change

    @cached_property
    def source(self) -> Tensor:
        """The first volume of the config's dataset_dir after preprocessing: (1, 1, H, W, Z), [0, 1]."""
        item = self.part("preprocessing")(dict(self.part("cases")[0]))
        return item["image"].as_tensor()[None]

    def default_batch_size(self, otherwise: int = 8) -> int:
        """The config's slabs in one call; `otherwise` where it leaves that to the memory there is."""
        size = self.part("batch_size")
        return size if isinstance(size, int) else otherwise

    def slabs(self, batch_size: int, height: int, width: int) -> dict[str, Any]:
        """A batch for `call_network`: noise of the seed 0 as slabs, the middle timestep, the config's style key."""
        generator = torch.Generator().manual_seed(0)
        inferer = self.inferer
        shape = (batch_size, inferer.slab_size, height, width)
        sample, source = (torch.randn(shape, generator=generator).to(self.device) for _ in range(2))
        key = inferer.style_key
        context = None if key is None else torch.as_tensor(key, dtype=torch.float32, device=self.device)[None]
        return {"sample": sample, "source": source, "context": context, "timesteps": 500}

    def sample(self, way: Way, source: Tensor) -> Sampling:
        """Run the config's sampler with a way to evaluate the network.

        Args:
            way: how.
            source: (1, 1, H, W, Z), [0, 1].
        """
        inferer = copy.copy(self.inferer)
        inferer.dtype, inferer.progress = way.dtype, False
        slabs = 0

        def counted(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            nonlocal slabs
            slabs += len(x)
            return way.network(x, *args, **kwargs)

        volume = inferer(source.to(self.device), counted).cpu()
        return Sampling(volume, slabs / source.shape[-1], slabs)


def fill_zeros(network: nn.Module) -> nn.Module:
    """Draw the layers that start at zero, in place: they would hide from the output everything before them."""
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.kaiming_uniform_(parameter)
    return network
