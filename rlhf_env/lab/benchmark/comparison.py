"""What a benchmark's results allow to say: rankings by task, all tasks together, and what checks the benchmark itself.

A run counts with its score on the task (`Results.measure`); one that failed or diverged counts with the floor, the
worst score of any finished run on that task. Only seeds that every agent has run are compared, and below
`SEEDS_FOR_A_CLAIM` of them nothing is. All resampling is seeded by `Results.comparing`, a stream for each purpose: the
same results give the same intervals, and another agent's rows change nobody's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rlhf_env.lab.benchmark.results import CONTROLS, RANDOM, REFERENCE, Cell, Results
from rlhf_env.lab.statistics import (
    SEEDS_FOR_A_CLAIM,
    Estimate,
    PairedComparison,
    compare,
    estimate,
    interquartile_mean,
    least_p,
    mean,
    mean_of_seeds,
    optimality_gap,
    probability_of_improvement,
)
from rlhf_env.types import Float, JsonView

_RESAMPLES = 2000  # of the bootstrap, for each interval
# One agent under two names, this many times; chance alone makes 5 % of the comparisons claims.
_REPEATS, _MOST_FALSE_CLAIMS = 200, 0.07
# A stored float64 mean of weighted parts, and a float32 one over the texts of a rollout.
_EVALUATION_TOLERANCE, _ROLLOUT_TOLERANCE = 1e-9, 1e-4


@dataclass(frozen=True)
class Standing:
    """An agent on a task."""

    agent: str
    score: Estimate
    """The mean over its seeds."""
    floored: int
    """How many of its runs have no score and count with the floor."""
    against: Mapping[str, PairedComparison]
    """By opponent."""


@dataclass(frozen=True)
class AgentRanking:
    """The agents on a task."""

    task: str
    measure: str
    """The metric that the scores are."""
    floor: float
    seeds: tuple[int, ...]
    standings: tuple[Standing, ...]
    """By mean score, controls last."""
    best: str | None
    """The agent, controls aside, with the highest mean."""
    rival: str | None
    """The agent that everyone is compared with besides the reference: named beforehand, or else the best."""

    @property
    def least_p(self) -> float:
        """The smallest corrected p that this many seeds and comparisons allow: all signs equal, times Holm's factor."""
        return least_p(len(self.seeds), len(self.standings) - 1)


@dataclass(frozen=True)
class Across:
    """An agent over all tasks, on the normalised scale."""

    agent: str
    scores: Float
    """float64[S, K]."""
    average: Estimate
    """The interquartile mean."""
    gap: Estimate
    """The optimality gap."""
    improvement: Estimate | None
    """How likely one of its runs beats one of the reference."""
    against_reference: PairedComparison | None
    """Paired by seed, over all tasks."""


@dataclass(frozen=True)
class Overview:
    """Agents over several tasks, with scores (score - reference) / (top - reference).

    Both ends of the scale are taken as given: intervals do not contain their uncertainty.
    """

    tops: Mapping[str, tuple[float, str]]
    """By task, the known optimum and "", or else the best agent's mean and its name."""
    seeds: tuple[int, ...]
    agents: tuple[Across, ...]
    left_out: tuple[str, ...]
    """Tasks and agents that are not in the overview, each with the reason."""


@dataclass(frozen=True)
class BenchmarkCheck:
    """A property that every benchmark must have."""

    name: str
    outcome: Literal["holds", "does not hold", "not checked"]
    finding: str
    """What was checked, and the result, in a sentence."""


@dataclass(frozen=True)
class Conclusions:
    """Everything that is concluded from `Results`. A task of few seeds has no ranking; one task has no overview."""

    rankings: tuple[AgentRanking, ...]
    overview: Overview | None
    checks: tuple[BenchmarkCheck, ...]
    of_mixtures: tuple[AgentRanking, ...] = ()
    """Of the tasks within mixtures, "mixture: label": the same agents, evaluated on the prompts of one task each."""

    def ranking(self, task: str) -> AgentRanking | None:
        return next((ranking for ranking in self.rankings if ranking.task == task), None)


