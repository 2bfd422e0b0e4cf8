"""One volume sampled by several processes: what one process gives, to the bit; and none waits for one that is gone."""

import multiprocessing
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import run

from scripts.codec import OrthonormalCodec
from scripts.errors import CaseError, MachineError
from scripts.inferers import ISTAInferer, UncertaintyInferer
from scripts.schedulers import BrownianBridgeScheduler
from scripts.slab_ranks import OneProcess, SlabRanks
from tests.phantoms import write_head_ct

SHAPE = (2, 1, 6, 4, 11)  # B, 1, H, W, Z
VOLUME = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))


class RandomNetwork(torch.nn.Module):
    """A fixed random function of slab, timestep, style, source and conditions."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.nn.Parameter(0.3 * torch.randn(channels_out, channels_in, 3, 3, generator=generator))

    def forward(self, x, timesteps, context=None, source=None, **conditions):
        slabs = torch.cat([x, source, *conditions.values()], 1)
        # one by one, because rounding may depend on how many slabs a call has
        hidden = torch.cat([torch.nn.functional.conv2d(slab, self.weight, padding=1) for slab in slabs.split(1)])
        hidden = hidden + timesteps.float()[:, None, None, None] / 999
        return torch.tanh(hidden if context is None else hidden + context.mean((1, 2))[:, None, None, None])


class Stopping(RandomNetwork):
    """Fails, or takes too long, in one of the processes."""

    def __init__(self, stop: Callable[[], None]) -> None:
        super().__init__(6, 3)
        self.stop = stop

    def forward(self, x, *args, **kwargs):
        if os.environ["RANK"] == "1":
            self.stop()
        return super().forward(x, *args, **kwargs)


def inferer(**options: Any) -> ISTAInferer:
    scheduler = BrownianBridgeScheduler(prediction_type="sample")
    defaults = {"num_inference_steps": 3, "sampler": "implicit", "timestep_spacing": "lambda", "batch_size": 3}
    return ISTAInferer(scheduler, **{**defaults, **options})


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _rank(rank: int, size: int, port: int, folder: Path, function: Callable[[], Any]) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    try:
        result = function()
    except CaseError as error:
        result = error
    except SystemExit as end:
        if end.code == 0:
            raise
        result = end.code
    torch.save(result, folder / f"{rank}.pt")


def results_of(function: Callable[[], Any], size: int, folder: Path) -> list[Any]:
    """What a function gives or raises in each of some processes; None where it ended the process well."""
    port, context = free_port(), multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads; the children have one
        processes = [context.Process(target=_rank, args=(r, size, port, folder, function)) for r in range(size)]
        for process in processes:
            process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    files = [folder / f"{rank}.pt" for rank in range(size)]
    return [torch.load(file, weights_only=False) if file.exists() else None for file in files]


def latent(**options: Any) -> tuple[ISTAInferer, torch.Tensor, torch.nn.Module]:
    return inferer(codec=OrthonormalCodec(2), **options), VOLUME, RandomNetwork(2 * 4 * 3, 4 * 3)


def sparse(**options: Any) -> tuple[ISTAInferer, torch.Tensor, torch.nn.Module]:
    missing = (torch.arange(SHAPE[-1]) % 4 / 4).expand(SHAPE)
    channels = {"source": 1, "missing": 1}
    return inferer(channels=channels, **options), torch.cat([VOLUME, missing], 1), RandomNetwork(9, 3)


def plain(slab_size: int = 3, **options: Any) -> tuple[ISTAInferer, torch.Tensor, torch.nn.Module]:
    return inferer(slab_size=slab_size, **options), VOLUME, RandomNetwork(2 * slab_size, slab_size)


def uncertain(**options: Any) -> tuple[UncertaintyInferer, torch.Tensor, torch.nn.Module]:
    made, volume, network = plain(**options)
    return UncertaintyInferer(made, samples=2), volume, network


CASES = {
    "as shipped": (plain, {"style_key": torch.rand(3, 128).numpy(), "detail": 0.5}),
    "corrections and noise": (plain, {"num_corrections": 1, "sampler": "ancestral", "noise_correlation": 0.5}),
    "strides": (plain, {"slab_size": 5, "slab_stride": 5, "final_stride": 3}),
    "without co-prediction": (plain, {"co_prediction": False, "slab_stride": 3}),
    "second order, mirrored": (plain, {"sampler": "implicit_2", "mirrored": True}),
    "in a latent": (latent, {}),
    "sparse": (sparse, {}),
    "uncertainty": (uncertain, {}),
}


def test_three_processes_give_what_one_gives_to_the_bit(tmp_path):
    torch.set_num_threads(1)

    def sample_all() -> dict[str, torch.Tensor]:
        given, ranks = {}, SlabRanks(timeout=20)
        for name, (case, options) in CASES.items():
            made, volume, network = case(**options, ranks=ranks)
            if ranks.rank == 0:
                given[name] = made(volume, network)
            else:  # as `serve` does, with a network of each case's own
                told = ranks._told()
                while told is not None:
                    parts = {"codec": getattr(made, "inferer", made).codec, "ranks": ranks}
                    inferer(**{**told["arguments"], **parts})(told["inputs"], network, **told["conditions"])
                    told = ranks._told()
            if ranks.rank == 0:
                ranks._tell(None)
        return given

    given = results_of(sample_all, 3, tmp_path)[0]
    for name, (case, options) in CASES.items():
        made, volume, network = case(**options)
        expected = made(volume, network)
        assert given[name].shape == expected.shape, name
        assert torch.equal(given[name], expected), f"{name}: {(given[name] - expected).abs().max()}"


def test_the_others_serve_until_rank_0_has_finished(tmp_path):
    made, volume, network = plain()

    def take_part() -> torch.Tensor:
        ranks = SlabRanks(timeout=20)
        mine = made.changed(ranks=ranks)
        ranks.serve(mine, network)
        images = [mine.changed(seed=seed, start_noise=True)(volume, network) for seed in (1, 2)]
        ranks.finish()
        return torch.stack(images)

    first, second = results_of(take_part, 2, tmp_path)
    assert second is None
    for seed, image in zip((1, 2), first, strict=True):
        assert torch.equal(image, made.changed(seed=seed, start_noise=True)(volume, network))


def out_of_memory() -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("stop", "timeout", "last_words"),
    [
        (out_of_memory, 20, "Process 1 of 2 failed at its share of a volume, which ends them all: The memory ran out"),
        (partial(time.sleep, 2), 0.5, "Another of the 2 processes ended, or was not heard of in time, so process 1"),
    ],
    ids=["fails", "hangs"],
)
def test_one_that_stops_ends_all_with_a_sentence_each(stop, timeout, last_words, tmp_path):
    def take_part() -> None:
        ranks = SlabRanks(timeout=timeout)
        made, volume, _ = plain(ranks=ranks, batch_size=20)
        network = Stopping(stop)
        ranks.serve(made, network)
        made(volume, network)

    waiting, stopped = results_of(take_part, 2, tmp_path)
    assert isinstance(waiting, MachineError)
    assert "Another of the 2 processes ended, or was not heard of in time, so process 0" in str(waiting)
    assert isinstance(stopped, MachineError)
    assert str(stopped).startswith(last_words)


@pytest.mark.slow
def test_the_main_job_shares_each_volume_and_one_process_writes(bundle_root, echo_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for name in ("a", "b"):
        write_head_ct(tmp_path / "in" / f"{name}.nii.gz")
    (tmp_path / "in" / "broken.nii.gz").write_bytes(b"no volume")

    def translate(output: str, *overlays: str) -> None:
        configs = [str(bundle_root / "configs" / f"{name}.json") for name in ("inference", *overlays)]
        folders = {"dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / output)}
        run(config_file=configs, logging_file=False, device="cpu", lesion_watch=False, **echo_settings, **folders)

    said = results_of(partial(translate, "shared", "slab_parallel"), 2, tmp_path)
    assert said[0].startswith("1 of 3 cases failed")
    assert said[1] is None
    with pytest.raises(SystemExit, match="1 of 3 cases failed"):
        translate("alone")
    assert sorted(os.listdir(tmp_path / "shared")) == sorted(os.listdir(tmp_path / "alone"))
    for file in (tmp_path / "alone").iterdir():
        assert (tmp_path / "shared" / file.name).read_bytes() == file.read_bytes(), file.name


def test_too_few_slices_and_a_start_without_torchrun_are_refused(monkeypatch):
    alone = OneProcess()
    assert alone.shares(5) == [range(5)]
    alone.size = 4
    assert [len(share) for share in alone.shares(10)] == [2, 3, 2, 3]
    with pytest.raises(CaseError, match=r"has 3 slices .* fewer than the 4 processes"):
        alone.shares(3)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(CaseError, match="torchrun --nproc_per_node 2"):
        SlabRanks()
    with pytest.raises(ValueError, match="use a positive number of seconds"):
        SlabRanks(timeout="soon")
