"""What a metric is: one number of an agent's replies, and the words that explain it to a reader."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from rlhf_env.errors import PluginError
from rlhf_env.lab.statistics import Estimate
from rlhf_env.types import Episode, Float, JsonObject, Task

if TYPE_CHECKING:
    from rlhf_env.lab.evaluation.asked import PromptsAsked
    from rlhf_env.learning.rollout import Rollout

_NAME = re.compile(r"[a-z][a-z0-9_]*")  # it is a key of files, and a part of the names of figures


@dataclass(frozen=True)
class Measured:
    """What an agent wrote for the evaluation prompts: N replies, those that could not be scored left out.

    Some prompts may have several replies, which are not independent: `prompts` says whose they are.
    """

    rollout: Rollout
    """The replies as tensors, with the `Score` of each."""
    task: Task
    """The task that asked: the held-out part of it, where it has one."""
    rewards: Mapping[str, Float]
    """float64[N] each: "objective", and "proxy" and "gold" where there are such rewards."""
    divergence: Float
    """float64[N]: log p - log p_reference of each reply, in nats, whose mean estimates the KL."""
    kl_bound: float | None = None
    """The analytic bound on the KL of an agent that states one, whose replies are picked from several."""
    kl_exact: float | None = None
    """KL(agent || reference) where so few texts are possible that it is a sum over all of them."""
    thrown_away: int = 0
    """Tokens written beside the replies."""
    resampled: bool = False
    """Whether the answers were drawn otherwise than in training (`[evaluation] decoding`)."""
    unscored: int = 0
    """Replies left out, because a reward part failed on them and is to skip them, or none had anything to say."""
    asked: PromptsAsked | None = None
    """Which prompts these are, where the evaluator said it."""

    @property
    def prompts(self) -> Sequence[str]:
        """The text that each reply answers."""
        return [episode.prompt.text for episode in self.episodes]

    @property
    def episodes(self) -> Sequence[Episode]:
        return self.rollout.episodes

    @property
    def texts(self) -> list[str]:
        return [episode.response for episode in self.episodes]


MetricValue: TypeAlias = float | Float | Estimate | None
NumberForm = Literal["number", "share", "count"]
Table = Literal["table", "replies", "spending"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of evaluations: how it is measured and shown. Reports show `title`, `unit` and `meaning`."""

    name: str
    """The key in results and, after "eval/", in the log of a run: lower-case letters, digits and underscores."""
    title: str
    """Above its curve and in the legend."""
    heading: str = ""
    """Above its column; empty: the title."""
    unit: str = ""
    meaning: str = ""
    better: Literal["higher", "lower"] | None = None
    """Which way is better, where that can be said of the number alone."""
    measure: Callable[[Measured], MetricValue] | None = None
    """A number, or None where there is none to give; float64[N], one for each reply, of which the mean and, as
    `<name>_std`, the spread are kept; or an Estimate, kept with its ends `<name>_low` and `<name>_high`."""
    spent: bool = False
    """Whether it is the run's counter of that name (`learning.spending.Spending`) and nothing that is measured."""
    form: NumberForm = "number"
    """How it is written: as a number or a share in percent with this many `digits`, or as a short count (12k)."""
    digits: int = 2
    tables: tuple[Table, ...] = ("replies",)
    """The tables of the report with a column for it. "table" is also printed in the terminal, which has little room."""
    spread: bool = True
    """Whether the lowest and the highest seed stand beside the mean."""
    curve: Literal["", "curves", "drift"] = ""
    """The section of the report with its curve along training: the rewards' or the replies'. Empty: no curve."""
    exact: str = ""
    """The metric that stands in its place in tables where it was measured."""
    bound: str = ""
    """The metric that is 1 where this one is an upper bound."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name.endswith(("_std", "_low", "_high")):
            raise PluginError(
                f"the metric {self.name!r} needs another name: a letter, then letters, digits and underscores, all "
                "lower-case, without one of the endings _std, _low and _high, which are those of intervals"
            )
        if not 0 <= self.digits <= 9:
            raise PluginError(f"the metric {self.name!r}: digits must be in 0..9, got {self.digits}")

    @property
    def words(self) -> JsonObject:
        """Everything but how it is measured, as plain data: enough for a report of results on another machine."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "measure"}

    def __call__(self, replies: Measured, /) -> dict[str, float]:
        """Its numbers by their keys; none where there is nothing to measure. Raises PluginError where it breaks."""
        try:
            value = self.measure(replies) if self.measure is not None else None
            if value is None:
                return {}
            if isinstance(value, Estimate):
                ends = {f"{self.name}_low": value.low, f"{self.name}_high": value.high}
                return {self.name: value.value, **{key: end for key, end in ends.items() if end is not None}}
            if isinstance(value, np.ndarray) and value.ndim:
                return {self.name: float(value.mean()), f"{self.name}_std": float(value.std())}
            return {self.name: float(value)}
        except (Exception, SystemExit) as error:  # a plugin's: any may come
            raise PluginError(
                f"the metric {self.name!r} cannot be measured: {type(error).__name__}: {error}"
            ) from error
