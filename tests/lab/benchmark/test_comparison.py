"""What is concluded from planted scores: by hand where it can be counted, and each self-check seen failing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_env.errors import DataError
from rlhf_env.lab.benchmark import comparison
from rlhf_env.lab.benchmark.comparison import AgentRanking, BenchmarkCheck, conclude
from rlhf_env.lab.benchmark.results import Cell, Comparing, Results
from rlhf_env.lab.statistics import compare

NOISE = (0.03, -0.02, 0.05, -0.04, 0.01, 0.02, -0.05, 0.04, -0.01, -0.03)  # of ten seeds, common to all agents


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rougher intervals than a report's, and a shorter test of one agent under two names."""
    monkeypatch.setattr(comparison, "_RESAMPLES", 200)
    monkeypatch.setattr(comparison, "_REPEATS", 4)


def cell(agent: str, seed: int, gold: float | None, task: str = "echo", **more: Any) -> Cell:
    """A finished run that scored `gold`, or a failed one."""
    if gold is None:
        return Cell(task, agent, seed, "failed", **more)
    return Cell(task, agent, seed, "finished", **{"evaluation": {"gold": gold}, **more})


def runs(agent: str, gold: float, seeds: int = 10, task: str = "echo", **more: Any) -> list[Cell]:
    return [cell(agent, seed, gold + NOISE[seed], task, **more) for seed in range(seeds)]


def results(*cells: Sequence[Cell], folder: Path = Path("nowhere"), **more: Any) -> Results:
    return Results(folder, "planted", tuple(cell for some in cells for cell in some), **more)


def only_ranking(found: Results) -> AgentRanking:
    (ranking,) = conclude(found).rankings
    return ranking


def check(found: Results, about: str) -> BenchmarkCheck:
    (made,) = (made for made in conclude(found).checks if about in made.name)
    return made


# ---------------------------------------------------------------- one task


def test_agents_are_ranked_and_compared_on_shared_seeds() -> None:
    ranking = only_ranking(
        results(runs("dpo", 0.5), runs("ppo", 0.7), runs("random", 0.1), runs("reference", 0.4), runs("same", 0.4))
    )
    assert [standing.agent for standing in ranking.standings] == ["ppo", "dpo", "same", "reference", "random"]
    by_agent = {standing.agent: standing for standing in ranking.standings}
    assert by_agent["ppo"].score.value == pytest.approx(0.7, abs=1e-12)
    against = {agent: standing.against.get("reference") for agent, standing in by_agent.items()}
    assert against["reference"] is None
    made = {agent: one for agent, one in against.items() if one is not None}
    verdicts = {agent: one.verdict for agent, one in made.items()}
    assert verdicts == {"ppo": "better", "dpo": "better", "same": "inconclusive", "random": "worse"}
    assert made["ppo"].difference.value == pytest.approx(0.3, abs=1e-12)  # the noise of a seed is common: it cancels
    assert made["ppo"].adjusted == 4 * 2 / 2**10 == ranking.least_p
    assert by_agent["dpo"].against["ppo"].verdict == "worse"


def test_the_best_is_no_control_and_a_rival_may_be_named() -> None:
    cells = (runs("dpo", 0.5), runs("ppo", 0.6), runs("reference", 0.9))
    ranking = only_ranking(results(*cells))
    assert (ranking.best, ranking.rival) == ("ppo", "ppo")
    named = only_ranking(results(*cells, comparing=Comparing(rival="dpo")))
    assert (named.best, named.rival) == ("ppo", "dpo")
    assert {s.agent: s.against["dpo"].verdict for s in named.standings if s.agent != "dpo"} == {
        "ppo": "better",
        "reference": "better",
    }


def test_pairs_are_of_one_seed_whatever_the_order_and_who_else_ran() -> None:
    """Seed s scores s for both, and ppo 1 more: every paired difference is 1. Seed 9 has nobody to be paired with."""
    reference = [cell("reference", seed, float(seed)) for seed in (9, 3, 1, 2, 0, 4)]
    ppo = [cell("ppo", seed, seed + 1.0) for seed in (0, 1, 2, 3, 4, 7)]
    ranking = only_ranking(results(reference, ppo))
    assert ranking.seeds == (0, 1, 2, 3, 4)
    difference = ranking.standings[0].against["reference"].difference
    assert difference.value == pytest.approx(1.0, abs=1e-12)
    assert difference.low is None, "all differences are alike: nothing says how far another seed's would be"


def test_below_five_shared_seeds_nothing_is_ranked() -> None:
    assert not conclude(results(runs("ppo", 1.0, 4), runs("reference", 0.0, 4))).rankings
    disjoint = [cell("reference", seed, 0.0) for seed in range(6, 16)]
    assert not conclude(results(runs("ppo", 1.0), disjoint)).rankings