def conclude(results: Results) -> Conclusions:
    """All comparisons and checks of `results`: seconds for a grid of hundreds of runs."""
    rankings = tuple(ranking for task in results.tasks if (ranking := _ranking(results, task)) is not None)
    checks = (_same_agent_twice(results, rankings), _controls_lose(results, rankings), _ledger(results))
    of_mixtures = (_ranking(results, task, label) for task in results.tasks for label in results.parts_of_mixture(task))
    within = tuple(ranking for ranking in of_mixtures if ranking is not None)
    return Conclusions(rankings, _overview(results, rankings), checks, within)


def _stream(results: Results, purpose: str) -> np.random.Generator:
    return np.random.default_rng([results.comparing.seed, *purpose.encode("utf-8", "surrogatepass")])


def _scores(results: Results, task: str, agent: str, seeds: Sequence[int]) -> Float:
    """float64[S], a score for each of `seeds`."""
    of_seed = {cell.seed: results.score(cell) for cell in results.of(task, agent)}
    return np.array([of_seed[seed] for seed in seeds], dtype=np.float64)


# ---------------------------------------------------------------- one task


def _ranking(results: Results, task: str, label: str = "") -> AgentRanking | None:
    """`label`: of a mixture, the task whose prompts alone count."""
    seeds, measure = results.shared_seeds(task), results.measure(task)
    key = f"task/{label}/{measure}" if label else measure or ""

    def own_score(cell: Cell) -> float | None:
        return cell.evaluation.get(key) if cell.finished else None

    known = [score for cell in results.cells if cell.task == task and (score := own_score(cell)) is not None]
    if len(seeds) < SEEDS_FOR_A_CLAIM or measure is None or not known:
        return None
    floor, scores = min(known), {}
    for agent in results.agents_on(task):
        of_seed = {cell.seed: own_score(cell) for cell in results.of(task, agent)}
        of_agent = [floor if (score := of_seed[seed]) is None else score for seed in seeds]
        scores[agent] = np.array(of_agent, dtype=np.float64)
    best = _best({agent: mean(of_agent) for agent, of_agent in scores.items()})
    place = f"{task}: {label}" if label else task
    rival = results.comparing.rival if results.comparing.rival in scores else best
    compared = {
        other: compare(scores, other, stream=_stream(results, f"against/{place}/{other}"))
        for other in (REFERENCE, rival)
        if other in scores
    }
    standings = [
        Standing(
            agent,
            mean_of_seeds(of_agent),
            sum(own_score(cell) is None for cell in results.of(task, agent) if cell.seed in seeds),
            {other: made[agent] for other, made in compared.items() if agent in made},
        )
        for agent, of_agent in scores.items()
    ]
    standings.sort(key=lambda standing: _place(standing.agent, standing.score.value))
    return AgentRanking(place, measure, floor, tuple(seeds), tuple(standings), best, rival)


def _place(agent: str, score: float) -> tuple[int, float, str]:
    return (CONTROLS.index(agent) + 1 if agent in CONTROLS else 0, -score, agent)


def _best(means: Mapping[str, float]) -> str | None:
    return max((agent for agent in means if agent not in CONTROLS), key=lambda agent: means[agent], default=None)


# ---------------------------------------------------------------- several tasks


