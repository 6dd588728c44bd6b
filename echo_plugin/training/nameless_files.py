# SPDX-License-Identifier: Apache-2.0
"""Files that were learned from before anybody said who is on them, so that whoever that turns out to be counts.

A file is known again by its SOP Instance UID, or, without one, by its bytes; wherever it lies and whatever it is
called by then. One that was written anew in between, cut or de-identified say, is another file.

A card keeps 32 salted bits of each, which are 6 bytes of text: with 10 000 files learned from, one strange file in
400 000 is taken for one of them.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from echo_plugin.io.file_stamp import file_stamp
from echo_plugin.io.image_id import is_uid
from echo_plugin.model_card import ModelCard

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
