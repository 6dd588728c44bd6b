# SPDX-License-Identifier: Apache-2.0
"""An export holds what people said, and nobody's name."""

import csv
import json
import os
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from echo_plugin.anatomy import Septum, View
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.cine import Cine, FramesInMemory, RegionDataType, UltrasoundRegion
from echo_plugin.errors import EchoError, UnreadableCineError
from echo_plugin.export.study_folder import (
    KEY_FILE,
    ExportFormat,
    Pseudonyms,
    deidentified_instance,
    export_study_folder,
    parse_formats,
    tissue_mask,
)
from echo_plugin.io.cine_file import read_cine
from echo_plugin.io.dicom_sr import boxes_of_person, read_report
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.phantom.study import write_phantom_study_folder

pytestmark = pytest.mark.heavy

BOX = SeptalBox(1, 100.5, 60.25, 200.0, 180.0, Septum.INTERVENTRICULAR)
AUTHOR = "Dr Isolde Unverkennbar"


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    """Two synthetic children whose cines carry invented names, in the header and on the screen."""
    root = tmp_path_factory.mktemp("export") / "Familie Kleinlich"
    write_phantom_study_folder(root, patients=2, seed=5, views=[View.A4C], frames=3)
    folder = StudyFolder(root)
    for image_id in folder.image_ids():
        folder.save_annotation(Annotation(image_id, (BOX,), (0, 1), View.A4C), author=AUTHOR)
    return root


