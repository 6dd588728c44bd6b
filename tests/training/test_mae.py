# SPDX-License-Identifier: Apache-2.0
import dataclasses
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from echo_plugin.anatomy import View
from echo_plugin.errors import ModelMismatchError, ModelNotFoundError, TrainingDataError
from echo_plugin.io.cine_file import read_cine
from echo_plugin.models.checkpoint import MASKED_AUTOENCODER, load_published, publish
from echo_plugin.models.masked_autoencoder import MaskedAutoencoder
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.network_config import MaeConfig, ViewConfig
from echo_plugin.training import mae
from echo_plugin.training.datasets import open_labelled_folder
from echo_plugin.training.loop import FOLDER
from echo_plugin.training.mae import mae_config, mean_of_seen, reconstruction_panels, train_mae
from echo_plugin.training.mae_frames import find_unlabelled
from echo_plugin.training.options import MaeOptions, TrainOptions, ViewOptions
from echo_plugin.training.provenance import NAMELESS_LIMITS, known_patients
from echo_plugin.training.start import load_start
from echo_plugin.training.views import train_views

pytestmark = pytest.mark.heavy

torch.set_num_threads(1)
NAME = "vit_micro_patch8"
OPTIONS = MaeOptions(epochs=2, batch_size=8, image_size=32, backbone=NAME, device="cpu")
TWO = (View.A4C, View.PSAX_AV)


@pytest.fixture(scope="module")
def pretrained(easy_studies, tmp_path_factory):
    """A models folder with an autoencoder of the easy studies."""
    models = tmp_path_factory.mktemp("mae")
    train_mae([easy_studies], models, dataclasses.replace(OPTIONS, pictures_every=1))
    return models


def test_what_is_learned_is_published_with_pictures_and_nothing_else_is_left(pretrained):
    card, state = load_published(pretrained, MASKED_AUTOENCODER)
    network = MaskedAutoencoder(card.network_as(MaeConfig))
    network.load_state_dict(state)

    pictures = sorted(path.name for path in (pretrained / "reconstructions").iterdir())
    assert pictures == ["epoch_0001.png", "epoch_0002.png"]
    assert {path.suffix for path in (pretrained / FOLDER).iterdir()} <= {".lock"}
    assert card.training.validation["error"] > 0
    assert card.licence == "Apache-2.0"


def test_the_error_is_of_test_patients_with_its_interval_beside_that_of_the_mean_patch(easy_studies, pretrained):
    card, _ = load_published(pretrained, MASKED_AUTOENCODER)

    error = card.metrics["reconstruction_error"]
    assert error.split == "test patients (frames without labels)"
    assert error.patients == card.cohort.split["test"]
    assert 0 < error.low < error.value < error.high
    assert error.baseline > 0
    assert error.value != card.training.validation["error"]


def test_the_mean_patch_is_that_of_the_seen_patches_of_the_frame():
    targets = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]])

    drawn = mean_of_seen(targets, torch.tensor([[0.0, 0.0, 1.0]]))

    assert drawn.patches.tolist() == [[[2.0, 4.0]] * 3]


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="only Linux tells which files are mapped")
def test_no_file_is_mapped_when_the_frames_are_deleted(easy_studies, tmp_path, monkeypatch):
    publish_learned, maps = mae.publish_learned, []

    def watched(*arguments):
        maps.append(Path("/proc/self/maps").read_text())
        return publish_learned(*arguments)

    monkeypatch.setattr(mae, "publish_learned", watched)
    train_mae([easy_studies], tmp_path, dataclasses.replace(OPTIONS, epochs=1))

    assert len(maps) == 1
    assert str(tmp_path) not in maps[0]


def test_those_who_will_measure_are_not_learned_from(easy_studies, pretrained):
    card, _ = load_published(pretrained, MASKED_AUTOENCODER)
    parts = known_patients(card, list(open_labelled_folder(easy_studies).defects))

    assert len(parts) == 12
    assert list(parts.values()).count("test") == card.cohort.split["test"] > 0


def test_a_view_classifier_goes_on_from_it_and_keeps_its_patients_apart(easy_studies, pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "models")
    options = ViewOptions(
        epochs=2, batch_size=8, image_size=32, frames_per_cine=1, backbone=NAME, start="mae", device="cpu", seed=5
    )

    card = train_views(easy_studies, tmp_path / "models", options, vocabulary=TWO)

    before, _ = load_published(pretrained, MASKED_AUTOENCODER)
    everybody = list(open_labelled_folder(easy_studies).defects)
    assert known_patients(card, everybody) == known_patients(before, everybody)
    assert f"going on from masked_autoencoder {before.version}" in card.cohort.words
    assert card.network.is_standardised is True  # as the autoencoder was taught
    probed = card.metrics["linear probe accuracy"]
    assert (probed.patients, probed.split) == (card.cohort.split["test"], "test patients")
    assert 0 <= probed.low <= probed.value <= probed.high <= 1
    assert 0.3 < probed.baseline < 0.7  # a third of the stills shows the other view


