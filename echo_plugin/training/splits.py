# SPDX-License-Identifier: Apache-2.0
"""Who is learned from, who chooses the checkpoint, who is measured: always whole patients.

A ``Split`` that shares a patient between its parts cannot exist. Identities are never written out: a card keeps
salted, slow and deliberately short fingerprints, enough to refuse a patient that was learned from, too short to
prove that a person was there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from echo_plugin.anatomy import Defect
from echo_plugin.errors import TrainingDataError

PARTS = ("train", "validation", "test")

FINGERPRINT_BITS = 24
"""200 patients: one stranger in 80 000 is taken for one of them, and nobody can be shown to be one."""

_FINGERPRINT_ROUNDS = 2000


@dataclass(frozen=True)
class Split:
    """Patient ids of the three parts, each sorted; no patient is in two parts.

    Raises
    ------
    TrainingDataError
        If two parts share a patient; the message gives the count, never an identity.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    seed: int

    def __post_init__(self) -> None:
        for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
            shared = set(getattr(self, first)) & set(getattr(self, second))
            if shared:
                msg = f"Split shares {len(shared)} patients between {first} and {second}; each patient is in one part."
                raise TrainingDataError(msg)

    @property
    def sizes(self) -> dict[str, int]:
        """Patients per part."""
        return {part: len(getattr(self, part)) for part in PARTS}

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted patients of each part and the seed."""
        parts = ["\x1f".join(sorted(getattr(self, part))) for part in PARTS]
        return hashlib.sha256("\x1e".join([*parts, str(self.seed)]).encode()).hexdigest()

    def part_of(self, patient_id: str) -> str | None:
        """Return "train", "validation" or "test"; None for a patient of none of them."""
        return next((part for part in PARTS if patient_id in getattr(self, part)), None)


def split_by_patient(
    defects: Mapping[str, Defect | None],
    *,
    seed: int,
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    fixed: Mapping[str, str] | None = None,
    known: Mapping[str, str] | None = None,
    may_be_unmeasured: bool = False,
) -> Split:
    """Return a seeded split of the patients ``defects`` names, each defect spread over the parts as evenly as can be.

    The patients of one defect after another, shuffled, go each to the part that is furthest below its share. Those in
    ``known`` keep their part: a training that goes on from a model must not measure whom that model learned from. So do
    those in ``fixed``, the split of a data set; where it has nobody for a part, they are drawn from its training
    patients. Where patients ``may_be_unmeasured``, all of too few are learned from, and the other parts are empty.

    Raises
    ------
    TrainingDataError
        If there is nobody to learn from, or, unless they may be unmeasured, nobody to measure.
    """
    is_too_few = len(defects) < len(PARTS)
    if is_too_few and not may_be_unmeasured:
        msg = f"Training needs at least {len(PARTS)} patients (train, validation, test); {len(defects)} are annotated."
        raise TrainingDataError(msg)
    known = {patient: part for patient, part in (known or {}).items() if patient in defects}
    fixed = {patient: part for patient, part in (fixed or {}).items() if patient in defects}
    placed = fixed | known
    lacking = [part for part in PARTS[1:] if part not in placed.values()]
    if lacking:
        placed = {patient: part for patient, part in placed.items() if patient in known or part != "train"}
    parts = {part: [patient for patient in sorted(placed) if placed[patient] == part] for part in PARTS}
    free = {"train", *lacking}  # to whom a data set's own training patients may go
    for patient in _strata(defects, seed):
        if patient in placed:
            continue
        allowed = [part for part in PARTS if part in free or patient not in fixed]
        shares = {part: fraction for part, fraction in zip(PARTS, fractions, strict=True) if part in allowed}
        count = (1 + sum(len(parts[part]) for part in allowed)) / sum(shares.values())
        shortfalls = {part: count * share - len(parts[part]) for part, share in shares.items()}
        parts["train" if is_too_few else max(shortfalls, key=shortfalls.__getitem__)].append(patient)
    for part in PARTS[1:]:
        movable = [patient for patient in parts["train"] if patient not in placed]
        if not parts[part] and movable and len(parts["train"]) > 1 and not is_too_few:
            parts["train"].remove(movable[-1])
            parts[part].append(movable[-1])
    missing = [part for part in PARTS if not parts[part]]
    if "train" in missing or (missing and not may_be_unmeasured):
        raise TrainingDataError(_nobody_left(missing, len(defects), is_published=not fixed.keys() <= known.keys()))
    train, validation, test = (tuple(sorted(parts[part])) for part in PARTS)
    return Split(train, validation, test, seed)


def _strata(defects: Mapping[str, Defect | None], seed: int) -> Iterator[str]:
    """Yield the patients of one defect after another, each shuffled."""
    rng = np.random.default_rng(seed)
    strata: dict[str, list[str]] = {}
    for patient in sorted(defects):
        defect = defects[patient]
        strata.setdefault(defect.value if defect else "", []).append(patient)
    for stratum in sorted(strata):
        yield from (str(patient) for patient in rng.permutation(strata[stratum]))


def _nobody_left(missing: Sequence[str], patients: int, *, is_published: bool) -> str:
    """Return why there is nobody for a part; ``is_published`` : a data set's own split says where some belong."""
    if is_published:
        return (
            f"The split in patients.csv leaves nobody for {' and '.join(missing)} among the {patients} annotated"
            " patients; give some of them that part, or annotate others."
        )
    if "train" in missing:
        return f"The starting model keeps all {patients} patients for measuring; annotate cines of another patient."
    return (
        f"The {patients} patients leave no one to measure whom the starting model, or one beside it, has not learned"
        " from; annotate new patients, or start from scratch in an empty --models folder."
    )


