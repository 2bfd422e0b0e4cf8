"""What the style key and co-prediction buy: the same network and volumes, sampled with and without them."""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from scripts.evaluation.compare import as_markdown, figures


def adjacent_difference(image: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute difference of adjacent axial slices (H, W, Z) where both lie in the mask; flicker raises it."""
    inside = mask[..., 1:] & mask[..., :-1]
    return float(np.abs(np.diff(image, axis=2))[inside].mean())


def volume_figures(image: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """``figures`` and the difference of adjacent slices, of one volume."""
    return {**figures(image, reference, mask), "adjacent_difference": adjacent_difference(image, mask)}


def sample_variants(
    pairs: Iterable[Mapping],
    network: torch.nn.Module,
    variants: Mapping[str, Callable],
    device: torch.device | str = "cpu",
    report: Callable[[str], None] = print,
) -> dict[str, list[dict[str, float]]]:
    """Translate each pair with each variant of the inferer; as in the main job the output is 0 outside the mask.

    Args:
        pairs: {"source", "target", "mask": (1, H, W, Z)}, images in [0, 1], sizes that the network takes.
        network: in evaluation mode.
        variants: name -> inferer, called (source (1, 1, H, W, Z), network) -> synthetic volume.
        device: where the network is.
        report: told what is done.

    Returns:
        Row name -> figures of each pair; the first row, "real", is the target against itself.
    """
    rows: dict[str, list[dict[str, float]]] = {"real": [], **{name: [] for name in variants}}
    for number, pair in enumerate(pairs):
        target, mask = pair["target"][0].numpy(), pair["mask"][0].numpy() > 0
        rows["real"].append(volume_figures(target, target, mask))
        for name, inferer in variants.items():
            with torch.inference_mode():
                image = inferer(pair["source"][None].to(device), network)[0, 0].float().cpu().numpy() * mask
            rows[name].append(volume_figures(image, target, mask))
            report(f"{number + 1} {name}: PSNR {rows[name][-1]['psnr']:.2f} dB")
    return rows


def mean_table(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Row name -> mean of each figure over the pairs."""
    return {name: {key: float(np.mean([r[key] for r in row])) for key in row[0]} for name, row in rows.items() if row}


def write_table(rows: Mapping[str, Sequence[Mapping[str, float]]], path: str | os.PathLike) -> None:
    """Write the means as a Markdown table, and each pair's figures as JSON beside it; print the table."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    table = as_markdown(mean_table(rows))
    file.write_text(table + "\n", encoding="utf-8")
    # JSON has no infinity, which the PSNR of the target against itself is
    finite = {
        name: [{k: v if math.isfinite(v) else None for k, v in r.items()} for r in row] for name, row in rows.items()
    }
    file.with_suffix(".json").write_text(json.dumps(finite, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(table)
