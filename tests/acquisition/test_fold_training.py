# SPDX-License-Identifier: Apache-2.0
"""With which weights the detectors of a review begin: with none that knows a patient of the folder."""

import shutil

import pytest

from echo_plugin.acquisition import review
from echo_plugin.acquisition.review import train_folds
from echo_plugin.model_card import STARTERS
from echo_plugin.training import detector
from echo_plugin.training.options import DetectorOptions


@pytest.fixture
def beginning(monkeypatch, tmp_path):
    """Return what a fold's training is told to begin with, instead of training."""
    told = []
    monkeypatch.setattr(detector, "train_detector", lambda studies, models, options, **rest: told.append(options))

    def ask(studies, models, patient):
        train_folds(studies, models, DetectorOptions())([patient], tmp_path, lambda *said: None)
        return told[-1].start, told[-1].starter

    return ask


def test_the_published_detector_begins_where_it_knows_nobody(strange_studies, published_detector, beginning):
    assert beginning(strange_studies, published_detector, "stranger03") == ("starter", published_detector)


def test_the_starter_weights_begin_where_the_published_detector_knows_a_patient(
    easy_studies, published_detector, beginning
):
    assert beginning(easy_studies, published_detector, "child03") == ("starter", STARTERS)


def test_nothing_begins_where_both_know_a_patient_or_do_not_say(
    easy_studies, published_detector, beginning, monkeypatch, tmp_path
):
    unsaid = tmp_path / "unsaid"
    shutil.copytree(published_detector, unsaid)
    monkeypatch.setattr(review, "STARTERS", unsaid)

    assert beginning(easy_studies, published_detector, "child03") == ("scratch", None)
