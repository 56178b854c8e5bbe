"""Settings for every agent alike: as many tries each, on prompts and seeds that no result is reported on.

An agent says what may be drawn (`ranges` beside its `Config`). The first configuration tried is the file's own; the
others are drawn from the ranges. A trial is an ordinary run with less budget, on the training prompts alone: some of
them are set apart to evaluate on (the task `validation`), so what is taken has not seen the held-out prompts. It is
measured once, at its end, by the training objective: gold is what nobody is to see.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, Any

import numpy as np
from annotated_types import Gt, Le

from rlhf_env import plugins
from rlhf_env.errors import PluginError, under
from rlhf_env.lab.benchmark.results import Trial
from rlhf_env.learning.configuration import from_table
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.ranges import Ranges
from rlhf_env.learning.spending import Budget
from rlhf_env.own_code import OwnCode
from rlhf_env.settings import AtLeastOne, Whole, settings
from rlhf_env.types import JsonObject, JsonView

FIRST_SEED = 1000  # of the trials: the report's seeds are 0, 1, ... and end below


@settings
class Tuning:
    """How agents are tuned, for each task anew.

    The configuration with the highest mean objective is taken, the first of equals; one with a failed run is not.
    """

    configurations: AtLeastOne = 1
    """Configurations tried for every agent that declares ranges, the file's own settings among them; 1 is no tuning."""
    seeds: AtLeastOne = 1
    """Runs of each configuration."""
    budget: Annotated[float, Gt(0), Le(1)] = 1.0
    """The budget of such a run, as a share of what a reported run has."""
    seed: Whole = 0
    """What the configurations are drawn from."""

    def configurations_of(self, settings: Mapping[str, object]) -> list[JsonObject]:
        """What is tried for an agent: its own `settings` (a table as under [agent]), then drawn ones.

        Only its own without ranges to draw from. Each setting has a stream of its own: agents that declare one range
        try the same values of it, and a range that is added changes no other's.
        """
        own = dict(settings)
        ranges, config = _ranges(own) if self.configurations > 1 else ({}, None)
        if not ranges:
            return [own]
        streams = {name: np.random.default_rng([self.seed, *name.encode()]) for name in ranges}
        drawn = [
            {**own, **{name: place.draw(_setting(config, name), streams[name]) for name, place in ranges.items()}}
            for _ in range(self.configurations - 1)
        ]
        return [own, *drawn]

    def trial(self, experiment: Experiment, settings: JsonView, number: int) -> Experiment:
        """`experiment` as a trial of `settings` on the `number`-th seed: less budget, validation prompts."""
        budget: JsonObject = {
            name: limit * self.budget if name == "seconds" else math.ceil(limit * self.budget)
            for name, limit in experiment.budget.limits().items()
        }
        every = experiment.evaluation.every if experiment.patience or experiment.stopping else 0
        return replace(
            experiment,
            name=f"{experiment.name}/tuning",
            seed=FIRST_SEED + number,
            task={"name": "validation", "task": experiment.task},
            agent=dict(settings),
            budget=Budget(**budget),
            evaluation=replace(experiment.evaluation, every=every),
        )


def _ranges(settings: JsonView) -> tuple[Ranges, Any]:
    """What an agent declares, and its Config with these settings. Raises what building the agent would raise."""
    own = dict(settings)
    name = plugins.name_in(own, "agent") or ""
    with under("name"):
        config = plugins.host().load("agent", name).Config
    ranges: Ranges = getattr(config, "ranges", {})
    if not ranges:
        return {}, None
    own.pop("agent", None)
    return ranges, from_table(config, own, f"[agents] {name.label if isinstance(name, OwnCode) else name}")


def _setting(config: Any, name: str) -> Any:
    """By its name in a file: a field of the Config, or of a table within it (`lr`)."""
    tables = [value for field in fields(config) if is_dataclass(value := getattr(config, field.name))]
    for place in (config, *tables):
        if any(field.name == name for field in fields(place)):
            return getattr(place, name)
    raise PluginError(f"{type(config).__qualname__}.ranges: there is no setting {name!r}")


@dataclass(frozen=True)
class Tried:
    """A configuration of an agent on a task: the mean objective of its trials, None where one failed (`error`)."""

    task: str
    agent: str
    configuration: int
    settings: JsonView
    seeds: int
    score: float | None
    error: str
    best: bool


def what_was_tried(trials: Sequence[Trial]) -> list[Tried]:
    """Every configuration, by task and agent; one of each agent's is `best`, the file's own if all have failed."""
    found: list[Tried] = []
    for task, agent in dict.fromkeys((trial.task, trial.agent) for trial in trials):
        of_agent = [trial for trial in trials if (trial.task, trial.agent) == (task, agent)]
        rows = [
            _tried([trial for trial in of_agent if trial.configuration == number])
            for number in sorted({trial.configuration for trial in of_agent})
        ]
        best = max(rows, key=lambda row: (-math.inf if row.score is None else row.score, -row.configuration))
        found += [replace(row, best=row is best) for row in rows]
    return found


def _tried(trials: Sequence[Trial]) -> Tried:
    first = trials[0]
    scores = [trial.objective for trial in trials if trial.objective is not None]
    return Tried(
        task=first.task,
        agent=first.agent,
        configuration=first.configuration,
        settings=first.settings,
        seeds=len(trials),
        score=math.fsum(scores) / len(scores) if len(scores) == len(trials) else None,
        error=next((trial.error for trial in trials if trial.error), ""),
        best=False,
    )
