"""What a seed costs, and the ranks: they change outside of intervals only."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from rlhf_env.lab.board.costs import Cost, cost_of, is_cheaper, ranks, same_cost
from rlhf_env.lab.board.tracks import Track, load_track
from rlhf_env.lab.statistics import mean_of_seeds


@pytest.fixture
def track() -> Track:
    return load_track("least-tokens")


class TestRanks:
    def test_the_cost_is_that_of_the_first_evaluation_at_the_level(self, track: Track) -> None:
        rows = [
            {"update": i, "spent/generated_tokens": 10.0 * i, "eval/gold": gold} for i, gold in enumerate([0, 1, 3, 2])
        ]
        level = replace(track, level=2.0, limit=100)
        assert cost_of(level, rows) == Cost(True, 20.0, 3.0)
        assert cost_of(replace(level, level=4.0), rows) == Cost(False, 200.0, 3.0)
        assert cost_of(replace(level, limit=15), rows) == Cost(False, 30.0, 3.0)

    def test_equal_entries_share_a_rank_and_a_cheaper_one_is_before_them(self) -> None:
        stream = np.random.default_rng(0)
        base = np.exp(stream.normal(8.0, 0.1, (3, 10)))
        assert ranks({"a": base[0], "b": base[1], "c": base[2] / 2}) == {"a": 2, "b": 2, "c": 1}

    def test_costs_that_are_all_alike(self) -> None:
        assert ranks({"a": np.full(10, 2.0), "b": np.full(10, 1.0), "c": np.full(10, 2.0)}) == {"a": 2, "b": 1, "c": 2}
        assert ranks({"a": np.full(5, 2.0), "b": np.full(5, 1.0)}) == {"a": 1, "b": 1}

    def test_a_rank_changes_where_the_interval_of_the_ratio_begins_to_leave_out_1_and_nowhere_else(self) -> None:
        """A newcomer that is cheaper by a little passes nobody; it does when the interval says so."""
        stream = np.random.default_rng(3)
        old = np.exp(stream.normal(8.0, 0.3, 10))
        noise = stream.normal(0.0, 0.1, 10)
        seen = set()
        for gain in np.linspace(-0.2, 0.2, 41):
            new = old * np.exp(noise - gain)
            found = mean_of_seeds(np.log(new / old)[:, None], paired=True)
            place = ranks({"old": old, "new": new})
            if found.excludes_zero:
                assert place == ({"old": 2, "new": 1} if found.value < 0.0 else {"old": 1, "new": 2})
            else:
                assert place == {"old": 1, "new": 1}
            seen.add((place["old"], place["new"]))
        assert seen == {(1, 1), (1, 2), (2, 1)}

    def test_of_two_that_are_told_apart_the_cheaper_is_before_the_other(self) -> None:
        """Boards of seven entries of every spread: never one rank for both, and no place lost to nobody."""
        stream = np.random.default_rng(4)
        for _ in range(20):
            spreads = stream.uniform(0.01, 0.5, (7, 1))
            costs = np.exp(stream.normal(0.0, 0.2, (7, 1)) + spreads * stream.exponential(1.0, (7, 10)))
            board = {str(number): cost for number, cost in enumerate(costs)}
            place = ranks(board)
            cheaper = {(a, b) for a, b in permutations(board, 2) if is_cheaper(board[a], board[b], 21)}
            assert all(place[a] < place[b] for a, b in cheaper)
            for name in board:  # somebody is before it, outside of the interval
                assert (place[name] == 1) == (name not in {b for _, b in cheaper})

    def test_what_follows_from_two_intervals_counts(self) -> None:
        """`c` is dearer than `b`, and `b` than `a`; skewness alone hides that `c` is dearer than `a`."""
        a = np.ones(6)
        b = np.array([1.036, 1.058, 1.039, 1.063, 1.067, 1.089])
        c = np.array([1.071, 1.115, 1.074, 1.123, 1.109, 1.109])
        assert is_cheaper(a, b, 3) and is_cheaper(b, c, 3) and not is_cheaper(a, c, 3)
        assert ranks({"c": c, "b": b, "a": a}) == {"a": 1, "b": 2, "c": 3}

    @pytest.mark.parametrize("skewed", [False, True], ids=["normal logarithms", "skewed, some twice the limit"])
    def test_of_equal_entries_few_boards_tell_any_two_apart(self, skewed: bool) -> None:
        """Five entries; on at most 7 % of 200 boards."""
        stream, apart = np.random.default_rng(1), 0
        for _ in range(200):
            costs = np.exp(stream.normal(0.0, 0.3, (5, 10)))
            if skewed:
                costs = 1.0 + stream.exponential(1.0, (5, 10))
                costs[costs > 3.0] = 6.0
            apart += len(set(ranks({str(number): cost for number, cost in enumerate(costs)}).values())) > 1
        assert apart <= 14

    def test_the_same_cost(self) -> None:
        stream = np.random.default_rng(2)
        claimed = np.exp(stream.normal(8.0, 0.3, 10))
        assert same_cost(claimed, claimed)
        assert same_cost(claimed, claimed * np.exp(stream.normal(0.0, 0.1, 10)))
        assert not same_cost(claimed, claimed * 1.5)
        assert not same_cost(claimed, claimed * np.exp(stream.normal(0.5, 0.1, 10)))
