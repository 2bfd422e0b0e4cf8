"""Items are worked on in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from itk.support.lazy import LazyITKModule
from tqdm import tqdm

from scripts.processes import run_isolated


def tenfold(item):
    """Ten times the item; the process of item 2 is killed, as the system does when the memory runs out."""
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * item, os.getpid(), torch.get_num_threads()


def test_a_killed_process_takes_no_other_with_it():
    results = dict(run_isolated(tenfold, [0, 1, 2, 3, 4], num_workers=2))
    assert results.pop(2) is None
    assert {item: result[0] for item, result in results.items()} == {0: 0, 1: 10, 3: 30, 4: 40}
    pids = {result[1] for result in results.values()}
    assert len(pids) == 4
    assert os.getpid() not in pids
    assert {result[2] for result in results.values()} == {1}


def locks_of_libraries():
    """Locks that every process forked from one server finds in these libraries."""
    return [*LazyITKModule.get_lock().locks, tqdm.get_lock()]


def take_locks(item):
    """Whether the locks could be had; the process of item 0 is killed while it holds them."""
    had = all(lock.acquire(timeout=5) for lock in locks_of_libraries())
    if item == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return had


def test_a_killed_process_leaves_no_lock_behind():
    assert dict(run_isolated(take_locks, [0, 1], num_workers=1)) == {0: None, 1: True}


def start_and_linger(folder):
    """Says that it started, and two seconds later that it is still there."""
    (Path(folder) / "started").touch()
    time.sleep(2)
    (Path(folder) / "still_there").touch()


def test_processes_end_with_a_killed_parent(tmp_path, bundle_root):
    code = f"from test_processes import *; list(run_isolated(start_and_linger, [{str(tmp_path)!r}], 1))"
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{bundle_root}"}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    while not (tmp_path / "started").exists():
        assert parent.poll() is None
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    time.sleep(3)
    assert not (tmp_path / "still_there").exists()


def test_no_workers_is_this_process():
    assert list(run_isolated(os.path.basename, ["/a/b"], 0)) == [("/a/b", "b")]
    with pytest.raises(ZeroDivisionError):
        list(run_isolated(lambda item: 1 / item, [0], 0))
