"""Scans in S3, here moto's server of it: they are listed and brought as from a folder, and what fails is told.

In the environment that docs/extending.md tells for Ray: python -m pytest -n 0 -m ray tests/cluster/test_s3.py
"""

import socket

import fsspec
import pytest

from scripts.cluster.store import Store, StoredCases
from scripts.data.datalists import inference_datalist
from scripts.errors import CaseError
from tests.trees import write_cube

s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

pytestmark = pytest.mark.ray
NAMES = ["M\u00fcller A/k\u00f6pf 1.nii.gz", "b.nii"]


@pytest.fixture(scope="module")
def endpoint():
    server = moto_server.ThreadedMotoServer(port=0)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(endpoint, tmp_path, monkeypatch):
    """Two volumes below s3://bucket/scans, and the folder they were copied from."""
    use_endpoint(endpoint, monkeypatch)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of_the_test")
    for name in NAMES:
        write_cube(tmp_path / "source" / name)
    files = s3fs.S3FileSystem()
    files.mkdir("bucket")
    files.put(f"{tmp_path / 'source'}/", "bucket/scans/", recursive=True)
    yield files
    files.rm("bucket", recursive=True)


def use_endpoint(url, monkeypatch):
    """What FSSPEC_S3_ENDPOINT_URL does before fsspec is imported."""
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": url})
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def listed(bucket, tmp_path):
    (tmp_path / "listed").mkdir()
    store = Store("s3://bucket/scans", str(tmp_path / "listed"))
    return store, inference_datalist(store.list())


def test_a_bucket_is_listed_and_brought_as_its_folder_is(listed, tmp_path):
    store, items = listed
    assert [item["case"] for item in items] == [item["case"] for item in inference_datalist(tmp_path / "source")]
    here = StoredCases(store)
    for item, name in zip(items, NAMES, strict=True):
        with here.at_hand(item) as brought, open(brought["image"], "rb") as file:
            assert brought["image"].endswith(name)
            assert file.read() == (tmp_path / "source" / name).read_bytes()
        assert not here.folder.exists()


def test_an_object_is_brought_as_it_is_now(bucket, listed):
    """A worker keeps its connection; neither an old content nor a length of before may come from that."""
    store, (_, item) = listed
    here = StoredCases(store)
    for content in (b"longer than the one that follows", b"short"):
        bucket.pipe_file(f"bucket/scans/{NAMES[1]}", content)
        with here.at_hand(item) as brought, open(brought["image"], "rb") as file:
            assert file.read() == content
    bucket.rm_file(f"bucket/scans/{NAMES[1]}")
    with here.at_hand(item) as brought:
        assert brought["failure"].startswith("b.nii cannot be downloaded (FileNotFoundError); check that it is there")


def test_a_bucket_that_is_not_there_is_told(bucket, tmp_path):
    with pytest.raises(CaseError, match=r"^s3://other/scans cannot be listed \(FileNotFoundError\); check the URL"):
        Store("s3://other/scans", str(tmp_path)).list()


def test_an_endpoint_that_does_not_answer_is_told(bucket, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        use_endpoint(f"http://127.0.0.1:{free.getsockname()[1]}", monkeypatch)
        with pytest.raises(CaseError, match=r"^s3://bucket/scans cannot be listed \(EndpointConnectionError\)"):
            Store("s3://bucket/scans", str(tmp_path)).list()
