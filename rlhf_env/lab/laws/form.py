"""The form in which every law is declared, and how one is judged.

A law measures one number a seed, its **effect**, signed so that the claim predicts it to be positive. Before anything
is concluded, a pilot on seeds that the run does not use says how far seeds differ; from that and the smallest effect
that would matter follows the number of seeds. Then the run, and one of three verdicts:

- confirmed: the interval lies above 0, and the effect is at least the smallest that matters;
- refuted: the interval lies below the smallest effect that matters;
- inconclusive: neither, with the number of seeds that would decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from rlhf_env.lab.laws.power import POWER, power_of, seeds_needed
from rlhf_env.lab.statistics import Estimate, mean_of_seeds

ClaimVerdict = Literal["confirmed", "refuted", "inconclusive"]
TellClaim = Callable[[float, str], None]
PILOT_SEEDS = range(1000, 1008)
FEWEST = 10


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim."""

    name: str
    """As in `rlhf-env lab laws NAME`."""
    claim: str
    """What the paper says, in one sentence."""
    source: str
    """The paper: authors, year, arXiv number."""
    prediction: str
    """What `measure` gives, with its unit, and what the claim predicts of it."""
    smallest: float
    """The smallest effect that matters, above 0. Where the interval lies below it, the claim is refuted."""
    measure: Callable[[int, float], float]
    """From a seed and a place on the axis to the effect."""
    prepare: Callable[[Sequence[int], int, TellClaim], None] | None = None
    """Makes what `measure` of these seeds needs, in up to so many processes, and says how far it is."""
    at: float = 0.0
    """The place on the axis at which the claim is judged."""
    axis: str = ""
    """What is varied to find where the sign turns; empty: nothing."""
    places: Sequence[float] = ()
    """Where on the axis it is measured as well."""
    place_seeds: int = 40
    """Seeds at each of those places, from 0 on."""
    most: int = 200
    """More seeds than this are not run, whatever the analysis asks for: half an hour is the limit."""
    pilot: Sequence[int] = PILOT_SEEDS
    """The seeds of the pilot; the run has 0, 1, ..."""
    teaches: str = ""
    """What of it became part of the product, or what to do about it."""


@dataclass(frozen=True)
class Analysis:
    """What is written down before the run."""

    pilot: Sequence[int]
    """Seeds of the pilot."""
    pilot_effects: Sequence[float]
    """Their effects."""
    effect: float
    """The effect that the run is to see: the smallest that matters. Only where that takes more seeds than can be run,
    and the pilot suggests that it is larger, half of the pilot's mean."""
    spread: float
    """The standard deviation from seed to seed."""
    needed: int | None
    """Seeds for a power of 0.9; None: more than can be counted."""
    seeds: int
    """Seeds of the run."""
    power: float
    """The chance of a run of so many seeds to see `effect`."""

    @property
    def sentence(self) -> str:
        needed = "more than can be run" if self.needed is None else f"{self.needed}"
        return (
            f"pilot on seeds {self.pilot[0]} to {self.pilot[-1]}: mean {np.mean(self.pilot_effects):.3g}, spread "
            f"{self.spread:.3g}; to see {self.effect:.3g} with a power of {POWER:g}: {needed} seeds; run: {self.seeds} "
            f"(power {self.power:.2f})"
        )


@dataclass(frozen=True)
class Place:
    """A law at one place of its axis."""

    at: float
    effect: Estimate
    verdict: ClaimVerdict


@dataclass(frozen=True)
class ClaimOutcome:
    """What the run says."""

    law: Claim
    analysis: Analysis
    effects: Sequence[float]
    effect: Estimate
    verdict: ClaimVerdict
    would_decide: int | None
    """Of an inconclusive law: the seeds that would decide, if seeds differ as far as those of the run did."""
    places: Sequence[Place]
    seconds: float
    """Processor time of pilot, run and places."""

    @property
    def turns(self) -> str:
        """Where the sign turns, or what holds along the axis; empty without one."""
        if not self.places:
            return ""
        signs = [(place.at, _sign(place.effect)) for place in self.places]
        known = [(at, sign) for at, sign in signs if sign]
        turns = [f"between {a:g} and {b:g}" for (a, one), (b, other) in pairwise(known) if one != other]
        nothing = [f"{at:g}" for at, sign in signs if not sign]
        if turns:
            return f"the sign turns {' and '.join(turns)} ({self.law.axis})"
        if len(nothing) == len(signs):
            return f"no sign at any place ({self.law.axis})"
        beside = f", none at {', '.join(nothing)}" if nothing else ""
        first, last = known[0][0], known[-1][0]
        along = f"the same sign from {first:g} to {last:g}" if len(known) > 1 else f"a sign at {first:g} alone"
        return f"{along}{beside} ({self.law.axis})"


