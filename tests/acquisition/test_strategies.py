# SPDX-License-Identifier: Apache-2.0
"""What each strategy chooses from a pool of known scores, and what it says of it."""

import numpy as np
import pytest

from echo_plugin.acquisition.pool import VIEWS, Pool, fill_in, gather_labels, list_cines, no_scores
from echo_plugin.acquisition.score_store import Judgement
from echo_plugin.acquisition.strategies import (
    DOUBTFUL,
    PER_PATIENT,
    Situation,
    current_judgements,
    doubtful,
    fewest_of_patient,
    keep_to_patient_limit,
    most_suspicious,
    most_uncertain,
    most_unlike,
    of_a_failing_view,
    uncertain_and_unlike,
)
from echo_plugin.acquisition.uncertainty import FRAMES_SCORED, OVERLAPS_SHAPE, SCORES_SHAPE, Calibration, CineScores
from echo_plugin.anatomy import View
from echo_plugin.annotations import Annotation
from echo_plugin.io.label_summaries import summarise
from echo_plugin.io.study_index import CineEntry

NOBODY = np.zeros(0, dtype=np.int64)


def scores_of(score: float, embedding, view: View | None = None, probability: float = 0.9) -> CineScores:
    vector = np.asarray(embedding, dtype=np.float32)
    return CineScores(
        np.arange(FRAMES_SCORED) * 3,
        np.full(SCORES_SHAPE, score),
        np.full(OVERLAPS_SHAPE, 1.0),
        vector / np.linalg.norm(vector),
        view,
        None if view is None else probability,
    )


def pool_of(patients: str, known: dict, labels: dict | None = None, judgements: dict | None = None) -> Pool:
    """Return a pool of cines c0, c1, ... of the patients named by single letters, '-' for unknown."""
    cines = list_cines(
        [CineEntry(f"c{n}", None, patient_id=None if p == "-" else p, frames=30) for n, p in enumerate(patients)]
    )
    scores = no_scores(len(patients), 2)
    fill_in(scores, {cines.index_of[i]: e for i, e in known.items()}, Calibration())
    summaries = {i: summarise(a) for i, a in (labels or {}).items()}
    return Pool(cines, scores, gather_labels(cines, summaries), judgements or {})


def everyone(pool: Pool) -> Situation:
    return Situation(np.flatnonzero(~pool.labels.is_labelled), NOBODY)


def test_the_most_uncertain_is_chosen_with_its_frames_and_those_not_scored_are_counted():
    pool = pool_of("abcd", {"c0": scores_of(0.9, [1, 0]), "c1": scores_of(0.55, [1, 0]), "c2": scores_of(0.2, [1, 0])})

    choice = most_uncertain(pool, everyone(pool))

    assert (choice.index, choice.reason) == (1, "most uncertain of 3, 1 more are not scored yet")
    assert pool.frames_to_draw(1) == (0, 3, 6)
    assert pool.frames_to_draw(3) == (5, 15, 25)


def test_the_most_unlike_is_far_from_labelled_and_handed_out_cines():
    known = {f"c{n}": scores_of(0.5, [np.cos(a), np.sin(a)]) for n, a in enumerate((0.0, 0.1, 1.5, 3.1))}
    pool = pool_of("abcd", known, {"c0": Annotation("c0", view=View.A4C)})

    assert most_unlike(pool, Situation(np.array([1, 2, 3]), NOBODY)).index == 3
    choice = most_unlike(pool, Situation(np.array([1, 2]), np.array([3])))
    assert (choice.index, choice.reason) == (2, "least like the 2 labelled or shown of 2")


def test_the_hybrid_passes_over_what_is_unlike_but_certain():
    known = {f"c{n}": scores_of(0.5, [1, n / 100]) for n in range(50)}
    known["c50"] = scores_of(1.0, [-1, 0])  # most unlike, and quite certain
    pool = pool_of("".join(chr(200 + n) for n in range(51)), known)
    labelled = pool_of("".join(chr(200 + n) for n in range(51)), known, {"c0": Annotation("c0", view=View.A4C)})

    assert pool.cines.image_ids[most_unlike(labelled, everyone(labelled)).index] == "c50"
    choice = uncertain_and_unlike(labelled, everyone(labelled))
    assert labelled.cines.image_ids[choice.index] != "c50"
    assert "among the 13 most uncertain of 50" in choice.reason


