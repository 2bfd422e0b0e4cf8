"""Tables of whole systems: each row has a network, weights and an inferer of its own, and tells what a volume costs.

The rows are those of Make-A-Volume (Zhu et al., MICCAI 2023), tables 1 and 2, and of what is compared with it here.
"""

from __future__ import annotations

import copy
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ..errors import CaseError
from ..inferers import CodecInferer
from ..options import config_files
from ..weights import load_weights
from .figures import adjacent_difference, volume_figures
from .study import Result, VariantSampler, run_study

FIGURES = (
    *("mae", "psnr", "ssim", "psnr_brain", "ssim_brain", "sharpness_brain", "highpass_brain", "adjacent_ratio_brain"),
    *("gflop_network", "gflop_encode", "gflop_decode", "seconds_encode", "seconds_decode"),
)
TESTED = ("mae", "psnr", "ssim", "psnr_brain", "ssim_brain", "highpass_brain")
BASELINE = "pixel bridge"
PUBLISHED = {
    "Pix2pix": ((8.175, 0.739, 25.663), (16.812, 0.538, 20.106)),
    "Palette": ((26.806, 0.141, 15.643), (36.131, 0.251, 14.269)),
    "Pix2pix 3D": ((6.234, 0.765, 28.395), (11.369, 0.650, 22.854)),
    "CycleGAN 3D": ((7.621, 0.755, 26.908), (13.794, 0.542, 20.627)),
    "Make-A-Volume, 200 steps": ((5.243, 0.788, 29.446), (10.794, 0.676, 24.332)),
    "Make-A-Volume, 1000 steps": ((4.801, 0.801, 30.143), (10.619, 0.684, 25.458)),
    "without volumetric layers": ((5.128, 0.792, 29.894), (10.925, 0.667, 24.623)),
}
"""MAE (8 bits), SSIM and PSNR of the paper's tables 1 and 2: SWI to MRA of 20 people, T1 to T2 of 3 (RIRE)."""
KEYS = ("config", "weights", "note")
"""Keys of a row that say what its system is, and what a reader has to know; its others are settings of the inferer."""


class System:
    """A network in evaluation mode with its weights, and the inferer of volumes that its config gives it.

    Args:
        config: train.json and what was laid over it, as it was read.
        overlays: config files, or items by their ids, laid over it in this order.
        weights: of the network.

    `parser` has whatever else is defined there.

    Raises:
        CaseError: a file is not there, or does not fit.
    """

    def __init__(
        self, config: Mapping[str, Any], overlays: Sequence[str | Mapping[str, Any]], weights: str | os.PathLike
    ) -> None:
        parser = ConfigParser(copy.deepcopy(dict(config)))
        for overlay in overlays:
            items = overlay if isinstance(overlay, Mapping) else ConfigParser.load_config_file(*config_files([overlay]))
            for key, value in items.items():
                merge_kv(parser, key, value)
        self.device = torch.device(parser.get_parsed_content("device"))
        self.weights_sha256 = load_weights(parser.get_parsed_content("network_def"), weights)
        self.network = parser.get_parsed_content("network").eval()
        self.parser = parser
        self.inferer = parser.get_parsed_content("validate#inferer")

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What results depend on beside the row's settings; JSON values."""
        scheduler = self.inferer.scheduler
        weights = [scheduler.target_weights, scheduler.source_weights, scheduler.variances]
        plain = bool | int | float | str | tuple | list | dict | None
        return {
            "weights_sha256": self.weights_sha256,
            "network": _digest(str(self.network).encode()),
            "prediction_type": str(scheduler.prediction_type),
            "scheduler": _digest(torch.stack(weights).cpu().numpy().tobytes()),
            "codec": type(self.inferer.codec).__name__,
            "dtype": str(self.inferer.dtype),
            "sampling": {name: value for name, value in vars(self.inferer).items() if isinstance(value, plain)},
        }


class Meter:
    """A call, with the seconds it takes and its floating point operations: an addition or a multiplication is one.

    Matrix products and convolutions are counted, at the first call, and taken to be as many for every item of a batch.
    """

    def __init__(self, call: Callable[..., Tensor]) -> None:
        self.call = call
        self.items = 0
        self.seconds = 0.0
        self._flop_of_item: float | None = None

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The call's result for a batch (n, ...)."""
        counter = FlopCounterMode(display=False) if self._flop_of_item is None else nullcontext()
        start = time.perf_counter()
        with counter:
            result = self.call(x, *args, **kwargs)
        if result.is_cuda:
            torch.cuda.synchronize(result.device)
        self.seconds += time.perf_counter() - start
        if self._flop_of_item is None:
            self._flop_of_item = counter.get_total_flops() / len(x)
        self.items += len(x)
        return result

    @property
    def gflop(self) -> float:
        """Of all calls together, 10^9."""
        return self.items * (self._flop_of_item or 0.0) / 1e9


class CodecAlone:
    """The true target as the codec gives it back: what a network in its latent could at best reach.

    Args:
        codec: of the system.

    `truth` is the true target (1, 1, H, W, Z).
    """

    def __init__(self, codec: Any) -> None:
        self.codec = codec
        self.truth: Tensor | None = None

    def __call__(self, source: Tensor, network: Callable[..., Tensor], style_key: Any = None) -> Tensor:
        """(1, 1, H, W, Z), whatever the source and the network are."""
        return CodecInferer()(self.truth.to(source), self.codec)


