# SPDX-License-Identifier: Apache-2.0
"""Strategies: which cine an annotator sees next."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.strategy import Strategy

from echo_plugin.host.datastore import EchoDatastore

Choose = Callable[[EchoDatastore, Sequence[str], Mapping[str, Any]], str]


class NextCine(Strategy):
    """Choose one of the cines without a label."""

    def __init__(self, description: str, choose: Choose) -> None:
        super().__init__(description)
        self._choose = choose

    def __call__(self, request: Mapping[str, Any], datastore: EchoDatastore) -> dict[str, str] | None:
        """Return ``{"id": image id}``; None when every cine has a label."""
        unlabelled = sorted(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))
        return {"id": self._choose(datastore, unlabelled, request)} if unlabelled else None


def choose_first(_datastore: EchoDatastore, unlabelled: Sequence[str], _request: Mapping[str, Any]) -> str:
    """Return the first in the order of ids."""
    return unlabelled[0]


def choose_at_random(datastore: EchoDatastore, unlabelled: Sequence[str], request: Mapping[str, Any]) -> str:
    """Return any, one shown lately less often; ``request["seed"]`` repeats a choice."""
    seed = request.get("seed")
    if seed is not None and (not isinstance(seed, int) or seed < 0):
        msg = f"Strategy random: seed is {str(seed)[:40]!r}; a whole number of 0 or more is accepted."
        raise ValueError(msg)
    strategy = str(request.get("strategy") or "random")
    now = time.time()
    weights = np.array([max(1.0, now - _shown_at(datastore.get_image_info(i), strategy, now)) for i in unlabelled])
    chosen = np.random.default_rng(seed).choice(len(unlabelled), p=weights / weights.sum())
    return unlabelled[int(chosen)]


def _shown_at(facts: Mapping[str, Any], strategy: str, now: float) -> float:
    """Return when a cine was shown, in seconds; 0 if never. It is a note, and clients may have written anything."""
    try:
        shown_at = float(facts["strategy"][strategy]["ts"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0.0
    return shown_at if 0.0 <= shown_at <= now else 0.0


def choose_least_labelled_patient(
    datastore: EchoDatastore, unlabelled: Sequence[str], _request: Mapping[str, Any]
) -> str:
    """Return a cine of the patient with the fewest labelled cines: many patients teach more than many cines of one.

    A cine of an unknown patient counts as a patient of its own.
    """
    patients = {
        image_id: datastore.images.entry(image_id).patient_id or image_id for image_id in datastore.list_images()
    }
    labelled = Counter(patients[image_id] for image_id in datastore.get_labeled_images())
    return min(unlabelled, key=lambda image_id: (labelled[patients[image_id]], image_id))


def strategies() -> dict[str, Strategy]:
    """Return the strategies by the names viewers show; the first is preselected."""
    return {
        "random": NextCine("Any cine without a label", choose_at_random),
        "first": NextCine("The first cine without a label", choose_first),
        "fewest_labels": NextCine("A cine of the patient with the fewest labels", choose_least_labelled_patient),
    }
