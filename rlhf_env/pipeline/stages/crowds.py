"""The simulated annotators of a pipeline's stages, and the gold reward that they go by."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from rlhf_env.envs.reward_tables import RewardTable, load_rewards
from rlhf_env.envs.tasks import load_task
from rlhf_env.errors import ConfigError, Problem, under
from rlhf_env.feedback.asking.annotators import Annotator, SimulatedAnnotator, asks_for_gold, load_annotator
from rlhf_env.types import Episode, Float, JsonView, Reward
from rlhf_env.whole_files import write_json

_TASTE = "annotator.json"


def gold_reward(table: JsonView, task: JsonView) -> Reward:
    """What a table of rewards says of each text alone: the weighted sum, float64[B]; a function answers with a list."""
    with under("gold"):
        mix = load_rewards(dict(table), load_task(dict(task)), measured=True)
        if mix.of_tasks:
            said = "gold of annotators is one sum for all prompts: leave out tasks"
            raise ConfigError(Problem(said, (next(iter(mix.of_tasks)), "tasks")))
    parts = {name: part for name, part in mix.parts.items() if callable(part)}
    if len(parts) != len(mix.parts) or not parts:
        others = ", ".join(sorted(set(mix.parts) - set(parts))) or "none is named"
        raise ConfigError(Problem(f"gold must be rewards that score a text alone: {others}", ("gold",)))
    weights = mix.weights

    def weighted(episodes: Sequence[Episode]) -> Float:
        each = [weights[name] * np.asarray(part(episodes), dtype=np.float64) for name, part in parts.items()]
        return np.asarray(np.sum(each, axis=0), dtype=np.float64)

    return weighted


def check_crowd(gold: JsonView, annotator: JsonView) -> None:
    """Raises ConfigError for names and settings that no plugin has; no reward is built."""
    problems: dict[str, None] = {}

    def look(check: Callable[[], object], *keys: str) -> None:
        try:
            with under(*keys):
                check()
        except ConfigError as error:
            problems.update(dict.fromkeys(error.problems))

    if not gold and asks_for_gold(annotator):
        said = "gold: what the annotators go by is missing: a table [stage.gold.NAME], or [defaults.evaluation.rewards]"
        problems[Problem(said, ("gold",))] = None
    for name, table in gold.items():
        if isinstance(table, (int, float, Mapping)) and not isinstance(table, bool):
            look(partial(_check_gold, name, table), "gold", name)
        else:
            said = f"gold.{name} must be a weight or a table of settings, got {table!r}"
            problems[Problem(said, ("gold", name))] = None
    look(lambda: load_annotator(dict(annotator), _no_taste), "annotator")
    if problems:
        raise ConfigError(*problems)


def _check_gold(name: str, table: float | JsonView) -> None:
    read = RewardTable.read(name, table)
    read.require_plugin()
    read.require_unshaped()


def crowd_of(annotator: JsonView, gold: Reward | None, people: int, person: str) -> list[Annotator]:
    """So many annotators, called `person` 1, `person` 2, ...; of one alone `person` is the whole name."""
    called = person or str(annotator.get("name", "simulated"))
    names = [called] if people == 1 else [f"{called} {number}" for number in range(1, people + 1)]
    with under("annotator"):
        return [load_annotator(dict(annotator), gold, person=name) for name in names]


@dataclass(frozen=True)
class KnownTaste:
    """A simulated annotator that has judged a store, and what it goes by."""

    annotator: SimulatedAnnotator
    gold: Reward
    name: str
    """The gold reward's name."""


def keep_taste(folder: Path, gold: JsonView, task: JsonView, annotator: JsonView) -> None:
    """Note beside a store by whom it was judged, for whoever asks how right a reward model can be."""
    write_json(folder / _TASTE, {"gold": dict(gold), "task": dict(task), "annotator": dict(annotator)})


def known_taste(folder: Path) -> KnownTaste | None:
    """By whom the store in `folder` was judged, where that is known and of a simulated annotator."""
    file = folder / _TASTE
    if not file.is_file():
        return None
    kept = json.loads(file.read_text(encoding="utf-8"))
    gold = gold_reward(kept["gold"], kept["task"])
    annotator = load_annotator(kept["annotator"], gold)
    return KnownTaste(annotator, gold, " + ".join(kept["gold"])) if isinstance(annotator, SimulatedAnnotator) else None


def _no_taste(episodes: Sequence[Episode]) -> Float:
    return np.zeros(len(episodes))
