# SPDX-License-Identifier: Apache-2.0
"""Where a model comes from: who is learned from, who chooses the checkpoint, who is measured.

A card lists the patients of its parts as fingerprints. A training that goes on from a model, or stands beside others in
one folder, leaves every patient in the part where those cards have it; so nobody is measured who was learned from.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from echo_plugin.errors import ModelMismatchError, ModelNotFoundError, TrainingDataError
from echo_plugin.io.patients_file import PATIENTS_FILE, read_parts
from echo_plugin.model_card import ModelCard
from echo_plugin.models.card_file import load_card
from echo_plugin.models.checkpoint import MASKED_AUTOENCODER
from echo_plugin.runtime import TRAIN_COMMANDS
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, cines_digest, digest_of
from echo_plugin.training.nameless_files import (
    FILES_KEY,
    ImageFile,
    file_numbers,
    pack_numbers,
    patients_on_nameless,
    unpack_numbers,
)
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.splits import PARTS, Split, patient_fingerprints, recognised_patients, split_by_patient
from echo_plugin.training.start_weights import Start

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """The labelled cines that one training is about, the split of their patients, and the weights it begins with."""

    labelled: LabelledFolder
    cines: Sequence[LabelledCine]
    split: Split
    start: Start

    def parts(self, what: str) -> dict[str, list[LabelledCine]]:
        """Return the cines of each part; none of one to measure with that has no patients.

        ``what`` : what they are labelled with, for the message.

        Raises
        ------
        TrainingDataError
            If a part has none otherwise.
        """
        return {part: self._cines_in(part, what) for part in PARTS}

    def _cines_in(self, part: str, what: str) -> list[LabelledCine]:
        wanted = frozenset(getattr(self.split, part))
        chosen = [cine for cine in self.cines if cine.patient_id in wanted]
        if not chosen and (wanted or part == "train"):
            msg = f"No cine of the {part} patients has {what}; annotate more patients ({self.split.sizes} are split)."
            raise TrainingDataError(msg)
        return chosen


def origin_of(
    cines: Sequence[LabelledCine],
    labelled: LabelledFolder,
    start: Start,
    models: Path,
    seed: int,
    *,
    may_be_unmeasured: bool = False,
) -> Origin:
    """Return where a model of ``cines`` comes from; patients that its start or models beside it know keep their part.

    The others keep the part that the folder's patients.csv gives them, where a data set comes with a split.
    """
    patients, defects = {cine.patient_id for cine in cines}, labelled.defects
    fixed = read_parts(labelled.folder.root / PATIENTS_FILE)
    known = known_parts(sorted(patients), fixed, start, models, labelled.folder.entries())
    split = split_by_patient(
        {p: defects.get(p) for p in patients},
        seed=seed,
        fixed=fixed,
        known=known,
        may_be_unmeasured=may_be_unmeasured,
    )
    return Origin(labelled, cines, split, start)


def known_parts(
    patients: Sequence[str], fixed: Mapping[str, str], start: Start, models: Path, files: Sequence[ImageFile]
) -> dict[str, str]:
    """Return, by patient, the part in which the start has it, or else a model beside it; strangers are left out.

    ``fixed`` : a data set's own split; a warning says of how many patients models have seen more than it allows.
    ``files`` : those that are of these patients, as far as is known.
    """
    cards = [start.card] if start.card else []
    for name in (*TRAIN_COMMANDS, MASKED_AUTOENCODER):
        try:
            card = load_card(models, name)
        except (ModelNotFoundError, ModelMismatchError):
            continue
        if start.card is None or card.name != start.card.name:
            cards.append(card)
    known: dict[str, str] = {}
    for card in reversed(cards):
        known |= known_patients(card, patients, files)
    nearer = [p for p in known if p in fixed and PARTS.index(known[p]) < PARTS.index(fixed[p])]
    if nearer:
        logger.warning(
            "The split in %s is not kept for %d patients: models here have learned from them, or were chosen on them;"
            " an empty --models folder and --from scratch keep it.",
            PATIENTS_FILE,
            len(nearer),
        )
    return known


def names_its_patients(card: ModelCard) -> bool:
    """Whether a card lists whom its model learned from; one that does not can be held against nobody."""
    return isinstance(card.config.get("patient_salt"), str) and all(f"patients_{part}" in card.config for part in PARTS)


def known_patients(card: ModelCard, patients: Sequence[str], files: Iterable[ImageFile] = ()) -> dict[str, str]:
    """Return, by patient, the part in which a card has it; whom a nameless file of its own shows was learned from.

    ``files`` : those that may show the patients.
    """
    lists = {part: card.config.get(f"patients_{part}", []) for part in PARTS}
    numbers = {part: [int(n) for n in entry] for part, entry in lists.items() if isinstance(entry, list)}
    salt = card.config.get("patient_salt")
    if not isinstance(salt, str):
        return {}
    wanted = frozenset(patients)
    shown = patients_on_nameless(card, (file for file in files if (file.patient_id or "").strip() in wanted))
    return recognised_patients(patients, numbers, salt=salt) | dict.fromkeys(sorted(shown), "train")


def seen_patients(card: ModelCard, patients: Iterable[str], files: Iterable[ImageFile]) -> frozenset[str]:
    """Return those of the patients from whom a model learned or by whom it was chosen: it may not be measured on them.

    ``files`` : those that may show the patients. A card that does not list its patients can be held against nobody
    (``names_its_patients``).
    """
    known = known_patients(card, sorted(set(patients)), files)
    return frozenset(patient for patient, part in known.items() if part != "test")


def fingerprints(
    split: Split, start: Start, digest: str, files: Iterable[ImageFile] = ()
) -> dict[str, str | list[int]]:
    """Return the salt and the fingerprints of each part, with those of the start: what it saw stays seen.

    ``files`` : those to learn from, some of which may name nobody.
    """
    before = start.card.config if start.card else {}
    salt = before.get("patient_salt")
    if not isinstance(salt, str):
        salt = hashlib.sha256(f"{digest}{split.digest}".encode()).hexdigest()[:16]
    lists: dict[str, str | list[int]] = {"patient_salt": salt}
    for part in PARTS:
        earlier = before.get(f"patients_{part}", [])
        numbers = set(patient_fingerprints(getattr(split, part), salt=salt))
        numbers |= {int(n) for n in earlier} if isinstance(earlier, list) else set()
        lists[f"patients_{part}"] = sorted(numbers)
    nameless = file_numbers((file for file in files if file.patient_id is None), salt)
    if nameless := nameless | unpack_numbers(before.get(FILES_KEY)):
        lists[FILES_KEY] = pack_numbers(nameless)
    return lists


def words_for_test(labelled: LabelledFolder) -> str:
    """Return how a figure on the test patients is to be called."""
    return "test patients (phantoms)" if labelled.is_phantom else "test patients"


def data_key(cines: Sequence[LabelledCine], split: Split, options: TrainOptions, config: object) -> str:
    """Return what tells trainings on other data, or of another network, apart."""
    chosen = (options.recipe, options.batch_size, options.frames_per_cine)
    return digest_of([cines_digest(cines), split.digest, repr(chosen), repr(config)])
