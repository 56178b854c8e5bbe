"""The table of docs/scale.md is what benchmarks/scale_model.py simulates; its parts are what can be counted by hand."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="a source distribution has no benchmarks")
sys.path.insert(0, str(BENCHMARKS))


def test_the_page_has_what_is_simulated() -> None:
    from scale_model import UPDATES, Assumptions, simulate

    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8").partition("## What more GPUs would bring")[2]
    rows = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|", page, re.MULTILINE)
    numbers = [(int(a.replace(",", "")), int(b.replace(",", "")), float(c), float(d)) for a, b, c, d in rows]
    assert len(numbers) == 8
    for block in (numbers[:4], numbers[4:]):
        alone = None
        for count, texts, seconds, speed_up in block[:3]:  # the largest take a second each
            found = simulate(count, texts, Assumptions())
            speed = found.tokens / found.wall
            alone = alone or speed
            assert (round(found.wall / UPDATES, 2), round(speed / alone, 1)) == (seconds, speed_up)


def test_a_queue_is_first_come_first_served() -> None:
    from scale_model import Assumptions, scored

    of = replace(Assumptions(), reward_seconds=2.0, reward_servers=2)
    assert scored([0.0, 0.0, 0.0], of) == 4.0  # two at once, then the third
    assert scored([0.0, 1.0, 5.0], of) == 7.0
    assert scored([3.0, 1.0], replace(of, reward_seconds=0.0)) == 3.0


def test_texts_end_step_by_step() -> None:
    from scale_model import Assumptions, ends_of

    of = replace(Assumptions(), step_overhead=1.0, parameters=0.0, cache_bytes=0.0)
    assert ends_of(np.array([3, 1, 2]), of).tolist() == [3.0, 1.0, 2.0]
    of = replace(of, cache_bytes=1.0, memory_bandwidth=1.0, prompt=0)  # a step reads what is cached of all that go on
    assert ends_of(np.array([2, 1]), of).tolist() == [1.0 + 2 * 1 + 1.0 + 1 * 2, 1.0 + 2 * 1]


def test_a_ring_moves_two_shares_of_all_but_one() -> None:
    from scale_model import Assumptions, ring

    of = replace(Assumptions(), near=10.0, far=1.0, latency_near=0.0, latency_far=0.0, node=4)
    assert ring(1, 100.0, of) == 0.0
    assert ring(4, 100.0, of) == pytest.approx(2 * 3 * 25.0 / 10.0)
    assert ring(8, 100.0, of) == pytest.approx(2 * 3 * 25.0 / 10.0 + 2 * 1 * (25.0 / 2) / 1.0)


def test_shares_are_of_the_time_of_all_processes() -> None:
    from scale_model import Assumptions, update

    found = update(8, 64, Assumptions(), np.random.default_rng(0))
    parts = (
        found.writing,
        found.waiting_for_texts,
        found.waiting_for_rewards,
        found.alone,
        found.network,
        found.learning,
        found.waiting_for_learners,
    )
    assert sum(parts) == pytest.approx(8 * found.wall, rel=1e-12)
