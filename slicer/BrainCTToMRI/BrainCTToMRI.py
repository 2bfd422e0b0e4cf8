"""A synthetic T1 of a brain CT in 3D Slicer, by the package brain-ct-to-mri beside it (docs/slicer.md)."""

import importlib
import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

import ctk
import qt
import slicer
import vtk
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

PACKAGE = "brain-ct-to-mri"
TITLE = "Brain CT to MRI"
QUALITIES = {"usual": [], "fast, softer": ["--fast"], "best, twice the time": ["--best"]}
"""What the panel offers -> options of the command."""


class BrainCTToMRI(ScriptedLoadableModule):
    """What Slicer's list of modules shows."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = TITLE
        parent.categories = ["Filtering"]
        parent.dependencies = []
        parent.contributors = ["The brain_ct_to_mri developers"]
        parent.helpText = "Makes a synthetic T1 of a brain CT. For research and demonstration, not for diagnosis."
        parent.acknowledgementText = "The method is by Choo et al., MICCAI 2024."
        slicer.app.connect("startupCompleted()", register_sample_data)


def register_sample_data():
    """Put the package's sample, a template of a head CT, into the module Sample Data."""
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category=TITLE, sampleName="HeadCT", customDownloader=lambda source: BrainCTToMRILogic().load_sample()
    )


class BrainCTToMRIWidget(ScriptedLoadableModuleWidget):
    """The panel: a CT, a quality, and the buttons."""

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        self.logic = BrainCTToMRILogic()
        box = ctk.ctkCollapsibleButton()
        box.text = TITLE
        self.layout.addWidget(box)
        form = qt.QFormLayout(box)
        self.selector = slicer.qMRMLNodeComboBox()
        self.selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        self.selector.addEnabled = self.selector.removeEnabled = False
        self.selector.setMRMLScene(slicer.mrmlScene)
        form.addRow("CT:", self.selector)
        self.quality = qt.QComboBox()
        self.quality.addItems(list(QUALITIES))
        form.addRow("Quality:", self.quality)
        self.buttons = {}
        for text, pressed in (
            ("Load sample", self.load_sample),
            ("Translate", self.translate),
            ("Cancel", self.cancel),
        ):
            self.buttons[text] = qt.QPushButton(text)
            self.buttons[text].connect("clicked(bool)", pressed)
            form.addRow(self.buttons[text])
        self.status = qt.QLabel("Synthetic image: not for diagnosis.")
        form.addRow(self.status)
        self.layout.addStretch(1)
        self._show_running(False)

    def load_sample(self, *_):
        self._guarded(self.logic.load_sample)

    def translate(self, *_):
        options = QUALITIES[self.quality.currentText]
        if self._guarded(lambda: self.logic.start(self.selector.currentNode(), options, self._finished)):
            self._show_running(True)

    def cancel(self, *_):
        self.logic.cancel()

    def cleanup(self):
        self.logic.cancel()

    def _finished(self, error):
        self._show_running(False)
        if error:
            slicer.util.errorDisplay(error, windowTitle=TITLE)

    def _guarded(self, action):
        try:
            return action()
        except (RuntimeError, OSError) as error:
            slicer.util.errorDisplay(str(error), windowTitle=TITLE)
            return None

    def _show_running(self, running):
        self.buttons["Translate"].enabled = not running
        self.buttons["Cancel"].enabled = running
        self.status.text = "Translating; Slicer can be used meanwhile." if running else "Not for diagnosis."