def test_five_seeds_cannot_show_a_difference() -> None:
    """2 / 2^5 is above 5 %: the page has to say that silence was certain from the start."""
    ranking = only_ranking(results(runs("ppo", 100.0, 5), runs("reference", 0.0, 5)))
    assert ranking.least_p == 2 / 2**5
    assert ranking.standings[0].against["reference"].verdict == "inconclusive"


def test_runs_without_a_score_count_with_the_floor() -> None:
    ppo = runs("ppo", 0.9)
    ppo[3] = cell("ppo", 3, None, evaluation={"gold": 77.0})  # failed: what it had measured by then is no score
    ppo[4] = cell("ppo", 4, 0.0, evaluation={"kl": 1.0})  # finished, and not measured
    other_task = runs("ppo", -50.0, task="sums")
    found = results(ppo, runs("reference", 0.5), other_task)
    ranking = conclude(found).rankings[0]
    assert ranking.floor == found.floor("echo") == pytest.approx(0.45, abs=1e-12)  # the reference's seed 6
    assert (ranking.standings[0].agent, ranking.standings[0].floored) == ("ppo", 2)
    expected = (sum(0.9 + n for i, n in enumerate(NOISE) if i not in (3, 4)) + 2 * 0.45) / 10
    assert ranking.standings[0].score.value == pytest.approx(expected, abs=1e-12)


def test_without_gold_agents_are_ranked_by_proxy() -> None:
    found = results([cell("ppo", seed, 0.0, evaluation={"proxy": 2.0, "objective": 1.0}) for seed in range(5)])
    ranking = only_ranking(found)
    assert (ranking.measure, ranking.standings[0].score.value) == ("proxy", 2.0)


def test_no_other_agent_and_no_seed_changes_the_interval_of_a_mean() -> None:
    cells = (runs("ppo", 0.7), runs("reference", 0.4))
    first, again = (only_ranking(results(*cells)) for _ in range(2))
    assert first == again
    with_dpo = only_ranking(results(*cells, runs("dpo", 0.1)))
    assert with_dpo.standings[0].score == first.standings[0].score
    other = only_ranking(results(*cells, comparing=Comparing(seed=1)))
    assert other.standings[0].score == first.standings[0].score, "nothing is drawn for it"


# ---------------------------------------------------------------- several tasks


def test_scores_of_several_tasks_are_normalised() -> None:
    """Reference 1 and best 3 on one task; reference 0 and a known optimum of 10 on the other."""
    found = results(
        *(runs(agent, gold) for agent, gold in (("dpo", 2.0), ("ppo", 3.0), ("reference", 1.0))),
        *(runs(a, g, task="sums", optimum=10.0) for a, g in (("dpo", 9.0), ("ppo", 5.0), ("reference", 0.0))),
    )
    overview = conclude(found).overview
    assert overview is not None
    assert overview.tops == {"echo": (pytest.approx(3.0, abs=1e-12), "ppo"), "sums": (10.0, "")}
    rows = {row.agent: row for row in overview.agents}
    noise = np.array(NOISE)
    expected = np.stack([(2.0 + noise - 1.0) / 2.0, (9.0 + noise) / 10.0], axis=1)
    np.testing.assert_allclose(rows["dpo"].scores, expected, atol=1e-12)
    np.testing.assert_allclose(rows["reference"].scores.mean(axis=0), 0.0, atol=1e-12)
    assert rows["dpo"].gap.value == pytest.approx((0.5 + 0.1) / 2, abs=1e-12)
    assert rows["dpo"].improvement is not None and rows["dpo"].improvement.value == 1.0
    assert rows["dpo"].against_reference is not None and rows["dpo"].against_reference.verdict == "better"
    assert (rows["reference"].improvement, rows["reference"].against_reference) == (None, None)
    assert [row.agent for row in overview.agents] == ["ppo", "dpo", "reference"]  # 0.75 and 0.70


def test_what_has_no_place_on_the_common_scale_is_left_out_and_named() -> None:
    found = results(
        *(runs(agent, gold, task=task) for task in ("a", "b") for agent, gold in (("ppo", 1.0), ("reference", 0.0))),
        runs("dpo", 1.0, task="a"),
        *(runs(agent, gold, task="flat") for agent, gold in (("ppo", 0.0), ("dpo", 0.0), ("reference", 0.5))),
        runs("ppo", 1.0, 3, task="few"),
    )
    overview = conclude(found).overview
    assert overview is not None
    assert list(overview.tops) == ["a", "b"]
    assert [row.agent for row in overview.agents] == ["ppo", "reference"]
    assert overview.left_out == (
        "task few: fewer than 5 shared seeds, or no score",
        "task flat: nothing above the reference, so it has no scale",
        "agent dpo: not on every task",
    )


