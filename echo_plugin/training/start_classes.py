# SPDX-License-Identifier: Apache-2.0
"""Classes that a defect embedder goes on with: those it knows stay where they are, others are added behind them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from echo_plugin.errors import ModelNotFoundError
from echo_plugin.model_card import ModelCard
from echo_plugin.models.card_file import load_card
from echo_plugin.models.checkpoint import DEFECT_EMBEDDER
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.training.options import TrainOptions

logger = logging.getLogger(__name__)

OF_CLASSES = ("centres", "bias")
"""Weights of the embedder with something for each class in their last dimension."""


def known_classes(models: Path, options: TrainOptions) -> tuple[str, ...]:
    """Return the classes of the defect embedder that a training to ``models`` goes on from; (): from none.

    A recipe with a network of its own may begin anew instead: it learns what is labelled.
    """
    if options.start.endswith(".safetensors"):
        path = Path(options.start).with_suffix("")
    elif options.start == "starter" and options.recipe == "ours":
        path = (options.starter or models) / DEFECT_EMBEDDER
    else:
        return ()
    try:
        card = load_card(path.parent, path.name)
    except ModelNotFoundError:
        return ()
    return card.classes if card.name == DEFECT_EMBEDDER else ()


def with_centres_of(
    model: DefectEmbedder, classes: Sequence[str], state: Mapping[str, Tensor], card: ModelCard
) -> Mapping[str, Tensor]:
    """Return the weights of ``card`` with a centre for each of ``classes``: its own of those it knows, or the model's.

    ``classes`` : of the model, in the order of its ids; (): those of the card. Weights of another head stay as they
    are, and will not fit.
    """
    if tuple(classes) in ((), card.classes):
        return state
    known = [name for name in classes if name in card.classes]
    here, there = ([list(names).index(name) for name in known] for names in (classes, card.classes))
    new, gone = (sorted(set(one) - set(other)) for one, other in ((classes, card.classes), (card.classes, classes)))
    logger.warning("%s: %s are learned anew, %s no longer, %s go on", card.name, new, gone, known)
    found, own = dict(state), model.state_dict()
    for name in OF_CLASSES:
        if name in own and name in state and state[name].shape[-1] == len(card.classes) * model.config.sub_centres:
            mine = own[name].reshape(-1, len(classes), model.config.sub_centres).clone()
            theirs = state[name].reshape(-1, len(card.classes), model.config.sub_centres)
            if len(mine) == len(theirs):
                mine[:, here] = theirs[:, there].to(mine)
                found[name] = mine.reshape(own[name].shape)
    return found
