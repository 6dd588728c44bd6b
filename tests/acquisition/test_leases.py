# SPDX-License-Identifier: Apache-2.0
"""A cine is with one annotator at a time, also after a restart."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from echo_plugin.acquisition.score_store import Leases


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(tmp_path, clock) -> Leases:
    return Leases(tmp_path / "leases.sqlite", duration_s=60, clock=clock)


def test_a_leased_cine_is_handed_out_again_only_when_the_lease_has_ended(leases, clock):
    assert leases.take("a", "r1")
    assert not leases.take("a", "r2")
    assert not leases.take("a", "r1")  # viewers of one site have one name

    clock.now += 60

    assert not leases.is_running(leases.latest()["a"])
    assert leases.take("a", "r2")
    assert leases.latest()["a"].holder == "r2"


def test_a_restart_keeps_leases(tmp_path, leases, clock):
    leases.take("a", "r1")

    again = Leases(tmp_path / "leases.sqlite", duration_s=60, clock=clock)

    assert not again.take("a", "r2")
    assert again.is_running(again.latest()["a"])


def test_a_cine_is_shown_again_to_its_holder_only(leases, clock):
    leases.take("a", "r1")
    clock.now += 40

    assert not leases.renew("a", "r2")
    assert leases.renew("a", "r1")
    assert leases.latest()["a"].expires_at == clock.now + 60


def test_a_lease_that_was_ended_leaves_the_cine_to_others_and_is_remembered(leases, clock):
    leases.take("a", "r1")
    assert leases.minutes_left(leases.latest()["a"]) == 1

    leases.end("a")
    leases.end("never shown")

    assert not leases.is_running(leases.latest()["a"])
    assert leases.latest()["a"].leased_at == clock.now
    assert leases.take("a", "r2")


def test_what_was_shown_to_nobody_named_is_shown_to_nobody_else(leases):
    assert leases.take("a", None)

    assert not leases.take("a", None)
    assert not leases.take("a", "r1")


def test_of_many_who_ask_at_once_each_gets_another_cine(tmp_path):
    barrier = threading.Barrier(8)

    def ask(reader: int) -> list[int]:
        mine = Leases(tmp_path / "leases.sqlite")
        barrier.wait(30)
        return [number for number in range(20) if mine.take(str(number), f"r{reader}")]

    with ThreadPoolExecutor(8) as pool:
        handed = [number for numbers in pool.map(ask, range(8)) for number in numbers]

    assert sorted(handed) == list(range(20))


@pytest.mark.skipif(os.name != "posix", reason="file modes of POSIX")
def test_the_file_is_private(leases, tmp_path):
    assert (tmp_path / "leases.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_damaged_file_is_begun_anew(tmp_path):
    (tmp_path / "leases.sqlite").write_bytes(b"no database" * 100)

    assert Leases(tmp_path / "leases.sqlite").take("a", "r1")
