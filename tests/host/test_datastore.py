# SPDX-License-Identifier: Apache-2.0
"""A study folder behaves as MONAI Label's datastore without a way out of it."""

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import itk
import numpy as np
import pytest
from PIL import Image

from echo_plugin.acquisition.label_quality import is_same_label
from echo_plugin.anatomy import Defect, Septum, View
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.errors import (
    AnnotationConflictError,
    AnnotationError,
    TrainingDataError,
    UnknownImageError,
    UnreadableCineError,
)
from echo_plugin.host import next_cine
from echo_plugin.host.datastore import FINAL, ORIGINAL, EchoDatastore
from echo_plugin.host.infer_tasks import require_batch
from echo_plugin.host.next_cine import WaitingCines
from echo_plugin.host.train import CineTrainer
from echo_plugin.io.annotation_store import annotation_to_json
from echo_plugin.io.markups import boxes_from_markups, boxes_to_markups
from echo_plugin.io.volume import rendition_geometry
from echo_plugin.phantom.study import write_phantom_study_folder
from echo_plugin.training.datasets import open_labelled_folder

BOX = SeptalBox(1, 100.0, 60.5, 130.25, 180.0, Septum.INTERVENTRICULAR)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("phantoms") / "studies"
    write_phantom_study_folder(root, patients=3, seed=3, views=[View.A4C, View.PSAX_AV], frames=2)
    return root


@pytest.fixture
def store(phantoms, tmp_path) -> EchoDatastore:
    root = shutil.copytree(phantoms, tmp_path / "studies")
    return EchoDatastore(root, tmp_path / "cache")


def strategies(store) -> dict:
    return next_cine.strategies(WaitingCines(store, store.cache / "no models"))


@pytest.fixture
def image_id(store) -> str:
    return store.list_images()[0]


def upload(folder: Path, text: str, suffix: str = ".json") -> str:
    path = folder / f"upload{suffix}"
    path.write_text(text)
    return str(path)


def markups_of(store, image_id, *boxes) -> str:
    return boxes_to_markups(boxes, rendition_geometry(store.images.read(image_id)))


@pytest.mark.heavy
def test_cines_of_nested_folders_are_listed_and_labelled(store):
    assert store.status() == {"total": 6, "completed": 6, "label_tags": {"final": 6}}
    assert store.get_unlabeled_images() == []
    assert len(store.datalist()) == 6
    assert all(Path(pair["image"]).is_file() and Path(pair["label"]).is_file() for pair in store.datalist())


def test_labelled_images_can_be_asked_for_by_what_they_say(store):
    views = store.get_labeled_images(labels=["PSAX-AV"])

    assert len(views) == 3
    assert {store.studies.annotation(i).view for i in views} == {View.PSAX_AV}
    assert store.get_labeled_images(labels=["mitral stenosis"]) == []


def test_the_listing_is_json_without_an_identity(store):
    listing = json.dumps(store.json())

    patients = {store.images.entry(i).patient_id for i in store.list_images()}
    assert set(json.loads(listing)["objects"]) == set(store.list_images())
    assert not any(patient in listing for patient in patients)


@pytest.mark.heavy
def test_a_viewer_gets_a_volume_with_a_voxel_for_each_pixel(store, image_id):
    path = Path(store.get_image_uri(image_id))

    facts = store.get_image_info(image_id)
    assert path.name == facts["name"] == f"{image_id}.nrrd"
    assert not path.is_relative_to(store.root)
    assert tuple(itk.size(itk.imread(str(path)))) == (facts["width"], facts["height"], facts["frames"])
    assert store.get_image(image_id).read() == path.read_bytes()


def test_a_file_that_names_no_patient_has_the_one_of_the_table(store):
    still = "still.png"
    Image.new("L", (40, 40), 60).save(store.root / still)
    (store.root / "patients.csv").write_text(f"image_id,patient_id\n{still},child-7\n")
    store.refresh()

    assert store.images.read(still).patient_id == "child-7"