@pytest.fixture(scope="module")
def exported(studies, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "exported"
    done = export_study_folder(studies, out, list(ExportFormat))

    assert (done.cines, done.problems) == (2, ())
    return out


def test_no_invented_name_is_in_any_output_byte(studies, exported):
    secret = {AUTHOR, "Unverkennbar", "Kleinlich"}
    for path in studies.rglob("*.dcm"):
        header = dcmread(path, stop_before_pixels=True)
        secret |= set(str(header.PatientName).split("^")) | {header.PatientID, header.PatientBirthDate, path.stem}
        secret |= {header.StudyInstanceUID, header.SeriesInstanceUID, header.SOPInstanceUID}
        secret |= {
            str(header.get(name)) for name in ("InstitutionName", "StationName", "OperatorsName") if header.get(name)
        }
    secret = {text for text in secret if len(text) > 3}
    assert len(secret) > 12

    for path in exported.rglob("*"):
        content = path.name.encode() + (path.read_bytes() if path.is_file() else b"")
        found = [text for text in secret if text.encode() in content or text.encode("utf-16-le") in content]
        assert not found, path.name


def test_pixels_outside_the_tissue_are_black(studies, exported):
    folder = StudyFolder(studies)
    compared = 0
    for path in (exported / "sr").glob("cine-*.dcm"):
        if path.stem.endswith("_boxes"):
            continue
        cine = read_cine(path)
        original = next(
            folder.read_cine(i) for i in folder.image_ids() if _same_shape(folder.read_cine(i), cine, path, folder)
        )
        mask = tissue_mask(original)
        assert not cine.pixels[:, ~mask].any()
        assert original.pixels[:, ~mask].any()  # the names, scales and traces that were there
        assert np.array_equal(cine.pixels[:, mask], original.pixels[:, mask])
        compared += 1
    assert compared == 2


def _same_shape(original, cine, path, folder):
    names = Pseudonyms((folder.root / KEY_FILE).read_bytes())
    return names.name("cine", original.image_id) == path.stem


def test_coco_holds_the_boxes_and_the_frames_without_one(exported):
    coco = json.loads((exported / "coco" / "annotations.json").read_text())

    assert [image["frame_index"] for image in coco["images"]] == [0, 1, 0, 1]
    assert [a["image_id"] for a in coco["annotations"]] == [2, 4]
    assert coco["annotations"][0]["bbox"] == [100.5, 60.25, 99.5, 119.75]
    assert coco["annotations"][0]["category_id"] == 2
    for image in coco["images"]:
        assert Image.open(exported / "coco" / image["file_name"]).size == (image["width"], image["height"])


def test_coco_is_what_the_usual_reader_reads(exported):
    reader = pytest.importorskip("faster_coco_eval")

    coco = reader.COCO(str(exported / "coco" / "annotations.json"))

    assert len(coco.getImgIds()) == 4
    assert len(coco.getAnnIds(catIds=[2])) == 2


def test_tables_hold_what_was_said(exported):
    with (exported / "csv" / "cines.csv").open() as file:
        cines = list(csv.DictReader(file))
    with (exported / "csv" / "boxes.csv").open() as file:
        boxes = list(csv.DictReader(file))

    assert [(row["view"], row["frames"], row["annotated_frames"]) for row in cines] == [("A4C", "3", "0 1")] * 2
    assert len({row["patient"] for row in cines}) == 2
    assert [float(boxes[0][name]) for name in ("x1", "y1", "x2", "y2")] == [100.5, 60.25, 200.0, 180.0]


def test_reports_are_about_the_exported_instances(exported):
    reports = sorted((exported / "sr").glob("*_boxes.dcm"))

    assert len(reports) == 2
    for path in reports:
        instance = dcmread(path.with_name(path.name.replace("_boxes", "")))
        assert boxes_of_person(read_report(path.read_bytes())).boxes == {instance.SOPInstanceUID: (BOX,)}
        assert instance.PatientIdentityRemoved == "YES"


def test_a_dicom_validator_accepts_the_instances(exported):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")

    for path in (exported / "sr").glob("*.dcm"):
        done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
        assert "Error" not in done.stdout + done.stderr, path.name


def test_the_film_plays_every_frame_with_its_boxes(exported):
    films = sorted((exported / "mp4").glob("*.mp4"))

    assert len(films) == 2
    with av.open(str(films[0])) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == 3
    changed = np.abs(frames[1].astype(int) - frames[0])[60:180, 99:103].max()
    assert changed > 60  # the box of frame 1 alone


def test_overlays_show_the_box_on_its_frame(exported):
    with_box = sorted((exported / "png").glob("*_frame0001.png"))[0]
    without = with_box.with_name(with_box.name.replace("0001", "0000"))

    assert tuple(np.asarray(Image.open(with_box))[100, 100]) == (230, 159, 0)
    assert tuple(np.asarray(Image.open(without))[100, 100]) != (230, 159, 0)


def test_pseudonyms_stay_the_same_in_a_later_export(studies, exported, tmp_path):
    export_study_folder(studies, tmp_path / "again", [ExportFormat.CSV])

    assert (tmp_path / "again/csv/cines.csv").read_text() == (exported / "csv/cines.csv").read_text()
    assert (studies / KEY_FILE).stat().st_mode & 0o077 == 0


def test_pseudonyms_of_another_key_are_others():
    one, other = Pseudonyms(b"1" * 32), Pseudonyms(b"2" * 32)

    assert one.name("patient", "P-7") != other.name("patient", "P-7")
    assert one.uid("1.2.3") != other.uid("1.2.3")
    assert "P-7" not in one.name("patient", "P-7")


def test_a_cine_whose_tissue_cannot_be_told_is_not_exported(tmp_path):
    Image.new("L", (64, 48)).save(tmp_path / "blank.png")
    folder = StudyFolder(tmp_path)
    folder.save_annotation(Annotation(folder.image_ids()[0], (), (0,)), author="x")

    done = export_study_folder(tmp_path, tmp_path / "out", [ExportFormat.PNG])

    assert done.cines == 0
    assert "no sector that could be told from text" in done.problems[0]
    assert not list((tmp_path / "out/png").iterdir())


def test_text_in_the_corner_of_the_region_is_not_tissue():
    """A fan leaves the corners of its bounding box empty; what stands still there is text."""
    rows, columns = np.mgrid[:120, :160]
    fan = (np.hypot(rows, columns - 80) < 110) & (np.abs(columns - 80) < 0.7 * rows)
    frames = np.random.default_rng(1).integers(0, 255, (6, 120, 160, 1), dtype=np.uint8) * fan[None, :, :, None]
    frames[:, 4:14, 4:40] = 255

    mask = tissue_mask(Cine("made", FramesInMemory(frames)))

    assert not mask[4:14, 4:40].any()
    assert mask[fan].mean() > 0.95


def page_of_text(frames: int) -> np.ndarray:
    """(T, 120, 160, 1) frames of dense strokes that stand still."""
    page = np.zeros((120, 160, 1), dtype=np.uint8)
    page[10:110:4, 10:150:3] = 220
    return np.repeat(page[None], frames, axis=0)


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("region", [None, (0, 0, 160, 120)])
def test_a_page_of_text_is_no_tissue(frames, region):
    regions = () if region is None else (UltrasoundRegion(*region, data_type=RegionDataType.TISSUE),)

    with pytest.raises(UnreadableCineError, match="no sector that could be told from text"):
        tissue_mask(Cine("page", FramesInMemory(page_of_text(frames)), regions=regions))


def test_a_still_shows_tissue_only_where_its_header_says():
    still = np.random.default_rng(1).integers(0, 255, (1, 120, 160, 1), dtype=np.uint8)
    region = UltrasoundRegion(40, 30, 120, 100, data_type=RegionDataType.TISSUE)

    mask = tissue_mask(Cine("still", FramesInMemory(still), regions=(region,)))

    assert mask[30:100, 40:120].mean() > 0.95
    assert mask.sum() == mask[30:100, 40:120].sum()


def test_a_still_of_text_is_named_in_the_report_and_not_written(tmp_path):
    Image.fromarray(page_of_text(1)[0, ..., 0]).save(tmp_path / "page.png")
    folder = StudyFolder(tmp_path)
    folder.save_annotation(Annotation(folder.image_ids()[0], (), (0,)), author="x")

    done = export_study_folder(tmp_path, tmp_path / "out", [ExportFormat.PNG, ExportFormat.SR])

    assert done.cines == 0
    assert "page.png" in done.problems[0]
    assert not list((tmp_path / "out/png").iterdir())
    assert not list((tmp_path / "out/sr").iterdir())


def test_tables_and_dicom_name_a_patient_alike(studies, tmp_path):
    """A file that names no patient: patients.csv may, or it is a patient of its own."""
    known, unknown = sorted(studies.rglob("*.dcm"))
    for path, to in ((known, "known.dcm"), (unknown, "unknown.dcm")):
        anonymous = dcmread(path)
        anonymous.PatientID = ""
        anonymous.save_as(tmp_path / to)
    (tmp_path / "patients.csv").write_text(f"image_id,patient_id\n{dcmread(known).SOPInstanceUID},P-7\n")
    folder = StudyFolder(tmp_path)
    for image_id in folder.image_ids():
        folder.save_annotation(Annotation(image_id, (), (0,)), author="x")

    done = export_study_folder(tmp_path, tmp_path / "out", [ExportFormat.CSV, ExportFormat.SR])

    assert (done.cines, done.problems) == (2, ())
    with (tmp_path / "out/csv/cines.csv").open() as file:
        in_tables = {row["patient"] for row in csv.DictReader(file)}
    assert len(in_tables) == 2
    assert {dcmread(path).PatientID for path in (tmp_path / "out/sr").glob("*.dcm")} == in_tables
    assert Pseudonyms((tmp_path / KEY_FILE).read_bytes()).name("patient", "P-7") in in_tables


@pytest.mark.parametrize("content", [b"", b"k" * 31])
def test_a_damaged_key_is_refused(studies, tmp_path, content):
    copied = shutil.copytree(studies, tmp_path / "studies")
    (copied / KEY_FILE).write_bytes(content)

    with pytest.raises(EchoError, match=rf"has {len(content)} bytes, not 32; restore it"):
        export_study_folder(copied, tmp_path / "out", [ExportFormat.CSV])


def test_a_key_that_cannot_be_written_is_said_and_leaves_nothing(studies, tmp_path, monkeypatch):
    copied = shutil.copytree(studies, tmp_path / "studies")
    (copied / KEY_FILE).unlink(missing_ok=True)

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(EchoError, match=r"cannot be used \(No space left"):
        patched.setattr(os, "fsync", full)
        export_study_folder(copied, tmp_path / "out", [ExportFormat.CSV])

    assert not (copied / KEY_FILE).exists()


def test_a_still_without_texture_is_refused():
    with pytest.raises(UnreadableCineError, match="no sector"):
        tissue_mask(Cine("made", FramesInMemory(np.zeros((1, 40, 40, 1), dtype=np.uint8))))


def test_a_cine_without_uids_gets_some():
    cine = Cine("film.mp4", FramesInMemory(np.zeros((2, 8, 8, 3), dtype=np.uint8)))

    instance = deidentified_instance(cine, cine.pixels, Pseudonyms(b"k" * 32), now=datetime(2000, 1, 1))

    assert instance.SOPInstanceUID.is_valid
    assert len({instance.SOPInstanceUID, instance.SeriesInstanceUID, instance.StudyInstanceUID}) == 3


def test_an_export_does_not_write_into_a_used_folder(studies, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")

    with pytest.raises(EchoError, match="is not empty; name a new one"):
        export_study_folder(studies, tmp_path, [ExportFormat.CSV])


def test_a_folder_without_annotations_has_nothing_to_export(tmp_path):
    (tmp_path / "studies").mkdir()

    with pytest.raises(EchoError, match="has no annotated cine"):
        export_study_folder(tmp_path / "studies", tmp_path / "out", [ExportFormat.CSV])


def test_an_unknown_format_is_named():
    with pytest.raises(ValueError, match="'jpeg' is unknown; coco, csv, sr, png, mp4 are accepted"):
        parse_formats("coco,jpeg")
