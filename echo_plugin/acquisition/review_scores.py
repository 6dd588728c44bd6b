# SPDX-License-Identifier: Apache-2.0
"""A review as the server's strategy ``suspicious`` finds it: kept with the scores of the study folder."""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import replace
from pathlib import Path

from echo_plugin.acquisition.review import Review
from echo_plugin.acquisition.score_store import REVIEW, SCORES_FILE, ScoreStore

logger = logging.getLogger(__name__)


def keep_judgements(studies: Path, result: Review) -> None:
    """Keep the judgements of a review; a study folder that cannot be written to goes without, with a warning."""
    try:
        store = ScoreStore(studies / SCORES_FILE)
    except (sqlite3.Error, OSError) as exc:
        logger.warning("The review is not kept for the server: %s cannot be written (%s)", SCORES_FILE, exc)
        return
    for doubt in (*result.doubts, *result.confirmed):
        store.judge(replace(doubt.judgement, models=f"{REVIEW} {doubt.judgement.models}"))
