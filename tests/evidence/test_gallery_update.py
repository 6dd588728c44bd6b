# SPDX-License-Identifier: Apache-2.0
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from echo_plugin.anatomy import DEFECTS, Defect, Septum, View
from echo_plugin.annotations import Annotation, DefectPrediction, SeptalBox
from echo_plugin.answer.gallery import GALLERY_FILE, KeptGallery, read_gallery
from echo_plugin.answer.prediction import CineEmbedding
from echo_plugin.errors import EchoError, ModelMismatchError, ModelNotFoundError
from echo_plugin.evidence import gallery_update
from echo_plugin.evidence.comparison import compare_cines
from echo_plugin.evidence.gallery_update import update_gallery
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.model_card import ModelCard, TrainingCohort, card_to_json
from echo_plugin.network_config import EmbedderConfig
from echo_plugin.training.splits import patient_fingerprints

BOX = SeptalBox(0, 2.0, 2.0, 9.0, 9.0, Septum.INTERATRIAL)
ANGLES = {Defect.NORMAL: 80.0, Defect.ASD: 40.0, Defect.VSD: 75.0}


def card_of(name: str, sha256: str, validation: tuple[str, ...] = ()) -> ModelCard:
    lists = {"train": ("p0",), "validation": validation, "test": ()}
    listed = {part: patient_fingerprints(who, salt="s") for part, who in lists.items()}
    return ModelCard(
        name, "1", "test", "none", tuple(d.value for d in DEFECTS), EmbedderConfig(),
        TrainingCohort("nothing", 1, 1, "0" * 64, salt="s", **listed), sha256=sha256,
    )  # fmt: skip


class KnownEmbeddings:
    """A pipeline whose embeddings are the grey level of the picture; level 0 shows no septum."""

    def __init__(self, models_dir: Path) -> None:
        self.models_dir = models_dir
        self.gallery = KeptGallery(models_dir)
        self.embedded: list[str] = []
        self.publish("a" * 64)

    def publish(self, sha256: str, validation: tuple[str, ...] = ()) -> None:
        self.cards = card_of("defect_embedder", sha256, validation), card_of("septal_detector", "d" * 64)
        for card in self.cards:
            (self.models_dir / f"{card.name}.json").write_text(card_to_json(card))

    def embed(self, cine) -> CineEmbedding:
        self.embedded.append(cine.image_id)
        level = int(cine.pixels[0, 0, 0, 0])
        vector = np.array([np.cos(level / 100), np.sin(level / 100)], dtype=np.float32)
        share = {Defect.NORMAL: 0.1, Defect.ASD: 0.8, Defect.VSD: 0.1}
        defect = DefectPrediction(Defect.ASD, share, ANGLES, (0,), is_whole_frame=level == 0)
        return CineEmbedding(vector, vector, np.zeros(3), defect, *self.cards)


@pytest.fixture
def studies(tmp_path: Path) -> StudyFolder:
    """Cines 0 to 5 of patients p0 to p5 with one box each; the defects repeat."""
    root = tmp_path / "studies"
    root.mkdir()
    rows = ["image_id,patient_id"]
    for number in range(6):
        Image.fromarray(np.full((16, 16), 20 * (number + 1), dtype=np.uint8)).save(root / f"c{number}.png")
        rows.append(f"c{number}.png,p{number}")
    (root / "patients.csv").write_text("\n".join(rows) + "\n")
    folder = StudyFolder(root)
    for number in range(6):
        label(folder, f"c{number}.png", DEFECTS[number % 3])
    return folder


def label(folder: StudyFolder, image_id: str, defect: Defect | None, boxes=(BOX,), **others) -> None:
    folder.save_annotation(Annotation(image_id, boxes, (0,), View.A4C, defect, **others), author="reader")


@pytest.fixture
def pipeline(tmp_path: Path) -> KnownEmbeddings:
    models = tmp_path / "models"
    models.mkdir()
    return KnownEmbeddings(models)


def ids(gallery) -> list[str]:
    return [case.image_id for case in gallery.cases]


