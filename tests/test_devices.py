"""How much memory a call holds, and how many slabs fit."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts.devices import PeakMemory, _container_memory, available_memory, batch_that_fits, is_out_of_memory

MEBIBYTE = 2**20
CPU = torch.device("cpu")


def block(size: int = MEBIBYTE) -> torch.Tensor:
    return torch.zeros(size // 4)


def test_the_peak_is_what_lives_at_once():
    given = block()
    with PeakMemory() as memory:
        first = given + 1
        del first
        second = given * 2  # 1 MiB, as the first one was
        third = second - given  # 2 MiB
        del second, third
        fourth = given.view(2, -1).t()  # a view of what was there before
    assert memory.peak == 2 * MEBIBYTE
    assert fourth.shape[1] == 2


def test_a_layer_that_keeps_nothing_takes_input_and_output_in_turn():
    layers = torch.nn.Sequential(*(torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(5)))
    x = torch.zeros(1, 4, 128, 128)
    with torch.inference_mode(), PeakMemory() as memory:
        layers(x)
    assert memory.peak == 2 * x.nbytes  # the network's input was there before; two features at a time
    with PeakMemory() as memory:
        result = layers(x)  # for a backward pass each is kept
    assert memory.peak == 5 * result.nbytes


@pytest.mark.parametrize(("free", "batch"), [(10**12, 8), (10 * MEBIBYTE, 5), (3 * MEBIBYTE, 1), (0, 1), (None, 8)])
def test_half_of_the_free_memory_is_shared_out(free, batch, monkeypatch):
    monkeypatch.setattr("scripts.devices.available_memory", lambda device: free)
    assert batch_that_fits(block, CPU, most=100) == batch
    assert batch_that_fits(block, CPU, most=3) == min(batch, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems are not asked")
def test_the_available_memory_is_a_part_of_the_machine():
    free = available_memory(CPU)
    assert 100 * MEBIBYTE < free < 2**44
    assert available_memory(torch.device("meta")) is None


def test_the_limit_of_a_container_counts_without_cached_files(tmp_path):
    assert _container_memory(tmp_path) is None
    for name, text in (("max", "1000"), ("current", "700"), ("stat", "anon 200\ninactive_file 500\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert _container_memory(tmp_path) == 800
    (tmp_path / "memory.max").write_text("max\n")
    assert _container_memory(tmp_path) is None


ALLOCATE = """
import resource, torch
from scripts.devices import is_out_of_memory
resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
try:
    torch.empty(2**33, dtype=torch.float32)
except RuntimeError as error:
    print(type(error).__name__, is_out_of_memory(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_what_pytorch_raises_on_the_cpu_is_known():
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", ALLOCATE], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["RuntimeError", "True"]


def test_other_errors_are_not_about_memory():
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept_for_the_next_tensor():
    """In a process of its own: the pages of a tensor that was freed are not asked of the system again."""
    code = """
import resource, torch
from scripts.devices import keep_freed_memory
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def count():
    before = faults()
    for _ in range(10):
        torch.ones(2**24)
    return faults() - before
count()
default = count()
keep_freed_memory()
count()
print(default, count())
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    default, kept = (int(word) for word in done.stdout.split())
    assert kept < 0.1 * default