def require_patient(patient_id: str | None, image_id: str) -> str:
    """Return ``patient_id``, or refuse the cine that has none.

    Raises
    ------
    TrainingDataError
        If ``patient_id`` is missing or blank.
    """
    if patient_id is None or not patient_id.strip():
        msg = f"Cine {image_id} has no patient id, so it cannot be split by patient; name its patient in patients.csv."
        raise TrainingDataError(msg)
    return patient_id.strip()


def patient_defects(pairs: Iterable[tuple[str, Defect | None]]) -> dict[str, Defect | None]:
    """Return one defect per patient from (patient, defect of one cine) pairs.

    A defect seen in any cine is the patient's; NORMAL only if no cine says otherwise; None where nothing is said. Of
    several the first in the order of ``Defect``: enough to spread patients over the parts, but not the whole truth
    (`patients_of_several_defects`).
    """
    order = [*(defect for defect in Defect if defect is not Defect.NORMAL), Defect.NORMAL]
    return {patient: next((d for d in order if d in own), None) for patient, own in _said_of(pairs).items()}


def patients_of_several_defects(pairs: Iterable[tuple[str, Defect | None]]) -> frozenset[str]:
    """Return the patients whose cines name different defects, as of one with both an ASD and a VSD."""
    return frozenset(patient for patient, own in _said_of(pairs).items() if len(own - {Defect.NORMAL}) > 1)


def _said_of(pairs: Iterable[tuple[str, Defect | None]]) -> dict[str, set[Defect]]:
    """Return all that is said of each patient, in the order of their first cines."""
    said: dict[str, set[Defect]] = {}
    for patient, defect in pairs:
        said.setdefault(patient, set()).update(() if defect is None else (defect,))
    return said


def patient_fingerprints(patients: Iterable[str], *, salt: str) -> tuple[int, ...]:
    """Return the sorted fingerprints (``FINGERPRINT_BITS`` wide) of patients under a card's salt."""
    return tuple(sorted({_fingerprint(patient, salt) for patient in patients}))


def _fingerprint(patient: str, salt: str) -> int:
    digest = hashlib.pbkdf2_hmac("sha256", patient.encode(), salt.encode(), _FINGERPRINT_ROUNDS)
    return int.from_bytes(digest[: FINGERPRINT_BITS // 8], "big")


def recognised_patients(
    patients: Iterable[str], fingerprints: Mapping[str, Iterable[int]], *, salt: str
) -> dict[str, str]:
    """Return, by patient, the first name under which its fingerprint is listed; strangers are left out."""
    names: dict[int, str] = {}
    for name, numbers in fingerprints.items():
        for number in numbers:
            names.setdefault(number, name)  # should two fingerprints be equal: learned from goes before measured
    found = {patient: names.get(_fingerprint(patient, salt)) for patient in sorted(set(patients))}
    return {patient: name for patient, name in found.items() if name is not None}
