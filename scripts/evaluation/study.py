"""Many variants of a sampler on many subjects, each result kept on disk: a study that was killed goes on."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..errors import CaseError
from ..files import check_folder, write_whole
from ..options import whole_number
from .figures import finite, volume_figures
from .metrics import SSIM_WINDOW

Figures = Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, float]]
"""(image, reference, mask), (H, W, Z) each -> figures by name."""
_VOLUMES = ("source", "target", "mask", "fractions")  # of a pair, those that it has
_FORMAT = 2  # of a result on disk; raise it when the figures change, and earlier results are computed again


@dataclass(frozen=True)
class Result:
    """One variant on one subject.

    Attributes:
        row: name of the variant.
        subject: name of the pair.
        figures: of `volume_figures`.
        style_key: name of the key that was used, such as the training subject that "best" chose; None without.
        evaluations: of the network on each slab.
        seconds: of sampling.
        settings: what the result depends on.
    """

    row: str
    subject: str
    figures: dict[str, float]
    style_key: str | None = None
    evaluations: float = 0.0
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)


class VariantSampler:
    """Translates pairs with an inferer made from a variant's settings; as in the main job, 0 outside the mask.

    Args:
        network: called as the inferer does, in evaluation mode.
        inferer: settings by name, without "style_key" -> inferer, called (source (1, 1, H, W, Z), network, style_key);
            one that has an attribute `truth` is given the target there.
        style_key: (name or None, pair) -> (name of the key used, key (3, B) or None).
        device: where the network is.
        common: what all results depend on beside settings and volumes, such as the weights' checksum; JSON values.
        figures: of an image and its reference in the mask, as `volume_figures`.
    """

    def __init__(
        self,
        network: Callable[..., torch.Tensor],
        inferer: Callable[..., Callable[..., torch.Tensor]],
        style_key: Callable[[str | None, Mapping], tuple[str | None, np.ndarray | None]],
        device: torch.device | str = "cpu",
        common: Mapping[str, Any] | None = None,
        figures: Figures = volume_figures,
    ) -> None:
        self.network = network
        self.inferer = inferer
        self.style_key = style_key
        self.device = device
        self.common = dict(common or {})
        self.figures = figures

    def settings(self, pair: Mapping, variant: Mapping[str, Any]) -> dict[str, Any]:
        """What a result depends on: settings, style key, volumes and `common`; JSON values."""
        key = self.style_key(variant.get("style_key"), pair)[1]
        volumes = {name: _sha256(np.asarray(pair[name])) for name in ("source", "target", "mask")}
        digest = None if key is None else _sha256(np.asarray(key))
        return {"format": _FORMAT, **self.common, **variant, "style_key_sha256": digest, "volumes_sha256": volumes}

    def __call__(self, row: str, pair: Mapping, variant: Mapping[str, Any]) -> Result:
        """Translate a pair and compare.

        Args:
            row: name of the variant.
            pair: "subject", and "source", "target", "mask": (1, H, W, Z), images in [0, 1].
            variant: settings of the inferer, and "style_key", a name.
        """
        name, key = self.style_key(variant.get("style_key"), pair)
        inferer = self.inferer(**{k: v for k, v in variant.items() if k != "style_key"})
        source, mask = torch.as_tensor(np.asarray(pair["source"]))[None], np.asarray(pair["mask"])[0] > 0
        if hasattr(inferer, "truth"):
            inferer.truth = torch.as_tensor(np.asarray(pair["target"]))[None]
        slabs = 0

        def counted(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            nonlocal slabs
            slabs += len(x)
            return self.network(x, *args, **kwargs)

        start = time.perf_counter()
        with torch.inference_mode():
            image = inferer(source.to(self.device), counted, style_key=key)[0, 0].float().cpu().numpy() * mask
        return Result(
            row=row,
            subject=str(pair["subject"]),
            figures=self.figures(image, np.asarray(pair["target"])[0], mask),
            style_key=name,
            evaluations=round(slabs / source.shape[-1], 3),
            seconds=round(time.perf_counter() - start, 3),
            settings=self.settings(pair, variant),
        )


def run_study(
    pairs: Iterable[Mapping],
    variants: Mapping[str, Mapping[str, Any]],
    sampler: VariantSampler,
    folder: str | os.PathLike,
) -> list[Result]:
    """Each variant on each pair; what lies in the folder with the same settings, weights and volumes is not done again.

    Args:
        pairs: as `VariantSampler` takes them.
        variants: row name -> settings.
        sampler: translates.
        folder: of the results, one JSON file for each, written whole or not at all.

    Returns:
        results, subject by subject.
    """
    folder = check_folder(folder)
    pairs, results = list(pairs), []
    variants = _with_known_keys(variants, pairs, sampler)
    with tqdm(total=len(pairs) * len(variants), desc="study", unit="volume", disable=None) as bar:
        for pair in pairs:
            for row, variant in variants.items():
                bar.set_postfix_str(f"{pair['subject']}: {row}")
                results.append(_kept_or_made(row, pair, variant, sampler, folder))
                bar.update()
    return results


def _with_known_keys(
    variants: Mapping[str, Mapping[str, Any]], pairs: Sequence[Mapping], sampler: VariantSampler
) -> dict[str, Mapping[str, Any]]:
    """The variants whose style key there is; the others are told and left out.

    Raises:
        CaseError: what style keys there are is not known, since their file is not there.
    """
    known = {}
    for row, variant in variants.items():
        try:
            sampler.style_key(variant.get("style_key"), pairs[0])
            known[row] = variant
        except CaseError:
            raise
        except ValueError as error:
            tqdm.write(f"The row {row} is left out: {error}")
    return known


def _kept_or_made(row: str, pair: Mapping, variant: Mapping[str, Any], sampler: VariantSampler, folder: Path) -> Result:
    settings = sampler.settings(pair, variant)
    digest = hashlib.sha256(json.dumps([row, settings], sort_keys=True).encode()).hexdigest()[:16]
    file = folder / f"{_plain(str(pair['subject']))}_{_plain(row)}_{digest}.json"
    if file.is_file():
        kept = json.loads(file.read_text(encoding="utf-8"))
        figures = {k: float("nan") if v is None else v for k, v in kept.pop("figures").items()}
        return Result(figures=figures, **kept)
    result = sampler(row, pair, variant)
    content = {**asdict(result), "figures": finite(result.figures)}
    write_whole(file, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return result


def real_results(pairs: Iterable[Mapping], figures: Figures = volume_figures) -> list[Result]:
    """The row "real": each target against itself."""
    results = []
    for pair in pairs:
        target, mask = np.asarray(pair["target"])[0], np.asarray(pair["mask"])[0] > 0
        results.append(Result("real", str(pair["subject"]), figures(target, target, mask)))
    return results


def select(names: Any, known: Sequence[str], what: str) -> list[str]:
    """Names that a user typed, out of those there are, in their order.

    Args:
        names: a list, or text with commas; None selects all.
        known: those there are.
        what: they are called in the error, such as "row".

    Raises:
        CaseError: a name that is unknown.
    """
    if names is None:
        return list(known)
    listed = names if isinstance(names, list | tuple) else str(names).strip("[]()").split(",")
    wanted = [str(name).strip() for name in listed]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise CaseError(f"There is no {what} {unknown[0]!r}; use some of {', '.join(known)}.")
    return [name for name in known if name in wanted]


def select_items(items: Sequence[Mapping], subjects: Any) -> list[dict]:
    """Entries of a datalist by subject; "number" keeps their place in the list, by which a simulated CT is drawn."""
    wanted = select(subjects, [str(item["subject"]) for item in items], "subject")
    return [{**item, "number": n} for n, item in enumerate(items) if str(item["subject"]) in wanted]


def check_slices(slices: Any) -> None:
    """Refuse a piece of the volume that SSIM does not fit into, before the work rather than after it.

    Args:
        slices: axial slices in the middle of the brain; None for all.

    Raises:
        CaseError: fewer than SSIM's window has voxels, or no whole number.
    """
    if slices is not None and whole_number("slices", slices) < SSIM_WINDOW:
        raise CaseError(
            f"slices is {slices}, and SSIM's window needs {SSIM_WINDOW} voxels; give {SSIM_WINDOW} or more."
        )


def central_slices(pair: Mapping, number: int | None) -> dict:
    """The pair with the axial slices in the middle of its brain alone; None keeps all.

    At both ends of the piece the brain is cut: there the inferer repeats the end slice as its neighbour.
    """
    if number is None:
        return dict(pair)
    inside = np.flatnonzero((np.asarray(pair["mask"])[0] > 0).any(axis=(0, 1)))
    middle = int(inside[0] + inside[-1] + 1) // 2
    depth = np.asarray(pair["mask"]).shape[-1]
    start = max(0, min(middle - number // 2, depth - number))
    return {**pair, **{k: pair[k][..., start : start + number] for k in _VOLUMES if k in pair}}


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def _plain(text: str) -> str:
    """Text as a part of a file's name."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in text)
