# SPDX-License-Identifier: Apache-2.0
import csv
import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from echo_plugin.anatomy import DEFECTS, PAEDIATRIC, Defect, View
from echo_plugin.cine import RegionDataType
from echo_plugin.io.annotation_store import annotation_from_json
from echo_plugin.io.cine_file import read_cine
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.phantom import study
from echo_plugin.phantom.contact_sheet import write_contact_sheet
from echo_plugin.phantom.dicom_writer import Encoding
from echo_plugin.phantom.study import (
    DEFAULT_ENCODINGS,
    StudyPlan,
    patient_defect,
    patient_views,
    write_phantom_study_folder,
)


@pytest.fixture
def quick_imaging(monkeypatch, make_cine):
    """Replace the imaging by a fan that keeps view, defect and the rng's influence."""

    def acquire(heart, view, rng, *, frames):
        cine = make_cine(int(rng.integers(2**31)), frames=frames)
        boxes = () if view is View.OTHER else cine.boxes
        known = {"defect": heart.defect, "defect_size_mm": heart.defect_size_mm, "heart_rate_bpm": heart.heart_rate_bpm}
        return replace(cine, view=view, boxes=boxes, **known)

    monkeypatch.setattr(study, "acquire_cine", acquire)


def write(out: Path, **changes):
    arguments = {"patients": 2, "seed": 5, "views": [View.A4C, View.OTHER], "frames": 3} | changes
    return write_phantom_study_folder(out, **arguments)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "phantom.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def plan(**changes) -> StudyPlan:
    arguments = {"out": Path("out"), "seed": 1, "views": None, "frames": 8, "defects": DEFECTS} | changes
    return StudyPlan(encodings=tuple(DEFAULT_ENCODINGS.items()), **arguments)


def test_every_cine_can_be_read_and_has_its_annotation_and_row(quick_imaging, tmp_path):
    cines = write(tmp_path / "study")

    rows = table(tmp_path / "study")
    assert cines == len(rows) == 4
    for row in rows:
        cine = read_cine(tmp_path / "study" / row["file"])
        label = tmp_path / "study" / "annotations" / f"{cine.image_id}.json"
        annotation = annotation_from_json(label.read_text())
        assert (row["image_id"], row["patient_id"]) == (cine.image_id, cine.patient_id)
        assert annotation.annotated_frames == (0, 1, 2)
        assert annotation.view.value == row["view"]
        assert annotation.defect.value == row["defect"]
        assert len(annotation.boxes) == int(row["interatrial_boxes"]) + int(row["interventricular_boxes"])
        assert len(row["phases"].split(";")) == cine.frame_count == 3


