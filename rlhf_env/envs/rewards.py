"""The reward mix and its ledger: a weighted sum of parts that keeps the parts.

`sum(weight_i * raw_i) == reward` holds exactly (the same float64 operations in the same order), for every episode.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlhf_env import plugins
from rlhf_env.errors import ConfigError, RewardError, did_you_mean
from rlhf_env.types import AnyReward, Episode, Float, GroupReward, Remembers, Reward, Task, TokenReward


@dataclass(frozen=True)
class Score:
    """What one episode earned. `raw` holds each part unweighted; `tokens` the token parts, float64[T] unweighted."""

    raw: Mapping[str, float]
    weights: Mapping[str, float]
    tokens: Mapping[str, Float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """sum(weight_i * raw_i), added in the order of the parts."""
        total = 0.0
        for name, raw in self.raw.items():  # not `sum`: from Python 3.12 on it compensates, and numpy's floats do not
            total += self.weights[name] * raw
        return total


class RewardMix:
    """`RewardMix({"bradley_terry": (1.0, model), "kl": (0.05, KL(reference))})`.

    A bare reward instead of a pair has weight 1. Scores are validated here and nowhere else: every part must return
    one finite number per episode (per token for a TokenReward), or a RewardError names it.
    """

    def __init__(self, parts: Mapping[str, AnyReward | tuple[float, AnyReward]]) -> None:
        pairs = {name: part if isinstance(part, tuple) else (1.0, part) for name, part in parts.items()}
        if not pairs:
            raise ConfigError("a reward mix needs at least one part")
        for name, pair in pairs.items():
            if len(pair) != 2:
                raise ConfigError(f"reward {name!r}: expected a reward or (weight, reward), got a tuple of {len(pair)}")
        for name, (weight, reward) in pairs.items():
            if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not np.isfinite(weight):
                raise ConfigError(f"reward {name!r}: weight {weight!r} is not a finite number")
            if not isinstance(reward, (TokenReward, GroupReward, Reward)) or isinstance(reward, type):
                raise ConfigError(
                    f"reward {name!r} is no reward: {reward!r} has none of __call__(episodes), "
                    "token_rewards(episodes), group_rewards(group)"
                )
        self.weights: dict[str, float] = {name: float(weight) for name, (weight, _) in pairs.items()}
        self.parts: dict[str, AnyReward] = {name: reward for name, (_, reward) in pairs.items()}
        # Asked once: isinstance of a protocol takes longer than many a reward.
        self._by_token = {name: part for name, part in self.parts.items() if isinstance(part, TokenReward)}
        self._by_group = {name: part for name, part in self.parts.items() if isinstance(part, GroupReward)}
        self._by_episode = {name: part for name, part in self.parts.items() if isinstance(part, Reward)}
        self._remembering = {name: part for name, part in self.parts.items() if isinstance(part, Remembers)}

    @property
    def needs_logprobs(self) -> bool:
        """Whether a part reads `episode.logprobs`, so that actions must carry them."""
        return any(getattr(part, "needs_logprobs", False) for part in self.parts.values())

    @property
    def scores_groups(self) -> bool:
        return bool(self._by_group)

    def score(self, episodes: Sequence[Episode], group_size: int = 1) -> list[Score]:
        """One Score per episode. Neighbours of `group_size` are one group (responses to one prompt)."""
        raw: dict[str, list[float]] = {}
        tokens: dict[str, list[Float]] = {}
        for name in self.parts:
            if name in self._by_token:
                tokens[name] = _token_scores(name, self._by_token[name], episodes)
                raw[name] = [float(values.sum()) for values in tokens[name]]
            elif name in self._by_group:
                judge = self._by_group[name].group_rewards
                groups = [episodes[i : i + group_size] for i in range(0, len(episodes), group_size)]
                raw[name] = [score for group in groups for score in _scores(name, judge, group).tolist()]
            else:
                raw[name] = _scores(name, self._by_episode[name], episodes).tolist()
        return [
            Score(
                raw={name: scores[i] for name, scores in raw.items()},
                weights=self.weights,
                tokens={name: values[i] for name, values in tokens.items()},
            )
            for i in range(len(episodes))
        ]

    def observe(self, episodes: Sequence[Episode]) -> None:
        """Show finished episodes to the parts that remember (called when the environment resets)."""
        for part in self._remembering.values():
            part.observe(episodes)

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._remembering.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, part in self._remembering.items():
            part.load_state_dict(state[name])


def _scores(name: str, reward: Callable[[Sequence[Episode]], Any], episodes: Sequence[Episode]) -> Float:
    """float64[len(episodes)], checked."""
    try:
        values = np.asarray(reward(episodes))
    except Exception as error:
        raise RewardError(f"reward {name!r} raised {type(error).__name__}: {error}") from error
    return _checked(name, values, len(episodes), "episode")


def _token_scores(name: str, reward: TokenReward, episodes: Sequence[Episode]) -> list[Float]:
    try:
        rows = [np.asarray(row) for row in reward.token_rewards(episodes)]
    except Exception as error:
        raise RewardError(f"reward {name!r} raised {type(error).__name__}: {error}") from error
    if len(rows) != len(episodes):
        raise RewardError(f"reward {name!r} returned {len(rows)} rows for {len(episodes)} episodes")
    return [
        _checked(name, row, len(episode.response_ids), "token") for row, episode in zip(rows, episodes, strict=True)
    ]


def _checked(name: str, values: np.ndarray[Any, Any], count: int, what: str) -> Float:
    if values.dtype.kind not in "fiub":
        raise RewardError(f"reward {name!r} returned {values.dtype} values, expected one float per {what}")
    if values.shape != (count,):
        raise RewardError(f"reward {name!r} returned shape {values.shape}, expected ({count},): one float per {what}")
    floats = values.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(floats))
    if bad.size:
        raise RewardError(
            f"reward {name!r} returned {floats[bad[0]]} for {what} {bad[0]} ({bad.size} of {count} are not finite)"
        )
    return floats


@dataclass(frozen=True)
class FunctionReward:
    """A function in the convention of TRL reward functions, as a Reward."""

    function: Callable[..., Sequence[float | None]]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        names = {key for episode in episodes for key in episode.prompt.meta}
        columns: dict[str, Any] = {key: [episode.prompt.meta.get(key) for episode in episodes] for key in sorted(names)}
        columns["prompts"] = [episode.prompt.text for episode in episodes]
        columns["completions"] = [episode.response for episode in episodes]
        columns["completion_ids"] = [episode.response_ids.tolist() for episode in episodes]
        accepted = inspect.signature(self.function).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
            columns = {key: column for key, column in columns.items() if key in accepted}
        answer = self.function(**columns | dict(self.arguments))
        # TRL's None means "this reward has nothing to say about this row" and adds nothing to its sum.
        return np.asarray([0.0 if value is None else value for value in answer])


def from_function(function: Callable[..., Sequence[float | None]], **arguments: Any) -> FunctionReward:
    """Lift `f(prompts, completions, **columns) -> list[float]` into a Reward; it works unchanged.

    `columns` are the task's metadata and `completion_ids`, one list each, as far as the function takes them;
    `arguments` are passed as they are on every call. None in the answer adds 0, as in TRL.
    """
    accepted = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        name = getattr(function, "__name__", repr(function))
        unknown = [key for key in arguments if key not in accepted]
        if unknown:
            raise ConfigError(*(f"reward {name!r}: no setting {key!r}{did_you_mean(key, accepted)}" for key in unknown))
    return FunctionReward(function, dict(arguments))


@dataclass(frozen=True)
class TaskReward:
    """The task's own score as a reward part."""

    task: Any

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        return np.array([self.task.score(episode) for episode in episodes], dtype=np.float64)


