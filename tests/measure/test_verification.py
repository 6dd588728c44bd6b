# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn import metrics as sk

from echo_plugin.measure.verification import (
    CasePairs,
    acceptance_curve,
    area_under,
    cross_patient_pairs,
    curve_with_band,
    equal_error_rate,
    operating_point,
    retrieval_metrics,
    retrieval_scores,
    tar_at,
    verification_metrics,
)


def cases(patients=30, per_patient=3, classes=3, spread=0.8, seed=0):
    """Unit embeddings scattered round a direction for each class; a patient has one class."""
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(patients), per_patient)
    labels = owners % classes
    embeddings = np.eye(classes, 8)[labels] + spread * rng.normal(size=(len(labels), 8))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings, labels, [f"p{n}" for n in owners]


def test_pairs_are_all_those_of_different_patients():
    embeddings, labels, patients = cases(patients=4, per_patient=2)

    pairs = cross_patient_pairs(embeddings, labels, patients)

    assert len(pairs.first) == 8 * 7 // 2 - 4
    assert all(patients[a] != patients[b] for a, b in zip(pairs.first, pairs.second, strict=True))
    a, b = pairs.first[5], pairs.second[5]
    assert pairs.similarity[5] == pytest.approx(embeddings[a] @ embeddings[b])
    assert pairs.is_same[5] == (labels[a] == labels[b])


def test_a_pair_of_one_patient_is_refused_and_the_patient_not_named():
    with pytest.raises(ValueError, match="1 of 2 pairs are of one patient") as refusal:
        CasePairs(
            np.array([0, 0]), np.array([1, 2]), np.ones(2), np.array([True, False]), ("DOE^JANE", "DOE^JANE", "p2")
        )

    assert "DOE" not in str(refusal.value)


def test_figures_of_a_worked_example():
    """Same: .9 .8 .4, different: .7 .3 .2 .1; of the 12 couples of both kinds (.4, .7) alone is in the wrong order."""
    similarity = np.array([0.9, 0.8, 0.4, 0.7, 0.3, 0.2, 0.1])
    is_same = np.array([True, True, True, False, False, False, False])

    thresholds, far, tar = acceptance_curve(similarity, is_same)

    np.testing.assert_allclose(thresholds, [np.inf, 0.9, 0.8, 0.7, 0.4, 0.3, 0.2, 0.1])
    np.testing.assert_allclose(far, [0, 0, 0, 1 / 4, 1 / 4, 2 / 4, 3 / 4, 1])
    np.testing.assert_allclose(tar, [0, 1 / 3, 2 / 3, 2 / 3, 1, 1, 1, 1])
    assert area_under(far, tar) == pytest.approx(11 / 12)
    assert equal_error_rate(far, tar) == pytest.approx(1 / 4)  # FRR falls from 1/3 to 0 at FAR 1/4
    assert tar_at(far, tar, 0.01) == pytest.approx(2 / 3)
    assert tar_at(far, tar, 0.25) == 1.0


@pytest.mark.heavy
@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.05, 0.3]))
def test_curve_area_and_equal_error_rate_equal_those_of_scikit_learn(seed, grain):
    rng = np.random.default_rng(seed)
    is_same = np.r_[True, False, rng.random(60) < 0.4]
    similarity = rng.normal(size=62) + is_same
    if grain:
        similarity = np.round(similarity / grain) * grain  # ties

    _, far, tar = acceptance_curve(similarity, is_same)

    assert area_under(far, tar) == pytest.approx(sk.roc_auc_score(is_same, similarity))
    fpr, tpr, _ = sk.roc_curve(is_same, similarity, drop_intermediate=False)
    np.testing.assert_allclose(far, fpr, atol=1e-12)
    np.testing.assert_allclose(tar, tpr, atol=1e-12)
    # steps of the curve are made slightly slanted, so that there is one crossing to find
    slanted = fpr + 1e-9 * np.arange(len(fpr))
    theirs = brentq(lambda x: 1.0 - x - interp1d(slanted, tpr)(x), 0.0, 1.0)
    assert equal_error_rate(far, tar) == pytest.approx(theirs, abs=1e-6)
    for most in (0.01, 0.1):
        assert tar_at(far, tar, most) == pytest.approx(max(tpr[fpr <= most]))


def test_retrieval_equals_pytorch_metric_learning_where_every_patient_has_one_cine():
    import torch
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    embeddings, labels, patients = cases(patients=60, per_patient=1)

    ours = retrieval_metrics(embeddings, labels, patients, "test")

    theirs = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"),
        k="max_bin_count",
        knn_func=CustomKNN(CosineSimilarity()),
        device=torch.device("cpu"),
    ).get_accuracy(torch.from_numpy(embeddings), torch.from_numpy(labels))
    assert ours["P@1"].value == pytest.approx(theirs["precision_at_1"], abs=1e-6)
    assert ours["mAP@R"].value == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-6)