def test_labelled_cines_become_cases(studies, pipeline):
    done = update_gallery(studies, pipeline)

    stored = read_gallery(pipeline.models_dir)
    assert ids(stored) == [f"c{n}.png" for n in range(6)]
    assert [case.defect for case in stored.cases] == [*DEFECTS, *DEFECTS]
    assert {case.view for case in stored.cases} == {View.A4C}
    assert [case.patient_id for case in stored.cases] == [f"p{n}" for n in range(6)]
    np.testing.assert_allclose(np.linalg.norm(stored.embeddings, axis=1), 1, atol=1e-6)
    assert (done.embedded, done.passed_over) == (6, 0)


def test_what_shows_no_defect_or_no_patient_is_no_case(studies, pipeline):
    label(studies, "c0.png", None)
    label(studies, "c1.png", Defect.ASD, boxes=())  # frame 0 was looked at and has no septum
    label(studies, "c2.png", Defect.VSD, is_unusable=True)
    (studies.root / "patients.csv").write_text("image_id,patient_id\nc4.png,p4\nc5.png,p5\n")
    Image.fromarray(np.zeros((16, 16), dtype=np.uint8)).save(studies.root / "c4.png")  # shows no septum
    studies.refresh()

    done = update_gallery(studies, pipeline)

    assert ids(done.gallery) == ["c5.png"]
    assert done.passed_over == 2
    assert pipeline.embedded == ["c4.png", "c5.png"]


def test_only_what_changed_is_embedded_again(studies, pipeline):
    update_gallery(studies, pipeline)
    pipeline.embedded.clear()
    label(studies, "c0.png", Defect.VSD)
    studies.remove_annotation("c1.png")
    Image.fromarray(np.full((16, 16), 7, dtype=np.uint8)).save(studies.root / "c2.png")
    studies.refresh()

    done = update_gallery(studies, pipeline)

    assert pipeline.embedded == ["c2.png"]
    assert ids(done.gallery) == ["c0.png", "c2.png", "c3.png", "c4.png", "c5.png"]
    assert done.gallery.cases[0].defect is Defect.VSD
    assert done.gallery.embeddings[1, 0] == pytest.approx(np.cos(0.07))


def test_nothing_changed_writes_nothing(studies, pipeline):
    update_gallery(studies, pipeline)
    before = (pipeline.models_dir / GALLERY_FILE).stat()

    update_gallery(studies, pipeline)

    after = (pipeline.models_dir / GALLERY_FILE).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_new_embedder_embeds_everything_anew(studies, pipeline):
    update_gallery(studies, pipeline)
    pipeline.embedded.clear()

    pipeline.publish("b" * 64)

    assert pipeline.gallery.of("b" * 64) is None
    update_gallery(studies, pipeline)
    assert len(pipeline.embedded) == 6
    assert len(pipeline.gallery.of("b" * 64).cases) == 6


def test_models_replaced_meanwhile_are_never_mixed(studies, pipeline):
    update_gallery(studies, pipeline)
    label(studies, "c0.png", Defect.NORMAL)
    Image.fromarray(np.full((16, 16), 9, dtype=np.uint8)).save(studies.root / "c0.png")
    studies.refresh()
    before = (pipeline.models_dir / GALLERY_FILE).read_bytes()
    pipeline.cards = (dataclasses.replace(pipeline.cards[0], sha256="c" * 64), pipeline.cards[1])

    with pytest.raises(ModelMismatchError, match="replaced while the gallery was being made"):
        update_gallery(studies, pipeline)

    assert (pipeline.models_dir / GALLERY_FILE).read_bytes() == before


def test_an_interrupted_update_goes_on_where_it_was(studies, pipeline):
    done = update_gallery(studies, pipeline, should_stop=lambda: len(pipeline.embedded) == 2)
    assert ids(done.gallery) == ["c0.png", "c1.png"]

    done = update_gallery(studies, pipeline)

    assert pipeline.embedded == [f"c{n}.png" for n in range(6)]
    assert len(done.gallery.cases) == 6


def test_a_damaged_gallery_is_made_anew(studies, pipeline):
    (pipeline.models_dir / GALLERY_FILE).write_bytes(b"damaged")

    assert len(update_gallery(studies, pipeline).gallery.cases) == 6


