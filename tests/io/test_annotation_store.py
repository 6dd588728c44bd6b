# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from echo_plugin.anatomy import Defect, Septum
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.errors import AnnotationConflictError, AnnotationError, UnknownImageError
from echo_plugin.io.annotation_store import AnnotationStore, annotation_from_json

BOX = SeptalBox(1, 1.0, 2.0, 3.0, 4.0, Septum.INTERATRIAL)
DRAFT = Annotation("1.2.3", boxes=(BOX,), annotated_frames=(0, 1))
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)

WRITER = """
import sys
from pathlib import Path
from echo_plugin.annotations import Annotation
from echo_plugin.io.annotation_store import AnnotationStore

store, name, count, images = AnnotationStore(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3]), sys.argv[4].split(",")
for n in range(count):
    draft = Annotation(images[n % len(images)], annotated_frames=(n,))
    saved = store.save(draft, author=name, upload=f"{name} {n}".encode())
    print(saved.image_id, saved.revision, n, flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> AnnotationStore:
    return AnnotationStore(tmp_path / "annotations")


def start_writer(directory: Path, name: str, count: int, images: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory), name, str(count), images],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_nothing_saved_reads_as_none(store: AnnotationStore) -> None:
    assert store.current("1.2.3") is None
    assert store.history("1.2.3") == []
    assert store.uploads("1.2.3") == {}
    assert store.annotated_ids() == set()


def test_saved_annotation_has_author_time_and_next_revision(store: AnnotationStore) -> None:
    first = store.save(DRAFT, author="reader-1", now=NOON)
    second = store.save(replace(DRAFT, defect=Defect.ASD), author="reader-2", now=NOON)

    assert first == replace(DRAFT, author="reader-1", saved_at=NOON, revision=1)
    assert (second.revision, second.author, second.defect) == (2, "reader-2", Defect.ASD)
    assert store.current("1.2.3") == second
    assert store.history("1.2.3") == [first, second]
    assert store.annotated_ids() == {"1.2.3"}


def test_time_of_saving_is_now(store: AnnotationStore) -> None:
    saved_at = store.save(DRAFT, author=None).saved_at

    assert saved_at is not None
    assert abs((datetime.now(UTC) - saved_at).total_seconds()) < 60


def test_files_lie_where_the_design_says(store: AnnotationStore, tmp_path: Path) -> None:
    store.save(DRAFT, author="a", upload=b'{"markups": []}')
    store.save(DRAFT, author="b", upload=b"\x00sr", upload_suffix=".dcm")

    files = set(files_of(tmp_path / "annotations")) - {".lock"}
    assert files == {
        "1.2.3.json",
        "history/1.2.3/1.json",
        "history/1.2.3/1.upload.json",
        "history/1.2.3/2.upload.dcm",
    }
    assert {revision: path.read_bytes() for revision, path in store.uploads("1.2.3").items()} == {
        1: b'{"markups": []}',
        2: b"\x00sr",
    }


def test_change_of_an_older_revision_is_a_conflict_and_loses_nothing(store: AnnotationStore, tmp_path: Path) -> None:
    store.save(DRAFT, author="a")
    store.save(DRAFT, author="b", based_on_revision=1)
    before = files_of(tmp_path)

    with pytest.raises(
        AnnotationConflictError, match=r"1\.2\.3 has revision 2 by b by now, .* made to revision 1; reload"
    ):
        store.save(DRAFT, author="c", based_on_revision=1, upload=b"x")

    assert files_of(tmp_path) == before


def test_first_save_based_on_nothing_conflicts_with_one_that_came_before(store: AnnotationStore) -> None:
    store.save(DRAFT, author="a", based_on_revision=0)

    with pytest.raises(AnnotationConflictError, match="has revision 1 by a by now"):
        store.save(DRAFT, author="b", based_on_revision=0)


def test_removed_annotation_stays_in_history_and_revisions_go_on(store: AnnotationStore) -> None:
    first = store.save(DRAFT, author="a")

    store.remove("1.2.3")
    store.remove("1.2.3")

    assert store.current("1.2.3") is None
    assert store.history("1.2.3") == [first]
    assert store.save(DRAFT, author="b").revision == 2


def test_file_put_back_by_hand_does_not_overwrite_history(store: AnnotationStore, tmp_path: Path) -> None:
    first = store.save(DRAFT, author="a")
    store.save(DRAFT, author="b")
    path = tmp_path / "annotations" / "1.2.3.json"
    path.write_text(path.read_text().replace('"revision": 2', '"revision": 1').replace('"b"', '"by hand"'))

    third = store.save(DRAFT, author="c")

    assert third.revision == 2
    assert [a.author for a in store.history("1.2.3")] == ["a", "by hand", "c"]
    assert store.history("1.2.3")[0] == first


def test_unreadable_file_is_named_and_set_aside_by_the_next_save(store: AnnotationStore, tmp_path: Path) -> None:
    store.save(DRAFT, author="a")
    store.save(DRAFT, author="b")
    (tmp_path / "annotations" / "1.2.3.json").write_bytes(b"{half")

    with pytest.raises(AnnotationError, match=r"^1\.2\.3\.json: not JSON"):
        store.current("1.2.3")
    saved = store.save(DRAFT, author="c")

    assert saved.revision == 2
    assert (tmp_path / "annotations/history/1.2.3/unreadable.json").read_bytes() == b"{half"


def test_upload_is_never_overwritten_even_if_the_current_file_was_damaged(
    store: AnnotationStore, tmp_path: Path
) -> None:
    store.save(DRAFT, author="a")
    store.save(DRAFT, author="b", upload=b"two")
    (tmp_path / "annotations" / "1.2.3.json").write_bytes(b"{half")

    saved = store.save(DRAFT, author="c", upload=b"three")

    assert [store.uploads("1.2.3")[revision].read_bytes() for revision in (2, saved.revision)] == [b"two", b"three"]


def test_file_of_another_image_is_refused(store: AnnotationStore, tmp_path: Path) -> None:
    store.save(DRAFT, author="a")
    (tmp_path / "annotations/1.2.3.json").rename(tmp_path / "annotations/9.9.json")

    with pytest.raises(AnnotationError, match=r"9\.9\.json: 'image_id' is '1\.2\.3'"):
        store.current("9.9")


@pytest.mark.parametrize("image_id", ["../x", "a/b", "", ".hidden", "a..b", "x" * 201, "a\\b", "a\0", "a\n"])
def test_malformed_ids_are_refused_everywhere(store: AnnotationStore, image_id: str, tmp_path: Path) -> None:
    for use in (store.current, store.history, store.uploads, store.remove):
        with pytest.raises(UnknownImageError, match="is malformed"):
            use(image_id)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["/../../x", "", "json", ".JSON", ".a/b", "." * 5])
def test_upload_suffix_that_is_none_is_refused(store: AnnotationStore, suffix: str) -> None:
    with pytest.raises(AnnotationError, match=r"Upload suffix .* is malformed"):
        store.save(DRAFT, author="a", upload=b"x", upload_suffix=suffix)


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_full_disk_leaves_the_old_annotation_and_no_other_file(
    store: AnnotationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    first = store.save(DRAFT, author="a", upload=b"one")
    before = files_of(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(
            AnnotationError, match=r"1\.2\.3 cannot be saved .*\(No space left on device\); the earlier"
        ):
            store.save(DRAFT, author="b", upload=b"two")

    assert files_of(tmp_path) == before
    assert store.current("1.2.3") == first
    assert store.save(DRAFT, author="b").revision == 2


def test_failure_at_any_step_keeps_the_old_annotation_current(
    store: AnnotationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each save renames three files: the upload, the copy for history and the new annotation."""
    first = store.save(DRAFT, author="a")
    real, calls = os.replace, 0

    def fail_at_third(source: object, target: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(5, "Input/output error")
        real(source, target)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_at_third)
        with pytest.raises(AnnotationError, match="Input/output error"):
            store.save(DRAFT, author="b", upload=b"two")

    assert store.current("1.2.3") == first
    assert store.history("1.2.3") == [first]
    assert not list(tmp_path.rglob(".*.tmp.*"))


