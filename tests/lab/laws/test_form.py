"""The form of a law: the power of its run, its verdict, and what is written down before it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_env.errors import ConfigError
from rlhf_env.lab.laws.form import Analysis, Law, analyse, conclude, judge, run_law
from rlhf_env.lab.laws.power import power_of, seeds_needed
from rlhf_env.lab.laws.running import decide, law_in_words, law_table
from rlhf_env.lab.statistics import student_t


def law(mean: float = 1.0, spread: float = 1.0, **changes: object) -> Law:
    """One whose effects are normal, around `mean` times the place on its axis."""
    made = Law(
        name="made-up",
        claim="A claim.",
        source="Nobody 2026",
        prediction="Above 0.",
        smallest=0.5,
        measure=lambda seed, at: float(mean * at + spread * np.random.default_rng([seed, 7]).normal()),
        at=1.0,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


class TestPower:
    @pytest.mark.parametrize(("effect", "spread", "seeds"), [(0.5, 1.0, 12), (2.0, 3.0, 5), (0.1, 0.25, 40)])
    def test_as_often_as_simulated_runs_see_it(self, effect: float, spread: float, seeds: int) -> None:
        draws = np.random.default_rng(0).normal(effect, spread, size=(20_000, seeds))
        ends = draws.mean(1) - student_t(0.975, seeds - 1) * draws.std(1, ddof=1) / np.sqrt(seeds)
        assert abs(power_of(effect, spread, seeds) - (ends > 0.0).mean()) < 0.01

    @pytest.mark.parametrize(("ratio", "seeds"), [(0.5, 44), (0.8, 19), (1.0, 13)])
    def test_the_tables_of_others(self, ratio: float, seeds: int) -> None:
        """One-sample t test, two-sided 0.05, power 0.9 (as G*Power gives it)."""
        assert seeds_needed(ratio, 1.0) == seeds
        assert power_of(ratio, 1.0, seeds) >= 0.9 > power_of(ratio, 1.0, seeds - 1)

    def test_what_has_no_answer(self) -> None:
        assert seeds_needed(0.0, 1.0) is None
        assert seeds_needed(1e-9, 1.0, most=1000) is None
        assert (seeds_needed(1.0, 0.0), power_of(1.0, 0.0, 5)) == (2, 1.0)
        with pytest.raises(ConfigError, match="two"):
            power_of(1.0, 1.0, 1)


class TestVerdict:
    @pytest.mark.parametrize(
        ("effects", "verdict"),
        [
            ([1.0, 1.1, 0.9, 1.0, 1.05], "confirmed"),
            ([-1.0, -1.1, -0.9, -1.0, -1.05], "refuted"),
            ([0.1, 0.11, 0.09, 0.1, 0.1], "refuted"),  # surely above 0, and surely smaller than what matters
            ([3.0, -2.0, 1.0, 0.5, -0.5], "inconclusive"),
            ([0.4, 0.5, 0.3, 0.6, 0.4], "inconclusive"),  # above 0, and it may matter
            ([0.7] * 5, "confirmed"),  # an exact number
            ([0.0] * 5, "refuted"),
        ],
    )
    def test_by_hand(self, effects: list[float], verdict: str) -> None:
        assert judge(law(), effects)[1] == verdict

    def test_false_claims_are_as_rare_as_they_should_be(self) -> None:
        """No effect at all: 2.5 % of intervals lie above 0. An effect that just matters is refuted as seldom."""
        rng = np.random.default_rng(1)
        nothing = [judge(law(), rng.normal(0.0, 1.0, size=10).tolist())[1] for _ in range(600)]
        enough = [judge(law(), rng.normal(0.5, 1.0, size=10).tolist())[1] for _ in range(600)]
        assert nothing.count("confirmed") / 600 < 0.04
        assert enough.count("refuted") / 600 < 0.04
        assert enough.count("confirmed") > 3 * nothing.count("confirmed")


class TestAnalysis:
    def test_it_is_of_the_smallest_effect_that_matters(self) -> None:
        """Whatever the pilot saw: a large mean of eight seeds may be luck."""
        large, small = analyse(law(mean=4.0)), analyse(law(mean=0.1))
        assert (large.effect, large.seeds) == (0.5, small.seeds)
        assert small.effect == 0.5
        assert small.needed == seeds_needed(0.5, float(np.std(small.pilot_effects, ddof=1)))
        assert small.seeds == max(10, small.needed or 0)
        assert analyse(law(spread=0.01)).seeds == 10, "never fewer"
        assert small.power >= 0.9
        assert f"{small.needed} seeds; run: {small.seeds}" in small.sentence

    def test_no_more_seeds_than_can_be_run(self) -> None:
        found = analyse(law(mean=0.0, spread=5.0, most=30))
        assert found.seeds == 30
        assert found.needed is not None
        assert found.needed > 30
        assert found.power < 0.2, "and it says so"

    def test_half_of_what_the_pilot_saw_where_the_smallest_takes_too_many(self) -> None:
        found = analyse(law(mean=20.0, spread=5.0, most=30))
        assert found.effect == pytest.approx(np.mean(found.pilot_effects) / 2.0)
        assert (found.seeds, found.needed) == (10, seeds_needed(found.effect, found.spread))

    def test_the_pilots_seeds_are_not_the_runs(self) -> None:
        seen: list[int] = []
        watched = law(measure=lambda seed, at: float(seen.append(seed) or seed % 3))
        analysis = analyse(watched)
        pilot = set(seen)
        seen.clear()
        run_law(watched, analysis)
        assert not pilot & set(seen)
        assert seen == list(range(analysis.seeds))

    def test_it_is_written_before_the_run(self, tmp_path: Path) -> None:
        """The run dies at its first seed: what was promised stands there."""

        def measure(seed: int, _at: float) -> float:
            if seed < 1000:
                raise RuntimeError("killed")
            return float(seed % 2)

        heard: list[Analysis] = []
        with pytest.raises(RuntimeError, match="killed"):
            decide(law(measure=measure), tmp_path, on_analysis=heard.append)
        record = json.loads((tmp_path / "made-up.plan.json").read_text())
        assert record["verdict"] == "not run yet"
        assert record["analysis"]["seeds"] == heard[0].seeds
        assert "effects" not in record


class TestOutcome:
    def test_where_the_sign_turns(self) -> None:
        found = decide_here(law(mean=2.0, spread=0.1, axis="a place", places=(-2.0, -1.0, 0.0, 1.0)))
        assert [place.verdict for place in found.places] == ["refuted", "refuted", "refuted", "confirmed"]
        assert found.turns in ("the sign turns between -1 and 1 (a place)", "the sign turns between -1 and 0 (a place)")
        same = decide_here(law(mean=2.0, spread=0.1, axis="a place", places=(1.0, 2.0)))
        assert same.turns == "the same sign from 1 to 2 (a place)"
        assert decide_here(law()).turns == ""
        alone = decide_here(law(mean=2.0, spread=0.0, axis="a place", places=(0.0, 1.0)))
        assert alone.turns == "a sign at 1 alone, none at 0 (a place)"

    def test_an_inconclusive_law_says_what_would_decide(self) -> None:
        found = decide_here(law(mean=0.4, spread=2.0, most=10))
        assert found.verdict == "inconclusive"
        assert found.would_decide is not None
        assert found.would_decide > 10
        assert decide_here(law(mean=5.0)).would_decide is None

    def test_what_is_shown(self, tmp_path: Path) -> None:
        record = decide(law(mean=3.0, spread=0.1, axis="a place", places=(0.5, 1.0)), tmp_path)
        assert record == json.loads((tmp_path / "made-up.json").read_text())
        words = law_in_words(record)
        assert words.startswith("confirmed: 3")
        assert "the same sign from 0.5 to 1 (a place)" in words
        other = {"name": "other", "claim": "Another.", "source": "Nobody", "verdict": "not run yet"}
        assert law_table([record, other]).title == "2 laws: 1 confirmed, 1 not run yet"


def decide_here(given: Law):  # type: ignore[no-untyped-def]
    analysis = analyse(given)
    effects, places = run_law(given, analysis)
    return conclude(given, analysis, effects, places, 0.0)
