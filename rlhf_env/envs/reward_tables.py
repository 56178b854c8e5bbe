"""Rewards as users write them: a name, a weight, a table of settings, an object, a plain function."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, TypeVar, cast

from annotated_types import MinLen

from rlhf_env import plugins
from rlhf_env.envs.asked_part import Failures
from rlhf_env.envs.isolation import Limits, isolated
from rlhf_env.envs.reward_functions import (
    FunctionReward,
    as_reward,
    checked_arguments,
    from_function,
    is_function,
    name_of,
)
from rlhf_env.envs.rewards import RewardMix, require_whole_memory
from rlhf_env.envs.shaping import Shaped
from rlhf_env.envs.task_labels import mixture_of, require_tasks
from rlhf_env.envs.tasks import prompt_at
from rlhf_env.errors import ConfigError, Problem, did_you_mean, under
from rlhf_env.own_code import KEY, OwnCode
from rlhf_env.settings import Name, hints_of, settings
from rlhf_env.types import (
    AnyReward,
    Episode,
    Float,
    FollowsTraining,
    GroupReward,
    JsonObject,
    JsonView,
    Reward,
    ScoresItself,
    Task,
    TokenReward,
    TrainerState,
)

_T = TypeVar("_T")


@dataclass(frozen=True)
class TaskReward:
    """The task's own score as a reward part."""

    task: ScoresItself

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        return cast(Float, [self.task.score(episode) for episode in episodes])  # None where it abstains

    def follow(self, state: TrainerState, /) -> None:
        if isinstance(self.task, FollowsTraining):
            self.task.follow(state)

    def take_logged(self) -> Mapping[str, Sequence[float]]:
        return self.task.take_logged() if isinstance(self.task, FollowsTraining) else {}


RewardSpec = RewardMix | AnyReward | Callable[..., object] | str | JsonView | None


def load_rewards(
    spec: RewardSpec, task: Task | None, provided: Mapping[str, object] | None = None, *, measured: bool = False
) -> RewardMix:
    """A RewardMix from whatever a user writes.

    - None: the task's own score, as the part "task";
    - "length": that plugin with its defaults; a reward object: that reward; a function: `from_function` of it;
    - {"length": 0.5}: a weight; {"length": {"weight": 0.5, "target": 20}}: a weight and the plugin's settings. The key
      names the part; a `plugin` entry names the plugin where that differs, and `function` code of one's own. "task" is
      the task's own score. `on_error` and `max_bad_fraction` are those of `Failures`; with `isolate = true`, or any of
      the `isolation.Limits` (`timeout`, `memory_mb`, `env_vars`), the reward runs in a process of its own.

    `provided` holds what the run can lend to a reward: `reference`, `tokenizer`, and the name of its `device`. Where
    `task` is None there is no score of its own, and whether a function finds its columns is seen when it is asked.
    Rewards that are only `measured` have no shaping, which is of training.
    """
    if isinstance(spec, RewardMix):
        return spec
    if spec is None:
        spec = {"task": 1.0}
    elif isinstance(spec, str):
        spec = {spec: 1.0}
    if not isinstance(spec, Mapping):
        spec = {_name_of(spec): spec}
    parts: dict[str, AnyReward | tuple[float, AnyReward]] = {}
    failures: dict[str, Failures] = {}
    shaping: dict[str, Shaped] = {}
    of_tasks: dict[str, Mapping[str, float]] = {}
    for name, value in spec.items():
        if isinstance(value, (int, float, Mapping)):
            with under(name):
                table = RewardTable.read(name, value)
                if measured:
                    table.require_unshaped()
                parts[name] = table.weight, _load_part(table, task, dict(provided or {}))
                if table.tasks is not None:
                    require_tasks(name, table.tasks, task)
                    of_tasks[name] = table.tasks
            failures[name] = table.failures
            if table.shaping is not None:
                shaping[name] = table.shaping
        elif isinstance(value, tuple) and len(value) == 2:
            parts[name] = value[0], as_reward(value[1])
        else:
            parts[name] = as_reward(value)  # whatever else it is, RewardMix looks at it
    mix = RewardMix(parts, failures=failures, shaping=shaping, of_tasks=of_tasks)
    if of_tasks and (mixture := mixture_of(task)) is not None:
        for label in mixture.tasks:
            if not mix.speaks_of(label):
                raise ConfigError(f"no part of the reward counts in the task {label!r} of the mixture: name it in one")
    return mix


