"""The reward mix and its ledger: a weighted sum of parts that keeps the parts.

`sum(weight_i * raw_i) == reward` holds exactly (the same float64 operations in the same order), for every episode.
What a part answers is checked here and nowhere else, whoever answers: an object, another process, a server.
"""

from __future__ import annotations

import inspect
import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval

from rlhf_env import plugins
from rlhf_env.envs.isolation import Limits, RewardFailed, isolated
from rlhf_env.envs.waiting import Asking, WaitsOutside
from rlhf_env.errors import ConfigError, Problem, RewardError, did_you_mean, under
from rlhf_env.settings import Name, Share, fits, settings
from rlhf_env.types import AnyReward, Episode, Float, GroupReward, Remembers, Reward, Task, TokenReward

# A score beyond this is taken for a mistake: squared and summed over a batch it would not fit into float32.
LARGEST_SCORE = 1e15

# What a part says about some episodes: float or float64[T] each, and why some of them only stand in for one, by place.
_Answers = tuple[list[Any], dict[int, str]]


@dataclass(frozen=True)
class Score:
    """What one episode earned. `raw` holds each part unweighted; `tokens` the token parts, float64[T] unweighted.

    `failed`: what the parts that could not score it did ("raised ..."). Where one of them is to be skipped, all of
    `raw` is empty: an episode without a score, which nothing may be learned from.
    """

    raw: Mapping[str, float]
    weights: Mapping[str, float]
    tokens: Mapping[str, Float] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """sum(weight_i * raw_i), added in the order of the parts."""
        total = 0.0
        for name, raw in self.raw.items():  # not `sum`: from Python 3.12 on it compensates, and numpy's floats do not
            total += self.weights[name] * raw
        return total


@settings
class Failures:
    """What becomes of episodes that a part fails to score: it raised, hung, died, or gave NaN or no sane number.

    An answer of the wrong form (their number, their type) is nobody's episode and always ends the run.
    """

    on_error: Literal["stop", "skip"] | Annotated[float, Interval(ge=-LARGEST_SCORE, le=LARGEST_SCORE)] = "stop"
    """"stop" ends the run with a RewardError. "skip" leaves the episode without a score; it is left out of the update,
    and counted. A number stands in for the score, unweighted (of a token part: for each token's)."""
    max_bad_fraction: Share = 0.1
    """More of a rollout's episodes than this end the run all the same."""

    def allowed(self, rows: int) -> int:
        """How many of `rows` episodes may fail."""
        return 0 if self.on_error == "stop" else math.floor(self.max_bad_fraction * rows + 1e-9)


