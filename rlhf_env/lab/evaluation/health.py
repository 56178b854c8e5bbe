"""What goes wrong in RLHF runs, seen in their metrics: each pathology is reported once a run, with its remedy.

A `Watch` reads the rows of metrics that `train` writes, whatever the agent. A rule whose numbers an agent does not log
says nothing. The thresholds below are for the clear cases: a run without alerts may still be a bad one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_env.learning.loop import Row
from rlhf_env.learning.run_record import read_metrics

WARNINGS_FILE = "warnings.json"

# Updates in a window: the first window of a run is compared with the latest one.
WINDOW = 10
# The value function starts knowing nothing, and is given this long.
VALUE_WARM_UP = 30
_KEPT = VALUE_WARM_UP + 2 * WINDOW
# A KL below 0 is reported when it is this many standard errors and this many nats away. A correct run has mean >= 0 in
# every window, and is judged after every update: 5 leaves it one false alert in three million windows.
KL_DEVIATIONS, KL_ROUNDING = 5.0, 1e-3
# The share of its initial entropy that a policy is left with.
ENTROPY_LEFT = 0.1
GROUPS_WITHOUT_SPREAD = 0.75
# The share of what is learned from that rewards have, where the KL penalty has the rest.
FLAT = 0.1
# Length against that of the first updates; the lower factor where nearly all texts are cut at the limit.
LENGTH_FACTOR, LENGTH_FACTOR_CUT, CUT = 2.0, 1.25, 0.8


@dataclass(frozen=True)
class Alert:
    """One pathology, the update it was seen at, what was seen, and what to do about it."""

    name: str
    update: int
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name}, update {self.update}: {self.message}. {self.remedy}"


Rule = Callable[[Sequence[Row], Sequence[Row]], str | None]


class Watch:
    """Asked with every row of metrics, it gives the alerts that are new. `found`: all of this run, in the order seen.

    `rows` and `found` are what a resumed run has seen before; a row that comes again replaces those from there on.
    """

    def __init__(self, rows: Iterable[Row] = (), found: Iterable[Alert] = ()) -> None:
        self._rows = [row for row in rows if row["update"] > 0]
        self.found = list(found)

    @classmethod
    def of(cls, run: Path) -> Watch:
        """For the run in this folder, new or resumed."""
        file = run / WARNINGS_FILE
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        return cls(read_metrics(run), [Alert(**alert) for alert in found])

    def __call__(self, row: Row, /) -> list[Alert]:
        while self._rows and self._rows[-1]["update"] >= row["update"]:
            self._rows.pop()
        self._rows.append(row)
        del self._rows[_KEPT:-_KEPT]  # rules look at a run's first rows and at its latest
        known = {alert.name for alert in self.found}
        new = [
            Alert(name, int(row["update"]), message, remedy)
            for name, (rule, remedy) in RULES.items()
            if name not in known and (message := rule(self._rows, self._rows[-WINDOW:])) is not None
        ]
        self.found += new
        return new


def _negative_kl(_rows: Sequence[Row], latest: Sequence[Row]) -> str | None:
    """log p - log p_ref of texts drawn from p has a mean of at least 0, for every prompt."""
    kls, spreads, variance = _values(latest, "rollout/kl"), _values(latest, "rollout/kl_std"), 0.0
    if not kls or not spreads:
        return None
    for row, spread in zip(latest, spreads, strict=True):
        variance += spread**2 * row["update"] / max(row.get("spent/episodes", 0), 1)
    mean, error = sum(kls) / len(kls), math.sqrt(variance) / len(kls)
    if mean > -max(KL_ROUNDING, KL_DEVIATIONS * error):
        return None
    return f"KL to the reference is {mean:.3g} nats per response (standard error {error:.2g}), and no KL is negative"


def _entropy_collapse(rows: Sequence[Row], latest: Sequence[Row]) -> str | None:
    before, now = _compared(rows, latest, "rollout/entropy")
    if before is None or now is None or not now < ENTROPY_LEFT * before:
        return None
    return f"entropy fell from {before:.3g} to {now:.3g} nats per token: the policy writes nearly the same every time"


def _no_spread(_rows: Sequence[Row], latest: Sequence[Row]) -> str | None:
    shares = _values(latest, "rollout/groups_without_spread")
    if shares and sum(shares) / len(shares) >= GROUPS_WITHOUT_SPREAD:
        share = sum(shares) / len(shares)
        return f"in {share:.0%} of the groups all answers got the same reward (KL left out): they teach nothing"
    spreads = _values(latest, "rollout/reward_without_kl_std")
    if spreads and max(spreads) == 0.0:
        return f"all texts got the same reward (KL left out) in each of {len(latest)} updates: they teach nothing"
    return None


def _flat_rewards(_rows: Sequence[Row], latest: Sequence[Row]) -> str | None:
    """Low reward variance flattens the objective, whatever the accuracy (Razin et al. 2025, arXiv 2503.15477)."""
    without, whole = (_values(latest, f"rollout/{name}") for name in ("reward_without_kl_std", "reward_std"))
    if not without or not whole or not all(0.0 < a < FLAT * b for a, b in zip(without, whole, strict=True)):
        return None
    share = sum(without) / sum(whole)
    return (
        f"rewards of the texts of an update differ by {sum(without) / WINDOW:.2g}, {share:.0%} of what they differ by "
        "with the KL penalty: little but the penalty is learned from"
    )


def _length_explosion(rows: Sequence[Row], latest: Sequence[Row]) -> str | None:
    before, now = _compared(rows, latest, "rollout/length")
    _, cut = _compared(rows, latest, "rollout/cut_at_limit")
    if before is None or now is None or cut is None:
        return None
    if now < (LENGTH_FACTOR_CUT if cut >= CUT else LENGTH_FACTOR) * before:
        return None
    return f"texts grew from {before:.1f} to {now:.1f} tokens, and {cut:.0%} of them are cut at the limit"


def _value_worse_than_mean(rows: Sequence[Row], latest: Sequence[Row]) -> str | None:
    earlier, later = (_values(part, "train/explained_variance") for part in (rows[-2 * WINDOW : -WINDOW], latest))
    explained = [*earlier, *later] if earlier and later else []
    # In two windows, for a small batch is often explained badly by a value that is right on average.
    if not explained or len(rows) < VALUE_WARM_UP or max(explained) >= 0.0:
        return None
    mean = sum(explained) / len(explained)
    return f"the value function explains {mean:.2f} of the variance of the returns: their mean would do better"


RULES: Mapping[str, tuple[Rule, str]] = {
    "negative KL": (
        _negative_kl,
        "The texts do not come from the distribution that their log-probabilities are of: look for top_k, top_p or a "
        "temperature that only one of the two has, for dropout, and for a generator with old weights",
    ),
    "entropy collapse": (
        _entropy_collapse,
        "Raise the weight of the KL penalty, add an entropy bonus (entropy_coefficient) or lower the learning "
        "rate; raise clip_high where the agent has one (the upper bound of the ratio lowers entropy, rlhf-env lab laws "
        "clip-high); look at the texts for one that the reward overrates",
    ),
    "no spread in rewards": (
        _no_spread,
        "Take prompts that are neither solved nor out of reach (a curriculum), larger groups, a higher temperature, or "
        "a reward with more steps between nothing and everything",
    ),
    "flat rewards": (
        _flat_rewards,
        "Unless the task is solved, raise the weight of the reward or lower that of the KL penalty; a learned reward "
        "is judged by its spread within a prompt as well (rlhf-env scorecard): one of low variance teaches slowly, "
        "however accurate it is (rlhf-env lab laws reward-variance)",
    ),
    "length explosion": (
        _length_explosion,
        "See whether the reward pays for length (rlhf-env evaluate RUN); add the reward parts 'length' or "
        "'missing_end', or raise the weight of the KL penalty",
    ),
    "value worse than the mean": (
        _value_worse_than_mean,
        "Change the learning rate or value_coefficient, give the value a model of its own (value_model = "
        '"separate"), take larger batches, or an agent without a value (rloo, grpo)',
    ),
}


def _values(rows: Sequence[Row], key: str) -> list[float]:
    """The numbers of a full window; empty where a row has none (a log has null for what is not finite)."""
    found: list[Any] = [row.get(key) for row in rows]
    complete = len(rows) == WINDOW and all(value is not None and math.isfinite(value) for value in found)
    return [float(value) for value in found] if complete else []


def _compared(rows: Sequence[Row], latest: Sequence[Row], key: str) -> tuple[float | None, float | None]:
    """The means of the first window and of the latest, which do not overlap; None where there is none."""
    if len(rows) < 2 * WINDOW:
        return None, None
    means = [sum(values) / WINDOW if (values := _values(part, key)) else None for part in (rows[:WINDOW], latest)]
    return means[0], means[1]
