# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import math
import os
import shutil

import pytest
import torch

from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.model_card import ModelCard, TrainingCohort, card_to_json
from echo_plugin.network_config import ViewConfig
from echo_plugin.papers import defects as module
from echo_plugin.papers.defects import reproduce_defects, without_known
from echo_plugin.papers.defects_table import PAPER_ROWS, Row, describe, write_table
from echo_plugin.training.datasets import open_labelled_folder
from echo_plugin.training.loop import KeptState
from echo_plugin.training.options import DefectOptions
from echo_plugin.training.splits import patient_fingerprints

pytestmark = pytest.mark.heavy

torch.set_num_threads(1)

ROWS = [
    Row("HOG + SVM", None),
    Row("each wall, softmax", {"start": "scratch", "head": "softmax"}),
    Row("ArcFace, face-pretrained", {"start": "face", "recipe": "paper"}),
]


@pytest.fixture(scope="module")
def reproduced(easy_studies, tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduced")
    options = DefectOptions(epochs=1, batch_size=8, image_size=64, backbone="resnet18", device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FRACTIONS", (0.5, 0.1, 0.4))  # of twelve: two with one defect to compare
        report = reproduce_defects(easy_studies, out, ROWS, seeds=1, options=options)
    return out, options, report


def test_every_row_is_measured_on_the_same_patients_or_says_why_not(reproduced):
    _, _, report = reproduced

    hog, network, absent = report["rows"]
    assert [row["row"] for row in report["rows"]] == [row.name for row in ROWS]
    assert hog["patients"] == network["patients"] == {"train": 6, "validation": 1, "test": 5}
    assert set(network["figures"]) >= {"accuracy", "balanced_accuracy", "recall ASD", "defect sensitivity"}
    assert all(math.isfinite(v) for values in network["figures"].values() for v in values)
    assert "no face-recognition weights of resnet18" in absent["not_run"]
    assert network["network"] == "resnet18, 64 px, walls, begun with random weights"


def test_cines_are_verified_by_embeddings_and_by_class_probabilities_and_networks_have_a_validation_loss(reproduced):
    out, _, report = reproduced
    hog, network, _ = report["rows"]
    by_embeddings, by_classes = "verification AUC (plain embeddings)", "verification AUC (class probabilities)"
    head, of_network = [
        line for line in (out / "table.md").read_text().splitlines() if line.startswith(("| row", "| each wall"))
    ]

    assert {by_embeddings, by_classes} <= set(network["figures"])
    assert by_classes in hog["figures"]
    assert by_embeddings not in hog["figures"]
    assert "validation_log_loss" not in hog
    loss = network["validation_log_loss"][0]
    assert 0 < loss == report["outcomes"][1]["validation_log_loss"]
    cells = dict(zip(head.split(" | "), of_network.split(" | "), strict=True))
    assert cells["validation log loss"] == f"{loss:.3f} ({loss:.3f} to {loss:.3f})"
    assert cells[by_embeddings].startswith(f"{network['figures'][by_embeddings][0]:.3f}")


def test_a_child_with_two_defects_is_in_no_row(with_two_defects, tmp_path):
    options = DefectOptions(epochs=1, batch_size=8, image_size=64, backbone="resnet18", device="cpu")

    report = reproduce_defects(with_two_defects("child04"), tmp_path / "out", ROWS[:1], seeds=1, options=options)

    assert sum(report["rows"][0]["patients"].values()) == 11


def test_gradients_find_a_gap_that_is_plain_to_see(reproduced):
    _, _, report = reproduced

    assert report["rows"][0]["figures"]["accuracy"][0] > 0.6


def test_finished_rows_are_kept_and_not_trained_again(reproduced, easy_studies, monkeypatch):
    out, options, report = reproduced
    monkeypatch.setattr(module, "_run", None)

    again = reproduce_defects(easy_studies, out, ROWS[:2], seeds=1, options=options)

    assert again["outcomes"] == report["outcomes"][:2]
    assert not list((out / "rows").rglob("*.pt"))


def test_rows_of_other_numbers_are_trained_anew(reproduced, easy_studies, monkeypatch):
    out, _, _ = reproduced
    asked = []
    monkeypatch.setattr(
        module, "_run", lambda labelled, row, options, folder, begun: asked.append(row.name) or {"metrics": {}}
    )
    other = DefectOptions(epochs=2, batch_size=8, image_size=64, backbone="resnet18", device="cpu")

    with pytest.raises(KeyError):
        reproduce_defects(easy_studies, out, ROWS[1:2], seeds=1, options=other)

    assert asked == ["each wall, softmax"]


ARCFACE = Row("ArcFace", {"recipe": "paper", "start": "scratch"})


@pytest.fixture
def stopped(easy_studies, tmp_path, monkeypatch):
    """A copy of the studies, a folder where a row was stopped after its first epoch, and its options."""
    studies, out = tmp_path / "studies", tmp_path / "out"
    shutil.copytree(easy_studies, studies)
    options = DefectOptions(
        epochs=2, batch_size=24, image_size=48, frames_per_cine=1, backbone="resnet18", device="cpu"
    )

    def save_and_stop(kept, state):
        save(kept, state)
        raise KeyboardInterrupt

    save = KeptState.save
    with monkeypatch.context() as patch:
        patch.setattr(KeptState, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            reproduce_defects(studies, out, [ARCFACE], seeds=1, options=options)
    return studies, out, options


def test_epochs_learned_before_a_row_was_stopped_are_in_its_cost(stopped):
    studies, out, options = stopped
    (state,) = (out / "rows").rglob("*.state.pt")
    content = torch.load(state, weights_only=True)
    torch.save(content | {"elapsed_s": 5000.0}, state)

    report = reproduce_defects(studies, out, [ARCFACE], seeds=1, options=options)

    assert report["outcomes"][0]["epochs"] == 2
    assert report["cost_s"] == report["rows"][0]["wall_time_s"] == pytest.approx(5000, abs=300)
    assert report["cost_s"] > 5000


def another_box(studies):
    folder = StudyFolder(studies)
    image_id, *_ = folder.annotated_ids()
    label = folder.annotation(image_id)
    first, *others = label.boxes
    moved = dataclasses.replace(label, boxes=(dataclasses.replace(first, x1=first.x1 - 1), *others))
    folder.save_annotation(moved, author="test")


def another_time(studies):
    path = StudyFolder(studies).entry(StudyFolder(studies).annotated_ids()[0]).path
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "other"),
    [
        (lambda studies: None, {}),
        (another_box, {}),
        (another_time, {}),
        (lambda studies: None, {"batch_size": 23}),
        (lambda studies: None, {"margin_rad": 0.2}),
        (lambda studies: None, {"scale": 8.0}),
    ],
    ids=["nothing", "label", "file", "batch size", "margin", "scale"],
)
def test_a_stopped_row_goes_on_only_with_the_same_files_labels_and_numbers(stopped, change, other, caplog):
    studies, out, options = stopped
    change(studies)

    reproduce_defects(studies, out, [ARCFACE], seeds=1, options=dataclasses.replace(options, **other))

    is_anew = "is of a training of other data or options; training begins anew" in caplog.text
    assert is_anew == (change is another_box or change is another_time or bool(other))


def test_rows_of_files_that_were_made_anew_are_trained_anew(reproduced, easy_studies, monkeypatch, tmp_path):
    out, options, _ = reproduced
    studies, asked = tmp_path / easy_studies.name, []
    shutil.copytree(easy_studies, studies)  # the same ids and labels, other files
    monkeypatch.setattr(module, "_run", lambda labelled, row, *rest: asked.append(row.name) or {"metrics": {}})

    with pytest.raises(KeyError):
        reproduce_defects(studies, out, ROWS[1:2], seeds=1, options=options)

    assert asked == ["each wall, softmax"]


def test_patients_whom_the_first_weights_have_seen_take_no_part(easy_studies, tmp_path, caplog):
    labelled = open_labelled_folder(easy_studies)
    seen = sorted({cine.patient_id for cine in labelled.cines})[:2]
    salt = "00ff"
    data = TrainingCohort("", 0, 0, "", salt=salt, train=patient_fingerprints(seen, salt=salt))
    card = ModelCard("view_classifier", "1", "view", "", ("A4C", "OTHER"), ViewConfig(2), data, sha256="0" * 64)
    (tmp_path / "view_classifier.json").write_text(card_to_json(card))
    options = DefectOptions(starter=tmp_path)

    left = without_known(labelled, [Row("a", {"start": "views"})], options)

    assert {cine.patient_id for cine in labelled.cines} - {cine.patient_id for cine in left.cines} == set(seen)
    assert "2 patients are left out" in caplog.text
    assert without_known(labelled, [Row("a", {"start": "scratch"})], options) == labelled


def test_the_table_stands_beside_the_papers(reproduced, tmp_path):
    _, _, report = reproduced

    write_table(tmp_path, "table", report)

    text = (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "table.json").read_text())["rows"] == json.loads(json.dumps(report["rows"]))
    assert text == describe("Defects: table", report)
    for words in ("HOG + SVM", "paper: ArcFace, face-pretrained", "0.976", "not run: There are no face-recognition"):
        assert words in text
    for sentence in (
        report["sentences"][0],
        "on patients (6 to learn from, 1 to validate, 5 to test): mean over 1 seeds",
    ):
        assert sentence in text
    assert PAPER_ROWS["softmax"]["verification AUC (plain embeddings)"] == 0.930
