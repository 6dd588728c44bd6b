# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
import torch

from echo_plugin.anatomy import View
from echo_plugin.cine import Cine, FramesInMemory, UltrasoundRegion
from echo_plugin.io.cine_file import read_cine
from echo_plugin.measure.boxes import FrameBoxes
from echo_plugin.model_card import ModelCard, TrainingCohort
from echo_plugin.models.checkpoint import publish
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.network_config import ViewConfig
from tests.script import load_script

torch.set_num_threads(1)
transfer = load_script("tests/benchmarks/real_cine_transfer.py")
REFERENCE = Path(__file__).parent / "real_reference_boxes.json"


def test_reference_boxes_give_both_septa_on_twelve_frames():
    reference = transfer.read_reference_boxes(REFERENCE)

    assert list(reference) == list(range(0, 120, 10))
    for boxes in reference.values():
        assert sorted(boxes.labels.tolist()) == [0, 1]
        atrial, ventricular = boxes.of(0)[0][0], boxes.of(1)[0][0]
        assert ventricular[1] < atrial[1] < ventricular[3] < atrial[3]


def test_every_copy_keeps_the_reference_boxes_in_the_picture():
    box = np.array([[0.42, 0.25, 0.55, 0.85]]) * 256

    from echo_plugin.geometry import transform_boxes

    for scale, dx, dy, is_mirrored in transfer.COPIES.values():
        moved = transform_boxes(box, transfer._affine(256, scale, dx, dy, is_mirrored=is_mirrored))
        assert moved.min() >= 0 and moved.max() <= 256


@pytest.mark.heavy
def test_transfer_gives_overlap_and_constant_answer_for_each_copy(published_detector):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 80, 80, 1), dtype=np.uint8)
    cine = Cine("cine", FramesInMemory(pixels), regions=(UltrasoundRegion(0, 0, 80, 80),))
    truth = FrameBoxes(np.array([[30.0, 20, 40, 45], [30, 45, 40, 70]]), np.array([1, 0]), np.ones(2))

    result = transfer.measure_transfer(published_detector, cine, {0: truth, 1: truth}, [cine])

    assert set(result["copies"]) == set(transfer.COPIES)
    for septa in result["copies"].values():
        for figures in septa.values():
            assert 0 <= figures["mean_iou"] <= 1
            assert 0 <= figures["constant_iou"] <= 1
    assert set(result["highest score without a heart"]) == {"blurred", "cine"}


@pytest.mark.real_data
def test_reference_boxes_lie_in_the_ultrasound_region_of_the_real_cine(shared_data):
    cine = read_cine(shared_data / "color3d_jpeg_baseline.dcm")
    region = cine.regions[0]

    for boxes in transfer.read_reference_boxes(REFERENCE).values():
        assert boxes.boxes[:, :2].min(axis=0).tolist() >= [region.x1, region.y1]
        assert (boxes.boxes[:, 2] <= region.x2).all() and (boxes.boxes[:, 3] <= region.y2).all()


@pytest.mark.heavy
@pytest.mark.parametrize(("frame_count", "clips"), [(1, 1), (4, 1), (9, 6)])
def test_view_share_counts_a_clip_from_each_frame(tmp_path, frame_count, clips):
    classes = (View.A4C.value, View.OTHER.value)
    config = ViewConfig(classes=2, input_size_px=64)
    network = ViewClassifier(config)
    torch.nn.init.zeros_(network.head[1].weight)
    with torch.no_grad():
        network.head[1].bias.copy_(torch.tensor([2.0, 0.0]))
    data = TrainingCohort("noise", patients=1, cines=1, digest="0")
    card = ModelCard("view_classifier", "1", "view", "test", classes, config, data)
    publish(tmp_path, network.state_dict(), card)
    pixels = np.random.default_rng(0).integers(0, 255, (frame_count, 80, 80, 1), dtype=np.uint8)
    cine = Cine("cine", FramesInMemory(pixels), regions=(UltrasoundRegion(0, 0, 80, 80),))

    answer = transfer.measure_view_share(tmp_path, cine, View.A4C)

    assert answer["clips"] == clips
    assert answer["share"] == 1.0
    assert answer["mean_probability"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-5)
