# SPDX-License-Identifier: Apache-2.0
import logging
import multiprocessing
import os
import sqlite3
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage

from echo_plugin.anatomy import Defect, Septum
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.errors import AnnotationConflictError, AnnotationError, UnknownImageError, UnreadableCineError
from echo_plugin.io.study_folder import StudyFolder


def write_dicom(path: Path, uid: str, *, patient_id: str | None = "phantom-1", frames: int = 3) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UltrasoundMultiFrameImageStorage, uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    cine = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    cine.is_little_endian, cine.is_implicit_VR = True, False
    cine.SOPClassUID, cine.SOPInstanceUID = UltrasoundMultiFrameImageStorage, uid
    cine.StudyInstanceUID, cine.SeriesInstanceUID, cine.Modality = "1.2.7", "1.2.7.1", "US"
    if patient_id:
        cine.PatientID = patient_id
    cine.NumberOfFrames, cine.Rows, cine.Columns, cine.FrameTime = frames, 8, 10, "25.0"
    cine.FrameIncrementPointer = 0x00181063
    cine.SamplesPerPixel, cine.PhotometricInterpretation, cine.PixelRepresentation = 1, "MONOCHROME2", 0
    cine.BitsAllocated, cine.BitsStored, cine.HighBit = 8, 8, 7
    cine.PixelData = np.arange(frames * 80, dtype=np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    cine.save_as(path, write_like_original=False)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two readable cines in nested folders and one that is none."""
    root = tmp_path / "studies"
    write_dicom(root / "b" / "deep" / "one.dcm", "1.2.1")
    write_dicom(root / "a.dcm", "1.2.2", patient_id=None, frames=1)
    (root / "broken.dcm").write_bytes(b"not a cine")
    return root


def test_readable_cines_are_listed_by_sop_instance_uid(root: Path) -> None:
    assert StudyFolder(root).image_ids() == ["1.2.2", "1.2.1"]


def test_entry_tells_what_the_header_says(root: Path) -> None:
    entry = StudyFolder(root).entry("1.2.1")

    assert entry.path == root / "b" / "deep" / "one.dcm"
    assert (entry.frames, entry.height, entry.width, entry.frame_time_ms) == (3, 8, 10, 25.0)
    assert (entry.study_instance_uid, entry.series_instance_uid, entry.patient_id) == ("1.2.7", "1.2.7.1", "phantom-1")
    assert entry.error is None
    assert "phantom-1" not in repr(entry)


def test_unreadable_file_is_listed_with_its_error_and_stops_no_other(root: Path) -> None:
    folder = StudyFolder(root)

    (problem,) = folder.problems()
    assert (problem.image_id, problem.path.name, problem.frames) == ("broken.dcm", "broken.dcm", None)
    assert problem.error is not None
    assert "'broken.dcm'" in problem.error
    assert folder.entry("broken.dcm") == problem


def test_reader_that_breaks_on_one_file_stops_no_other(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from echo_plugin.io import study_index

    real = study_index.read_cine

    def read(path: Path, **options: object) -> object:
        if path.name == "a.dcm":
            raise RuntimeError("a bug")
        return real(path, **options)

    monkeypatch.setattr(study_index, "read_cine", read)
    folder = StudyFolder(root)

    assert folder.image_ids() == ["1.2.1"]
    assert next(p.error for p in folder.problems()) == "File 'a.dcm' cannot be read (RuntimeError)."


def test_cine_is_read_by_its_id(root: Path) -> None:
    cine = StudyFolder(root).read_cine("1.2.1")

    assert cine.image_id == "1.2.1"
    assert cine.pixels.shape == (3, 8, 10, 1)


def test_cine_replaced_by_another_instance_is_refused(root: Path) -> None:
    folder = StudyFolder(root)
    write_dicom(root / "a.dcm", "1.2.99")

    with pytest.raises(UnreadableCineError, match=r"'a\.dcm' holds another SOP instance than image 1\.2\.2"):
        folder.read_cine("1.2.2")


def test_file_without_a_uid_is_called_by_its_escaped_path(root: Path) -> None:
    write_dicom(root / "Kind ä" / "x y.dcm", "")

    assert "Kind%20%C3%A4%2Fx%20y.dcm" in StudyFolder(root).image_ids()


@pytest.mark.parametrize("image_id", ["../a", "a/b", "", "1..2", "x\0"])
def test_malformed_ids_are_refused(root: Path, image_id: str) -> None:
    folder = StudyFolder(root)

    for use in (folder.entry, folder.read_cine, folder.annotation, folder.history, folder.remove_image):
        with pytest.raises(UnknownImageError, match="is malformed"):
            use(image_id)


def test_unknown_id_is_refused(root: Path) -> None:
    folder = StudyFolder(root)

    with pytest.raises(UnknownImageError, match=r"Image 1\.2\.404 is not in the study folder"):
        folder.entry("1.2.404")
    with pytest.raises(UnknownImageError, match=r"Image 1\.2\.404 is not in the study folder"):
        folder.save_annotation(Annotation("1.2.404"), author="a")


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="'nowhere' is no directory"):
        StudyFolder(tmp_path / "nowhere")


def test_empty_folder_has_no_images(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)

    assert (folder.image_ids(), folder.problems(), folder.annotated_ids()) == ([], [], [])


def test_first_of_several_copies_is_used_and_the_others_are_reported(root: Path) -> None:
    write_dicom(root / "b" / "copy.dcm", "1.2.1")

    folder = StudyFolder(root)

    assert folder.image_ids() == ["1.2.2", "1.2.1"]
    assert folder.entry("1.2.1").path == root / "b" / "copy.dcm"
    sentences = [p.error for p in folder.problems() if p.image_id == "1.2.1"]
    assert sentences == ["File 'one.dcm' holds the SOP instance 1.2.1 once more; 'b/copy.dcm' is used."]


def test_second_copy_takes_over_when_the_first_is_gone(root: Path) -> None:
    copy = write_dicom(root / "b" / "copy.dcm", "1.2.1")
    folder = StudyFolder(root)

    copy.unlink()
    folder.refresh()

    assert folder.entry("1.2.1").path.name == "one.dcm"
    assert folder.entry("1.2.1").error is None


def test_refresh_reads_only_what_is_new_or_changed(root: Path) -> None:
    folder = StudyFolder(root)

    assert folder.refresh() == 0
    write_dicom(root / "new.dcm", "1.2.3")
    write_dicom(root / "a.dcm", "1.2.2", frames=5)
    assert folder.refresh() == 2
    assert folder.entry("1.2.2").frames == 5
    (root / "new.dcm").unlink()
    assert folder.refresh() == 0
    assert folder.image_ids() == ["1.2.2", "1.2.1"]


def test_refresh_tells_its_progress(root: Path) -> None:
    folder = StudyFolder(root)
    for n in range(3):
        write_dicom(root / f"{n}.dcm", f"1.3.{n}")
    told: list[tuple[int, int]] = []

    folder.refresh(lambda done, total: told.append((done, total)))

    assert told == [(3, 3)]


def test_index_outlives_the_program_and_is_made_again_when_deleted(root: Path) -> None:
    before = StudyFolder(root).entries()

    assert StudyFolder(root).refresh() == 0
    assert StudyFolder(root).entries() == before
    for path in root.glob(".echo_index.sqlite*"):
        path.unlink()
    assert StudyFolder(root).entries() == before


@pytest.mark.parametrize("content", [b"no database at all, but long enough to look like one" * 40, b""])
def test_damaged_index_is_made_again(root: Path, content: bytes) -> None:
    (root / ".echo_index.sqlite").write_bytes(content)

    assert StudyFolder(root).image_ids() == ["1.2.2", "1.2.1"]


def test_index_of_another_version_is_made_again(root: Path) -> None:
    connection = sqlite3.connect(root / ".echo_index.sqlite")
    connection.executescript("CREATE TABLE files (image_id, other); PRAGMA user_version = 99")
    connection.close()

    assert StudyFolder(root).image_ids() == ["1.2.2", "1.2.1"]


def test_folder_that_takes_no_index_has_it_in_the_cache_and_says_so(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (root / ".echo_index.sqlite").mkdir()

    with caplog.at_level(logging.WARNING):
        folder = StudyFolder(root)

    assert folder.image_ids() == ["1.2.2", "1.2.1"]
    assert "its index is kept in the user's cache" in caplog.text
    assert list((tmp_path / "cache" / "monailabel-echo").glob("*.sqlite"))


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a user's folders to the user by itself")
def test_index_in_the_cache_is_for_the_eyes_of_its_user_alone(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (root / ".echo_index.sqlite").mkdir()
    (tmp_path / "cache" / "monailabel-echo").mkdir(parents=True, mode=0o755)

    StudyFolder(root)

    assert (tmp_path / "cache" / "monailabel-echo").stat().st_mode & 0o077 == 0


def test_without_folder_or_cache_the_index_is_made_at_every_start(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("no directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (root / ".echo_index.sqlite").mkdir()

    assert StudyFolder(root).image_ids() == ["1.2.2", "1.2.1"]
    assert "made anew at every start" in caplog.text


def test_what_is_ours_or_hidden_is_no_image(root: Path) -> None:
    for name in ("annotations/1.dcm", ".hidden/2.dcm", ".3.dcm", "notes.txt", "table.csv", "DICOMDIR", "4.tar.gz"):
        write_dicom(root / name, f"1.4.{len(name)}")
    write_dicom(root / "sub" / "annotations" / "5.dcm", "1.5.1")
    write_dicom(root / "1.2.840.5", "1.5.2")
    write_dicom(root / "no_suffix", "1.5.3")

    assert set(StudyFolder(root).image_ids()) == {"1.2.1", "1.2.2", "1.5.1", "1.5.2", "1.5.3"}


def test_links_to_files_are_images_wherever_they_point(root: Path, tmp_path: Path) -> None:
    outside = write_dicom(tmp_path / "archive" / "x.dcm", "1.6.1")
    (root / "link.dcm").symlink_to(outside)
    (root / "gone.dcm").symlink_to(tmp_path / "archive" / "gone.dcm")
    (root / "circle").symlink_to(root)

    folder = StudyFolder(root)

    assert folder.image_ids() == ["1.2.2", "1.2.1", "1.6.1"]
    assert folder.entry("1.6.1").path == root / "link.dcm"
    assert {p.path.name for p in folder.problems()} == {"broken.dcm", "gone.dcm"}
    assert folder.refresh() == 0


def test_pipe_in_the_folder_does_not_block(root: Path) -> None:
    os.mkfifo(root / "pipe.dcm")

    assert StudyFolder(root).image_ids() == ["1.2.2", "1.2.1"]


def test_patient_comes_from_the_file_else_from_the_table(root: Path) -> None:
    (root / "patients.csv").write_text("image_id,patient_id,note\n1.2.2,p-7,\n1.2.1,p-8,\nb/x.mp4,p-9,\n")

    folder = StudyFolder(root)

    assert folder.entry("1.2.2").patient_id == "p-7"
    assert folder.entry("1.2.1").patient_id == "phantom-1"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,patient\n", r"patients\.csv: the columns \['image_id', 'patient_id'\]"),
        ("image_id,patient_id\na,1\na,2\n", r"patients\.csv: line 3 gives an image to a second patient"),
        ("image_id,patient_id\na\n", r"patients\.csv: line 2 has an empty"),
    ],
)
def test_malformed_table_of_patients_is_refused(root: Path, text: str, sentence: str) -> None:
    (root / "patients.csv").write_text(text)

    with pytest.raises(AnnotationError, match=sentence):
        StudyFolder(root)


def test_annotation_is_saved_and_read_back(root: Path) -> None:
    folder = StudyFolder(root)
    box = SeptalBox(2, 1, 2, 5, 6, Septum.INTERVENTRICULAR)
    draft = Annotation("1.2.1", boxes=(box,), annotated_frames=(0, 2), defect=Defect.VSD)

    saved = folder.save_annotation(draft, author="reader-1", upload=b"raw")

    assert StudyFolder(root).annotation("1.2.1") == saved
    assert folder.history("1.2.1") == [saved]
    assert folder.annotated_ids() == ["1.2.1"]
    assert folder.uploads("1.2.1")[1].read_bytes() == b"raw"
    with pytest.raises(AnnotationConflictError, match="has revision 1 by reader-1"):
        folder.save_annotation(draft, author="reader-2", based_on_revision=0)


def test_annotation_of_a_frame_the_cine_lacks_is_refused(root: Path) -> None:
    with pytest.raises(AnnotationError, match=r"1\.2\.1 names frame index 3 \(0-based\); the cine has 0 to 2"):
        StudyFolder(root).save_annotation(Annotation("1.2.1", annotated_frames=(3,)), author="a")


@pytest.mark.parametrize("corners", [(10, 2, 15, 4), (2, 8, 4, 15), (-5, 2, 0, 4), (2, -5, 4, 0)])
def test_box_outside_the_picture_is_refused(root: Path, corners: tuple[float, float, float, float]) -> None:
    box = SeptalBox(1, *corners, Septum.INTERATRIAL)

    with pytest.raises(AnnotationError, match=r"1\.2\.1 has a box from .* outside the picture of 10 x 8 px"):
        StudyFolder(root).save_annotation(Annotation("1.2.1", (box,), (1,)), author="a")


def test_unreadable_image_cannot_be_annotated(root: Path) -> None:
    with pytest.raises(AnnotationError, match=r"Image broken\.dcm cannot be annotated: File 'broken\.dcm'"):
        StudyFolder(root).save_annotation(Annotation("broken.dcm"), author="a")


def test_removed_annotation_stays_in_history(root: Path) -> None:
    folder = StudyFolder(root)
    saved = folder.save_annotation(Annotation("1.2.1", annotated_frames=(0,)), author="a")

    folder.remove_annotation("1.2.1")

    assert (folder.annotation("1.2.1"), folder.annotated_ids(), folder.history("1.2.1")) == (None, [], [saved])


def test_annotation_of_a_vanished_image_is_kept_but_not_listed(root: Path) -> None:
    folder = StudyFolder(root)
    saved = folder.save_annotation(Annotation("1.2.2", annotated_frames=(0,)), author="a")

    (root / "a.dcm").unlink()
    folder.refresh()

    assert folder.annotated_ids() == []
    assert folder.annotation("1.2.2") == saved


def visible_files(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and ".echo_index" not in p.name}


def test_uploaded_image_is_listed_at_once(root: Path, tmp_path: Path) -> None:
    folder = StudyFolder(root)
    source = write_dicom(tmp_path / "new.dcm", "1.7.1")

    assert folder.add_image(source.read_bytes(), "new.dcm") == "1.7.1"
    assert folder.add_image(source, "new.dcm") == "1.7.1"
    assert folder.add_image(source, "again.dcm") == "1.7.1"
    assert (root / "new.dcm").read_bytes() == source.read_bytes()
    assert "again.dcm" not in visible_files(root)


@pytest.mark.parametrize(
    "name",
    ["../x.dcm", "a/x.dcm", "a\\x.dcm", "", ".x.dcm", "x.exe", "x.csv", "x\n.dcm", "x" * 200 + ".dcm", "a:b.dcm"],
)
def test_upload_with_a_name_that_is_none_of_an_image_is_refused(root: Path, tmp_path: Path, name: str) -> None:
    folder = StudyFolder(root)
    before = visible_files(tmp_path)

    with pytest.raises(UnreadableCineError, match=r"File name .* is not accepted; a plain name"):
        folder.add_image(b"x", name)

    assert visible_files(tmp_path) - {"studies/annotations/.lock"} == before


def test_upload_that_is_no_cine_or_too_large_or_taken_is_refused(root: Path, tmp_path: Path) -> None:
    folder = StudyFolder(root)
    other = write_dicom(tmp_path / "other.dcm", "1.7.2").read_bytes()
    same_uid = write_dicom(tmp_path / "same.dcm", "1.2.1", frames=4).read_bytes()
    before = visible_files(root)

    with pytest.raises(UnreadableCineError, match=r"^File 'x\.dcm'"):
        folder.add_image(b"not a cine", "x.dcm")
    with pytest.raises(UnreadableCineError, match=r"^File 'x\.dcm' has 0 bytes"):
        folder.add_image(b"", "x.dcm")
    with pytest.raises(UnreadableCineError, match=r"bytes; 1 to 100 are accepted"):
        folder.add_image(other, "x.dcm", max_bytes=100)
    with pytest.raises(UnreadableCineError, match=r"'a\.dcm': another image of the study folder has this name"):
        folder.add_image(other, "a.dcm")
    with pytest.raises(UnreadableCineError, match="has the same SOP Instance UID; nothing is overwritten"):
        folder.add_image(same_uid, "x.dcm")
    with pytest.raises(UnreadableCineError, match=r"^File 'x\.dcm' "):
        folder.add_image(other[:-50], "x.dcm")

    assert visible_files(root) - {"annotations/.lock"} == before


def test_full_disk_leaves_nothing_of_an_upload(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = StudyFolder(root)
    source = write_dicom(tmp_path / "new.dcm", "1.7.1")
    before = visible_files(root)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UnreadableCineError, match=r"'new\.dcm' cannot be stored .*\(No space left on device\)"):
        folder.add_image(source, "new.dcm")

    assert visible_files(root) - {"annotations/.lock"} == before


def test_upload_that_a_killed_program_left_is_cleared_away_by_the_next(root: Path, tmp_path: Path) -> None:
    folder = StudyFolder(root)
    (root / ".0123456789abcdef.tmp.heart.dcm").write_bytes(b"half a cine")
    (root / ".profile.dcm").write_bytes(b"not ours")

    folder.add_image(write_dicom(tmp_path / "new.dcm", "1.2.5"), "new.dcm")

    assert not (root / ".0123456789abcdef.tmp.heart.dcm").exists()
    assert (root / ".profile.dcm").exists()


def test_removed_image_and_its_annotation_are_kept_out_of_sight(root: Path) -> None:
    folder = StudyFolder(root)
    content = (root / "a.dcm").read_bytes()
    saved = folder.save_annotation(Annotation("1.2.2", annotated_frames=(0,)), author="a")

    folder.remove_image("1.2.2")

    assert folder.image_ids() == ["1.2.1"]
    assert (root / ".removed" / "1.2.2" / "a.dcm").read_bytes() == content
    assert (folder.annotation("1.2.2"), folder.history("1.2.2")) == (None, [saved])
    with pytest.raises(UnknownImageError, match="is not in the study folder"):
        folder.remove_image("1.2.2")


def test_threads_may_use_one_folder(root: Path) -> None:
    folder = StudyFolder(root)
    errors: list[BaseException] = []

    def use() -> None:
        try:
            for _ in range(5):
                folder.refresh()
                assert folder.image_ids() == ["1.2.2", "1.2.1"]
                folder.save_annotation(Annotation("1.2.1", annotated_frames=(1,)), author="t")
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert len(folder.history("1.2.1")) == 30


def _open(root: Path, results: "multiprocessing.Queue[list[str]]") -> None:
    results.put(StudyFolder(root).image_ids())


@pytest.mark.heavy
def test_programs_may_open_one_folder_at_the_same_time(root: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[list[str]] = context.Queue()
    programs = [context.Process(target=_open, args=(root, results)) for _ in range(6)]
    for program in programs:
        program.start()

    assert [results.get(timeout=60) for _ in programs] == [["1.2.2", "1.2.1"]] * 6
    for program in programs:
        program.join()
    assert [program.exitcode for program in programs] == [0] * 6


def test_forked_program_may_use_the_folder_of_its_parent(root: Path) -> None:
    folder = StudyFolder(root)
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[list[str]] = context.Queue()
    program = context.Process(target=lambda: results.put(folder.image_ids()))
    program.start()

    assert results.get(timeout=60) == ["1.2.2", "1.2.1"]
    program.join()
    assert folder.image_ids() == ["1.2.2", "1.2.1"]


@pytest.mark.heavy
def test_unchanged_folder_of_ten_thousand_files_refreshes_in_two_seconds(tmp_path: Path) -> None:
    """The files are links to one that is no cine: what a refresh does is the same, and they need no second to make."""
    (tmp_path / "one.txt").write_bytes(b"not a cine")
    for patient in range(100):
        directory = tmp_path / "studies" / f"patient-{patient}"
        directory.mkdir(parents=True)
        for n in range(100):
            (directory / f"{n}.dcm").symlink_to(tmp_path / "one.txt")
    folder = StudyFolder(tmp_path / "studies")

    start = time.process_time()
    assert folder.refresh() == 0
    elapsed_s = time.process_time() - start

    assert len(folder.entries()) == 10_000
    assert elapsed_s < 2.0


def test_instances_are_images_and_reports_as_they_are_now_whatever_the_table_of_patients_says(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, generation = StudyFolder(root), StudyFolder(root).generation
    assert set(folder.instances()) == {"1.2.1", "1.2.2"}
    monkeypatch.setattr("echo_plugin.io.study_folder.RESCAN_AFTER_S", -1.0)
    (root / "patients.csv").write_text("no table")
    write_dicom(root / "annotations" / "reports" / "1.7.1.dcm", "1.7.1")

    assert set(folder.instances()) == {"1.2.1", "1.2.2", "1.7.1"}
    assert folder.instances()["1.7.1"].text("SOPInstanceUID") == "1.7.1"
    assert folder.image_ids() == ["1.2.2", "1.2.1"]
    assert folder.generation == generation  # a report is no new cine
    (root / "annotations" / "reports" / "1.7.1.dcm").unlink()
    assert set(folder.instances()) == {"1.2.1", "1.2.2"}
