"""An experiment: a frozen dataclass that is also a TOML file, and the building of its parts by name."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tomli_w

from rlhf_env import plugins
from rlhf_env.envs.rewards import RewardMix, load_rewards
from rlhf_env.envs.tasks import load_task
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.tokenizers import load_tokenizer
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.learning.agent import Agent, Setup
from rlhf_env.learning.configuration import from_table
from rlhf_env.learning.engine import Engine
from rlhf_env.learning.loop import EnvSource
from rlhf_env.learning.spending import Budget, Spending
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.policy import Sampling
from rlhf_env.policies.tiny import tiny_language_model


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """Who writes. `model`: a folder, a shipped model, a hub name, or "tiny" (small and random, for toy tasks).

    `tokenizer`: default the model's own; needed with "tiny": "bytes" or "alphabet:abc".
    """

    model: str = "tiny"
    tokenizer: str | None = None
    dtype: Literal["float32", "float64"] = "float32"
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, kw_only=True)
class EnvironmentSettings:
    """The environment: `num_envs` texts side by side, seen as whole responses, segments or tokens."""

    num_envs: int = 64
    max_new_tokens: int = 24
    max_prompt_tokens: int = 32
    view: Literal["response", "token"] = "response"
    action_length: int | None = None

    @property
    def length(self) -> int:
        """Tokens of one action."""
        if self.action_length is not None:
            return self.action_length
        return 1 if self.view == "token" else self.max_new_tokens


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The external evaluator: held-out `prompts` (the first so many), every `every` updates (0: only at the end).

    `rewards`: rewards to measure beside the training objective that no agent sees, as in [rewards]: the gold reward.
    """

    prompts: int = 128
    every: int = 0
    seed: int = 12_345
    rewards: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything a run depends on. `load` reads a TOML file; `to_toml` writes the resolved one.

    `task`, `rewards` and `agent` are tables: a name (for rewards, the key) and the plugin's own settings. `max_kl` ends
    a run early when the mean KL to the reference, summed over a response, exceeds it.
    """

    name: str = "experiment"
    seed: int = 0
    task: dict[str, Any] = field(default_factory=lambda: {"name": "count"})
    policy: PolicySettings = field(default_factory=PolicySettings)
    environment: EnvironmentSettings = field(default_factory=EnvironmentSettings)
    rewards: dict[str, Any] = field(default_factory=lambda: {"task": 1.0})
    agent: dict[str, Any] = field(default_factory=lambda: {"name": "ppo"})
    budget: Budget = field(default_factory=lambda: Budget(generated_tokens=100_000))
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    checkpoint_every: int = 10
    max_kl: float | None = None

    @classmethod
    def from_table(cls, table: Mapping[str, Any], where: str = "experiment") -> Experiment:
        """From plain data. Raises ConfigError with every problem found."""
        return from_table(cls, table, where)

    @classmethod
    def load(cls, file: str | Path) -> Experiment:
        """From a TOML file; relative paths of models stay relative to the working directory."""
        return cls.from_table(read_toml(file), str(file))

    def to_toml(self) -> str:
        """The resolved file: every setting that is in force and not None."""
        return tomli_w.dumps(_without_none(asdict(self)))

    def with_agent(self, agent: str | Mapping[str, Any]) -> Experiment:
        """The same experiment with another agent: swapping the algorithm is this one word."""
        return replace(self, agent={"name": agent} if isinstance(agent, str) else dict(agent))


@dataclass(frozen=True)
class Workplace:
    """An experiment built: the environment, the agent, and what they share."""

    experiment: Experiment
    env: TextVectorEnv
    setup: Setup
    agent: Agent
    source: EnvSource


def build(experiment: Experiment, *, policy: LanguageModel | None = None) -> Workplace:
    """Load the model, make the environment and the agent. `policy` stands in for `experiment.policy.model`."""
    settings = experiment.environment
    policy = load_policy(experiment) if policy is None else policy
    reference = policy.frozen_copy()
    reference.reseed(experiment.seed + 1)
    policy.reseed(experiment.seed)
    tokenizer = load_tokenizer(experiment.policy.tokenizer or experiment.policy.model)
    if tokenizer.vocab_size > policy.vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {experiment.policy.model} has "
            f"{policy.vocab_size}: they do not belong together"
        )
    env = TextVectorEnv(
        settings.num_envs,
        task=load_task(experiment.task),
        reward=experiment.rewards,
        tokenizer=tokenizer,
        max_new_tokens=settings.max_new_tokens,
        max_prompt_tokens=settings.max_prompt_tokens,
        action_length=settings.length,
        autoreset_mode="Disabled",
        provided={"reference": reference},
    )
    spending = Spending()
    setup = Setup(
        policy=policy,
        reference=reference,
        tokenizer=tokenizer,
        reward=env.reward,
        batch_size=settings.num_envs,
        action_length=settings.length,
        max_new_tokens=settings.max_new_tokens,
        seed=experiment.seed,
        engine=Engine(spending),
        spending=spending,
    )
    agent = make_agent(experiment.agent, setup)
    return Workplace(experiment, env, setup, agent, EnvSource(env, seed=experiment.seed, spending=spending))


def load_policy(experiment: Experiment) -> LanguageModel:
    """The model to train, at its initial weights."""
    import torch

    wanted = experiment.policy
    dtype = {"float32": torch.float32, "float64": torch.float64}[wanted.dtype]
    if wanted.model != "tiny":
        return LanguageModel.from_pretrained(wanted.model, dtype=dtype, sampling=wanted.sampling)
    if wanted.tokenizer is None:
        raise ConfigError('[policy] model \'tiny\' needs a tokenizer: tokenizer = "bytes" or "alphabet:ab="')
    tokenizer = load_tokenizer(wanted.tokenizer)
    return tiny_language_model(
        vocab_size=tokenizer.vocab_size,
        end_id=tokenizer.end_id,
        pad_id=tokenizer.pad_id,
        dtype=dtype,
        seed=experiment.seed,
        sampling=wanted.sampling,
    )


def make_agent(spec: str | Mapping[str, Any], setup: Setup) -> Agent:
    """An agent by name and settings: `{"name": "ppo", "lr": 1e-4}`. Raises ConfigError for what does not fit."""
    table = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = table.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError("[agent] needs a name")
    target = plugins.host().load("agent", name)
    config = from_table(target.Config, table, f"[agent] {name}")
    agent: Agent = target(setup, config)
    return agent


def evaluation_rewards(experiment: Experiment, workplace: Workplace) -> RewardMix | None:
    """The rewards that only the evaluator sees (the gold reward), or None."""
    if not experiment.evaluation.rewards:
        return None
    provided = {"reference": workplace.setup.reference, "tokenizer": workplace.setup.tokenizer}
    return load_rewards(experiment.evaluation.rewards, workplace.env.task, provided)


def read_toml(file: str | Path) -> dict[str, Any]:
    """A TOML file as plain data. Raises ConfigError that names the file and the line."""
    try:
        return tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}") from error


def _without_none(value: Any) -> Any:
    """TOML has no null: what is None is left out."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value
