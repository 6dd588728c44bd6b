# SPDX-License-Identifier: Apache-2.0
"""The figures that the benchmark of the loop writes, on curves whose answers are known by hand."""

from types import ModuleType

import numpy as np
import pytest

from tests.script import load_script


@pytest.fixture(scope="module")
def loop() -> ModuleType:
    return load_script("tests/benchmarks/active_learning_loop.py")


def curve_of(strategy: str, seed: int, *points: tuple[float, float], wall_s: float = 1.0) -> dict:
    curve = [{"frames": frames, "cines": frames, "ap50": ap50} for frames, ap50 in points]
    return {"strategy": strategy, "seed": seed, "curve": curve, "wall_s": wall_s}


RESULTS = [
    curve_of("all", 0, (0, 0.2), (100, 0.9)),
    curve_of("all", 1, (0, 0.2), (140, 0.7)),
    curve_of("random", 1, (0, 0.2), (10, 0.3), (30, 0.5)),
    curve_of("random", 0, (0, 0.2), (10, 0.2), (30, 0.4)),
    curve_of("clever", 0, (0, 0.2), (10, 0.4), (30, 0.8), wall_s=2.0),
    curve_of("clever", 1, (0, 0.2), (20, 0.8), (40, 0.6), wall_s=4.0),
]


def test_what_all_labels_give_is_the_mean_over_its_seeds_and_no_strategy(loop):
    about = loop.summarise(RESULTS)

    assert (about["full_ap50"], about["full_frames"]) == pytest.approx((0.8, 120))
    assert set(about["strategies"]) == {"random", "clever"}


def test_a_curve_is_the_mean_over_seeds_with_its_spread(loop):
    clever = loop.summarise(RESULTS)["strategies"]["clever"]

    assert (clever["seeds"], clever["wall_s"]) == (2, 3.0)
    assert clever["frames"] == pytest.approx([0, 15, 35])
    assert clever["ap50"] == pytest.approx([0.2, 0.6, 0.7])
    assert clever["sd"] == pytest.approx([0, np.sqrt(0.08), np.sqrt(0.02)])  # of two: distance over the root of 2


def test_the_area_is_the_mean_height_of_a_seeds_own_curve(loop):
    clever = loop.summarise(RESULTS)["strategies"]["clever"]

    first, second = (10 * 0.3 + 20 * 0.6) / 30, (20 * 0.5 + 20 * 0.7) / 40
    assert clever["area"] == pytest.approx((first + second) / 2)
    assert clever["area_sd"] == pytest.approx(abs(first - second) / np.sqrt(2))


def test_the_labels_for_95_percent_are_those_of_the_first_point_that_high_or_none(loop):
    strategies = loop.summarise(RESULTS)["strategies"]

    assert strategies["clever"]["frames_for_95"] == [30, 20]  # 0.76; that it falls again later does not matter
    assert strategies["random"]["frames_for_95"] == [None, None]


def test_a_strategy_is_held_against_random_of_the_same_seed(loop):
    strategies = loop.summarise(RESULTS)["strategies"]

    differences = [[0, 0.2, 0.4], [0, 0.5, 0.1]]  # of seed 0 and seed 1, though random has them the other way round
    assert loop.paired_with_random(RESULTS, RESULTS[4:]) == pytest.approx(np.array(differences))
    assert strategies["clever"]["above_random"] == pytest.approx([0, 0.35, 0.25])
    assert strategies["clever"]["above_random_error"] == pytest.approx([0, 0.15, 0.15])
    assert strategies["random"]["above_random"] == [0, 0, 0]


def test_a_seed_that_random_has_not_had_is_left_out_of_the_comparison_only(loop):
    results = [*RESULTS, curve_of("clever", 2, (0, 0.2), (10, 0.2), (30, 0.2))]
    clever = loop.summarise(results)["strategies"]["clever"]

    assert clever["seeds"] == 3
    assert clever["above_random"] == pytest.approx([0, 0.35, 0.25])


def test_one_seed_has_no_spread_and_without_random_nothing_is_compared(loop):
    alone = loop.summarise([RESULTS[0], RESULTS[4]])["strategies"]["clever"]

    assert (alone["sd"], alone["area_sd"]) == ([0, 0, 0], 0)
    assert "above_random" not in alone
    one_pair = loop.summarise([RESULTS[0], RESULTS[3], RESULTS[4]])["strategies"]["clever"]
    assert one_pair["above_random"] == pytest.approx([0, 0.2, 0.4])
    assert "above_random_error" not in one_pair


def test_the_table_names_a_share_of_the_labels_only_where_every_seed_got_there(loop):
    table = loop.as_table(loop.summarise(RESULTS), 40).splitlines()

    rows = {line.split("|")[1].strip(): line for line in table if line.startswith("| ")}
    assert "| 25 (2 of 2 seeds) | 21% |" in rows["clever"]
    assert "| not reached | – |" in rows["random"]
    partly = [*RESULTS, curve_of("clever", 2, (0, 0.2), (10, 0.2), (30, 0.2))]
    assert "| 25 (2 of 3 seeds) | – |" in loop.as_table(loop.summarise(partly), 40)