RewardSpec = RewardMix | AnyReward | Callable[..., Any] | str | Mapping[str, Any] | None


def load_rewards(spec: RewardSpec, task: Task, provided: Mapping[str, Any] | None = None) -> RewardMix:
    """A RewardMix from whatever a user writes.

    - None: the task's own score, as the part "task";
    - "length": that plugin with its defaults; a reward object: that reward; a function: `from_function` of it;
    - {"length": 0.5}: a weight; {"length": {"weight": 0.5, "target": 20}}: a weight and the plugin's settings. The key
      names the part; a `plugin` entry names the plugin where that differs. "task" is the task's own score.

    `provided` holds what the run can lend to a reward: `reference`, `tokenizer`.
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
    for name, value in spec.items():
        parts[name] = _load_part(name, value, task, dict(provided or {}))
    return RewardMix(parts)


def _load_part(name: str, value: Any, task: Task, provided: dict[str, Any]) -> AnyReward | tuple[float, AnyReward]:
    if inspect.isfunction(value):
        return from_function(value)
    if isinstance(value, tuple) and len(value) == 2 and inspect.isfunction(value[1]):
        return value[0], from_function(value[1])
    if isinstance(value, tuple) or not isinstance(value, (int, float, Mapping)):
        return value  # an object or (weight, object): RewardMix checks it
    settings: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {"weight": value}
    weight = settings.pop("weight", 1.0)
    plugin = settings.pop("plugin", name)
    if plugin == "task":
        if not hasattr(task, "score"):
            raise ConfigError(f"the task {type(task).__name__} has no score of its own: name a reward")
        return weight, TaskReward(task)
    target = plugins.host().load("reward", plugin)
    if isinstance(target, type):
        return weight, plugins.call_with(target, settings, provided, f"reward {name!r}")
    return weight, from_function(target, **settings)


def _name_of(reward: Any) -> str:
    return str(getattr(reward, "__name__", type(reward).__name__)).lower()
