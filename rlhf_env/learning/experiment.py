"""An experiment: a frozen dataclass that is also a TOML file, and the building of its parts by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cached_property, partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import tomli_w

from rlhf_env import plugins
from rlhf_env.envs.rewards import RewardMix, RewardTable, load_rewards
from rlhf_env.envs.tasks import held_out, load_task
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.errors import ConfigError, DataError, Problem, under
from rlhf_env.learning.agent import Agent, Setup
from rlhf_env.learning.checkpoints import fingerprint
from rlhf_env.learning.configuration import from_table
from rlhf_env.learning.engine import Engine
from rlhf_env.learning.loop import EnvSource, Row, Source, Training, train
from rlhf_env.learning.models import fitted, load_policy, load_tokenizer_of
from rlhf_env.learning.run_folder import RunFolder, read_metrics
from rlhf_env.learning.spending import Budget, Spending, Stopping
from rlhf_env.plain_data import refuse_misfits
from rlhf_env.policies.language_model import ROWS_AT_ONCE
from rlhf_env.policies.policy import Policy, Sampling
from rlhf_env.toml_files import naming_lines, read_toml
from rlhf_env.types import Task

# What no machine that this is for can hold: a mistyped size is a message, and not the end of all that runs there.
_MOST = 2**20  # texts side by side, tokens of a text, prompts of an evaluation
_MOST_TOKENS = 2**28  # of all texts side by side: 2 GiB of ids
_SEEDS = 2**40  # seeds are multiplied and added to, and torch takes 64 bits


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """Who writes. `model`: a folder, a shipped model, a hub name, "tiny" (small and random, for toy tasks) or "table".

    "table" is a table of logits, for tasks of one prompt and so few responses that they can be enumerated.
    `tokenizer`: default the model's own; needed with "tiny" ("bytes" or "alphabet:abc") and "table" ("alphabet:abc").

    `revision`: of a hub name, a branch, tag or commit: with a commit, what its owner changes later changes nothing.

    `rows_at_once`: texts that are sampled side by side and whose keys and values are kept: it bounds the memory. More
    are written in several waves; with fewer than `num_envs`, acting token by token reads all texts anew at each step.
    `fused`: sample by a quicker way through the models of the common families, whose weights it copies for as long;
    false: through the library's modules, with the same results up to rounding.
    """

    model: str = "tiny"
    tokenizer: str | None = None
    dtype: Literal["float32", "float64"] = "float32"
    sampling: Sampling = field(default_factory=Sampling)
    rows_at_once: int = ROWS_AT_ONCE
    fused: bool = True
    revision: str | None = None

    def __post_init__(self) -> None:
        refuse_misfits(self)
        problems = [f"{name} must not be empty" for name in ("model", "tokenizer") if getattr(self, name) == ""]
        if self.rows_at_once < 1:
            problems.append(f"rows_at_once must be at least 1, got {self.rows_at_once}")
        if problems:
            raise ConfigError(*problems)


@dataclass(frozen=True, kw_only=True)
class EnvironmentSettings:
    """The environment: `num_envs` texts side by side, seen as whole responses, segments or tokens."""

    num_envs: int = 64
    max_new_tokens: int = 24
    max_prompt_tokens: int = 32
    view: Literal["response", "token"] = "response"
    action_length: int | None = None

    def __post_init__(self) -> None:
        refuse_misfits(self)
        sizes = {name: getattr(self, name) for name in ("num_envs", "max_new_tokens", "max_prompt_tokens")}
        problems = [p for name, size in sizes.items() for p in _outside(name, size)]
        if not problems and self.num_envs * (self.max_prompt_tokens + self.max_new_tokens) > _MOST_TOKENS:
            problems.append(
                f"num_envs = {self.num_envs:,} texts of {self.max_prompt_tokens:,} + {self.max_new_tokens:,} tokens "
                f"are more than {_MOST_TOKENS:,} tokens: take fewer texts, or shorter ones"
            )
        if self.action_length is not None and not 1 <= self.action_length <= self.max_new_tokens:
            problems.append(
                f"action_length must be in 1..{self.max_new_tokens} (max_new_tokens), got {self.action_length}"
            )
        if problems:
            raise ConfigError(*problems)

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
    `metrics`: names of metrics that plugins offer, to measure beside those of `lab.evaluation.metrics`.
    """

    prompts: int = 128
    every: int = 0
    seed: int = 12_345
    rewards: dict[str, Any] = field(default_factory=dict)
    metrics: list[str] | None = None

    def __post_init__(self) -> None:
        refuse_misfits(self)
        problems = [*_negative(self, "every"), *_no_seed(self.seed)]
        problems += _outside("prompts", self.prompts)
        if problems:
            raise ConfigError(*problems)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything a run depends on. `load` reads a TOML file; `to_toml` writes the resolved one.

    `preferences`: a preference store or a .jsonl file of pairs, `num_envs` / 2 a rollout, that the agent (dpo, kto)
    learns from instead of texts it writes; the environment then only evaluates.

    `task`, `rewards` and `agent` are tables: a name (for rewards, the key) and the plugin's own settings.

    A run ends early when the mean KL of a rollout to the reference, summed over a response, is above `max_kl` (of the
    KL itself, wherever a controller has put its weight); or when `patience` evaluations in a row (0: never) brought no
    held-out objective that is above the best so far by more than `min_delta`. The evaluation before training counts as
    the first; `[evaluation] every` says how often there is one.
    """

    name: str = "experiment"
    seed: int = 0
    task: dict[str, Any] = field(default_factory=lambda: {"name": "count"})
    policy: PolicySettings = field(default_factory=PolicySettings)
    environment: EnvironmentSettings = field(default_factory=EnvironmentSettings)
    rewards: dict[str, Any] = field(default_factory=lambda: {"task": 1.0})
    agent: dict[str, Any] = field(default_factory=lambda: {"name": "ppo"})
    preferences: str | None = None
    budget: Budget = field(default_factory=lambda: Budget(generated_tokens=100_000), metadata={"whole": True})
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    checkpoint_every: int = 10
    max_kl: float | None = None
    patience: int = 0
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        refuse_misfits(self)
        problems = [*_no_seed(self.seed), *_negative(self, "checkpoint_every", "patience")]
        if not self.name or not self.name.isprintable():
            problems.append(f"name must be one or more printable characters, got {self.name!r}")
        if self.max_kl is not None and not self.max_kl > 0:
            problems.append(f"max_kl must be positive, got {self.max_kl}")
        if self.max_kl is not None and "kl" not in self.rewards:
            problems.append(
                "max_kl is measured by the reward part 'kl', which is not among [rewards]: add it (`kl = 0.0` measures "
                "and costs nothing)"
            )
        if not self.min_delta >= 0:
            problems.append(f"min_delta must not be negative, got {self.min_delta}")
        if self.patience > 0 and self.evaluation.every == 0:
            problems.append(
                f"patience = {self.patience} counts evaluations on the way, and there are none: set `every` in "
                "[evaluation] to a number of updates"
            )
        if self.max_kl is not None and self.preferences is not None:
            problems.append("max_kl is measured on texts that the agent writes, and with `preferences` it writes none")
        if self.preferences is not None and not self.budget.limits().keys() & {"updates", "gradient_steps", "seconds"}:
            problems.append("with `preferences` the agent writes no texts: budget updates, gradient_steps or seconds")
        if problems:
            raise ConfigError(*problems)

    @classmethod
    def from_table(cls, table: Mapping[str, Any], where: str = "experiment") -> Experiment:
        """From plain data. Raises ConfigError with every problem found."""
        return from_table(cls, table, where)

    @classmethod
    def load(cls, file: str | Path) -> Experiment:
        """From a TOML file; relative paths of models stay relative to the working directory."""
        table = read_toml(file)
        with naming_lines(file):
            return cls.from_table(table, str(file))

    def to_toml(self) -> str:
        """The resolved file: every setting that is in force and not None."""
        return tomli_w.dumps(_without_none(asdict(self)))

    def with_agent(self, agent: str | Mapping[str, Any]) -> Experiment:
        """The same experiment with another agent: swapping the algorithm is this one word."""
        return replace(self, agent={"name": agent} if isinstance(agent, str) else dict(agent))


@dataclass(frozen=True)
class Workplace:
    """An experiment built: the environment, the agent, what they share, and where the agent's rollouts come from.

    workplace = build(Experiment.load("experiment.toml"))
    training = workplace.train()
    print(training.reason, training.rows[-1]["rollout/reward"])
    """

    experiment: Experiment
    env: TextVectorEnv
    setup: Setup
    agent: Agent
    source: Source

    def train(
        self,
        *,
        run: RunFolder | None = None,
        resume: bool = False,
        evaluate: Callable[[], Mapping[str, float]] | None = None,
        on_update: Callable[[Row, float], None] | None = None,
    ) -> Training:
        """Train as the experiment says, until its budget is spent or one of its rules for stopping has a reason.

        Args:
            run: where metrics and checkpoints go, an open run folder; without one, nothing is written and the rows of
                metrics are in the result.
            resume: continue from the newest checkpoint in `run`, if there is one.
            evaluate: numbers of the agent as it now is, asked before training and every `[evaluation] every` updates;
                `lambda: Evaluator.of(workplace)().metrics` gives those of held-out prompts.
            on_update: called with each row of metrics and the share of the budget that is spent.

        An agent that does not train is only evaluated. Raises ConfigError where the experiment needs something that is
        missing here: evaluations for `patience`, a source of pairs for `preferences`; and what `train` raises.
        """
        experiment, setup = self.experiment, self.setup
        if experiment.patience and evaluate is None:
            raise ConfigError(
                f"patience = {experiment.patience} counts evaluations: pass `evaluate`, or use rlhf_env.run"
            )
        if experiment.preferences is not None and isinstance(self.source, EnvSource):
            raise ConfigError(
                "`preferences` are what the agent learns from: pass a source of pairs, or use rlhf_env.run"
            )
        if run is not None:
            run.began_with("initial weights", fingerprint(setup.reference.state_dict()))
        rows = read_metrics(run.path) if run is not None and resume else []
        if evaluate is not None and not rows:
            rows = [{"update": 0, "spent/generated_tokens": 0, **{f"eval/{k}": v for k, v in evaluate().items()}}]
            if run is not None:
                run.log(rows[0])
        first = [] if run is not None else rows
        if not getattr(self.agent, "trains", True):
            return Training("does not train", first)
        stopping = Stopping(max_kl=experiment.max_kl, patience=experiment.patience, min_delta=experiment.min_delta)
        if rows:
            stopping(rows[0])  # what was there before training is there to be improved on
        training = train(
            self.agent,
            self.source,
            experiment.budget,
            spending=setup.spending,
            engine=setup.engine,
            run=run,
            resume=resume,
            checkpoint_every=experiment.checkpoint_every,
            evaluate=evaluate,
            evaluate_every=experiment.evaluation.every,
            stop_when=stopping,
            on_update=on_update,
        )
        return replace(training, rows=[*first, *training.rows])

    @cached_property
    def evaluation_rewards(self) -> RewardMix | None:
        """The rewards that only the evaluator sees (the gold reward), or None. Raises ConfigError."""
        if not self.experiment.evaluation.rewards:
            return None
        provided = {"reference": self.setup.reference, "tokenizer": self.setup.tokenizer}
        with under("evaluation", "rewards"):
            return load_rewards(self.experiment.evaluation.rewards, self.env.task, provided)

    def check_prompts(self) -> None:
        """Encode the prompts of training and evaluation: the first 10,000, 8 of a task without end.

        Raises DataError with all of them that do not fit.
        """
        problems: dict[str, None] = {}
        for task in (self.env.task, held_out(self.env.task)):
            for index in range(8 if task.size is None else min(task.size, 10_000)):
                try:
                    self.env.prompt_ids(task.prompt(index, {}))
                except DataError as error:
                    problems |= dict.fromkeys(error.problems)
        if problems:
            raise DataError(*problems)


def build(experiment: Experiment, *, policy: Policy | None = None) -> Workplace:
    """Load the model, make the environment and the agent. `policy` stands in for `experiment.policy.model`.

    Raises ConfigError; unknown names, wrong settings and bad files of prompts are found, all of them, before a model
    is loaded.
    """
    task = check_plugins(experiment)
    settings = experiment.environment
    with under("policy"):
        tokenizer = load_tokenizer_of(experiment.policy)
        policy = load_policy(experiment, tokenizer, task) if policy is None else policy
        tokenizer = fitted(tokenizer, policy, experiment.policy.model)
    reference = policy.frozen_copy()
    reference.reseed(experiment.seed + 1)
    policy.reseed(experiment.seed)
    with under("rewards"):
        reward = load_rewards(experiment.rewards, task, {"reference": reference, "tokenizer": tokenizer})
    env = TextVectorEnv(
        settings.num_envs,
        task=task,
        reward=reward,
        tokenizer=tokenizer,
        max_new_tokens=settings.max_new_tokens,
        max_prompt_tokens=settings.max_prompt_tokens,
        action_length=settings.length,
        autoreset_mode="Disabled",
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
        task=env.task,
    )
    with under("agent"):
        agent = make_agent(experiment.agent, setup)
    source = EnvSource(env, seed=experiment.seed, spending=spending, reference=reference)
    return Workplace(experiment, env, setup, agent, source)


def check_plugins(experiment: Experiment) -> Task:
    """The task. Raises ConfigError for everything that the tables of plugins get wrong, as far as no model is needed
    to find it."""
    problems: list[str] = []

    def look(check: Callable[[], Any], *keys: str) -> Any:
        try:
            with under(*keys):
                return check()
        except ConfigError as error:
            problems.extend(problem for problem in error.problems if problem not in problems)

    task: Task = look(lambda: load_task(experiment.task), "task")
    for keys, rewards in (("rewards",), experiment.rewards), (("evaluation", "rewards"), experiment.evaluation.rewards):
        for part, settings in rewards.items():
            look(partial(_check_reward, part, settings), *keys, part)
    look(lambda: _agent_factory(experiment.agent), "agent")
    for name in experiment.evaluation.metrics or ():
        look(partial(plugins.host().load, "metric", name), "evaluation", "metrics")
    if problems:
        raise ConfigError(*problems)
    return task


def _check_reward(part: str, settings: Any) -> None:
    if isinstance(settings, (bool, str, list)):  # what a file may hold and no reward is
        raise ConfigError(f"[rewards] {part}: a weight or a table of settings is needed, got {settings!r}")
    if isinstance(settings, (int, float, Mapping)):
        RewardTable.read(part, settings).require_plugin()


def make_agent(spec: str | Mapping[str, Any], setup: Setup) -> Agent:
    """An agent by name and settings: `{"name": "ppo", "lr": 1e-4}`. One that wraps another has it in `agent`:
    `{"name": "curriculum", "levels": [1, 2], "agent": {"name": "ppo"}}`.

    Raises ConfigError for what does not fit.
    """
    return _agent_factory(spec)(setup)


def _agent_factory(spec: Any, where: str = "[agent]") -> Callable[[Setup], Agent]:
    """What builds the agent from what a run lends. Names and settings, a wrapped agent's too, are checked here."""
    table = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name = table.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(Problem(f"{where} needs a name", ("name",), ""))
    with under("name"):
        target = plugins.host().load("agent", name)
    if not is_dataclass(getattr(target, "Config", None)):
        raise ConfigError(f"agent {name!r}: {target!r} has no dataclass `Config`, as an agent plugin must")
    wraps = "agent" in signature(target).parameters
    inner = table.pop("agent", None) if wraps else None
    problems: list[str] = []
    config = wrapped = None
    try:
        config = from_table(target.Config, table, f"{where} {name}")
    except ConfigError as error:
        problems.extend(error.problems)
    try:
        if wraps and inner is None:
            raise ConfigError(f'{where} {name} wraps another agent: agent = {{ name = "ppo" }}, with its settings')
        with under("agent"):
            wrapped = _agent_factory(inner, f"{where} {name}: agent") if wraps else None
    except ConfigError as error:
        problems.extend(error.problems)
    if problems:
        raise ConfigError(*problems)

    def make(setup: Setup) -> Agent:
        inside = () if wrapped is None else (wrapped(setup),)
        try:
            made: Agent = target(setup, config, *inside)
        except ConfigError as error:
            error.found_in(f"{where} {name}")
            raise
        return made

    return make


def _outside(name: str, size: int) -> list[str]:
    """The problem of a size that is none, or that is far too large."""
    if size < 1:
        return [f"{name} must be at least 1, got {size}"]
    return [f"{name} must be at most {_MOST:,}, got {size:,}"] if size > _MOST else []


def _no_seed(seed: int) -> list[str]:
    if seed < 0:
        return [f"seed must not be negative, got {seed}"]
    return [f"seed must be less than {_SEEDS:,}, got {seed:,}"] if seed >= _SEEDS else []


def _negative(settings: Any, *names: str) -> list[str]:
    return [
        f"{name} must not be negative, got {getattr(settings, name)}" for name in names if getattr(settings, name) < 0
    ]


def _without_none(value: Any) -> Any:
    """TOML has no null: what is None is left out."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value
