# SPDX-License-Identifier: Apache-2.0
"""What a training reads of its cines, and what is kept of them for the next one."""

import dataclasses
import os
import shutil

import pytest
import torch

from echo_plugin.anatomy import View
from echo_plugin.errors import TrainingDataError, UnreadableCineError
from echo_plugin.io.annotation_store import annotation_to_json
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.training import datasets
from echo_plugin.training.datasets import (
    cines_digest,
    detection_frames,
    open_labelled_folder,
    prepare_detection,
    prepare_frames,
)

pytestmark = pytest.mark.heavy

CINES = 36


@pytest.fixture
def studies(easy_studies, tmp_path):
    return shutil.copytree(easy_studies, tmp_path / "studies")


@pytest.fixture
def read(monkeypatch):
    """The image ids of the cines that were decoded."""
    seen, read_cine = [], StudyFolder.read_cine

    def noted(folder, image_id):
        seen.append(image_id)
        return read_cine(folder, image_id)

    monkeypatch.setattr(StudyFolder, "read_cine", noted)
    return seen


def _prepare(studies, cache_dir, size_px=64):
    labelled = open_labelled_folder(studies)
    choice = [(cine, detection_frames(cine, 8)) for cine in labelled.cines]
    return prepare_frames(labelled, choice, prepare_detection(size_px), name=f"d-{size_px}", cache_dir=cache_dir)


def _files(cache):
    return [path for path in cache.rglob("*") if path.is_file()]


def test_a_new_label_costs_one_cine_and_no_other_copy_of_the_rest(studies, tmp_path, read):
    cache = tmp_path / "cache"
    _prepare(studies, cache)
    before = sum(path.stat().st_size for path in _files(cache))
    folder = StudyFolder(studies)
    image_id = folder.annotated_ids()[5]
    folder.save_annotation(dataclasses.replace(folder.annotation(image_id), view=View.A2C), author="test")
    read.clear()

    frames = _prepare(studies, cache)

    assert read == [image_id]
    assert len(frames.pixels) == CINES
    assert sum(path.stat().st_size for path in _files(cache)) == pytest.approx(before * (1 + 1 / CINES), rel=0.01)


def test_another_readers_label_of_the_same_revision_is_another_label(studies, tmp_path, read):
    other = shutil.copytree(studies, tmp_path / "other")  # the cines with their times
    image_id, *_ = StudyFolder(other).annotated_ids()
    path = other / "annotations" / f"{image_id}.json"
    first = StudyFolder(other).annotation(image_id)
    moved = tuple(dataclasses.replace(box, x1=box.x1 - 3, x2=box.x2 - 3) for box in first.boxes)
    path.write_text(annotation_to_json(dataclasses.replace(first, boxes=moved)))
    of_first_reader = _prepare(studies, tmp_path / "cache")
    read.clear()

    of_second_reader = _prepare(other, tmp_path / "cache")

    assert read == [image_id]
    without = _prepare(other, None)
    torch.testing.assert_close(of_second_reader.targets, without.targets, rtol=0, atol=0, equal_nan=True)
    assert cines_digest(of_first_reader.cines) != cines_digest(of_second_reader.cines)


def test_a_label_submitted_unchanged_is_the_same_to_learn_from(studies, tmp_path, read):
    before = cines_digest(_prepare(studies, tmp_path / "cache").cines)
    folder = StudyFolder(studies)
    image_id, *_ = folder.annotated_ids()
    folder.save_annotation(folder.annotation(image_id), author="another reader")
    read.clear()

    after = _prepare(studies, tmp_path / "cache")

    assert (read, cines_digest(after.cines)) == ([], before)


def test_what_is_read_from_the_cache_equals_what_is_prepared_without_one(studies, tmp_path, read):
    without = _prepare(studies, None)
    first = _prepare(studies, tmp_path / "cache")
    read.clear()

    again = _prepare(studies, tmp_path / "cache")

    assert read == []
    for frames in (first, again):
        assert torch.equal(frames.pixels, without.pixels)
        assert torch.equal(frames.cine, without.cine)
        torch.testing.assert_close(frames.targets, without.targets, rtol=0, atol=0, equal_nan=True)


def test_a_cache_keeps_within_its_bound_what_was_used_last(studies, tmp_path, read, monkeypatch):
    cache = tmp_path / "cache"
    _prepare(studies, cache, 96)
    for path in _files(cache):
        os.utime(path, (1, 1))
    monkeypatch.setattr(datasets, "MOST_BYTES", 400_000)

    _prepare(studies, cache, 64)

    assert sum(path.stat().st_size for path in _files(cache)) <= 400_000
    read.clear()
    _prepare(studies, cache, 64)
    assert read == []


def test_a_damaged_file_of_the_cache_is_made_anew(studies, tmp_path, read):
    cache = tmp_path / "cache"
    whole = _prepare(studies, cache)
    first, second, *_ = _files(cache)
    first.write_bytes(first.read_bytes()[:-300])
    second.write_bytes(b"")
    read.clear()

    again = _prepare(studies, cache)

    assert len(read) == 2
    assert torch.equal(again.pixels, whole.pixels)


@pytest.mark.parametrize("cached", [True, False])
def test_a_folder_of_which_nothing_can_be_read_is_refused(easy_studies, tmp_path, monkeypatch, cached):
    def unreadable(_, image_id):
        msg = f"Cine {image_id} is torn; another copy of it is accepted."
        raise UnreadableCineError(msg)

    monkeypatch.setattr(StudyFolder, "read_cine", unreadable)

    with pytest.raises(TrainingDataError, match="None of the 36 labelled cines could be read"):
        _prepare(easy_studies, tmp_path / "cache" if cached else None)
