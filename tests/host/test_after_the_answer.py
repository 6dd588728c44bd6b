# SPDX-License-Identifier: Apache-2.0
"""What is done besides the answer (reports, a training) takes nothing from it; pictures are no larger than the file."""

import logging
from types import SimpleNamespace

import pytest
from pydicom import dcmread

from echo_plugin.answer.predict import EchoPipeline
from echo_plugin.errors import AnnotationError
from echo_plugin.host.app import EchoApp
from echo_plugin.host.reports import ReportingPipeline, source_of
from echo_plugin.host.routes.panel import _parse_box, _within


def _fails(*_):
    msg = "nobody thought of this"
    raise RuntimeError(msg)


def test_a_stored_label_does_not_look_lost_when_report_and_training_fail(caplog):
    app = SimpleNamespace(
        waiting=SimpleNamespace(submitted=lambda _: None),
        auto_finetune=SimpleNamespace(submitted=_fails),
        reports_at_once=True,
        reports=SimpleNamespace(of_annotation=_fails),
        datastore=lambda: SimpleNamespace(images=SimpleNamespace(resolve=str)),
    )

    with caplog.at_level(logging.WARNING):
        EchoApp.on_save_label(app, "1.2.3", "1.2.3")

    assert [record.getMessage() for record in caplog.records] == [
        "Label of 1.2.3 is stored, but no training was started (RuntimeError)",
        "Label of 1.2.3 is stored, but became no report (RuntimeError)",
    ]


def test_a_prediction_is_given_when_its_report_fails(monkeypatch, caplog):
    monkeypatch.setattr(EchoPipeline, "predict", lambda *_: "prediction")
    pipeline = ReportingPipeline.__new__(ReportingPipeline)
    pipeline.reports = SimpleNamespace(of_prediction=_fails)

    assert pipeline.predict(SimpleNamespace(sop_instance_uid="1.2.3", image_id="1.2.3")) == "prediction"
    assert "Prediction of 1.2.3 became no report" in caplog.text


def test_a_cine_without_a_uid_is_refused_in_one_sentence(archive):
    first = next(iter(archive.studies.instances().values()))
    changed = dcmread(first.path)
    del changed.SeriesInstanceUID
    changed.save_as(first.path)

    with pytest.raises(AnnotationError, match=r"^File '.*' has no SeriesInstanceUID; a structured report must refer"):
        source_of(archive.studies, first.sop_uid)


def test_a_box_is_cut_to_the_picture():
    assert _within(_parse_box("-9e4,-5,9e4,20.4"), 64, 48) == (0, 0, 64, 20)
    assert _within(_parse_box("3,4,10,12"), 64, 48) == (3, 4, 10, 12)
    with pytest.raises(ValueError, match="'box' lies outside of the picture; one in its 64 x 48 px is accepted"):
        _within(_parse_box("70,0,90,20"), 64, 48)


@pytest.mark.parametrize("text", ["nan,0,9,9", "0,0,inf,9", "0,0,9,nan", "9,9,0,0", "1,2,3", "a,b,c,d"])
def test_a_box_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="four numbers"):
        _parse_box(text)
