# SPDX-License-Identifier: Apache-2.0
"""What the active learning of a study folder keeps in SQLite files, which can always be made anew: scores and leases.

A score belongs to one state of a cine's file (its stamp) and one pair of published models (their key). A judgement
belongs to one revision of a label. Patients are not named here: the index knows whose a cine is.

A cine that was handed to one annotator is shown to nobody else for a while; neither a restart nor another server
process hands it out twice. A lease ends by itself, as the annotator may have gone home, or by a submission. Viewers of
one site often have one name, so who holds it does not matter for anybody else, and somebody without a name holds a cine
as well.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from echo_plugin.acquisition.uncertainty import OVERLAPS_SHAPE, SCORES_SHAPE, Array, CineScores
from echo_plugin.anatomy import View
from echo_plugin.durable import SqliteFile, file_stamp
from echo_plugin.errors import ModelNotFoundError
from echo_plugin.io.study_index import CineEntry
from echo_plugin.model_card import load_card

SCORES_FILE = ".echo_scores.sqlite"
REVIEW = "review"
"""Begins the ``models`` of judgements that detectors of a review made; the published model does not replace them."""

DETECTOR, VIEWS = "septal_detector", "view_classifier"  # as in models.checkpoint, which loads torch

_SCORES_SCHEMA = (
    "CREATE TABLE scores (number INTEGER PRIMARY KEY AUTOINCREMENT, models TEXT NOT NULL, image_id TEXT NOT NULL,"
    " stamp TEXT NOT NULL, frames TEXT, scores BLOB, overlaps BLOB, embedding BLOB, view TEXT, view_probability REAL,"
    " error TEXT, scored_at REAL NOT NULL, UNIQUE (models, image_id))",
    "CREATE TABLE judgements (number INTEGER PRIMARY KEY AUTOINCREMENT, image_id TEXT NOT NULL UNIQUE,"
    " revision INTEGER NOT NULL, models TEXT NOT NULL, quality REAL NOT NULL, frames TEXT NOT NULL,"
    " words TEXT NOT NULL, matches BLOB NOT NULL, fitted_to INTEGER NOT NULL)",
)


@dataclass(frozen=True)
class ScoredCine:
    """One row: ``number`` ascends with time; ``scores`` None: the cine could not be read."""

    number: int
    image_id: str
    stamp: str
    scores: CineScores | None


@dataclass(frozen=True)
class Judgement:
    """What models that did not learn from a label think of it.

    ``quality`` : 0..1, low is doubtful. ``frames`` : 0-based, the most doubtful first. ``words`` : what seems wrong.
    ``models`` : who judged. ``matches`` : (M, 3) float, as ``uncertainty.calibrate`` takes them. ``fitted_to`` : of the
    calibration that the quality is by.
    """

    image_id: str
    revision: int
    models: str
    quality: float
    frames: tuple[int, ...]
    words: str
    matches: Array
    fitted_to: int = 0


def matches_of(detector: str, judgements: Iterable[Judgement], revisions: Mapping[str, int]) -> list[Array]:
    """Return what one detector found of the labels as they are now, for ``uncertainty.calibrate``.

    Another detector's scores mean something else, and a label that was corrected since was perhaps wrong.
    ``revisions`` : the current one by image id.
    """
    of_detector = (kept for kept in judgements if kept.models == detector)
    return [kept.matches for kept in of_detector if revisions.get(kept.image_id) == kept.revision]


def models_key(models: Path) -> str:
    """Return what tells these published models from others: a score is of one such key.

    Raises
    ------
    ModelNotFoundError
        If no detector is published.
    """
    key = load_card(models, DETECTOR).sha256[:16]
    try:
        return f"{key}+{load_card(models, VIEWS).sha256[:16]}"
    except ModelNotFoundError:
        return key


def detector_of(key: str) -> str:
    """Return what of a models' key tells the detector."""
    return key.split("+")[0]


