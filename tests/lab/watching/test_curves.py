"""Numbers of a log as curves: what stands in which picture, and that a long log keeps its means and its extremes."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_env.lab.watching.curves import POINTS, Curves, Line


def line(curves: Curves, key: str, by: str = "update") -> Line:
    panels = curves.panels(("main", "parts", "agent", "rest"), by="tokens" if by == "tokens" else "update")
    (found,) = [line for panel in panels for line in panel.lines if line.key == key]
    return found


def test_a_short_log_is_drawn_as_it_is() -> None:
    curves = Curves()
    for update in range(5):
        curves.add({"update": update, "rollout/kl": update**2, "spent/generated_tokens": 100 * update})
    found = line(curves, "rollout/kl")
    assert found.x.tolist() == [0, 1, 2, 3, 4] and found.mean.tolist() == [0, 1, 4, 9, 16] and found.last == 16
    assert "low" not in found.as_json(), "nothing was averaged"
    assert line(curves, "rollout/kl", "tokens").x.tolist() == [0, 100, 200, 300, 400]


def test_a_long_log_keeps_its_means_and_its_extremes() -> None:
    curves, values = Curves(), np.random.default_rng(0).normal(size=100 * POINTS + 7)
    for update, value in enumerate(values):
        curves.add({"update": update, "rollout/reward": float(value)})
    found = line(curves, "rollout/reward")
    assert len(found.x) == POINTS
    assert found.low.min() == values.min() and found.high.max() == values.max()
    counts = np.diff(np.append(np.linspace(0, values.size, POINTS, endpoint=False).astype(int), values.size))
    assert (found.mean * counts).sum() == pytest.approx(values.sum())
    assert (np.diff(found.x) > 0).all()


def test_what_is_measured_twice_stands_in_one_picture() -> None:
    curves = Curves()
    row = {"rollout/kl": 1.0, "eval/kl": 2.0, "eval/kl_low": 0.5, "rollout/reward": 0.0, "eval/objective": 0.1}
    row |= {"rollout/part/a": 1.0, "rollout/part/a_std": 0.1, "eval/part/a": 1.0, "train/loss": 3.0, "time/x": 1.0}
    curves.add({"update": 1, **row, "histogram/reward": {"low": 0, "high": 1, "counts": [1]}, "rollout/null": None})
    named = {panel.title: panel for panel in curves.panels(("main", "parts", "agent", "rest"))}
    assert [it.key for it in named["KL to the reference"].lines] == ["rollout/kl", "eval/kl"]
    assert [it.name for it in named["Reward, all parts"].lines] == ["training", "evaluation"]
    assert [it.key for it in named["a"].lines] == ["rollout/part/a", "eval/part/a"]
    assert {panel.title: panel.section for panel in named.values() if panel.section != "main"} == {
        "a": "parts",
        "loss": "agent",
        "kl_low": "rest",
        "part/a_std": "rest",
        "time/x": "rest",
    }
    assert "sampled" in named["Reward, all parts"].meaning


def test_numbers_that_are_none_leave_a_gap() -> None:
    curves = Curves()
    for update, value in enumerate([1.0, None, float("nan"), 1e999, True, "x", 2]):
        curves.add({"update": update, "train/loss": value})
    found = line(curves, "train/loss")
    assert found.x.tolist() == [0, 1, 2, 3, 6]
    assert found.as_json()["y"] == [1, None, None, None, 2] and found.last == 2
    assert list(found.pieces()) == [slice(0, 1), slice(4, 5)] and not found.has_band


def test_a_long_log_breaks_where_it_has_no_number() -> None:
    curves = Curves()
    values = np.arange(10.0 * POINTS)
    values[500:600], values[1000] = np.nan, np.nan
    for update, value in enumerate(values.tolist()):
        curves.add({"update": update, "train/loss": value, "train/kl": None})
    found = line(curves, "train/loss")
    assert list(found.pieces()) == [slice(0, 50), slice(60, POINTS)], "a point has its mean of the numbers there are"
    assert (found.low[100], found.high[100]) == (1001, 1009) and found.mean[100] == np.mean(values[1001:1010])


def test_a_number_that_is_none_any_more_says_since_when() -> None:
    curves = Curves()
    for update, value in enumerate([1.0, None, 2.0, None, float("inf"), 1e301]):
        curves.add({"update": update, "train/loss": value, "train/kl": 1.0})
    lost, sound = line(curves, "train/loss"), line(curves, "train/kl")
    assert (lost.missing_since, lost.as_json()["missing_since"]) == (3, 3)
    assert lost.said == "no number since update 3"
    assert (sound.missing_since, sound.said, "missing_since" in sound.as_json()) == (None, "", False)
    curves.add({"update": 6, "train/loss": 0.5})
    assert line(curves, "train/loss").missing_since is None
