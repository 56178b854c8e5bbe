"""The settings of the study, and what each of its claims compares."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Literal

from annotated_types import Ge

from rlhf_env.errors import Problem
from rlhf_env.feedback.reward_models.config import Combination, RewardModelConfig
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.loop import Row
from rlhf_env.settings import AtLeastOne, Chooses, EachChooses, Whole, fault, settings
from rlhf_env.types import JsonObject

TellRow = Callable[[Row, float], None]
NAME = "overoptimization"
REPLIES_AT_ONCE = 256


@settings
class Proxy:
    """A reward model, by what it is made of."""

    labels: int
    """Pairs, each of a prompt of its own."""
    layers: int
    """How many of the policy's own layers, from the bottom, are its trunk; all of it is fitted."""
    flips: float = 0.0
    """The share of labels turned around."""
    members: int = 1
    """More than one is an ensemble: each member has a trunk of its own, fitted by itself from a random head to its own
    bootstrap of the pairs (all trunks begin at the same pretrained weights, as in Coste et al. 2024)."""
    combination: Combination = "mean"
    """How members are combined."""
    penalty: float = 0.5
    """What the members' variance is multiplied by, where it is subtracted."""

    @property
    def fits(self) -> list[Fitting]:
        """The models it needs: one on all pairs, or one for each bootstrap."""
        numbers = range(1, self.members + 1) if self.members > 1 else [0]
        return [Fitting(self.labels, self.layers, self.flips, number) for number in numbers]


@dataclass(frozen=True)
class Fitting:
    """One model of a proxy. `bootstrap` 0 is fitted to all pairs, others to a sample of them with replacement."""

    labels: int
    layers: int
    flips: float
    bootstrap: int

    @property
    def name(self) -> str:
        sample = f"-bootstrap-{self.bootstrap}" if self.bootstrap else ""
        return f"{self.labels}-labels-{self.layers}-layers-{100 * self.flips:g}-flipped{sample}"


@settings
class Climb:
    """How an agent moves away from the reference."""

    agent: Annotated[JsonObject, Chooses("agent")]
    """Its table: name and settings."""
    updates: int
    """Updates of the agent."""
    every: int
    """Updates from one measurement to the next."""
    num_envs: int = 32
    """Texts side by side."""
    offline: bool = False
    """It learns from the pairs the proxy was fitted to instead of from the proxy."""
    beta: float = 0.0
    """The weight of the KL part, for agents that cannot do without (DPO)."""


@settings
class TestedChange:
    """A claim to be tested: one proxy against another, same agent and seeds."""

    claim: str
    """The claim in words."""
    proxy: str
    """The proxy it is about."""
    than: str
    """The proxy it is compared with."""
    what: Literal["distance", "gold"]
    """What is compared: where the peak is, or how high it is."""
    expected: Literal["better", "worse"]
    """The verdict that reproduces the claim: "better" is farther out, or higher; "worse" nearer, or lower."""


CLAIMS = (
    TestedChange(
        claim="More labels move the peak outwards", proxy="base", than="few-labels", what="distance", expected="better"
    ),
    TestedChange(
        claim="A larger proxy moves the peak outwards", proxy="large", than="base", what="distance", expected="better"
    ),
    TestedChange(
        claim="Label noise moves the peak inwards", proxy="noisy", than="base", what="distance", expected="worse"
    ),
    TestedChange(
        claim="A worst-case ensemble raises the peak under noise",
        proxy="worst-case",
        than="noisy",
        what="gold",
        expected="better",
    ),
    TestedChange(
        claim="An uncertainty-weighted ensemble raises the peak under noise",
        proxy="uncertainty",
        than="noisy",
        what="gold",
        expected="better",
    ),
)


def _proxies(labels: int, few: int, layers: int, large: int, members: int) -> dict[str, Proxy]:
    noisy = Proxy(labels=labels, layers=layers, flips=0.25)
    return {
        "base": Proxy(labels=labels, layers=layers),
        "few-labels": Proxy(labels=few, layers=layers),
        "large": Proxy(labels=labels, layers=large),
        "noisy": noisy,
        "worst-case": replace(noisy, members=members, combination="worst"),
        "uncertainty": replace(noisy, members=members, combination="uncertainty"),
    }


