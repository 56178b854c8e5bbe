"""How parts of a reward are changed over a run before they are summed up: the table `shaping` of a part.

    [rewards.length]
    plugin = "length"
    target = 8
    shaping = { schedule = [[0.0, 0.0], [0.5, 0.3]], only_if = "task >= 1", normalise = "group", clip = [-2.0, 2.0] }

What a part said stays in the ledger as it was. A changed weight (`schedule`, `target`) is the `Score.weights` of the
texts that were paid with it; a changed score has a line of its own after the part's, `length/shaping`, of the same
weight: what was paid less what was said. So `sum(weight * raw) == reward` holds to the bit, as without shaping.

Shaping is of training. Evaluations, gold rewards and agents that score texts of their own (best_of_n) ask the parts
themselves, with the weights of the objective.

What is learned on the way (running means, weights that are steered) is learned from texts that have ended, when the
environment resets: all rows of a rollout are paid by one snapshot, in every view. It is part of a checkpoint.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from annotated_types import MinLen

from rlhf_env.envs.success import Success
from rlhf_env.errors import ConfigError, Problem, did_you_mean
from rlhf_env.settings import AtLeastOne, Name, Positive, fault, settings
from rlhf_env.types import Episode, Float, Int, Score, State

_EPSILON = 1e-6  # beside a group's standard deviation, as in `learning.advantages.group_advantages`
_NO_SPREAD = 1e-8  # standard deviations below this are rounding


@settings
class Shaped:
    """How a part's scores are changed in training before they are summed up; evaluations measure them unchanged.

    First `only_if`, then `normalise`, then `clip`; `schedule` and `target` change the weight.
    """

    schedule: Annotated[list[tuple[float, float]], MinLen(1)] | None = None
    """Points [share of the budget, weight], in between on a line: the weight in training. The objective that
    evaluations measure has the part's `weight`, by default that of the last point."""
    only_if: Name | None = None
    """Pay the part only where another one says so, "PART >= NUMBER"; elsewhere it is 0: a length that counts in right
    answers alone, say."""
    normalise: Literal["group", "running"] | None = None
    """"group": (score - mean) / (standard deviation + 1e-6) of the answers to one prompt, which makes the sum that of
    GDPO (2601.05242, eq. 4). "running": by mean and standard deviation of all texts of the run so far; in the first
    rollout nothing is known, and scores stay as they are."""
    by_task: bool = False
    """"running" by each task of a mixture for itself."""
    clip: tuple[float, float] | None = None
    """The least and the most that is paid, before the weight."""
    target: float | None = None
    """Steer the weight so that the mean of the part's scores is at least this: after each rollout, weight + (target -
    mean) * texts / `horizon`, in [0, `most`]. It begins with `weight`, which is that of the objective."""
    horizon: AtLeastOne = 1_000
    """With `target`: texts in which a mean that is 1 off moves the weight by 1."""
    most: Positive = 10.0
    """With `target`: the largest weight."""

    def problems(self) -> Iterator[Problem]:
        shares = [point[0] for point in self.schedule or ()]
        if not all(0.0 <= share <= 1.0 for share in shares):
            yield fault("schedule", f"must have shares of the budget from 0 to 1, got {shares}")
        if any(not before < after for before, after in itertools.pairwise(shares)):
            yield fault("schedule", f"must have points in order, each later than the one before, got {shares}")
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            yield fault("clip", f"must be a lower number and a higher one, got {list(self.clip)}")
        if self.by_task and self.normalise != "running":
            yield fault("by_task", 'is of normalise = "running"; in a group all texts are of one task anyway')
        if self.target is not None and self.schedule is not None:
            yield fault("target", "and schedule both set the weight: leave one out")
        if self.only_if is not None:
            try:
                Success.read(self.only_if)
            except ConfigError as error:
                yield fault("only_if", f"= {error}")

    @property
    def changes_scores(self) -> bool:
        """Whether the part has a line of its own in the ledger for what is changed."""
        return self.only_if is not None or self.normalise is not None or self.clip is not None

    @property
    def steers_weight(self) -> bool:
        """Whether the part's weight changes over a run."""
        return self.schedule is not None or self.target is not None

    @property
    def of_the_objective(self) -> float | None:
        """The weight that the schedule ends with."""
        return None if self.schedule is None else float(self.schedule[-1][1])


@settings(kw_only=False)
class Total:
    """Nothing by itself: its table `shaping` says how the sum of all other parts but the KL penalty is changed.

    So scores are normalised after the sum, where the `shaping` of a part normalises before it. The ledger's line
    `total/shaping` is the sum as it is paid, less the sum as it was.
    """

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        return np.zeros(len(episodes))


def line_of(part: str) -> str:
    """The ledger's line of what shaping changed in a part's score."""
    return f"{part}/shaping"


