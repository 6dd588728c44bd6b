# SPDX-License-Identifier: Apache-2.0
"""A tiny study folder whose pictures are trivially easy, so that a training of seconds shows that learning works."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from echo_plugin.anatomy import Defect, Septum, View
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.io.study_folder import StudyFolder

torch.set_num_threads(1)

PATIENTS, SIDE = 12, 96
DEFECTS = (Defect.NORMAL, Defect.ASD, Defect.VSD)
VIEWS = (View.A4C, View.PSAX_AV)


def _picture(rng: np.random.Generator, defect: Defect, view: View) -> tuple[np.ndarray, tuple[SeptalBox, ...]]:
    """A bright upright wall on speckle; the defect is a dark gap in its lower or upper half; PSAX shows a ring instead."""
    picture = rng.gamma(1.0, 18.0, (SIDE, SIDE))
    if view is View.PSAX_AV:
        rows, columns = np.mgrid[:SIDE, :SIDE]
        picture[np.abs(np.hypot(rows - 48, columns - 48) - 22) < 4] += 150
        return np.clip(picture, 0, 255).astype(np.uint8), ()
    x, y = (int(v) for v in rng.integers(30, 48, 2))
    picture[y - 24 : y, x : x + 12] += 120
    picture[y : y + 24, x : x + 12] += 190
    if defect is Defect.VSD:
        picture[y - 18 : y - 8, x : x + 12] = 0
    if defect is Defect.ASD:
        picture[y + 8 : y + 18, x : x + 12] = 0
    boxes = (
        SeptalBox(0, x, y - 24, x + 12, y, Septum.INTERVENTRICULAR),
        SeptalBox(0, x, y, x + 12, y + 24, Septum.INTERATRIAL),
    )
    return np.clip(picture, 0, 255).astype(np.uint8), boxes


@pytest.fixture(scope="session")
def easy_studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve children with three stills each; who is who stands in patients.csv."""
    root = tmp_path_factory.mktemp("easy")
    rng = np.random.default_rng(0)
    rows, labels = ["image_id,patient_id"], {}
    for child in range(PATIENTS):
        for number, view in enumerate((View.A4C, View.A4C, View.PSAX_AV)):
            defect = DEFECTS[child % 3]
            pixels, boxes = _picture(rng, defect, view)
            name = f"child{child:02d}_{number}.png"
            Image.fromarray(pixels).save(root / name)
            labels[name] = (boxes, view, defect)
    folder = StudyFolder(root)
    for image_id in folder.image_ids():
        name = Path(folder.entry(image_id).path).name
        boxes, view, defect = labels[name]
        rows.append(f"{image_id},{name[:7]}")
        folder.save_annotation(
            Annotation(image_id, boxes, (0,), view, defect, saved_at=datetime(2026, 1, 1, tzinfo=UTC)), author="test"
        )
    (root / "patients.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root
