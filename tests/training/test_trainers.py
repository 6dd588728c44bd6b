# SPDX-License-Identifier: Apache-2.0
import shutil
from pathlib import Path

import pytest
import torch

from echo_plugin.anatomy import DEFECTS, PAEDIATRIC
from echo_plugin.errors import TrainingDataError
from echo_plugin.model_card import load_card
from echo_plugin.models.checkpoint import load_published
from echo_plugin.training import defect_crops
from echo_plugin.training.datasets import open_labelled_folder
from echo_plugin.training.defect_calibration import fit_temperature
from echo_plugin.training.defects import train_defects
from echo_plugin.training.detector import train_detector
from echo_plugin.training.options import DefectOptions, DetectorOptions, ViewOptions
from echo_plugin.training.provenance import known_patients
from echo_plugin.training.views import train_views

pytestmark = pytest.mark.heavy

torch.set_num_threads(1)


def _assert_same_weights(first: Path, second: Path) -> None:
    (_, ours), (_, theirs) = (load_published(folder, "defect_embedder") for folder in (first, second))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def contents(studies: Path) -> dict[str, bytes]:
    """All that people put into a study folder; its index begins with a dot."""
    return {str(path): path.read_bytes() for path in studies.rglob("[!.]*") if path.is_file()}


def test_two_patients_make_a_detector_whose_card_says_that_nobody_measured_it(easy_studies, tmp_path):
    root = shutil.copytree(easy_studies, tmp_path / "studies")
    for label in (root / "annotations").glob("*.json"):
        if not label.name.startswith(("child00", "child01")):
            label.unlink()
    told = []

    card = train_detector(
        root, tmp_path / "models", DetectorOptions(epochs=1, image_size=64, device="cpu"), on_epoch=told.append
    )

    published, _ = load_published(tmp_path / "models", "septal_detector")
    assert published == card
    assert card.cohort.split == {"train": 2, "validation": 0, "test": 0}
    assert card.metrics == {}
    assert card.training.validation == {}
    assert "Its metrics are missing: no annotated patient was left to measure with." in card.limits
    assert told[-1].metric is None


def test_detector_learns_publishes_and_says_on_whom(easy_studies, tmp_path):
    told = []
    options = DetectorOptions(epochs=3, batch_size=6, image_size=64, seed=1, device="cpu", command="train detector")

    card = train_detector(easy_studies, tmp_path, options, on_epoch=told.append)

    published, state = load_published(tmp_path, "septal_detector")
    assert published == card
    assert "head.classification_head.cls_logits.weight" in state
    assert [status.epoch for status in told] == [1, 2, 3]
    assert told[-1].train_loss < told[0].train_loss
    assert card.cohort.split == {"train": 8, "validation": 2, "test": 2}
    assert card.metrics["AP50 interatrial"].patients == 2
    assert card.metrics["AP50 interatrial"].baseline is not None
    assert (card.training.command, card.training.seed) == ("train detector", 1)
    assert "child" not in Path(tmp_path / "septal_detector.json").read_text()


def test_going_on_keeps_every_patient_in_its_part(easy_studies, published_detector, tmp_path):
    models = shutil.copytree(published_detector, tmp_path / "models")
    first = load_card(models, "defect_embedder")

    options = DefectOptions(epochs=1, batch_size=8, image_size=64, seed=99, device="cpu")
    second = train_defects(easy_studies, models, options)

    patients = list(open_labelled_folder(easy_studies).defects)
    assert int(second.version) == int(first.version) + 1
    assert known_patients(first, patients) == known_patients(second, patients)
    assert f"going on from defect_embedder {first.version}" in second.trained_on


@pytest.mark.parametrize(
    ("train", "options", "patients"),
    [(train_detector, DetectorOptions, 12), (train_views, ViewOptions, 12), (train_defects, DefectOptions, 11)],
    ids=["detector", "views", "defects"],
)
def test_a_child_with_two_defects_stops_no_training_and_teaches_no_defect(
    with_two_defects, tmp_path, caplog, train, options, patients
):
    card = train(with_two_defects("child04"), tmp_path, options(epochs=1, batch_size=8, image_size=64, device="cpu"))

    assert card.cohort.patients == patients
    is_said = "1 patients have cines of different defects: defects are learned without them" in caplog.text
    assert is_said is (train is train_defects)
    assert "child04" not in caplog.text