def test_submitted_boxes_come_back_and_what_markups_cannot_say_stays(store, image_id, tmp_path):
    before = store.studies.annotation(image_id)

    label_id = store.save_label(
        image_id, upload(tmp_path, markups_of(store, image_id, BOX)), FINAL, {"client_id": "reader-1"}
    )

    after = store.studies.annotation(image_id)
    back = boxes_from_markups(
        store.get_label(label_id, FINAL).read().decode(), rendition_geometry(store.images.read(image_id))
    )
    np.testing.assert_allclose(back[0].xyxy, BOX.xyxy, atol=1e-9)
    assert (after.view, after.defect, after.author) == (before.view, before.defect, "reader-1")
    assert (after.annotated_frames, after.revision) == ((1,), before.revision + 1)
    assert store.studies.uploads(image_id)[after.revision].read_text() == markups_of(store, image_id, BOX)


def test_boxes_drawn_on_a_cine_that_nobody_labelled_or_predicted_become_its_first_revision(store, image_id, tmp_path):
    store.remove_label(image_id, FINAL)
    shutil.rmtree(store.root / "annotations")
    assert store.studies.annotation(image_id) is None

    store.save_label(image_id, upload(tmp_path, markups_of(store, image_id, BOX)), FINAL, {"model": "septal_boxes"})

    saved = store.studies.annotation(image_id)
    assert (saved.revision, saved.annotated_frames, saved.view, saved.defect) == (1, (1,), None, None)
    np.testing.assert_allclose(saved.boxes[0].xyxy, BOX.xyxy, atol=1e-9)
    assert store.get_labeled_images() == [image_id]


def test_an_annotation_file_that_cannot_be_read_hides_no_other_and_is_kept_when_replaced(store, image_id, tmp_path):
    path = store.root / "annotations" / f"{image_id}.json"
    path.write_text('{"half a')

    assert store.status()["completed"] == 5
    assert store.get_unlabeled_images() == [image_id]
    store.save_label(image_id, upload(tmp_path, markups_of(store, image_id, BOX)), FINAL, {})
    assert store.status()["completed"] == 6
    kept = [file.read_text() for file in (store.root / "annotations" / "history" / image_id).glob("*.json")]
    assert '{"half a' in kept


def test_a_label_too_large_to_be_one_is_refused(store, image_id, tmp_path, monkeypatch):
    monkeypatch.setattr("echo_plugin.host.submission.LARGEST_LABEL_BYTES", 1 << 20)

    with pytest.raises(AnnotationError, match=r"has 1 MiB; up to 1 are accepted"):
        store.save_label(image_id, upload(tmp_path, " " * (1 << 20) + "{}"), FINAL, {})


def test_frames_that_were_looked_at_become_negatives(store, image_id, tmp_path):
    text = markups_of(store, image_id, BOX)

    store.save_label(image_id, upload(tmp_path, text), FINAL, {"annotated_frames": [0, 1]})

    assert store.studies.annotation(image_id).annotated_frames == (0, 1)


def test_frames_that_showed_no_septum_stay_so_when_slicer_sends_a_label_back_untouched(store, image_id, tmp_path):
    said = replace(store.studies.annotation(image_id), boxes=(BOX,), annotated_frames=(0, BOX.frame_index))
    before = store.studies.save_annotation(said, author="r1")
    assert before.annotated_frames == (0, 1)

    store.save_label(image_id, upload(tmp_path, markups_of(store, image_id, BOX)), FINAL, {})

    after = store.studies.annotation(image_id)
    assert after.revision == before.revision + 1
    assert is_same_label(before, after)

    store.save_label(image_id, upload(tmp_path, markups_of(store, image_id, replace(BOX, frame_index=0))), FINAL, {})

    assert store.studies.annotation(image_id).annotated_frames == (0,)


def test_boxes_drawn_in_slicer_take_back_that_there_was_no_septum(store, image_id, tmp_path):
    store.save_label(image_id, upload(tmp_path, '{"markups": []}'), FINAL, {"annotated_frames": [0]})
    assert store.studies.annotation(image_id).annotated_frames == (0,)

    store.save_label(image_id, upload(tmp_path, markups_of(store, image_id, BOX)), FINAL, {})

    assert store.studies.annotation(image_id).annotated_frames == (1,)


