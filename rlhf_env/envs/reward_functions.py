"""Functions in the convention of TRL reward functions, `f(prompts, completions, **columns) -> list[float]`, as rewards.

A function is given the batch that TRL's GRPOTrainer (1.16) gives it: all texts of a batch, those of a group side by
side, equal answers and all; messages where the prompt was messages; `completion_ids`, the task's columns,
`trainer_state`, `log_extra` and `log_metric`. `async` functions are awaited. None in its answer is an abstention.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeGuard, cast

from rlhf_env.envs.tokenizers import conversation_of
from rlhf_env.errors import ConfigError, Problem, RewardError, did_you_mean
from rlhf_env.settings import checked, hints_of, is_plain
from rlhf_env.types import GIVEN_TO_FUNCTIONS, AnyReward, Episode, Float, JsonObject, JsonView, TrainerState

_TEXTS = ("prompts", "completions", "completion_ids")

Function = Callable[..., Any]


@dataclass(frozen=True)
class FunctionReward:
    """A function in the convention of TRL reward functions, as a Reward.

    Its answer is one number for each episode, or None for those that it has nothing to say about.
    """

    function: Function
    arguments: JsonView = field(default_factory=dict)
    _desk: _Desk = field(default_factory=lambda: _Desk(), init=False, repr=False, compare=False)

    needs_batch = True

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        return _numbers(self.function(**self._keywords(episodes)))

    def follow(self, state: TrainerState, /) -> None:
        """Where training stands, which the function is given as `trainer_state` from now on."""
        self._desk.state = state

    def take_logged(self) -> dict[str, list[float]]:
        """What the function has logged with `log_metric` since the last time, by name."""
        logged, self._desk.metrics = self._desk.metrics, {}
        return logged

    @property
    def extra(self) -> Mapping[str, Sequence[object]]:
        """The columns that the function gave to `log_extra` at its last call."""
        return self._desk.columns

    def missing(self, columns: Iterable[str]) -> str:
        """The parameters that nobody fills, in words; "" where there is none. `columns` are those of the task."""
        accepted = parameters_of(self.function) or {}
        positional = [key for key, p in accepted.items() if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
        if positional:
            those = ", ".join(map(repr, positional))
            return f"the function {name_of(self.function)} takes {those} by place (/), and is called by names"
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        filled = {*GIVEN_TO_FUNCTIONS, *columns, *self.arguments}
        missing = [key for key, p in accepted.items() if p.default is p.empty and p.kind in named and key not in filled]
        if not missing:
            return ""
        return (
            f"the function {name_of(self.function)} takes {', '.join(map(repr, missing))}, which is none of "
            f"{', '.join(GIVEN_TO_FUNCTIONS)}"
        )

    def _keywords(self, episodes: Sequence[Episode]) -> dict[str, object]:
        """Everything that the function takes, by name. Raises RewardError where it wants what there is not."""
        names = {key for episode in episodes for key in episode.prompt.meta}
        given: dict[str, object] = {
            key: [episode.prompt.meta.get(key) for episode in episodes] for key in sorted(names)
        }
        asked = [episode.prompt.messages or conversation_of(episode.prompt) for episode in episodes]
        given["prompts"] = [
            [dict(message) for message in messages] or episode.prompt.text
            for episode, messages in zip(episodes, asked, strict=True)
        ]
        given["completions"] = [
            [{"role": "assistant", "content": episode.response}] if messages else episode.response
            for episode, messages in zip(episodes, asked, strict=True)
        ]
        given["completion_ids"] = [episode.response_ids.tolist() for episode in episodes]
        self._desk.columns = {}
        given["trainer_state"], given["log_extra"], given["log_metric"] = (
            self._desk.state,
            self._desk.log_extra,
            self._desk.log_metric,
        )
        given |= self.arguments
        if missing := self.missing(given):
            columns = f"the task's columns are {', '.join(sorted(names))}" if names else "the task has no columns"
            raise RewardError(f"{missing}, and {columns}")
        accepted = parameters_of(self.function)
        if accepted is not None and not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
            given = {key: value for key, value in given.items() if key in accepted}
        return given


@dataclass(frozen=True)
class AsyncFunctionReward(FunctionReward):
    """An `async` function. It runs in an event loop that all of them share, as in TRL: while it waits, others work."""

    _running: set[Future[object]] = field(default_factory=set, init=False, repr=False, compare=False)

    connections = 1

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        answer = _event_loop().begin(self.function(**self._keywords(episodes)))
        self._running.add(answer)
        try:
            return _numbers(answer.result())
        finally:  # Ctrl-C, too
            answer.cancel()
            self._running.discard(answer)

    def hang_up(self) -> None:
        """End the calls in other threads."""
        for answer in tuple(self._running):
            answer.cancel()


def from_function(function: Function, **arguments: object) -> FunctionReward:
    """Lift `f(prompts, completions, **columns) -> list[float]` into a Reward; it works unchanged.

    `columns` are the task's metadata, one list each, and what TRL's trainer gives beside them, as far as the function
    takes them; `arguments` are passed as they are on every call. Functions, methods, `functools.partial` and objects
    with `__call__` will do, `async` or not. None in the answer is an abstention, as in TRL.
    """
    accepted = parameters_of(function)
    if accepted is not None and not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        unknown = [key for key in arguments if key not in accepted]
        if unknown:
            name = name_of(function)
            said = {key: f"reward {name!r}: no setting {key!r}{did_you_mean(key, accepted)}" for key in unknown}
            raise ConfigError(*(Problem(text, (key,)) for key, text in said.items()))
    lifted = AsyncFunctionReward if _is_async(function) else FunctionReward
    return lifted(function, dict(arguments))


def checked_arguments(function: Function, given: JsonView, where: str) -> JsonObject:
    """The settings of a function that a file gives, each checked by its parameter's annotation.

    Raises ConfigError also where `**columns` would swallow one that the function has no parameter for: it may be
    misspelt, and nobody would notice.
    """
    accepted = parameters_of(function)
    if accepted is None:
        return dict(given)
    own = [key for key, p in accepted.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    settable = [key for key in own if key not in GIVEN_TO_FUNCTIONS]
    hints = hints_of(function)
    problems: list[Problem] = []
    taken: JsonObject = {}
    for key, value in given.items():
        taken[key] = value
        if key not in settable:
            known = did_you_mean(key, settable) if settable else f": {name_of(function)} has no parameter of this name"
            problems.append(Problem(f"{where}: no setting {key!r}{known}", (key,)))
        elif key in hints and is_plain(hints[key]):
            taken[key], wrong = checked(value, hints[key], (key,))
            problems += [problem.led_by(where) for problem in wrong]
    if problems:
        raise ConfigError(*problems)
    return taken


def is_function(reward: object) -> TypeGuard[Function]:
    """Whether it is to be called in TRL's convention: a function, or an object that takes the texts by these names.

    A Reward takes its episodes as one positional argument. Both have `__call__`, so the names tell them apart.
    """
    if isinstance(reward, type) or not callable(reward):
        return False
    if inspect.isroutine(reward) or isinstance(reward, functools.partial):
        return True
    return any(name in _TEXTS for name in parameters_of(reward) or ())


def as_reward(reward: object) -> AnyReward:
    """`from_function` of a function; anything else as it is."""
    return from_function(reward) if is_function(reward) else cast(AnyReward, reward)  # whoever mixes looks at it


def parameters_of(function: Function) -> Mapping[str, inspect.Parameter] | None:
    """Its parameters by name; None where Python does not know them, as of some functions written in C."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None