def test_retrieval_of_a_worked_example():
    """Query 0 finds, nearest first, 2 (same), 3 (other), 4 (same) of R = 3: P@1 1, mAP@R (1 + 2/3) / 3."""
    angles = np.array([0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = np.array([0, 0, 0, 1, 0, 1, 0])
    patients = ["a", "a", "b", "c", "d", "e", "f"]  # case 1 is of the patient who asks

    rows = retrieval_scores(embeddings, labels, patients)

    assert rows[0, 0] == 1.0
    assert rows[0, 1] == pytest.approx((1 + 2 / 3) / 3)
    assert rows[0, 2] == pytest.approx(3 / 5)


def test_random_order_gets_what_the_baseline_says():
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    patients = [f"p{n}" for n in range(30)]
    rows = [np.nanmean(retrieval_scores(rng.normal(size=(30, 64)), labels, patients), axis=0) for _ in range(60)]

    found, mean_precision, chance_found, chance_precision = np.mean(rows, axis=0)

    assert chance_found == pytest.approx(9 / 29)
    assert found == pytest.approx(chance_found, abs=0.04)
    assert mean_precision == pytest.approx(chance_precision, abs=0.02)


def test_what_only_one_patient_has_cannot_be_found_and_is_left_out():
    embeddings, _, patients = cases(patients=4, per_patient=1)

    rows = retrieval_scores(embeddings, [0, 0, 0, 1], patients)

    assert np.isnan(rows[3]).all()
    assert np.isfinite(rows[:3]).all()
    assert retrieval_metrics(embeddings, [0, 1, 2, 3], patients, "test") == {}


@pytest.mark.heavy
def test_figures_come_with_intervals_over_patients_and_chance():
    embeddings, labels, patients = cases()

    found = verification_metrics(cross_patient_pairs(embeddings, labels, patients), "test phantoms")

    assert set(found) == {"verification AUC", "verification EER", "TAR at FAR 0.01", "TAR at FAR 0.001"}
    for metric in found.values():
        assert metric.low <= metric.value <= metric.high
        assert metric.patients == 30
    assert [metric.baseline for metric in found.values()] == [0.5, 0.5, 0.01, 0.001]


@pytest.mark.heavy
def test_interval_of_the_area_is_that_of_resampled_patients():
    embeddings, labels, patients = cases(patients=12, per_patient=2)
    pairs = cross_patient_pairs(embeddings, labels, patients)

    ours = verification_metrics(pairs, "test")["verification AUC"]

    rng = np.random.default_rng(1)
    names = sorted(set(patients))
    areas = []
    for _ in range(800):
        drawn = np.array([0] * len(names))
        np.add.at(drawn, rng.integers(0, len(names), len(names)), 1)
        times = dict(zip(names, drawn, strict=True))
        weights = np.array(
            [times[patients[a]] * times[patients[b]] for a, b in zip(pairs.first, pairs.second, strict=True)]
        )
        if weights[pairs.is_same].sum() and weights[~pairs.is_same].sum():
            areas.append(sk.roc_auc_score(pairs.is_same, pairs.similarity, sample_weight=weights))
    assert (ours.low, ours.high) == pytest.approx(tuple(np.percentile(areas, [2.5, 97.5])), abs=0.04)


def test_band_of_the_curve_encloses_it():
    embeddings, labels, patients = cases(patients=12, per_patient=2)

    band = curve_with_band(cross_patient_pairs(embeddings, labels, patients), "test")

    assert (band["low"] <= band["tar"] + 1e-9).all()
    assert (band["tar"] <= band["high"] + 1e-9).all()


def test_threshold_is_where_the_two_errors_are_closest():
    embeddings, labels, patients = cases(spread=0.3)
    pairs = cross_patient_pairs(embeddings, labels, patients)

    point = operating_point(pairs, "validation phantoms")

    accepted = pairs.similarity >= point.threshold
    assert point.far == pytest.approx(accepted[~pairs.is_same].mean())
    assert point.frr == pytest.approx(1 - accepted[pairs.is_same].mean())
    assert abs(point.far - point.frr) < 0.01
    assert (point.patients, point.pairs) == (30, len(pairs.first))


def test_pairs_of_one_kind_have_no_figures():
    embeddings, _, patients = cases(patients=3, per_patient=1)
    pairs = cross_patient_pairs(embeddings, [0, 0, 0], patients)

    assert verification_metrics(pairs, "test") == {}
    with pytest.raises(ValueError, match="3 pairs are all of one kind"):
        operating_point(pairs, "test")
