# SPDX-License-Identifier: Apache-2.0
"""Where a model comes from, and what its card says of it: who is learned from, who chooses, who is measured.

A card lists the patients of its parts as fingerprints. A training that goes on from a model, or stands beside others in
one folder, leaves every patient in the part where those cards have it; so nobody is measured who was learned from.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from echo_plugin.answer.runtime import TRAIN_COMMANDS
from echo_plugin.errors import ModelMismatchError, ModelNotFoundError, TrainingDataError
from echo_plugin.io.patients_file import PATIENTS_FILE, read_parts
from echo_plugin.model_card import STARTERS, Decision, Metric, ModelCard, Training, TrainingCohort, load_card
from echo_plugin.models.checkpoint import MASKED_AUTOENCODER, publish
from echo_plugin.network_config import NetworkConfig
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, cines_digest, digest_of, phantom_command
from echo_plugin.training.loop import Learned, forget_states
from echo_plugin.training.options import TrainOptions, ViewOptions
from echo_plugin.training.processes import broadcast, is_first
from echo_plugin.training.splits import PARTS, Split, patient_fingerprints, recognised_patients, split_by_patient
from echo_plugin.training.start import Start

NAMELESS_LIMITS = (
    " Some files that it, or the model it began with, learned from named no patient: each counts as a patient of its"
    " own, so whoever is on them may be measured as if never seen."
)

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
    known = known_parts(sorted(patients), fixed, start, models)
    split = split_by_patient(
        {p: defects.get(p) for p in patients},
        seed=seed,
        fixed=fixed,
        known=known,
        may_be_unmeasured=may_be_unmeasured,
    )
    return Origin(labelled, cines, split, start)


def known_parts(patients: Sequence[str], fixed: Mapping[str, str], start: Start, models: Path) -> dict[str, str]:
    """Return, by patient, the part in which the start has it, or else a model beside it; strangers are left out.

    ``fixed`` : a data set's own split; a warning says of how many patients models have seen more than it allows.
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
        known |= known_patients(card, patients)
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
    return bool(card.cohort.salt)


def known_patients(card: ModelCard, patients: Sequence[str]) -> dict[str, str]:
    """Return, by patient, the part in which a card has it."""
    numbers = {part: getattr(card.cohort, part) for part in PARTS}
    return recognised_patients(patients, numbers, salt=card.cohort.salt) if names_its_patients(card) else {}


def seen_patients(card: ModelCard, patients: Iterable[str]) -> frozenset[str]:
    """Return those of the patients from whom a model learned or by whom it was chosen: it may not be measured on them.

    A card that does not list its patients can be held against nobody (``names_its_patients``).
    """
    known = known_patients(card, sorted(set(patients)))
    return frozenset(patient for patient, part in known.items() if part != "test")


def cohort_of(
    provenance: str, cines: int, digest: str, split: Split, start: Start, *, files_without_patient: int = 0
) -> TrainingCohort:
    """Return what a card says of whom a model learned from; the patients of its start stay in their parts.

    ``provenance`` : of so many ``cines``, whose digest is ``digest``.
    """
    before = start.card.cohort if start.card else TrainingCohort("", 0, 0, "")
    salt = before.salt or hashlib.sha256(f"{digest}{split.digest}".encode()).hexdigest()[:16]
    train, validation, test = (
        tuple(sorted({*patient_fingerprints(getattr(split, part), salt=salt), *getattr(before, part)}))
        for part in PARTS
    )
    return TrainingCohort(
        provenance,
        sum(split.sizes.values()),
        cines,
        digest,
        split.sizes,
        begun_with=start.words,
        earlier=tuple(dict.fromkeys(w for w in (before.provenance, *before.earlier) if w not in ("", provenance))),
        salt=salt,
        train=train,
        validation=validation,
        test=test,
        split_digest=split.digest,
        files_without_patient=files_without_patient,
    )


def nameless_limits(start: Start, *, has_nameless: bool = False) -> str:
    """Return the sentence on files without a patient where the model, or the one it began with, learned from some."""
    is_inherited = start.card is not None and NAMELESS_LIMITS in start.card.limits
    return NAMELESS_LIMITS if has_nameless or is_inherited else ""


