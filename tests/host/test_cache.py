# SPDX-License-Identifier: Apache-2.0
"""Renditions are made once per content, and the oldest go when there are too many."""

import os
import threading

import itk
import numpy as np
import pytest

from echo_plugin.cine import Cine
from echo_plugin.host.cache import RenditionCache, cache_folder, read_json, write_kept


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


def test_a_touched_file_of_the_same_content_is_not_rendered_anew(tmp_path, source):
    cache = RenditionCache(tmp_path / "renditions")
    read = CountedReads()
    first = cache.path("1.2.3", source, read)

    os.utime(source, ns=(1, 1))

    assert cache.path("1.2.3", source, read) == first
    assert read.count == 1


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
