"""The module for 3D Slicer with stand-ins for Slicer: what is asked, started, shown and said."""

import importlib.util
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest

from brain_ct_to_mri.cli import translate_parser

OBLIQUE = np.array([[-0.9, 0.1, 0, 81.2], [0.1, 0.9, 0.05, -90.7], [0, -0.05, 1.5, -60.1], [0, 0, 0, 1]])


class Matrix:
    def __init__(self, values=None):
        self.values = np.eye(4) if values is None else np.array(values, dtype=float)

    def GetElement(self, row, column):
        return self.values[row, column]


class Volume:
    """A scalar volume as far as the module looks at it."""

    def __init__(self, name, affine):
        self.name, self.affine, self.transform = name, np.array(affine), None

    def GetName(self):
        return self.name

    def GetImageData(self):
        return "voxels"

    def GetParentTransformNode(self):
        return self.transform

    def GetTransformNodeID(self):
        return "vtkMRMLLinearTransformNode1"

    def SetAndObserveTransformNodeID(self, transform):
        self.transform_id = transform

    def GetIJKToRASMatrix(self, matrix):
        matrix.values = self.affine.copy()

    def SetIJKToRASMatrix(self, matrix):
        self.affine = matrix.values.copy()


class Process:
    """A QProcess; the test ends it."""

    MergedChannels = 1
    killed = False

    def setProcessChannelMode(self, mode):
        pass

    def connect(self, signal, slot):
        self.ended = slot

    def start(self, program, arguments):
        self.arguments = arguments

    def kill(self):
        self.killed = True

    def readAllStandardOutput(self):
        return SimpleNamespace(data=lambda: self.said.encode())

    def end(self, code, said=""):
        self.said = said
        self.ended(code, 0)


@pytest.fixture
def slicer(monkeypatch):
    fake = MagicMock()
    base = SimpleNamespace(
        **{
            f"ScriptedLoadableModule{part}": type("Base", (), {"__init__": lambda self, *_: None})
            for part in ("", "Widget", "Logic", "Test")
        }
    )
    fakes = {"slicer": fake, "slicer.ScriptedLoadableModule": base, "qt": MagicMock(QProcess=Process)}
    fakes |= {"ctk": MagicMock(), "vtk": SimpleNamespace(vtkMatrix4x4=Matrix), "SampleData": fake.SampleData}
    for name, stand_in in fakes.items():
        monkeypatch.setitem(sys.modules, name, stand_in)
    return fake


@pytest.fixture
def module(slicer, bundle_root):
    path = bundle_root / "slicer" / "BrainCTToMRI" / "BrainCTToMRI.py"
    spec = importlib.util.spec_from_file_location("BrainCTToMRI", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def started(slicer, module):
    """A translation that runs: the logic, the CT, the process, and what it has told at its end."""
    logic, ct, told = module.BrainCTToMRILogic(), Volume("CT 7", OBLIQUE), []
    assert logic.start(ct, ["--fast"], told.append)
    return SimpleNamespace(logic=logic, ct=ct, process=logic.process, told=told, folder=logic.folder)


def test_the_command_understands_what_is_started(module, started):
    assert started.process.arguments[:2] == ["-m", "brain_ct_to_mri"]
    typed = translate_parser(started.process.arguments[2:]).parse_args(started.process.arguments[2:])
    assert (typed.source, typed.output) == (str(started.folder / "ct.nii.gz"), str(started.folder / "out"))
    assert typed.fast
    for options in module.QUALITIES.values():
        translate_parser(["ct", "out", *options]).parse_args(["ct", "out", *options])


def test_the_result_lies_exactly_on_the_ct_and_is_laid_over_it(slicer, started):
    made = Volume("t1", OBLIQUE.astype(np.float32))
    slicer.util.loadVolume.return_value = made
    started.process.end(0)
    assert slicer.util.loadVolume.call_args.args[0] == str(started.folder / "out" / "ct_t1.nii.gz")
    np.testing.assert_array_equal(made.affine, OBLIQUE)
    assert made.transform_id == started.ct.GetTransformNodeID()
    slicer.util.setSliceViewerLayers.assert_called_once_with(
        background=started.ct, foreground=made, foregroundOpacity=0.5
    )
    assert started.told == [None]
    assert not started.folder.exists()


def test_a_result_that_lies_elsewhere_is_not_shown(slicer, started):
    slicer.util.loadVolume.return_value = Volume("t1", np.diag([-1, -1, 1, 1]) @ OBLIQUE)  # RAS taken for LPS
    started.process.end(0)
    assert "does not lie on the CT" in started.told[0]
    slicer.util.setSliceViewerLayers.assert_not_called()


def test_an_error_is_the_command_s_last_sentence(slicer, started):
    started.process.end(1, "INFO loading\nct.nii.gz is no head CT; give one.\n\n")
    assert started.told == ["ct.nii.gz is no head CT; give one."]
    assert not started.folder.exists()
    slicer.util.loadVolume.assert_not_called()


def test_one_at_a_time_and_what_is_cancelled_says_nothing(started):
    with pytest.raises(RuntimeError, match="is running"):
        started.logic.start(started.ct, [], print)
    started.logic.cancel()
    assert started.process.killed
    started.process.end(9)
    assert started.told == [None]
    assert started.logic.process is None


def test_what_cannot_be_translated_is_said_before_anything_is_installed(slicer, module, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    bent = Volume("CT", OBLIQUE)
    bent.transform = MagicMock()
    bent.transform.IsTransformToWorldLinear.return_value = False
    for ct, words in ((None, "There is no CT"), (bent, "a transform that bends it")):
        with pytest.raises(RuntimeError, match=words):
            module.BrainCTToMRILogic().start(ct, [], print)
    slicer.util.confirmOkCancelDisplay.assert_not_called()


def test_it_asks_before_it_installs(slicer, module, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    slicer.util.confirmOkCancelDisplay.return_value = False
    assert module.BrainCTToMRILogic().load_sample() is None
    slicer.util.pip_install.assert_not_called()
    slicer.util.confirmOkCancelDisplay.return_value = True
    assert module.BrainCTToMRILogic().install()
    slicer.util.pip_install.assert_called_once_with("brain-ct-to-mri")


def test_the_sample_is_that_of_the_package(slicer, module):
    module.register_sample_data()
    given = slicer.SampleData.SampleDataLogic.registerCustomSampleDataSource.call_args.kwargs
    given["customDownloader"](None)
    assert Path(slicer.util.loadVolume.call_args.args[0]).is_file()


def test_the_extension_has_what_the_index_asks_for(bundle_root):
    settings = (bundle_root / "slicer" / "CMakeLists.txt").read_text(encoding="utf-8")
    set_to = dict(re.findall(r'set\(EXTENSION_(\w+) "(.+)"\)', settings))
    assert {"HOMEPAGE", "CATEGORY", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS"} == {*set_to}
    assert "not for diagnosis" in set_to["DESCRIPTION"]
    for name in re.findall(r"add_subdirectory\((\w+)\)", settings):
        assert (bundle_root / "slicer" / name / "CMakeLists.txt").is_file()
        assert (bundle_root / "slicer" / name / f"{name}.py").is_file()
