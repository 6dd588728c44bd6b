# SPDX-License-Identifier: Apache-2.0
import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from echo_plugin.anatomy import FETAL_5, View
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.papers.fetal_heart import cut_plane, draw_fetal_still, sample_fetal_patient
from echo_plugin.papers.fetal_study import draw_patient, write_fetal_sheet, write_fetal_study_folder

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("fetal") / "study"
    assert write_fetal_study_folder(out, patients=3, seed=7, stills=2) == 30
    return out


def _files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name[0] != "."}


def test_every_patient_has_every_view_under_a_name_that_does_not_tell_it(study):
    folder = StudyFolder(study)

    seen = {}
    for image_id in folder.image_ids():
        annotation, entry = folder.annotation(image_id), folder.entry(image_id)
        seen.setdefault(entry.patient_id, []).append(annotation.view)
        assert annotation.annotated_frames == ()  # nobody looked for a septum
    assert {patient: sorted(views.count(view) for view in FETAL_5) for patient, views in seen.items()} == {
        f"FETAL-7-000{n}": [2] * 5 for n in (1, 2, 3)
    }
    orders = [
        tuple(r["view"] for r in csv.DictReader((study / "phantom.csv").open()) if r["patient_id"] == p) for p in seen
    ]
    assert len(set(orders)) == 3


def test_the_same_arguments_give_the_same_bytes_and_fewer_patients_are_the_first(study, tmp_path):
    write_fetal_study_folder(tmp_path / "again", patients=3, seed=7, stills=2)
    write_fetal_study_folder(tmp_path / "fewer", patients=1, seed=7, stills=2)

    again, fewer = _files(tmp_path / "again"), _files(tmp_path / "fewer")
    original = _files(study)
    assert all(again[path] == content for path, content in original.items())
    assert all(original[path] == fewer[path] for path in fewer if path.suffix == ".png")


def test_an_interrupted_folder_is_completed_and_a_corrected_label_kept(study, tmp_path):
    out = tmp_path / "study"
    write_fetal_study_folder(out, patients=3, seed=7, stills=2)
    (out / "phantom.csv").unlink()
    next(out.glob("FETAL-7-0003/*.png")).unlink()
    label = next((out / "annotations").glob("*.json"))
    label.write_text("corrected")

    write_fetal_study_folder(out, patients=3, seed=7, stills=2)

    assert label.read_text() == "corrected"
    assert len(list(out.rglob("*.png"))) == 30 and (out / "phantom.csv").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 8}, "made by the phantom with these arguments"),
        ({"patients": 0}, "0 patients"),
        ({"stills": 0}, "0 stills"),
    ],
)
def test_other_arguments_are_refused(study, change, message):
    with pytest.raises(ValueError, match=message):
        write_fetal_study_folder(study, **{"patients": 3, "seed": 7, "stills": 2, **change})


def test_a_folder_of_others_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("x")

    with pytest.raises(ValueError, match="was not made by the phantom"):
        write_fetal_study_folder(tmp_path, patients=1, seed=0, stills=1)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(FETAL_5), st.integers(0, 100_000))
def test_every_still_is_a_picture_with_its_heart_inside(view, seed):
    rng = np.random.default_rng(seed)

    still = draw_fetal_still(sample_fetal_patient(rng), view, rng)

    H, W, channels = still.pixels.shape
    x1, y1, x2, y2 = still.focus
    assert still.pixels.dtype == np.uint8 and channels == 3
    assert 0 <= x1 < x2 <= W and 0 <= y1 < y2 <= H
    inside = still.pixels[y1:y2, x1:x2]
    assert 5 < inside.mean() < 200 and inside.std() > 5


def test_colour_flow_shows_in_most_stills_of_the_standard_views_only_sometimes_elsewhere():
    rng = np.random.default_rng(0)

    def coloured(view):
        hits = 0
        for _ in range(30):
            still = draw_fetal_still(sample_fetal_patient(rng), view, rng)
            x1, y1, x2, y2 = still.focus
            inside = still.pixels[y1:y2, x1:x2].astype(int)
            hits += (np.ptp(inside, axis=2) > 60).mean() > 0.02
        return hits

    counts = {view: coloured(view) for view in FETAL_5}
    assert all(counts[view] >= 21 for view in FETAL_5[:4])
    assert 3 <= counts[View.OTHER] <= 24


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100_000))
def test_the_course_of_the_flows_is_the_view(seed):
    rng = np.random.default_rng(seed)

    def gaps(view):
        first, second = cut_plane(view, rng).flows
        ends = [np.linalg.norm(first.path[i] - second.path[i]) for i in (0, -1)]
        crossed = np.sign(first.path[0, 0] - second.path[0, 0]) != np.sign(first.path[-1, 0] - second.path[-1, 0])
        return *ends, crossed

    assert len(cut_plane(View.FETAL_AORTA, rng).flows) == 1
    assert gaps(View.FETAL_X_SIGN)[2]
    wide, narrow, _ = gaps(View.FETAL_V_SIGN)
    assert narrow < 0.75 * wide
    assert len(cut_plane(View.OTHER, rng).flows) <= 1


def test_a_view_of_children_is_refused():
    with pytest.raises(ValueError, match=r"A4C is not of the fetal heart; FETAL-AORTA, .* are accepted"):
        cut_plane(View.A4C, np.random.default_rng(0))


def test_patients_differ_more_than_their_stills():
    """Speckle and gain are the patient's: a split that shares patients would measure memory."""
    levels = np.array([[s.pixels.std() for s in draw_patient(3, index, 1)] for index in range(6)])

    assert levels.mean(axis=1).std() > 0.5 * levels.std(axis=1).mean()


def test_the_sheet_has_a_row_for_each_view(study, tmp_path):
    write_fetal_sheet(study, tmp_path / "sheet.png", columns=3)

    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[0] > 5 * 200 and sheet.std() > 20
