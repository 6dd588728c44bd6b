# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.model_card import ModelCard
from echo_plugin.models import checkpoint
from echo_plugin.models.checkpoint import load_card, load_published, load_state, load_weights, publish
from echo_plugin.network_config import EmbedderConfig

MakeCard = Callable[..., ModelCard]


@pytest.fixture
def card(make_card: MakeCard) -> ModelCard:
    return make_card(EmbedderConfig())


def state_of(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((64, 64), value), "steps": torch.tensor(int(value))}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.suffix != ".lock")


def test_what_is_published_is_read_back(tmp_path: Path, card: ModelCard) -> None:
    published = publish(tmp_path / "new", state_of(3.0), card)

    found, state = load_published(tmp_path / "new", "model")

    assert found == published
    assert dataclasses.replace(found, sha256="") == card
    assert torch.equal(state["weight"], state_of(3.0)["weight"])
    assert state["steps"] == 3
    assert names(tmp_path / "new") == ["model.json", "model.safetensors"]


def test_what_was_learned_from_patients_is_for_the_eyes_of_its_owner(tmp_path: Path, card: ModelCard) -> None:
    publish(tmp_path, state_of(1.0), card)

    assert [path.stat().st_mode & 0o077 for path in tmp_path.glob("model.*")] == [0, 0]


def test_a_publish_takes_away_nothing_that_others_are_writing_beside_it(tmp_path: Path, card: ModelCard) -> None:
    gallery, own = tmp_path / ".1f.tmp.defect_gallery.safetensors", tmp_path / f".2f.tmp.{card.name}.json"
    gallery.write_bytes(b"half")
    own.write_bytes(b"of a killed publish")

    publish(tmp_path, state_of(1.0), card)

    assert gallery.exists()
    assert not own.exists()


def test_half_precision_storage_is_read_as_single(tmp_path: Path, card: ModelCard) -> None:
    mean = torch.full((4,), 1 / 3)

    publish(tmp_path, {**state_of(1 / 3), "mean": mean}, card, storage_dtype=torch.float16)
    _, state = load_published(tmp_path, "model")

    assert state["weight"].dtype == torch.float32
    assert torch.equal(state["weight"], torch.full((64, 64), 1 / 3).half().float())
    assert torch.equal(state["mean"], mean)


def test_second_publish_leaves_only_the_new_pair(tmp_path: Path, card: ModelCard) -> None:
    publish(tmp_path, state_of(1.0), card)
    publish(tmp_path, state_of(2.0), dataclasses.replace(card, version="2"))

    found, state = load_published(tmp_path, "model")

    assert (found.version, state["steps"]) == ("2", 2)
    assert names(tmp_path) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("killed_at", [1, 2, 3, 4])
