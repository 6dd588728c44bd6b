# SPDX-License-Identifier: Apache-2.0
"""The cines that a view classifier learns from, and what is said of those of views that it does not tell apart."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from echo_plugin.anatomy import VIEW_VOCABULARIES, View, vocabulary_name
from echo_plugin.training.datasets import LabelledCine, LabelledFolder

logger = logging.getLogger(__name__)


def cines_of_views(labelled: LabelledFolder, vocabulary: Sequence[View]) -> tuple[LabelledCine, ...]:
    """Return the cines whose labelled view is in ``vocabulary``; a warning counts those of other views."""
    words = words_for_other_views(labelled, vocabulary)
    if words:
        logger.warning("%s", words)
    return tuple(cine for cine in labelled.cines if cine.annotation.view in vocabulary)


def words_for_other_views(labelled: LabelledFolder, vocabulary: Sequence[View]) -> str:
    """Return a sentence that counts the cines of views outside ``vocabulary``, by view; "" if there are none."""
    views = [cine.annotation.view for cine in labelled.cines]
    others = Counter(view for view in views if view is not None and view not in vocabulary)
    if not others:
        return ""
    by_name = sorted((view.value, count) for view, count in others.items())
    counts = ", ".join(f"{name} {count}" for name, count in by_name)
    names = [view.value for view in vocabulary]
    having = [word for word, known in VIEW_VOCABULARIES.items() if others.keys() & set(known)]
    hint = f"; --vocabulary {' or '.join(having)} has some of them" if having else ""
    named = vocabulary_name(names) or ", ".join(names)
    return f"{others.total()} cines are left out, whose views the vocabulary {named} lacks ({counts}){hint}."