class ScoreStore:
    """The scores at ``path``; safe for several threads and programs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SqliteFile(path, _SCORES_SCHEMA, version=4)

    def stamps(self, models: str) -> dict[str, str]:
        """Return by image id the stamp of what was scored with these models, in vain too."""
        return dict(self._file.rows("SELECT image_id, stamp FROM scores WHERE models = ?", (models,)))

    def unscored(self, models: str, entries: Sequence[CineEntry]) -> list[tuple[CineEntry, str]]:
        """Return the readable cines without a score of these models, with the stamps of their files."""
        known = self.stamps(models)
        stamped = [(entry, _stamp(entry)) for entry in entries if entry.error is None]
        return [(entry, stamp) for entry, stamp in stamped if known.get(entry.image_id) != stamp]

    def counts(self) -> dict[str, int]:
        """Return how many cines each pair of models has scored; the one that scored last comes last."""
        return dict(self._file.rows("SELECT models, COUNT(*) FROM scores GROUP BY models ORDER BY MAX(number)"))

    def put(self, models: str, image_id: str, stamp: str, scores: CineScores | str) -> None:
        """Keep the scores of a cine, or the sentence why there is none."""
        row: tuple[object, ...] = (None,) * 6
        if isinstance(scores, CineScores):
            row = (
                json.dumps(scores.frame_indices.tolist()),
                scores.scores.astype(np.float16).tobytes(),
                scores.overlaps.astype(np.float16).tobytes(),
                scores.embedding.astype(np.float16).tobytes(),
                scores.view and scores.view.value,
                scores.view_probability,
            )
        error = scores if isinstance(scores, str) else None
        with self._file.changing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO scores VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (models, image_id, stamp, *row, error, time.time()),
            )

    def keep_only(self, models: Container[str], image_ids: Iterable[str]) -> None:
        """Forget the scores of other models than these, and those of cines that are gone."""
        kept, others = set(image_ids), [(key,) for key in self.counts() if key not in models]
        with self._file.changing() as connection:
            connection.executemany("DELETE FROM scores WHERE models = ?", others)
            gone = [(i,) for (i,) in connection.execute("SELECT image_id FROM scores") if i not in kept]
            connection.executemany("DELETE FROM scores WHERE image_id = ?", gone)

    def newer_than(self, models: str, number: int) -> list[ScoredCine]:
        """Return the scores made after that of ``number``, ascending."""
        rows = self._file.rows(
            "SELECT number, image_id, stamp, frames, scores, overlaps, embedding, view, view_probability FROM scores"
            " WHERE number > ? AND models = ? ORDER BY number",
            (number, models),
        )
        return [_scored_cine(row) for row in rows]

    def judge(self, judgement: Judgement) -> None:
        """Keep what is thought of a label; of the latest revision only."""
        with self._file.changing() as connection:
            known = connection.execute(
                "SELECT revision FROM judgements WHERE image_id = ?", (judgement.image_id,)
            ).fetchone()
            if known is not None and known[0] > judgement.revision:
                return
            connection.execute(
                "INSERT OR REPLACE INTO judgements VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    judgement.image_id,
                    judgement.revision,
                    judgement.models,
                    judgement.quality,
                    json.dumps(judgement.frames),
                    judgement.words,
                    judgement.matches.astype(np.float32).tobytes(),
                    judgement.fitted_to,
                ),
            )

    def judgements(self, *, newer_than: int = 0) -> dict[str, Judgement]:
        """Return by image id those made after number ``newer_than``; the revision of each may be an old one by now."""
        rows = self._file.rows(
            "SELECT image_id, revision, models, quality, frames, words, matches, fitted_to FROM judgements"
            " WHERE number > ?",
            (newer_than,),
        )
        return {
            image_id: Judgement(
                image_id,
                revision,
                models,
                quality,
                tuple(json.loads(frames)),
                words,
                np.frombuffer(matches, np.float32).reshape(-1, 3),
                fitted_to,
            )
            for image_id, revision, models, quality, frames, words, matches, fitted_to in rows
        }

    def version(self) -> tuple[int, int]:
        """Return numbers that grow with every score and judgement that is put."""
        ((scores, judgements),) = self._file.rows(
            "SELECT (SELECT COALESCE(MAX(number), 0) FROM scores), (SELECT COALESCE(MAX(number), 0) FROM judgements)"
        )
        return scores, judgements


def _scored_cine(row: tuple[Any, ...]) -> ScoredCine:
    number, image_id, stamp, frames, scores, overlaps, embedding, view, view_probability = row
    if frames is None:
        return ScoredCine(number, image_id, stamp, None)
    kept = CineScores(
        np.array(json.loads(frames), dtype=np.int64),
        np.frombuffer(scores, np.float16).astype(np.float32).reshape(SCORES_SHAPE),
        np.frombuffer(overlaps, np.float16).astype(np.float32).reshape(OVERLAPS_SHAPE),
        np.frombuffer(embedding, np.float16).astype(np.float32),
        None if view is None else View(view),
        view_probability,
    )
    return ScoredCine(number, image_id, stamp, kept)


def _stamp(entry: CineEntry) -> str:
    """Return what changes with the content of a cine's file; empty where the system does not tell."""
    return ":".join(map(str, file_stamp(entry.path) or ()))


