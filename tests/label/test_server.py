"""The bundle in a real MONAI Label server: the same image as the main job's, and clear words where there is none."""

import hashlib
import importlib.util
import runpy
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import MagicMock

import nibabel as nib
import numpy as np
import pytest

from tests.label.served import GRIDS, image_of, unpacked

pytestmark = pytest.mark.label

TINY = "tiny_ct_to_mri"


@pytest.fixture(scope="session")
def heads(tmp_path_factory, studies):
    """A folder of those studies that the tiny network translates."""
    folder = tmp_path_factory.mktemp("heads")
    for name in GRIDS:
        shutil.copy(studies / f"{name}.nii.gz", folder)
    return folder


@pytest.fixture(scope="session")
def expected(main_job, bundles, heads):
    """The main job's image of each head."""
    out = main_job(bundles[TINY], heads)
    return {name: nib.load(out / f"{name}_t1.nii.gz") for name in GRIDS}


def assert_same_image(made, wanted, source):
    """Values, type and place; and the wanted image is none of its own mirror images, which would pass else."""
    assert made.shape == wanted.shape == source.shape
    assert made.get_data_dtype() == np.float32
    values, others = made.get_fdata(), wanted.get_fdata()
    assert np.abs(values - others).max() <= 1e-3
    assert 0.2 < values.max() <= 1
    for axis in range(3):
        assert np.abs(np.flip(others, axis) - others).max() > 0.1
    for affine in (made.affine, made.get_sform(), made.get_qform()):
        np.testing.assert_allclose(affine, source.affine, atol=1e-4)
    assert int(made.header["sform_code"]) > 0
    assert int(made.header["qform_code"]) > 0


@pytest.mark.parametrize("name", GRIDS)
def test_is_the_main_job_s_image(server, studies, expected, name):
    made = image_of(server.infer(TINY, name))
    assert_same_image(made, expected[name], nib.load(studies / f"{name}.nii.gz"))


def test_shipped_weights_on_the_sample(server, studies, bundles, main_job):
    wanted = nib.load(main_job(bundles["brain_ct_to_mri"], studies / "head_ct.nii.gz") / "head_ct_t1.nii.gz")
    made = image_of(server.infer("brain_ct_to_mri", "head_ct"))
    assert_same_image(made, wanted, nib.load(studies / "head_ct.nii.gz"))


def test_flair_to_t1_is_a_second_model(server, studies, bundles, main_job):
    out = main_job(bundles["brain_ct_to_mri"], studies / "flair.nii.gz", configs=("flair_to_t1.json",))
    made = image_of(server.infer("brain_flair_to_t1", "flair"))
    assert_same_image(made, nib.load(out / "flair_t1.nii.gz"), nib.load(studies / "flair.nii.gz"))


@pytest.mark.shared_data
def test_a_tilted_dicom_series_is_the_main_job_s_image(server, bundles, main_job, shared_data):
    """What a server beside a PACS does with MONAI_LABEL_DICOMWEB_CONVERT_TO_NIFTI=false."""
    folder = shared_data / "ct_dicom_gantry_tilt"
    (wanted,) = main_job(bundles[TINY], folder).glob("*_t1.nii.gz")
    made, wanted = image_of(server.infer(TINY, str(folder))), nib.load(wanted)
    assert_same_image(made, wanted, wanted)


def test_an_uploaded_image_leaves_no_file_behind(server, studies, expected, tmp_path):
    path = shutil.copy(studies / "oblique.nii.gz", tmp_path / "anna.meier.nii.gz")
    before = sorted(server.temporary.iterdir())
    made = image_of(server.infer(TINY, file=path))
    assert_same_image(made, expected["oblique"], nib.load(path))
    # the server removes them after it has answered
    end = time.monotonic() + 20
    while (left := sorted(server.temporary.iterdir())) != before and time.monotonic() < end:
        time.sleep(0.1)
    assert left == before


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("text", "text.nii.gz cannot be read"),
        ("truncated", "truncated.nii.gz cannot be read"),
        ("series", "is not one 3D volume"),
        ("mri", "Hounsfield"),
        ("nobody", "no image of that name"),
    ],
)
def test_a_bad_image_is_refused_in_a_sentence_and_the_next_one_is_made(server, expected, image, words):
    response = server.infer(TINY, image)
    assert response.status_code == 422
    assert words in response.json()["detail"]
    assert "Traceback" not in response.text
    np.testing.assert_allclose(image_of(server.infer(TINY, "ras")).get_fdata(), expected["ras"].get_fdata(), atol=1e-3)


def test_a_bad_upload_is_refused_in_a_sentence(server, studies):
    response = server.infer(TINY, file=studies / "text.nii.gz")
    assert response.status_code == 422
    assert "cannot be read" in response.json()["detail"]