class SystemSampler(VariantSampler):
    """Translates with a system, and adds to the figures of a volume what it cost.

    The costs: `gflop_network`, of all evaluations; `gflop_encode` and `gflop_decode`, `seconds_encode` and
    `seconds_decode` of the codec. The result's seconds are of all together.

    Args:
        system: of the row.
        style_key, figures: as of `VariantSampler`.
        common: what all results depend on beside the system.

    A variant's settings are arguments of the system's inferer; `codec_alone` instead makes `CodecAlone`, and
    `target_contrast` is the index that the network is told.
    """

    def __init__(
        self,
        system: System,
        style_key: Callable[..., tuple[str | None, np.ndarray | None]],
        figures: Callable[..., dict[str, float]],
        common: Mapping[str, Any] | None = None,
    ) -> None:
        whole = {**(common or {}), **system.identity}
        super().__init__(system.network, self._inferer, style_key, system.device, whole, figures)
        Meter(torch.neg)(torch.zeros(1))  # the counter's first use loads what it needs, which takes a second
        self.system = system
        self._meters: dict[str, Meter] = {}

    def __call__(self, row: str, pair: Mapping, variant: Mapping[str, Any]) -> Result:
        """As `VariantSampler`'s."""
        codec = self.system.inferer.codec
        encode = codec.encode if variant.get("codec_alone") else codec.encode_source
        parts = {"network": self.system.network, "encode": encode, "decode": codec.decode}
        self._meters = {name: Meter(part) for name, part in parts.items()}
        self.network = self._meters["network"]
        result = super().__call__(row, pair, variant)
        costs = {f"gflop_{name}": meter.gflop for name, meter in self._meters.items()}
        costs |= {f"seconds_{name}": self._meters[name].seconds for name in ("encode", "decode")}
        return replace(result, figures={**result.figures, **costs})

    def _inferer(
        self, codec_alone: bool = False, target_contrast: int | None = None, **settings: Any
    ) -> Callable[..., Tensor]:
        own = self.system.inferer
        encode, decode = self._meters["encode"], self._meters["decode"]
        sizes = {name: getattr(own.codec, name) for name in ("channels", "source_channels", "factor")}
        codec = SimpleNamespace(**sizes, encode=encode, encode_source=encode, decode=decode)
        if codec_alone:
            return CodecAlone(codec)
        inferer = own.changed(codec=codec, **settings)
        if target_contrast is None:
            return inferer
        return partial(inferer, target_contrast=torch.tensor([target_contrast], device=self.system.device))


def system_figures(
    image: np.ndarray, reference: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float]
) -> dict[str, float]:
    """`volume_figures`, `mae` over the whole volume and `adjacent_ratio_brain`.

    Returns:
        with `mae` the mean absolute error in steps of 8 bits, 0 to 255, and `adjacent_ratio_brain` the difference of
        adjacent slices as a share of the reference's: above 1 a volume flickers, below 1 it is smooth.
    """
    figures = volume_figures(image, reference, mask, spacing_mm)
    error = np.abs(np.clip(image, 0, 1) - np.clip(reference, 0, 1)).mean()
    real = adjacent_difference(np.clip(reference, 0, 1), mask)
    ratio = figures["adjacent_difference_brain"] / real if real > 0 else float("nan")
    return {**figures, "mae": 255 * float(error), "adjacent_ratio_brain": ratio}


def given_rows(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The rows whose weights are given; the others are told and left out.

    Args:
        rows: name -> `KEYS` and settings.

    Raises:
        CaseError: no weights are given, or a file is not there.
    """
    given = {row: entry for row, entry in rows.items() if entry["weights"] is not None}
    for row in rows:
        if row not in given:
            tqdm.write(f"The row {row} is left out: its weights are not given.")
    for row, entry in given.items():
        if not Path(entry["weights"]).is_file():
            raise CaseError(f"There is no weights file {entry['weights']} for the row {row}; check the path.")
    if not given:
        raise CaseError("None of the rows has weights; give the files of some, or choose other rows.")
    return given


def run_systems(
    pairs: Sequence[Mapping],
    rows: Mapping[str, Mapping[str, Any]],
    config: Mapping[str, Any],
    sampler: Callable[[System], SystemSampler],
    folder: str | os.PathLike,
    configs: str | os.PathLike,
) -> list[Result]:
    """Each system on each pair; what lies in the folder is not done again. One system at a time is in memory.

    Args:
        pairs, folder: as in `run_study`.
        rows: of `given_rows`.
        config: as of `System`.
        sampler: translates with a system.
        configs: folder of the rows' config files, where they are no absolute paths.

    Returns:
        results, row by row.
    """
    results = []
    for row, entry in rows.items():
        overlays = [o if isinstance(o, Mapping) else str(Path(configs, o)) for o in entry["config"]]
        system = System(config, overlays, entry["weights"])
        settings = {name: value for name, value in entry.items() if name not in KEYS}
        results += run_study(pairs, {row: settings}, sampler(system), folder)
    return results


def row_notes(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What a reader has to know about the rows, by row."""
    return {row: entry["note"] for row, entry in rows.items() if "note" in entry}


def published_notes() -> dict[str, str]:
    """`PUBLISHED` as notes below a table, a line for each data set."""
    names = ("SWI to MRA of 20 people", "T1 to T2 of 3 people (RIRE)")
    return {
        f"the paper's MAE / SSIM / PSNR, {name}": "; ".join(
            f"{method} {' / '.join(f'{value:.3f}' for value in values[index])}" for method, values in PUBLISHED.items()
        )
        for index, name in enumerate(names)
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
