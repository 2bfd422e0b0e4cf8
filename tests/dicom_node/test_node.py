"""The DICOM node against real and simulated peers; killed at every stage; and what it says of patients: nothing."""

import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import pytest

from scripts.dicom_node.arrivals import Arrivals
from scripts.dicom_node.instance import read_uids
from scripts.dicom_node.job import MainJob
from scripts.dicom_node.receiver import Limits
from scripts.dicom_node.sender import FolderDelivery, PeerDelivery, Sender, UnreachableError
from scripts.dicom_node.serve import parsed_peer, serve_dicom
from scripts.dicom_node.spool import Spool, digest
from scripts.errors import CaseError
from scripts.files import temporary_name
from tests.killing import random_waits, started
from tests.phantoms import TINY_NETWORK, head_hu
from tests.trees import write_dicom_series

pydicom = pytest.importorskip("pydicom")
pynetdicom = pytest.importorskip("pynetdicom")

from pynetdicom import AE, build_context, evt  # noqa: E402
from pynetdicom.sop_class import CTImageStorage, MRImageStorage  # noqa: E402

from tests.dicom_node.fake_node import TITLE, Copier, FakeNode, serve  # noqa: E402

STUDY_UID = "1.2.826.0.1.3680043.8.498.777"
STUDY = digest(STUDY_UID)
NAME, NUMBER = "Doe^Jane", "PX4711"  # as write_dicom_series has them


def until(true, seconds=20.0):
    """Wait for something to become true; gives what it became."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return value


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    """Eight slices of a CT."""
    folder = tmp_path_factory.mktemp("ct")
    write_dicom_series(folder, range(0, 32, 4), voxels=16, spacing=12.0, study=STUDY_UID, suffix=".dcm")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def later(tmp_path_factory):
    """Three slices of another series of the same study."""
    folder = tmp_path_factory.mktemp("later")
    write_dicom_series(folder, range(0, 12, 4), voxels=16, spacing=12.0, study=STUDY_UID, number=2, suffix=".dcm")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Two slices of another study."""
    folder = tmp_path_factory.mktemp("other")
    write_dicom_series(folder, [0, 4], voxels=16, spacing=12.0, number=3, suffix=".dcm")
    return sorted(folder.iterdir())


@pytest.fixture
def node(tmp_path):
    """Start nodes in this process; all are stopped in the end."""
    running = []

    def start(deliver=tmp_path / "out", **options):
        one = FakeNode(tmp_path / "spool", deliver, **options)
        thread = threading.Thread(target=one.run)
        thread.start()
        running.append((one, thread))
        return one

    def stop():
        while running:
            one, thread = running.pop()
            one.stop.set()
            thread.join()

    start.stop = stop
    yield start
    stop()


@contextmanager
def associated(port, calling="CT1", called=TITLE):
    """An association with the node that proposes CT and MR images."""
    ae = AE(calling)
    contexts = [build_context(uid) for uid in (CTImageStorage, MRImageStorage)]
    association = ae.associate("127.0.0.1", port, contexts=contexts, ae_title=called)
    try:
        yield association
    finally:
        association.release()


def send(port, files):
    """Send files through one association; gives the statuses."""
    with associated(port) as association:
        return [association.send_c_store(pydicom.dcmread(file)).Status for file in files]


class Archive:
    """A peer that takes instances: bytes of each data set by SOP Instance UID, and how often each came."""

    def __init__(self, port=0, status=0x0000, seconds=0.0):
        self.status, self.seconds = status, seconds
        self.instances, self.came = {}, []
        ae = AE("ARCHIVE")
        ae.add_supported_context(MRImageStorage)
        self.server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, self.store)])
        self.port = self.server.server_address[1]

    def store(self, event):
        time.sleep(self.seconds)
        uid = event.request.AffectedSOPInstanceUID
        self.came.append(uid)
        if self.status < 0xA000 or self.status >= 0xD000 or self.status >> 12 == 0xB:
            self.instances[uid] = event.encoded_dataset()
        return self.status

    def close(self):
        self.server.shutdown()

    @property
    def peer(self):
        return ("ARCHIVE", "127.0.0.1", self.port)


@pytest.fixture
def archive():
    """Start archives; all are closed in the end."""
    running = []

    def start(**options):
        running.append(Archive(**options))
        return running[-1]

    yield start
    for one in running:
        if one.server in one.server.ae._servers:
            one.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def delivered(folder):
    """Files of the one series in a folder of results, [] while there is none."""
    return sorted(folder.glob("ct_*_t1_dicom/*.dcm"))


def idle(spool):
    """Whether nothing is left to be done."""
    return not any(any((spool / name).iterdir()) for name in ("incoming", "received", "working", "outgoing"))


# ---------------------------------------------------------------------------------------------- receiving


def test_a_study_becomes_a_series_in_a_folder(node, tmp_path, ct):
    one = node()
    assert send(one.port, ct) == [0] * 8
    until(lambda: idle(tmp_path / "spool"))
    files = delivered(tmp_path / "out")
    assert len(files) == 8
    assert {pydicom.dcmread(file).Modality for file in files} == {"MR"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ct_0123_t1_dicom"]  # nothing temporary


def test_what_is_stored_is_what_was_sent_for_the_owner_alone(node, tmp_path, ct):
    one = node(quiet_s=60)
    send(one.port, [*ct, *ct])
    folder = one.spool.received(STUDY)
    files = sorted(folder.iterdir())
    assert {file.name for file in files} == {f"{digest(read_uids(file).instance_uid, 32)}.dcm" for file in ct}
    for sent in ct:
        header = pydicom.dcmread(sent)
        stored = pydicom.dcmread(folder / f"{digest(header.SOPInstanceUID, 32)}.dcm")
        assert stored == header
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    for path in (tmp_path / "spool", *(path for path in (tmp_path / "spool").rglob("*") if path.is_dir())):
        assert path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("calling", "called"), [("STRANGER", TITLE), ("CT1", "ANYBODY"), ("ct1", TITLE)])
