"""An experiment: a frozen dataclass that is also a TOML file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import tomli_w
from annotated_types import Ge, Le

from rlhf_env.envs.over_long import OverLong
from rlhf_env.envs.stop_strings import stop_string_problems
from rlhf_env.envs.success import Success
from rlhf_env.errors import ConfigError, Problem
from rlhf_env.learning.configuration import from_table
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.learning.recorded_texts import RecordedTextsSettings
from rlhf_env.learning.spending import Budget
from rlhf_env.own_code import code_named_in, label_of
from rlhf_env.policies.policy import Sampling
from rlhf_env.relative_paths import paths_of, relative_to
from rlhf_env.settings import (
    AtLeastOne,
    Chooses,
    ChoosesByName,
    EachChooses,
    IsPath,
    Name,
    NonNegative,
    PartOf,
    Positive,
    Seed,
    Whole,
    fault,
    settings,
)
from rlhf_env.toml_files import naming_lines, read_kind
from rlhf_env.types import JsonObject, JsonView

# What no machine that this is for can hold: a mistyped size is a message, and not the end of all that runs there.
_MOST = 2**20
_Size = Annotated[int, Ge(1), Le(_MOST)]  # texts side by side, tokens of a text, prompts of an evaluation
_MOST_TOKENS = 2**28  # of all texts side by side: 2 GiB of ids


@settings
class EnvironmentSettings:
    """The environment: how many texts are written at a time, how long they may be, and what one action is."""

    num_envs: _Size = 64
    """Texts that are written at a time, side by side: the rows of a batch (B)."""
    max_new_tokens: _Size = 24
    """The longest response, in tokens."""
    max_prompt_tokens: _Size = 32
    """The longest prompt, in tokens."""
    view: Literal["response", "token"] = "response"
    """What one action is: a whole response or one token."""
    action_length: AtLeastOne | None = None
    """Tokens of one action, instead of what `view` says: a segment."""
    stop: list[str] = field(default_factory=list)
    """Strings that end a text, such as ["\\nUser:"], with the token in which it first holds one. What is looked at is
    what the agent has said in its present turn, and not the prompt. The string's tokens are learned from as all others;
    `response`, which rewards read, ends before it, and `finish_reason` is "stop_string"."""
    keep_special: list[str] = field(default_factory=list)
    """Special tokens that stay in the text of a response, which rewards, metrics and people read, such as ["<think>",
    "</think>"]. All others are left out of it."""
    over_long: OverLong = "refuse"
    """Texts that are too long - prompts of more than `max_prompt_tokens`, or than the model's context leaves room for;
    pairs, labels and demonstrations that the model cannot read - are refused by name, left out, or cut: prompts at
    their beginning ("cut left"), end or middle, of conversations the oldest exchanges and then the longest messages;
    answers only where the prompt has given half of the room, and always at their end."""

    def problems(self) -> Iterator[Problem]:
        for problem in stop_string_problems(self.stop):
            yield fault("stop", problem)
        if self.num_envs * (self.max_prompt_tokens + self.max_new_tokens) > _MOST_TOKENS:
            yield fault(
                "num_envs",
                f"= {self.num_envs:,} texts of {self.max_prompt_tokens:,} + {self.max_new_tokens:,} tokens "
                f"are more than {_MOST_TOKENS:,} tokens: take fewer texts, or shorter ones",
            )
        if self.action_length is not None and self.action_length > self.max_new_tokens:
            yield fault(
                "action_length", f"must be at most {self.max_new_tokens} (max_new_tokens), got {self.action_length}"
            )

    @property
    def length(self) -> int:
        """Tokens of one action."""
        if self.action_length is not None:
            return self.action_length
        return 1 if self.view == "token" else self.max_new_tokens


@settings
class EvaluationSettings:
    """The external evaluator, which measures on held-out prompts, or on those of training where none are held out."""

    prompts: _Size = 128
    """Number of prompts, from the first one on; if there are fewer, some are used again."""
    every: Whole = 0
    """Updates from one evaluation to the next (0: only at the end)."""
    seed: Seed = 12_345
    """The seed of the texts of an evaluation."""
    best: Name = "objective"
    """The measure by which the best checkpoint during training is chosen; it is kept next to the last one."""
    rewards: Annotated[JsonObject, EachChooses("reward")] = field(default_factory=dict)
    """The gold reward: rewards, as in [rewards], that are measured in addition and that no agent sees."""
    metrics: Annotated[list[Name] | None, ChoosesByName("metric")] = None
    """Additional metrics, by a plugin's name or as "FILE.py:NAME"."""
    samples: _Size = 1
    """Answers to each prompt. Confidence intervals still count prompts, not answers."""
    decoding: Annotated[JsonObject, PartOf(Sampling)] = field(default_factory=dict)
    """How these answers are sampled, if not as in [policy.sampling]: `{ top_k = 1 }` is greedy. Objective and KL are
    then those of such answers, and not what training maximises."""
    pass_at: list[AtLeastOne] = field(default_factory=list)
    """Values of k for pass@k: how often at least one of k answers is a success, logged as `pass_at_1`, `pass_at_8`."""
    success: Name = "task"
    """What a success is: a part of [rewards] or of [evaluation.rewards] that is 0 or 1, or "PART >= NUMBER"."""

    def problems(self) -> Iterator[Problem]:
        if self.prompts * self.samples > _MOST:
            yield fault("samples", f"= {self.samples:,} answers to {self.prompts:,} prompts are more than {_MOST:,}")
        for k in self.pass_at:
            if k > self.samples:
                yield fault(
                    "pass_at", f"{k} needs samples = {k} or more answers to each prompt, and there are {self.samples}"
                )
        try:
            drawn = from_table(Sampling, self.decoding, "decoding")
        except ConfigError as error:
            for problem in error.problems:
                keys = problem.keys if isinstance(problem, Problem) else ()
                yield Problem(str(problem), ("decoding", *keys))
        else:
            if drawn.greedy and self.samples > 1:
                yield fault(
                    "samples",
                    f"= {self.samples} answers to a prompt are all the same where decoding is greedy (top_k = 1)",
                )
        try:
            Success.read(self.success)
        except ConfigError as error:
            yield fault("success", f"= {error}")