def _overview(results: Results, rankings: Sequence[AgentRanking]) -> Overview | None:
    tops: dict[str, tuple[float, str]] = {}
    zeros: dict[str, float] = {}
    left_out = [
        f"task {task}: fewer than {SEEDS_FOR_A_CLAIM} shared seeds, or no score"
        for task in results.tasks
        if task not in {ranking.task for ranking in rankings}
    ]
    for ranking in rankings:
        means = {standing.agent: standing.score.value for standing in ranking.standings}
        zero, optimum = means.get(REFERENCE), results.optimum(ranking.task)
        top = (optimum, "") if optimum is not None else (means[ranking.best], ranking.best) if ranking.best else None
        if zero is None or top is None or top[0] <= zero:
            why = "no reference to measure from" if zero is None else "nothing above the reference"
            left_out.append(f"task {ranking.task}: {why}, so it has no scale")
            continue
        zeros[ranking.task], tops[ranking.task] = zero, top
    everywhere = [agent for agent in results.agents if all(agent in results.agents_on(task) for task in tops)]
    left_out += [f"agent {agent}: not on every task" for agent in results.agents if agent not in everywhere]
    seeds = sorted(set.intersection(*(set(r.seeds) for r in rankings if r.task in tops))) if tops else []
    if len(tops) < 2 or len(seeds) < SEEDS_FOR_A_CLAIM:
        return None

    def normalised(agent: str) -> Float:
        columns = [
            (_scores(results, task, agent, seeds) - zeros[task]) / (top - zeros[task])
            for task, (top, _) in tops.items()
        ]
        return np.stack(columns, axis=1)

    scores = {agent: normalised(agent) for agent in everywhere}
    compared = compare(scores, REFERENCE, stream=_stream(results, "against/all tasks"))

    def across(agent: str) -> Across:
        def interval(statistic: Callable[..., float], *samples: Float) -> Estimate:
            stream = _stream(results, f"{statistic.__name__}/all tasks/{agent}")
            return estimate(statistic, *samples, stream=stream, resamples=_RESAMPLES)

        own = scores[agent]
        improvement = None
        if agent != REFERENCE:
            improvement = interval(probability_of_improvement, own, scores[REFERENCE])
        average, gap = interval(interquartile_mean, own), interval(optimality_gap, own)
        return Across(agent, own, average, gap, improvement, compared.get(agent))

    rows = sorted(map(across, everywhere), key=lambda row: _place(row.agent, row.average.value))
    return Overview(tops, tuple(seeds), tuple(rows), tuple(left_out))


# ---------------------------------------------------------------- the benchmark checks itself


def _same_agent_twice(results: Results, rankings: Sequence[AgentRanking]) -> BenchmarkCheck:
    """A/A: two draws with replacement from one agent's own runs are one agent under two names."""
    name = "One agent under two names"
    runs = [
        scores
        for ranking in rankings
        for agent in results.agents_on(ranking.task)
        if np.ptp(scores := _scores(results, ranking.task, agent, ranking.seeds)) > 0.0
    ]
    if not runs:
        return BenchmarkCheck(
            name, "not checked", f"It takes {SEEDS_FOR_A_CLAIM} shared seeds of an agent whose runs differ."
        )
    stream, claims = _stream(results, "one agent under two names"), 0
    for repeat in range(_REPEATS):
        own = runs[repeat % len(runs)]
        twice = {title: stream.choice(own, size=len(own)) for title in ("one", "other")}
        claims += compare(twice, "one", stream=stream)["other"].verdict != "inconclusive"
    allowed = int(_MOST_FALSE_CLAIMS * _REPEATS)
    finding = (
        f"{_REPEATS} times, in turn for every agent and task, an agent's runs were drawn twice with replacement, and "
        f"the two draws compared like two agents: {claims} were called different, at most {allowed} may be."
    )
    return BenchmarkCheck(name, "holds" if claims <= allowed else "does not hold", finding)


def _controls_lose(results: Results, rankings: Sequence[AgentRanking]) -> BenchmarkCheck:
    """The random writer not above the reference, the reference below every agent, by their means on every task."""
    orders = [_order_on(results, task, rankings) for task in results.tasks]
    checked = [ok for ok, _ in orders if ok is not None]
    outcome: Any = "not checked" if not checked else "holds" if all(checked) else "does not hold"
    return BenchmarkCheck("The controls lose", outcome, " ".join(words for _, words in orders))


