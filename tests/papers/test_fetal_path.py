# SPDX-License-Identifier: Apache-2.0
"""From fetal stills without labels to an answer about one of them, by the verbs that a person would use."""

import json

import pytest
import torch
from typer.testing import CliRunner

from echo_plugin.anatomy import FETAL_5
from echo_plugin.cli.main import app
from echo_plugin.model_card import load_card

pytestmark = pytest.mark.heavy

torch.set_num_threads(1)
SMALL = ("--backbone", "vit_micro_patch8", "--image-size", "32", "--epochs", "2", "--device", "cpu")


def _run(*words):
    answer = CliRunner().invoke(app, [str(word) for word in words])
    assert answer.exit_code == 0, answer.output
    return answer


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    out = tmp_path_factory.mktemp("fetal")
    _run("phantom", out / "studies", "--fetal", "--patients", 6, "--frames", 1, "--sheet", out / "sheet.png")
    return out / "studies"


def test_a_fetal_still_is_answered_after_pre_training_and_fine_tuning(studies, tmp_path):
    models = tmp_path / "models"
    _run("train", "mae", "--images", studies, "--models", models, "--mask-ratio", "0.5", "--patch-norm", *SMALL)

    _run("train", "views", "--studies", studies, "--models", models, "--recipe", "usf-mae", "--from", "mae", *SMALL)

    pretrained, card = load_card(models, "masked_autoencoder"), load_card(models, "view_classifier")
    assert (pretrained.network.mask_ratio, pretrained.network.is_patch_normalised) == (0.5, True)
    assert pretrained.cohort.words == "phantoms only, without labels"
    assert card.classes == tuple(view.value for view in FETAL_5)
    assert card.network.border > 0
    assert (
        f"phantoms only, going on from masked_autoencoder {pretrained.version} (phantoms only, without labels)"
        in card.cohort.words
    )
    still = next(studies.rglob("*.png"))
    _run("predict", still, "--tasks", "view", "--models", models, "--json", tmp_path / "out.json", "--device", "cpu")
    (answer,) = json.loads((tmp_path / "out.json").read_text())
    assert answer["view"]["view"] in card.classes
    assert sum(answer["view"]["probabilities"].values()) == pytest.approx(1, abs=1e-3)


def test_the_sheet_is_drawn(studies):
    assert (studies.parent / "sheet.png").stat().st_size > 10_000