class RewardMix:
    """`RewardMix({"bradley_terry": (1.0, model), "kl": (0.05, KL(reference))})`.

    A bare reward instead of a pair has weight 1. Scores are validated here and nowhere else: every part must return
    one finite number per episode (per token for a TokenReward), or a RewardError names it; `failures` may say
    otherwise of a part.

    A part is asked about identical texts once (members of a group excepted). Parts that wait outside this process
    (`WaitsOutside`: another process, a server) are asked all at the same time, and while the others calculate.
    """

    def __init__(
        self,
        parts: Mapping[str, AnyReward | tuple[float, AnyReward]],
        *,
        failures: Mapping[str, Failures] | None = None,
    ) -> None:
        pairs = {name: part if isinstance(part, tuple) else (1.0, part) for name, part in parts.items()}
        if not pairs:
            raise ConfigError("a reward mix needs at least one part")
        for name, pair in pairs.items():
            if len(pair) != 2:
                raise ConfigError(f"reward {name!r}: expected a reward or (weight, reward), got a tuple of {len(pair)}")
        for name, (weight, reward) in pairs.items():
            if not fits(weight, float):
                raise ConfigError(f"reward {name!r}: weight {weight!r} is not a finite number")
            if not isinstance(reward, (TokenReward, GroupReward, Reward)) or isinstance(reward, type):
                raise ConfigError(
                    f"reward {name!r} is no reward: {reward!r} has none of __call__(episodes), "
                    "token_rewards(episodes), group_rewards(group)"
                )
        self.weights: dict[str, float] = {name: float(weight) for name, (weight, _) in pairs.items()}
        self.parts: dict[str, AnyReward] = {name: reward for name, (_, reward) in pairs.items()}
        self.failures: dict[str, Failures] = {name: (failures or {}).get(name, Failures()) for name in self.parts}
        # Asked once: isinstance of a protocol takes longer than many a reward.
        self._by_token = {name: part for name, part in self.parts.items() if isinstance(part, TokenReward)}
        self._by_group = {name: part for name, part in self.parts.items() if isinstance(part, GroupReward)}
        self._remembering = {name: part for name, part in self.parts.items() if isinstance(part, Remembers)}
        self._outside = {name: part for name, part in self.parts.items() if isinstance(part, WaitsOutside)}
        self._calls: dict[str, Callable[[Sequence[Episode]], Any]] = {
            name: self._by_token[name].token_rewards
            if name in self._by_token
            else self._by_group[name].group_rewards
            if name in self._by_group
            else part  # type: ignore[misc]  # a Reward, as was checked above
            for name, part in self.parts.items()
        }

    @property
    def needs_logprobs(self) -> bool:
        """Whether a part reads `episode.logprobs`, so that actions must carry them."""
        return any(getattr(part, "needs_logprobs", False) for part in self.parts.values())

    @property
    def scores_groups(self) -> bool:
        return bool(self._by_group)

    @property
    def waits_outside(self) -> bool:
        """Whether a part waits for another process or a server, so that other work can be done meanwhile."""
        return bool(self._outside)

    def score(self, episodes: Sequence[Episode], group_size: int = 1, *, rows: int = 0) -> list[Score]:
        """One Score per episode. Neighbours of `group_size` are one group (responses to one prompt).

        `rows`: the episodes of the whole rollout, where these are some of them: `max_bad_fraction` is of those.
        """
        if self._outside and len(self.parts) > 1:
            with self.scoring() as scoring:
                scoring.begin(episodes, group_size, rows=rows)
                return scoring.finish()
        return self._scores(episodes, {name: self._part(name, episodes, group_size, rows) for name in self.parts})

    @contextmanager
    def scoring(self) -> Iterator[Scoring]:
        """A context in which texts can be handed in batch by batch, and are scored while the caller goes on."""
        with Asking() as asking:
            yield Scoring(self, asking)

    def _part(self, name: str, episodes: Sequence[Episode], group_size: int, rows: int) -> _Answers:
        """What one part says about all of these."""
        allowed = self.failures[name].allowed(max(rows, len(episodes)))
        values: list[Any] = []
        failed: dict[int, str] = {}
        size = group_size if name in self._by_group else max(len(episodes), 1)
        for start in range(0, len(episodes), size):
            found, why = self._ask(name, episodes[start : start + size], allowed - len(failed))
            values += found
            failed |= {start + place: did for place, did in why.items()}
        return values, failed

    def _scores(self, episodes: Sequence[Episode], answers: Mapping[str, _Answers]) -> list[Score]:
        values = {name: found for name, (found, _) in answers.items()}
        failed = {name: why for name, (_, why) in answers.items()}
        return [self._score_of(row, values, failed) for row in range(len(episodes))]

    def _score_of(
        self, row: int, values: Mapping[str, Sequence[Any]], failed: Mapping[str, Mapping[int, str]]
    ) -> Score:
        why = {name: rows[row] for name, rows in failed.items() if row in rows}
        if any(self.failures[name].on_error == "skip" for name in why):
            return Score(raw={}, weights={}, failed=why)
        tokens: dict[str, Float] = {name: values[name][row] for name in self._by_token}
        raw = {name: float(tokens[name].sum()) if name in tokens else values[name][row] for name in self.parts}
        return Score(raw=raw, weights=self.weights, tokens=tokens, failed=why)

    def require_few_failures(self, scores: Sequence[Score], episodes: Sequence[Episode]) -> None:
        """RewardError where a part has failed for too many of a whole rollout, or no episode of it has a score."""
        for name, failures in self.failures.items():
            failed = {row: score.failed[name] for row, score in enumerate(scores) if name in score.failed}
            if len(failed) > failures.allowed(len(scores)):
                raise self._too_many(name, failed, episodes)
        for name in scores[0].failed if not any(score.raw for score in scores) else ():
            raise self._too_many(name, dict.fromkeys(range(len(scores)), scores[0].failed[name]), episodes)

    def _ask(self, name: str, episodes: Sequence[Episode], allowed: int) -> _Answers:
        """A part's answer to one question; identical texts are in it once.

        Raises RewardError for more failures than `allowed`, and for an answer of the wrong form.
        """
        distinct, places = self._distinct(name, episodes)
        try:
            answer = self._calls[name](distinct)
        except (Exception, SystemExit) as error:
            found, why = self._after_error(name, distinct, allowed, error)
        else:
            found, why = (_token_values if name in self._by_token else _values)(name, answer, distinct)
        failed = {row: why[place] for row, place in enumerate(places) if place in why}
        return self._filled(name, episodes, [found[place] for place in places], failed, allowed)

    def _distinct(self, name: str, episodes: Sequence[Episode]) -> tuple[Sequence[Episode], Sequence[int]]:
        """The episodes that differ in what the part may look at, and the place among them of each of `episodes`.

        Two are of one prompt that hold the same object, as rows of a group do: its columns may be anything.
        """
        if name in self._by_group or len({it.response_ids.tobytes() for it in episodes}) == len(episodes):
            return episodes, range(len(episodes))
        stated = getattr(self.parts[name], "needs_logprobs", False)  # else it does not read them
        distinct: list[Episode] = []
        place_of: dict[Any, int] = {}
        places: list[int] = []
        for it in episodes:
            logprobs = it.logprobs.tobytes() if stated and it.logprobs is not None else None
            text = id(it.prompt), it.response_ids.tobytes(), it.actions.tobytes(), it.finish_reason, logprobs
            if text not in place_of:
                place_of[text] = len(distinct)
                distinct.append(it)
            places.append(place_of[text])
        return distinct, places

    def _after_error(self, name: str, episodes: Sequence[Episode], allowed: int, error: BaseException) -> _Answers:
        """Find the episodes that it was about, by asking for each of them alone."""
        if isinstance(error, RewardError) and len(episodes) > max(allowed, 0):
            raise RewardError(f"reward {name!r}: {error}") from error
        if len(episodes) == 1 or name in self._by_group or isinstance(error, RewardError):  # which is about all
            failed = dict.fromkeys(range(len(episodes)), _what_it_did(error))
            return self._filled(name, episodes, [0.0] * len(episodes), failed, allowed, error)
        if allowed <= 0 and isinstance(error, RewardFailed) and error.lost:  # to look for it would take as long again
            together = (
                f"when it was to score {len(episodes)} episodes (prompts {_id(episodes[0])} to {_id(episodes[-1])})"
            )
            raise RewardError(f"reward {name!r} {_what_it_did(error)}, {together}") from error
        values: list[Any] = []
        failed = {}
        for place, episode in enumerate(episodes):
            found, why = self._ask(name, [episode], 1)
            values += found
            if why:
                failed[place] = why[0]
                if len(failed) > max(allowed, 0):
                    raise self._too_many(name, failed, episodes) from error
        if not failed and allowed <= 0:
            raise RewardError(
                f"reward {name!r} {_what_it_did(error)} for {len(episodes)} episodes together, and for none alone"
            ) from error
        return values, failed

    def _filled(
        self,
        name: str,
        episodes: Sequence[Episode],
        values: list[Any],
        failed: dict[int, str],
        allowed: int,
        error: BaseException | None = None,
    ) -> _Answers:
        """`values` with what stands in for those that `failed`."""
        if failed and len(failed) > max(allowed, 0):
            raise self._too_many(name, failed, episodes) from error
        said = self.failures[name].on_error
        stand_in = 0.0 if isinstance(said, str) else float(said)  # of an episode to be skipped it is not looked at
        for place in failed:
            count = len(episodes[place].response_ids)
            values[place] = np.full(count, stand_in) if name in self._by_token else stand_in
        return values, failed

    def _too_many(self, name: str, failed: Mapping[int, str], episodes: Sequence[Episode]) -> RewardError:
        place, did = next(iter(failed.items()))
        first = f"{did} for episode {place} of 0..{len(episodes) - 1} (prompt {_id(episodes[place])})"
        failures = self.failures[name]
        if failures.on_error == "stop":
            return RewardError(f"reward {name!r} {first}")
        return RewardError(
            f"reward {name!r} failed for {len(failed)} of {len(episodes)} episodes, and max_bad_fraction is "
            f"{failures.max_bad_fraction:g} of a rollout: it {first}"
        )

    def observe(self, episodes: Sequence[Episode]) -> None:
        """Show finished episodes to the parts that remember (called when the environment resets)."""
        for name, part in self._remembering.items():
            try:
                part.observe(episodes)
            except RewardFailed as error:
                raise RewardError(f"reward {name!r} {error}, when it was shown {len(episodes)} episodes") from error

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._remembering.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, part in self._remembering.items():
            part.load_state_dict(state[name])


