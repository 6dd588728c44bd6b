# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import numpy as np
import pytest
import torch

from echo_plugin.answer.preprocess import map_region
from echo_plugin.cine import Cine, FramesInMemory, UltrasoundRegion
from echo_plugin.errors import ModelNotFoundError, TrainingDataError
from echo_plugin.evaluate import held_out
from echo_plugin.evaluate.defects import evaluate_defects
from echo_plugin.evaluate.detector import _mm_per_model_px, evaluate_detector
from echo_plugin.evaluate.views import evaluate_views
from echo_plugin.model_card import ModelCard, TrainingCohort
from echo_plugin.models.checkpoint import load_card, publish
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.network_config import ViewConfig
from echo_plugin.training.datasets import open_labelled_folder
from echo_plugin.training.options import ViewOptions
from echo_plugin.training.provenance import known_patients
from echo_plugin.training.splits import patient_fingerprints
from echo_plugin.training.views import train_views

pytestmark = pytest.mark.heavy

torch.set_num_threads(1)


def test_detector_is_measured_on_patients_it_has_not_seen(easy_studies, published_detector, tmp_path):
    report = evaluate_detector(easy_studies, published_detector, tmp_path, device="cpu")

    card = load_card(published_detector, "septal_detector")
    assert report["patients"] == card.cohort.split["test"] == 2
    assert report["metrics"]["AP50 interatrial"]["baseline"] is not None
    assert "not learned from" in report["split"]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    page = (tmp_path / "report.html").read_text()
    assert "AP50 interatrial" in page and "monailabel-echo evaluate detector" in page
    assert "child0" not in (tmp_path / "report.json").read_text()
    for plot in report["plots"]:
        assert (tmp_path / plot["file"]).read_bytes().startswith(b"\x89PNG")


def test_boxes_are_measured_alone_and_linked_over_time_and_by_group(easy_studies, published_detector, tmp_path):
    report = evaluate_detector(easy_studies, published_detector, tmp_path, device="cpu")

    metrics = report["metrics"]
    gain = metrics["AP50 gained by linking over time"]["value"]
    assert gain == pytest.approx(metrics["AP50, linked over time"]["value"] - metrics["AP50"]["value"])
    assert metrics["AP"]["value"] <= metrics["AP50"]["value"]
    shown = metrics["F1 interatrial, as shown"]
    assert shown["patients"] == 2
    assert shown["baseline"] is not None
    assert 0 <= metrics["recall, as shown"]["value"] <= 1 <= 1 + metrics["false boxes per frame, as shown"]["value"]
    low, high = (metrics[f"sensitivity at {rate} false per frame interatrial"]["value"] for rate in (0.1, 0.5))
    assert low <= high
    assert [table["title"] for table in report["tables"]] == ["By view", "By age", "By image quality"]
    by_view = report["tables"][0]
    assert sum(int(row[1]) for row in by_view["rows"]) <= report["frames"]
    assert "Not known" in report["tables"][2]["note"]
    assert {"Precision and recall", "FROC", "Worst frames"} == {plot["title"] for plot in report["plots"]}


def test_measuring_a_patient_that_was_learned_from_is_refused(easy_studies, published_detector, tmp_path):
    patients = list(open_labelled_folder(easy_studies).defects)
    known = known_patients(load_card(published_detector, "septal_detector"), patients)
    learned_from = next(patient for patient, part in known.items() if part == "train")

    with pytest.raises(TrainingDataError, match="1 of the 1 patients to measure were learned from") as refusal:
        evaluate_detector(easy_studies, published_detector, tmp_path, patients=[learned_from])

    assert learned_from not in str(refusal.value)


def test_a_child_is_left_out_whose_file_was_learned_from_before_it_named_anybody(
    easy_studies, published_detector, monkeypatch
):
    cine = open_labelled_folder(easy_studies).cines[0]
    monkeypatch.setattr(held_out, "seen_patients", lambda card, names: frozenset(names) & {cine.image_id})

    measured = held_out.choose_held_out(
        easy_studies, published_detector, ["septal_detector"], patients=None, wants=lambda _: True
    )

    assert cine.patient_id not in {other.patient_id for other in measured.cines}
    assert len({other.patient_id for other in measured.cines}) == 11


def test_who_was_learned_from_is_left_out_and_counted(easy_studies, published_detector, tmp_path):
    report = evaluate_detector(easy_studies, published_detector, tmp_path, device="cpu")

    assert (report["patients"], report["patients_left_out"]) == (2, 10)
    assert "10 patients of the folder were, and are left out" in (tmp_path / "report.html").read_text()
    assert report["model"]["trained_on"] == "annotations of a study folder"
    for name in ("AP50", "AP50 interatrial", "AP50 interventricular"):
        assert {"value", "low", "high", "patients", "baseline"} <= set(report["metrics"][name])
        assert report["metrics"][name]["baseline"] is not None


def test_a_model_that_does_not_say_whom_it_learned_from_is_not_measured(easy_studies, published_detector, tmp_path):
    for path in published_detector.glob("septal_detector.*"):
        shutil.copy(path, tmp_path)
    card = json.loads((tmp_path / "septal_detector.json").read_text())
    card["cohort"]["salt"] = ""
    (tmp_path / "septal_detector.json").write_text(json.dumps(card))

    with pytest.raises(TrainingDataError, match="does not list the patients it learned from"):
        evaluate_detector(easy_studies, tmp_path, tmp_path / "out")


