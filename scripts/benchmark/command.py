"""`python -m scripts benchmark`: options, the parts in their order, and the files that are written."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from tqdm import tqdm

from ..devices import check_device
from ..errors import CaseError
from ..files import write_whole
from ..options import config_files, names, one_of, whole_number
from ..workflow import bundle_root
from .bundle import Bundle
from .machine import machine, measure_limit, versions
from .measuring import as_json
from .network import measure_network
from .picture import plot
from .rows import DEFAULT_WAYS, WAYS
from .tables import as_markdown
from .volumes import measure_cohort, measure_growth, measure_volumes


@dataclass(frozen=True)
class Subject:
    """A network that can be measured.

    Attributes:
        config_files: of the main job with this network, names in the folder configs/.
        parts: that are measured where none are asked for.
        batch_size: slabs in one call while a slab is timed, None for the config's.
        rounds: times that each row is timed.
        weights: whether the bundle has weights for it.
    """

    config_files: tuple[str, ...]
    parts: tuple[str, ...]
    batch_size: int | None
    rounds: int
    weights: bool


NETWORKS = {
    "compact": Subject(("inference.json",), ("limit", "network", "volume", "growth"), None, 7, True),
    # some seconds a slab on a CPU
    "paper": Subject(("inference.json", "network_paper.json"), ("limit", "network"), 1, 3, False),
}
PARTS = ("limit", "network", "volume", "growth", "cohort")
PATHS = ("dataset_dir", "output_dir", "config_file")
"""Options whose values are not written into the results."""
PARTS_WITH_WEIGHTS = ("volume", "cohort")


def benchmark(
    network: str = "compact",
    device: str | None = None,
    output_dir: str = "runs/benchmark",
    parts: Any = None,
    rows: Any = DEFAULT_WAYS,
    batch_size: int | None = None,
    rounds: int | None = None,
    slab_shape: tuple[int, int] = (160, 192),
    dataset_dir: str | None = None,
    slices: Any = (20, 50, 100, 200, 400),
    cases: int = 20,
    config_file: Any = (),
) -> str:
    """Measure speed, memory and exactness of the main job against plain float32 PyTorch and the machine's limit.

    Writes benchmark.json (all figures), benchmark.md (the tables) and benchmark.png.

    Args:
        network: "compact" (the bundle's) or "paper" (initialised at random, unless an overlay names weights).
        device: such as "cpu" or "cuda:0"; by default a GPU if there is one.
        output_dir: folder of the three files.
        parts: some of "limit" (a large matrix product), "network" (one evaluation, and the sampling of the sample),
            "volume" (the main job on a head CT of 1 mm), "growth" (with slices and with cases), "cohort" (many cases),
            with commas between them, or "all". By default what takes some minutes on two cores: all but cohort; of the
            paper's network limit and network.
        rows: ways to evaluate the network, beside "plain": "channels_last", "main_job", "compile" (torch.compile),
            "onnx" (ONNX Runtime, see `export`), or "all".
        batch_size: slabs in one call while a slab is timed; by default the config's, 8 where that is "auto", and 1 for
            the paper's network. The other parts sample as the config says.
        rounds: times that each row is timed, in turns; their median counts.
        slab_shape: height and width of the slabs that are timed.
        dataset_dir: volumes of your own for the part "volume", beside the sample.
        slices: numbers of slices for the part "growth".
        cases: number of cases for the part "cohort".
        config_file: overlays of the main job, after the config files of the network.

    Returns:
        the tables.

    Raises:
        CaseError: an option that cannot be.
    """
    subject = NETWORKS[one_of("network", network, NETWORKS)]
    overlays = config_files(config_file)
    files = [*(str(Path(bundle_root(), "configs", name)) for name in subject.config_files), *overlays]
    weights = subject.weights or "weights" in ConfigParser.load_config_files(overlays)
    bundle = Bundle(files, None if device is None else check_device(device), weights)
    chosen = list(subject.parts) if parts is None else _some("parts", parts, PARTS)
    options = {
        "network": network,
        "overlays": [Path(file).name for file in overlays],
        "parts": _possible(chosen, network, weights),
        "rows": _some("rows", rows, tuple(WAYS)),
        "batch_size": whole_number("batch_size", _first(batch_size, subject.batch_size, bundle.default_batch_size())),
        "rounds": whole_number("rounds", _first(rounds, subject.rounds)),
        "slab_shape": _numbers("slab_shape", slab_shape, exactly=2),
        "slices": _numbers("slices", slices),
        "cases": whole_number("cases", cases),
    }
    facts = {"machine": machine(bundle.device), "versions": versions()}
    command = _command(sys.argv[1:])
    text = ""
    for results in _measured(bundle, options, dataset_dir):
        # after each part, so that a run that is cut short leaves what it has measured
        measured = {"command": command, **facts, "settings": options, "results": results}
        text = write_results(measured, Path(output_dir))
    return text


def _command(typed: Sequence[str]) -> str:
    """The command as it was typed, but for paths, which may hold names: each becomes the name of its option."""
    words, path = [], False
    for word in typed:
        name, equals, _ = word.partition("=")
        if path:
            words.append(words[-1].removeprefix("--").upper())
            path = False
        elif name.replace("-", "_").removeprefix("__") in PATHS:
            words.append(f"{name}={name.removeprefix('--').upper()}" if equals else name)
            path = not equals
        else:
            words.append(word)
    return shlex.join(["python", "-m", "scripts", *words])


def _measured(bundle: Bundle, options: Mapping[str, Any], dataset_dir: str | None) -> Iterator[dict[str, Any]]:
    """Part -> what was measured, in the order of `PARTS`; once more after each part."""

    def network() -> dict[str, Any]:
        limit, rows = measure_network(
            bundle, options["rows"], options["slab_shape"], options["batch_size"], options["rounds"]
        )
        return {"limit": limit, "network": rows}

    calls: dict[str, Callable[[], dict[str, Any]]] = {
        "limit": lambda: {"limit": measure_limit(bundle.device, options["rounds"])},
        "network": network,
        "volume": lambda: {"volume": measure_volumes(bundle, dataset_dir)},
        "growth": lambda: {"growth": measure_growth(bundle, options["slices"])},
        "cohort": lambda: {"cohort": measure_cohort(bundle, options["cases"])},
    }
    results: dict[str, Any] = {}
    # the rows of the network take turns with the matrix products, which are the limit
    parts = [part for part in options["parts"] if not (part == "limit" and "network" in options["parts"])]
    with tqdm(parts, desc="benchmark", unit="part", disable=None) as bar:
        for part in bar:
            bar.set_postfix_str(part)
            results |= calls[part]()
            yield results


def write_results(measured: Mapping[str, Any], folder: Path) -> str:
    """Write what was measured as JSON, as tables and as a picture; returns the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    content = as_json(measured)
    text = as_markdown(content)
    write_whole(folder / "benchmark.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_whole(folder / "benchmark.md", text)
    plot(content["results"], folder / "benchmark.png")
    return text


def _possible(parts: list[str], network: str, weights: bool) -> list[str]:
    """The parts, if there are weights or none of them needs any."""
    for part in parts:
        if part in PARTS_WITH_WEIGHTS and not weights:
            raise CaseError(f"The part {part} needs weights, and the network {network} has none; leave it out.")
    return parts


def _first(*values: Any) -> Any:
    """The first that is given."""
    return next(value for value in values if value is not None)


def _numbers(name: str, values: Any, exactly: int | None = None) -> list[int]:
    """Several whole numbers; as many as `exactly`, or at least two different ones, which then come in rising order."""
    listed = list(values) if isinstance(values, list | tuple) else [values]
    numbers = [whole_number(name, value) for value in listed]
    if exactly is not None and len(numbers) != exactly:
        raise CaseError(f"{name} is {listed}; use {exactly} numbers with a comma between them.")
    if exactly is None and len(set(numbers)) < 2:
        raise CaseError(f"{name} is {listed}; use two numbers or more, with commas between them.")
    return numbers if exactly else sorted(set(numbers))


def _some(name: str, value: Any, known: Sequence[str]) -> list[str]:
    """Some of the known names, or "all"."""
    return list(known) if value in (None, "all") else names(name, value, known)
