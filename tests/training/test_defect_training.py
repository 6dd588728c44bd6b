# SPDX-License-Identifier: Apache-2.0
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from echo_plugin.anatomy import DEFECTS, DETECTED_SEPTA, Defect, Septum, View
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.answer.defect_rule import DefectRule
from echo_plugin.errors import ModelMismatchError, ModelNotFoundError, TrainingDataError
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.model_card import STARTERS, DefectDecision, card_to_json, load_card
from echo_plugin.models.checkpoint import build_embedder, load_published
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.models.lean_torchvision import resnet18
from echo_plugin.network_config import EmbedderConfig
from echo_plugin.training.datasets import LabelledCine, open_labelled_folder
from echo_plugin.training.defect_calibration import EmbeddedCrops, calibrate, calibrate_patients, choose_abstention
from echo_plugin.training.defect_crops import prepare_defect_crops, shown_shares, visible_defect
from echo_plugin.training.defects import backbone_features, renew_head, train_defects
from echo_plugin.training.options import DefectOptions
from echo_plugin.training.provenance import next_version
from echo_plugin.training.start import Start

torch.set_num_threads(1)
ATRIAL, VENTRICULAR = DETECTED_SEPTA
SHORT = DefectOptions(epochs=1, batch_size=8, image_size=64, device="cpu", start="scratch")


def cine_with(defect: Defect | None, septa: tuple[Septum, ...], view: View | None, patient: str = "p1") -> LabelledCine:
    boxes = tuple(SeptalBox(0, 1, 1, 9, 9, septum) for septum in septa)
    return LabelledCine("c", patient, 1, Annotation("c", boxes, (0,), view, defect))


@pytest.mark.parametrize(
    ("defect", "septa", "view", "cropping", "seen"),
    [
        (Defect.ASD, (ATRIAL, VENTRICULAR), View.A4C, "walls", Defect.ASD),
        (Defect.ASD, (VENTRICULAR,), View.PLAX_LV, "walls", None),
        (Defect.ASD, (ATRIAL, VENTRICULAR), View.PLAX_LV, "walls", None),
        (Defect.ASD, (ATRIAL,), None, "walls", Defect.ASD),
        (Defect.VSD, (VENTRICULAR,), View.PLAX_LV, "union", Defect.VSD),
        (Defect.NORMAL, (VENTRICULAR,), View.PLAX_LV, "walls", Defect.NORMAL),
        (Defect.VSD, (Septum.UNSPECIFIED,), View.A4C, "union", Defect.VSD),
        (Defect.VSD, (Septum.UNSPECIFIED,), View.A4C, "walls", None),
        (Defect.NORMAL, (), View.A4C, "walls", None),
        (None, (ATRIAL,), View.A4C, "walls", None),
    ],
)
def test_a_cine_shows_its_label_where_the_wall_in_question_is_in_it(defect, septa, view, cropping, seen) -> None:
    assert visible_defect(cine_with(defect, septa, view), cropping) is seen


def test_crops_are_labelled_by_what_their_wall_can_have(easy_studies: Path) -> None:
    labelled = open_labelled_folder(easy_studies)
    cines = [cine for cine in labelled.cines if cine.annotation.boxes]

    crops = prepare_defect_crops(labelled, cines, size_px=32, cropping="walls", frames_per_cine=2, cache_dir=None)

    assert len(crops.labels) == 2 * len(cines)
    assert crops.classes == DEFECTS
    for owner, wall, label in zip(crops.frames.cine, crops.walls, crops.labels, strict=True):
        defect, septum = cines[owner].annotation.defect, DETECTED_SEPTA[wall]
        its_wall = {Defect.ASD: ATRIAL, Defect.VSD: VENTRICULAR}.get(defect)
        assert DEFECTS[label] is (defect if septum is its_wall else Defect.NORMAL)
    assert crops.cells.unique().numel() == 4  # each wall whole, each with its hole