def test_without_models_it_is_said_which_is_missing(studies, pipeline):
    (pipeline.models_dir / "defect_embedder.json").unlink()

    with pytest.raises(ModelNotFoundError, match="defect_embedder"):
        update_gallery(studies, pipeline)


def test_threshold_comes_from_validation_patients_where_there_are_some(studies, pipeline):
    pipeline.publish("b" * 64, validation=("p1", "p2", "p4"))

    point = update_gallery(studies, pipeline).gallery.operating_point

    # c1 (ASD, 40), c2 (VSD, 60), c4 (ASD, 100): the pair of one defect, 0.6 rad apart, is less alike than one of two
    assert (point.measured_on, point.patients, point.pairs) == ("validation patients", 3, 3)
    assert point.threshold == pytest.approx(np.cos(0.4), abs=1e-6)
    assert (point.far, point.frr) == (1.0, 1.0)


def test_threshold_comes_from_others_but_never_from_those_learned_from(studies, pipeline):
    point = update_gallery(studies, pipeline).gallery.operating_point

    assert (point.measured_on, point.patients) == ("patients that were not learned from", 5)


def test_two_cines_are_compared_with_the_error_rates_of_the_threshold(studies, pipeline):
    update_gallery(studies, pipeline)
    first, second, third = (studies.read_cine(f"c{n}.png") for n in (0, 1, 5))

    near, far = compare_cines(pipeline, first, second), compare_cines(pipeline, first, third)

    assert near.similarity == pytest.approx(np.cos(0.2), abs=1e-6)
    point = near.point
    assert near.to_json()["threshold"] == point.threshold
    assert near.to_json()["false_acceptance_rate"] == point.far
    assert near.is_same_defect is (near.similarity >= point.threshold)
    assert far.is_same_defect is False
    assert far.describe().startswith("Different defect types: similarity 0.540")
    assert "p0" not in str(near.to_json())


def test_without_a_threshold_only_the_similarity_is_told(studies, pipeline):
    cine = studies.read_cine("c0.png")

    answer = compare_cines(pipeline, cine, cine).to_json()

    assert (answer["same_defect"], answer["threshold"]) == (None, None)
    assert answer["similarity"] == pytest.approx(1.0)
    assert answer["notes"][0].startswith("No threshold is known")
    assert answer["notes"][1].startswith("Both cines are of one patient")


def test_a_comparison_says_which_cine_gets_no_answer(studies, pipeline):
    embed = pipeline.embed

    def abstain(cine) -> CineEmbedding:
        found = embed(cine)
        reason = "view SSN-ARCH does not show this septum" if cine.image_id == "c1.png" else None
        return dataclasses.replace(found, defect=dataclasses.replace(found.defect, abstained=reason))

    pipeline.embed = abstain
    answer = compare_cines(pipeline, studies.read_cine("c0.png"), studies.read_cine("c1.png"))

    sentence = "Cine c1.png gets no answer by itself: view SSN-ARCH does not show this septum."
    assert answer.to_json()["notes"][1:] == [sentence]
    assert answer.describe().endswith(sentence)


@pytest.mark.parametrize("place", [0, 1], ids=["embedder", "detector"])
def test_cines_seen_by_two_networks_are_not_compared(studies, pipeline, place):
    embed = pipeline.embed

    def publish_between(cine) -> CineEmbedding:
        found = embed(cine)
        cards = list(pipeline.cards)
        cards[place] = dataclasses.replace(cards[place], sha256="e" * 64)
        pipeline.cards = tuple(cards)
        return found

    pipeline.embed = publish_between

    with pytest.raises(ModelMismatchError, match=r"replaced between cine c0\.png and cine c1\.png; compare them again"):
        compare_cines(pipeline, studies.read_cine("c0.png"), studies.read_cine("c1.png"))


def test_a_cine_said_not_to_show_its_defect_is_no_case(studies, pipeline):
    label(studies, "c1.png", Defect.ASD, is_defect_visible=False)
    label(studies, "c4.png", Defect.ASD, is_defect_visible=True)

    assert ids(update_gallery(studies, pipeline).gallery) == ["c0.png", "c2.png", "c3.png", "c4.png", "c5.png"]