def test_one_task_has_no_overview_and_optima_must_agree() -> None:
    assert conclude(results(runs("ppo", 1.0), runs("reference", 0.0))).overview is None
    with pytest.raises(DataError, match="several optima for task 'echo'"):
        conclude(results(runs("ppo", 1.0, optimum=1.0), runs("reference", 0.0, optimum=2.0)))


# ---------------------------------------------------------------- self-checks


def test_one_agent_under_two_names_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "_REPEATS", 200)
    draws = np.random.default_rng(1)
    planted = results([cell(a, seed, float(draws.normal())) for a in ("dpo", "ppo", "reference") for seed in range(10)])
    made = check(planted, "two names")
    assert made.outcome == "holds"
    assert "200 times" in made.finding

    def too_eager(scores: Mapping[str, Any], against: str, **more: Any) -> Any:
        return compare(scores, against, level=0.6, **more)  # 40 % false claims

    monkeypatch.setattr(comparison, "compare", too_eager)
    assert check(planted, "two names").outcome == "does not hold"


def test_one_agent_under_two_names_needs_runs_that_differ() -> None:
    assert check(results(runs("ppo", 1.0, 4)), "two names").outcome == "not checked"
    same = results([cell("ppo", seed, 1.0) for seed in range(10)])
    assert check(same, "two names").outcome == "not checked"


@pytest.mark.parametrize(
    ("gold", "outcome", "said"),
    [
        (
            (0.1, 0.5, 0.7, 0.8),
            "holds",
            "random lies below the reference (worse); 2 of 2 agents lie above the reference",
        ),
        ((0.6, 0.5, 0.7, 0.8), "does not hold", "random lies NOT below the reference (better)"),
        ((0.5, 0.5, 0.7, 0.8), "holds", "random lies by chance above the reference (inconclusive); 2 of 2"),
        ((0.1, 0.5, 0.4, 0.8), "does not hold", "1 of 2 agents lie above the reference, dpo does NOT (1 by test)"),
        ((0.1, 0.5, 0.5, 0.5), "does not hold", "0 of 2 agents lie above the reference, dpo and ppo do NOT"),
    ],
)
def test_the_controls_lose_or_it_says_so(gold: tuple[float, ...], outcome: str, said: str) -> None:
    agents = ("random", "reference", "dpo", "ppo")
    made = check(results(*(runs(agent, value) for agent, value in zip(agents, gold, strict=True))), "controls")
    assert made.outcome == outcome
    assert said in made.finding


def test_controls_are_checked_with_few_seeds_too_and_need_a_reference() -> None:
    made = check(results(runs("ppo", 0.4, 2), runs("reference", 0.5, 2)), "controls")
    assert (made.outcome, "by test" in made.finding) == ("does not hold", False)
    assert "there is no random control" in made.finding
    assert check(results(runs("ppo", 0.4, 2)), "controls").outcome == "not checked"


def ledger(folder: Path, *, wrong: str = "", **weights: float) -> BenchmarkCheck:
    """The check of one run with a final evaluation, one on the way and a rollout, `wrong` in one of them."""
    parts = {"part/task": 0.75, "part/kl": -3.0}
    reward = {place: 0.75 - 0.05 * 3.0 + (0.01 if place == wrong else 0.0) for place in ("final", "eval", "rollout")}
    row = {
        "update": 7,
        "eval/objective": reward["eval"],
        "rollout/reward": float(np.float32(reward["rollout"])),
        **{f"{prefix}/{name}": value for prefix in ("eval", "rollout") for name, value in parts.items()},
    }
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run" / "metrics.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    evaluation = {"objective": reward["final"], **parts}
    run = cell("ppo", 4, 0.0, run="run", weights=weights, evaluation=evaluation)
    return check(results([run, cell("dpo", 4, None)], folder=folder), "sum of its parts")


@pytest.mark.parametrize(
    ("wrong", "place"),
    [("final", "final evaluation"), ("eval", "evaluation at update 7"), ("rollout", "rollout of update 7")],
)
def test_the_ledger_is_added_up_again(tmp_path: Path, wrong: str, place: str) -> None:
    made = ledger(tmp_path, task=1.0, kl=0.05)
    assert (made.outcome, made.finding[:23]) == ("holds", "3 stored rewards added ")
    assert "1 of 2 runs have no parts to add" in made.finding
    made = ledger(tmp_path, wrong=wrong, task=1.0, kl=0.05)
    assert made.outcome == "does not hold"
    assert f"Of 3 stored rewards 1 differ from the weighted sum of their parts; the worst by 0.01 of its size, in the {place} of ppo on echo, seed 4" in made.finding  # fmt: skip # noqa: E501
    assert ledger(tmp_path, task=1.0, kl=0.06).outcome == "does not hold"


def test_a_ledger_without_weights_or_with_a_part_missing_is_not_checked(tmp_path: Path) -> None:
    assert ledger(tmp_path).outcome == "not checked"
    assert ledger(tmp_path, task=1.0, other=2.0).outcome == "not checked"