def test_nothing_is_learned_from_a_wall_whose_hole_is_out_of_the_picture(easy_studies: Path) -> None:
    labelled = open_labelled_folder(easy_studies)
    cines = []
    for cine in labelled.cines:
        hidden = cine.annotation.boxes and cine.annotation.defect is not Defect.NORMAL
        said = dataclasses.replace(cine.annotation, is_defect_visible=False if hidden else None)
        if cine.annotation.boxes:
            cines.append(dataclasses.replace(cine, annotation=said))

    crops = prepare_defect_crops(labelled, cines, size_px=32, cropping="walls", frames_per_cine=2, cache_dir=None)

    kept = {DEFECTS[k] for k in crops.labels[crops.is_example]}
    assert kept == {Defect.NORMAL}
    other_walls = [cines[owner].annotation.defect for owner in crops.frames.cine[crops.is_example]]
    assert Defect.ASD in other_walls  # its ventricular septum is a normal one
    assert {visible_defect(cine, "walls") for cine in cines} == {Defect.NORMAL, None}


def test_the_papers_crops_are_of_both_septa(easy_studies: Path) -> None:
    labelled = open_labelled_folder(easy_studies)
    cines = [cine for cine in labelled.cines if cine.annotation.boxes]

    crops = prepare_defect_crops(labelled, cines, size_px=32, cropping="union", frames_per_cine=2, cache_dir=None)

    assert crops.walls.tolist() == [-1] * len(cines)
    assert [DEFECTS[k] for k in crops.labels] == [cine.annotation.defect for cine in cines]
    assert bool(crops.is_example.all())


@pytest.mark.heavy
def test_the_papers_recipe_is_its_own_network(easy_studies: Path, tmp_path: Path) -> None:
    options = dataclasses.replace(SHORT, recipe="paper", backbone="resnet18", head="softmax")

    card = train_defects(easy_studies, tmp_path, options)

    assert (card.network.cropping, card.network.head) == ("union", "softmax")
    assert (card.network.scale, card.network.margin_rad) == (64.0, 0.5)
    assert build_embedder(card).config.head == "softmax"


@pytest.mark.heavy
def test_classes_that_were_labelled_are_learned_and_the_card_says_when_to_abstain(
    easy_studies: Path, tmp_path: Path
) -> None:
    studies = tmp_path / "studies"
    shutil.copytree(easy_studies, studies)
    folder = StudyFolder(studies)
    for image_id in folder.annotated_ids():
        annotation = folder.annotation(image_id)
        if folder.entry(image_id).patient_id in ("child00", "child03", "child06", "child09"):
            folder.save_annotation(dataclasses.replace(annotation, defect=Defect.AVSD), author="test")

    card = train_defects(studies, tmp_path / "models", SHORT)

    assert card.classes == ("Normal", "ASD", "VSD", "AVSD")
    _, state = load_published(tmp_path / "models", "defect_embedder")
    assert state["centres"].shape == (512, 4)
    assert 0 < card.decision.abstain_angle_deg <= 180
    assert 0.9 <= card.training.validation["coverage"] <= 1
    assert card.network.cropping == "walls"
    assert "accuracy (patients)" in card.metrics


@pytest.mark.heavy
def test_a_training_begins_with_a_published_network_or_says_what_is_wrong(easy_studies: Path, tmp_path: Path) -> None:
    torch.save(resnet18(weights=None).state_dict(), tmp_path / "body.pth")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "wrong.pth")

    card = train_defects(
        easy_studies, tmp_path / "models", dataclasses.replace(SHORT, start=str(tmp_path / "body.pth"))
    )

    assert "body.pth" in card.trained_on
    with pytest.raises(ModelMismatchError, match=r"wrong\.pth .*lacks 'bn1\.weight', which the backbone has"):
        train_defects(easy_studies, tmp_path, dataclasses.replace(SHORT, start=str(tmp_path / "wrong.pth")))
    with pytest.raises(ModelNotFoundError, match="no face-recognition weights of resnet18"):
        train_defects(easy_studies, tmp_path, dataclasses.replace(SHORT, start="face"))


