"""Errors become one sentence, and the last words of a run."""

import errno
import gzip
import os
import signal
import subprocess
import sys

import pytest
import torch

from scripts.errors import TERMINATED, CaseError, MachineError, machine_error, machine_reason, reason, shorten_errors
from scripts.inferers.ista import ISTAInferer


def raised(error):
    """An error as MONAI hands it on: wrapped twice."""
    try:
        try:
            try:
                raise error
            except Exception as first:
                raise RuntimeError("Failed to instantiate component") from first
        except RuntimeError as second:
            raise RuntimeError("Failed to evaluate") from second
    except RuntimeError as third:
        return third


def test_reason_is_the_sentence_at_the_root(caplog):
    assert reason(raised(CaseError("ct.nii is empty; export it again."))) == "ct.nii is empty; export it again."
    assert not caplog.records
    sentence = reason(raised(ZeroDivisionError("division of /home/somebody/scan.nii.gz")))
    assert sentence.startswith("Unforeseen ZeroDivisionError")
    assert "somebody" not in sentence
    assert "Traceback" in caplog.text
    assert "lower batch_size" in reason(raised(torch.OutOfMemoryError("CUDA")))


def test_reason_knows_the_package_s_own_value_errors():
    with pytest.raises(ValueError, match="slab_size") as own:
        ISTAInferer(scheduler=None, slab_size=2)
    assert reason(own.value).startswith("slab_size is 2")
    assert reason(raised(ValueError("of somebody else"))).startswith("Unforeseen ValueError")


@pytest.mark.parametrize("kind", [None, MachineError])
def test_what_the_machine_refused_is_told_without_names(kind, caplog):
    """In a file of failures no name may stand; on the screen the file is named."""
    refused = OSError(errno.ENOSPC, "No space left on device", "/home/somebody/scan.nii.gz")
    sentence = reason(raised(refused if kind is None else kind("The disk of /out is full; free space.")))
    assert "somebody" not in sentence
    assert "is full" in sentence
    assert "free space" in sentence
    assert machine_error(raised(refused)) is None
    if kind is not None:
        assert isinstance(machine_error(raised(kind("full"))), OSError)


def test_a_broken_file_is_not_the_machine_s(caplog):
    assert machine_reason(gzip.BadGzipFile("not a gzipped file")) is None
    assert machine_reason(FileNotFoundError(errno.ENOENT, "No such file")) is None
    assert reason(OSError("cannot identify image file")).startswith("Unforeseen OSError")


@pytest.mark.parametrize(
    ("ending", "said", "status"),
    [
        ("raise KeyboardInterrupt", "Interrupted; ", -signal.SIGINT),
        ("import os; os.kill(os.getpid(), 15)", "Interrupted; ", TERMINATED),
        ("raise OSError(28, 'No space left on device', 'out/a.txt')", "The disk of out/a.txt is full ", 1),
        ("raise OSError(30, 'Read-only file system')", "The disk of a file that was to ", 1),
    ],
)
def test_the_last_words_of_a_program_are_one_sentence(bundle_root, ending, said, status):
    """Names that are no UTF-8 can be printed before."""
    program = f"from scripts.errors import shorten_errors; shorten_errors(); print('caf\\udce9'); {ending}"
    ended = subprocess.run([sys.executable, "-c", program], cwd=bundle_root, capture_output=True, text=True)
    assert ended.returncode == status  # a shell calls an end by Ctrl-C 130
    assert ended.stderr.startswith(said)
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == "caf\\udce9\n"