def shaping_problems(
    shaping: Mapping[str, Shaped],
    of_tasks: Collection[str],
    parts: Collection[str],
    *,
    totals: Collection[str],
    tokens: Collection[str],
    kl: Collection[str],
) -> Iterator[Problem]:
    """What the shaping of a mix's `parts` asks for and cannot have. `totals`, `tokens`, `kl`: which are such parts."""
    for name in totals:
        if name not in shaping or not (shaping[name].normalise or shaping[name].clip):
            said = f"reward {name!r} is how the sum of the others is paid: give it shaping = {{ normalise = ... }}"
            yield Problem(f"{said}, or clip", (name, "shaping"))
    for name in of_tasks:
        if name in kl:
            said = f"reward {name!r} is the KL penalty, of which an objective has one, with one weight: leave out tasks"
            yield Problem(said, (name, "tasks"))
    for name, its in shaping.items():
        where = (name, "shaping")
        if line_of(name) in parts:
            said = (
                f"reward {name!r}: what shaping changes in it is the line {line_of(name)!r}, and a part has that name"
            )
            yield Problem(said, where)
        if name in kl and its.target is not None:
            said = f"reward {name!r}: the KL penalty has a controller of its own: target, without shaping"
            yield Problem(said, (*where, "target"))
        if name in tokens and its.changes_scores:
            said = f"reward {name!r} is paid token by token: its shaping is a schedule, and nothing else"
            yield Problem(said, where)
        if name in totals and (its.only_if is not None or its.steers_weight):
            said = f"reward {name!r} is how the sum is paid: only_if, schedule and target are of its parts"
            yield Problem(said, where)
        if its.only_if is not None and (told_by := Success.read(its.only_if).part) not in set(parts) - {name, *totals}:
            others = [other for other in parts if other != name and other not in totals]
            said = f"reward {name!r}: only_if = {its.only_if!r}: no other part is called {told_by!r}"
            yield Problem(f"{said}{did_you_mean(told_by, others)}", (*where, "only_if"))


