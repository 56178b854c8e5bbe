"""What a study of over-optimisation shows: curves on one axis, fitted laws, and claims tested over seeds.

Rewards are in units of the reference: 0 is its mean and 1 the standard deviation of its replies, gold and every proxy
each by itself, measured on the pool of replies to the measured prompts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from rlhf_env.errors import DataError
from rlhf_env.feedback.reward_models.ensemble import combined
from rlhf_env.lab.statistics import SEEDS_FOR_A_CLAIM, Estimate, PairedComparison, compare, estimate, mean
from rlhf_env.lab.studies.overoptimization.cells import runs
from rlhf_env.lab.studies.overoptimization.laws import (
    Curve,
    Fit,
    best_of_n_kl,
    best_of_n_weights,
    estimated_best_of_n_kl,
    fit_law,
    fit_with_intervals,
)
from rlhf_env.lab.studies.overoptimization.proxies import fit_result
from rlhf_env.lab.studies.overoptimization.study import Proxy, Study, TestedChange
from rlhf_env.lab.studies.overoptimization.texts import pool_of
from rlhf_env.types import Float, JsonObject, JsonView
from rlhf_env.whole_files import write_json, write_whole

BEST_OF_N = "best-of-n"


@dataclass(frozen=True)
class Points:
    """What one seed's checkpoints measured, float64[C] each: d = sqrt(KL) and the rewards in units of the reference."""

    seed: int
    distance: Float
    gold: Float
    proxy: Float


@dataclass(frozen=True)
class ProxyLine:
    """An agent on a proxy. `fit` is of gold; None, with `doubts` that say why, where there are too few points."""

    proxy: str
    agent: str
    points: Sequence[Points]
    fit: Fit | None
    doubts: Sequence[str]

    @property
    def name(self) -> str:
        return f"{self.agent} on {self.proxy}"


@dataclass(frozen=True)
class BestOf:
    """Best of `n` on the base proxy: `bound` is log n - (n - 1) / n, `estimated` the KL with repeated replies counted,
    in nats; gold and proxy in units of the reference."""

    n: int
    bound: float
    estimated: Estimate
    gold: Estimate
    proxy: Estimate


@dataclass(frozen=True)
class Tested:
    """A claim and what the seeds say. `comparison` is of what the claim is about, `beside` the difference in the other
    of (distance, gold) of the peak, for which no claim is made. `outside` counts peaks outside the data, of each."""

    change: TestedChange
    seeds: Sequence[int]
    here: Sequence[float]
    there: Sequence[float]
    comparison: PairedComparison
    beside: Estimate
    outside: tuple[int, int]

    @property
    def conclusion(self) -> str:
        if self.comparison.verdict == self.change.expected:
            return "reproduced"
        if self.comparison.verdict != "inconclusive":
            return "the opposite was found"
        if len(self.seeds) < SEEDS_FOR_A_CLAIM:
            return f"no claim from {len(self.seeds)} seeds"
        return "not reproduced: inconclusive"


@dataclass(frozen=True)
class Findings:
    """Everything; `accuracy` is that of each proxy's models against gold, a value per seed and model."""

    study: Study
    lines: Sequence[ProxyLine]
    best_of: Sequence[BestOf]
    tested: Sequence[Tested]
    accuracy: Mapping[str, Sequence[float]]
    failed: Sequence[str]

    def line(self, proxy: str, agent: str) -> ProxyLine | None:
        return next((line for line in self.lines if (line.proxy, line.agent) == (proxy, agent)), None)


def conclude_study(study: Study, folder: str | Path, *, seed: int = 0, resamples: int = 1000) -> Findings:
    """Read a finished study; `seed` draws the bootstrap. Raises DataError where files are missing."""
    folder = Path(folder).resolve()
    try:
        pool = _Pool.read(study, folder)
        results = [json.loads(cell.result_file(folder).read_text(encoding="utf-8")) for cell in runs(study, folder)]
    except FileNotFoundError as missing:
        raise DataError(f"{folder} holds no finished study: {missing.filename} is missing") from missing
    stream = np.random.default_rng(seed)
    failed = [f"{it['agent']} on {it['task']}, seed {it['seed']}: {it['error']}" for it in results if it["error"]]
    climbed = {
        (proxy, agent): [
            _checkpoints(it, pool) for it in results if (it["task"], it["agent"]) == (proxy, agent) and it["curve"]
        ]
        for proxy, agent in dict.fromkeys((it["task"], it["agent"]) for it in results)
    }
    counts = _counts(study.pool)
    lines = [
        _line(proxy, agent, points, [Curve(it.distance, it.gold[:, None]) for it in points], stream, resamples)
        for (proxy, agent), points in climbed.items()
    ]
    for proxy in study.proxies:
        curves = [pool.best_of(proxy, number, counts) for number in study.seed_numbers]
        points = [
            Points(number, distance, gold.mean(axis=1), other.mean(axis=1))
            for number, (distance, gold, other) in enumerate(curves)
        ]
        drawn = [Curve(distance, gold) for distance, gold, _ in curves]
        lines.append(_line(proxy, BEST_OF_N, points, drawn, stream, resamples))
    return Findings(
        study,
        lines,
        [_best_of(pool, n, stream) for n in counts],
        _tested(study, lines, stream),
        {name: pool.accuracy(name) for name in study.proxies},
        failed,
    )


