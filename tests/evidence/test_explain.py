# SPDX-License-Identifier: Apache-2.0
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from echo_plugin.anatomy import Defect, Septum
from echo_plugin.annotations import SeptalBox
from echo_plugin.answer.predict import EchoPipeline
from echo_plugin.cine import Cine, FramesInMemory, UltrasoundRegion
from echo_plugin.errors import EchoError, ModelMismatchError
from echo_plugin.evidence.explain import explain_defect
from echo_plugin.io.study_folder import StudyFolder

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[2]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pipeline():
    return EchoPipeline(ROOT / "apps" / "echo" / "model", device="cpu")


@pytest.fixture(scope="module")
def cine() -> Cine:
    """Four frames of a sample of the starter set."""
    folder = StudyFolder(ROOT / "sample_studies")
    whole = folder.read_cine(folder.annotated_ids()[0])
    return Cine("four", FramesInMemory(whole.read_frames([0, 4, 8, 12])), regions=whole.regions)


@pytest.fixture(scope="module")
def explanation(pipeline, cine):
    return explain_defect(pipeline, cine)


def test_heat_of_the_starter_embedder_lies_inside_the_crop(explanation, cine):
    x1, y1, x2, y2 = explanation.square
    rows, columns = np.nonzero(explanation.heat)

    assert explanation.heat.shape == (cine.height, cine.width)
    assert 0.9 < explanation.heat.max() <= 1.0 + 1e-6
    assert explanation.heat.min() == 0.0
    assert x1 - 1 <= columns.min() and columns.max() <= x2
    assert y1 - 1 <= rows.min() and rows.max() <= y2
    assert explanation.square in [(b.x1, b.y1, b.x2, b.y2) for b in explanation.defect.crops]


def test_heat_tells_places_of_the_crop_apart(explanation):
    x1, y1, x2, y2 = (max(round(v), 0) for v in explanation.square)
    inside = explanation.heat[y1:y2, x1:x2]

    assert inside.std() > 0.1


def test_picture_shows_nothing_outside_the_tissue(pipeline, cine):
    pixels = cine.pixels.copy()
    pixels[:, : cine.height // 4] = 255  # where a name would be burnt in
    named = Cine(
        "named", FramesInMemory(pixels), regions=(UltrasoundRegion(0, cine.height // 4, cine.width, cine.height),)
    )

    found = explain_defect(pipeline, named, 1)

    picture = np.asarray(Image.open(io.BytesIO(found.to_png())).convert("RGB")).astype(int)
    assert found.frame_index == 1
    assert picture.shape == (cine.height, cine.width, 3)
    assert found.grey[: cine.height // 4].max() == 0
    assert found.heat[: cine.height // 4].max() == 0


class Saying:
    """The pipeline, with another defect said of the cine."""

    def __init__(self, pipeline, cine, **said) -> None:
        self.models_dir = pipeline.models_dir
        self.embedded = pipeline.embed(cine)
        self.embedded = dataclasses.replace(
            self.embedded, defect=dataclasses.replace(self.embedded.defect, is_whole_frame=False, **said)
        )

    def embed(self, cine):
        return self.embedded


def boxes(*septa):
    """Two squares of frame 0, side by side, of these walls."""
    return tuple(
        SeptalBox(0, 60.0 + 60 * n, 60.0, 120.0 + 60 * n, 120.0, septum, 0.9) for n, septum in enumerate(septa)
    )


def test_only_a_wall_that_can_show_the_defect_is_drawn(pipeline, cine):
    walls = (Septum.INTERATRIAL, Septum.INTERVENTRICULAR)

    lefts = [
        explain_defect(Saying(pipeline, cine, defect=defect, crops=boxes(*order)), cine).square[0]
        for defect in (Defect.ASD, Defect.VSD)
        for order in (walls, walls[::-1])
    ]

    assert lefts == [60.0, 120.0, 120.0, 60.0]


def test_without_a_wall_that_can_show_the_defect_none_is_drawn(pipeline, cine):
    said = Saying(pipeline, cine, defect=Defect.VSD, crops=boxes(Septum.INTERATRIAL))

    with pytest.raises(EchoError, match="Cine four: no septum that can show VSD was found, so none can be drawn"):
        explain_defect(said, cine)


def test_picture_and_words_say_that_no_answer_is_given(explanation):
    silent = dataclasses.replace(explanation.defect, abstained="view SSN-ARCH does not show this septum")
    said = dataclasses.replace(explanation.defect, abstained=None)
    without, given = (dataclasses.replace(explanation, defect=defect) for defect in (silent, said))

    assert given.words == f"{said.defect.value} {said.probability:.2f}"
    assert without.words == f"abstained: view SSN-ARCH does not show this septum; it would be {given.words}"
    pictures = [np.asarray(Image.open(io.BytesIO(each.to_png()))) for each in (without, given)]
    assert (pictures[0][:40] != pictures[1][:40]).any()
    np.testing.assert_array_equal(pictures[0][60:], pictures[1][60:])


def test_another_network_than_answered_is_not_explained(pipeline, cine):
    said = Saying(pipeline, cine)
    card = dataclasses.replace(said.embedded.embedder, sha256="e" * 64)
    said.embedded = dataclasses.replace(said.embedded, embedder=card)

    with pytest.raises(ModelMismatchError, match="replaced while cine four was explained"):
        explain_defect(said, cine)


def test_a_frame_that_is_not_there_is_named(pipeline, cine):
    with pytest.raises(IndexError, match=r"four has no frame 9 \(0-based\); 0 to 3"):
        explain_defect(pipeline, cine, 9)
