# SPDX-License-Identifier: Apache-2.0
"""What annotations say in short: read once, seen at once when somebody saves."""

import dataclasses
import os
from pathlib import Path

import pytest
from PIL import Image

from echo_plugin.anatomy import Defect, Septum, View
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.errors import AnnotationError
from echo_plugin.io.label_summaries import LabelSummaries, summarise
from echo_plugin.io.study_folder import StudyFolder

BOX = SeptalBox(0, 1.0, 2.0, 9.0, 12.0, Septum.INTERATRIAL)


@pytest.fixture
def studies(tmp_path) -> StudyFolder:
    for name in "abc":
        Image.new("L", (16, 16), 90).save(tmp_path / f"{name}.png")
    return StudyFolder(tmp_path)


def full(image_id: str) -> Annotation:
    return Annotation(image_id, (BOX,), (0,), View.A4C, Defect.ASD)


def test_a_save_a_new_revision_and_a_withdrawal_are_seen_at_once(studies):
    summaries = LabelSummaries(studies)
    before = dict(summaries.current())

    saved = studies.save_annotation(full("a.png"), author="r1")
    first = dict(summaries.current())
    studies.save_annotation(dataclasses.replace(saved, defect=Defect.VSD), author="r2")
    second = dict(summaries.current())
    studies.remove_annotation("a.png")

    assert before == {}
    assert first == {"a.png": summarise(saved)}
    assert (second["a.png"].revision, second["a.png"].author, second["a.png"].defect) == (2, "r2", Defect.VSD)
    assert dict(summaries.current()) == {}


def test_only_files_that_changed_are_read_again(studies, monkeypatch):
    summaries = LabelSummaries(studies)
    for image_id in studies.image_ids():
        studies.save_annotation(full(image_id), author="r1")
    summaries.current()
    read = []
    monkeypatch.setattr(studies, "annotation", lambda image_id: read.append(image_id) or full(image_id))

    os.utime(studies.root / "annotations" / "b.png.json", ns=(1, 1))
    os.utime(studies.root / "annotations", ns=(5, 5))
    generations = [summaries.with_generation()[0] for _ in range(3)]

    assert read == ["b.png"]
    assert len(set(generations)) == 1


def test_empty_and_unreadable_annotations_count_as_none(studies):
    studies.save_annotation(Annotation("a.png"), author="r1")
    studies.save_annotation(full("b.png"), author="r1")
    (studies.root / "annotations" / "b.png.json").write_text("{")
    (studies.root / "annotations" / "no image id.json").write_text("{}")

    assert dict(LabelSummaries(studies).current()) == {}


def test_a_cine_marked_unusable_has_said_something_and_its_history_says_who(studies):
    studies.save_annotation(full("a.png"), author="r1")
    marked = dataclasses.replace(studies.annotation("a.png"), is_unusable=True)
    studies.save_annotation(marked, author="r2")

    summary = LabelSummaries(studies).current()["a.png"]
    assert (summary.is_unusable, summary.is_empty, summary.author) == (True, False, "r2")
    assert [(a.is_unusable, a.author) for a in studies.history("a.png")] == [(False, "r1"), (True, "r2")]
    text = Path(studies.root / "annotations" / "a.png.json").read_text()
    assert '"unusable": true' in text


def test_unusable_is_a_yes_or_a_no():
    with pytest.raises(AnnotationError, match="is_unusable is 'yes'; True or False"):
        Annotation("a", is_unusable="yes")


def test_names_are_those_of_septa_view_and_defect():
    summary = summarise(full("a.png"))

    assert summary.names_any(["mitral", "ASD"])
    assert summary.names_any(["interatrial"])
    assert not summary.names_any(["VSD", "PSAX-AV"])
