# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all rooms."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from echo_plugin.anatomy import Defect, Septum, View
from echo_plugin.annotations import Annotation, SeptalBox

settings.register_profile("any machine", deadline=None)  # a busy machine is not a failure
settings.load_profile("any machine")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever wants networks that have learned waits for their training: not in the fast tier."""
    for item in items:
        if "published_detector" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.heavy)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory of real ultrasound files beside the checkout; skipped, visibly, where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real ultrasound files beside the checkout (../shared/data)")
    return SHARED_DATA


PATIENTS, SIDE = 12, 96
DEFECTS = (Defect.NORMAL, Defect.ASD, Defect.VSD)
VIEWS = (View.A4C, View.PSAX_AV)


def _picture(rng: np.random.Generator, defect: Defect, view: View) -> tuple[np.ndarray, tuple[SeptalBox, ...]]:
    """Draw a bright upright wall on speckle; the defect is a dark gap in either half; PSAX shows a ring instead."""
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
    """Twelve children with three stills each, so easy that seconds of training show that learning works."""
    from echo_plugin.io.study_folder import StudyFolder

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


@pytest.fixture
def with_two_defects(easy_studies: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a copy of the easy studies in which one cine of a child says ASD, the next VSD."""
    from echo_plugin.io.study_folder import StudyFolder

    def make(child: str) -> Path:
        shutil.copytree(easy_studies, tmp_path / "two_defects")
        folder = StudyFolder(tmp_path / "two_defects")
        own = [i for i in sorted(folder.annotated_ids()) if folder.entry(i).patient_id == child]
        for image_id, defect in zip(own, (Defect.ASD, Defect.VSD), strict=False):
            said = replace(folder.annotation(image_id) or Annotation(image_id), defect=defect)
            folder.save_annotation(said, author="test")
        return folder.root

    return make


@pytest.fixture(scope="session")
def published_detector(easy_studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a detector and an embedder that have hardly learned anything from the easy studies."""
    import torch

    from echo_plugin.training.defects import train_defects
    from echo_plugin.training.detector import train_detector
    from echo_plugin.training.options import DefectOptions, DetectorOptions

    torch.set_num_threads(1)
    models = tmp_path_factory.mktemp("models")
    train_detector(easy_studies, models, DetectorOptions(epochs=1, batch_size=8, image_size=64, device="cpu"))
    train_defects(easy_studies, models, DefectOptions(epochs=1, batch_size=8, image_size=64, device="cpu"))
    return models