class BrainCTToMRILogic(ScriptedLoadableModuleLogic):
    """Installs the package, runs its command beside Slicer, and loads what it writes."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        self.process = None

    def install(self):
        """Install the package where it is not there, after asking; whether it is there now."""
        if importlib.util.find_spec("brain_ct_to_mri") is not None:
            return True
        question = f"{TITLE} needs the Python package {PACKAGE} (with PyTorch up to 3 GB). Download and install it?"
        if not slicer.util.confirmOkCancelDisplay(question, windowTitle=TITLE):
            return False
        try:
            slicer.util.pip_install(PACKAGE)
        except Exception as error:
            raise RuntimeError(f"{PACKAGE} could not be installed; see the log for what pip says.") from error
        importlib.invalidate_caches()
        return True

    def load_sample(self):
        """Load the sample of the package; its node, or None where the package is not wanted."""
        if not self.install():
            return None
        from brain_ct_to_mri.info import bundle_root

        return slicer.util.loadVolume(str(bundle_root() / "docs" / "sample" / "head_ct.nii.gz"))

    def start(self, ct, options, finished):
        """Translate a volume in the background.

        Args:
            ct: node of the CT, in HU.
            options: further options of the command.
            finished: called at the end with one sentence where it failed, else with None.

        Returns:
            whether it was started.

        Raises:
            RuntimeError: there is nothing that could be translated, or a translation runs already.
        """
        if self.process is not None:
            raise RuntimeError("A translation is running; wait for it or cancel it.")
        if ct is None or ct.GetImageData() is None:
            raise RuntimeError("There is no CT; load one or press Load sample.")
        transform = ct.GetParentTransformNode()
        if transform is not None and not transform.IsTransformToWorldLinear():
            raise RuntimeError("The CT has a transform that bends it (gantry tilt?); harden it in Transforms.")
        if not self.install():
            return False
        self.folder = Path(tempfile.mkdtemp())
        self.ct, self.finished, self.cancelled = ct, finished, False
        source = self.folder / "ct.nii.gz"
        slicer.util.saveNode(ct, str(source))
        self.process = qt.QProcess()
        self.process.setProcessChannelMode(qt.QProcess.MergedChannels)
        self.process.connect("finished(int,QProcess::ExitStatus)", self._ended)
        python = shutil.which("PythonSlicer") or sys.executable
        self.process.start(python, ["-m", "brain_ct_to_mri", str(source), str(self.folder / "out"), *options])
        return True

    def cancel(self):
        """End a translation that runs; nothing is shown of it."""
        if self.process is not None:
            self.cancelled = True
            self.process.kill()

    def _ended(self, code, status=None):
        lines = self.process.readAllStandardOutput().data().decode("utf-8", "replace").split("\n")
        self.process = None
        error = None
        try:
            if self.cancelled:
                pass
            elif code:
                error = next((line.strip() for line in reversed(lines) if line.strip()), "The translation was ended.")
            else:
                self._show(self.folder / "out" / "ct_t1.nii.gz")
        except RuntimeError as failure:
            error = str(failure)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.finished(error)

    def _show(self, path):
        """Load the result exactly where the CT lies, and lay it over it."""
        name = f"{self.ct.GetName()} synthetic T1"
        t1 = slicer.util.loadVolume(str(path), {"name": name, "show": False})
        place, made = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
        self.ct.GetIJKToRASMatrix(place)
        t1.GetIJKToRASMatrix(made)
        elements = [(row, column) for row in range(4) for column in range(4)]
        if any(abs(place.GetElement(*one) - made.GetElement(*one)) > 1e-3 for one in elements):
            slicer.mrmlScene.RemoveNode(t1)
            raise RuntimeError("The result does not lie on the CT and is not shown; save the CT anew and load that.")
        t1.SetIJKToRASMatrix(place)  # a NIfTI file rounds it to float32
        t1.SetAndObserveTransformNodeID(self.ct.GetTransformNodeID())
        slicer.util.setSliceViewerLayers(background=self.ct, foreground=t1, foregroundOpacity=0.5)


class BrainCTToMRITest(ScriptedLoadableModuleTest):
    """Slicer's own test of the module; it installs nothing."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        try:
            BrainCTToMRILogic().start(None, [], print)
        except RuntimeError as error:
            self.assertIn("There is no CT", str(error))  # noqa: PT009 (Slicer runs it, not pytest)
        else:
            self.fail("A translation of nothing was started.")
