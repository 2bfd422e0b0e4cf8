"""Items are worked on in processes of their own."""

import os
import signal

import pytest
import torch

from scripts.data.isolated import run_isolated


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


def test_no_workers_is_this_process():
    assert list(run_isolated(os.path.basename, ["/a/b"], 0)) == [("/a/b", "b")]
    with pytest.raises(ZeroDivisionError):
        list(run_isolated(lambda item: 1 / item, [0], 0))
