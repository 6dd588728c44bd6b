# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from echo_plugin.measure.boxes import (
    FrameBoxes,
    average_precision,
    best_overlaps,
    centre_distances,
    constant_boxes,
    detection_metrics,
    match_detections,
)
from echo_plugin.measure.classes import Cohort


def test_centre_distance_is_euclidean_and_each_side_of_a_pixel_has_its_own_length():
    truths = [_frame([[0, 0, 2, 2]], [0], mm_per_px=(0.5, 2.0)), _frame([[0, 0, 2, 2]], [0]), _frame([], [])]
    answers = [_frame([[3, 4, 5, 6]], [0])] * 3

    px, mm = centre_distances(answers, truths, 0)

    np.testing.assert_allclose(px, [5.0, 5.0, np.nan])
    np.testing.assert_allclose(mm, [np.hypot(1.5, 8.0), np.nan, np.nan])


def _detections(frames=30, seed=0):
    rng = np.random.default_rng(seed)
    detections, truths = [], []
    for _ in range(frames):
        corner = rng.uniform(0, 60, (rng.integers(0, 3), 2))
        truth = np.concatenate([corner, corner + rng.uniform(10, 30, corner.shape)], 1)
        near = truth + rng.normal(0, 3, truth.shape)
        stray = np.array([[5, 5, 20, 30.0]])
        boxes = np.concatenate([near, stray])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 2)
        truths.append(truth)
        detections.append((boxes, rng.uniform(size=len(boxes)).round(3)))
    return detections, truths


@pytest.mark.heavy
def test_average_precision_equals_that_of_torchmetrics_on_the_coco_evaluator():
    from torchmetrics.detection import MeanAveragePrecision

    detections, truths = _detections()
    oracle = MeanAveragePrecision(iou_thresholds=[0.5], backend="faster_coco_eval")
    for (boxes, scores), truth in zip(detections, truths, strict=True):
        label = torch.zeros(len(boxes), dtype=torch.int64)
        oracle.update(
            [{"boxes": torch.tensor(boxes), "scores": torch.tensor(scores), "labels": label}],
            [{"boxes": torch.tensor(truth), "labels": torch.zeros(len(truth), dtype=torch.int64)}],
        )

    ours = average_precision(match_detections(detections, truths), np.ones((1, len(truths))))

    assert ours[0] == pytest.approx(float(oracle.compute()["map_50"]), abs=1e-6)