@settings
class Mixing:
    """What a table of [rewards] says of the part's place in the mix."""

    weight: float | None = None
    """The factor of the part's scores in the reward; by default 1, or the value that a schedule ends with."""
    tasks: Annotated[dict[str, float], MinLen(1)] | None = None
    """In a mixture of tasks: the labels of those in which the part counts, each with a factor of `weight`. It does not
    score texts of other tasks."""
    shaping: Shaped | None = None
    """How its scores are changed before they are summed up (`only_if`, `normalise`, `clip`, `schedule`, `target`).
    Evaluations use the scores as they are."""
    plugin: Name | None = None
    """The reward's registered name, if the part (the table) is called something else."""
    function: Name | None = None
    """Your own code instead of a registered name: "FILE.py:NAME", the file relative to this one, or "MODULE:NAME"."""
    isolate: bool | None = None
    """Run the reward in a process of its own (default: only where a limit of such a process is given)."""


def _shaping(table: Mapping[str, object]) -> Shaped:
    """Raises ConfigError with every problem found."""
    known = hints_of(Shaped)
    unknown = [key for key in table if key not in known]
    problems: list[str] = [Problem(f"no setting {key!r}{did_you_mean(key, known)}", (key,)) for key in unknown]
    try:
        made = Shaped(**cast(JsonObject, {key: value for key, value in table.items() if key in known}))
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return made


@dataclass(frozen=True, kw_only=True)
class RewardTable:
    """What a table of [rewards] says: of the mix (`weight`, `failures`), of the process, and the `plugin`'s own
    `settings`. `limits`: of a process of its own, or None."""

    name: str
    plugin: str
    weight: float
    shaping: Shaped | None
    tasks: Mapping[str, float] | None
    failures: Failures
    limits: Limits | None
    settings: JsonView

    @classmethod
    def read(cls, name: str, value: object) -> RewardTable:
        """Raises ConfigError that names the part."""
        own: JsonObject = dict(value) if isinstance(value, Mapping) else {"weight": value}
        problems: list[str] = []
        if isinstance(own.get("shaping"), Mapping):
            try:
                own["shaping"] = _shaping(own["shaping"])
            except ConfigError as error:
                error.found_in(f"reward {name!r} shaping")
                error.change(lambda problem: Problem(problem, ("shaping", *problem.keys)))
                problems.extend(error.problems)
                del own["shaping"]

        def take(kind: type[_T]) -> tuple[_T | None, bool]:
            given = {name: own.pop(name) for name in hints_of(kind) if name in own}
            try:
                return kind(**given), bool(given)
            except ConfigError as error:
                error.found_in(f"reward {name!r}")
                problems.extend(error.problems)
                return None, True

        mixing, _ = take(Mixing)
        failures, _ = take(Failures)
        limits, limited = take(Limits)
        if limited and mixing is not None and mixing.isolate is False:
            why = "timeout, memory_mb and env_vars need a process of its own: isolate = true"
            problems.append(Problem(f"reward {name!r}: {why}", ("isolate",)))
        if mixing is not None:
            chosen_by = {"plugin": mixing.plugin, KEY: mixing.function}
            try:
                plugin = plugins.name_in(chosen_by, "reward", name, key="plugin")
            except ConfigError as error:
                error.found_in(f"reward {name!r}")
                problems.extend(error.problems)
        if mixing is None or failures is None or problems:
            raise ConfigError(*problems)
        shaping, weight = mixing.shaping, mixing.weight
        if weight is None:
            ends = None if shaping is None else shaping.of_the_objective
            weight = 1.0 if ends is None else ends
        return cls(
            name=name,
            plugin=plugin or name,
            weight=weight,
            shaping=shaping,
            tasks=mixing.tasks,
            failures=failures,
            limits=limits if limited or mixing.isolate else None,
            settings=own,
        )

    def require_unshaped(self) -> None:
        """Raises ConfigError where it says how scores are changed in training, and nobody is trained on them."""
        if self.shaping is not None:
            said = (
                f"reward {self.name!r} is measured, and nobody is trained on it: shaping is of the parts of [rewards]"
            )
            raise ConfigError(Problem(said, ("shaping",)))

    def require_plugin(self) -> None:
        """Raises ConfigError where there is no such plugin, or it cannot be imported (unless another process will)."""
        if self.plugin != "task":
            entry = plugins.host().entry("reward", self.plugin)
            if self.limits is None:
                entry.load()