def test_other_titles_are_rejected(node, calling, called):
    with associated(node().port, calling, called) as association:
        assert association.is_rejected


def test_an_instance_without_uids_is_refused(node, ct):
    one, header = node(quiet_s=60), pydicom.dcmread(ct[0])
    with associated(one.port) as association:
        del header.StudyInstanceUID
        assert association.send_c_store(header).Status == 0xC000
        header.StudyInstanceUID = NAME
        assert association.send_c_store(header).Status == 0xC000
        header.StudyInstanceUID = STUDY_UID
        assert association.send_c_store(header).Status == 0x0000
    assert len(list(one.spool.received(STUDY).iterdir())) == 1


def test_a_full_disk_refuses_and_stores_nothing(node, tmp_path, ct):
    one = node(limits=Limits(free_bytes=2**60))
    assert send(one.port, ct[:2]) == [0xA700, 0xA700]
    assert idle(tmp_path / "spool")


def test_a_too_large_instance_ends_the_association_and_no_other(node, tmp_path, ct):
    one, large = node(limits=Limits(free_bytes=0, instance_bytes=200_000)), pydicom.dcmread(ct[0])
    large.Rows = large.Columns = 400
    large.PixelData = bytes(2 * 400 * 400)
    with associated(one.port) as association:
        assert "Status" not in association.send_c_store(large)
        until(lambda: association.is_aborted)
    assert idle(tmp_path / "spool")
    assert send(one.port, ct) == [0] * 8  # each is small, all together are not


def test_an_endless_pdu_is_not_waited_for(node, ct):
    one = node(quiet_s=60)
    with socket.create_connection(("127.0.0.1", one.port), timeout=10) as connection:
        connection.sendall(b"\1\0" + (2**32 - 1).to_bytes(4, "big"))
        assert connection.recv(16) == b""  # closed, though not all has come
    assert send(one.port, ct[:1]) == [0]


def test_a_sender_that_dies_within_a_pdu_does_not_hold_up_its_study(node, tmp_path, ct):
    one = node(limits=Limits(free_bytes=0, idle_s=0.5))
    with associated(one.port) as association:
        assert association.send_c_store(pydicom.dcmread(ct[0])).Status == 0
        association.dul.socket.socket.sendall(b"\4\0\0\1\0\0half of it")
        until(lambda: one.translate.translated)
    until(lambda: idle(tmp_path / "spool"))


# ------------------------------------------------------------------------------- when a study is finished


class Open:
    """An association."""

    alive = True

    def is_alive(self):
        return self.alive


def test_a_study_is_finished_when_nothing_came_and_nobody_sends_it():
    now, sender = [0.0], Open()
    arrivals = Arrivals(30, lambda: now[0])
    arrivals.note("a")
    now[0] = 20.0
    arrivals.note("b", sender)
    assert arrivals.take_finished() is None
    now[0] = 31.0
    assert arrivals.take_finished() == "a"
    now[0] = 90.0
    assert arrivals.take_finished() is None  # b's association is open
    arrivals.note("c", sender)
    assert arrivals.take_finished() == "b"  # and has gone on to another study
    now[0] = 200.0
    assert arrivals.take_finished() is None
    sender.alive = False
    assert arrivals.take_finished() == "c"
    assert arrivals.take_finished() is None


def test_two_associations_one_study(node, tmp_path, ct):
    one = node(quiet_s=0.8)
    send(one.port, ct[:3])
    send(one.port, ct[3:])
    until(lambda: idle(tmp_path / "spool"))
    assert one.translate.translated == [8]


def test_a_slow_sender_is_waited_for(node, tmp_path, ct):
    one = node(quiet_s=0.2)
    with associated(one.port) as association:
        association.send_c_store(pydicom.dcmread(ct[0]))
        time.sleep(0.6)
        assert one.translate.translated == []
        association.send_c_store(pydicom.dcmread(ct[1]))
    until(lambda: idle(tmp_path / "spool"))
    assert one.translate.translated == [2]


# ----------------------------------------------------------------------------------------------- translating


def test_what_comes_during_a_translation_is_translated_with_the_rest(node, tmp_path, ct, later):
    one = node(seconds=1.0)
    send(one.port, ct)
    until(lambda: one.translate.translated)
    send(one.port, later)
    one.translate.seconds = 0.0  # of the next one
    until(lambda: idle(tmp_path / "spool"))
    assert one.translate.translated == [8, 11]
    assert len(delivered(tmp_path / "out")) == 11


def test_what_comes_later_is_translated_with_the_rest_where_that_was_kept(node, tmp_path, ct, later):
    one = node(keep_received=True)
    send(one.port, ct)
    until(lambda: delivered(tmp_path / "out"))
    send(one.port, later)
    until(lambda: len(delivered(tmp_path / "out")) == 11)
    assert one.translate.translated == [8, 11]


def test_a_part_of_a_study_that_was_removed_is_not_translated_alone(node, tmp_path, ct, later):
    one = node()
    send(one.port, ct)
    until(lambda: idle(tmp_path / "spool"))
    send(one.port, later)
    failure = until(lambda: list((tmp_path / "spool" / "failed").iterdir()))[0]
    assert (
        "8 of its instances had been removed; send the whole study again." in json.loads(failure.read_text())["reason"]
    )
    assert len(delivered(tmp_path / "out")) == 8
    send(one.port, ct)
    until(lambda: idle(tmp_path / "spool"))
    assert len(delivered(tmp_path / "out")) == 11
    assert not failure.exists()