def test_the_encoder_begins_as_the_autoencoders(pretrained):
    model = ViewClassifier(ViewConfig(5, backbone=NAME, input_size_px=32))
    options = ViewOptions(start="mae")

    load_start(model, "view_classifier", pretrained, options)

    _, state = load_published(pretrained, MASKED_AUTOENCODER)
    assert all(torch.equal(value, state[f"encoder.{key}"]) for key, value in model.backbone.state_dict().items())


def test_views_that_name_no_network_take_the_autoencoders_encoder_and_size(easy_studies, pretrained, tmp_path):
    options = ViewOptions(epochs=1, batch_size=8, frames_per_cine=1, start="mae", starter=pretrained, device="cpu")

    card = train_views(easy_studies, tmp_path, options, vocabulary=TWO)

    assert (card.network.backbone, card.input_size_px) == (NAME, 32)
    before, _ = load_published(pretrained, MASKED_AUTOENCODER)
    assert f"going on from masked_autoencoder {before.version}" in card.cohort.words


def test_a_resnet_cannot_begin_as_a_transformer(pretrained):
    with pytest.raises(ModelMismatchError, match="train with the --backbone vit_"):
        load_start(ViewClassifier(ViewConfig(5)), "view_classifier", pretrained, TrainOptions(start="mae"))


def test_where_no_autoencoder_is_published_the_command_that_makes_one_is_named(tmp_path):
    model = ViewClassifier(ViewConfig(5, backbone=NAME, input_size_px=32))

    with pytest.raises(ModelNotFoundError, match=r"is not published .* train mae --images DIR --models .*/mine$"):
        load_start(model, "view_classifier", tmp_path / "mine", TrainOptions(start="mae"))


def test_nobody_is_told_to_publish_into_the_starters(tmp_path):
    model = ViewClassifier(ViewConfig(5, backbone=NAME, input_size_px=32))
    options = TrainOptions(start="mae", starter=tmp_path / "starters")

    with pytest.raises(ModelNotFoundError, match=r"not published in .*/starters; .* train mae .* --models .*/mine$"):
        load_start(model, "view_classifier", tmp_path / "mine", options)


@pytest.mark.parametrize("is_wrapped", [True, False])
def test_a_published_checkpoint_is_a_beginning_whose_licence_is_said(tmp_path, caplog, is_wrapped):
    torch.manual_seed(1)
    theirs = MaskedAutoencoder(MaeConfig(NAME, 32, channels=3, decoder_width=32, decoder_depth=1, decoder_heads=2))
    state = {key.removeprefix("encoder."): value for key, value in theirs.state_dict().items()}
    torch.save({"model": state} if is_wrapped else state, tmp_path / "USF-MAE_fold0.pt")
    model = ViewClassifier(ViewConfig(5, backbone=NAME, input_size_px=32, is_standardised=True))

    with caplog.at_level(logging.WARNING):
        start = load_start(model, "view_classifier", tmp_path, TrainOptions(start=str(tmp_path / "USF-MAE_fold0.pt")))

    assert torch.equal(model.backbone.blocks[5].mlp.fc1.weight, state["blocks.5.mlp.fc1.weight"])
    assert start.licence == "CC BY-NC 4.0"
    assert "may be used commercially" in caplog.text
    assert not model.config.is_standardised  # it was taught otherwise


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    torch.save({"model": {"cls_token": os.system}}, tmp_path / "evil.pth")
    model = ViewClassifier(ViewConfig(5, backbone=NAME, input_size_px=32))

    with pytest.raises(ModelMismatchError, match=r"evil\.pth cannot be read"):
        load_start(model, "view_classifier", tmp_path, TrainOptions(start=str(tmp_path / "evil.pth")))


def test_the_licence_stays_with_what_goes_on_from_it(easy_studies, pretrained, tmp_path):
    card, state = load_published(pretrained, MASKED_AUTOENCODER)
    publish(tmp_path, state, type(card)(**{**vars(card), "licence": "CC BY-NC 4.0"}))

    assert train_mae([easy_studies], tmp_path, OPTIONS).licence == "CC BY-NC 4.0"


