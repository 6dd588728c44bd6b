# SPDX-License-Identifier: Apache-2.0
"""What the reproduced table says in words follows from its outcomes, whatever wins."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from echo_plugin.papers.defects_table import (
    PAPER_SETTING,
    arcface_minus_softmax,
    best_of,
    describe_difference,
    paired_difference,
    summarise_sweep,
    summarise_table,
)

ACCURACY = "balanced_accuracy"
PLAIN, CLASSES = "verification AUC (plain embeddings)", "verification AUC (class probabilities)"
ARCFACE, SOFTMAX = "ArcFace, ImageNet", "softmax, ImageNet"
PARTS = {"train": 84, "validation": 12, "test": 24}


def outcome(row, seed, validation=1.0, **figures):
    names = {"accuracy": ACCURACY, "plain": PLAIN, "classes": CLASSES}
    metrics = {names[key]: {"value": value} for key, value in figures.items()}
    return {
        "row": row,
        "seed": seed,
        "patients": PARTS,
        "metrics": metrics,
        "wall_time_s": 1.0,
        "validation_log_loss": validation,
    }


def of_seeds(first, second):
    rows = [(ARCFACE, first), (SOFTMAX, second)]
    return [outcome(row, seed, accuracy=value) for row, values in rows for seed, value in enumerate(values)]


VARIED = (0.50, 0.70, 0.90)
LESS = (0.45, 0.64, 0.85)  # seeds differ far more than losses do: only pairs tell the losses apart
OTHER = (0.40, 0.75, 0.80)


@pytest.mark.parametrize(
    ("arcface", "softmax", "said"),
    [
        (VARIED, LESS, "+0.053 (SD 0.006, 95 % +0.034 to +0.073, 3 seeds), ArcFace is better"),
        (LESS, VARIED, "-0.053 (SD 0.006, 95 % -0.073 to -0.034, 3 seeds), softmax is better"),
        (VARIED, OTHER, "+0.050 (SD 0.087, 95 % -0.243 to +0.343, 3 seeds), not shown to differ"),
        (
            (0.25, 0.50, 0.75),
            (0.0, 0.25, 0.50),
            "+0.250 (SD 0.000, 95 % +0.250 to +0.250, 3 seeds), not shown to differ",
        ),
        ((0.60, 0.70), (0.50, 0.60), "+0.100 (SD 0.000, 95 % +0.100 to +0.100, 2 seeds), not shown to differ"),
        ((0.60,), (0.50,), "+0.100 on one seed, not shown to differ"),
        ((0.60,), (), ""),
    ],
)
def test_arcface_is_compared_with_softmax_by_seed(arcface, softmax, said):
    sentence = arcface_minus_softmax(of_seeds(arcface, softmax), ACCURACY)

    beginning = "ArcFace minus softmax over seeds, balanced accuracy of patients: ImageNet: "
    assert sentence == (f"{beginning}{said}." if said else "")


def test_a_comparison_that_was_not_run_says_so():
    outcomes = [{"row": row, "seed": 0, "not_run": "no weights"} for row in (ARCFACE, SOFTMAX)]

    assert arcface_minus_softmax(outcomes, PLAIN).endswith("ImageNet: not run.")
    assert summarise_table(outcomes)["sentences"][:2] == [
        "No row has a balanced accuracy of patients.",
        "No row has a verification AUC (plain embeddings, as in the paper).",
    ]


figures = st.lists(st.floats(0, 1).map(lambda value: round(value, 3)), min_size=3, max_size=8)


@given(figures, figures)
def test_the_interval_is_that_of_the_corrected_resampled_t_test(arcface, softmax):
    found = paired_difference(of_seeds(arcface, softmax), ARCFACE, SOFTMAX, ACCURACY)
    turned = paired_difference(of_seeds(arcface, softmax), SOFTMAX, ARCFACE, ACCURACY)

    gains = [a - b for a, b in zip(arcface, softmax, strict=False)]
    deviation, count = stats.tstd(gains), len(gains)
    low, high = stats.t.interval(0.95, count - 1, loc=sum(gains) / count, scale=1)
    half = (high - low) / 2 * deviation * math.sqrt(1 / count + PARTS["test"] / PARTS["train"])
    assert (found["low"], found["high"]) == pytest.approx(
        (sum(gains) / count - half, sum(gains) / count + half), abs=1e-9
    )
    assert (turned["low"], turned["high"]) == pytest.approx((-found["high"], -found["low"]))
    assert ("is better" in describe_difference(found, "a", "b")) == (
        "is better" in describe_difference(turned, "a", "b")
    )


def test_the_table_names_the_best_for_classification_and_for_verification():
    rows = [
        outcome(ARCFACE, 0, accuracy=0.8, plain=0.6, classes=0.9),
        outcome(SOFTMAX, 0, accuracy=0.7, plain=0.7, classes=0.8),
        outcome("HOG + SVM", 0, accuracy=0.6, classes=0.99),
    ]

    sentences = summarise_table(rows)["sentences"]

    assert sentences == [
        "Best balanced accuracy of patients: ArcFace, ImageNet, 0.800 (0.800 to 0.800), of 3 rows on the test patients"
        " themselves.",
        "Best verification AUC (plain embeddings, as in the paper): softmax, ImageNet, 0.700 (0.700 to 0.700), of 2"
        " rows on the test patients themselves.",
        "ArcFace minus softmax over seeds, balanced accuracy of patients: ImageNet: +0.100 on one seed, not shown to"
        " differ.",
        "ArcFace minus softmax over seeds, verification AUC (plain embeddings, as in the paper): ImageNet: -0.100 on"
        " one seed, not shown to differ.",
        "ArcFace minus softmax over seeds, verification AUC (class probabilities): ImageNet: +0.100 on one seed, not"
        " shown to differ.",
    ]


def test_the_best_row_is_named_with_those_that_it_does_not_beat():
    rows = [
        {"row": "a", "figures": {ACCURACY: [0.8, 0.7, 0.9]}},
        {"row": "b", "figures": {ACCURACY: [0.75, 0.7, 0.8]}},
        {"row": "c, d", "figures": {ACCURACY: [0.7, 0.6, 0.75]}},
        {"row": "e", "figures": {ACCURACY: [0.4, 0.3, 0.5]}},
        {"row": "f", "not_run": "no weights"},
    ]

    assert best_of(rows, ACCURACY) == (
        "Best balanced accuracy of patients: a, 0.800 (0.700 to 0.900), of 4 rows on the test patients themselves;"
        " within its range: b; c, d."
    )


def swept():
    validation = {"s 8, m 0.1": (0.3, 0.5), "s 16, m 0.1": (0.6, 0.4), PAPER_SETTING: (0.9, 0.9)}
    test = {"s 8, m 0.1": (0.70, 0.75), "s 16, m 0.1": (0.75, 0.60), PAPER_SETTING: (0.90, 0.95)}
    return [
        outcome(row, seed, validation[row][seed], accuracy=test[row][seed])
        for seed in range(2)
        for row in reversed(validation)
    ]


def test_a_sweep_is_ranked_by_validation_patients_though_others_do_better_on_test_patients():
    summary = summarise_sweep(swept())

    assert [row["row"] for row in summary["rows"]] == ["s 8, m 0.1", "s 16, m 0.1", PAPER_SETTING]
    assert summary["sentences"][0] == (
        "Chosen by the log loss of validation patients, mean over seeds: s 8, m 0.1, 0.400 (0.300 to 0.500);"
        " s 64, m 0.5 (the paper's), 0.900 (0.900 to 0.900), is number 3 of 3."
    )


def test_what_a_sweep_gains_is_measured_with_what_each_seed_chose_without_its_test_patients():
    sentences = summarise_sweep(swept())["sentences"]

    assert sentences[1].startswith(  # 0.70 - 0.90 and, of the second choice, 0.60 - 0.95
        "On test patients, each seed's choice minus s 64, m 0.5 (the paper's), balanced accuracy of patients: -0.275"
    )
    assert sentences[2].endswith(": not run.")


def test_a_sweep_that_chooses_the_papers_setting_or_has_not_come_to_it_says_no_more():
    of_paper = summarise_sweep([outcome(PAPER_SETTING, 0, 0.2), outcome("s 8, m 0.1", 0, 0.3)])
    without = summarise_sweep([outcome("s 8, m 0.1", 0, 0.3), {"row": PAPER_SETTING, "seed": 0, "not_run": "no"}])
    nothing = summarise_sweep([{"row": PAPER_SETTING, "seed": 0, "not_run": "no"}])

    beginning = "Chosen by the log loss of validation patients, mean over seeds: "
    assert of_paper["sentences"] == [f"{beginning}{PAPER_SETTING}, 0.200 (0.200 to 0.200)."]
    assert without["sentences"] == [f"{beginning}s 8, m 0.1, 0.300 (0.300 to 0.300)."]
    assert nothing["sentences"] == ["No row was run."]
