"""Win rates and Bradley-Terry ratings, against closed forms and the equations that a maximum solves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rlhf_env.cli import app
from rlhf_env.feedback.judgements import Author, Comparison, Response, Verdict
from rlhf_env.feedback.preferences import PreferenceStore
from rlhf_env.feedback.tournament import ELO, Contender, strengths, tournament
from rlhf_env.types import Prompt

ANN, BOB, CID = (Author("policy", name, 1.0) for name in ("ann", "bob", "cid"))


def judged(number: int, first: Author, second: Author, verdict: Verdict, annotator: str = "z") -> Comparison:
    responses = Response("a", first), Response("b", second)
    return Comparison(Prompt(f"p{number}", f"q{number}"), *responses, verdict, annotator)


def run(comparisons: Sequence[Comparison], resamples: int = 20) -> list[Contender]:
    return tournament(comparisons, np.random.default_rng(0), resamples=resamples)


def test_two_authors_in_closed_form() -> None:
    """6 wins, 2 losses, 2 ties, in either order: 7 of 10, and log odds of (7 + 1/2) to (3 + 1/2)."""
    verdicts: list[Verdict] = ["first"] * 3 + ["second"] + ["tie"]
    there = [judged(i, ANN, BOB, verdict) for i, verdict in enumerate(verdicts)]
    swapped: dict[Verdict, Verdict] = {"first": "second", "second": "first", "tie": "tie"}
    back = [judged(i + 5, BOB, ANN, swapped[verdict]) for i, verdict in enumerate(verdicts)]
    nothing = [judged(50, ANN, BOB, "cannot say"), judged(51, ANN, ANN, "first")]
    ann, bob = run([*there, *back, *nothing])
    assert (ann.author, bob.author, ann.comparisons, bob.comparisons) == (ANN, BOB, 10, 10)
    assert ann.win_rate.value == pytest.approx(0.7, abs=1e-12)
    assert bob.win_rate.value == pytest.approx(0.3, abs=1e-12)
    apart = 400 * math.log10(7.5 / 3.5)
    assert ann.rating.value == pytest.approx(apart / 2, abs=1e-9)
    assert bob.rating.value == pytest.approx(-apart / 2, abs=1e-9)


def test_strengths_expect_the_wins_that_were_seen() -> None:
    """At the maximum everybody's expected wins are their wins (Hunter 2004, equation 3), halves included."""
    wins = np.random.default_rng(1).integers(0, 30, size=(5, 5)).astype(np.float64)
    wins[0] = [0, 900, 40, 0, 1]
    wins[:, 0] = 0  # never lost; and never met the fourth
    wins[3, 3] = wins[1, 1] = wins[2, 2] = wins[4, 4] = 0
    found = strengths(wins)
    for i in range(5):
        met = [j for j in range(5) if wins[i, j] + wins[j, i] > 0]
        expected = sum((wins[i, j] + wins[j, i] + 1) / (1 + math.exp(found[j] - found[i])) for j in met)
        assert expected == pytest.approx(wins[i].sum() + len(met) / 2, rel=1e-10)
    assert found.sum() == pytest.approx(0, abs=1e-12)
    assert np.argmax(found) == 0 and np.isfinite(found).all()


def test_who_never_met_has_no_common_rating() -> None:
    dan = Author("human", "dan")
    found = run([judged(0, ANN, BOB, "first"), judged(1, CID, dan, "first")])
    assert all(math.isnan(contender.rating.value) for contender in found)
    assert [contender.win_rate.value for contender in found] == [1, 1, 0, 0]
    assert run([]) == []


def test_intervals_hold_the_truth_and_know_that_judgements_of_a_prompt_repeat_each_other() -> None:
    """The same five judgements on each prompt are no more evidence than one: intervals by judgement would halve."""
    rng = np.random.default_rng(2)
    strength = {ANN: 0.8, BOB: 0.0, CID: -0.8}
    made = []
    for i in range(300):
        one, other = rng.permutation(3)[:2]
        pair = [ANN, BOB, CID][one], [ANN, BOB, CID][other]
        wins = rng.random() < 1 / (1 + math.exp(strength[pair[1]] - strength[pair[0]]))
        made.append((i, *pair, "first" if wins else "second"))
    once = run([judged(*it) for it in made], resamples=200)
    assert [contender.author for contender in once] == [ANN, BOB, CID]
    for contender in once:
        assert contender.rating.low < ELO * strength[contender.author] < contender.rating.high
        assert contender.rating.low < contender.rating.value < contender.rating.high
    five = run([judged(*it, annotator=f"z{z}") for it in made for z in range(5)], resamples=200)
    for alone, repeated in zip(once, five, strict=True):
        widths = [found.win_rate.high - found.win_rate.low for found in (alone, repeated)]
        assert 0.8 < widths[1] / widths[0] < 1.25


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "prefs.sqlite"
    with PreferenceStore(path) as store:
        store.add([judged(i, ANN, BOB, "first" if i % 4 else "second") for i in range(8)])
    said = CliRunner().invoke(app, ["preferences", "tournament", str(path)])
    assert said.exit_code == 0, said.output
    ann, bob = said.output.splitlines()[1:]
    assert ann.split()[:5] == ["policy", "ann", "at", "1", "8"]
    assert "0.750 [" in ann and "0.250 [" in bob
    assert f"{200 * math.log10(6.5 / 2.5):.0f} [" in ann
    said = CliRunner().invoke(app, ["preferences", "tournament", str(path), "--criterion", "kind"])
    assert said.output == "no two authors were compared by kind yet\n"
