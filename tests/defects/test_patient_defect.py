# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from echo_plugin.anatomy import Defect, Septum
from echo_plugin.annotations import DefectPrediction, SeptalBox
from echo_plugin.defects.patient_defect import combine_cines
from echo_plugin.models.defect_embedder import DefectEmbedder, EmbedderConfig

CLASSES = (Defect.NORMAL, Defect.ASD, Defect.VSD)


@pytest.fixture(scope="module")
def embedder() -> DefectEmbedder:
    torch.manual_seed(0)
    config = EmbedderConfig(input_size_px=64, cropping="walls", patient_focus=1.0, patient_temperature=2.0)
    return DefectEmbedder(config).eval()


def centre(embedder: DefectEmbedder, defect: Defect) -> np.ndarray:
    return torch.nn.functional.normalize(embedder.centres.detach()[:, CLASSES.index(defect)], dim=0).numpy()


def said(defect: Defect, septum: Septum = Septum.INTERATRIAL, abstained: str | None = None) -> DefectPrediction:
    rest = {d: 0.0 if d is not defect else 1.0 for d in CLASSES}
    crop = SeptalBox(0, 0, 0, 5, 5, septum, 0.9)
    return DefectPrediction(defect, rest, dict.fromkeys(CLASSES, 60.0), (0,), (crop,), abstained=abstained)


def test_one_view_with_the_hole_speaks_for_the_child(embedder: DefectEmbedder) -> None:
    normal, hole = centre(embedder, Defect.NORMAL), centre(embedder, Defect.ASD)

    answer = combine_cines(
        embedder,
        CLASSES,
        [said(Defect.NORMAL), said(Defect.NORMAL), said(Defect.ASD)],
        np.stack([normal, normal, hole]),
    )

    assert answer.defect is Defect.ASD
    assert answer.agreement == pytest.approx(1 / 3)
    assert (answer.cines, answer.asked) == (3, 3)
    assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_views_that_agree_are_said_to(embedder: DefectEmbedder) -> None:
    vector = centre(embedder, Defect.NORMAL)

    answer = combine_cines(embedder, CLASSES, [said(Defect.NORMAL)] * 2, np.stack([vector, vector]))

    assert (answer.defect, answer.agreement) == (Defect.NORMAL, 1.0)
    assert answer.similarity == pytest.approx(1.0, abs=1e-5)


def test_a_wall_that_cannot_have_the_hole_does_not_disagree(embedder: DefectEmbedder) -> None:
    vectors = np.stack([centre(embedder, Defect.ASD), centre(embedder, Defect.NORMAL)])
    cines = [said(Defect.ASD), said(Defect.NORMAL, Septum.INTERVENTRICULAR)]

    answer = combine_cines(embedder, CLASSES, cines, vectors)

    assert (answer.defect, answer.agreement) == (Defect.ASD, 1.0)


def test_withheld_answers_are_passed_over(embedder: DefectEmbedder) -> None:
    hole, normal = centre(embedder, Defect.ASD), centre(embedder, Defect.NORMAL)
    cines = [said(Defect.ASD, abstained="no septum found"), said(Defect.NORMAL)]

    answer = combine_cines(embedder, CLASSES, cines, np.stack([hole, normal]))

    assert (answer.defect, answer.cines, answer.asked, answer.similarity) == (Defect.NORMAL, 1, 2, None)
    assert combine_cines(embedder, CLASSES, cines[:1], hole[None]) is None


def test_the_order_of_cines_does_not_matter(embedder: DefectEmbedder) -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 512))
    cines = [said(Defect.NORMAL, wall) for wall in (Septum.INTERATRIAL, Septum.INTERVENTRICULAR)] * 2

    first = combine_cines(embedder, CLASSES, cines, vectors)
    second = combine_cines(embedder, CLASSES, cines[::-1], vectors[::-1])

    assert first.probabilities[Defect.ASD] == pytest.approx(second.probabilities[Defect.ASD], abs=1e-6)


def test_each_cine_needs_its_embedding(embedder: DefectEmbedder) -> None:
    with pytest.raises(ValueError, match="1 predictions with 2 embeddings"):
        combine_cines(embedder, CLASSES, [said(Defect.ASD)], np.zeros((2, 512)))