def test_the_threshold_stays_while_an_update_is_under_way(studies, pipeline, monkeypatch):
    point = update_gallery(studies, pipeline).gallery.operating_point
    Image.fromarray(np.full((16, 16), 7, dtype=np.uint8)).save(studies.root / "c2.png")
    studies.refresh()
    monkeypatch.setattr(gallery_update, "WRITE_EVERY", 1)
    written = []
    write = gallery_update.write_gallery
    monkeypatch.setattr(gallery_update, "write_gallery", lambda d, g: written.append(g.operating_point) or write(d, g))

    last = update_gallery(studies, pipeline).gallery.operating_point

    assert point is not None
    assert written == [point, last]


class Archive(StudyFolder):
    """A folder whose cines are in an archive: a file that is not here is fetched, unless the archive is out."""

    is_out = False

    def read_cine(self, image_id: str):
        path = self.entry(image_id).path
        if not path.is_file():
            if self.is_out:
                msg = "The archive is not reached."
                raise EchoError(msg)
            Image.fromarray(np.full((16, 16), 50, dtype=np.uint8)).save(path)
        return super().read_cine(image_id)


def test_a_cine_whose_file_was_deleted_does_not_end_the_update(studies, pipeline, caplog):
    (studies.root / "c2.png").unlink()

    done = update_gallery(studies, pipeline)

    assert ids(done.gallery) == ["c0.png", "c1.png", "c3.png", "c4.png", "c5.png"]
    assert (done.embedded, done.passed_over) == (5, 0)
    assert [r.getMessage() for r in caplog.records if "c2.png" in r.getMessage()] == [
        "Left out of the gallery until the next update: File 'c2.png' cannot be read: No such file or directory."
    ]


def test_a_case_whose_file_was_deleted_stays_and_a_new_one_is_fetched(studies, pipeline):
    update_gallery(studies, pipeline)
    pipeline.embedded.clear()
    (studies.root / "c6.png").write_bytes((studies.root / "c0.png").read_bytes())
    (studies.root / "patients.csv").write_text((studies.root / "patients.csv").read_text() + "c6.png,p6\n")
    archive = Archive(studies.root)
    label(archive, "c6.png", Defect.ASD)
    for name in ("c2.png", "c6.png"):
        (studies.root / name).unlink()

    done = update_gallery(archive, pipeline)

    assert pipeline.embedded == ["c6.png"]
    assert ids(done.gallery) == [f"c{n}.png" for n in range(7)]
    pipeline.embedded.clear()
    assert update_gallery(archive, pipeline).embedded == len(pipeline.embedded) == 0


def test_a_passing_error_is_tried_again_and_what_has_no_septum_is_not(studies, pipeline, caplog):
    archive = Archive(studies.root)
    (studies.root / "c1.png").unlink()
    Image.fromarray(np.zeros((16, 16), dtype=np.uint8)).save(studies.root / "c3.png")  # shows no septum
    (studies.root / "c4.png").write_bytes(b"damaged")
    archive.is_out = True

    out = update_gallery(archive, pipeline)
    archive.is_out = False
    pipeline.embedded.clear()
    back = update_gallery(archive, pipeline)

    assert ids(out.gallery) == ["c0.png", "c2.png", "c5.png"]
    assert set(out.gallery.passed_over) == {"c3.png", "c4.png"}
    assert "until the next update: The archive is not reached." in caplog.text
    assert ids(back.gallery) == ["c0.png", "c1.png", "c2.png", "c5.png"]
    assert pipeline.embedded == ["c1.png"]


def test_models_taken_away_meanwhile_are_not_held_against_a_cine(studies, pipeline):
    def missing(cine) -> CineEmbedding:
        msg = "Model septal_detector is not published."
        raise ModelNotFoundError(msg)

    pipeline.embed = missing

    with pytest.raises(ModelNotFoundError, match="septal_detector is not published"):
        update_gallery(studies, pipeline)

    assert read_gallery(pipeline.models_dir) is None
