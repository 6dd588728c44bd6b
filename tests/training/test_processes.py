# SPDX-License-Identifier: Apache-2.0
"""Two processes as torchrun starts them, on the CPU over gloo."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from echo_plugin.model_card import ModelCard, load_card
from echo_plugin.training.loop import Learned
from echo_plugin.training.processes import (
    all_gather,
    broadcast,
    first_process_first,
    is_first,
    joined_processes,
    own_share,
)
from echo_plugin.training.provenance import publish_learned

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")

SMALL = """
import json, sys, torch
from pathlib import Path
from torch import nn
from echo_plugin.training.loop import run_epochs
from echo_plugin.training.processes import broadcast, first_process_first, all_gather, joined_processes, process_index
from echo_plugin.training.loop import Recipe

torch.set_num_threads(1)
out, resumes = Path(sys.argv[1]), len(sys.argv) > 2
inputs = torch.randn(22, 4, generator=torch.Generator().manual_seed(0))
seen, weights, calls = [], [], []
with joined_processes("cpu"):
    rank = process_index()
    torch.manual_seed(rank)  # even from different beginnings
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))

    def loss(model, items, generator):
        seen.append(items.tolist())
        weights.append([p.detach().flatten().tolist() for p in model.parameters()])
        noise = torch.rand(len(items), 4, generator=generator)
        calls.append(noise.sum().item())
        return (model(inputs[items] + 0.1 * noise)[:, 0] - inputs[items].sum(1)).square().mean()

    def validate(model):
        assert rank == 0
        return -float((model(inputs)[:, 0] - inputs.sum(1)).square().mean())

    told = []
    learned = run_epochs(
        model, Recipe(epochs=3, learning_rate=0.02, max_minutes=5),
        batches=lambda g: list(torch.randperm(22, generator=g).split(5)),
        loss=loss, validate=validate, seed=1, on_epoch=told.append, state_path=out / "state.pt",
    )
    with first_process_first():
        (out / f"order{len(list(out.glob('order*')))}").write_text(str(rank))
    answer = {
        "broadcast": broadcast(rank), "all_gather": all_gather(rank), "seen": seen, "weights": weights, "noise": calls,
        "told": len(told), "learned": {k: v.flatten().tolist() for k, v in learned.state.items()},
        "best": learned.best_metric,
    }
    (out / f"rank{rank}.json").write_text(json.dumps(answer))
"""


def _torchrun(*arguments, **environment):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=500,
    )


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What two processes of one small training saw and learned, and the folder that they wrote to."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "small.py").write_text(SMALL)
    done = _torchrun(str(folder / "small.py"), str(folder))
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)], folder


@pytest.mark.heavy
def test_both_processes_have_the_same_weights_before_every_batch_and_at_the_end(two_ranks):
    (first, second), _ = two_ranks

    assert first["weights"] == second["weights"]
    assert first["weights"][0] != first["weights"][-1]
    assert first["learned"] == second["learned"]
    assert first["best"] == second["best"]


def test_the_processes_learn_from_different_items_and_together_from_every_batch(two_ranks):
    (first, second), _ = two_ranks

    assert len(first["seen"]) == len(second["seen"]) == 3 * 4  # of the batches of 5, 5, 5, 5, 2 the last is too small
    for mine, yours in zip(first["seen"], second["seen"], strict=True):
        assert not set(mine) & set(yours)
        assert len(mine) == len(yours) == 2


def test_the_processes_draw_different_augmentations(two_ranks):
    (first, second), _ = two_ranks

    assert not set(first["noise"]) & set(second["noise"])


def test_only_the_first_process_measures_and_reports(two_ranks):
    (first, second), _ = two_ranks

    assert (first["told"], second["told"]) == (3, 0)
    assert (first["broadcast"], second["broadcast"]) == (0, 0)
    assert first["all_gather"] == second["all_gather"] == [0, 1]


def test_the_first_process_goes_ahead(two_ranks):
    _, folder = two_ranks

    assert [(folder / name).read_text() for name in ("order0", "order1")] == ["0", "1"]


@given(st.integers(0, 40), st.integers(1, 6))
def test_shares_of_a_batch_are_disjoint_and_of_one_size(length, count):
    shares = [own_share(torch.arange(length), index, count).tolist() for index in range(count)]

    together = [item for share in shares for item in share]
    assert len({len(share) for share in shares}) == 1
    assert sorted(together) == list(range(len(together)))
    assert len(together) == (length if count == 1 else length // count * count if length >= 2 * count else 0)


def test_a_training_alone_is_the_first_and_asks_nobody():
    with joined_processes("cpu"), first_process_first():
        assert is_first()
        assert broadcast("word") == "word"
        assert all_gather(3) == [3]
        assert not torch.distributed.is_initialized()


def test_a_process_that_is_not_the_first_publishes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("echo_plugin.training.provenance.is_first", lambda: False)

    publish_learned(tmp_path, Learned({"weight": torch.zeros(1)}, 0.0, 1, 1.0), ModelCard.__new__(ModelCard))

    assert list(tmp_path.iterdir()) == []


@pytest.mark.heavy
def test_torchrun_trains_and_publishes_one_detector(easy_studies, tmp_path):
    done = _torchrun(
        "-m", "echo_plugin", "train", "detector", "--studies", str(easy_studies), "--models", str(tmp_path),
        "--epochs", "2", "--backbone", "mobilenet_v3_large", "--from", "scratch", "--device", "cpu",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Published septal_detector ") == 1
    assert load_card(tmp_path, "septal_detector").training.epochs == 2