def test_models_of_one_folder_share_their_test_patients(easy_studies, published_detector, tmp_path):
    models = shutil.copytree(published_detector, tmp_path / "models")
    defects = load_card(models, "defect_embedder")

    views = train_views(easy_studies, models, ViewOptions(epochs=2, batch_size=8, image_size=64, seed=5, device="cpu"))

    assert views.cohort.split_digest != ""
    patients = list(open_labelled_folder(easy_studies).defects)
    assert known_patients(defects, patients) == known_patients(views, patients)
    assert views.classes == tuple(view.value for view in PAEDIATRIC)
    assert defects.classes == tuple(defect.value for defect in DEFECTS)


def test_stopping_publishes_what_is_best_so_far(easy_studies, tmp_path):
    told = []
    options = DefectOptions(epochs=50, batch_size=8, image_size=64, device="cpu", should_stop=lambda: True)

    card = train_defects(easy_studies, tmp_path, options, on_epoch=told.append)

    assert card.training.epochs == 1
    assert [status.epoch for status in told] == [1]


def test_same_seed_gives_the_same_weights_and_cached_frames_are_not_read_anew(easy_studies, tmp_path, monkeypatch):
    options = DefectOptions(epochs=1, batch_size=8, image_size=64, device="cpu", cache_dir=tmp_path / "cache")
    train_defects(easy_studies, tmp_path / "one", options)
    monkeypatch.setattr(defect_crops, "prepare_septal_crops", lambda *_: pytest.fail)

    train_defects(easy_studies, tmp_path / "two", options)

    _assert_same_weights(tmp_path / "one", tmp_path / "two")


def test_cine_without_patient_is_refused(easy_studies, tmp_path):
    studies = tmp_path / "studies"
    shutil.copytree(easy_studies, studies)
    (studies / "patients.csv").unlink()

    with pytest.raises(TrainingDataError, match="has no patient id, so it cannot be split by patient"):
        train_defects(studies, tmp_path / "models", DefectOptions(epochs=1))


def test_folder_without_annotations_is_refused(tmp_path):
    with pytest.raises(TrainingDataError, match="holds no annotated cine"):
        train_detector(tmp_path, tmp_path / "models", DetectorOptions(epochs=1))


def test_temperature_recovers_that_by_which_logits_were_inflated():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 3, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]

    assert fit_temperature(logits * 3, labels) == pytest.approx(3.0, rel=0.12)


def test_unknown_start_is_refused():
    with pytest.raises(ValueError, match="Training start is 'nowhere'; starter, views, scratch, imagenet"):
        DetectorOptions(start="nowhere")
    with pytest.raises(ValueError, match="Training start is 'face'"):
        ViewOptions(start="face")
    assert DefectOptions(start="face").start == "face"


@pytest.mark.parametrize(
    ("train", "options"),
    [(train_detector, DetectorOptions), (train_defects, DefectOptions), (train_views, ViewOptions)],
)
def test_a_trainer_writes_nothing_where_the_labels_are_and_leaves_out_what_cannot_be_decoded(
    easy_studies, tmp_path, train, options
):
    studies = tmp_path / "studies"
    shutil.copytree(easy_studies, studies)
    for picture in studies.glob("*_0.png"):
        picture.write_bytes(picture.read_bytes()[:-2000])
    before = contents(studies)

    card = train(studies, tmp_path / "models", options(epochs=2, batch_size=8, image_size=64, device="cpu"))

    assert contents(studies) == before
    # a distance is measured where a box was found
    assert {metric.patients for name, metric in card.metrics.items() if "distance" not in name} == {2}


def test_pictures_that_changed_are_read_anew(easy_studies, tmp_path):
    studies, cache = tmp_path / "studies", tmp_path / "cache"
    shutil.copytree(easy_studies, studies)
    options = DefectOptions(epochs=1, batch_size=8, image_size=64, device="cpu", cache_dir=cache)
    train_defects(studies, tmp_path / "models", options)
    before = len(list(cache.rglob("*.npz")))
    for picture in studies.glob("*.png"):
        picture.touch()

    train_defects(studies, tmp_path / "models", options)

    assert 0 < before < len(list(cache.rglob("*.npz"))) == 2 * before