def test_requests_change_style_key_and_steps(server, heads, bundles, main_job, expected):
    options = ("--style_key", "other", "--num_inference_steps", "2", "--sampler", "mean_path")
    wanted = nib.load(main_job(bundles[TINY], heads / "las.nii.gz", *options) / "las_t1.nii.gz").get_fdata()
    # OHIF sends numbers as text
    for steps in (2, "2"):
        made = server.infer(TINY, "las", style_key="other", num_inference_steps=steps, sampler="mean_path")
        assert np.abs(image_of(made).get_fdata() - wanted).max() <= 1e-3
    assert np.abs(expected["las"].get_fdata() - wanted).max() > 0.01
    for params in ({"style_key": "other"}, {"num_inference_steps": 2}, {"num_corrections": 1, "step_size": 0.1}):
        changed = image_of(server.infer(TINY, "las", **params)).get_fdata()
        # drawn weights heed the style key little: 2e-4 in float32
        assert np.abs(changed - expected["las"].get_fdata()).max() > 1e-4
    # and holds for that request alone
    assert np.abs(image_of(server.infer(TINY, "las")).get_fdata() - expected["las"].get_fdata()).max() <= 1e-3


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"style_key": "nobody"}, "There is no style key nobody; use one of average, other"),
        ({"style_key": "$__import__('pathlib').Path('evaluated').touch()"}, "There is no style key $"),
        ({"num_inference_steps": "many"}, "num_inference_steps is 'many'; it has to be a whole number"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5; it has to be a whole number"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0; it must be from 1 to"),
        ({"sampler": "guess"}, "'guess' is not a valid"),
        ({"step_size": "long"}, "a positive number"),
        ({"slab_stride": 4}, "slab_stride is 4"),
        ({"num_inference_steps": 1000}, "more than 100 evaluations"),
        ({"device": "tpu"}, "There is no device tpu"),
        ({"device": "%/none"}, "There is no device %/none"),
        ({"device": "$__import__('pathlib').Path('evaluated').touch()"}, "There is no device $"),
        ({"style_key": "%/none"}, "There is no style key %/none"),
        ({"model_filename": "flair_to_t1.pt"}, "only model.pt fits"),
        ({"result_dtype": "uint8", "result_extension": ".nrrd"}, "an image from 0 to 1 and no label map"),
    ],
)
def test_a_bad_setting_is_refused_in_a_sentence_and_harms_no_later_request(server, expected, params, words):
    response = server.infer(TINY, "ras", **params)
    assert response.status_code == 422
    assert words in response.json()["detail"]
    assert not (server.app.parent / "evaluated").exists()
    np.testing.assert_allclose(image_of(server.infer(TINY, "ras")).get_fdata(), expected["ras"].get_fdata(), atol=1e-3)


def test_requests_at_once_are_those_one_after_the_other(server):
    asked = [
        ("las", {"style_key": "other"}),
        ("oblique", {"num_inference_steps": 2}),
        ("anisotropic", {}),
        ("las", {"num_corrections": 1}),
    ]
    alone = [image_of(server.infer(TINY, name, **params)) for name, params in asked]
    with ThreadPoolExecutor(len(asked)) as threads:
        responses = [threads.submit(server.infer, TINY, name, **params) for name, params in asked]
        together = [image_of(response.result()) for response in responses]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.get_fdata(), other.get_fdata())
        np.testing.assert_array_equal(one.affine, other.affine)


def test_info_shows_the_model(server, bundle_root):
    import requests

    info = server.info()
    model = info["models"]["brain_ct_to_mri"]
    assert model["type"] == "segmentation"  # the type of every bundle whose name says nothing else
    assert model["labels"] == {}  # it is an image and has none
    assert info["labels"] == []
    assert "T1" in model["description"]
    assert "CT" in model["description"]
    assert model["config"]["model_filename"][0] == "model.pt"
    weights = hashlib.sha256((bundle_root / "models" / "model.pt").read_bytes()).hexdigest()
    assert (
        requests.get(f"{server.url}/model/info/brain_ct_to_mri", timeout=60).json()["checksum"] == f"SHA256:{weights}"
    )


@pytest.fixture(scope="session")
def slicer_client():
    """The module of the stock 3D Slicer plugin that talks to the server."""
    path = Path(sys.prefix) / "monailabel" / "plugins" / "slicer" / "MONAILabel" / "MONAILabelLib" / "client.py"
    spec = importlib.util.spec_from_file_location("slicer_client", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_for_slicer_shows_the_image(server, studies, expected, slicer_client, bundle_root, monkeypatch):
    """With Slicer's own client; the scene and the views are a stand-in."""
    ct, shown = MagicMock(), MagicMock()
    ct.GetName.return_value = "CT"
    slicer = MagicMock()
    slicer.mrmlScene.GetFirstNodeByClass.return_value = ct
    slicer.util.saveNode = lambda node, path: shutil.copy(studies / "las.nii.gz", path)
    loaded = []
    # read at once: the file goes
    slicer.util.loadVolume = lambda path, properties: loaded.append(nib.Nifti1Image.from_bytes(unpacked(path))) or shown
    monkeypatch.setitem(sys.modules, "slicer", slicer)
    monkeypatch.setitem(sys.modules, "MONAILabelLib", slicer_client)

    script = runpy.run_path(str(bundle_root / "docs" / "show_in_slicer.py"))
    assert script["show_t1"](server.url, TINY) is shown
    assert_same_image(loaded[0], expected["las"], nib.load(studies / "las.nii.gz"))
    slicer.util.setSliceViewerLayers.assert_called_once_with(background=ct, foreground=shown, foregroundOpacity=0.5)
    script["show_t1"](server.url, TINY, ct, style_key="other")
    assert np.abs(loaded[1].get_fdata() - expected["las"].get_fdata()).max() > 1e-4


def test_slicer_s_segmentation_button_says_why_it_cannot(server, slicer_client, tmp_path):
    client = slicer_client.MONAILabelClient(server.url, tmpdir=str(tmp_path))
    with pytest.raises(slicer_client.MONAILabelClientException) as caught:
        client.infer(TINY, "las", {"result_extension": ".nrrd", "result_dtype": "uint8"})
    assert "no label map" in caught.value.msg
    assert "docs/monai_label.md" in caught.value.msg