class Scoring:
    """Batches of texts on their way to their scores (`RewardMix.scoring`).

    Each part is asked what `RewardMix.score` would ask it, batch after batch and in that order: parts that wait outside
    this process in threads of their own, the others in `begin`. Of several failures, the one that would have come
    first is raised.
    """

    def __init__(self, mix: RewardMix, asking: Asking) -> None:
        self._mix, self._asking = mix, asking
        self._batches: list[tuple[Sequence[Episode], dict[str, Future[_Answers]]]] = []

    def begin(self, episodes: Sequence[Episode], group_size: int = 1, *, rows: int = 0) -> None:
        """Hand in a batch, as to `RewardMix.score`. Raises RewardError where that is sure already."""
        mix = self._mix
        questions = {name: partial(mix._part, name, episodes, group_size, rows) for name in mix.parts}
        answers: dict[str, Future[_Answers]] = {
            name: self._asking.ask(mix._outside[name], question) if name in mix._outside else Future()
            for name, question in questions.items()
        }
        self._batches.append((episodes, answers))
        for name, question in questions.items():
            if name in mix._outside:
                continue
            try:
                answers[name].set_result(question())
            except RewardError as error:
                answers[name].set_exception(error)
                self.finish()  # raises this one, or one that comes before it
        for answer in (each for _, every in self._batches for each in every.values()):
            if not answer.done():
                break
            answer.result()

    def finish(self) -> list[Score]:
        """The scores of all batches, in their order. Raises RewardError."""
        found = [
            (episodes, {name: answer.result() for name, answer in answers.items()})
            for episodes, answers in self._batches
        ]
        self._batches.clear()
        return [score for episodes, answers in found for score in self._mix._scores(episodes, answers)]


