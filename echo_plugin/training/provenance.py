# SPDX-License-Identifier: Apache-2.0
"""Where a model comes from: who is learned from, who chooses the checkpoint, who is measured.

A card lists the patients of its parts as fingerprints. A training that goes on from a model, or stands beside others in
one folder, leaves every patient in the part where those cards have it; so nobody is measured who was learned from.

Files that were learned from before anybody said who is on them, so that whoever that turns out to be counts.

A file is known again by its SOP Instance UID, or, without one, by its bytes; wherever it lies and whatever it is
called by then. One that was written anew in between, cut or de-identified say, is another file.

A card keeps 32 salted bits of each, which are 6 bytes of text: with 10 000 files learned from, one strange file in
400 000 is taken for one of them.

The card of a model that has been trained, and publishing both; who is in which part is in ``provenance``.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from echo_plugin.answer.runtime import TRAIN_COMMANDS
from echo_plugin.cine import is_uid
from echo_plugin.durable import file_stamp
from echo_plugin.errors import ModelMismatchError, ModelNotFoundError, TrainingDataError
from echo_plugin.io.patients_file import PATIENTS_FILE, read_parts
from echo_plugin.model_card import STARTERS, Metric, ModelCard, TrainingData, load_card
from echo_plugin.models.checkpoint import MASKED_AUTOENCODER, publish
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, cines_digest, digest_of, phantom_command
from echo_plugin.training.loop import Learned, forget_states
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.processes import agreed, is_first
from echo_plugin.training.splits import PARTS, Split, patient_fingerprints, recognised_patients, split_by_patient
from echo_plugin.training.start import Start

FILES_KEY = "nameless_files"
"""Of a card's config: the numbers of the files, big-endian and ascending, in base64."""
NAMELESS_LIMITS = (
    " Some files that it, or the model it began with, learned from named no patient: whoever is on them counts as"
    " learned from where the same file is met again, and cannot be told by a file that was written anew since."
)
_NUMBER = np.dtype(">u4")


class ImageFile(Protocol):
    """A file and who is on it; ``patient_id`` None: nobody says."""

    @property
    def image_id(self) -> str:
        """The SOP Instance UID, or what is made of the path."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    @property
    def patient_id(self) -> str | None:
        """The patient's id."""


def file_numbers(files: Iterable[ImageFile], salt: str) -> frozenset[int]:
    """Return the numbers of files under a card's salt; one that cannot be read has none."""
    return frozenset(number for file in files if (number := _number(file, salt)) is not None)


def pack_numbers(numbers: Iterable[int]) -> str:
    """Return numbers as a card keeps them.

    >>> pack_numbers([258, 1]), unpack_numbers("AAAAAQAAAQI=") == {1, 258}
    ('AAAAAQAAAQI=', True)
    """
    return base64.b64encode(np.array(sorted(set(numbers)), dtype=_NUMBER).tobytes()).decode("ascii")


def unpack_numbers(text: object) -> frozenset[int]:
    """Return the numbers that `pack_numbers` was given; of a card that keeps none, none."""
    return frozenset(np.frombuffer(base64.b64decode(text), _NUMBER).tolist() if isinstance(text, str) else ())


def patients_on_nameless(card: ModelCard, files: Iterable[ImageFile]) -> frozenset[str]:
    """Return the patients of those files from which the model, or one it began with, learned without a name."""
    numbers, salt = unpack_numbers(card.config.get(FILES_KEY)), str(card.config.get("patient_salt"))
    if not numbers:
        return frozenset()
    named = ((file, (file.patient_id or "").strip()) for file in files)
    return frozenset(patient for file, patient in named if patient and _number(file, salt) in numbers)


def patients_by_copies(files: Sequence[ImageFile]) -> list[str | None]:
    """Return who is on each of the files; on a nameless one, who is on the first copy among them that names anybody.

    Only files of a size that both a nameless one and a named one have are read.
    """
    patients = [file.patient_id for file in files]
    alike: defaultdict[object, list[int]] = defaultdict(list)
    for place, file in enumerate(files):
        alike[_cheap_key(file)].append(place)
    for places in alike.values():
        nameless = [place for place in places if not patients[place]]
        if not nameless or len(nameless) == len(places):
            continue
        said: dict[str | None, str | None] = {}
        for place in places:
            if patients[place]:
                said.setdefault(_content(files[place]), patients[place])
        said[None] = None  # what cannot be read is no copy of anything
        for place in nameless:
            patients[place] = said.get(_content(files[place]))
    return patients


def _cheap_key(file: ImageFile) -> object:
    """Return what copies of a file share, and can be told without reading it."""
    stamp = None if is_uid(file.image_id) else file_stamp(file.path)
    return file.image_id if stamp is None else stamp[1]


def _number(file: ImageFile, salt: str) -> int | None:
    content = _content(file)
    if content is None:
        return None
    return int.from_bytes(hashlib.sha256(f"{salt}{content}".encode()).digest()[: _NUMBER.itemsize], "big")


def _content(file: ImageFile) -> str | None:
    """Return what a file is known again by, under no salt yet; None: it cannot be read."""
    if is_uid(file.image_id):
        return file.image_id
    try:
        return _digest(file.path, file_stamp(file.path))
    except OSError:
        return None


@functools.lru_cache(maxsize=1 << 17)
def _digest(path: Path, stamp: tuple[int, int] | None) -> str:
    """Return the SHA-256 of a file's bytes, read once however many cards ask. ``stamp`` : of this writing of it."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


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
    config: Mapping[str, float | int | str | bool | list[float] | list[int]],
    metrics: Mapping[str, Metric],
) -> ModelCard:
    """Return the card of a model of labelled cines to be published to ``models``; ``config`` has ``input_size_px``."""
    labelled, split, start = origin.labelled, origin.split, origin.start
    data = training_data(labelled.provenance, len(origin.cines), cines_digest(origin.cines), split, start)
    size, seen = config["input_size_px"], fingerprints(split, start, data.digest)
    return ModelCard(
        name=name,
        version=next_version(start, name, models),
        task=task,
        architecture=architecture,
        classes=classes,
        input_size_px=int(size) if isinstance(size, int | float) else 0,
        config={
            **{k: v for k, v in config.items() if v == v},
            **seen,
            "split_digest": split.digest,
        },
        training_data=data,
        metrics={key: metric for key, metric in metrics.items() if math.isfinite(metric.value)},
        command=_commands(name, labelled, options, learned),
        wall_time_s=round(learned.wall_time_s, 1),
        seed=options.seed,
        licence=start.licence,
        limits=(PHANTOM_LIMITS if labelled.is_phantom else FEW_LIMITS)
        + GREY_LIMITS
        + ("" if metrics else UNMEASURED_LIMITS)
        + (NAMELESS_LIMITS if FILES_KEY in seen else ""),
    )


def training_data(provenance: str, cines: int, digest: str, split: Split, start: Start) -> TrainingData:
    """Return what a card says of so many ``cines``: their provenance, with that of the start, and who is on them."""
    return TrainingData(provenance + start.words, sum(split.sizes.values()), cines, digest, split.sizes)


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
    return agreed(card)