def _silent(share: float, note: str) -> None:
    """Nobody listens."""


def analyse(law: Claim, *, jobs: int = 0, tell: TellClaim = _silent) -> Analysis:
    """Run the pilot, and say how many seeds the run will have. `jobs`: processes for what can be done side by side."""
    if law.prepare is not None:
        law.prepare(law.pilot, jobs, lambda share, note: tell(share, f"{law.name}: pilot, {note}"))
    effects = np.array([law.measure(seed, law.at) for seed in law.pilot])
    spread = float(effects.std(ddof=1))
    effect, needed = law.smallest, seeds_needed(law.smallest, spread)
    if needed is None or needed > law.most:
        effect = max(law.smallest, float(effects.mean()) / 2.0)
        needed = seeds_needed(effect, spread)
    seeds = min(law.most, max(FEWEST, needed or law.most))
    return Analysis(list(law.pilot), effects.tolist(), effect, spread, needed, seeds, power_of(effect, spread, seeds))


def judge(law: Claim, effects: Sequence[float]) -> tuple[Estimate, ClaimVerdict]:
    """The mean effect with its interval, and what it allows to be said."""
    values = np.asarray(effects, dtype=np.float64)
    effect = mean_of_seeds(values, paired=True)
    if effect.low is None or effect.high is None:  # all alike: an exact number
        low = high = effect.value
    else:
        low, high = effect.low, effect.high
    if low > 0.0 and effect.value >= law.smallest:
        return effect, "confirmed"
    return effect, "refuted" if high < law.smallest else "inconclusive"


def run_law(
    law: Claim,
    analysis: Analysis,
    *,
    seeds: int | None = None,
    jobs: int = 0,
    tell: TellClaim = _silent,
) -> tuple[list[float], dict[float, list[float]]]:
    """The effects of the run's seeds, and those at every place of the axis; `tell` hears the share done."""
    count = analysis.seeds if seeds is None else seeds
    if law.prepare is not None:
        law.prepare(range(count), jobs, lambda share, note: tell(share, f"{law.name}: {note}"))
        tell = _silent  # what is left takes no time
    total = count + len(law.places) * min(law.place_seeds, count)
    done = 0

    def measured(at: float, number: int) -> list[float]:
        nonlocal done
        found = []
        for seed in range(number):
            tell(done / total, f"{law.name}: seed {seed}")
            found.append(float(law.measure(seed, at)))
            done += 1
        return found

    effects = measured(law.at, count)
    places = {at: measured(at, min(law.place_seeds, count)) for at in law.places}
    return effects, places


def conclude_claim(
    law: Claim,
    analysis: Analysis,
    effects: Sequence[float],
    places: Mapping[float, Sequence[float]],
    seconds: float,
) -> ClaimOutcome:
    effect, verdict = judge(law, effects)
    decide = None
    if verdict == "inconclusive":
        decide = seeds_needed(max(law.smallest, abs(effect.value)) / 2.0, float(np.std(effects, ddof=1)))
    along = [Place(at, *judge(law, values)) for at, values in sorted(places.items())]
    return ClaimOutcome(law, analysis, list(effects), effect, verdict, decide, along, seconds)


def _sign(effect: Estimate) -> int:
    if abs(effect.value) < 1e-9:  # 0 but for rounding, whose sign an interval may even exclude
        return 0
    if effect.low is None or effect.high is None:
        return int(np.sign(effect.value))
    return 1 if effect.low > 0.0 else -1 if effect.high < 0.0 else 0
