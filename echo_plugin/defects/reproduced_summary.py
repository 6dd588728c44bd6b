# SPDX-License-Identifier: Apache-2.0
"""What the reproduced table of the ASD/VSD paper says in words, whatever wins: what is best, and ArcFace or softmax.

Rows are compared on the same split of each seed. The splits of the seeds share patients, so that their differences are
no independent draws: intervals are those of the corrected resampled t-test.

References
----------
Nadeau and Bengio 2003, Inference for the Generalization Error, section 3: variance times (1/n + n_test/n_train).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from echo_plugin.defects.reproduced_rows import ARCFACE_AND_SOFTMAX, PAPER_SETTING
from echo_plugin.defects.reproduced_table import in_words, tabulate

COMPARED = {
    "balanced_accuracy": "balanced accuracy of patients",
    "verification AUC (plain embeddings)": "verification AUC (plain embeddings, as in the paper)",
    "verification AUC (class probabilities)": "verification AUC (class probabilities)",
}
FEWEST_SEEDS = 3
"""Of fewer no difference is said to be shown; nor of equal ones: few test patients leave few steps to differ by."""

Outcomes = Sequence[Mapping[str, Any]]


def summarise_table(outcomes: Outcomes) -> dict[str, Any]:
    """Return the rows and the sentences of the table of networks and losses."""
    rows = tabulate(outcomes)
    classified, verified, *_ = COMPARED
    sentences = [best_of(rows, measure) for measure in (classified, verified)]
    sentences += [arcface_minus_softmax(outcomes, measure) for measure in COMPARED]
    return {"rows": rows, "sentences": [sentence for sentence in sentences if sentence]}


def summarise_sweep(outcomes: Outcomes) -> dict[str, Any]:
    """Return the rows, the least log loss of validation patients first, and the sentences of every s and m.

    Validation patients of one seed are test patients of another: test figures are of what each seed chose by its own.
    """
    rows = sorted(tabulate(outcomes), key=lambda row: row.get("validation_log_loss", [math.inf])[0])
    done = [row for row in rows if "validation_log_loss" in row]
    if not done:
        return {"rows": rows, "sentences": ["No row was run."]}
    loss = [f"{row['row']}, {in_words(row['validation_log_loss'])}" for row in done]
    sentence = f"Chosen by the log loss of validation patients, mean over seeds: {loss[0]}"
    places = [number for number, row in enumerate(done) if row["row"] == PAPER_SETTING]
    if places == [0]:
        return {"rows": rows, "sentences": [f"{sentence}."]}
    sentences = [f"{sentence}; {loss[place]}, is number {place + 1} of {len(done)}." for place in places]
    chosen = [*outcomes, *_chosen_by_each_seed(outcomes)]
    for measure, words in COMPARED.items() if places else ():
        difference = paired_difference(chosen, "chosen", PAPER_SETTING, measure)
        what = describe_difference(difference, "what was chosen", "the paper's")
        sentences.append(f"On test patients, each seed's choice minus {PAPER_SETTING}, {words}: {what}.")
    return {"rows": rows, "sentences": sentences or [f"{sentence}."]}


def best_of(rows: Sequence[Mapping[str, Any]], measure: str) -> str:
    """Return a sentence that names the best row by the mean of a figure; says so when nothing was run."""
    done = [row for row in rows if measure in row.get("figures", ())]
    if not done:
        return f"No row has a {COMPARED[measure]}."
    ranked = sorted(done, key=lambda row: -row["figures"][measure][0])
    best, low = ranked[0], ranked[0]["figures"][measure][1]
    sentence = (
        f"Best {COMPARED[measure]}: {best['row']}, {in_words(best['figures'][measure])}, of {len(done)} rows on the"
    )
    overlap = [row["row"] for row in ranked[1:] if row["figures"][measure][2] >= low]
    return f"{sentence} test patients themselves" + (f"; within its range: {'; '.join(overlap)}." if overlap else ".")


def arcface_minus_softmax(outcomes: Outcomes, measure: str) -> str:
    """Return a sentence on the pairs of rows that differ in the loss alone; empty if there are no such rows."""
    names = {outcome["row"] for outcome in outcomes}
    parts = []
    for beginning, (arcface, softmax) in ARCFACE_AND_SOFTMAX.items():
        if {arcface, softmax} <= names:
            difference = paired_difference(outcomes, arcface, softmax, measure)
            parts.append(f"{beginning}: {describe_difference(difference, 'ArcFace', 'softmax')}")
    return f"ArcFace minus softmax over seeds, {COMPARED[measure]}: {'; '.join(parts)}." if parts else ""


def paired_difference(outcomes: Outcomes, first: str, second: str, measure: str) -> dict[str, float] | None:
    """Return the mean of ``first`` minus ``second`` over the seeds that have both, and the seeds; None: none has.

    Of several seeds also the standard deviation, and the ends of the corrected 95 % interval.
    """
    values: dict[str, dict[int, float]] = {first: {}, second: {}}
    shares = []
    for outcome in outcomes:
        if outcome["row"] in values and measure in outcome.get("metrics", ()):
            values[outcome["row"]][outcome["seed"]] = outcome["metrics"][measure]["value"]
            shares.append(outcome["patients"]["test"] / outcome["patients"]["train"])
    seeds = sorted(values[first].keys() & values[second].keys())
    if not seeds:
        return None
    gains = np.array([values[first][seed] - values[second][seed] for seed in seeds])
    found = {"mean": float(gains.mean()), "seeds": len(seeds)}
    if len(seeds) == 1:
        return found
    deviation = float(gains.std(ddof=1))
    half = float(stdtrit(len(seeds) - 1, 0.975)) * deviation * math.sqrt(1 / len(seeds) + float(np.mean(shares)))
    return found | {"deviation": deviation, "low": found["mean"] - half, "high": found["mean"] + half}


def describe_difference(difference: Mapping[str, float] | None, first: str, second: str) -> str:
    """Return a paired difference in words, and which of the two it shows to be better, if it does."""
    if difference is None:
        return "not run"
    mean, seeds = difference["mean"], int(difference["seeds"])
    if seeds == 1:
        return f"{mean:+.3f} on one seed, not shown to differ"
    low, high = difference["low"], difference["high"]
    shown = "not shown to differ"
    if seeds >= FEWEST_SEEDS and difference["deviation"] > 1e-9 and (low > 0 or high < 0):
        shown = f"{first if low > 0 else second} is better"
    return f"{mean:+.3f} (SD {difference['deviation']:.3f}, 95 % {low:+.3f} to {high:+.3f}, {seeds} seeds), {shown}"


def _chosen_by_each_seed(outcomes: Outcomes) -> list[dict[str, Any]]:
    done = [outcome for outcome in outcomes if "validation_log_loss" in outcome]
    return [
        {**min((o for o in done if o["seed"] == seed), key=lambda o: o["validation_log_loss"]), "row": "chosen"}
        for seed in sorted({outcome["seed"] for outcome in done})
    ]
