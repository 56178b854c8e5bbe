"""The settings of the study, and what each of its claims compares."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from rlhf_env.errors import ConfigError
from rlhf_env.feedback.reward_models.config import RewardModelConfig
from rlhf_env.feedback.reward_models.ensemble import Combination
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.loop import Row
from rlhf_env.plain_data import refuse_misfits
from rlhf_env.types import JsonObject

TellRow = Callable[[Row, float], None]
NAME = "overoptimization"
REPLIES_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A reward model, by what it is made of.

    `labels`: pairs, each of a prompt of its own. `layers`: how many of the policy's own layers, from the bottom, are
    its trunk; all of it is fitted. `flips`: the share of labels turned around. `members` above 1 is an ensemble: each
    member has a trunk of its own, fitted by itself from a random head to its own bootstrap of the pairs (all trunks
    begin at the same pretrained weights, as in Coste et al. 2024). `combination`, `penalty`: how members are combined.
    """

    labels: int
    layers: int
    flips: float = 0.0
    members: int = 1
    combination: Combination = "mean"
    penalty: float = 0.5

    def __post_init__(self) -> None:
        refuse_misfits(self)

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


@dataclass(frozen=True, kw_only=True)
class Climb:
    """How an agent goes away from the reference: `updates`, measured every `every`.

    `agent`: its table. `offline`: it learns from the pairs the proxy was fitted to instead of from the proxy. `beta`:
    weight of the KL part, for agents that cannot do without (DPO).
    """

    agent: JsonObject
    updates: int
    every: int
    num_envs: int = 32
    offline: bool = False
    beta: float = 0.0

    def __post_init__(self) -> None:
        refuse_misfits(self)


@dataclass(frozen=True, kw_only=True)
class TestedChange:
    """A claim to be tested: `proxy` against `than`, same agent and seeds, in `what` the peak is.

    `expected` is the verdict that reproduces it: "better" is farther out, or higher; "worse" nearer, or lower.
    """

    claim: str
    proxy: str
    than: str
    what: Literal["distance", "gold"]
    expected: Literal["better", "worse"]


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


@dataclass(frozen=True, kw_only=True)
class Study:
    """The whole study. One thing is changed at a time around the proxy `base`, and the noise around `noisy`.

    `policy`: writer and reference, and the trunk of the proxies. `gold`: the true reward, a table as in [rewards].
    `pair_prompts`: training prompts with one reply at each of `temperatures`; every seed draws one pair of each and
    its own labels (Bradley-Terry noise of `annotator_temperature`, in units of gold). More labels contain the fewer,
    and a noisy label is the clean one or its opposite.
    `measured_prompts`: held-out prompts, the same for every checkpoint and for the pool of `pool` replies each that
    best-of-n, the zero and the unit of the rewards come from.
    `climbs`: agents by name; all climb "base", and `comparer` every other proxy too, for the claims.
    Eight seeds are the fewest with which one of five claims can be made at 95 % (2 / 2^8, five times, is below 0.05).
    """

    seeds: int = 8
    task: JsonObject = field(default_factory=lambda: {"name": "chitchat"})
    policy: str = "rlhf-env/chitchat"
    gold: JsonObject = field(default_factory=lambda: {"upbeat": 1.0})
    max_new_tokens: int = 28
    max_prompt_tokens: int = 48
    pair_prompts: int = 2048
    temperatures: tuple[float, ...] = (0.7, 1.0, 1.4)
    annotator_temperature: float = 0.5
    measured_prompts: int = 96
    pool: int = 64
    proxies: dict[str, Proxy] = field(default_factory=lambda: _proxies(1000, 250, 2, 4, 3))
    fitting: RewardModelConfig = field(
        default_factory=lambda: RewardModelConfig(learning_rate=5e-4, epochs=1, micro_batch_size=32, validation=0.02)
    )
    comparer: str = "rloo"
    climbs: dict[str, Climb] = field(
        default_factory=lambda: {
            "rloo": Climb(agent={"name": "rloo", "lr": 2e-4}, updates=24, every=3),
            "ppo": Climb(agent={"name": "ppo", "lr": 2e-4, "group_size": 4}, updates=24, every=3),
            "dpo": Climb(agent={"name": "dpo", "lr": 6e-4}, updates=32, every=4, num_envs=64, offline=True, beta=0.05),
        }
    )
    claims: tuple[TestedChange, ...] = CLAIMS

    def __post_init__(self) -> None:
        refuse_misfits(self)
        problems = [
            f"{name} must be at least 1, got {getattr(self, name)}"
            for name in ("seeds", "pair_prompts", "measured_prompts")
            if getattr(self, name) < 1
        ]
        if self.pool < 2:
            problems.append(f"pool must be at least 2 replies to a prompt, got {self.pool}")
        most = max((proxy.labels for proxy in self.proxies.values()), default=0)
        if most > self.pair_prompts:
            problems.append(f"{most} labels need as many pair_prompts, and there are {self.pair_prompts}")
        if "base" not in self.proxies:
            problems.append("proxies: one of them is called 'base'")
        if self.comparer not in self.climbs:
            problems.append(f"comparer: {self.comparer!r} is none of the climbs ({', '.join(self.climbs)})")
        named = {name for change in self.claims for name in (change.proxy, change.than)}
        problems += [f"claims: there is no proxy {name!r}" for name in sorted(named - self.proxies.keys())]
        if problems:
            raise ConfigError(*problems)

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
        return plain
