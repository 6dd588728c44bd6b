# SPDX-License-Identifier: Apache-2.0
"""The same path on a GPU: half precision there, and the answers of the CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch

from echo_plugin.answer.predict import EchoPipeline
from echo_plugin.io.study_folder import StudyFolder

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device on this machine"),
]


def test_half_precision_on_the_gpu_answers_as_the_cpu_does() -> None:
    models = ROOT / "apps" / "echo" / "model"
    folder = StudyFolder(ROOT / "sample_studies")
    cine = folder.read_cine(folder.image_ids()[0])

    on_cpu = EchoPipeline(models, device="cpu").predict(cine)
    on_gpu = EchoPipeline(models, device="cuda").predict(cine)

    assert on_gpu.view.view is on_cpu.view.view
    assert on_gpu.defect.probability == pytest.approx(on_cpu.defect.probability, abs=0.1)
    assert len(on_gpu.boxes) == pytest.approx(len(on_cpu.boxes), rel=0.1)
    corners = {(b.frame_index, b.septum): b.xyxy for b in on_cpu.boxes}
    moved = [
        np.abs(corners[b.frame_index, b.septum] - b.xyxy).max()
        for b in on_gpu.boxes
        if (b.frame_index, b.septum) in corners
    ]
    assert np.median(moved) < 2.0


def test_weights_on_the_gpu_are_half_precision() -> None:
    pipeline = EchoPipeline(ROOT / "apps" / "echo" / "model", device="cuda")

    assert pipeline.runtime.dtype is torch.float16
    assert pipeline.runtime.device.type == "cuda"
