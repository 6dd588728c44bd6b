# SPDX-License-Identifier: Apache-2.0
"""The view of one cine, by the mean over its clips; a single frame is answered by the classifier of single frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from echo_plugin.anatomy import View
from echo_plugin.annotations import ViewPrediction
from echo_plugin.model_card import ModelCard
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.views.open_set import rule_of


def answer_view(
    classifier: ViewClassifier, card: ModelCard, clips: Tensor, frame_indices: Sequence[int], *, is_still: bool
) -> ViewPrediction:
    """Return the view that the clips show.

    ``clips`` : (M, T, 1, S, S) floats, as the classifier takes them. ``frame_indices`` : the 0-based frames that they
    are made of. ``is_still`` : the cine has one frame; a card from before there was a classifier of single frames
    answers it by clips that repeat it.
    """
    if is_still and card.config.get("answers_stills") is True:
        logits = classifier.frame_logits(clips[:1, 0])
    else:
        logits = classifier(clips)
    probabilities = logits.softmax(dim=1).mean(dim=0).tolist()
    named = {View(name): p for name, p in zip(card.classes, probabilities, strict=True)}
    view = max(named, key=lambda name: named[name])
    rule = rule_of(card)
    is_standard = None
    if rule is not None and not is_still:  # its limit is of clips
        numbers = logits.double().cpu().numpy().astype(np.float64)
        is_standard = view is not View.OTHER and rule.is_standard(numbers, card.classes)
    return ViewPrediction(view, named, tuple(frame_indices), is_still=is_still, is_standard=is_standard)
