"""What all workflows share."""

import sys

import pytest

from scripts import workflow
from scripts.errors import CaseError


def test_bundle_root(bundle_root):
    assert workflow.bundle_root() == str(bundle_root)


def test_start_shortens_errors_and_refuses_mistyped_options(bundle_root, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", default := sys.excepthook)  # put back afterwards
    monkeypatch.setattr(workflow, "keep_freed_memory", lambda: None)  # it holds for the whole process
    command = ["/site-packages/monai/bundle/__main__.py", "run"]
    command += ["--config_file", str(bundle_root / "configs" / "inference.json")]
    workflow.start([*command, "--dataset_dir", "x"])
    with pytest.raises(CaseError, match="did you mean dataset_dir"):
        workflow.start([*command, "--datset_dir", "x"])
    assert sys.excepthook is not default
