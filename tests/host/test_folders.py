# SPDX-License-Identifier: Apache-2.0
"""What the server keeps is where it belongs: nothing of it in the checkout, a rendition once per content."""

import logging
import os
import threading
from pathlib import Path

import itk
import numpy as np
import pytest

from echo_plugin.cine import Cine
from echo_plugin.host import folders
from echo_plugin.host.datastore import RenditionCache
from echo_plugin.host.folders import (
    SAMPLES,
    cache_folder,
    move_log,
    own_models,
    read_json,
    served_folder,
    served_models,
    write_kept,
)
from echo_plugin.io.study_folder import StudyFolder

pytestmark = pytest.mark.heavy


class Still:
    def __init__(self, frames: int) -> None:
        self.shape = (frames, 16, 24, 1)

    def read(self, frame_indices):
        return np.zeros((len(frame_indices), 16, 24, 1), np.uint8)


class CountedReads:
    def __init__(self, frames: int = 4) -> None:
        self.frames = frames
        self.count = 0

    def __call__(self) -> Cine:
        self.count += 1
        return Cine(image_id="1.2.3", frames=Still(self.frames))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "cine.dcm"
    path.write_bytes(b"a cine")
    return path


def test_a_cine_is_rendered_once_for_many_viewers(tmp_path, source):
    cache = RenditionCache(tmp_path / "renditions")
    read = CountedReads()
    paths = []

    threads = [threading.Thread(target=lambda: paths.append(cache.path("1.2.3", source, read))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert read.count == 1
    assert len(set(paths)) == 1
    assert paths[0].name == "1.2.3.nrrd"
    assert tuple(itk.size(itk.imread(str(paths[0])))) == (24, 16, 4)


def test_a_changed_file_is_rendered_anew(tmp_path, source):
    cache = RenditionCache(tmp_path / "renditions")
    read = CountedReads()
    first = cache.path("1.2.3", source, read)

    source.write_bytes(b"another cine")
    second = cache.path("1.2.3", source, read)

    assert first != second
    assert read.count == 2


def test_the_oldest_renditions_go_and_the_newest_stays(tmp_path):
    cache = RenditionCache(tmp_path / "renditions", limit_bytes=2000)
    paths = []
    for number in range(3):
        source = tmp_path / f"{number}.dcm"
        source.write_bytes(str(number).encode())
        paths.append(cache.path(f"1.2.{number}", source, CountedReads(frames=2)))
        os.utime(paths[-1], (1000 + number, 1000 + number))

    assert [path.exists() for path in paths] == [False, True, True]


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "facts.json"
    write_kept(path, b'{"old": 1}')
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))

    with pytest.raises(OSError, match="disk full"):
        write_kept(path, b'{"new": 1}')

    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["facts.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_unreadable_cache_content_counts_as_none(tmp_path, content):
    path = tmp_path / "facts.json"
    path.write_bytes(content)

    assert read_json(path) == {}


def test_each_study_folder_has_a_cache_of_its_own_that_others_cannot_read(tmp_path):
    first, second = (cache_folder(tmp_path / name, tmp_path / "cache") for name in ("a", "b"))

    assert first != second
    assert first == cache_folder(tmp_path / "b" / ".." / "a", tmp_path / "cache")
    if os.name == "posix":
        assert first.stat().st_mode & 0o077 == 0


FILES = {"views.safetensors": b"weights", "views.json": b"card"}


def models_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def starters(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def studies(tmp_path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    return folder


def test_a_study_folder_begins_with_copies_of_the_starters_which_are_no_cines(studies, starters):
    folder = own_models(studies, starters)

    assert folder.parent == studies
    assert models_in(folder) == models_in(starters) == FILES
    assert StudyFolder(studies).image_ids() == []


def test_what_was_trained_stays_and_the_starters_too(studies, starters):
    folder = own_models(studies, starters)
    (folder / "views.json").write_bytes(b"trained card")
    (starters / "views.json").write_bytes(b"newer card")

    assert models_in(own_models(studies, starters))["views.json"] == b"trained card"
    assert models_in(starters)["views.json"] == b"newer card"


def test_copies_that_nobody_trained_follow_newer_starters(studies, starters):
    own_models(studies, starters)
    (starters / "views.json").write_bytes(b"newer card")
    (starters / "boxes.json").write_bytes(b"another card")

    folder = own_models(studies, starters)

    assert models_in(folder) == {**FILES, "views.json": b"newer card", "boxes.json": b"another card"}


def test_models_of_a_folder_that_cannot_hold_them_are_kept_in_its_cache(studies, starters, tmp_path):
    (studies / ".echo_models").write_bytes(b"in the way")

    folder = own_models(studies, starters, tmp_path / "cache")

    assert folder.is_relative_to(tmp_path / "cache")
    assert models_in(folder) == FILES


def test_the_starters_are_not_published_into_even_if_they_are_named(studies, starters, tmp_path):
    assert served_models(studies, starters, starters) == own_models(studies, starters)
    assert served_models(studies, None, starters) == own_models(studies, starters)
    assert served_models(studies, tmp_path / "mine", starters) == tmp_path / "mine"


def test_the_samples_are_served_from_a_copy_that_keeps_what_is_said_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(folders, "SAMPLES", tmp_path / "checkout" / "samples")
    folders.SAMPLES.mkdir(parents=True)
    (folders.SAMPLES / "cine.dcm").write_bytes(b"cine")
    (folders.SAMPLES / ".echo_index.sqlite").write_bytes(b"of a command")

    copy = served_folder(folders.SAMPLES)
    (copy / "annotations").mkdir()
    again = served_folder(tmp_path / "checkout" / ".." / "checkout" / "samples")

    assert copy == again == tmp_path / "data" / "monailabel-echo" / "samples"
    assert sorted(path.name for path in copy.iterdir()) == ["annotations", "cine.dcm"]
    assert list(copy.parent.iterdir()) == [copy]
    assert served_folder(tmp_path) == tmp_path


def test_the_samples_are_those_of_the_checkout():
    assert list((SAMPLES / "annotations").glob("*.json"))


def test_what_monai_label_began_to_log_in_the_app_folder_goes_on_in_the_cache(tmp_path):
    begun, log = tmp_path / "app" / "logs" / "app.log", tmp_path / "cache" / "logs" / "app.log"
    begun.parent.mkdir(parents=True)
    handlers = [logging.FileHandler(begun), logging.FileHandler(begun)]
    logger = logging.getLogger("tests.moved")
    logger.addHandler(handlers[0])
    logging.getLogger().addHandler(handlers[1])
    try:
        logger.error("before")
        move_log(tmp_path / "app", log)
        logger.error("after")
    finally:
        logger.removeHandler(handlers[0])
        logging.getLogger().removeHandler(handlers[1])
        for handler in handlers:
            handler.close()

    assert log.read_text().splitlines() == ["before"] * 2 + ["after"] * 2
    assert not begun.exists()