def _load_part(table: RewardTable, task: Task | None, provided: JsonObject) -> AnyReward:
    where = f"reward {table.name!r}"
    if table.plugin == "task":
        if task is None:
            raise ConfigError(f"{where}: there is no task here whose own score it could be: name a reward")
        if not isinstance(task, ScoresItself):
            raise ConfigError(f"the task {type(task).__name__} has no score of its own: name a reward")
        if table.settings:
            raise ConfigError(
                *(Problem(f"{where}: the task's own score has no setting {key!r}", (key,)) for key in table.settings)
            )
        build: Callable[[], AnyReward] = partial(TaskReward, task)
    else:
        entry = plugins.host().entry("reward", table.plugin)
        lent = provided if table.limits is None else {key: it for key, it in provided.items() if _can_be_sent(key, it)}
        build = partial(_build, entry, dict(table.settings), lent, where)
    if table.limits is None:
        made = build()
        if task is not None:
            _require_columns(made, task, where)
        return made
    try:
        return isolated(build, table.limits)
    except ConfigError as error:
        error.found_in(where)
        hint = " (a process of its own is lent the tokenizer, and not the run's models)"
        said = (p + hint if p.endswith("'reference' is required") else p for p in error.problems)
        raise ConfigError(*said) from error


def _build(entry: plugins.Entry, settings: JsonObject, provided: JsonObject, where: str) -> AnyReward:
    target = entry.load()
    if isinstance(target, type):
        made = as_reward(plugins.call_with(target, settings, provided, where))
    elif is_function(target):
        return from_function(target, **checked_arguments(target, settings, where))
    else:
        made = target
        if settings:
            said = (f"{where}: the reward is made already, and has no setting {key!r}" for key in settings)
            raise ConfigError(*(Problem(text, (key,)) for text, key in zip(said, settings, strict=True)))
    if isinstance(entry.target, OwnCode) and not _is_reward(made):
        raise plugins.wrong_kind("reward", entry.target, made)
    require_whole_memory(made, where)  # here, too: the mix sees no more than a proxy of one that has its own process
    return made


def _require_columns(made: AnyReward, task: Task, where: str) -> None:
    """Refuse a function with a parameter that nobody fills: no prompt has such a column."""
    if not isinstance(made, FunctionReward) or not made.missing(()):
        return
    size = 8 if task.size is None else min(task.size, 1_000)
    columns: set[str] = set()
    for index in range(size):
        columns |= set(prompt_at(task, index, {}).meta)
        if not made.missing(columns):
            return
    have = f"the task's columns are {', '.join(sorted(columns))}" if columns else "the task has no columns"
    raise ConfigError(f"{where}: {made.missing(columns)}, and {have}")


def _is_reward(made: object) -> bool:
    if isinstance(made, type) or not isinstance(made, (Reward, TokenReward, GroupReward)):
        return False
    if isinstance(made, (TokenReward, GroupReward, FunctionReward)):
        return True
    try:
        inspect.signature(made).bind(())  # the episodes
    except (TypeError, ValueError):
        return False
    return True


def _can_be_sent(name: str, lent: object) -> bool:
    """Whether it can go to another process. Models stay where they are: a copy would cost their memory again."""
    try:
        return name in ("tokenizer", "device") and bool(pickle.dumps(lent))
    except Exception:  # pickle raises what the object likes
        return False


def _name_of(reward: object) -> str:
    return name_of(reward).lower()
