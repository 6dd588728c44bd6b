# SPDX-License-Identifier: Apache-2.0
import threading

import numpy as np
import pytest
from PIL import Image

from echo_plugin.anatomy import Defect, Septum
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.host import keepers
from echo_plugin.host.keepers import GalleryKeeper
from echo_plugin.io.study_folder import StudyFolder


class Models:
    """A pipeline of which only the models' folder is looked at."""

    def __init__(self, models_dir):
        self.models_dir = models_dir


@pytest.fixture
def studies(tmp_path):
    root = tmp_path / "studies"
    root.mkdir()
    Image.fromarray(np.zeros((16, 16), dtype=np.uint8)).save(root / "a.png")
    return StudyFolder(root)


@pytest.fixture
def updates(monkeypatch):
    """How often the gallery was updated."""
    done = []

    def update(folder, pipeline, *, progress, should_stop):
        progress(0, 1, "a.png")
        done.append(folder)

    monkeypatch.setattr(keepers, "update_gallery", update)
    return done


@pytest.fixture
def keeper(studies, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    (models / "defect_embedder.json").write_text("{}")
    return GalleryKeeper(studies, Models(models))


def label(studies, defect):
    box = SeptalBox(0, 1.0, 1.0, 5.0, 5.0, Septum.INTERATRIAL)
    studies.save_annotation(Annotation("a.png", (box,), (0,), None, defect), author="reader")


def test_gallery_follows_labels_patients_and_models_whoever_changes_them(keeper, studies, updates):
    assert (keeper.look(), keeper.look(), len(updates)) == (True, False, 1)

    label(studies, Defect.ASD)
    assert (keeper.look(), keeper.look()) == (True, False)

    (studies.root / "patients.csv").write_text("image_id,patient_id\na.png,p1\n")
    assert (keeper.look(), keeper.look()) == (True, False)

    new = keeper.pipeline.models_dir / "new.json"
    new.write_text("{ }")
    new.replace(keeper.pipeline.models_dir / "defect_embedder.json")
    assert (keeper.look(), keeper.look()) == (True, False)


def test_without_an_embedder_nothing_is_done(keeper, updates):
    (keeper.pipeline.models_dir / "defect_embedder.json").unlink()

    assert not keeper.look()
    assert updates == []


def test_what_fails_is_told_and_tried_again_only_when_something_changed(keeper, studies, monkeypatch, caplog):
    def fail(*_arguments, **_options):
        msg = "Disk is full."
        raise OSError(msg)

    monkeypatch.setattr(keepers, "update_gallery", fail)

    assert (keeper.look(), keeper.look()) == (True, False)
    assert "The gallery could not be updated: Disk is full." in caplog.text
    label(studies, Defect.VSD)
    assert keeper.look()


def test_a_prediction_that_somebody_waits_for_goes_first(keeper, updates):
    waiting = threading.Thread(target=keeper.look)

    with keeper.aside():
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        assert updates == []

    waiting.join(10)
    assert len(updates) == 1


def test_stopping_lets_a_waiting_update_go(keeper, updates):
    with keeper.aside():
        waiting = threading.Thread(target=keeper.look)
        waiting.start()
        keeper.stop()
        waiting.join(10)

    assert not waiting.is_alive()
