# SPDX-License-Identifier: Apache-2.0
"""The epoch loop on a network so small that a training takes a moment."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from echo_plugin.models.checkpoint import load_published
from echo_plugin.training import detector as detector_module
from echo_plugin.training import loop as loop_module
from echo_plugin.training.detector import train_detector
from echo_plugin.training.loop import FOLDER, Recipe, lower_precision, run_epochs
from echo_plugin.training.options import DetectorOptions

torch.set_num_threads(1)
ITEMS = torch.arange(24)
INPUTS = torch.randn(24, 6, generator=torch.Generator().manual_seed(3))
TRUTH = INPUTS @ torch.arange(6.0)
RECIPE = Recipe(epochs=5, learning_rate=0.05, optimiser="adam")


class Stopped(Exception):
    """Ends a training where a test wants it to end."""


def _network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))


def _loss(model, items, generator):
    noise = torch.randn(len(items), 6, generator=generator) * 0.01
    return (model(INPUTS[items] + noise)[:, 0] - TRUTH[items]).square().mean()


def _worth(model):
    return -float((model(INPUTS)[:, 0] - TRUTH).square().mean())


def _train(model, recipe=RECIPE, *, loss=_loss, validate=_worth, **others):
    return run_epochs(
        model,
        recipe,
        batches=lambda g: list(ITEMS[torch.randperm(24, generator=g)].split(6)),
        loss=loss,
        validate=validate,
        seed=1,
        **others,
    )


def _dies_in_batch(number):
    calls = 0

    def loss(model, items, generator):
        nonlocal calls
        calls += 1
        if calls == number:
            raise Stopped
        return _loss(model, items, generator)

    return loss


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
def test_a_training_that_goes_on_ends_where_an_uninterrupted_one_does(tmp_path, optimiser):
    recipe = Recipe(epochs=5, learning_rate=0.01, optimiser=optimiser)
    whole, told = _train(_network(), recipe), []
    with pytest.raises(Stopped):
        _train(_network(), recipe, loss=_dies_in_batch(14), state_path=tmp_path / "state.pt")

    resumed = _train(_network(), recipe, state_path=tmp_path / "state.pt", on_epoch=told.append)

    assert [(status.epoch, status.is_resumed) for status in told] == [(3, True), (4, False), (5, False)]
    assert resumed.best_metric == whole.best_metric
    assert all(torch.equal(resumed.state[key], whole.state[key]) for key in whole.state)


def test_a_finished_training_that_was_not_published_is_not_repeated(tmp_path):
    first = _train(_network(), state_path=tmp_path / "state.pt")

    again = _train(_network(), loss=_dies_in_batch(1), state_path=tmp_path / "state.pt")

    assert all(torch.equal(again.state[key], first.state[key]) for key in first.state)


@pytest.mark.parametrize(
    ("recipe", "key"), [(Recipe(epochs=6, learning_rate=0.05, optimiser="adam"), "data"), (RECIPE, "other data")]
)
def test_a_training_of_other_options_or_data_begins_anew_and_says_so(tmp_path, caplog, recipe, key):
    with pytest.raises(Stopped):
        _train(_network(), loss=_dies_in_batch(14), state_path=tmp_path / "state.pt", state_key="data")
    told = []

    _train(_network(), recipe, state_path=tmp_path / "state.pt", state_key=key, on_epoch=told.append)

    assert told[0].epoch == 1
    assert "of other data or options; training begins anew" in caplog.text


def test_a_damaged_state_is_said_and_not_used(tmp_path, caplog):
    (tmp_path / "state.pt").write_bytes(b"not a state")
    told = []

    _train(_network(), state_path=tmp_path / "state.pt", on_epoch=told.append)

    assert [status.epoch for status in told] == [1, 2, 3, 4, 5]
    assert "cannot be read, so training begins anew" in caplog.text


@pytest.mark.skipif(os.name == "nt", reason="Windows has no file modes")
def test_the_state_is_its_users_alone(tmp_path):
    _train(_network(), state_path=tmp_path / "deep" / "state.pt")

    assert (tmp_path / "deep" / "state.pt").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["state.pt"]


def test_a_training_without_progress_ends_early_with_its_best_epoch(tmp_path):
    worths = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.1])
    told = []

    learned = _train(
        _network(),
        Recipe(epochs=50, learning_rate=0.05, patience=3),
        validate=lambda _: next(worths),
        on_epoch=told.append,
    )

    assert [status.metric for status in told] == [0.1, 0.5, 0.4, 0.3, 0.2]
    assert (learned.best_metric, learned.epochs) == (0.5, 5)
    assert told[-1].eta_s == 0


def test_what_is_kept_is_the_best_epoch_and_not_the_last():
    seen = []

    def worth(model):
        seen.append({key: value.clone() for key, value in model.state_dict().items()})
        return float(len(seen) == 2)

    learned = _train(_network(), validate=worth)

    assert torch.equal(learned.state["3.bias"], seen[1]["3.bias"])
    assert not torch.equal(seen[1]["3.bias"], seen[-1]["3.bias"])


def test_a_loss_that_is_no_number_ends_the_training_naming_its_epoch():
    with pytest.raises(ValueError, match="Training loss is nan in epoch 1; lower the learning rate"):
        _train(_network(), loss=lambda m, items, g: _loss(m, items, g) * math.nan)


def test_a_measure_that_is_never_a_number_is_an_error():
    with pytest.raises(ValueError, match="Validation never gave a number in 5 epochs"):
        _train(_network(), validate=lambda _: math.nan)


def test_with_nobody_to_measure_the_last_epoch_is_what_is_kept(tmp_path):
    told = []
    network = _network()

    learned = _train(
        network, replace(RECIPE, patience=1), validate=None, on_epoch=told.append, state_path=tmp_path / "state.pt"
    )

    kept = torch.load(tmp_path / "state.pt", weights_only=True)
    assert math.isnan(learned.best_metric)
    assert learned.epochs == RECIPE.epochs == len(told)  # nothing tells it to end early
    assert {status.metric for status in told} == {None}
    assert all(torch.equal(kept["average"][key].half(), learned.state[key].half()) for key in learned.state)


def test_curves_of_a_training_that_went_on_are_one_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = tmp_path / "logs"
    with pytest.raises(Stopped):
        _train(_network(), loss=_dies_in_batch(14), state_path=tmp_path / "state.pt", log_dir=logs)
    _train(_network(), state_path=tmp_path / "state.pt", log_dir=logs)

    (run,) = logs.iterdir()
    events = EventAccumulator(str(run)).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "validation measure", "learning rate", "seconds per epoch"}
    assert [point.step for point in events.Scalars("validation measure")] == [1, 2, 3, 4, 5]
    assert events.Scalars("loss")[-1].value < events.Scalars("loss")[0].value


def test_a_cpu_made_for_it_learns_in_bfloat16(monkeypatch):
    monkeypatch.setattr(loop_module, "choose_dtype", lambda _: torch.bfloat16)
    types = set()

    def loss(model, items, generator):
        with lower_precision(torch.device("cpu")):
            answer = model(INPUTS[items])[:, 0]
        types.add(answer.dtype)
        return (answer.float() - TRUTH[items]).square().mean()

    told = []
    _train(_network(), loss=loss, on_epoch=told.append)

    assert types == {torch.bfloat16}
    assert told[-1].train_loss < told[0].train_loss


def test_a_cpu_without_the_instructions_learns_in_single_precision(monkeypatch):
    monkeypatch.setattr(loop_module, "choose_dtype", lambda _: torch.float32)

    with lower_precision(torch.device("cpu")):
        assert _network()(INPUTS).dtype is torch.float32


KILLED = """
import os, signal, sys, torch
from pathlib import Path
torch.set_num_threads(1)
import echo_plugin.training.detector as detector
from echo_plugin.training.options import DetectorOptions
loss, calls = detector.detection_loss, []
def deadly(*arguments):
    calls.append(1)
    if len(calls) == 3 + 2:  # three batches in an epoch: in the middle of the second
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(*arguments)
detector.detection_loss = deadly
options = DetectorOptions(epochs=3, batch_size=8, image_size=64, device="cpu", backbone="mobilenet_v3_large")
detector.train_detector(Path(sys.argv[1]), Path(sys.argv[2]), options)
"""


@pytest.mark.heavy
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_training_killed_in_its_second_epoch_goes_on_from_the_first(easy_studies, tmp_path):
    options = DetectorOptions(epochs=3, batch_size=8, image_size=64, device="cpu", backbone="mobilenet_v3_large")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(easy_studies), str(tmp_path / "killed")], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    told = []

    train_detector(easy_studies, tmp_path / "killed", options, on_epoch=told.append)
    train_detector(easy_studies, tmp_path / "whole", options)

    assert [(status.epoch, status.is_resumed) for status in told] == [(1, True), (2, False), (3, False)]
    (_, resumed), (_, whole) = (load_published(tmp_path / name, "septal_detector") for name in ("killed", "whole"))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    assert [left.suffix for left in (tmp_path / "killed" / FOLDER).iterdir()] == [".lock"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device on this machine")
def test_a_gpu_learns_in_bfloat16_and_goes_on_after_an_interruption(easy_studies, tmp_path, monkeypatch):
    options = DetectorOptions(epochs=3, batch_size=8, image_size=64, device="cuda", backbone="mobilenet_v3_large")
    loss, types, told = detector_module.detection_loss, [], []

    def deadly(model, *others):
        if len(types) == 5:
            raise Stopped
        with lower_precision(torch.device("cuda")):
            types.append(model.backbone(torch.zeros(2, 1, 64, 64, device="cuda"))["0"].dtype)
        return loss(model, *others)

    monkeypatch.setattr(detector_module, "detection_loss", deadly)
    with pytest.raises(Stopped):
        train_detector(easy_studies, tmp_path, options)
    monkeypatch.undo()
    train_detector(easy_studies, tmp_path, options, on_epoch=told.append)

    assert set(types) == {torch.bfloat16}
    assert [(status.epoch, status.is_resumed) for status in told] == [(1, True), (2, False), (3, False)]


def test_the_command_says_that_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    from echo_plugin.cli.train import _shown_on
    from echo_plugin.training.options import EpochStatus

    moved = []
    on_epoch = _shown_on(lambda *arguments: moved.append(arguments))

    on_epoch(EpochStatus(2, 9, 60.0, 0.5, 0.4, 0.4, is_resumed=True))
    on_epoch(EpochStatus(3, 9, 60.0, 0.5, 0.5, 0.5))

    assert capsys.readouterr().err == "Going on with the interrupted training after epoch 2 of 9.\n"
    assert moved == [(2, 9, "best 0.400"), (3, 9, "best 0.500")]


def test_a_training_interrupted_anywhere_leaves_no_torn_state(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    with pytest.raises(Stopped):
        _train(_network(), loss=_dies_in_batch(6), state_path=path)
    before = path.read_bytes()

    def torn(content, file):
        file.write_bytes(b"half")
        raise Stopped

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(Stopped):
        _train(_network(), state_path=path)

    assert path.read_bytes() == before


def test_files_beside_the_models_are_no_models(tmp_path: Path) -> None:
    from echo_plugin.cli.main import describe_installation

    _train(_network(), state_path=tmp_path / FOLDER / "septal_detector.pt")

    assert describe_installation(tmp_path)["models"] == []