def test_an_annotation_can_be_submitted_as_it_is_kept(store, image_id, tmp_path):
    annotation = store.studies.annotation(image_id)

    store.save_label(image_id, upload(tmp_path, annotation_to_json(annotation)), "", {"user": "Ä. Reader <x@y>"})

    assert store.studies.annotation(image_id).boxes == annotation.boxes
    assert store.studies.annotation(image_id).author == "Ä. Reader x@y"


@pytest.mark.parametrize(
    ("text", "suffix", "info", "sentence"),
    [
        ("x", ".nii.gz", {}, r"a '\.nii\.gz' label map was sent.*select the model septal_boxes"),
        ("x", ".json", {}, "is no JSON object"),
        ("[]", ".json", {}, "no object of schema"),
        ('{"markups": 1}', ".json", {}, "has no list 'markups'"),
        ('{"markups": []}', ".json", {"revision": "1"}, "revision is '1'"),
        ('{"markups": []}', ".json", {"annotated_frames": "all"}, "annotated_frames is 'all'"),
        ('{"markups": []}', ".json", {"annotated_frames": [7]}, r"frame index 7 \(0-based\)"),
    ],
)
def test_what_cannot_be_a_label_is_refused_and_nothing_is_stored(
    store, image_id, tmp_path, text, suffix, info, sentence
):
    before = store.studies.annotation(image_id)

    with pytest.raises(AnnotationError, match=sentence):
        store.save_label(image_id, upload(tmp_path, text, suffix), FINAL, info)

    assert store.studies.annotation(image_id) == before


def test_an_annotation_of_another_image_is_refused(store, image_id, tmp_path):
    other = store.studies.annotation(store.list_images()[1])

    with pytest.raises(AnnotationError, match="is an annotation of"):
        store.save_label(image_id, upload(tmp_path, annotation_to_json(other)), FINAL, {})


def test_a_change_of_an_outdated_revision_is_a_conflict(store, image_id, tmp_path):
    path = upload(tmp_path, markups_of(store, image_id, BOX))
    store.save_label(image_id, path, FINAL, {})

    with pytest.raises(AnnotationConflictError, match=image_id):
        store.save_label(image_id, path, FINAL, {"revision": 1})


def test_predictions_are_kept_apart_from_labels(store, image_id, tmp_path):
    before = store.studies.annotation(image_id)

    store.save_label(image_id, upload(tmp_path, '{"markups": []}'), ORIGINAL, {"model": "septal_boxes"})

    assert store.studies.annotation(image_id) == before
    assert store.get_labeled_images(ORIGINAL) == [image_id]
    assert store.get_label_info(image_id, ORIGINAL) == {"model": "septal_boxes"}
    assert store.get_labels_by_image_id(image_id) == {"final": image_id, "original": image_id}
    store.remove_label(image_id, ORIGINAL)
    with pytest.raises(UnknownImageError, match="has no kept prediction"):
        store.get_label_uri(image_id, ORIGINAL)


def test_a_withdrawn_label_stays_in_the_history(store, image_id):
    before = store.studies.annotation(image_id)

    store.remove_label(image_id, FINAL)

    assert image_id in store.get_unlabeled_images()
    assert before in store.studies.history(image_id)
    with pytest.raises(UnknownImageError, match="has no label yet"):
        store.get_label_uri(image_id, FINAL)


@pytest.mark.parametrize("tag", ["../../x", "FINAL", "draft", "final/"])
def test_a_tag_that_does_not_exist_is_refused(store, image_id, tmp_path, tag):
    with pytest.raises(AnnotationError, match="is unknown; 'final'"):
        store.save_label(image_id, upload(tmp_path, "{}"), tag, {})


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "", "a/b", "1.2.3.4.5"])
def test_an_image_that_is_not_in_the_folder_is_refused_everywhere(store, tmp_path, name):
    for ask in (store.get_image_uri, store.get_image_info, store.images.read, store.remove_image):
        with pytest.raises(UnknownImageError, match=r"malformed|not in the study folder"):
            ask(name)
    with pytest.raises(UnknownImageError, match=r"malformed|not in the study folder"):
        store.save_label(name, upload(tmp_path, "{}"), FINAL, {})