def test_a_study_that_fails_is_told_and_tried_again_when_sent_again(node, tmp_path, other):
    mr = tmp_path / "mr"
    write_dicom_series(mr, [0, 4], voxels=16, study=STUDY_UID, modality="MR", suffix=".dcm")
    one = node()
    send(one.port, sorted(mr.iterdir()))
    failure = tmp_path / "spool" / "failed" / f"{STUDY}.json"
    until(failure.exists)
    told = json.loads(failure.read_text())
    assert (told["reason"], told["study_uid"], told["instances"]) == ("There is no CT series; send one.", STUDY_UID, 2)
    send(one.port, other)
    until(lambda: delivered(tmp_path / "out"))  # the next one goes on
    assert one.translate.translated == [2, 2]
    send(one.port, sorted(mr.iterdir()))
    until(lambda: one.translate.translated == [2, 2, 2])
    node.stop()
    again = node()
    until(lambda: again.translate.translated == [2])


def test_a_failure_of_what_came_again_meanwhile_is_none(node, tmp_path, caplog):
    """The main job refuses files that change while it works."""
    caplog.set_level(logging.INFO)
    mr = tmp_path / "mr"
    write_dicom_series(mr, [0, 4], voxels=16, study=STUDY_UID, modality="MR", suffix=".dcm")
    one = node(seconds=2.0)
    send(one.port, sorted(mr.iterdir()))
    until(lambda: one.translate.translated)
    send(one.port, sorted(mr.iterdir()))
    one.translate.seconds = 0.0  # of the next one
    until(lambda: f"Study {STUDY} failed: " in caplog.text)
    assert (tmp_path / "spool" / "failed" / f"{STUDY}.json").is_file()
    assert one.translate.translated == [2, 2]
    assert caplog.text.count("more of it came meanwhile; it will be translated again") == 1
    assert caplog.text.count(f"Study {STUDY} failed: ") == 1


def test_own_results_that_come_back_start_nothing(node, tmp_path, ct):
    """An archive may pass on what it gets to where CT studies go."""
    one = node(keep_received=True)
    send(one.port, ct)
    files = until(lambda: delivered(tmp_path / "out"))
    assert send(one.port, files) == [0] * 8
    time.sleep(0.7)
    assert one.translate.translated == [8]
    assert len(list(one.spool.received(STUDY).iterdir())) == 8


def of_patient(files, patient, **tags):
    """The data sets of files under another patient."""
    made = []
    for file in files:
        header = pydicom.dcmread(file)
        header.PatientID, header.PatientName = patient, f"Patient^{patient}"
        for name, value in tags.items():
            setattr(header, name, value(header) if callable(value) else value)
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
        made.append(header)
    return made


def test_a_study_that_names_two_patients_is_refused_and_no_image_is_filed(node, tmp_path, ct, other):
    one = node()
    strangers = of_patient(ct[:4], "8888", SOPInstanceUID=lambda header: f"{header.SOPInstanceUID[:-2]}.9")
    with associated(one.port) as association:
        assert [association.send_c_store(header).Status for header in strangers] == [0] * 4
    send(one.port, ct)
    failure = until(lambda: list((tmp_path / "spool" / "failed").iterdir()))[0]
    told = json.loads(failure.read_text())
    assert "The images of the study name 2 patients; correct them at the sender" in told["reason"]
    assert told["instances"] == 12
    assert one.translate.translated == []
    assert "8888" not in failure.read_text()
    send(one.port, other)  # the next one goes on
    until(lambda: delivered(tmp_path / "out"))


def test_an_instance_never_takes_the_place_of_another_patients(node, ct):
    one = node(quiet_s=60)
    send(one.port, ct)
    with associated(one.port) as association:
        statuses = {association.send_c_store(header).Status for header in of_patient(ct, "8888")}
    assert statuses == {0x0111}
    files = sorted(one.spool.received(STUDY).iterdir())
    assert {pydicom.dcmread(file).PatientID for file in files} == {NUMBER}
    files[0].write_bytes(b"half of a file")  # nobody's: the whole one takes its place
    assert send(one.port, ct) == [0] * len(ct)
    assert {pydicom.dcmread(file).PatientID for file in files} == {NUMBER}
    assert send(one.port, ct) == [0] * 8  # its own may come again


# --------------------------------------------------------------------------------------------------- sending


def test_a_peer_gets_every_instance_once(node, archive, tmp_path, ct):
    peer = archive(status=0xB000)  # a warning is as good as stored
    one = node(PeerDelivery(TITLE, peer.peer))
    send(one.port, ct)
    until(lambda: idle(tmp_path / "spool"))
    assert len(peer.came) == len(set(peer.came)) == 8


def test_a_peer_that_is_down_gets_it_when_it_is_up(node, archive, tmp_path, ct, other):
    port = free_port()
    one = node(PeerDelivery(TITLE, ("ARCHIVE", "127.0.0.1", port)), retry_s=0.1)
    send(one.port, ct)
    until(lambda: one.spool.outgoing())
    send(one.port, other)  # meanwhile other work goes on
    until(lambda: len(one.spool.outgoing()) == 2)
    peer = archive(port=port)
    until(lambda: idle(tmp_path / "spool"))
    assert len(peer.came) == len(set(peer.came)) == 10


