# SPDX-License-Identifier: Apache-2.0
"""Scoring a study folder: what is new, or was scored by other models, is looked at once; everything else is left.

A cine that cannot be read is noted with the reason and not tried again until its file changes; one at which something
else failed is tried again by the next run. Killed at any moment, the next run goes on after the last cine. A run is of
the models that were published when it began: where others are published meanwhile it ends, and the next is of those.
What it did is forgotten by then, unless it is what choices go by: of models that follow each other fast, none is ever
through, and choices go by the last that was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from echo_plugin.acquisition.evidence import CineEvidence
from echo_plugin.acquisition.judge_folder import JudgedLabels, judge_labels
from echo_plugin.acquisition.live_pool import models_in_use
from echo_plugin.acquisition.probe import CineProber
from echo_plugin.acquisition.score_store import ScoreStore, models_key
from echo_plugin.errors import ModelMismatchError, ModelNotFoundError, UnreadableCineError
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.progress import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """What one run did.

    ``cines`` : looked at. ``unreadable`` : of them, noted as such. ``put_off`` : of them, left to the next run: not the
    file was at fault. ``labels`` : what became of them; None: ended before they were judged.
    """

    cines: int
    unreadable: int
    put_off: int
    labels: JudgedLabels | None


def score_folder(
    folder: StudyFolder,
    models: Path,
    store: ScoreStore,
    *,
    device: str = "auto",
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Scored:
    """Score what is not scored yet, judge the labels that the detector did not learn from, forget older models.

    Labels that were judged by a review, which has models that saw none of the patient, keep that judgement.

    Raises
    ------
    ModelNotFoundError, ModelMismatchError
        If no usable detector is published.
    """
    key = models_key(models)
    folder.refresh()
    entries = folder.entries()
    image_ids = [entry.image_id for entry in entries]
    store.keep_only({key, models_in_use(store)}, image_ids)  # of models published meanwhile none may be whole
    waiting = store.unscored(key, entries)
    prober = CineProber(models, device=device) if waiting else None
    done = unreadable = put_off = 0
    for entry, stamp in waiting:
        if should_stop() or prober is None:
            return Scored(done, unreadable, put_off, None)
        evidence = _look_at(prober, folder, entry.image_id)
        if models_key(models) != key:  # the prober follows what is published: whose evidence this is, nobody knows
            logger.info("Other models were published; the next run scores with them")
            return Scored(done, unreadable, put_off, None)
        done, unreadable, put_off = done + 1, unreadable + isinstance(evidence, str), put_off + (evidence is None)
        if evidence is not None:
            store.put(key, entry.image_id, stamp, evidence)
        if progress is not None:
            progress(done, len(waiting), "cines")
    store.keep_only({key}, image_ids)
    labels = judge_labels(folder, models, store, device=device, should_stop=should_stop)
    return Scored(done, unreadable, put_off, labels)


def _look_at(prober: CineProber, folder: StudyFolder, image_id: str) -> CineEvidence | str | None:
    """Return the evidence, the sentence why the file cannot be read, or None where something else failed."""
    try:
        return prober.probe(folder.read_cine(image_id))
    except UnreadableCineError as exc:
        logger.warning("Cine %s is not scored: %s", image_id, exc)
        return str(exc)
    except (ModelNotFoundError, ModelMismatchError):
        raise
    except Exception as exc:  # no memory, say: one cine must never keep the others from being scored
        logger.warning("Cine %s is left to the next scoring (%s)", image_id, type(exc).__name__)
        return None