def _line(
    proxy: str, agent: str, points: list[Points], curves: list[Curve], stream: np.random.Generator, resamples: int
) -> ProxyLine:
    form = "best-of-n" if agent == BEST_OF_N else "rl"
    try:
        fit = fit_with_intervals(form, curves, stream=stream, resamples=resamples)  # type: ignore[arg-type]
    except (DataError, ValueError) as error:
        return ProxyLine(proxy, agent, points, None, [f"no fit: {error}"])
    return ProxyLine(proxy, agent, points, fit, fit.doubts)


def _checkpoints(result: JsonView, pool: _Pool) -> Points:
    curve, seed = result["curve"], int(result["seed"])
    kl, gold, proxy = (np.array([point[name] for point in curve], dtype=float) for name in ("kl", "gold", "proxy"))
    zero, unit = pool.unit(result["task"], seed)
    # An estimate from samples may fall below 0 near the reference.
    return Points(seed, np.sqrt(np.maximum(kl, 0.0)), pool.gold_units(gold), (proxy - zero) / unit)


def _counts(pool: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... up to the pool."""
    doubles = [2**i for i in range(int(math.log2(pool)) + 1)]
    return sorted({n for base in doubles for n in (base, base * 3 // 2) if n <= pool} | {pool})


# ---------------------------------------------------------------- the pool


@dataclass(frozen=True)
class _Pool:
    """The reference's replies to the measured prompts, [P, N], and what everything says of them."""

    study: Study
    gold: Float
    logprobs: Float
    fits: Mapping[tuple[int, str], JsonView]

    @classmethod
    def read(cls, study: Study, folder: Path) -> _Pool:
        replies = pool_of(study, folder)
        shape = (study.measured_prompts, study.pool)
        fits = {
            (seed, fitting.name): fit_result(study, folder, seed, fitting)
            for seed in study.seed_numbers
            for proxy in study.proxies.values()
            for fitting in proxy.fits
        }
        gold, logprobs = (np.array([getattr(it, what) for it in replies]) for what in ("gold", "logprob"))
        return cls(study, gold.reshape(shape), logprobs.reshape(shape), fits)

    def gold_units(self, gold: Float) -> Float:
        return np.asarray((gold - self.gold.mean()) / self.gold.std())

    def unit(self, proxy: str, seed: int) -> tuple[float, float]:
        scores = self.scores(proxy, seed)
        return float(scores.mean()), float(scores.std()) or 1.0

    def scores(self, proxy: str, seed: int) -> Float:
        """[P, N]: what the reward that agents climb says, members in one unit as in `RewardEnsemble`."""
        made: Proxy = self.study.proxies[proxy]
        fits = [self.fits[seed, fitting.name] for fitting in made.fits]
        odds = np.array([fit["log_odds_per_point"] for fit in fits])
        members = np.array([fit["pool"] for fit in fits]) * (odds / odds.mean())[:, None]
        if made.members > 1:
            return combined(members, made.combination, penalty=made.penalty).reshape(self.gold.shape)
        return np.asarray(members[0].reshape(self.gold.shape))

    def accuracy(self, proxy: str) -> list[float]:
        made = self.study.proxies[proxy]
        return [self.fits[seed, it.name]["accuracy"] for seed in self.study.seed_numbers for it in made.fits]

    def best_of(self, proxy: str, seed: int, counts: Sequence[int]) -> tuple[Float, Float, Float]:
        """d [C], gold and proxy [C, P] of best-of-n for every n of `counts`, in units of the reference."""
        scores = self.scores(proxy, seed)
        zero, unit = self.unit(proxy, seed)
        weights = np.array([[best_of_n_weights(row, n) for row in scores] for n in counts])
        gold, proxies = (
            np.einsum("cpn,pn->cp", weights, it) for it in (self.gold_units(self.gold), (scores - zero) / unit)
        )
        return np.sqrt([best_of_n_kl(n) for n in counts]), gold, proxies


def _best_of(pool: _Pool, n: int, stream: np.random.Generator) -> BestOf:
    seeds = pool.study.seed_numbers
    curves = [pool.best_of("base", seed, [n]) for seed in seeds]
    kl = [
        float(np.mean([estimated_best_of_n_kl(*row, n) for row in zip(scores, pool.logprobs, strict=True)]))
        for scores in (pool.scores("base", seed) for seed in seeds)
    ]
    found = (kl, [gold.mean() for _, gold, _ in curves], [proxy.mean() for _, _, proxy in curves])
    return BestOf(n, best_of_n_kl(n), *(estimate(mean, np.array(it), stream=stream) for it in found))


# ---------------------------------------------------------------- claims


def _tested(study: Study, lines: Sequence[ProxyLine], stream: np.random.Generator) -> list[Tested]:
    """Each claim as a paired test over the seeds that all its runs have; Holm's correction is for all of them."""
    peaks: dict[str, dict[int, tuple[float, float, bool]]] = {
        line.proxy: {it.seed: peak for it in line.points if (peak := _peak(it)) is not None}
        for line in lines
        if line.agent == study.comparer
    }
    involved = {name for change in study.claims for name in (change.proxy, change.than)}
    shared = sorted(set(study.seed_numbers).intersection(*(peaks.get(name, {}) for name in involved)))
    if not shared:
        return []
    which = {"distance": 0, "gold": 1}

    def values(name: str, what: str) -> Float:
        return np.array([peaks[name][seed][which[what]] for seed in shared], dtype=float)

    differences = {
        change.claim: values(change.proxy, change.what) - values(change.than, change.what) for change in study.claims
    }
    # Against no difference at all: so that one correction is for all claims.
    compared = compare({**differences, "": np.zeros(len(shared))}, "", stream=stream)
    other = {"distance": "gold", "gold": "distance"}
    return [
        Tested(
            change,
            shared,
            values(change.proxy, change.what).tolist(),
            values(change.than, change.what).tolist(),
            compared[change.claim],
            estimate(
                mean,
                values(change.proxy, other[change.what]) - values(change.than, other[change.what]),
                stream=stream,
            ),
            (
                sum(peaks[change.proxy][seed][2] for seed in shared),
                sum(peaks[change.than][seed][2] for seed in shared),
            ),
        )
        for change in study.claims
    ]


def _peak(points: Points) -> tuple[float, float, bool] | None:
    """(d, gold) at the peak of the law fitted to one seed, within its data, and whether the true one is outside."""
    try:
        law = fit_law("rl", points.distance, points.gold)
    except DataError:
        return None
    end = float(points.distance.max())
    return (*law.best_within(end), law.peak is None or law.peak > end)


# ---------------------------------------------------------------- in words


def plain_findings(findings: Findings) -> JsonObject:
    """All numbers, as plain data."""
    return {
        "format": 1,
        "study": findings.study.as_json(),
        "units": "rewards: 0 is the reference's mean, 1 the standard deviation of its replies; KL in nats per response",
        "lines": [
            {
                "proxy": line.proxy,
                "agent": line.agent,
                "doubts": list(line.doubts),
                "fit": None if line.fit is None else asdict(line.fit) | {"peak_of_law": line.fit.law.peak},
                "seeds": [
                    {"seed": it.seed} | {name: getattr(it, name).tolist() for name in ("distance", "gold", "proxy")}
                    for it in line.points
                ],
            }
            for line in findings.lines
        ],
        "best_of_n": [asdict(it) for it in findings.best_of],
        "claims": [asdict(it) | {"conclusion": it.conclusion} for it in findings.tested],
        "accuracy": {name: list(values) for name, values in findings.accuracy.items()},
        "failed": list(findings.failed),
    }


def save_findings(findings: Findings, folder: str | Path) -> Path:
    """Write overoptimization.json and overoptimization.md into `folder`; the path of the latter."""
    file = Path(folder) / "overoptimization.md"
    write_json(file.with_suffix(".json"), plain_findings(findings))
    write_whole(file, as_markdown(findings))
    return file


def as_markdown(findings: Findings) -> str:
    """The tables, and in words what holds and what does not."""
    study = findings.study
    parts = [
        "# Over-optimisation",
        f"{study.seeds} seeds. Gold and proxy in units of the reference (0: its mean, 1: the standard deviation of its "
        f"replies), over {study.measured_prompts} prompts; d = sqrt(KL(policy || reference)), KL in nats a "
        "reply, sampled by the evaluator, whatever agents log. "
        f"{_penalties(study)} Intervals: 95 %, bootstrap over seeds, and over prompts for best-of-n.",
        "![gold and proxy reward against distance](overoptimization.png)",
        "## Claims",
        f"Paired over seeds ({study.comparer}; the peak of the law fitted to each seed, within its data); p after "
        "Holm's correction for all claims.",
        _table(
            ["claim", "peak's", "with", "without", "difference", "p", "", "the other difference", "outside the data"],
            [_claim_row(it) for it in findings.tested],
        ),
        "## Laws",
        "RL: R(d) = d (a - b log d); best-of-n: R(d) = d (a - b d) (Gao et al. 2023). The peak is that of the fitted "
        "curve within the data.",
        _table(
            ["", "a", "b", "peak at d", "gold there", "R²", "within a seed", "where it fails"],
            [_law_row(it) for it in findings.lines],
        ),
        "## Best of n on the base proxy",
        "log n - (n - 1)/n is exact where no reply repeats, otherwise a bound; beside it the estimate that counts "
        "replies that do.",
        _table(
            ["n", "log n - (n - 1)/n", "estimated KL", "gold", "proxy"],
            [
                [str(it.n), f"{it.bound:.3f}", _shown(it.estimated, 3), _shown(it.gold), _shown(it.proxy)]
                for it in findings.best_of
            ],
        ),
        "## Proxies",
        "Accuracy: how often a model ranks two replies to a measured prompt as gold does, mean over models (lowest to "
        "highest). A trunk is the policy's own lowest layers, and all of it is fitted. The members of an ensemble have "
        "trunks of their own, each fitted to its own bootstrap of the pairs from a random head and, like all others, "
        "from the same pretrained weights.",
        _table(
            ["proxy", "labels", "layers", "labels flipped", "models", "combination", "accuracy"],
            [_proxy_row(name, made, findings.accuracy[name]) for name, made in study.proxies.items()],
        ),
    ]
    if findings.failed:
        parts += ["## Runs that failed", "\n".join(f"- {line}" for line in findings.failed)]
    return "\n\n".join(parts) + "\n"


def claim_table(findings: Findings) -> Table:
    """The claims, for a terminal."""
    table = Table(title=f"Over-optimisation, {findings.study.seeds} seeds", title_justify="left")
    for column in ("claim", "peak's", "difference", "p", "found"):
        table.add_column(column, overflow="fold")
    for it in findings.tested:
        what = "d" if it.change.what == "distance" else "gold"
        shown = _shown(it.comparison.difference, signed=True)
        table.add_row(it.change.claim, what, shown, f"{it.comparison.adjusted:.3f}", it.conclusion)
    return table


def _penalties(study: Study) -> str:
    without = [name for name, climb in study.climbs.items() if not climb.beta]
    told = [f"{', '.join(without)}: no KL penalty"] if without else []
    told += [
        f"{name}: beta {climb.beta:g}{', from the pairs of the base proxy themselves' if climb.offline else ''}"
        for name, climb in study.climbs.items()
        if climb.beta
    ]
    return f"{'; '.join(told)}."


def _claim_row(it: Tested) -> list[str]:
    change, compared = it.change, it.comparison
    other = "gold" if change.what == "distance" else "d"
    return [
        f"{change.claim} ({change.proxy} against {change.than})",
        "d" if change.what == "distance" else "gold",
        f"{np.mean(it.here):.2f}",
        f"{np.mean(it.there):.2f}",
        _shown(compared.difference, signed=True),
        f"{compared.adjusted:.3f}",
        f"**{it.conclusion}**",
        f"{other} {_shown(it.beside, signed=True)}",
        f"{it.outside[0]} and {it.outside[1]} of {len(it.seeds)}",
    ]


def _law_row(line: ProxyLine) -> list[str]:
    if line.fit is None:
        return [line.name, "", "", "", "", "", "", "; ".join(line.doubts)]
    fit = line.fit
    numbers = [_shown(it) for it in (fit.a, fit.b, fit.peak, fit.highest)]
    return [line.name, *numbers, f"{fit.r2:.2f}", f"{fit.r2_alone:.2f}", "; ".join(line.doubts)]


def _proxy_row(name: str, made: Proxy, accuracy: Sequence[float]) -> list[str]:
    how = f"{made.combination}" if made.members > 1 else ""
    spread = f"{np.mean(accuracy):.3f} ({min(accuracy):.3f} to {max(accuracy):.3f})"
    return [name, str(made.labels), str(made.layers), f"{100 * made.flips:g} %", str(made.members), how, spread]


def _shown(it: Estimate, digits: int = 2, *, signed: bool = False) -> str:
    plus = "+" if signed else ""
    if it.low is None or it.high is None:
        return f"{it.value:{plus}.{digits}f}"
    return f"{it.value:{plus}.{digits}f} [{it.low:{plus}.{digits}f}, {it.high:{plus}.{digits}f}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