@settings
class EngineSettings:
    """How the processes of a run share its work (docs/scale.md)."""

    shard: bool = False
    """Divide weights, gradients and moments among the processes (FSDP2), instead of keeping all of them in each. A
    run can be resumed with or without it."""
    ahead: Annotated[int, Ge(0), Le(1)] = 0
    """How many updates texts are written ahead of learning. 1: while the agent learns from a rollout, another process
    on this machine writes the next one, with the weights that the update began with. Importance ratios correct what is
    learned; agents that have none are refused. It changes the texts of a run, so a run resumes with the same value."""

    def problems(self) -> Iterator[Problem]:
        if self.ahead and self.shard:
            yield fault("ahead", "= 1 is of one process that learns, and shard = true of several: leave one out")


@settings
class Experiment:
    """Everything a run depends on. `load` reads a TOML file; `to_toml` writes the resolved one."""

    name: str = "experiment"
    """What the run is called, in its folder's name and in reports."""
    seed: Seed = 0
    """What every random stream of the run is derived from."""
    task: Annotated[JsonObject, Chooses("task")] = field(default_factory=lambda: {"name": "count"})
    """Where prompts come from: the task's name (or your own code: `function = "FILE.py:NAME"`), and its settings."""
    policy: PolicySettings = field(default_factory=PolicySettings)
    """The model that generates texts: its weights, tokenizer, precision and device, and how tokens are sampled."""
    environment: EnvironmentSettings = field(default_factory=EnvironmentSettings)
    """How many texts are written at a time, how long they may be, and what one action is."""
    rewards: Annotated[JsonObject, EachChooses("reward")] = field(default_factory=lambda: {"task": 1.0})
    """The parts of the reward. Each is a weight, or a table with `weight` and the settings of that reward. Your own
    code is a part with `function = "FILE.py:NAME"`."""
    agent: Annotated[JsonObject, Chooses("agent")] = field(default_factory=lambda: {"name": "ppo"})
    """The algorithm: the agent's name (or your own code: `function = "FILE.py:NAME"`), and its settings."""
    preferences: Annotated[str, IsPath()] | None = None
    """A preference store, or a file of pairs, that the agent (dpo, kto) learns from instead of generating texts:
    `num_envs` / 2 pairs per rollout. The environment is then used for evaluations only."""
    budget: Budget = field(default_factory=lambda: Budget(generated_tokens=100_000), metadata={"whole": True})
    """When the run ends: the first limit that is reached."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    """How and when the policy is evaluated."""
    texts: RecordedTextsSettings = field(default_factory=RecordedTextsSettings)
    """Which texts the run folder keeps, with the numbers of each token, for `rlhf-env watch`."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    """How several processes share the work."""
    checkpoint_every: Whole = 10
    """Updates from one checkpoint to the next (0: only at the end)."""
    max_kl: Positive | None = None
    """The run ends early when the mean KL of a rollout to the reference, in nats per response, is above this. It is the
    KL itself, whatever the weight of its penalty."""
    patience: Whole = 0
    """The run ends early when this many evaluations in a row (0: never) did not improve the best objective so far by
    more than `min_delta`. The evaluation before training counts as the first; `[evaluation] every` says
    how often there is one."""
    min_delta: NonNegative = 0.0
    """The improvement of the objective that restarts the count of `patience`."""
    stopping: Annotated[JsonObject, EachChooses("stopping rule", one_by="rule")] = field(default_factory=dict)
    """Further rules that may end the run, each a table of settings, as in `[stopping.brake]`. A single one may also be
    written as `[stopping]` with `rule = "brake"` and its settings."""
    trackers: Annotated[JsonObject, EachChooses("tracker")] = field(default_factory=dict)
    """Where metrics go in addition to the run folder, each a table of settings, as in `[trackers.mlflow]`. A run can be
    resumed with other trackers."""
    folder: Path | None = field(default=None, repr=False, compare=False, metadata={"setting": False})
    """Where the file is that this was read from, for the relative paths in it; None: the working directory."""
    asks_in_plain: bool = field(default=False, repr=False, compare=False, metadata={"setting": False})
    """Whether files that name no chat template ask their conversations in the plain layout, as older versions did: a
    run that one of them began goes on so."""

    def problems(self) -> Iterator[Problem]:
        if not self.name or not self.name.isprintable():
            yield fault("name", f"must be one or more printable characters, got {self.name!r}")
        for name in ("max_kl", "patience"):
            if name in self.stopping and getattr(self, name):
                yield fault(name, f"is set twice: as {name} = {getattr(self, name)} and by [stopping.{name}]")
        if self.patience > 0 and self.evaluation.every == 0:
            yield fault(
                "patience",
                f"= {self.patience} counts evaluations on the way, and there are none: set `every` in "
                "[evaluation] to a number of updates",
            )
        if self.max_kl is not None and self.preferences is not None:
            yield fault("max_kl", "is measured on texts that the agent writes, and with `preferences` it writes none")
        if self.preferences is not None and not self.budget.is_of_stored_data:
            yield Problem(
                "with `preferences` the agent writes no texts: budget epochs, updates, gradient_steps, gradient_tokens "
                "or seconds",
                ("budget",),
            )

    @classmethod
    def from_table(cls, table: JsonView, where: str = "experiment", *, folder: Path | None = None) -> Experiment:
        """From plain data; relative paths in it are led from `folder`. Raises ConfigError with every problem found."""
        return replace(from_table(cls, table, where), folder=folder)

    @classmethod
    def load(cls, file: str | Path) -> Experiment:
        """From a TOML file; a relative path in it is relative to the file."""
        table = read_kind(file, "experiment")
        with naming_lines(file):
            return cls.from_table(table, str(file), folder=Path(file).parent)

    def located(self) -> Experiment:
        """The same with paths that lead from the working directory, to build it with.

        A run is known by its settings as they were written: so this is made anew wherever a file is opened. Code that
        it names is from now on what its file now has in it. What is located has no folder left, so that it is not led
        a second time.
        """
        wanted = self
        if self.asks_in_plain:
            wanted = replace(self, task=_in_plain(self.task), agent=_in_plain(self.agent))
        if self.folder is None and not self.code_named:
            return wanted
        return replace(cast(Experiment, relative_to(self.folder or Path(), wanted, Experiment)), folder=None)

    def tables_of_plugins(self) -> JsonObject:
        """What chooses plugins, or names code of one's own."""
        evaluation = {"rewards": self.evaluation.rewards, "metrics": self.evaluation.metrics}
        named = {name: getattr(self, name) for name in ("task", "rewards", "agent", "stopping", "trackers")}
        return {**named, "evaluation": evaluation}

    @property
    def code_named(self) -> list[str]:
        """The code that it names by where it is, as written: it runs when the experiment is built."""
        return code_named_in(self.tables_of_plugins(), "metrics", "tools")

    @property
    def data_named(self) -> list[str]:
        """The paths in it but for those of code and of the policy's model, which a run knows by other means."""
        read = replace(self, policy=PolicySettings())
        files = paths_of(self.folder or Path(), read, Experiment)
        return [file for file in files if not file.endswith(".py")]

    @property
    def agent_label(self) -> str:
        """What its agent is called."""
        return label_of(self.agent, "agent")

    def to_toml(self) -> str:
        """The resolved file: every setting that is in force and not None, but for `trackers`, `[engine] shard` and the
        policy's `device`, with others of which a run resumes.

        A run is known by this text, so a setting that older versions do not know is in it only where it is used.
        """
        table = asdict(self)
        del table["engine"], table["trackers"], table["folder"], table["asks_in_plain"], table["policy"]["device"]
        if self.engine.ahead:
            table["engine"] = {"ahead": self.engine.ahead}
        if not self.stopping:
            del table["stopping"]
        if self.texts == RecordedTextsSettings():
            del table["texts"]
        for name in ("stop", "keep_special"):
            if not getattr(self.environment, name):
                del table["environment"][name]
        if self.evaluation.best == EvaluationSettings().best:
            del table["evaluation"]["best"]
        for name in ("samples", "decoding", "pass_at", "success"):
            if getattr(self.evaluation, name) == getattr(EvaluationSettings(), name):
                del table["evaluation"][name]
        if self.environment.over_long == EnvironmentSettings().over_long:
            del table["environment"]["over_long"]
        for name in ("attention", "gradient_checkpointing"):
            if getattr(self.policy, name) == getattr(PolicySettings(), name):
                del table["policy"][name]
        return tomli_w.dumps(_without_none(table))

    def stopping_tables(self) -> JsonObject:
        """The tables of all rules that may end the run: `stopping`, and what `max_kl` and `patience` are short for."""
        tables: JsonObject = {}
        if self.max_kl is not None:
            tables["max_kl"] = {"limit": self.max_kl}
        if self.patience > 0:
            tables["patience"] = {"evaluations": self.patience, "min_delta": self.min_delta}
        return {**tables, **self.stopping}

    def with_agent(self, agent: str | JsonView) -> Experiment:
        """The same experiment with another agent: swapping the algorithm is this one word."""
        return replace(self, agent={"name": agent} if isinstance(agent, str) else dict(agent))


def _in_plain(value: Any) -> Any:
    """The same tables; in those of file tasks that name no chat template (also within mixtures), "plain"."""
    if isinstance(value, Mapping):
        inner = {key: _in_plain(item) for key, item in value.items()}
        return {"chat_template": "plain", **inner} if "file" in (value.get("name"), value.get("plugin")) else inner
    return [_in_plain(item) for item in value] if isinstance(value, list) else value


def _without_none(value: Any) -> Any:
    """TOML has no null: what is None is left out."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value