def test_a_series_of_one_cine_names_that_cine_and_one_of_several_is_refused(store):
    entries = [store.images.entry(i) for i in store.list_images()]
    by_series = {}
    for entry in entries:
        by_series.setdefault(entry.series_instance_uid, []).append(entry.image_id)

    for series, members in by_series.items():
        if len(members) == 1:
            assert store.images.resolve(series) == members[0]
        else:
            with pytest.raises(UnknownImageError, match=f"names {len(members)} cines; ask for one by its SOP"):
                store.images.resolve(series)
    with pytest.raises(UnknownImageError, match="names 3 cines"):
        store.images.resolve("IM_0001")  # the same file name in the folder of each patient


def test_an_uploaded_cine_is_found_by_the_name_it_was_given_and_can_be_taken_out(store, image_id):
    picture = store.cache / "still.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 80), np.uint8)).save(picture)

    added = store.add_image("still_7", str(picture), {"note": "a"})

    assert store.images.resolve("still_7") == added
    assert store.get_image_info(added)["note"] == "a"
    store.remove_image(added)
    with pytest.raises(UnknownImageError, match="not in the study folder"):
        store.images.resolve("still_7")


def test_a_volume_saved_by_a_viewer_is_not_taken_for_a_cine(store, image_id):
    with pytest.raises(UnreadableCineError, match="has lost its calibration"):
        store.add_image("volume", store.get_image_uri(image_id), {})


def test_the_archive_holds_labelled_cines_with_their_annotations(store):
    path = Path(store.get_dataset_archive(2))

    names = zipfile.ZipFile(path).namelist()
    assert len([name for name in names if name.endswith(".dcm")]) == 2
    assert len([name for name in names if name.startswith("annotations/")]) == 2


def test_notes_are_added_and_facts_are_not_overwritten(store, image_id):
    store.update_image_info(image_id, {"strategy": {"first": {"ts": 1}}, "frames": 99})
    store.update_image_info(image_id, {"other": 2})

    facts = store.get_image_info(image_id)
    assert (facts["strategy"], facts["other"], facts["frames"]) == ({"first": {"ts": 1}}, 2, 2)


def test_strategies_choose_unlabelled_cines_and_say_when_there_is_none(store):
    choose = strategies(store)
    nothing = {name: strategy({}, store) for name, strategy in choose.items()}
    assert nothing.pop("suspicious")["reason"].startswith("No label looks like a mistake. Of ")
    assert nothing == dict.fromkeys(nothing)
    images = sorted(store.list_images())
    first_patient = store.images.entry(images[0]).patient_id
    of_first = [i for i in images if store.images.entry(i).patient_id == first_patient]
    other = next(i for i in images if i not in of_first)
    # the first patient loses all labels, another one of two
    for image_id in (*of_first, other):
        store.remove_label(image_id, FINAL)
    unlabelled = store.get_unlabeled_images()

    assert choose["first"]({}, store) == {"id": min(unlabelled), "reason": "first of 3", "frames": [0, 1]}
    assert choose["fewest_labels"]({}, store)["id"] in of_first
    assert choose["random"]({}, store)["id"] in unlabelled


def test_a_seed_repeats_a_random_choice(store, tmp_path):
    for image_id in store.list_images():
        store.remove_label(image_id, FINAL)
    again = EchoDatastore(shutil.copytree(store.root, tmp_path / "again"), tmp_path / "another cache")

    one, other = (strategies(folder)["random"]({"seed": 1}, folder) for folder in (store, again))

    assert one == other


@pytest.mark.parametrize(
    "notes",
    [{"strategy": "x"}, {"strategy": {"random": 5}}, {"strategy": {"random": {"ts": "soon"}}}]
    + [{"strategy": {"random": {"ts": ts}}} for ts in (1e300, -1e300, 10**400)],
)
def test_no_note_of_a_client_stops_the_choice_of_the_next_cine(store, image_id, notes):
    store.remove_label(image_id, FINAL)

    store.update_image_info(image_id, notes)

    assert strategies(store)["random"]({"strategy": "random"}, store)["id"] == image_id