def open_scores(root: Path, fallback: Path) -> ScoreStore:
    """Return the scores that are kept in ``root``, or in ``fallback`` where no SQLite file can be kept there."""
    try:
        return ScoreStore(root / SCORES_FILE)
    except (sqlite3.Error, OSError):
        return ScoreStore(fallback / SCORES_FILE)


LEASE_S = 30 * 60.0
LEASES_FILE = ".echo_leases.sqlite"

_LEASE_SCHEMA = (
    "CREATE TABLE leases (image_id TEXT PRIMARY KEY, holder TEXT, leased_at REAL NOT NULL, expires_at REAL NOT NULL)"
    " WITHOUT ROWID",
)


@dataclass(frozen=True)
class Lease:
    """``holder`` : the annotator's name; None: not known. Times in s since the epoch."""

    image_id: str
    holder: str | None
    leased_at: float
    expires_at: float


class Leases:
    """The leases kept at ``path``; ``clock`` : s since the epoch."""

    def __init__(self, path: Path, *, duration_s: float = LEASE_S, clock: Callable[[], float] = time.time) -> None:
        self._file = SqliteFile(path, _LEASE_SCHEMA, version=2)
        self._duration_s = duration_s
        self._clock = clock

    def take(self, image_id: str, holder: str | None) -> bool:
        """Hand a cine out; False if it is with somebody already."""
        now = self._clock()
        with self._file.changing() as connection:  # one statement: of two at once, one finds the other's row
            cursor = connection.execute(
                "INSERT INTO leases VALUES (?, ?, ?, ?) ON CONFLICT (image_id) DO UPDATE SET holder = excluded.holder,"
                " leased_at = excluded.leased_at, expires_at = excluded.expires_at"
                " WHERE leases.expires_at <= excluded.leased_at",
                (image_id, holder, now, now + self._duration_s),
            )
        return cursor.rowcount == 1

    def renew(self, image_id: str, holder: str) -> bool:
        """Hand a cine to its holder once more, for as long again; False if it is with somebody else by now."""
        now = self._clock()
        with self._file.changing() as connection:
            cursor = connection.execute(
                "UPDATE leases SET leased_at = ?, expires_at = ? WHERE image_id = ? AND holder = ?",
                (now, now + self._duration_s, image_id, holder),
            )
        return cursor.rowcount == 1

    def end(self, image_id: str) -> None:
        """Let the cine go: its annotator has submitted it."""
        now = self._clock()
        with self._file.changing() as connection:
            connection.execute(
                "UPDATE leases SET expires_at = ? WHERE image_id = ? AND expires_at > ?", (now, image_id, now)
            )

    def latest(self) -> dict[str, Lease]:
        """Return the latest lease of each cine by image id, those that have ended among them."""
        rows = self._file.rows("SELECT image_id, holder, leased_at, expires_at FROM leases")
        return {row[0]: Lease(*row) for row in rows}

    def is_running(self, lease: Lease) -> bool:
        """Whether the cine is still with its annotator."""
        return lease.expires_at > self._clock()

    def minutes_left(self, lease: Lease) -> int:
        """Return for how many minutes more a cine is with its annotator, 1 at least."""
        return max(round((lease.expires_at - self._clock()) / 60), 1)