def test_a_peer_that_refuses_is_asked_again(node, archive, tmp_path, ct):
    peer = archive(status=0xA700)
    one = node(PeerDelivery(TITLE, peer.peer), retry_s=0.1)
    send(one.port, ct)
    until(lambda: len(peer.came) >= 8)
    assert len(list(one.spool.received(STUDY).iterdir())) == 8
    peer.status = 0x0000
    until(lambda: idle(tmp_path / "spool"))
    assert len(peer.instances) == 8


class Dropping(Archive):
    """An archive that ends associations at random, before or after it has stored an instance."""

    def __init__(self, chance, **options):
        self.chance = chance
        super().__init__(**options)

    def store(self, event):
        before, after = self.chance.random() < 0.15, self.chance.random() < 0.15
        if before:
            event.assoc.abort(block=False)
            return 0xA700
        status = super().store(event)
        if after:
            event.assoc.abort(block=False)
        return status


def send_through_drops(port, headers, chance):
    """Send data sets until each is confirmed, through associations that end at any moment, in the middle of one too."""
    waiting = list(headers)
    while waiting:
        send_some(port, waiting, chance)


def send_some(port, waiting, chance):
    """Send up to six data sets, taking out what is confirmed, through an association that may end anyhow."""
    with associated(port) as association:
        for _ in range(chance.randint(1, 6)):
            if not waiting or not association.is_established:
                break
            answer = association.send_c_store(waiting[0])
            if answer and answer.Status == 0:
                waiting.pop(0)
        end = chance.choice(["release", "abort", "half a PDU"])
        if end == "half a PDU" and association.is_established:
            with suppress(OSError, AttributeError):  # it may have ended by itself
                association.dul.socket.socket.sendall(b"\4\0\0\1\0\0half of it")
        if end != "release":
            association.abort()


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_peers_that_drop_associations_lose_nothing_and_mix_nobody(node, tmp_path, ct, seed):
    """Three patients at once, in both directions: each image comes out once, under whom it was sent."""
    chance = random.Random(seed)
    peer = Dropping(chance)
    one = node(PeerDelivery(TITLE, peer.peer), quiet_s=2.0, retry_s=0.05)
    sent = {}
    for patient in ("111", "222", "333"):
        tags = {"StudyInstanceUID": f"{STUDY_UID}.{patient}", "SeriesInstanceUID": f"{STUDY_UID}.{patient}.1"}
        sent[patient] = of_patient(
            ct, patient, SOPInstanceUID=lambda h, p=patient: f"1.2.{p}.{h.InstanceNumber}", **tags
        )
    senders = [
        threading.Thread(target=send_through_drops, args=(one.port, headers, random.Random(seed + 1)))
        for headers in sent.values()
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    until(lambda: len(one.translate.translated) == 3 and idle(tmp_path / "spool"), 120)
    peer.close()
    assert one.translate.translated == [8, 8, 8]
    assert not any((tmp_path / "spool" / "failed").iterdir())
    results = [pydicom.dcmread(BytesIO(data), force=True) for data in peer.instances.values()]
    assert len(results) == 24
    assert len({header.SOPInstanceUID for header in results}) == 24
    for header in results:
        assert header.StudyInstanceUID == f"{STUDY_UID}.{header.PatientID}"
        assert header.PatientName == f"Patient^{header.PatientID}"
    places = sorted((header.PatientID, float(header.ImagePositionPatient[2])) for header in results)
    assert places == [(patient, 4.0 * i) for patient in sorted(sent) for i in range(8)]


def test_a_destination_that_does_not_work_is_told(archive, tmp_path, ct, monkeypatch):
    monkeypatch.setattr(pynetdicom._config, "UNRESTRICTED_STORAGE_SERVICE", False)  # nodes of other tests set it
    peer, ct_only = archive(), AE("ARCHIVE")
    peer.server.ae.require_called_aet = True
    ct_only.add_supported_context(CTImageStorage)
    server = ct_only.start_server(("127.0.0.1", 0), block=False)
    result = tmp_path / "result" / "series"
    result.mkdir(parents=True)
    shutil.copy(ct[0], result)
    for place, why in {
        ("SOMEONE", "127.0.0.1", peer.port): "check both AE titles",
        ("ARCHIVE", "127.0.0.1", server.server_address[1]): "takes no MR images",
        ("ARCHIVE", "no.such.host.invalid", 104): "",
        ("ARCHIVE", "127.0.0.1", free_port()): "does not answer",
    }.items():
        with pytest.raises(UnreachableError, match=why):
            PeerDelivery(TITLE, place)(result.parent)
    server.shutdown()


def test_a_peer_that_hangs_does_not_hold_up_the_node(tmp_path, ct):
    """It takes the association's request and says nothing more."""
    result = tmp_path / "result" / "series"
    result.mkdir(parents=True)
    shutil.copy(ct[0], result)
    with socket.create_server(("127.0.0.1", 0)) as server:
        deliver = PeerDelivery(TITLE, ("ARCHIVE", "127.0.0.1", server.getsockname()[1]), timeout_s=0.5)
        with pytest.raises(UnreachableError, match="does not answer"):
            deliver(result.parent)


def test_pauses_grow_up_to_an_hour(tmp_path, caplog):
    now, tries = [0.0], []

    def refuse(folder):
        tries.append(now[0])
        raise CaseError("No.")

    spool = Spool(tmp_path / "spool")
    (tmp_path / "spool" / "outgoing" / "a.b").mkdir()
    sender = Sender(spool, refuse, retry_s=60, clock=lambda: now[0])
    for now[0] in range(0, 30_000, 10):
        sender.step()
    assert [b - a for a, b in pairwise(tries)][:7] == [60, 120, 240, 480, 960, 1920, 3600]
    assert tries[-1] - tries[-2] == 3600


def test_a_folder_is_replaced_whole(tmp_path):
    out, series = tmp_path / "out", tmp_path / "result" / "ct_0_t1_dicom"
    deliver = FolderDelivery(out)
    for count in (3, 2):
        shutil.rmtree(series, ignore_errors=True)
        series.mkdir(parents=True)
        series.chmod(0o700)
        for number in range(count):
            (series / f"{number}.dcm").write_text(str(count))
        deliver(series.parent)
    assert [path.name for path in out.iterdir()] == ["ct_0_t1_dicom"]
    assert (out / "ct_0_t1_dicom").stat().st_mode == out.stat().st_mode  # whoever may read the one may read the other
    assert {path.name: path.read_text() for path in (out / "ct_0_t1_dicom").iterdir()} == {"0.dcm": "2", "1.dcm": "2"}


def test_what_killed_nodes_left_in_the_folder_is_removed(tmp_path):
    """Also of a series that will not be delivered again; not what another computer is writing."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    ours = temporary_name(tmp_path / "ct_0_t1_dicom").name.replace(str(os.getpid()), str(ended.pid))
    theirs = f".{ended.pid}-00000000.partial.ct_0_t1_dicom"
    for name in (ours, f"{ours}.old", theirs, "ct_1_t1_dicom"):
        (tmp_path / name).mkdir()
    FolderDelivery(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [theirs, "ct_1_t1_dicom"]


# ----------------------------------------------------------------------------------- killed, and started again


class Killable:
    """A node with a fake translation in a process of its own."""

    def __init__(self, tmp_path, **options):
        self.spool = tmp_path / "spool"
        self.options = {"spool": str(self.spool), "deliver": str(tmp_path / "out"), "quiet_s": 0.4, **options}
        self.log = (tmp_path / "log").open("ab")

    def __enter__(self):
        root = Path(__file__).resolve().parents[2]
        command = [sys.executable, "-m", "tests.dicom_node.fake_node", json.dumps(self.options)]
        self.process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=self.log)
        self.port = int(self.process.stdout.readline())
        return self

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __exit__(self, *_):
        self.process.terminate()
        try:
            assert self.process.wait(20) in (0, -signal.SIGKILL)
        finally:
            self.process.stdout.close()


def test_killed_while_receiving_keeps_what_was_confirmed(tmp_path, ct):
    confirmed = []
    with Killable(tmp_path) as one, associated(one.port) as association:
        for file in ct[:5]:
            assert association.send_c_store(pydicom.dcmread(file)).Status == 0
            confirmed.append(digest(read_uids(file).instance_uid, 32))
        (one.spool / "incoming" / "half").write_bytes(b"as a kill while writing leaves it")
        one.kill()
    received = {path.stem: read_uids(path) for path in (one.spool / "received" / STUDY).iterdir()}
    assert set(received) == set(confirmed)
    with Killable(tmp_path, quiet_s=2.0) as one:  # the sender tries again with all
        assert send(one.port, ct) == [0] * 8
        until(lambda: idle(one.spool))
    assert len(delivered(tmp_path / "out")) == 8


def test_killed_while_translating_translates_again(tmp_path, ct):
    with Killable(tmp_path, seconds=60) as one:
        send(one.port, ct)
        until((one.spool / "working" / STUDY / "begun").exists)
        one.kill()
    assert not delivered(tmp_path / "out")
    with Killable(tmp_path) as one:
        until(lambda: idle(one.spool))
    assert len(delivered(tmp_path / "out")) == 8


def test_killed_while_sending_sends_again(tmp_path, archive, ct):
    peer = archive(seconds=0.1)
    options = {"peer": peer.peer}
    with Killable(tmp_path, **options) as one:
        send(one.port, ct)
        until(lambda: len(peer.instances) >= 3)
        one.kill()
    assert 3 <= len(peer.instances) < 8
    assert len(list((one.spool / "received" / STUDY).iterdir())) == 8
    with Killable(tmp_path, **options) as one:
        until(lambda: idle(one.spool))
    assert len(peer.instances) == 8
    assert {len(pydicom.dcmread(BytesIO(data)).PixelData) for data in peer.instances.values()} == {16 * 16 * 2}


def test_sigterm_ends_with_status_0_and_goes_on(tmp_path, ct):
    with Killable(tmp_path, seconds=60) as one:
        send(one.port, ct)
        until((one.spool / "working" / STUDY / "begun").exists)
        with associated(one.port) as association:
            one.process.send_signal(signal.SIGTERM)
            assert one.process.wait(20) == 0
            until(lambda: association.is_aborted)
    assert not delivered(tmp_path / "out")
    with Killable(tmp_path) as one:
        until(lambda: idle(one.spool))
    assert len(delivered(tmp_path / "out")) == 8


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost_or_half(tmp_path, archive, ct, later):
    """Forty kills, from the first instance to the last delivery; the sender repeats what was not confirmed."""
    peer, moments = archive(seconds=0.02), iter(range(40))
    options = {"peer": peer.peer, "seconds": 0.2, "quiet_s": 0.2, "keep_received": True}
    waiting = [*ct, *later]
    for moment in moments:
        with Killable(tmp_path, **options) as one:
            killer = threading.Timer(0.01 + moment * 0.03, one.kill)
            killer.start()
            with associated(one.port) as association:
                while waiting and association.is_established:
                    if getattr(association.send_c_store(pydicom.dcmread(waiting[0])), "Status", None) != 0:
                        break
                    waiting.pop(0)
            killer.join()
    with Killable(tmp_path, **options) as one:
        if waiting:
            assert send(one.port, waiting) == [0] * len(waiting)
        ledger = one.spool / "ledger" / f"{STUDY}.json"
        until(lambda: ledger.exists() and len(json.loads(ledger.read_text())["instances"]) == 11)
    series = {}
    for data in peer.instances.values():
        series.setdefault(read_uids(BytesIO(data)).series_uid, []).append(data)
    assert 11 in [len(files) for files in series.values()]


def send_through_kills(port, headers, chance):
    """As `send_through_drops`, with pauses while nobody listens."""
    waiting = list(headers)
    while waiting:
        time.sleep(0.05)
        with suppress(OSError):
            send_some(port, waiting, chance)


NUMBERS = [pytest.param(2, 3, 4, id="small"), pytest.param(8, 8, 20, id="large")]


@pytest.mark.slow
@pytest.mark.parametrize(("studies", "slices", "kills"), NUMBERS)
def test_killed_nodes_and_dropping_peers_leave_one_result_a_study(tmp_path, ct, studies, slices, kills):
    """Each result is what comes of the whole study undisturbed; a bad study is told; nothing else is left."""
    chance, spool, port, made = random.Random(kills), tmp_path / "spool", free_port(), {}
    peer, sent = Dropping(chance), []
    for number in range(studies + 1):
        tags = {"StudyInstanceUID": f"{STUDY_UID}.{number}", "SeriesInstanceUID": f"{STUDY_UID}.{number}.1"}
        tags |= {"SOPInstanceUID": lambda header, n=number: f"1.2.{n}.{header.InstanceNumber}"}
        tags |= {"Modality": "MR" if number == studies else "CT"}  # the last one is bad
        headers = of_patient(ct[:slices], f"p{number}", **tags)
        sent += headers
        if number < studies:
            made |= undisturbed(headers, tmp_path / str(number))
    options = {"spool": str(spool), "deliver": None, "peer": peer.peer, "port": port, "seconds": 0.1, "retry_s": 0.1}
    sender = threading.Thread(target=send_through_kills, args=(port, sent, random.Random(studies)))
    sender.start()
    for wait in random_waits(kills // 2, 1.0, seed=kills):  # while it receives
        kill_after(lambda wait=wait: time.sleep(wait), {**options, "quiet_s": 600})
    kill_after(lambda: sender.join(120), {**options, "quiet_s": 600})
    for wait in random_waits(kills // 2, 2.0, seed=kills + 1):  # while it translates and sends
        kill_after(lambda wait=wait: time.sleep(wait), {**options, "quiet_s": 0.1})
    process = started(serve, {**options, "quiet_s": 0.1})
    try:
        # where the last killed one had done everything, it would be told to end before it listens to that
        until(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), 60)
        folders = [spool / name for name in ("incoming", "working", "outgoing")]
        received = spool / "received" / digest(f"{STUDY_UID}.{studies}")
        until(lambda: list((spool / "received").iterdir()) == [received] and list((spool / "failed").iterdir()), 60)
        until(lambda: not any(any(folder.iterdir()) for folder in folders), 60)
    finally:
        process.terminate()
        process.join(60)
        peer.close()
    assert process.exitcode == 0
    results = {uid: pydicom.dcmread(BytesIO(data), force=True) for uid, data in peer.instances.items()}
    assert {uid: (one.SeriesInstanceUID, one.PatientID, one.PixelData) for uid, one in results.items()} == made
    [failure] = [json.loads(path.read_text()) for path in (spool / "failed").iterdir()]
    assert failure["reason"] == "There is no CT series; send one."
    assert len(list(received.iterdir())) == failure["instances"] == slices


def kill_after(wait, options):
    """A node in a process of its own that is killed after a wait."""
    process = started(serve, options)
    wait()
    process.kill()
    process.join(60)


def undisturbed(headers, folder):
    """SOP Instance UID -> series, patient and pixels of what a node makes of the data sets of a study."""
    (study := folder / "study").mkdir(parents=True)
    for header in headers:
        header.save_as(study / f"{digest(header.SOPInstanceUID, 32)}.dcm")
    [series] = Copier()(study, folder)
    results = [pydicom.dcmread(path) for path in series.iterdir()]
    return {one.SOPInstanceUID: (one.SeriesInstanceUID, one.PatientID, one.PixelData) for one in results}


# -------------------------------------------------------------------------------------------------------- DCMTK


def dcmtk(program):
    """Path of a program of DCMTK; the test is skipped where it is not installed.

    pynetdicom's programs of the same names stand beside Python, and come first in an environment that is activated.
    """
    folders = os.environ["PATH"].split(os.pathsep)
    there = [found for folder in folders if (found := shutil.which(program, path=folder))]
    said = {
        path: subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60).stdout for path in there
    }
    found = next((path for path, version in said.items() if "dcmtk" in version), None)
    return found or pytest.skip(f"DCMTK's {program} is not installed (apt install dcmtk)")


def dcmtk_send(port, *words, title="CT1", called=TITLE):
    command = [dcmtk("storescu"), "-aet", title, "-aec", called, *words[:-1], "127.0.0.1", str(port), str(words[-1])]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_dcmtk_echo(node):
    port = str(node().port)
    echo = [dcmtk("echoscu"), "-aet", "PACS", "-aec", TITLE, "127.0.0.1", port]
    assert subprocess.run(echo, timeout=60).returncode == 0
    ended = subprocess.run([*echo[:2], "NOBODY", *echo[3:]], capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert "Calling AE Title Not Recognized" in ended.stderr


def test_dcmtk_sends_a_folder_and_takes_the_result(node, tmp_path, ct):
    port, box = free_port(), tmp_path / "box"
    box.mkdir()
    one = node(PeerDelivery(TITLE, ("ARCHIVE", "127.0.0.1", port)), retry_s=0.1)
    assert dcmtk_send(one.port, "+sd", "+r", ct[0].parent).returncode == 0
    until(lambda: one.spool.outgoing())
    with subprocess.Popen([dcmtk("storescp"), "-aet", "ARCHIVE", "-od", str(box), str(port)]) as storescp:
        try:
            until(lambda: idle(tmp_path / "spool"))
        finally:
            storescp.terminate()
    headers = [pydicom.dcmread(file) for file in box.iterdir()]
    assert len(headers) == 8
    assert {header.StudyInstanceUID for header in headers} == {STUDY_UID}
    assert {header.SOPClassUID for header in headers} == {MRImageStorage}


def test_dcmtk_sends_compressed_images_as_they_are(node, tmp_path, ct):
    packed = tmp_path / "packed"
    packed.mkdir()
    for file in ct:
        subprocess.run([dcmtk("dcmcjpeg"), str(file), str(packed / file.name)], check=True, timeout=60)
    one = node(quiet_s=60)
    assert dcmtk_send(one.port, "-xs", "+sd", packed).returncode == 0
    stored = [pydicom.dcmread(file) for file in one.spool.received(STUDY).iterdir()]
    sent = {header.SOPInstanceUID: header for header in map(pydicom.dcmread, packed.iterdir())}
    assert len(stored) == 8
    for header in stored:
        assert header.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.70"
        assert header.PixelData == sent[header.SOPInstanceUID].PixelData


def test_private_storage_classes_are_taken(node, tmp_path, ct):
    odd = pydicom.dcmread(ct[0])
    odd.SOPClassUID = odd.file_meta.MediaStorageSOPClassUID = "1.3.12.2.1107.5.9.1"  # Siemens CSA Non-Image Storage
    odd.SOPInstanceUID = odd.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    one, ae = node(quiet_s=60), AE("CT1")
    ae.add_requested_context(odd.SOPClassUID)
    association = ae.associate("127.0.0.1", one.port, ae_title=TITLE)
    assert association.send_c_store(odd).Status == 0
    association.release()
    assert len(list(one.spool.received(STUDY).iterdir())) == 1


# ------------------------------------------------------------------------------------------------- the command


def test_nothing_tells_who_the_patient_is(tmp_path, archive, ct, other):
    """All that the node writes but the images themselves, and the names of those."""
    peer = archive(status=0xA700)
    options = {"peer": peer.peer, "keep_received": True}
    mr = tmp_path / "mr"
    write_dicom_series(mr, [0, 4], voxels=16, modality="MR", suffix=".dcm")
    damaged = pydicom.dcmread(other[0])
    damaged.StudyInstanceUID = NAME
    damaged.PatientBirthDate = NAME
    with Killable(tmp_path, **options) as one:
        with associated(one.port) as association:
            association.send_c_store(damaged)
            damaged.SOPInstanceUID = damaged.file_meta.MediaStorageSOPInstanceUID = NAME  # the request's too
            assert association.send_c_store(damaged).Status == 0xC000
        send(one.port, [*ct, *sorted(mr.iterdir())])
        until(lambda: peer.came and any((one.spool / "failed").iterdir()))
        peer.status = 0
        until(lambda: not any((one.spool / "outgoing").iterdir()))
    written = [path for path in (tmp_path / "spool").rglob("*") if path.is_file() and path.suffix != ".dcm"]
    texts = [path.read_text() for path in (*written, tmp_path / "log")]
    names = [str(path.relative_to(tmp_path)) for path in (tmp_path / "spool").rglob("*")]
    assert any("failed" in text for text in texts)
    assert len(names) > 10
    for text in (*texts, *names):
        assert "doe" not in text.lower()
        assert NUMBER not in text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "Nobody may send"),
        ({"allowed": "A,B"}, "Results need one place to go"),
        ({"allowed": "A", "peer": "X@y:1", "output_dir": "out"}, "Results need one place to go"),
        ({"allowed": "A", "peer": "X:104"}, "The peer X:104 cannot be read"),
        ({"allowed": "LONGER_THAN_SIXTEEN", "output_dir": "out"}, "is no AE title"),
        ({"allowed": "A", "output_dir": "out", "config_file": "configs/none.json"}, "There is no config file"),
        ({"allowed": "A", "output_dir": "out", "stile_key": 1}, "did you mean style_key"),
        ({"allowed": "A", "output_dir": "out", "dataset_dir": "x"}, "dataset_dir is no option of the node"),
        ({"allowed": "A", "output_dir": "out", "port": "eleven"}, "port is eleven"),
        ({"allowed": "A", "output_dir": "out", "quiet_s": -1}, "quiet_s is -1"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CaseError, match=sentence):
        serve_dicom(spool="spool", **options)
    assert not (tmp_path / "spool").exists()


def test_help_is_help_and_starts_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    serve_dicom(help=True)
    assert "allowed: AE titles that may send" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_two_nodes_share_neither_spool_nor_port_nor_a_folder_of_others(node, tmp_path):
    one = node()
    with pytest.raises(CaseError, match="Another node uses the spool"):
        Spool(tmp_path / "spool")
    with pytest.raises(CaseError, match="Cannot listen on"):
        FakeNode(tmp_path / "second", tmp_path / "out", port=one.port)
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "letter.txt").touch()
    with pytest.raises(CaseError, match="holds other files"):
        Spool(tmp_path / "documents")


def test_peers_are_read():
    assert parsed_peer("PACS@10.0.0.1:104") == ("PACS", "10.0.0.1", 104)
    assert parsed_peer("MY PACS@[::1]:11112") == ("MY PACS", "::1", 11112)


# ------------------------------------------------------------------------------------------------ the main job


def job_that(tmp_path, monkeypatch, script, **settings):
    """A `MainJob` whose program is a script; gives the job and an empty folder."""
    program = tmp_path / "program.sh"
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    working = tmp_path / "working"
    working.mkdir()
    return MainJob(("configs/inference.json",), **settings), working


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("echo noise; echo 'The CT is odd; send another.' >&2; exit 1", "The CT is odd; send another."),
        ("echo 'Traceback (most recent call last):'; echo 'KeyError: Doe^Jane'; exit 1", "Unforeseen KeyError in the"),
        ("exit 3", "status 3 and said nothing"),
        ("kill -9 $$", "ended by SIGKILL; the memory may have run out."),
        ("exit 143", r"ended by SIGTERM\.$"),
        ("exit 0", "left no DICOM series"),
        ("sleep 60", "took more than 1 s"),
    ],
)
def test_the_reason_is_the_last_sentence_or_says_no_name(tmp_path, monkeypatch, script, sentence):
    job, working = job_that(tmp_path, monkeypatch, script, timeout_s=1)
    with pytest.raises(CaseError, match=sentence) as error:
        job(tmp_path, working)
    assert "Doe" not in str(error.value)


@pytest.mark.slow
def test_the_main_job_ends_with_the_node(bundle_root, tmp_path):
    """Else it and the one that the next node starts for the same study would be two."""
    script = (
        "import sys; from pathlib import Path; from scripts.dicom_node.job import MainJob; "
        "MainJob(('configs/inference.json',), {'num_inference_steps': 900})(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, str(bundle_root / "docs" / "sample"), str(tmp_path)]
    with subprocess.Popen(command, cwd=bundle_root) as node:
        children = Path(f"/proc/{node.pid}/task/{node.pid}/children")

        def jobs():  # other packages start short programs
            lines = {pid: Path(f"/proc/{pid}/cmdline") for pid in children.read_text().split()}
            return [int(pid) for pid, line in lines.items() if line.exists() and "node.job" in line.read_text()]

        child = until(jobs, 60)[0]
        node.kill()
    try:
        status = Path(f"/proc/{child}/stat")
        until(lambda: not status.exists() or status.read_text().split()[2] == "Z", 60)
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


@pytest.fixture
def tiny(tmp_path):
    """Options of the main job: a tiny network with random weights, voxels of 6 mm."""
    import torch

    from scripts.networks import BridgeUNet

    torch.manual_seed(0)
    torch.save(BridgeUNet(**TINY_NETWORK).state_dict(), tmp_path / "model.pt")
    network = {"_target_": "scripts.networks.BridgeUNet", **TINY_NETWORK}
    settings = {
        "network_def": network,
        "weights": tmp_path / "model.pt",
        "style_key": "none",
        "spacing": [6.0, 6.0, 6.0],
        "dtype": "float32",
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


@pytest.mark.slow
def test_a_ct_that_is_sent_comes_back_as_a_t1(bundle_root, tmp_path, tiny):
    """All of it as it is typed: DCMTK sends, the command receives and runs the main job, DCMTK takes the result."""
    pytest.importorskip("dcm2niix")
    folder, box, ports = tmp_path / "DOE_JANE", tmp_path / "box", (free_port(), free_port())
    head = {"voxels": 54, "spacing": 4.0, "hu_of": lambda points: head_hu(points * [-1, -1, 1])}
    write_dicom_series(folder, range(-80, 84, 5), study=STUDY_UID, suffix=".dcm", **head)
    box.mkdir()
    command = [sys.executable, "-m", "scripts", "serve_dicom", "--allowed", "CT1,PACS", "--port", str(ports[0])]
    command += [
        "--peer",
        f"ARCHIVE@127.0.0.1:{ports[1]}",
        "--spool",
        str(tmp_path / "spool"),
        "--quiet_s",
        "0.5",
        *tiny,
    ]
    log = tmp_path / "log"
    with (
        subprocess.Popen([dcmtk("storescp"), "-aet", "ARCHIVE", "-od", str(box), str(ports[1])]) as storescp,
        log.open("wb") as said,
        subprocess.Popen(command, cwd=bundle_root, stderr=said) as serving,
    ):
        try:
            until(lambda: "listens on" in log.read_text() or serving.poll() is not None, 60)
            assert dcmtk_send(ports[0], "+sd", folder).returncode == 0
            until(lambda: "delivered to" in log.read_text() or "failed" in log.read_text(), 60)
        finally:
            serving.send_signal(signal.SIGINT)
            status = serving.wait(20)
            storescp.terminate()
    assert status == 0, log.read_text()
    results = [pydicom.dcmread(file) for file in box.iterdir()]
    assert len(results) == 33, log.read_text()
    for header in results:
        assert (header.SOPClassUID, header.StudyInstanceUID) == (MRImageStorage, STUDY_UID)
        assert header.PatientName == NAME
    assert idle(tmp_path / "spool")
    assert "doe" not in log.read_text().lower()
    assert f"BRAINCT2MRI listens on 127.0.0.1:{ports[0]} for CT1, PACS; results go to ARCHIVE@" in log.read_text()
