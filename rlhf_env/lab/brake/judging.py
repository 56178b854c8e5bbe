"""Rules are chosen on one half of the runs and reported on the other.

Of each run a rule keeps one evaluation's policy. It is **well kept** with at least 90 % of the run's peak gold; a
**false stop** ended the run before its gold had first come so far: it would have become better. Thresholds are chosen
for the most well kept among those with at most 5 % false stops, on the seeds of one parity, and reported on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from rlhf_env.errors import DataError
from rlhf_env.feedback.reward_models.calibration import wilson_interval
from rlhf_env.lab.brake.asking import ASKED_FAMILIES, BrakeDecision, ask, ways_of_asking
from rlhf_env.lab.brake.libraries import (
    installed,
    reward_scope_alerts,
    rlwatch_alerts,
    rlwatch_settings,
)
from rlhf_env.lab.brake.records import ENOUGH, SavedRun
from rlhf_env.lab.brake.signals import SIGNALS, thresholds_of
from rlhf_env.types import Float

WELL_KEPT, FALSE_STOPS = 0.8, 0.05
Decide = Callable[[SavedRun], BrakeDecision]


@dataclass(frozen=True)
class RuleToTry:
    """A rule with its settings."""

    words: str
    decide: Decide


@dataclass(frozen=True)
class Tally:
    """What a rule came to on some runs."""

    runs: int
    kept_well: int
    false_stops: int
    stopped: int
    needless: int
    """Of the runs that needed no brake, how many it made worse than 90 % of their peak."""
    sound: int
    """Runs that needed no brake."""
    kept: float
    """Mean share of the peak, at least 0 each."""
    labels: float
    """Judgements of a run, mean."""
    updates: float
    """Share of the budget that was spent, mean."""

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the share that is well kept."""
        return wilson_interval(self.kept_well / self.runs, self.runs)

    @property
    def false_interval(self) -> tuple[float, float]:
        return wilson_interval(self.false_stops / self.runs, self.runs)

    @property
    def rescued(self) -> int:
        """Of the runs that needed a brake, how many it kept well."""
        return self.kept_well - (self.sound - self.needless)

    @property
    def holds(self) -> bool:
        """Whether both parts of the bar are met."""
        return self.kept_well >= WELL_KEPT * self.runs and self.false_stops <= FALSE_STOPS * self.runs


@dataclass(frozen=True)
class BrakeVerdict:
    """A family of rules: the settings that were chosen, and what they came to on both halves."""

    family: str
    picked_settings: str
    on_choice: Tally
    on_held_out: Tally
    tried: int
    """How many settings were tried."""
    elsewhere: Tally | None
    """On runs of another study, with the same settings; None without them, or where nobody can be asked."""
    by_group: Mapping[str, Tally]
    """On the held-out runs, by design and way."""

    @property
    def asks(self) -> bool:
        """Whether it pays for judgements."""
        return self.family in ASKED_FAMILIES


def tally(records: Sequence[SavedRun], decide: Decide) -> Tally:
    """Replay a rule on runs."""
    kept_well = false_stops = stopped = needless = sound = 0
    kept, labels, spent = [], [], []
    for record in records:
        decision, last = decide(record), len(record.gold) - 1
        share = record.kept(decision.kept)
        well = share >= ENOUGH
        first = next(place for place in range(last + 1) if record.kept(place) >= ENOUGH)
        kept_well += well
        stopped += decision.stopped is not None
        false_stops += decision.stopped is not None and not well and decision.stopped < first
        sound += not record.needs_brake
        needless += not record.needs_brake and not well
        kept.append(max(0.0, share))
        labels.append(decision.labels)
        spent.append((last if decision.stopped is None else decision.stopped) / max(last, 1))
    means = [float(np.mean(values)) for values in (kept, labels, spent)]
    return Tally(len(records), kept_well, false_stops, stopped, needless, sound, *means)


