"""The command line and the last words of a run."""

import platform
import subprocess
import sys

import pytest
import torch

from scripts import workflow
from scripts.devices import compute_dtype
from scripts.errors import CaseError, reason, shorten_errors
from scripts.inferers.ista import ISTAInferer
from scripts.options import check_options

MONAI_BUNDLE = "/site-packages/monai/bundle/__main__.py"


@pytest.fixture
def config(bundle_root):
    return str(bundle_root / "configs" / "inference.json")


@pytest.mark.parametrize(
    "options",
    [
        ["--dataset_dir", "x", "--output-dir=y", "--batch_size", "-1"],
        ["--network_def#channels", "[1]", "--inferer::eta=0.5", "--logging_file", "x", "--+imports", "[]"],
    ],
)
def test_known_options_pass(config, options):
    check_options([MONAI_BUNDLE, "run", "--config_file", config, *options])
    check_options([MONAI_BUNDLE, "run", f"--config_file={[config, config]}", *options])


@pytest.mark.parametrize(
    ("option", "nearest"), [("--datset_dir", "dataset_dir"), ("--networkdef#channels", "network_def")]
)
def test_a_mistyped_option_is_refused(config, option, nearest):
    with pytest.raises(CaseError, match=rf"There is no setting \w+; did you mean {nearest}\?"):
        check_options([MONAI_BUNDLE, "run", "--config_file", config, option, "x"])


def test_other_programs_options_are_their_own(config):
    check_options(["/bin/pytest", "run", "--config_file", config, "--anything", "x"])
    check_options([MONAI_BUNDLE, "run", "--args_file", "args.json", "--anything", "x"])


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
    told = reason(raised(ZeroDivisionError("division of /home/somebody/scan.nii.gz")))
    assert told.startswith("Unforeseen ZeroDivisionError")
    assert "somebody" not in told
    assert "Traceback" in caplog.text
    assert "lower batch_size" in reason(raised(torch.OutOfMemoryError("CUDA")))


def test_reason_knows_the_package_s_own_value_errors():
    with pytest.raises(ValueError, match="slab_size") as own:
        ISTAInferer(scheduler=None, slab_size=2)
    assert reason(own.value).startswith("slab_size is 2")
    assert reason(raised(ValueError("of somebody else"))).startswith("Unforeseen ValueError")


def test_only_the_package_s_own_errors_are_shortened(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: seen.append(error[1]))
    shorten_errors()
    for error in (raised(CaseError("one sentence.")), raised(KeyError("what"))):
        sys.excepthook(type(error), error, error.__traceback__)
    assert capsys.readouterr().err == "one sentence.\n"
    assert [str(error.__cause__.__cause__) for error in seen] == ["'what'"]


def test_compute_dtype():
    assert compute_dtype("float32", "cpu") is torch.float32
    assert compute_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16
    assert compute_dtype("auto", "cpu") in (torch.bfloat16, torch.float32)
    with pytest.raises(CaseError, match="use auto or one of"):
        compute_dtype("float8", "cpu")


def test_bundle_root(bundle_root):
    assert workflow.bundle_root() == str(bundle_root)


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