def test_a_number_that_json_does_not_know_is_no_note(store, image_id):
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.update_image_info(image_id, {"ts": float("nan")})

    assert "ts" not in store.get_image_info(image_id)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"seed": "x"}, "seed is 'x'; a whole number of 0 or more"),
        ({"seed": -1}, "seed is '-1'"),
        ({"labels": 5}, "Labels are '5'; a list of names"),
        ({"labels": "ASD"}, "Labels are 'ASD'"),
    ],
)
def test_a_strategy_refuses_parameters_of_the_wrong_type(store, image_id, request_, sentence):
    store.remove_label(image_id, FINAL)

    with pytest.raises(ValueError, match=sentence):
        strategies(store)["random"](request_, store)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"max_batch_size": "all"}, "max_batch_size is 'all'"),
        ({"max_batch_size": -1}, "max_batch_size is '-1'"),
        ({"max_batch_size": [1]}, r"max_batch_size is '\[1\]'"),
        ({"frames": {"a": 1}}, "are no list of whole numbers"),
        ({"images": "labeled", "labels": 5}, "Labels are '5'"),
    ],
)
def test_a_batch_refuses_parameters_of_the_wrong_type(store, request_, sentence):
    with pytest.raises(ValueError, match=sentence):
        require_batch(request_, store)


def test_a_batch_is_about_as_many_cines_as_asked(store):
    assert require_batch({"max_batch_size": 2}, store) == sorted(store.list_images())[:2]
    assert require_batch({"max_batch_size": 0}, store) == sorted(store.list_images())


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"epochs": "²"}, "epochs is '²'"),
        ({"epochs": True}, "epochs is 'True'"),
        ({"epochs": [3]}, r"epochs is '\[3\]'"),
        ({"seed": 10**30}, "seed is '1000"),
        ({"device": "tpu"}, "device is 'tpu'; auto, cpu, cuda"),
        ({"device": ["cpu"]}, "device is "),
    ],
)
def test_a_training_refuses_parameters_of_the_wrong_type_before_it_starts(store, tmp_path, request_, sentence):
    with pytest.raises(ValueError, match=sentence):
        CineTrainer("views", tmp_path, tmp_path / "cache", "cpu").require_trainable(store, request_)


def test_a_gpu_that_a_client_asks_for_unseen_is_what_the_server_has(store, tmp_path):
    trainer = CineTrainer("views", tmp_path, tmp_path / "cache", "cpu")

    assert trainer.require_trainable(store, {"device": "cuda:0"}).device == "cpu"


def test_a_training_from_a_viewer_writes_its_curves_where_the_command_line_does(store, tmp_path):
    trainer = CineTrainer("views", tmp_path / "models", tmp_path / "cache", "cpu")
    (tmp_path / "models").mkdir()

    assert trainer.require_trainable(store, {}).log_dir == tmp_path / "models" / "logs"


def test_training_is_refused_before_it_starts_when_a_labelled_cine_has_no_patient(store, tmp_path):
    Image.fromarray(np.zeros((64, 80), np.uint8)).save(store.root / "still.png")
    store.refresh()
    still = store.images.resolve("still")
    store.save_label(still, upload(tmp_path, '{"markups": []}'), FINAL, {})
    trainer = CineTrainer("views", tmp_path, tmp_path / "cache", "cpu")

    with pytest.raises(TrainingDataError, match=r"has no patient id.*patients\.csv"):
        trainer.require_trainable(store, {})


def test_a_cine_without_patient_that_nobody_learns_from_keeps_no_training_from_starting(store, tmp_path):
    for name in ("unusable", "taken_back"):
        Image.fromarray(np.zeros((64, 80), np.uint8)).save(store.root / f"{name}.png")
    store.refresh()
    unusable, taken_back = map(store.images.resolve, ("unusable", "taken_back"))
    for image_id in (unusable, taken_back):
        marked = store.studies.save_annotation(Annotation(image_id, is_unusable=True), author="r1")
    store.studies.save_annotation(replace(marked, is_unusable=False), author="r1")

    assert CineTrainer("views", tmp_path, tmp_path / "cache", "cpu").require_trainable(store, {})
    assert not {unusable, taken_back} & {cine.image_id for cine in open_labelled_folder(store.root).cines}