def test_a_second_sigterm_does_not_cut_the_end_off(bundle_root):
    lines = (
        "import os, time; from scripts.errors import shorten_errors; shorten_errors()",
        "try: os.kill(os.getpid(), 15); time.sleep(5)",
        "finally: os.kill(os.getpid(), 15); time.sleep(0.1); print('removed')",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    ended = subprocess.run(command, cwd=bundle_root, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (TERMINATED, "removed\n")
    assert ended.stderr.count("Interrupted; ") == 1


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, TERMINATED), (signal.SIGINT, -signal.SIGINT)], ids=lambda n: str(int(n))
)
def test_a_signal_ends_the_program_though_python_ignores_exceptions_where_it_came(bundle_root, number, status):
    """As in a fork, where each SIGTERM would be lost that came meanwhile, and all that follow it ignored."""
    lines = (
        "import os, signal, time; from scripts.errors import shorten_errors; shorten_errors()",
        "signal.signal(signal.SIGINT, signal.default_int_handler)",  # ignored in what a shell runs in the background
        "class Deleted:",
        f"    def __del__(self): os.kill(os.getpid(), {int(number)}); time.sleep(5)",
        "deleted = Deleted(); del deleted",
        "for _ in range(500): time.sleep(0.01)",
        "print('goes on')",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    ended = subprocess.run(command, cwd=bundle_root, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (status, "")
    assert ended.stderr.startswith("Interrupted; ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="processes are not forked there")
def test_the_end_of_its_processes_does_not_take_the_place_of_its_own(bundle_root):
    """SLURM tells all processes of a task; PyTorch raises an error, anywhere, where one that loads is killed."""
    lines = (
        "import os, signal, time; from scripts.errors import shorten_errors; shorten_errors()",
        "def report(*_): raise RuntimeError('DataLoader worker is killed by signal: Terminated.')",
        "signal.signal(signal.SIGCHLD, report)",
        "try: os.kill(os.getpid(), 15); time.sleep(5)",
        "finally: os.kill(os.getpid(), signal.SIGCHLD); time.sleep(0.1); print('removed')",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    ended = subprocess.run(command, cwd=bundle_root, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (TERMINATED, "removed\n")
    assert ended.stderr.startswith("Interrupted; ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked there")
def test_a_forked_process_is_ended_by_sigterm_and_says_nothing(bundle_root):
    lines = (
        "import os, time; from scripts.errors import shorten_errors; shorten_errors()",
        "child = os.fork()",
        "if child == 0: os.kill(os.getpid(), 15); time.sleep(5); os._exit(0)",
        "print(os.WTERMSIG(os.waitpid(child, 0)[1]))",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    ended = subprocess.run(command, cwd=bundle_root, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{int(signal.SIGTERM)}\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked there")
def test_a_forked_process_that_runs_a_workflow_of_its_own_ends_in_order(bundle_root):
    lines = (
        "import os, time; from scripts.errors import shorten_errors; shorten_errors()",
        "child = os.fork()",
        "if child == 0: shorten_errors()",
        "try: child or os.kill(os.getpid(), 15) or time.sleep(5)",
        "finally: child or os.write(1, b'removed ')",
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    ended = subprocess.run(command, cwd=bundle_root, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, f"removed {TERMINATED}\n")
    assert ended.stderr.startswith("Interrupted; ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("told", ["import os; os.environ['TORCHELASTIC_RUN_ID'] = '1'", "import sys; sys.ps1 = '>>> '"])
def test_sigterm_is_left_to_torchrun_and_to_interactive_sessions(bundle_root, told):
    lines = f"{told}; from scripts.errors import shorten_errors; shorten_errors(); import os; os.kill(os.getpid(), 15)"
    ended = subprocess.run([sys.executable, "-c", lines], cwd=bundle_root, check=False)
    assert ended.returncode == -signal.SIGTERM


def test_who_has_a_way_to_end_by_sigterm_keeps_it(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    shorten_errors()
    assert signal.signal(signal.SIGTERM, before) is signal.SIG_IGN


def test_only_the_package_s_own_errors_are_shortened(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: seen.append(error[1]))
    shorten_errors()
    for error in (raised(CaseError("one sentence.")), raised(KeyError("what"))):
        sys.excepthook(type(error), error, error.__traceback__)
    assert capsys.readouterr().err == "one sentence.\n"
    assert [str(error.__cause__.__cause__) for error in seen] == ["'what'"]


def test_a_log_on_a_full_disk_is_told_once_and_the_work_goes_on(bundle_root):
    script = (
        "import logging, sys; from scripts.errors import shorten_errors; shorten_errors(); "
        "logging.basicConfig(stream=sys.stdout, level='INFO'); [logging.info('said') for _ in range(3)]; "
        "print('done', file=sys.stderr)"
    )
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-u", "-c", script]  # else Python complains once more at its end
        ended = subprocess.run(command, cwd=bundle_root, stdout=full, stderr=subprocess.PIPE, text=True)
    said = ended.stderr.splitlines()
    assert said == ["The log cannot be written (No space left on device); free space on its disk.", "done"]