def name_of(function: object) -> str:
    """As TRL names it: the function's name, of a `partial` that of what it wraps, otherwise the class's."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _is_async(function: object) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 - whose __call__ it is, is what is asked


def _numbers(answer: object) -> Float:
    """A function's answer as a list of numbers and None: numbers of Python, numpy or torch, on a graph or a GPU too.

    What is none of these stays as it is; the mix says so.
    """
    if isinstance(answer, (str, bytes, Mapping)) or not isinstance(answer, Iterable):
        return cast(Float, answer)
    return cast(Float, [_number(value) for value in answer])


def _number(value: Any) -> object:
    if value is None or isinstance(value, (str, bytes)):
        return value
    try:
        return float(value.detach() if hasattr(value, "detach") else value)  # of a tensor, on a graph too
    except (TypeError, ValueError):
        return value


class _Desk:
    """What a function is lent, and what it leaves there."""

    def __init__(self) -> None:
        self.state = TrainerState()
        self.metrics: dict[str, list[float]] = {}
        self.columns: dict[str, list[object]] = {}

    def log_metric(self, name: str, value: float) -> None:
        self.metrics.setdefault(str(name), []).append(float(value))

    def log_extra(self, column: str, values: Iterable[object]) -> None:
        self.columns.setdefault(str(column), []).extend(values)


class _EventLoop:
    """An event loop in a thread of its own, as long as the process lives: what is tied to it stays usable."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="event loop of async functions", daemon=True).start()

    def begin(self, coroutine: Coroutine[object, object, object]) -> Future[object]:
        return asyncio.run_coroutine_threadsafe(_contained(coroutine), self._loop)


async def _contained(coroutine: Coroutine[object, object, object]) -> object:
    """Its result. `exit()` in it would end the loop's thread, and whoever waits would wait for ever."""
    try:
        return await coroutine
    except SystemExit as error:
        raise RuntimeError(f"SystemExit: {error}") from error
    except KeyboardInterrupt as error:
        raise RuntimeError("KeyboardInterrupt") from error


_the_event_loop: _EventLoop | None = None


def _event_loop() -> _EventLoop:
    global _the_event_loop
    if _the_event_loop is None or _the_event_loop.owner != os.getpid():  # the thread is not there after a fork
        _the_event_loop = _EventLoop()
    return _the_event_loop