def test_folder_that_cannot_be_written_to_says_so(tmp_path: Path) -> None:
    (tmp_path / "annotations").write_text("a file where the directory should be")

    with pytest.raises(AnnotationError, match=r"cannot be saved in the study folder .* can be written to"):
        AnnotationStore(tmp_path / "annotations").save(DRAFT, author="a")


def test_temporary_files_of_a_killed_writer_are_cleared_away(store: AnnotationStore, tmp_path: Path) -> None:
    store.save(DRAFT, author="a")
    (tmp_path / "annotations" / ".0123456789abcdef.tmp.1.2.3.json").write_text("half")

    AnnotationStore(tmp_path / "annotations").save(DRAFT, author="b")

    assert not list(tmp_path.rglob(".*.tmp.*"))


def test_threads_lose_no_revision(store: AnnotationStore) -> None:
    def save(name: str) -> None:
        for n in range(10):
            store.save(replace(DRAFT, boxes=(), annotated_frames=(n,)), author=name)

    threads = [threading.Thread(target=save, args=(str(t),)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    history = store.history("1.2.3")
    assert [a.revision for a in history] == list(range(1, 41))
    assert {(a.author, a.annotated_frames[0]) for a in history} == {(str(t), n) for t in range(4) for n in range(10)}


def test_one_of_two_threads_with_the_same_base_gets_the_conflict(store: AnnotationStore) -> None:
    outcomes: list[str] = []

    def save(name: str) -> None:
        try:
            store.save(DRAFT, author=name, based_on_revision=0)
            outcomes.append("saved")
        except AnnotationConflictError:
            outcomes.append("conflict")

    threads = [threading.Thread(target=save, args=(str(t),)) for t in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == ["conflict"] * 7 + ["saved"]


@pytest.mark.heavy
def test_four_programs_on_the_same_and_on_different_images_lose_no_revision(
    store: AnnotationStore, tmp_path: Path
) -> None:
    directory = tmp_path / "annotations"
    writers = [start_writer(directory, f"w{w}", 25, f"shared,own-{w}") for w in range(4)]

    outputs = [writer.communicate(timeout=60)[0] for writer in writers]

    assert [writer.returncode for writer in writers] == [0, 0, 0, 0]
    shared = store.history("shared")
    assert [a.revision for a in shared] == list(range(1, 4 * 13 + 1))
    assert {(a.author, a.annotated_frames[0]) for a in shared} == {
        (f"w{w}", n) for w in range(4) for n in range(0, 25, 2)
    }
    assert [[a.revision for a in store.history(f"own-{w}")] for w in range(4)] == [list(range(1, 13))] * 4
    for w, output in enumerate(outputs):
        for image_id, revision, n in (line.split() for line in output.splitlines()):
            assert store.uploads(image_id)[int(revision)].read_text() == f"w{w} {n}"


@pytest.mark.heavy
@pytest.mark.parametrize("acknowledged", [3, 17])
def test_killed_program_loses_no_acknowledged_revision(
    store: AnnotationStore, tmp_path: Path, acknowledged: int
) -> None:
    directory = tmp_path / "annotations"
    writer = start_writer(directory, "w", 100_000, "a,b,c")
    assert writer.stdout is not None
    lines = [writer.stdout.readline() for _ in range(acknowledged)]
    time.sleep(0.0123)  # into the middle of some later save

    writer.kill()
    lines += writer.stdout.readlines()
    writer.wait(timeout=10)

    for path in directory.rglob("*.json"):
        if ".upload" not in path.name:
            assert annotation_from_json(path.read_text(), source=path.name).author == "w"
    saved = {image_id: {a.revision: a.annotated_frames for a in store.history(image_id)} for image_id in "abc"}
    for image_id, revision, n in (line.split() for line in lines if line.endswith("\n")):
        assert saved[image_id][int(revision)] == (int(n),)
    assert store.save(Annotation("a"), author="after").revision > max(saved["a"])


def test_files_are_canonical_json(store: AnnotationStore, tmp_path: Path) -> None:
    store.save(DRAFT, author="a", now=NOON)

    document = json.loads((tmp_path / "annotations" / "1.2.3.json").read_text())

    assert (document["schema"], document["revision"], document["saved_at"]) == (
        "monailabel-echo/annotation",
        1,
        "2026-01-31T12:00:00+00:00",
    )