def test_any_folder_of_ultrasound_is_learned_from(easy_studies, shared_data, tmp_path, caplog):
    (tmp_path / "mixed").mkdir()
    shutil.copy(shared_data / "examples_ybr_color.dcm", tmp_path / "mixed")
    shutil.copy(next(easy_studies.glob("*.png")), tmp_path / "mixed" / "still.png")
    _write_video(tmp_path / "mixed" / "video.mp4")
    (tmp_path / "mixed" / "broken.dcm").write_bytes(b"DICM")

    cines = find_unlabelled([tmp_path / "mixed", easy_studies], 4, without=tmp_path / "models")

    counts = {cine.path.name: len(cine.frame_indices) for cine in cines if cine.path.parent.name == "mixed"}
    assert counts == {"examples_ybr_color.dcm": 4, "still.png": 1, "video.mp4": 4}
    assert sum(not cine.is_nameless for cine in cines) >= 36
    assert "broken.dcm is left out" in caplog.text


def _write_video(path):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for number in range(6):
            picture = np.full((96, 96, 3), 40 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    assert read_cine(path).frame_count == 6


def test_a_picture_that_names_nobody_is_a_patient_of_its_own_and_the_cards_say_so(easy_studies, tmp_path):
    (tmp_path / "raw").mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "raw" / f"{number}.png")

    card = train_mae([tmp_path / "raw"], tmp_path / "models", dataclasses.replace(OPTIONS, epochs=1))
    options = ViewOptions(epochs=2, batch_size=8, frames_per_cine=1, start="mae", temporal="image", device="cpu")
    heir = train_views(easy_studies, tmp_path / "models", options)

    assert card.cohort.files_without_patient == sum(card.cohort.split.values()) == 8
    assert len(known_patients(card, [f"{number}.png" for number in range(8)])) == 8
    assert card.limits.endswith(NAMELESS_LIMITS)
    assert heir.limits.endswith(NAMELESS_LIMITS)


def test_its_own_pictures_are_not_learned_from(easy_studies, tmp_path):
    shutil.copytree(easy_studies, tmp_path / "studies")
    own = tmp_path / "studies" / "models" / "reconstructions"
    own.mkdir(parents=True)
    shutil.copy(next(easy_studies.glob("*.png")), own / "epoch_0001.png")

    cines = find_unlabelled([tmp_path / "studies"], 1, without=tmp_path / "studies" / "models")

    assert len(cines) == 36


def test_a_folder_of_damaged_files_is_refused(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"nothing")

    with pytest.raises(TrainingDataError, match="can be read as ultrasound"):
        train_mae([tmp_path], tmp_path / "models", OPTIONS)


def test_a_picture_shows_what_was_seen_as_it_is():
    torch.manual_seed(0)
    config = MaeConfig(NAME, 32, decoder_width=32, decoder_depth=1, decoder_heads=2)
    frames, noise = torch.rand(3, 1, 32, 32), torch.rand(3, 16)

    panels = reconstruction_panels(MaskedAutoencoder(config), frames, noise)

    true, seen, drawn = (panels[:, :, start : start + 32] for start in (0, 36, 72))
    shown = seen != 128
    assert 0.2 < shown.mean() < 0.3
    assert (true[shown] == drawn[shown]).all() and (true[shown] == seen[shown]).all()
    assert (true[~shown] != drawn[~shown]).mean() > 0.9


def test_the_authors_decoder_comes_with_their_encoder():
    base = mae_config(MaeOptions(backbone="vit_base_patch16"))

    assert (base.decoder_width, base.decoder_depth, base.decoder_heads) == (512, 8, 16)
    assert mae_config(MaeOptions(mask_ratio=0.25, is_patch_normalised=True)).mask_ratio == 0.25


@pytest.mark.parametrize("wrong", [{"mask_ratio": 0.0}, {"pictures_every": 0}])
def test_impossible_tasks_are_refused(wrong):
    with pytest.raises(ValueError, match="is accepted"):
        MaeOptions(**wrong)


KILLED = """
import os, signal, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from echo_plugin.training import mae
from echo_plugin.training.options import MaeOptions
loss, calls = mae._loss, []
def deadly(*arguments):
    calls.append(1)
    if len(calls) == 4 + 2:  # four batches in an epoch: in the middle of the second
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(*arguments)
mae._loss = deadly
options = MaeOptions(epochs=2, batch_size=8, image_size=32, backbone="vit_micro_patch8", device="cpu", pictures_every=1)
mae.train_mae([Path(sys.argv[1])], Path(sys.argv[2]), options)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_training_goes_on_to_the_same_weights_without_reading_frames_again(easy_studies, pretrained, tmp_path):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(easy_studies), str(tmp_path)], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / FOLDER).glob("*.pixels.npy"))
    told, read = [], []

    train_mae(
        [easy_studies],
        tmp_path,
        dataclasses.replace(OPTIONS, pictures_every=1),
        on_epoch=told.append,
        progress=lambda *done: read.append(done),
    )

    assert [(status.epoch, status.is_resumed) for status in told] == [(1, True), (2, False)]
    assert not read
    (_, resumed), (_, whole) = (load_published(folder, MASKED_AUTOENCODER) for folder in (tmp_path, pretrained))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