@pytest.mark.parametrize(
    ("defect", "is_defect_visible", "part"), [(Defect.VSD, None, "validation"), (Defect.ASD, False, "train")]
)
def test_labels_that_no_cine_shows_are_refused_before_anything_is_learned(
    easy_studies: Path, tmp_path: Path, defect: Defect, is_defect_visible: bool | None, part: str
) -> None:
    studies = tmp_path / "studies"
    shutil.copytree(easy_studies, studies)
    folder = StudyFolder(studies)
    for image_id in folder.annotated_ids():
        annotation = folder.annotation(image_id)
        boxes = tuple(box for box in annotation.boxes if box.septum is ATRIAL)
        said = dataclasses.replace(annotation, boxes=boxes, defect=defect, is_defect_visible=is_defect_visible)
        folder.save_annotation(said, author="test")
    epochs = []

    with pytest.raises(TrainingDataError, match=rf"None of the \d+ {part} cines shows its defect label"):
        train_defects(studies, tmp_path / "models", SHORT, lambda *told: epochs.append(told))

    assert not epochs
    assert not (tmp_path / "models" / "defect_embedder.json").exists()


def seldom_seen(patients: int = 12, frames: int = 6) -> tuple[DefectEmbedder, EmbeddedCrops, torch.Tensor]:
    """Children half of whom have an ASD that one frame in six shows: unit vectors near the centres, a little noise."""
    torch.manual_seed(0)
    model = DefectEmbedder(EmbedderConfig(input_size_px=64, cropping="walls")).eval()
    centres = torch.nn.functional.normalize(model.centres.detach().T, dim=1)
    embeddings, rows, cines, truth = [], [], [], []
    for number in range(patients):
        has_hole = number % 2 == 1
        kinds = [1 if has_hole and frame == 2 else 0 for frame in range(frames)]
        noise = 0.02 * torch.randn(frames, 512)
        embeddings.append(torch.nn.functional.normalize(centres[kinds] + noise, dim=1))
        rows.append(tuple(range(number * frames, (number + 1) * frames)))
        cines.append(cine_with(Defect.ASD if has_hole else Defect.NORMAL, (ATRIAL,), View.A4C, f"p{number}"))
        truth.append(int(has_hole))
    shown = torch.tensor([[True, True, False]] * (patients * frames))
    embedded = EmbeddedCrops(torch.cat(embeddings), shown, (0,) * len(shown), tuple(rows), tuple(cines))
    return DefectRule(model, DefectDecision(), 0), embedded, torch.tensor(truth)


def test_attention_is_chosen_where_a_hole_is_seldom_seen() -> None:
    rule, embedded, truth = seldom_seen()
    patients = [cine.patient_id for cine in embedded.cines]

    chosen, figures = calibrate(rule, embedded, truth, patients, truth)

    assert chosen.decision.frame_focus > 0
    assert figures["log_loss_attention"] < 0.5 * figures["log_loss_mean"]
    limit, coverage, accuracy = choose_abstention(chosen, embedded, truth)
    assert (limit, coverage, accuracy) == (180.0, 1.0, 1.0)


def test_too_few_patients_choose_nothing_but_the_temperature() -> None:
    rule, embedded, truth = seldom_seen(patients=4)

    chosen, figures = calibrate(rule, embedded, truth, ["p0", "p1", "p2", "p3"], truth)

    assert (chosen.decision.frame_focus, chosen.decision.focus) == (0.0, 0.25)
    assert chosen.decision.temperature != rule.decision.temperature
    assert "log_loss_mean" not in figures