def words_for_test(labelled: LabelledFolder) -> str:
    """Return how a figure on the test patients is to be called."""
    return "test patients (phantoms)" if labelled.is_phantom else "test patients"


def data_key(cines: Sequence[LabelledCine], split: Split, options: TrainOptions, config: object) -> str:
    """Return what tells trainings on other data, or of another network, apart."""
    chosen = (options.recipe, options.batch_size, options.frames_per_cine)
    return digest_of([cines_digest(cines), split.digest, repr(chosen), repr(config)])


PHANTOM_LIMITS = (
    "Trained on phantoms only: synthetic children imaged by a convolution model."
    " Figures are figures on phantoms and say nothing about patients."
)
UNMEASURED_LIMITS = " Its metrics are missing: no annotated patient was left to measure with."
GREY_LIMITS = " Frames are made grey before the network sees them: of colour Doppler it sees the brightness alone."
FEW_LIMITS = "Learned from the annotations of one study folder; not tested on other hospitals or machines."


def build_card(
    origin: Origin,
    learned: Learned,
    options: TrainOptions,
    models: Path,
    *,
    name: str,
    task: str,
    architecture: str,
    classes: tuple[str, ...],
    network: NetworkConfig,
    decision: Decision,
    metrics: Mapping[str, Metric],
    validation: Mapping[str, float],
    frames: int | None = None,
    majority_id: int | None = None,
    constant_boxes: tuple[tuple[float, ...] | None, ...] = (),
) -> ModelCard:
    """Return the card of a model of labelled cines to be published to ``models``; NaN of ``validation`` is left out."""
    labelled, split, start = origin.labelled, origin.split, origin.start
    cohort = cohort_of(labelled.provenance, len(origin.cines), cines_digest(origin.cines), split, start)
    return ModelCard(
        name=name,
        version=next_version(start, name, models),
        task=task,
        architecture=architecture,
        classes=classes,
        network=network,
        decision=decision,
        cohort=replace(cohort, majority_id=majority_id, constant_boxes=constant_boxes),
        training=Training(
            command=_commands(name, labelled, options, learned),
            wall_time_s=round(learned.wall_time_s, 1),
            seed=options.seed,
            recipe=options.recipe,
            mirror=isinstance(options, ViewOptions) and options.mirror,
            epochs=learned.epochs,
            frames=frames,
            validation={key: value for key, value in validation.items() if math.isfinite(value)},
        ),
        metrics={key: metric for key, metric in metrics.items() if math.isfinite(metric.value)},
        licence=start.licence,
        limits=(PHANTOM_LIMITS if labelled.is_phantom else FEW_LIMITS)
        + GREY_LIMITS
        + ("" if metrics else UNMEASURED_LIMITS)
        + nameless_limits(start),
    )


def _commands(name: str, labelled: LabelledFolder, options: TrainOptions, learned: Learned) -> str:
    """Return the commands that repeat a training: that of the phantoms, if it had them alone, and its own."""
    train = options.command
    if not train:
        train = f"monailabel-echo train {TRAIN_COMMANDS[name]} --studies DIR --models DIR"
        train += f" --epochs {learned.epochs} --seed {options.seed}"
    made = phantom_command(labelled.folder.root) if labelled.is_phantom else None
    return f"{made} && {train}" if made else train


def next_version(start: Start, name: str, models: Path) -> str:
    """Return the version of a model that went on from ``start`` and is published to ``models``.

    It is above that of ``start``, of what is published there, and of the starter weights: a training from other
    weights would otherwise publish, under the same name, a number that there has been.
    """
    cards = [start.card] if start.card is not None and start.card.name == name else []
    for folder in (models, STARTERS):
        with suppress(ModelNotFoundError, ModelMismatchError):
            cards.append(load_card(folder, name))
    named = [card.version for card in cards if not card.version.isdecimal()]
    return f"{named[0]}+1" if named else str(max((int(card.version) for card in cards), default=0) + 1)


def publish_learned(models: Path, learned: Learned, card: ModelCard) -> ModelCard:
    """Publish what was learned, from the first process; there is nothing left to go on with then."""
    if is_first():
        card = publish(models, learned.state, card, storage_dtype=torch.float16)
        forget_states(models, card.name)
    return broadcast(card)