def test_publish_killed_at_any_step_leaves_a_readable_pair(
    tmp_path: Path, card: ModelCard, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    """Every step that changes the directory is a replace; the process dies before the one of this number."""
    publish(tmp_path, state_of(1.0), card)
    replace, steps = Path.replace, 0

    def replace_or_die(source: Path, target: Path) -> Path:
        nonlocal steps
        steps += 1
        if steps == killed_at:
            raise KeyboardInterrupt
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", replace_or_die)
    monkeypatch.setattr(Path, "unlink", lambda *_args, **_kwargs: None)  # the dead clean nothing up
    if killed_at <= 3:
        with pytest.raises(KeyboardInterrupt):
            publish(tmp_path, state_of(2.0), dataclasses.replace(card, version="2"))
    else:
        publish(tmp_path, state_of(2.0), dataclasses.replace(card, version="2"))
    monkeypatch.undo()

    found, state = load_published(tmp_path, "model")

    assert state["steps"] == int(found.version) == (1 if killed_at <= 2 else 2)
    publish(tmp_path, state_of(3.0), dataclasses.replace(card, version="3"))
    assert names(tmp_path) == ["model.json", "model.safetensors"]


def _publish_until(directory: Path, card: ModelCard, first: int, stop: "multiprocessing.synchronize.Event") -> None:
    version = first
    while not stop.is_set():
        publish(directory, state_of(float(version)), dataclasses.replace(card, version=str(version)))
        version += 2


@pytest.mark.heavy
def test_readers_never_pair_a_card_with_other_weights(tmp_path: Path, card: ModelCard) -> None:
    publish(tmp_path, state_of(1.0), dataclasses.replace(card, version="1"))
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    publishers = [context.Process(target=_publish_until, args=(tmp_path, card, first, stop)) for first in (2, 3)]
    for publisher in publishers:
        publisher.start()

    try:
        seen = []
        while len(seen) < 30 or len({found.version for found, _ in seen}) < 5:
            assert len(seen) < 20_000, "the publishers stand still"
            seen.append(load_published(tmp_path, "model"))
    finally:
        stop.set()
        for publisher in publishers:
            publisher.join(20)

    assert all(int(found.version) == state["steps"] for found, state in seen)
    assert load_published(tmp_path, "model")[1]["steps"] > 1


def test_threads_publish_one_after_the_other(tmp_path: Path, card: ModelCard) -> None:
    threads = [
        threading.Thread(target=publish, args=(tmp_path, state_of(float(v)), dataclasses.replace(card, version=str(v))))
        for v in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found, state = load_published(tmp_path, "model")
    assert int(found.version) == state["steps"]


def test_missing_model_names_what_is_there(tmp_path: Path, card: ModelCard) -> None:
    publish(tmp_path, state_of(1.0), card)

    with pytest.raises(ModelNotFoundError, match=r"Model other is not published in .*; found there: model"):
        load_card(tmp_path, "other")
    with pytest.raises(ModelNotFoundError, match="found there: nothing"):
        load_card(tmp_path / "absent", "other")


def test_damaged_weights_are_refused(tmp_path: Path, card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "READ_PAUSE_S", 0.0)
    publish(tmp_path, state_of(1.0), card)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")

    with pytest.raises(ModelMismatchError, match=r"Model model: weights have SHA-256 .* but the card says"):
        load_published(tmp_path, "model")


def test_card_without_weights_is_refused(tmp_path: Path, card: ModelCard) -> None:
    published = publish(tmp_path, state_of(1.0), card)
    (tmp_path / "model.safetensors").unlink()

    with pytest.raises(ModelNotFoundError, match=r"its weights model\.safetensors are not"):
        load_weights(tmp_path, published)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": "other"}, "its schema is 'other'"),
        ({"classes": []}, "must be distinct and at least one"),
        ({"surprise": 1}, "field surprise is unknown"),
    ],
)
def test_invalid_card_is_refused_with_the_reason(
    tmp_path: Path, card: ModelCard, change: dict[str, object], reason: str
) -> None:
    publish(tmp_path, state_of(1.0), card)
    path = tmp_path / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    with pytest.raises(ModelMismatchError, match=reason):
        load_card(tmp_path, "model")


def test_text_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{")

    with pytest.raises(ModelMismatchError, match=r"Model card model\.json in .* is not valid"):
        load_card(tmp_path, "model")


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"weight": torch.zeros(3, 2)}, "Model model lacks 'bias', which resnet18 has"),
        (
            {"weight": torch.zeros(3, 5), "bias": torch.zeros(3)},
            r"has 'weight' of shape \(3, 5\); resnet18 takes \(3, 2\)",
        ),
        (
            {"weight": torch.zeros(3, 2), "bias": torch.zeros(3), "extra": torch.zeros(1)},
            "Model model has 'extra', which resnet18 lacks",
        ),
    ],
)
def test_first_wrong_key_is_named(card: ModelCard, state: dict[str, torch.Tensor], reason: str) -> None:
    with pytest.raises(ModelMismatchError, match=reason):
        load_state(torch.nn.Linear(2, 3), state, card)
