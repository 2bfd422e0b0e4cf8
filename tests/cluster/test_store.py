"""Scans in a store, here one in memory: listed like a folder, brought whole, and removed."""

import errno
import json
import os
import sys

import fsspec
import nibabel as nib
import numpy as np
import pytest

from scripts.cluster.command import Cohort
from scripts.cluster.store import Store, StoredCases, is_store
from scripts.data.datalists import inference_datalist
from scripts.errors import CaseError, MachineError
from scripts.workflow import started_workflow
from tests.trees import write_cube


@pytest.fixture
def stored(tmp_path):
    """Puts files into a store; gives it and the folder they were copied from."""
    memory = fsspec.filesystem("memory")
    folder = tmp_path / "source"
    write_cube(folder / "a" / "head.nii.gz")
    write_cube(folder / "b.nii")
    image = nib.Nifti1Pair(np.ones((4, 4, 4), np.int16), np.eye(4))
    nib.save(image, folder / "pair.img")
    (folder / "notes.txt").write_text("no volume")

    def put():
        memory.put(f"{folder}/", "/bucket/scans", recursive=True)
        (listed := tmp_path / "listed").mkdir(exist_ok=True)
        return Store("memory://bucket/scans", str(listed)), folder

    yield put
    memory.rm("/bucket", recursive=True)


def images_of(items, folder):
    return [(item["case"], item["image"].removeprefix(str(folder))) for item in items]


def test_a_store_is_listed_as_its_folder_would_be(stored):
    store, folder = stored()
    listed = inference_datalist(store.list())
    assert [item["case"] for item in listed] == ["a_head", "b", "pair"]
    assert images_of(listed, store.listed_at) == images_of(inference_datalist(folder), folder)


def test_a_case_is_brought_whole_for_as_long_as_it_is_needed(stored, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store, _ = stored()
    items = inference_datalist(store.list())
    here = StoredCases(Store(store.url, store.listed_at))
    for item, names in zip(items, (["head.nii.gz"], ["b.nii"], ["pair.hdr", "pair.img"]), strict=True):
        with here.at_hand(item) as brought:
            image = nib.load(brought["image"])
            assert image.get_fdata().sum() == 64
            assert sorted(path.name for path in here.folder.rglob("*.*")) == names
            assert brought["image"] == item["image"].replace(store.listed_at, str(here.dataset_dir))
        assert not here.folder.exists()


def test_what_is_gone_fails_alone_and_leaves_nothing(stored):
    store, _ = stored()
    item = inference_datalist(store.list())[1]
    fsspec.filesystem("memory").rm("/bucket/scans/b.nii")
    here = StoredCases(store)
    with here.at_hand(item) as brought:
        assert brought["failure"] == (
            "b.nii cannot be downloaded (FileNotFoundError); check that it is there and your access."
        )
    assert not here.folder.exists()


def test_one_volume_by_its_url(stored):
    store, _ = stored()
    one = Store(f"{store.url}/b.nii", store.listed_at)
    (item,) = inference_datalist(one.list())
    assert item["case"] == "b"
    with StoredCases(one).at_hand(item) as brought:
        assert nib.load(brought["image"]).shape == (4, 4, 4)


def test_what_cannot_be_listed_is_told(stored, tmp_path):
    _, folder = stored()
    with pytest.raises(CaseError, match="There is nothing at memory://nowhere; check the URL"):
        Store("memory://nowhere", str(tmp_path)).list()
    with pytest.raises(CaseError, match="nosuch://x cannot be opened"):
        Store("nosuch://x", str(tmp_path)).list()
    (folder / "1.DCM").write_bytes(b"")
    with pytest.raises(CaseError, match="holds DICOM files, which are not read from a store"):
        stored()[0].list()


def test_dicom_is_known_by_its_content_where_its_name_does_not_tell(stored):
    _, folder = stored()
    (folder / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(9))
    (folder / "short").write_bytes(b"DICM")
    with pytest.raises(CaseError, match="holds DICOM files, which are not read from a store"):
        stored()[0].list()


def test_a_full_disk_of_temporary_files_is_no_fault_of_the_case(stored, monkeypatch):
    store, _ = stored()
    item = inference_datalist(store.list())[1]
    here = StoredCases(store)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Store, "bring", full)
    with (
        pytest.raises(MachineError, match=r"The disk of the temporary files \(.*TMPDIR.*\) is full"),
        here.at_hand(item),
    ):
        pass


def test_workers_are_told_the_window_of_a_prepared_set(stored, bundle_root, monkeypatch, tmp_path):
    """They have no list of their own to read it from."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    _, folder = stored()
    listed = {
        "ct_window": [0, 80],
        "training": [],
        "validation": [],
        "test": [{"subject": "b", "source": "b.nii", "target": "b.nii"}],
    }
    (folder / "datalist.json").write_text(json.dumps(listed))
    store, _ = stored()
    options = {"config_file": str(bundle_root / "configs" / "inference.json"), "output_dir": str(tmp_path / "out")}
    words = Cohort({**options, "dataset_dir": str(store.list())}, store)._of_worker(tmp_path)[0]
    workflow = started_workflow([*words, f"--dataset_dir={tmp_path}"])
    assert workflow.parser.get_parsed_content("ct_window") == [0, 80]


def test_a_path_is_no_store():
    assert is_store("s3://bucket/scans")
    assert not any(is_store(path) for path in ("", "scans", "/data/a:b", "C:\\scans"))