def _order_on(results: Results, task: str, rankings: Sequence[AgentRanking]) -> tuple[bool | None, str]:
    where = f"On {task}: " if len(results.tasks) > 1 else ""
    scored = {agent: [results.score(cell) for cell in results.of(task, agent)] for agent in results.agents_on(task)}
    means = {a: math.fsum(s for s in values if s is not None) / len(values) for a, values in scored.items()}
    if REFERENCE not in means or results.measure(task) is None:
        return None, f"{where}there is no score of a reference to compare with."
    reference, facts, holds = means[REFERENCE], [], True
    verdicts = {
        standing.agent: standing.against[REFERENCE].verdict
        for ranking in rankings
        if ranking.task == task
        for standing in ranking.standings
        if REFERENCE in standing.against
    }
    if RANDOM in means:
        # A reference that has learned nothing (a random model on a toy task) is no better than chance.
        below, verdict = means[RANDOM] < reference, verdicts.get(RANDOM, "")
        level = verdict == "inconclusive"
        holds &= below or level
        where_it_lies = "below" if below else "by chance above" if level else "NOT below"
        facts.append(f"random lies {where_it_lies} the reference{verdict and f' ({verdict})'}")
    else:
        facts.append("there is no random control")
    agents = [agent for agent in means if agent not in CONTROLS]
    behind = [agent for agent in agents if means[agent] <= reference]
    holds &= not behind
    facts.append(f"{len(agents) - len(behind)} of {len(agents)} agents lie above the reference")
    if behind:
        facts[-1] += f", {_listed(behind)} {'does' if len(behind) == 1 else 'do'} NOT"
    if verdicts:
        better = sum(verdicts[agent] == "better" for agent in agents)
        facts[-1] += f" ({better} by test)"
    return holds, where + "; ".join(facts) + "."


def _ledger(results: Results) -> BenchmarkCheck:
    """sum(weight * part) == reward, in every evaluation and every row of metrics of every run that kept its weights."""
    name, kept = "The reward is the sum of its parts", [cell for cell in results.cells if cell.weights]
    sums = [(cell, *entry) for cell in kept for entry in _entries(results, cell)]
    if not sums:
        return BenchmarkCheck(name, "not checked", "No run has kept its weights beside its reward parts.")
    wrong = [(cell, place, off) for cell, place, off, allowed in sums if off > allowed]
    unchecked = len(results.cells) - len({id(cell) for cell, *_ in sums})
    without = f" {unchecked} of {len(results.cells)} runs have no parts to add." if unchecked else ""
    if wrong:
        cell, place, off = max(wrong, key=lambda entry: entry[2])
        finding = (
            f"Of {len(sums):,} stored rewards {len(wrong):,} differ from the weighted sum of their parts; the worst by "
            f"{off:.1g} of its size, in the {place} of {cell.agent} on {cell.task}, seed {cell.seed}."
        )
        return BenchmarkCheck(name, "does not hold", finding + without)
    worst = max(off for _, _, off, _ in sums)
    return BenchmarkCheck(
        name, "holds", f"{len(sums):,} stored rewards added up again; largest deviation {worst:.0e}.{without}"
    )


def _entries(results: Results, cell: Cell) -> Iterator[tuple[str, float, float]]:
    """Where a reward stands beside all its parts: the place, how far off the sum is (relative), how far it may be."""
    rows: list[tuple[str, str, str, float, JsonView]] = []
    if cell.finished:
        rows.append(("final evaluation", "", "objective", _EVALUATION_TOLERANCE, cell.evaluation))
    for logged in results.log(cell):
        update = logged.get("update")
        rows.append((f"evaluation at update {update}", "eval/", "objective", _EVALUATION_TOLERANCE, logged))
        rows.append((f"rollout of update {update}", "rollout/", "reward", _ROLLOUT_TOLERANCE, logged))
    for place, prefix, total, allowed, row in rows:
        if any(name.startswith(f"{prefix}abstained/") for name in row):
            continue  # means of different texts: a part's are of those it said something about
        # Where weights change, or are of some texts alone, the row says what each line of the ledger came to.
        earned = {key: value for key, value in row.items() if key.startswith(f"{prefix}earned/")}
        parts = {f"{prefix}part/{part}": weight for part, weight in cell.weights.items()}
        weights = dict.fromkeys(earned, 1.0) if earned else parts
        numbers: list[Any] = [row.get(name) for name in (prefix + total, *weights)]
        if all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
            reward, *means = numbers
            paid = [weight * value for weight, value in zip(weights.values(), means, strict=True)]
            yield place, abs(math.fsum(paid) - reward) / max(1.0, abs(reward), *map(abs, paid)), allowed


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
