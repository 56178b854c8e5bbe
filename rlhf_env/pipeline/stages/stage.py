"""What every kind of stage has: what it takes from earlier stages, what it gives to later ones, and its work.

A stage has a folder of its own, OUT/NAME, and what it makes there is an ordinary run, store, reward model or benchmark,
which every other command reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, Protocol, runtime_checkable

from rich.console import Console

from rlhf_env.errors import ConfigError, Problem
from rlhf_env.lab.jobs import Backend
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.pipeline.hashing import Hashes
from rlhf_env.types import JsonObject, JsonView

Role = Literal["model", "store", "reward_model", "runs"]
"""What one stage takes from another: a model, a preference store, a reward model; or runs, to be compared."""
Links = Mapping[Role, Sequence[str]]
"""By role, what stands for the outputs of the earlier stages: "$NAME", in the order that `from` has them."""


@dataclass(frozen=True)
class StageOrigin:
    """Where a stage's table stands."""

    where: str
    """What begins each message."""
    folder: Path
    """Where the relative paths in it lead from."""


@dataclass(frozen=True)
class Site:
    """Where a stage works, and with what."""

    name: str
    folder: Path
    links: Mapping[Role, Sequence[str]]
    """The names of the stages that it takes from, by role."""
    inputs: Mapping[Role, Sequence[str]]
    """What it takes from them: paths, or names of models."""
    pipeline: str
    """The name of the pipeline."""
    title: str
    what_gold_is: str
    command: str
    """The words that call the pipeline again."""
    jobs: int | Backend
    """Processes of this machine, or the cluster, for a benchmark's runs."""
    console: Console


@dataclass(frozen=True)
class StageOutcome:
    """What a stage's work came to."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    """What the report shows: "gold", "gold_before", "proxy", "kl", "perplexity", "win_rate", "labels", "tokens", ..."""
    curve: Sequence[Mapping[str, float]] = ()
    """Of a stage that trains: its evaluations on the way."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """What the report says in words."""
    waiting: str = ""
    """What the stage waits for; "" where it is done."""


class Stage(Protocol):
    """One stage of a pipeline, made of its table."""

    kind: ClassVar[str]
    takes: ClassVar[Mapping[Role, bool]]
    """The roles of what it can take from earlier stages, and whether it takes several of each."""
    gives: ClassVar[Sequence[Role]]
    """The roles in which later stages can take it, the first of them that fits."""

    aside: ClassVar[frozenset[str]]
    """Settings that change nothing of what it makes."""

    takes_larger_budget: ClassVar[bool]
    """Whether what was made with a smaller budget goes on with a larger one."""

    @staticmethod
    def table(own: JsonView, defaults: JsonView, links: Links) -> JsonObject:
        """All its settings: its own, those of [defaults] that it reads, and what stands for its inputs."""

    @classmethod
    def of(cls, table: JsonView, origin: StageOrigin) -> Stage:
        """Made of such a table. Raises ConfigError with every problem found."""

    def check(self) -> None:
        """Raises ConfigError for all that can be found before anything runs, no model loaded."""

    def paths(self) -> Sequence[str]:
        """The files and folders that its settings name, led from where its file is."""

    def outputs(self, folder: Path) -> Mapping[str, object]:
        """What later stages may ask for: "" is what `$NAME` stands for, "judge" what `$NAME.judge` does."""

    def work(self, site: Site) -> StageOutcome:
        """Do it, or resume it where it was stopped."""

    def is_open(self) -> bool:
        """Whether a finished stage is looked at again: people may have voted since."""

    def identity(self, folder: Path, hashes: Hashes) -> str | None:
        """What its output is known by: equal where it is worth the same to later stages; None where it is missing."""


FirstModels = Mapping[str, PolicySettings]
"""By what a stage gives that is still to be made, the model that it will have begun with: tokenizer and context are
known already."""


@runtime_checkable
class AsksPrompts(Protocol):
    """A stage in which a model reads prompts that are known before anything runs."""

    @property
    def policy(self) -> PolicySettings:
        """Who reads them."""

    def check_prompts(self, policy: PolicySettings) -> None:
        """Raises ConfigError for prompts that are too long for the stage, or for the context of `policy`."""


def begun_as(policy: PolicySettings, first: FirstModels) -> PolicySettings | None:
    """The same with the model that earlier stages began with in the place of what they make of it; None where nothing
    is there yet."""
    if (before := first.get(policy.model)) is not None:
        return replace(policy, model=before.model, tokenizer=policy.tokenizer or before.tokenizer)
    missing = Path(policy.model).is_absolute() and not Path(policy.model).exists()
    return None if missing else policy


def linked(links: Links, role: Role, setting: str = "") -> JsonObject:
    """The setting that takes what an earlier stage gives; nothing where none is linked."""
    found: JsonObject = {}
    for name in links.get(role, ()):
        found[setting or role] = name
    return found


_WHOLE = ("task", "agent", "rewards", "budget")  # a stage's own table of these stands instead of that of [defaults]


def merged(base: JsonView, changes: JsonView) -> JsonObject:
    """`base` with `changes`, tables key by key, but for what only makes sense as a whole."""
    made = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(made.get(key), Mapping)
        made[key] = {**made[key], **value} if both and key not in _WHOLE else value
    return made


def with_inputs(experiment: JsonView, links: Links, *, reward: str = "bradley_terry") -> JsonObject:
    """The table of an experiment with what earlier stages give: its model, its learned reward, its stored preferences.

    Raises ConfigError where there is no place for the reward model.
    """
    made = dict(experiment)
    for model in links.get("model", ()):
        made["policy"] = {**_table_in(made, "policy"), "model": model}
    for store in links.get("store", ()):
        made["preferences"] = store
    for model in links.get("reward_model", ()):
        rewards = _table_in(made, "rewards")
        part = rewards.get(reward)
        if part is None:
            said = f"takes a reward model, and [rewards] has no {reward} to use it: {reward} = 1.0"
            raise ConfigError(Problem(said, ("rewards",)))
        settings = dict(part) if isinstance(part, Mapping) else {"weight": part}
        made["rewards"] = {**rewards, reward: {**settings, "model": settings.get("model", model)}}
    return made


def _table_in(table: JsonView, key: str) -> JsonObject:
    found = table.get(key, {})
    return dict(found) if isinstance(found, Mapping) else {}
