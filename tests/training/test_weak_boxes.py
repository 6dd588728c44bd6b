# SPDX-License-Identifier: Apache-2.0
"""Boxes that an import worked out of one wall say nothing of the other: it is neither learned nor measured absent."""

import dataclasses

import numpy as np
import pytest
import torch

from echo_plugin.anatomy import Septum
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.cine import Cine, FramesInMemory
from echo_plugin.evaluate.report import recall_curves
from echo_plugin.io.datasets.source_cine import WEAK_SCORE
from echo_plugin.measure.boxes import FrameBoxes, detection_metrics
from echo_plugin.measure.classes import Cohort
from echo_plugin.models.septal_detector import SeptalDetector
from echo_plugin.network_config import DetectorConfig
from echo_plugin.training.datasets import LabelledCine, PreparedFrames, prepare_detection, unsought_labels
from echo_plugin.training.detector import detection_loss, true_boxes
from echo_plugin.training.detector_recipes import OURS, septa_shown

pytestmark = pytest.mark.heavy

torch.set_num_threads(1)
IAS, IVS = 0, 1
WEAK = SeptalBox(0, 10, 10, 30, 40, Septum.INTERVENTRICULAR, WEAK_SCORE)
DRAWN = dataclasses.replace(WEAK, score=None)


def said(*boxes):
    return Annotation("a", boxes, (0,))


@pytest.mark.parametrize(
    ("boxes", "unsought"),
    [
        ((WEAK,), (IAS,)),
        ((WEAK, dataclasses.replace(WEAK, septum=Septum.INTERATRIAL)), ()),
        ((DRAWN,), ()),
        ((), ()),
    ],
    ids=["one wall worked out", "both worked out", "one drawn by a person", "a frame without a septum"],
)
def test_a_septum_is_unsought_only_beside_boxes_that_nobody_drew(boxes, unsought):
    assert unsought_labels(said(*boxes), 0) == unsought


def prepared(annotation):
    pixels = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 1)).astype(np.uint8)
    cine = Cine("a", FramesInMemory(pixels))
    labels = LabelledCine("a", "p", 1, annotation)
    squares, targets = prepare_detection(64)(cine, labels, (0,))
    return PreparedFrames(squares, torch.from_numpy(targets).float(), torch.zeros(1, dtype=torch.long), (labels,))


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return SeptalDetector(DetectorConfig(input_size_px=64))


def gradients_of_classes(detector, annotation):
    """Return the sum of the gradients of the last bias for each class."""
    plain = dataclasses.replace(OURS, plain=1.0, spoiled=0.0)
    detector.zero_grad()
    detection_loss(
        detector, prepared(annotation), torch.tensor([0]), torch.Generator().manual_seed(0), plain
    ).backward()
    return detector.head.classification_head.cls_logits.bias.grad.reshape(-1, 2).abs().sum(dim=0)


def test_the_other_septum_is_no_background_beside_a_weak_box(detector):
    weak, drawn = (gradients_of_classes(detector, said(box)) for box in (WEAK, DRAWN))

    assert weak[IAS] < 1e-6 * drawn[IAS]
    torch.testing.assert_close(weak[IVS], drawn[IVS], rtol=1e-2, atol=1e-6)


def test_a_frame_shows_the_septum_of_its_weak_box_alone():
    frames = prepared(said(WEAK))

    (truth,) = true_boxes(frames, torch.tensor([0]))

    assert (list(truth.labels), truth.unsought) == ([IVS], (IAS,))
    assert septa_shown(frames).tolist() == [2]


def test_the_other_septum_found_beside_a_weak_box_is_no_false_alarm():
    box, other = np.array([[10.0, 10, 30, 40]]), np.array([[10.0, 40, 30, 60]])
    both = FrameBoxes(np.concatenate([box, other]), np.array([IVS, IAS]), np.array([0.9, 0.99]))
    weak = FrameBoxes(box, np.array([IVS]), np.ones(1), unsought=(IAS,))
    atrial = FrameBoxes(other, np.array([IAS]), np.ones(1))
    answers = [both, FrameBoxes(other, np.array([IAS]), np.array([0.5]))]

    metrics = detection_metrics(Cohort(("a", "b"), "test patients"), answers, [weak, atrial], None)
    precision = recall_curves(answers, [weak, atrial])["interatrial"][1]

    assert metrics["AP50 interatrial"].value == 1.0
    assert precision.max() == 1.0
