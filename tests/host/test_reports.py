# SPDX-License-Identifier: Apache-2.0
"""What was reported before is stored no second time, and no UID ever has two contents."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from pydicom import dcmread

from echo_plugin.anatomy import Defect, Septum, View
from echo_plugin.annotations import DefectPrediction, SeptalBox, ViewPrediction
from echo_plugin.answer.prediction import CinePrediction
from echo_plugin.host import reports as reports_module
from echo_plugin.host.pacs import Pacs
from echo_plugin.host.reports import Reports
from echo_plugin.io.dicom_sr import read_report
from echo_plugin.io.study_index import REPORTS_DIRECTORY

BOX = SeptalBox(1, 100.5, 60.25, 200.0, 180.0, Septum.INTERVENTRICULAR, 0.8)
PREDICTION = CinePrediction(
    (BOX,),
    ViewPrediction(View.A4C, {View.A4C: 0.91, View.PSAX_AV: 0.09}, (0,)),
    DefectPrediction(Defect.ASD, {Defect.NORMAL: 0.3, Defect.ASD: 0.7}, {Defect.NORMAL: 70.0, Defect.ASD: 30.0}, (0,)),
    (),
    {},
    {},
)
OTHERWISE = {
    "box": replace(PREDICTION, boxes=(replace(BOX, x1=101.5),)),
    "score": replace(PREDICTION, boxes=(replace(BOX, score=0.81),)),
    "view": replace(PREDICTION, view=replace(PREDICTION.view, probabilities={View.A4C: 0.8, View.PSAX_AV: 0.2})),
    "defect": replace(PREDICTION, defect=replace(PREDICTION.defect, defect=Defect.NORMAL)),
}


class Archive:
    """An archive that keeps what it is sent and knows it again."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def holds(self, sop_uid: str) -> bool:
        return sop_uid in self.by_uid()

    def store(self, content: bytes) -> None:
        self.sent.append(content)

    def by_uid(self) -> dict[str, list[bytes]]:
        found: dict[str, list[bytes]] = {}
        for content in self.sent:
            found.setdefault(str(read_report(content).SOPInstanceUID), []).append(content)
        return found


@pytest.fixture
def first(archive):
    return next(iter(archive.studies.instances().values()))


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by an hour whenever somebody looks at it."""
    hours = iter(range(1000))
    began = datetime(2026, 3, 1, tzinfo=UTC)
    now = SimpleNamespace(now=lambda: began + timedelta(hours=next(hours)))
    monkeypatch.setattr(reports_module, "datetime", now)


@pytest.fixture(params=["archive", "folder"])
def place(request, archive, clock):
    """Reports that go to an archive or into the study folder, and how to list what is there, by UID."""
    if request.param == "archive":
        beside = Archive()
        return Reports(archive, beside), beside.by_uid
    folder = archive.studies.root / REPORTS_DIRECTORY
    return Reports(archive, None), lambda: {path.stem: [path.read_bytes()] for path in folder.glob("*.dcm")}


def test_the_same_prediction_is_stored_once_however_often_it_is_made(place, first):
    reports, stored = place

    uids = reports.of_prediction(first.sop_uid, PREDICTION)
    before = stored()

    assert reports.of_prediction(first.sop_uid, PREDICTION) == uids
    assert len(set(uids)) == 2  # boxes, and view with defect
    assert stored() == before
    assert {uid: len(contents) for uid, contents in before.items()} == dict.fromkeys(uids, 1)


@pytest.mark.parametrize("what", OTHERWISE)
def test_another_prediction_has_another_uid_and_is_stored_too(place, first, what):
    reports, stored = place
    changed = 0 if what in ("box", "score") else 1

    uids = reports.of_prediction(first.sop_uid, PREDICTION)
    others = reports.of_prediction(first.sop_uid, OTHERWISE[what])

    assert [one != other for one, other in zip(uids, others, strict=True)] == [changed == 0, changed == 1]
    assert set(stored()) == {*uids, *others}


@pytest.mark.parametrize("changes", [{"PatientName": "Corrected^Name"}, {"AccessionNumber": "77"}])
def test_the_same_prediction_below_another_header_is_another_object(place, archive, first, changes):
    reports, stored = place
    uids = reports.of_prediction(first.sop_uid, PREDICTION)
    changed = dcmread(first.path)
    for keyword, value in changes.items():
        setattr(changed, keyword, value)
    changed.save_as(first.path)

    others = reports.of_prediction(first.sop_uid, PREDICTION)

    assert set(uids).isdisjoint(others)
    assert {len(contents) for contents in stored().values()} == {1}


def test_two_readers_who_predict_at_once_send_one_report(archive, first):
    beside, both = Archive(), threading.Barrier(2)
    reports = Reports(archive, beside)

    def predict(_) -> list[str]:
        both.wait(60)
        return reports.of_prediction(first.sop_uid, PREDICTION)

    with ThreadPoolExecutor(2) as readers:
        uids, others = readers.map(predict, range(2))

    assert uids == others
    assert len(beside.sent) == 2


def test_an_archive_over_dicomweb_is_asked_before_it_is_sent_a_report(served, archive, first, clock):
    """The archive is that of another server: what it was sent, it is not sent again."""
    reports = Reports(archive, Pacs(f"{served}/dicom-web"))

    uids = reports.of_prediction(first.sop_uid, PREDICTION)
    archive.studies.refresh()
    kept = {uid: archive.studies.instances()[uid].path.read_bytes() for uid in uids}
    sent: list[bytes] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Pacs, "store", lambda _self, content: sent.append(content))
        assert reports.of_prediction(first.sop_uid, PREDICTION) == uids
        assert sent == []
        reports.of_prediction(first.sop_uid, OTHERWISE["box"])

    assert len(sent) == 1
    assert {uid: archive.studies.instances()[uid].path.read_bytes() for uid in uids} == kept


@pytest.mark.parametrize(("listed", "is_there"), [([], False), (["1.2.3"], True), (["1.2.4", "1.2.5"], False)])
def test_an_archive_that_filters_nothing_is_not_misunderstood(monkeypatch, listed, is_there):
    items = [{"00080018": {"vr": "UI", "Value": [uid]}} for uid in listed]
    monkeypatch.setattr(Pacs, "_get_json", lambda *_: items)

    assert Pacs("http://x/dicom-web").holds("1.2.3") is is_there
