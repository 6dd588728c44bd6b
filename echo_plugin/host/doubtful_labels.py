# SPDX-License-Identifier: Apache-2.0
"""Labels that look like mistakes, as the strategy ``suspicious`` and the panel show them, or why there is none."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np

from echo_plugin.acquisition.pool import Pool
from echo_plugin.acquisition.score_store import Judgement
from echo_plugin.acquisition.strategies import DOUBTFUL, current_judgements, doubtful
from echo_plugin.errors import EchoError
from echo_plugin.host.datastore import EchoDatastore
from echo_plugin.host.waiting_cines import WaitingCines
from echo_plugin.io.label_summaries import LabelSummary
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.models.card_file import load_card
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR
from echo_plugin.training.provenance import names_its_patients, seen_patients

LEARNED = "the detector learned from their patients; `monailabel-echo review` judges those"


def doubtful_labels(pool: Pool, waiting: WaitingCines) -> list[Judgement]:
    """Return the labels that look like mistakes, the worst first."""
    return doubtful(current_judgements(pool), waiting.is_confirmed)


def why_none(pool: Pool, waiting: WaitingCines, datastore: EchoDatastore) -> str:
    """Return why no label is shown: how many agree with the detector, were confirmed, or were not judged and why."""
    labelled = np.flatnonzero(pool.labels.is_labelled & ~pool.labels.is_unusable)
    if not len(labelled):
        return "No cine has a label that could be doubted."
    judgements = current_judgements(pool)
    judged = {judgement.image_id for judgement in judgements}
    rest = [i for place in labelled if (i := pool.cines.image_ids[place]) not in judged]
    agree = sum(judgement.quality >= DOUBTFUL for judgement in judgements)
    unreadable = len(doubtful(judgements, waiting.is_confirmed))
    confirmed = len(judgements) - agree - unreadable
    said = ((agree, "in agreement with the detector"), (confirmed, "confirmed"), (unreadable, "of unreadable cines"))
    causes = _why_not_judged(rest, waiting, datastore)
    words = [f"{count} {what}" for count, what in said if count]
    words += [f"{count} not judged ({cause})" for cause, count in causes.most_common()]
    return f"No label looks like a mistake. Of {len(labelled)}: {'; '.join(words)}."


def _why_not_judged(image_ids: list[str], waiting: WaitingCines, datastore: EchoDatastore) -> Counter[str]:
    """Return how many of these labels were not judged, by the reason."""
    try:
        card = load_card(waiting.models, SEPTAL_DETECTOR)
    except EchoError:
        return Counter({"no detector is published": len(image_ids)} if image_ids else {})
    if not names_its_patients(card):
        return Counter({"the detector does not say whom it learned from": len(image_ids)} if image_ids else {})
    studies = datastore.studies
    generation = studies.generation
    patients = {entry.image_id: entry.patient_id for entry in studies.entries()}
    asked = tuple(sorted({patient for image_id in image_ids if (patient := patients.get(image_id))}))
    seen = _learned_from(waiting.models, card.sha256, asked, studies, generation)
    labels = datastore.labels.current()
    return Counter(_cause(patients.get(image_id), labels.get(image_id), seen) for image_id in image_ids)


@lru_cache(maxsize=1)
def _learned_from(
    models: Path, sha256: str, patients: tuple[str, ...], studies: StudyFolder, generation: int
) -> frozenset[str]:
    """Return those of the patients that the detector with these weights learned from.

    Fingerprints are slow on purpose, half a millisecond each, and these are asked for while others wait for the pool.
    ``generation`` : of the folder, another one with other files or patients.
    """
    return seen_patients(load_card(models, SEPTAL_DETECTOR), patients, studies.entries())


def _cause(patient: str | None, label: LabelSummary | None, seen: frozenset[str]) -> str:
    if not patient:
        return "their patient is not known"
    if patient in seen:
        return LEARNED
    if label is None or not label.frames:
        return "no frame of theirs is annotated"
    return "the detector has not looked at them yet, or no box of theirs names its septum"