@pytest.mark.parametrize("text", ["{", "", '{"schema": "monailabel-echo/annotation", "version": 99}'])
def test_training_is_refused_before_it_starts_when_an_annotation_cannot_be_read(store, image_id, tmp_path, text):
    (store.root / "annotations" / f"{image_id}.json").write_text(text)

    with pytest.raises(TrainingDataError, match=rf"^Training views cannot start: {image_id}\.json: [^\n]+$"):
        CineTrainer("views", tmp_path, tmp_path / "cache", "cpu").require_trainable(store, {})


def test_boxes_as_slicer_names_them_are_kept_but_teach_no_detector(store, tmp_path):
    trainer = CineTrainer("septal_boxes", tmp_path, tmp_path / "cache", "cpu")
    trainer.require_trainable(store, {})

    for image_id in store.list_images():
        text = markups_of(store, image_id, BOX).replace("IVS", "R-1").replace("interventricular", "")
        store.save_label(image_id, upload(tmp_path, text), FINAL, {})

    assert {store.studies.annotation(i).boxes[0].septum for i in store.list_images()} == {Septum.UNSPECIFIED}
    with pytest.raises(
        TrainingDataError, match=r"septal boxes named IAS or IVS of at least 2 .* the study folder has 0"
    ):
        trainer.require_trainable(store, {})


def test_training_with_too_few_patients_is_refused_before_it_starts(store, tmp_path):
    trainer = CineTrainer("defects", tmp_path, tmp_path / "cache", "cpu")
    assert trainer.require_trainable(store, {"epochs": "2"}).epochs == 2

    patient = store.images.entry(store.list_images()[0]).patient_id
    for image_id in store.list_images():
        if store.images.entry(image_id).patient_id == patient:
            store.remove_label(image_id, FINAL)

    with pytest.raises(
        TrainingDataError, match=r"Training defects needs .* at least 3 patients; the study folder has 2"
    ):
        trainer.require_trainable(store, {})


def test_the_list_of_all_says_of_each_cine_what_it_alone_is_asked_for(store, image_id):
    store.update_image_info(image_id, {"note": "seen"})
    store.images.set_aside(store.list_images()[-1], "unreadable")

    objects = store.json()["objects"]

    assert list(objects) == store.list_images()
    assert {i: o["image"]["info"] for i, o in objects.items()} == {i: store.get_image_info(i) for i in objects}
    assert objects[image_id]["image"]["info"]["note"] == "seen"
    assert {i: o["labels"][FINAL]["info"] for i, o in objects.items()} == {
        i: store.get_label_info(i, FINAL) for i in objects
    }


def test_two_patients_are_enough_to_learn_boxes_from_but_one_is_not(store, tmp_path):
    trainer = CineTrainer("septal_boxes", tmp_path, tmp_path / "cache", "cpu")
    patients = sorted({store.images.entry(image_id).patient_id for image_id in store.list_images()})

    def withdraw_labels_of(patient):
        for image_id in store.list_images():
            if store.images.entry(image_id).patient_id == patient:
                store.remove_label(image_id, FINAL)

    withdraw_labels_of(patients[0])
    trainer.require_trainable(store, {})
    withdraw_labels_of(patients[1])
    with pytest.raises(TrainingDataError, match=r"named IAS or IVS of at least 2 patients; the study folder has 1"):
        trainer.require_trainable(store, {})


def test_frames_without_any_box_teach_no_detector(store, tmp_path):
    trainer = CineTrainer("septal_boxes", tmp_path, tmp_path / "cache", "cpu")

    for image_id in store.list_images():
        store.save_label(image_id, upload(tmp_path, '{"markups": []}'), FINAL, {"annotated_frames": [0]})

    with pytest.raises(TrainingDataError, match="named IAS or IVS; the labels of 3 patients have none"):
        trainer.require_trainable(store, {})


def test_a_defect_label_survives_a_box_submission_of_the_same_cine(store, image_id, tmp_path):
    store.save_label(image_id, upload(tmp_path, '{"markups": []}'), FINAL, {})

    assert isinstance(store.studies.annotation(image_id).defect, Defect)
    assert store.studies.annotation(image_id).annotated_frames == (1,)