def test_defects_are_measured_by_cine_and_by_patient(easy_studies, published_detector, tmp_path):
    report = evaluate_defects(easy_studies, published_detector, tmp_path, device="cpu")

    assert report["metrics"]["accuracy"]["patients"] == 2
    assert report["metrics"]["accuracy (patients)"]["patients"] == 2
    assert report["metrics"]["accuracy"]["baseline"] is not None
    assert report["metrics"]["accuracy (patients)"]["baseline"] is not None
    assert sum(map(sum, report["confusion"])) == report["cines"] == 4
    assert report["on_phantoms"] is False
    assert report["metrics"]["defect sensitivity (patients)"]["patients"] == 2 or (
        report["metrics"]["defect specificity (patients)"]["patients"] >= 1
    )
    assert [table["title"] for table in report["tables"]][:4] == [
        "Beside the paper's table",
        "Same defect type? Pairs of different patients",
        "Do the views of a child agree?",
        "Normal hearts with interatrial drop-out",
    ]
    assert sum(int(count) for _, count, _ in report["tables"][2]["rows"]) == 2
    assert "Not measured" in report["tables"][3]["note"]
    assert set(report["verification_pairs"]) == {"same", "different"}
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(report["plots"]) >= 5
    assert 'src="reliability' not in page  # nothing is loaded from elsewhere
    assert "Most similar cases of other patients" in page
    assert "child0" not in json.dumps(report["tables"])


def test_a_child_with_two_defects_is_measured_by_cine_and_counted_where_it_has_no_one_answer(
    easy_studies, published_detector, with_two_defects, tmp_path
):
    parts = known_patients(
        load_card(published_detector, "defect_embedder"), list(open_labelled_folder(easy_studies).defects)
    )
    child = min(patient for patient, part in parts.items() if part == "test")

    studies = with_two_defects(child)
    report = evaluate_defects(studies, published_detector, tmp_path / "out", device="cpu")

    assert report["cines"] == 4 and report["metrics"]["accuracy"]["patients"] == 2
    assert report["metrics"]["accuracy (patients)"]["patients"] == 1
    assert report["patients_of_several_defects"] == 1
    assert "1 patients with cines of different defects are measured by cine alone" in report["tables"][0]["note"]
    with pytest.raises(TrainingDataError, match="All 1 patients to measure have cines of different defects") as refused:
        evaluate_defects(studies, published_detector, tmp_path / "none", device="cpu", patients=[child])
    assert child not in str(refused.value)


def publish_view_classifier(models, learned_from):
    """Publish random weights that say they learned from these patients."""
    network = ViewClassifier(ViewConfig(classes=2, input_size_px=64))
    seen = patient_fingerprints(learned_from, salt="s")
    card = ModelCard(
        "view_classifier", "1", "views", network.config.backbone, ("A4C", "PSAX-AV"), network.config,
        TrainingCohort("random weights", 1, 1, "0" * 64, salt="s", train=seen),
    )  # fmt: skip
    publish(models, network.state_dict(), card)


def test_whom_the_view_classifier_learned_from_is_not_measured_where_it_withholds_answers(
    easy_studies, published_detector, tmp_path
):
    models = shutil.copytree(published_detector, tmp_path / "models")
    card = load_card(models, "defect_embedder")
    parts = known_patients(card, list(open_labelled_folder(easy_studies).defects))
    learned_from = min(patient for patient, part in parts.items() if part == "test")
    publish_view_classifier(models, [learned_from])

    report = evaluate_defects(easy_studies, models, tmp_path / "out", device="cpu")

    assert card.decision.abstain_angle_deg is not None
    assert (report["patients"], report["patients_left_out"]) == (1, 11)
    with pytest.raises(TrainingDataError, match="1 of the 1 patients to measure were learned from"):
        evaluate_defects(easy_studies, models, tmp_path / "none", device="cpu", patients=[learned_from])


def test_views_are_measured_by_cine(easy_studies, tmp_path):
    train_views(easy_studies, tmp_path, ViewOptions(epochs=2, batch_size=8, image_size=64, device="cpu"))

    report = evaluate_views(easy_studies, tmp_path, tmp_path / "out", device="cpu")

    assert report["cines"] == 6
    assert report["classes"][0] == "A4C"
    accuracy = report["metrics"]["accuracy"]
    assert accuracy["baseline"] == pytest.approx(4 / 6)  # two of three cines of each child are A4C
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]


def test_measuring_without_a_model_says_what_is_missing(easy_studies, tmp_path):
    with pytest.raises(ModelNotFoundError, match="septal_detector is not published"):
        evaluate_detector(easy_studies, tmp_path, tmp_path / "out")


def test_the_sides_of_an_oblong_pixel_keep_their_own_lengths():
    pixels = FramesInMemory(np.zeros((1, 100, 200, 1), dtype=np.uint8))
    region = UltrasoundRegion(0, 0, 200, 100, mm_per_px_x=0.2, mm_per_px_y=0.5)
    cine = Cine("oblong", pixels, np.zeros(1), (region,))
    mapping = map_region(region, 100, 200, 64)

    assert _mm_per_model_px(cine, mapping) == pytest.approx((0.2 / mapping.scale, 0.5 / mapping.scale))