@pytest.mark.heavy
def test_every_average_precision_equals_that_of_torchmetrics_over_both_septa():
    from torchmetrics.detection import MeanAveragePrecision

    both = [_detections(seed=seed) for seed in (0, 1)]
    oracle = MeanAveragePrecision(backend="faster_coco_eval", class_metrics=True)
    answers, truths = [], []
    for frame in range(30):
        boxes, scores = (np.concatenate([d[frame][part] for d, _ in both]) for part in (0, 1))
        labels = np.repeat([0, 1], [len(d[frame][0]) for d, _ in both])
        true = np.concatenate([t[frame] for _, t in both])
        true_labels = np.repeat([0, 1], [len(t[frame]) for _, t in both])
        answers.append(FrameBoxes(boxes, labels, scores))
        truths.append(FrameBoxes(true, true_labels, np.ones(len(true))))
        oracle.update(
            [{"boxes": torch.tensor(boxes), "scores": torch.tensor(scores), "labels": torch.tensor(labels)}],
            [{"boxes": torch.tensor(true), "labels": torch.tensor(true_labels)}],
        )
    cohort = Cohort(tuple(str(i // 3) for i in range(30)), split="test")

    metrics = detection_metrics(cohort, answers, truths, constant_boxes(truths))

    overall, theirs = metrics["AP50"], oracle.compute()
    for name, key in (("AP", "map"), ("AP50", "map_50"), ("AP75", "map_75")):
        assert metrics[name].value == pytest.approx(float(theirs[key]), abs=1e-6)
    for septum, value in zip(("interatrial", "interventricular"), theirs["map_per_class"].tolist(), strict=True):
        assert metrics[f"AP {septum}"].value == pytest.approx(value, abs=1e-6)
    assert metrics["AP75"].value < metrics["AP"].value < metrics["AP50"].value
    assert overall.patients == 10
    assert overall.low < overall.value < overall.high
    assert overall.baseline < overall.value


@pytest.mark.heavy
def test_without_a_known_constant_answer_there_is_no_baseline():
    detections, _ = _detections(frames=6)
    truths = [FrameBoxes(boxes, np.zeros(len(boxes), dtype=int), scores) for boxes, scores in detections]

    metrics = detection_metrics(Cohort(tuple("aabbcc"), split="test"), truths, truths, None)

    assert {metrics[name].baseline for name in ("AP50", "AP50 interatrial", "mean IoU interatrial")} == {None}


def test_weighting_an_item_twice_equals_having_it_twice():
    detections, truths = _detections(frames=6)
    weights = np.array([[2.0, 1, 1, 0, 1, 1]])
    pick = [0, 0, 1, 2, 4, 5]

    weighted = average_precision(match_detections(detections, truths), weights)
    repeated = average_precision(
        match_detections([detections[i] for i in pick], [truths[i] for i in pick]), np.ones((1, 6))
    )

    assert weighted == pytest.approx(repeated)


def test_no_detection_scores_zero_and_no_truth_is_undefined():
    nothing = (np.zeros((0, 4)), np.zeros(0))
    truth = np.array([[0, 0, 10, 10.0]])

    assert average_precision(match_detections([nothing], [truth]), np.ones((1, 1)))[0] == 0.0
    assert np.isnan(average_precision(match_detections([nothing], [np.zeros((0, 4))]), np.ones((1, 1)))[0])


def _frame(boxes, labels, scores=None, mm_per_px=None):
    boxes = np.array(boxes, dtype=float).reshape(-1, 4)
    scores = np.ones(len(boxes)) if scores is None else np.array(scores)
    return FrameBoxes(boxes, np.array(labels, dtype=int), scores, mm_per_px)


def test_constant_box_is_the_median_of_each_septum_and_unknown_for_an_absent_one():
    truths = [_frame([[0, 0, 2, 2]], [1]), _frame([[2, 2, 4, 4]], [1]), _frame([[9, 9, 10, 10]], [1])]

    medians = constant_boxes(truths)

    assert medians[1].tolist() == [2, 2, 4, 4]
    assert np.isnan(medians[0]).all()


def test_overlap_is_that_of_the_surest_box_and_zero_where_nothing_was_found():
    truths = [_frame([[0, 0, 10, 10]], [0]), _frame([[0, 0, 10, 10]], [0]), _frame([], [])]
    answers = [_frame([[0, 0, 10, 10], [0, 0, 5, 10]], [0, 0], [0.4, 0.9]), _frame([], []), _frame([[1, 1, 2, 2]], [0])]

    overlaps = best_overlaps(answers, truths, 0)

    assert overlaps[:2].tolist() == [0.5, 0.0]
    assert np.isnan(overlaps[2])


@pytest.mark.heavy
def test_perfect_answers_score_one_beside_a_constant_answer_that_does_not():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 100, (12, 2))
    truths = [_frame([[x, y, x + 20, y + 30]], [1]) for x, y in corners] + [_frame([], [])] * 3
    cohort = Cohort(tuple(f"p{i % 5}" for i in range(15)), split="test")

    metrics = detection_metrics(cohort, truths, truths, constant_boxes(truths))

    assert metrics["AP50 interventricular"].value == pytest.approx(1.0)
    assert metrics["mean IoU interventricular"].value == pytest.approx(1.0)
    assert metrics["centre distance px interventricular"].value == 0.0
    assert metrics["AP50 interventricular"].baseline < 0.5
    assert metrics["false alarms on frames without septum"].value == 0.0
    assert "AP50 interatrial" not in metrics