def test_the_same_seed_gives_the_same_bytes(quick_imaging, tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")

    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.heavy
def test_two_processes_write_the_bytes_of_one(tmp_path):
    write(tmp_path / "one", views=[View.PSAX_APEX], frames=2)
    write(tmp_path / "two", views=[View.PSAX_APEX], frames=2, jobs=2)

    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.heavy
def test_an_imaged_heart_passes_through_to_its_files(tmp_path):
    write(tmp_path / "study", patients=1, views=[View.A4C], frames=2)

    (row,) = table(tmp_path / "study")
    cine = read_cine(tmp_path / "study" / row["file"])
    label = (tmp_path / "study" / "annotations" / f"{row['image_id']}.json").read_text()
    annotation = annotation_from_json(label)
    (tissue,) = (region for region in cine.regions if region.data_type is RegionDataType.TISSUE)
    assert tissue.is_calibrated
    assert {box.frame_index for box in annotation.boxes} == {0, 1}
    assert all(box.x2 <= cine.width and box.y2 <= cine.height for box in annotation.boxes)
    assert float(row["image_quality"]) >= 0


def test_other_seeds_give_other_patients(quick_imaging, tmp_path):
    write(tmp_path / "a", seed=1)
    write(tmp_path / "b", seed=2)

    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert set(first) & set(second) == {"phantom.json", "phantom.csv"}
    assert not set(first.values()) & set(second.values())
    for column in ("image_id", "patient_id", "age_days", "heart_rate_bpm"):
        assert not {row[column] for row in table(tmp_path / "a")} & {row[column] for row in table(tmp_path / "b")}


def test_patients_do_not_depend_on_how_many_there_are(quick_imaging, tmp_path):
    write(tmp_path / "two")
    write(tmp_path / "one", patients=1)

    two, one = contents(tmp_path / "two"), contents(tmp_path / "one")
    shared = set(one) - {"phantom.json", "phantom.csv"}
    assert shared
    assert all(two[name] == one[name] for name in shared)


def test_each_run_of_three_patients_has_each_defect():
    for first in (0, 3, 30):
        assert {patient_defect(plan(), first + step) for step in range(3)} == set(DEFECTS)


def test_defects_are_a_parameter():
    mostly_normal = plan(defects=(Defect.NORMAL, Defect.NORMAL, Defect.NORMAL, Defect.VSD))

    drawn = Counter(patient_defect(mostly_normal, index) for index in range(40))

    assert drawn == {Defect.NORMAL: 30, Defect.VSD: 10}


def test_three_patients_show_every_paediatric_view():
    views = [patient_views(plan(), index) for index in range(3)]

    assert set(itertools.chain(*views)) == set(PAEDIATRIC)
    assert all({View.A4C, View.SUBCOSTAL_4C} <= set(of_patient) for of_patient in views)
    assert all(len(set(of_patient)) == len(of_patient) for of_patient in views)


def test_the_place_in_the_study_does_not_tell_the_view():
    first = Counter(patient_views(plan(), index)[0] for index in range(60))

    assert len(first) > 6


def test_names_of_files_tell_neither_view_nor_defect(quick_imaging, tmp_path):
    write(tmp_path / "study", patients=3, views=None)

    names = [name for name in contents(tmp_path / "study") if name.endswith(".dcm")]
    assert all(Path(name).name == f"IM_{number:04d}.dcm" for name in names for number in [int(name[-8:-4])])


def test_encodings_are_a_parameter(quick_imaging, tmp_path):
    write(tmp_path / "study", patients=3, encodings={Encoding.RLE_COLOUR: 1.0})

    assert {row["encoding"] for row in table(tmp_path / "study")} == {"rle-rgb"}


def test_an_interrupted_run_is_completed_by_the_next(quick_imaging, tmp_path, monkeypatch):
    write(tmp_path / "whole")
    calls = []
    draw = study.draw_overlay

    def interrupt(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt("stopped by the user")
        return draw(*args, **kwargs)

    monkeypatch.setattr(study, "draw_overlay", interrupt)
    with pytest.raises(KeyboardInterrupt, match="stopped by the user"):
        write(tmp_path / "half")
    left = contents(tmp_path / "half")
    whole = contents(tmp_path / "whole")
    assert "phantom.csv" not in left
    assert all(whole[name] == data for name, data in left.items() if not name.startswith(".phantom_rows"))

    monkeypatch.setattr(study, "draw_overlay", draw)
    write(tmp_path / "half")

    assert contents(tmp_path / "half") == whole


def test_what_a_killed_run_left_half_written_is_cleared_away(quick_imaging, tmp_path):
    write(tmp_path / "whole")
    write(tmp_path / "killed", patients=2)
    (tmp_path / "killed" / "phantom.csv").unlink()
    (tmp_path / "killed" / "PHANTOM-5-0001" / ".0123456789abcdef.tmp.IM_0001.dcm").write_bytes(b"half")

    write(tmp_path / "killed")

    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_correction_by_a_person_outlives_another_run(quick_imaging, tmp_path):
    write(tmp_path / "study")
    folder = StudyFolder(tmp_path / "study")
    image_id = folder.image_ids()[0]
    corrected = folder.save_annotation(replace(folder.annotation(image_id), boxes=()), author="reader-1")
    (tmp_path / "study" / "phantom.csv").unlink()

    write(tmp_path / "study")

    assert folder.annotation(image_id) == corrected


def test_a_complete_folder_is_left_alone(quick_imaging, tmp_path, monkeypatch):
    cines = write(tmp_path / "study")
    monkeypatch.setattr(study, "acquire_cine", None)

    assert write(tmp_path / "study") == cines


def test_other_arguments_are_refused(quick_imaging, tmp_path):
    write(tmp_path / "study")

    before = contents(tmp_path / "study")

    with pytest.raises(ValueError, match="study is not empty and was not made by the phantom with these arguments"):
        write(tmp_path / "study", seed=6, frames=4)

    assert contents(tmp_path / "study") == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")

    with pytest.raises(ValueError, match="not empty and was not made by the phantom"):
        write(tmp_path)

    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patients": 0}, "0 patients"),
        ({"jobs": 0}, "0 jobs"),
        ({"frames": 0}, "0 frames"),
        ({"seed": -1}, "seed -1"),
        ({"views": []}, "without a view"),
        ({"encodings": {Encoding.RAW_GREY: 0.0}}, "encoding weights"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "study", **changes)

    assert not (tmp_path / "study").exists()


def test_progress_counts_to_the_number_of_cines(quick_imaging, tmp_path):
    said = []

    write(tmp_path / "study", progress=lambda done, total, note: said.append((done, total)))

    assert said[0] == (0, 4)
    assert said[-1] == (4, 4)
    assert [done for done, _ in said] == sorted(done for done, _ in said)


def test_the_arguments_are_on_record(quick_imaging, tmp_path):
    write(tmp_path / "study")

    record = json.loads((tmp_path / "study" / "phantom.json").read_text())

    assert (record["seed"], record["frames"], record["views"]) == (5, 3, ["A4C", "OTHER"])


def test_a_study_folder_has_a_contact_sheet(quick_imaging, tmp_path):
    write(tmp_path / "study")

    write_contact_sheet(tmp_path / "study", tmp_path / "sheet.png", phases=2)

    assert np.array(Image.open(tmp_path / "sheet.png")).std() > 5