def rules_to_try(
    records: Sequence[SavedRun], choice: Sequence[SavedRun], *, libraries: bool
) -> Iterator[tuple[str, list[RuleToTry]]]:
    """All that is compared. `choice`: the runs that thresholds are taken from."""
    yield "never stop", [RuleToTry("", lambda record: BrakeDecision(None, len(record.gold) - 1))]
    for name, signal in SIGNALS.items():
        values = {id(record): signal(record) for record in records}
        yield name, _above(values, thresholds_of([values[id(record)] for record in choice]))
    if libraries and "rlwatch" in installed():
        alerts = {id(record): rlwatch_alerts(record) for record in records}
        yield "rlwatch, as it comes: the first alert", _above(alerts, [0.0])
        several: list[RuleToTry] = []
        for words, changes in rlwatch_settings().items():
            of_record = {id(record): rlwatch_alerts(record, changes) for record in records}
            several += [RuleToTry(words, one.decide) for one in _above(of_record, [0.0])]
        yield "rlwatch, its thresholds chosen", several
    if libraries and "reward_scope" in installed():
        alerts = {id(record): reward_scope_alerts(record) for record in records}
        yield "reward-scope, as it comes: the first alert", _above(alerts, [0.0])
        yield "reward-scope, so many alerts", _above(alerts, thresholds_of([alerts[id(record)] for record in choice]))
    for family, (kind, texts) in ASKED_FAMILIES.items():
        yield family, [RuleToTry(way.words, partial(ask, asking=way)) for way in ways_of_asking(kind, texts)]


def _above(values: Mapping[int, Float], thresholds: Sequence[float]) -> list[RuleToTry]:
    """Stop at the first evaluation after the beginning at which a signal is above a threshold; the last policy is
    kept."""

    def at(threshold: float) -> Decide:
        def decide(record: SavedRun) -> BrakeDecision:
            above = np.flatnonzero(values[id(record)][1:] > threshold)
            if not above.size:
                return BrakeDecision(None, len(record.gold) - 1)
            return BrakeDecision(int(above[0]) + 1, int(above[0]) + 1)

        return decide

    return [RuleToTry(f"above {threshold:.3g}", at(threshold)) for threshold in thresholds]


def pick(candidates: Sequence[RuleToTry], choice: Sequence[SavedRun]) -> tuple[RuleToTry, Tally]:
    """The most well kept of those with few false stops; where none has few, the fewest false stops. Of equals the
    cheaper, in labels and then in updates."""
    found = [(candidate, tally(choice, candidate.decide)) for candidate in candidates]

    def worth(pair: tuple[RuleToTry, Tally]) -> tuple[bool, float, float, float]:
        _, it = pair
        allowed = it.false_stops <= FALSE_STOPS * it.runs
        return allowed, it.kept_well if allowed else -it.false_stops, -it.labels, -it.updates

    return max(found, key=worth)


def compare_brakes(
    records: Sequence[SavedRun],
    elsewhere: Sequence[SavedRun] = (),
    *,
    libraries: bool = True,
    tell: Callable[[float, str], None] = lambda share, note: None,
) -> list[BrakeVerdict]:
    """Every family, chosen on the even seeds and reported on the odd ones. Raises DataError where a half is empty."""
    choice, held_out = ([record for record in records if record.seed % 2 == half] for half in (0, 1))
    if not choice or not held_out:
        raise DataError("rules are chosen on the even seeds and reported on the odd ones: runs of both are needed")
    groups = sorted({record.group for record in held_out})
    verdicts = []
    for number, (family, candidates) in enumerate(rules_to_try([*records, *elsewhere], choice, libraries=libraries)):
        tell(min(0.99, number / (len(SIGNALS) + len(ASKED_FAMILIES) + 5)), family)
        if not candidates:  # the signal is nowhere known
            continue
        picked, on_choice = pick(candidates, choice)
        others = tally(elsewhere, picked.decide) if elsewhere and family not in ASKED_FAMILIES else None
        by_group = {
            group: tally([record for record in held_out if record.group == group], picked.decide) for group in groups
        }
        on_held_out = tally(held_out, picked.decide)
        verdicts.append(BrakeVerdict(family, picked.words, on_choice, on_held_out, len(candidates), others, by_group))
    return verdicts