@settings
class Study:
    """The whole study. One thing is changed at a time around the proxy `base`, and the noise around `noisy`."""

    seeds: AtLeastOne = 8
    """Eight are the fewest with which one of five claims can be made at 95 % (2 / 2^8, five times, is below 0.05)."""
    first_seed: Whole = 0
    """The number of the first of them: a pilot, from which power is judged, has others than the study."""
    task: Annotated[JsonObject, Chooses("task")] = field(default_factory=lambda: {"name": "chitchat"})
    """Where prompts come from."""
    policy: str = "rlhf-env/chitchat"
    """Writer and reference, and the trunk of the proxies."""
    gold: Annotated[JsonObject, EachChooses("reward")] = field(default_factory=lambda: {"upbeat": 1.0})
    """The true reward, a table as in [rewards]."""
    max_new_tokens: AtLeastOne = 28
    """The longest response, in tokens."""
    max_prompt_tokens: AtLeastOne = 48
    """The longest prompt, in tokens."""
    pair_prompts: AtLeastOne = 2048
    """Training prompts with one reply at each of `temperatures`; every seed draws one pair of each and its own labels.
    More labels contain the fewer, and a noisy label is the clean one or its opposite."""
    temperatures: tuple[float, ...] = (0.7, 1.0, 1.4)
    """Each of those prompts is answered once at each of these."""
    annotator_temperature: float = 0.5
    """The Bradley-Terry noise of the labels, in units of gold."""
    measured_prompts: AtLeastOne = 96
    """Held-out prompts, the same for every checkpoint and for the pool."""
    pool: Annotated[int, Ge(2)] = 64
    """Replies to each of them that best-of-n, the zero and the unit of the rewards come from."""
    proxies: dict[str, Proxy] = field(default_factory=lambda: _proxies(1000, 250, 2, 4, 3))
    """Reward models by name."""
    fitting: RewardModelConfig = field(
        default_factory=lambda: RewardModelConfig(learning_rate=5e-4, epochs=1, micro_batch_size=32, validation=0.02)
    )
    """How a proxy is fitted."""
    comparer: str = "rloo"
    """The climb that every proxy is climbed with, for the claims."""
    climbs: dict[str, Climb] = field(
        default_factory=lambda: {
            "rloo": Climb(agent={"name": "rloo", "lr": 2e-4}, updates=24, every=3),
            "ppo": Climb(agent={"name": "ppo", "lr": 2e-4, "group_size": 4}, updates=24, every=3),
            "dpo": Climb(agent={"name": "dpo", "lr": 6e-4}, updates=32, every=4, num_envs=64, offline=True, beta=0.05),
        }
    )
    """Agents by name; all climb "base"."""
    claims: tuple[TestedChange, ...] = CLAIMS
    """What is to be reproduced."""

    def problems(self) -> Iterator[Problem]:
        most = max((proxy.labels for proxy in self.proxies.values()), default=0)
        if most > self.pair_prompts:
            yield fault(
                "pair_prompts", f"must be at least {most}, for a proxy of {most} labels, got {self.pair_prompts}"
            )
        if "base" not in self.proxies:
            yield fault("proxies", "must have one that is called 'base'")
        if self.comparer not in self.climbs:
            yield fault("comparer", f"must be one of the climbs ({', '.join(self.climbs)}), got {self.comparer!r}")
        named = {name for change in self.claims for name in (change.proxy, change.than)}
        for name in sorted(named - self.proxies.keys()):
            yield fault("claims", f"must be about proxies, and there is no {name!r}")

    @property
    def seed_numbers(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)

    @classmethod
    def quick(cls) -> Study:
        """The same in a few minutes: two seeds, which allow no claim, and coarse measurements."""
        usual = cls()
        return cls(
            seeds=2,
            pair_prompts=512,
            measured_prompts=64,
            pool=32,
            proxies=_proxies(500, 125, 1, 2, 2),
            climbs={name: replace(climb, updates=24, every=6, num_envs=16) for name, climb in usual.climbs.items()},
        )

    def experiment(self, **tables: object) -> Experiment:
        """What every stage has in common, and `tables` beside it."""
        common = {
            "task": self.task,
            "policy": {"model": self.policy},
            "environment": {
                "num_envs": REPLIES_AT_ONCE,
                "max_new_tokens": self.max_new_tokens,
                "max_prompt_tokens": self.max_prompt_tokens,
            },
            "rewards": self.gold,
            "agent": {"name": "reference"},
        }
        return Experiment.from_table({**common, **tables}, NAME)

    def as_json(self) -> JsonObject:
        plain: dict[str, object] = json.loads(json.dumps(asdict(self)))
        if not self.first_seed:
            del plain["first_seed"]  # as the folders of studies say that were begun before it could be set
        return plain
