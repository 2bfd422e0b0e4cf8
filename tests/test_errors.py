"""Errors become one sentence, and the last words of a run."""

import sys

import pytest
import torch

from scripts.errors import CaseError, reason, shorten_errors
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


def test_only_the_package_s_own_errors_are_shortened(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: seen.append(error[1]))
    shorten_errors()
    for error in (raised(CaseError("one sentence.")), raised(KeyError("what"))):
        sys.excepthook(type(error), error, error.__traceback__)
    assert capsys.readouterr().err == "one sentence.\n"
    assert [str(error.__cause__.__cause__) for error in seen] == ["'what'"]