@dataclass
class RunningMoments:
    """Mean and spread of all numbers so far, batch after batch (Chan et al. 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """The sum of squared distances to the mean."""

    def add(self, values: Float) -> None:
        if not len(values):
            return
        count, mean = len(values), float(values.mean())
        apart, before = mean - self.mean, self.count
        self.count += count
        self.mean += apart * count / self.count
        self.squares += float(np.square(values - mean).sum()) + apart * apart * before * count / self.count

    def whitened(self, values: Float) -> Float:
        """As they are, where no number has come yet."""
        if not self.count:
            return values
        spread = math.sqrt(self.squares / self.count)
        return (values - self.mean) / (spread if spread > _NO_SPREAD else 1.0)


@dataclass
class PartShaping:
    """The shaping of one part: what its settings say, and what it has learned on the way."""

    shaping: Shaped
    weight: float
    """In training, now."""
    _moments: dict[str, RunningMoments] = field(default_factory=dict)

    def follow(self, progress: float) -> None:
        """`progress`: the share of the budget that is spent."""
        if self.shaping.schedule is not None:
            shares, weights = zip(*self.shaping.schedule, strict=True)
            self.weight = float(np.interp(progress, shares, weights))

    def paid(self, values: Float, tasks: Sequence[str], groups: Int) -> Float:
        """float64[N] of `values` float64[N], which are 0 already where `only_if` says so."""
        if self.shaping.normalise == "group":
            values = _normalised_by(groups, values)
        elif self.shaping.normalise == "running":
            labels = self._labels(tasks)
            seen = {label: self._moments.get(label, RunningMoments()) for label in dict.fromkeys(labels)}
            values = np.array(
                [seen[label].whitened(values[row : row + 1])[0] for row, label in enumerate(labels)], dtype=np.float64
            )
        return values if self.shaping.clip is None else np.clip(values, *self.shaping.clip)

    def observe(self, values: Float, tasks: Sequence[str]) -> None:
        """Learn from the scores of texts that have ended: `values` as `paid` takes them."""
        shaping = self.shaping
        if shaping.normalise == "running":
            labels = np.array(self._labels(tasks))
            for label in dict.fromkeys(labels.tolist()):
                self._moments.setdefault(label, RunningMoments()).add(values[labels == label])
        if shaping.target is not None and len(values):
            moved = self.weight + float((shaping.target - values).sum()) / shaping.horizon
            self.weight = min(max(moved, 0.0), shaping.most)

    def _labels(self, tasks: Sequence[str]) -> list[str]:
        return list(tasks) if self.shaping.by_task else [""] * len(tasks)

    def state_dict(self) -> State:
        seen = self._moments
        return {
            "weight": self.weight,
            "tasks": list(seen),
            "count": [moments.count for moments in seen.values()],
            "mean": [moments.mean for moments in seen.values()],
            "squares": [moments.squares for moments in seen.values()],
        }

    def load_state_dict(self, state: State) -> None:
        self.weight = float(state["weight"])
        columns = (state["tasks"], state["count"], state["mean"], state["squares"])
        self._moments = {
            str(label): RunningMoments(int(count), float(mean), float(squares))
            for label, count, mean, squares in zip(*columns, strict=True)
        }


def _normalised_by(groups: Int, values: Float) -> Float:
    """Each value by mean and standard deviation (n - 1) of its group; exactly 0 where all of a group are equal."""
    found = np.zeros(len(values))
    for group in np.unique(groups):
        rows = groups == group
        own = values[rows]
        if own.min() != own.max():
            found[rows] = (own - own.mean()) / (own.std(ddof=1) + _EPSILON)
    return found


class MixShaping:
    """The shaping of the parts of a mix.

    `weights`: of the objective, by part. `kl`: the name of the KL penalty, which is no part of the sum that is shaped.
    """

    def __init__(
        self,
        shapings: Mapping[str, Shaped],
        weights: Mapping[str, float],
        totals: Sequence[str],
        kl: Sequence[str],
    ) -> None:
        self.parts = {name: PartShaping(shaping, weights[name]) for name, shaping in shapings.items()}
        self._conditions = {
            name: Success.read(shaping.only_if) for name, shaping in shapings.items() if shaping.only_if is not None
        }
        self._totals = tuple(totals)
        self._summed = [name for name in weights if name not in self._totals and name not in kl]
        for part in self.parts.values():
            part.follow(0.0)

    @property
    def by_group(self) -> tuple[str, ...]:
        """The parts that are normalised within groups."""
        return tuple(name for name, part in self.parts.items() if part.shaping.normalise == "group")

    def follow(self, progress: float) -> None:
        for part in self.parts.values():
            part.follow(progress)

    def shaped(self, episodes: Sequence[Episode], scores: Sequence[Score], group_size: int) -> list[Score]:
        """The scores with the ledger's lines of what is changed, each after its part; `weights` are what they are."""
        if self.by_group and group_size < 2:
            name = self.by_group[0]
            said = "is of answers to one prompt, and each prompt has one here: take an agent with a group_size (grpo, "
            raise ConfigError(
                Problem(
                    f'reward {name!r}: normalise = "group" {said}rloo), or "running"',
                    ("rewards", name, "shaping", "normalise"),
                )
            )
        places = np.arange(len(episodes)) // group_size
        tasks = [task_of(episode) for episode in episodes]
        lines: list[dict[str, float]] = [{} for _ in scores]
        for name in sorted(self.parts, key=lambda name: name in self._totals):  # the sum, when its parts are known
            part = self.parts[name]
            if not part.shaping.changes_scores:
                continue
            rows = [row for row, score in enumerate(scores) if name in score.raw]
            values = np.array([self._worth(name, scores[row], lines[row]) for row in rows], dtype=np.float64)
            paid = part.paid(values, [tasks[row] for row in rows], places[rows]) if rows else values
            for row, amount in zip(rows, paid.tolist(), strict=True):
                told = self._sum(scores[row], lines[row]) if name in self._totals else scores[row].raw[name]
                lines[row][name] = amount - told
        return [_with_lines(score, own) for score, own in zip(scores, lines, strict=True)]

    def observe(self, episodes: Sequence[Episode], scores: Sequence[Score]) -> None:
        """Learn from scores as `shaped` gave them."""
        for name, part in self.parts.items():
            seen = [(episode, score) for episode, score in zip(episodes, scores, strict=True) if name in score.raw]
            lines = [
                {other: score.raw[line_of(other)] for other in self.parts if line_of(other) in score.raw}
                for _, score in seen
            ]
            values = [self._worth(name, score, own) for (_, score), own in zip(seen, lines, strict=True)]
            part.observe(np.array(values, dtype=np.float64), [task_of(episode) for episode, _ in seen])

    def _worth(self, name: str, score: Score, lines: Mapping[str, float]) -> float:
        """What is to be shaped: what the part said, 0 where its condition does not hold; of a total, the sum."""
        if name in self._totals:
            return self._sum(score, lines)
        condition = self._conditions.get(name)
        if condition is None:
            return score.raw[name]
        holds = condition.part in score.raw and condition.of(np.array([score.raw[condition.part]]))[0]
        return score.raw[name] if holds else 0.0

    def _sum(self, score: Score, lines: Mapping[str, float]) -> float:
        """The weighted sum of parts and lines, without the KL penalty and what is of totals."""
        found = 0.0
        for name in self._summed:
            if name in score.raw:
                found += score.weights[name] * score.raw[name]
            if name in lines:
                found += score.weights[name] * lines[name]
        return found

    def state_dict(self) -> State:
        return {line_of(name): part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: State) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[line_of(name)])


def _with_lines(score: Score, lines: Mapping[str, float]) -> Score:
    if not lines:
        return score
    raw: dict[str, float] = {}
    weights: dict[str, float] = {}
    for name, weight in score.weights.items():
        weights[name] = weight
        if name in score.raw:
            raw[name] = score.raw[name]
        if name in lines:
            raw[line_of(name)], weights[line_of(name)] = lines[name], weight
    return Score(raw=raw, weights=weights, tokens=score.tokens, failed=score.failed, abstained=score.abstained)


def task_of(episode: Episode) -> str:
    """The label of the mixture's task that a text is of; "" outside of a mixture."""
    return str(episode.prompt.meta.get("task", ""))
