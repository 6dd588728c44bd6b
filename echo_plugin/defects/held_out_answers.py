# SPDX-License-Identifier: Apache-2.0
"""What the models say of held-out cines and children: the rows that ``evaluate`` measures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import Defect
from echo_plugin.cine import ByteArray
from echo_plugin.cohort_facts import number_in, phantom_facts
from echo_plugin.defects.tables import DROPOUT_FROM, AnsweredCine
from echo_plugin.errors import TrainingDataError
from echo_plugin.evaluation_pictures import embedded_picture
from echo_plugin.geometry import FloatArray
from echo_plugin.held_out import HeldOut
from echo_plugin.predict import EchoPipeline
from echo_plugin.prediction import CineEmbedding
from echo_plugin.progress import Progress
from echo_plugin.training.splits import patients_of_several_defects

THUMBNAIL_PX = 96


@dataclass(frozen=True)
class Answers:
    """What the models said of N cines: ``probabilities`` (N, K), the true ids, ``abstained`` (N,) bool.

    ``vectors, embeddings`` : (N, D) of unit length, of ``CineEmbedding``. ``thumbnails`` : (S, S) uint8 of what was
    embedded.
    """

    classes: tuple[str, ...]
    truth: NDArray[np.int_]
    probabilities: FloatArray
    vectors: FloatArray
    embeddings: FloatArray
    abstained: NDArray[np.bool_]
    embedded: tuple[CineEmbedding, ...]
    thumbnails: tuple[ByteArray, ...]
    cines: tuple[AnsweredCine, ...]

    @property
    def shows(self) -> NDArray[np.bool_]:
        """(N,) whether the diagnosis can be seen: nobody said that the defect lies outside the picture."""
        return np.array([cine.is_visible is not False for cine in self.cines])

    @property
    def normal_id(self) -> int:
        """The class that is no defect."""
        return self.classes.index(Defect.NORMAL.value)

    @property
    def said(self) -> list[str]:
        """The class that is answered of each cine."""
        return [self.classes[k] for k in self.probabilities.argmax(axis=1)]

    @property
    def right(self) -> FloatArray:
        """(N,) 1 where the answer is the truth."""
        return np.asarray(self.probabilities.argmax(axis=1) == self.truth, dtype=np.float64)


def ask(chosen: HeldOut, pipeline: EchoPipeline, progress: Progress | None) -> Answers:
    """Return what the models say of the held-out cines."""
    classes = chosen.card.classes
    facts = phantom_facts(chosen.labelled.folder.root)
    asked, thumbnails, cines = list[CineEmbedding](), [], []
    for number, labels in enumerate(chosen.cines):
        cine = chosen.labelled.folder.read_cine(labels.image_id)
        embedded = pipeline.embed(cine)
        asked.append(embedded)
        thumbnails.append(embedded_picture(cine, embedded.defect, THUMBNAIL_PX))
        known, said = facts.get(labels.image_id, {}), labels.annotation
        assert said.defect is not None
        age = number_in(known, "age_days")
        cines.append(
            AnsweredCine(
                view=None if said.view is None else said.view.value,
                defect=said.defect.value,
                age_days=cine.patient_age_days if age is None else int(age),
                defect_size_mm=said.defect_size_mm,
                image_quality=number_in(known, "image_quality"),
                septal_dropout=number_in(known, "septal_dropout"),
                is_visible=said.is_defect_visible,
            )
        )
        if progress is not None:
            progress(number + 1, len(chosen.cines), "")
    truth = np.array([classes.index(cine.defect) for cine in cines])
    return Answers(
        classes,
        truth,
        np.array([[cine.defect.probabilities[Defect(name)] for name in classes] for cine in asked]),
        np.array([cine.vector.astype(np.float64) for cine in asked]),
        np.array([cine.embedding.astype(np.float64) for cine in asked]),
        np.array([cine.defect.abstained is not None for cine in asked]),
        tuple(asked),
        tuple(thumbnails),
        tuple(cines),
    )


@dataclass(frozen=True)
class PatientAnswers:
    """What the models said of P patients: ``truth`` (P,) ids, ``probabilities`` (P, K).

    ``is_shown`` (P,) : whether any of their cines shows the defect; of a normal heart always. ``agreement`` (P,) : of
    ``PatientDefect``; NaN: not known. ``has_dropout`` (P,) : whether the interatrial septum drops out on one of them.
    """

    names: tuple[str, ...]
    truth: NDArray[np.int_]
    probabilities: FloatArray
    is_shown: NDArray[np.bool_]
    has_dropout: NDArray[np.bool_]
    agreement: FloatArray

    @property
    def said(self) -> NDArray[np.int_]:
        """(P,) the class that is answered."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def vectors(self) -> FloatArray:
        """(P, K) of unit length: their cosines say how likely two patients have one defect, as those of cines do."""
        found: FloatArray = self.probabilities / np.linalg.norm(self.probabilities, axis=1, keepdims=True)
        return found


def measured_of_several_defects(chosen: HeldOut) -> frozenset[str]:
    """Return those to measure whose cines name different defects."""
    several = patients_of_several_defects((c.patient_id, c.annotation.defect) for c in chosen.labelled.cines)
    return several & {cine.patient_id for cine in chosen.cines}


def join_patients(chosen: HeldOut, answers: Answers, pipeline: EchoPipeline) -> PatientAnswers:
    """Return what the cines of each patient say together; of who got no answer the mean of the cines'.

    Patients whose cines name different defects have no one answer: they are left out.

    Raises
    ------
    TrainingDataError
        If nobody is left.
    """
    owner = np.array([cine.patient_id for cine in chosen.cines])
    several = measured_of_several_defects(chosen)
    told = {name: (chosen.labelled.defects[name] or Defect.NORMAL).value for name in set(owner.tolist()) - several}
    names = sorted(name for name, defect in told.items() if defect in answers.classes)
    if not names:
        msg = f"All {len(several)} patients to measure have cines of different defects; measure others too."
        raise TrainingDataError(msg)
    rows, is_shown, has_dropout, agreement = [], [], [], []
    for name in names:
        own = np.flatnonzero(owner == name)
        joined = pipeline.combine([answers.embedded[place] for place in own])
        mean = answers.probabilities[own].mean(axis=0)
        rows.append(mean if joined is None else [joined.probabilities[Defect(k)] for k in answers.classes])
        agreement.append(np.nan if joined is None or joined.agreement is None else joined.agreement)
        is_shown.append(bool(answers.shows[own].any()))
        has_dropout.append(any((answers.cines[place].septal_dropout or 0.0) >= DROPOUT_FROM for place in own))
    truth = np.array([answers.classes.index(told[name]) for name in names])
    facts = np.array(rows), np.array(is_shown), np.array(has_dropout), np.array(agreement)
    return PatientAnswers(tuple(names), truth, *facts)
