# SPDX-License-Identifier: Apache-2.0
"""Two trainings of one model in one folder: the second is told so."""

import subprocess
import sys

import pytest
import torch

from echo_plugin.training.defects import train_defects
from echo_plugin.training.detector import train_detector
from echo_plugin.training.loop import forget_states, state_path
from echo_plugin.training.mae import train_mae
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.start import TrainingUnderWayError, only_training
from echo_plugin.training.views import train_views

torch.set_num_threads(1)
OPTIONS = TrainOptions(epochs=1, batch_size=8, image_size=64, device="cpu")
HOLD = """
import sys, pathlib
from echo_plugin.training.start import only_training
with only_training(pathlib.Path(sys.argv[1]), "septal_detector"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("train", "name"),
    [
        (train_detector, "septal_detector"),
        (train_defects, "defect_embedder"),
        (train_views, "view_classifier"),
        (lambda studies, *rest: train_mae([studies], *rest), "masked_autoencoder"),
    ],
)
def test_a_second_training_of_a_model_is_refused_and_leaves_the_first_ones_state(easy_studies, tmp_path, train, name):
    state = state_path(tmp_path, name)
    state.parent.mkdir()
    state.write_bytes(b"of the first")

    with only_training(tmp_path, name), pytest.raises(TrainingUnderWayError, match=f"Model {name} in .* already; wait"):
        train(easy_studies, tmp_path, OPTIONS)

    assert state.read_bytes() == b"of the first"
    assert not (tmp_path / f"{name}.json").exists()


def test_models_of_one_folder_and_one_model_of_two_folders_may_be_trained_at_once(tmp_path):
    with (
        only_training(tmp_path / "a", "septal_detector"),
        only_training(tmp_path / "a", "defect_embedder"),
        only_training(tmp_path / "b", "septal_detector"),
    ):
        pass


@pytest.mark.heavy
def test_a_killed_training_lets_go_of_its_folder(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TrainingUnderWayError), only_training(tmp_path, "septal_detector"):
            pass

        holder.kill()
        holder.wait()

    with only_training(tmp_path, "septal_detector"):
        pass


def test_forgetting_states_leaves_the_lock_as_it_is(tmp_path):
    with only_training(tmp_path, "septal_detector"):
        forget_states(tmp_path, "septal_detector")

        with pytest.raises(TrainingUnderWayError), only_training(tmp_path, "septal_detector"):
            pass