def _what_it_did(error: BaseException) -> str:
    if isinstance(error, (RewardFailed, RewardError)):
        return str(error)
    return f"raised {type(error).__name__}: {error}"


def _id(episode: Episode) -> str:
    return repr(episode.prompt.id)


def _values(name: str, answer: Any, episodes: Sequence[Episode]) -> _Answers:
    """The scores, float each, and what is wrong with those that are not sane."""
    values = _as_floats(name, answer, len(episodes), "episode")
    insane = np.flatnonzero(~_sane(values)).tolist()
    return values.tolist(), {place: _returned(values[place]) for place in insane}


def _token_values(name: str, answer: Any, episodes: Sequence[Episode]) -> _Answers:
    """As `_values`, float64[T] each."""
    try:
        rows = list(answer)
    except Exception as error:
        raise RewardError(f"reward {name!r} raised {type(error).__name__}: {error}") from error
    if len(rows) != len(episodes):
        raise RewardError(f"reward {name!r} returned {len(rows)} rows for {len(episodes)} episodes")
    values = [_as_floats(name, row, len(it.response_ids), "token") for row, it in zip(rows, episodes, strict=True)]
    failed = {}
    for place, row in enumerate(values):
        for token in np.flatnonzero(~_sane(row))[:1].tolist():
            failed[place] = f"{_returned(row[token])} at token {token}"
    return list(values), failed


def _as_floats(name: str, answer: Any, count: int, what: str) -> Float:
    """float64[count], finite or not. Raises RewardError for an answer of another form."""
    try:
        values = np.asarray(answer)
    except Exception as error:  # ragged lists; tensors, of which the error says what to do
        raise RewardError(f"reward {name!r} raised {type(error).__name__}: {error}") from error
    if values.dtype.kind not in "fiub":
        raise RewardError(f"reward {name!r} returned {values.dtype} values, expected one float per {what}")
    if values.shape != (count,):
        raise RewardError(f"reward {name!r} returned shape {values.shape}, expected ({count},): one float per {what}")
    return values.astype(np.float64)


