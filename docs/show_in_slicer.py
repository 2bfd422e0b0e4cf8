"""Shows the synthetic T1 of a CT that is open in 3D Slicer, over that CT (docs/monai_label.md).

For Slicer's Python console, with the extension MONAI Label installed and the server running:

    exec(open("/path/to/brain_ct_to_mri/docs/show_in_slicer.py").read())
    t1 = show_t1()
"""

import os
import tempfile

import slicer
from MONAILabelLib import MONAILabelClient


def show_t1(server="http://127.0.0.1:8000", model="brain_ct_to_mri", ct=None, **settings):
    """Translate a volume and load the result as a scalar volume over it.

    Args:
        server: address of the MONAI Label server.
        model: name of the model on the server.
        ct: node of the volume; None takes the first one of the scene.
        settings: of the model, such as style_key="colin27" or num_inference_steps=10.

    Returns:
        the node of the synthetic T1.
    """
    ct = ct or slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "source.nii.gz")
        slicer.util.saveNode(ct, source)
        client = MONAILabelClient(server, tmpdir=folder)
        result, _ = client.infer(model, "", {**settings, "result_extension": ".nii.gz"}, file=source)
        t1 = slicer.util.loadVolume(result, {"name": ct.GetName() + " synthetic T1", "show": False})
    t1.SetAndObserveTransformNodeID(ct.GetTransformNodeID())  # it lies where the CT lies, whatever moves that
    slicer.util.setSliceViewerLayers(background=ct, foreground=t1, foregroundOpacity=0.5)
    return t1