@pytest.mark.parametrize(("count", "candidates"), [(1, 1), (8, 2), (160, 40), (400, 40)])
def test_the_hybrid_looks_at_a_quarter_of_a_small_pool(count, candidates):
    known = {f"c{n}": scores_of(0.5, [1, n / 100]) for n in range(count)}
    pool = pool_of("".join(chr(200 + n) for n in range(count)), known)

    assert f"among the {candidates} most uncertain of {count}" in uncertain_and_unlike(pool, everyone(pool)).reason


def test_a_rare_and_badly_answered_view_comes_first():
    known = {f"c{n}": scores_of(0.6, [1, 0], View.A4C) for n in range(4)}
    known |= {"c4": scores_of(0.6, [1, 0], View.PSAX_AV, 0.5), "c5": scores_of(0.5, [1, 0], View.PSAX_AV, 0.5)}
    labels = {f"c{n}": Annotation(f"c{n}", view=View.A4C) for n in range(2)}
    pool = pool_of("abcdef", known, labels)

    choice = of_a_failing_view(pool, everyone(pool))

    assert choice.index == 5
    assert choice.reason == "view PSAX-AV needs labels most (0 so far): its most uncertain of 2"
    assert pool.labels.view[0] == VIEWS.index(View.A4C)


@pytest.mark.parametrize("strategy", [most_uncertain, most_unlike, uncertain_and_unlike, of_a_failing_view])
def test_without_scores_every_strategy_says_so_and_spreads_over_patients(strategy):
    pool = pool_of("aab", {}, {"c0": Annotation("c0", view=View.A4C)})

    choice = strategy(pool, everyone(pool))

    assert pool.cines.image_ids[choice.index] == "c2"
    assert choice.reason.startswith("no cine is scored yet")


def test_cines_of_unknown_patients_are_of_patients_of_their_own():
    pool = pool_of("--a", {}, {"c0": Annotation("c0", view=View.A4C)})

    assert len(set(pool.cines.patients.tolist())) == 3
    assert fewest_of_patient(pool, everyone(pool)).index == 1


def test_at_most_two_cines_of_a_patient_are_in_a_batch_until_all_patients_have_as_many():
    pool = pool_of("aaabb", {})
    situation = everyone(pool)

    assert PER_PATIENT == 2
    assert keep_to_patient_limit(pool, situation, np.array([0, 1])).open.tolist() == [3, 4]
    assert keep_to_patient_limit(pool, situation, np.array([0, 1, 3, 4])).open.tolist() == [0, 1, 2, 3, 4]
    assert keep_to_patient_limit(pool, situation, NOBODY).open.tolist() == [0, 1, 2, 3, 4]


def judgement(image_id: str, quality: float, revision: int) -> Judgement:
    return Judgement(image_id, revision, "m", quality, (4,), "a box seems to lie badly", np.zeros((0, 3)))


def test_only_judgements_of_current_revisions_of_usable_labels_count_the_worst_first():
    labels = {f"c{n}": Annotation(f"c{n}", view=View.A4C, revision=2, is_unusable=n == 3) for n in range(4)}
    said = (("c0", 0.01, 1), ("c1", 0.6, 2), ("c2", 0.3, 2), ("c3", 0.02, 2), ("gone", 0.0, 2))
    pool = pool_of("abcd", {}, labels, {name: judgement(name, *rest) for name, *rest in said})

    assert [j.image_id for j in current_judgements(pool)] == ["c2", "c1"]


def test_a_label_is_doubtful_below_the_limit_until_it_is_confirmed():
    judgements = [judgement("c0", 0.1, 2), judgement("c1", 0.3, 2), judgement("c2", DOUBTFUL, 2)]

    assert [j.image_id for j in doubtful(judgements, lambda *_: False)] == ["c0", "c1"]
    assert [j.image_id for j in doubtful(judgements, lambda *asked: asked == ("c0", 2))] == ["c1"]


def test_the_most_suspicious_of_the_doubtful_is_shown_first():
    pool = pool_of("abc", {}, {}, {f"c{n}": judgement(f"c{n}", q, 1) for n, q in enumerate((0.4, 0.3, 0.1))})

    choice = most_suspicious(pool, Situation(np.arange(2), NOBODY))

    assert (choice.index, choice.reason) == (1, "label quality 0.30, lowest of 2 doubtful: a box seems to lie badly")