def _sane(values: Any) -> Any:
    return np.abs(values) <= LARGEST_SCORE  # NaN is not


def _returned(value: float) -> str:
    return f"returned {value:g}" + (f" (beyond {LARGEST_SCORE:g})" if np.isfinite(value) else "")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
            raise ConfigError(
                *(
                    Problem(f"reward {name!r}: no setting {key!r}{did_you_mean(key, accepted)}", (key,))
                    for key in unknown
                )
            )
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
      names the part; a `plugin` entry names the plugin where that differs. "task" is the task's own score. `on_error`
      and `max_bad_fraction` are those of `Failures`; with `isolate = true`, or any of the `isolation.Limits`
      (`timeout`, `memory_mb`, `env_vars`), the reward runs in a process of its own.

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
    failures: dict[str, Failures] = {}
    for name, value in spec.items():
        if isinstance(value, (int, float, Mapping)):
            with under(name):
                table = RewardTable.read(name, value)
                parts[name] = table.weight, _load_part(table, task, dict(provided or {}))
            failures[name] = table.failures
        elif inspect.isfunction(value):
            parts[name] = from_function(value)
        elif isinstance(value, tuple) and len(value) == 2 and inspect.isfunction(value[1]):
            parts[name] = value[0], from_function(value[1])
        else:
            parts[name] = value  # an object or (weight, object): RewardMix checks it
    return RewardMix(parts, failures=failures)


@settings
class Mixing:
    """What a table of [rewards] says of the part's place in the mix."""

    weight: float = 1.0
    """What the part's scores are multiplied by in the reward."""
    plugin: Name | None = None
    """The reward's name, where the part has another one."""
    isolate: bool | None = None
    """Run the reward in a process of its own (default: only where a limit of such a process is given)."""


@dataclass(frozen=True, kw_only=True)
class RewardTable:
    """What a table of [rewards] says: of the mix (`weight`, `failures`), of the process, and the `plugin`'s own
    `settings`. `limits`: of a process of its own, or None."""

    name: str
    plugin: str
    weight: float
    failures: Failures
    limits: Limits | None
    settings: Mapping[str, Any]

    @classmethod
    def read(cls, name: str, value: Any) -> RewardTable:
        """Raises ConfigError that names the part."""
        own: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {"weight": value}
        problems: list[str] = []

        def take(kind: type[Any]) -> Any:
            given = {it.name: own.pop(it.name) for it in fields(kind) if it.name in own}
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
        if problems:
            raise ConfigError(*problems)
        return cls(
            name=name,
            plugin=mixing.plugin or name,
            weight=mixing.weight,
            failures=failures,
            limits=limits if limited or mixing.isolate else None,
            settings=own,
        )

    def require_plugin(self) -> None:
        """Raises ConfigError where there is no such plugin, or it cannot be imported (unless another process will)."""
        if self.plugin != "task":
            entry = plugins.host().entry("reward", self.plugin)
            if self.limits is None:
                entry.load()


def _load_part(table: RewardTable, task: Task, provided: dict[str, Any]) -> AnyReward:
    where = f"reward {table.name!r}"
    if table.plugin == "task":
        if not hasattr(task, "score"):
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
        return build()
    try:
        return isolated(build, table.limits)
    except ConfigError as error:
        error.found_in(where)
        hint = " (a process of its own is lent the tokenizer, and not the run's models)"
        raise ConfigError(
            *(p + hint if p.endswith("'reference' is required") else p for p in error.problems)
        ) from error


def _build(entry: plugins.Entry, settings: dict[str, Any], provided: dict[str, Any], where: str) -> AnyReward:
    target = entry.load()
    if isinstance(target, type):
        reward: AnyReward = plugins.call_with(target, settings, provided, where)
        return reward
    return from_function(target, **settings)


def _can_be_sent(name: str, lent: Any) -> bool:
    """Whether it can go to another process. Models stay where they are: a copy would cost their memory again."""
    try:
        return name == "tokenizer" and bool(pickle.dumps(lent))
    except Exception:  # pickle raises what the object likes
        return False


def _name_of(reward: Any) -> str:
    return str(getattr(reward, "__name__", type(reward).__name__)).lower()
