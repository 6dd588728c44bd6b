# SPDX-License-Identifier: Apache-2.0
"""A training changes the models of its study folder and never the starters."""

from pathlib import Path

import pytest

from echo_plugin.host.own_models import own_models
from echo_plugin.io.study_folder import StudyFolder

FILES = {"views.safetensors": b"weights", "views.json": b"card"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def starters(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def studies(tmp_path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    return folder


def test_a_study_folder_begins_with_copies_of_the_starters_which_are_no_cines(studies, starters):
    folder = own_models(studies, starters)

    assert folder.parent == studies
    assert contents(folder) == contents(starters) == FILES
    assert StudyFolder(studies).image_ids() == []


def test_what_was_trained_stays_and_the_starters_too(studies, starters):
    folder = own_models(studies, starters)
    (folder / "views.json").write_bytes(b"trained card")
    (starters / "views.json").write_bytes(b"newer card")

    assert contents(own_models(studies, starters))["views.json"] == b"trained card"
    assert contents(starters)["views.json"] == b"newer card"


def test_copies_that_nobody_trained_follow_newer_starters(studies, starters):
    own_models(studies, starters)
    (starters / "views.json").write_bytes(b"newer card")
    (starters / "boxes.json").write_bytes(b"another card")

    folder = own_models(studies, starters)

    assert contents(folder) == {**FILES, "views.json": b"newer card", "boxes.json": b"another card"}


def test_models_of_a_folder_that_cannot_hold_them_are_kept_in_its_cache(studies, starters, tmp_path):
    (studies / ".echo_models").write_bytes(b"in the way")

    folder = own_models(studies, starters, tmp_path / "cache")

    assert folder.is_relative_to(tmp_path / "cache")
    assert contents(folder) == FILES
