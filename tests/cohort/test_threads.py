"""A thread with a number of OpenMP threads of its own."""

import threading
import time

import pytest
import torch

from scripts.cohort.threads import worker_thread


@pytest.fixture(autouse=True)
def two_threads():
    """The caller has two, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def number_in_a_new_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize(("asked", "has"), [(1, 1), (None, 2)])
def test_the_thread_has_its_number_and_the_others_keep_theirs(asked, has):
    with worker_thread(asked) as thread:
        assert thread.submit(torch.get_num_threads).result() == has
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == number_in_a_new_thread() == 2


def test_the_number_is_the_caller_s_though_another_was_set_last():
    with worker_thread(1) as first, worker_thread() as second:
        first.submit(int).result()
        assert second.submit(torch.get_num_threads).result() == 2


def test_an_interruption_lets_it_end_what_it_was_given():
    done = []

    def interrupted():
        with worker_thread(1) as thread:
            thread.submit(lambda: (time.sleep(0.2), done.append("saved")))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["saved"]
    assert number_in_a_new_thread() == 2