def test_how_often_a_wall_shows_the_defect_is_counted_on_training_labels(easy_studies: Path) -> None:
    labelled = open_labelled_folder(easy_studies)
    cines, hidden = [], 0
    for cine in labelled.cines:
        is_vsd = cine.annotation.defect is Defect.VSD and bool(cine.annotation.boxes)
        hidden += is_vsd
        said = dataclasses.replace(cine.annotation, is_defect_visible=False if is_vsd else None)
        cines += [dataclasses.replace(cine, annotation=said)] if cine.annotation.boxes else []

    crops = prepare_defect_crops(labelled, cines, size_px=32, cropping="walls", frames_per_cine=2, cache_dir=None)
    shares = shown_shares(crops, cines)

    assert hidden > 0
    assert shares == (1.0, 1.0, 1 / (hidden + 2))


@pytest.mark.heavy
def test_a_new_head_learns_what_features_tell_and_is_kept_only_if_validation_is_no_worse(easy_studies: Path) -> None:
    labelled = open_labelled_folder(easy_studies)
    cines = [cine for cine in labelled.cines if cine.annotation.boxes]
    crops = prepare_defect_crops(labelled, cines, size_px=32, cropping="walls", frames_per_cine=2, cache_dir=None)
    torch.manual_seed(0)
    model = DefectEmbedder(EmbedderConfig(input_size_px=32, margin_rad=0.1)).eval()
    items = torch.arange(len(crops.labels))

    def loss(network: torch.nn.Module) -> float:
        with torch.inference_mode():
            embeddings = network.eval().embed_features(backbone_features(network, crops, items))
            return -float(network.loss(embeddings, crops.labels))

    before = loss(model)
    after = renew_head(model, crops, items, steps=60, seed=0, validate=loss)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    figures = iter([1.0, 0.5])
    refused = renew_head(model, crops, items, steps=1, seed=1, validate=lambda _: next(figures))

    assert after > before
    assert refused == 1.0
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_patients_are_calibrated_to_the_log_loss_of_validation_patients() -> None:
    torch.manual_seed(0)
    model = DefectEmbedder(EmbedderConfig(input_size_px=32)).eval()
    rule = DefectRule(model, DefectDecision(shown_share=(1.0, 0.9, 0.4)), 0)
    truth = torch.tensor([0, 1, 2] * 6)
    noise = torch.randn(18, 512, generator=torch.Generator().manual_seed(1))
    centres = torch.nn.functional.normalize(model.centres.detach().T, dim=1)
    embeddings = torch.nn.functional.normalize(centres[truth] + 0.12 * noise, dim=1)
    cines = tuple(cine_with(DEFECTS[k], (), None, f"p{n}") for n, k in enumerate(truth.tolist()))
    names = [cine.patient_id for cine in cines]
    rows = tuple((n,) for n in range(18))
    embedded = EmbeddedCrops(embeddings, torch.ones(18, 3, dtype=torch.bool), (0,) * 18, rows, cines)

    def log_loss(rule: DefectRule) -> float:
        with torch.inference_mode():
            said = embedded.of_patients(rule, names)
        return -float(said[torch.arange(18), truth].log().mean())

    chosen = calibrate_patients(rule, embedded, names, truth)

    assert log_loss(chosen) < log_loss(rule)
    assert chosen.decision.shown_share == (1.0, 0.9, 0.4)
    assert chosen.decision.patient_temperature > 0


def test_a_version_is_above_that_of_the_start_of_the_folder_and_of_the_starter(tmp_path: Path) -> None:
    starter = load_card(STARTERS, "defect_embedder")

    assert int(next_version(Start(), "defect_embedder", tmp_path)) == int(starter.version) + 1
    assert next_version(Start(card=dataclasses.replace(starter, version="40")), "defect_embedder", tmp_path) == "41"
    assert next_version(Start(card=dataclasses.replace(starter, version="a")), "defect_embedder", tmp_path) == "a+1"
    assert next_version(Start(), "a_name_of_no_starter", tmp_path) == "1"
    (tmp_path / "defect_embedder.json").write_text(card_to_json(dataclasses.replace(starter, version="50")))
    assert next_version(Start(), "defect_embedder", tmp_path) == "51"
