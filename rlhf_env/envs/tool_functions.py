"""Python functions as tools of a model: their schemas, and the process in which they run.

The schema is transformers' own (`get_json_schema`): the types of the parameters, and a docstring that describes the
function and, under `Args:`, each parameter. A function runs in a process of its own, which is killed where it takes too
long: an answer that does not come, an exception, an unknown name are what the model reads, and never an error of the
run. That contains accidents; it is no sandbox.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rlhf_env.envs.isolation import IsolatedCalls, Limits, RewardFailed, isolated_calls
from rlhf_env.envs.transformers_tokenizer import json_schema
from rlhf_env.errors import ConfigError, PluginError, Problem, RewardError
from rlhf_env.own_code import OwnCode, load_code
from rlhf_env.types import JsonObject, JsonView


def schemas_of(tools: Sequence[str]) -> list[JsonObject]:
    """The schema of each. Raises ConfigError with all that is wrong, by place in the list."""
    found: list[JsonObject] = []
    problems: list[Problem] = []
    for place, written in enumerate(tools):
        code = OwnCode(written)
        try:
            found.append(_schema_of(code, load_code(code)))
        except PluginError as error:
            problems += [Problem(f"tools: {it}", ("tools", place)) for it in error.problems]
    names = [it["function"]["name"] for it in found]
    problems += [
        Problem(f"tools: two functions are called {name!r}", ("tools",))
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    if problems:
        raise ConfigError(*problems)
    return found


def _schema_of(code: OwnCode, function: object) -> JsonObject:
    if not inspect.isfunction(function):
        raise PluginError(f"{code.shown()} is no function, but a {type(function).__name__}")
    if inspect.iscoroutinefunction(function):
        raise PluginError(f"{code.shown()} is async, and a tool is an ordinary function")
    try:
        return json_schema(function)
    except Exception as error:  # DocstringParsingException, TypeHintParsingException, and what these do not foresee
        said = " ".join(str(error).split()) or type(error).__name__
        how = "a tool has a type for each parameter, and a docstring that describes it and, under Args:, each of them"
        raise PluginError(f"{code.shown()}: {said}: {how}") from error


class ToolBox:
    """The functions, in the process that runs them."""

    def __init__(self, tools: Sequence[OwnCode]) -> None:
        loaded = [load_code(code) for code in tools]
        self.functions: dict[str, Callable[..., Any]] = {it.__name__: it for it in loaded if inspect.isfunction(it)}

    def call(self, asked: tuple[str, JsonView]) -> str:
        """What a call gives, as text: a string as it is, anything else as JSON."""
        name, arguments = asked
        answer = self.functions[name](**arguments)
        return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False, default=str)


class Tools:
    """Functions that may be called by name; each call is answered with a text."""

    def __init__(self, tools: Sequence[str], seconds: float) -> None:
        self.codes = [OwnCode(it) for it in tools]
        self.schemas = schemas_of(self.codes)
        self.names = tuple(str(it["function"]["name"]) for it in self.schemas)
        self.limits = Limits(timeout=seconds)
        self._process: IsolatedCalls | None = None

    def __reduce__(self) -> tuple[object, ...]:  # the process is not part of it
        return Tools, (self.codes, self.limits.timeout)

    def call(self, name: str, arguments: JsonView) -> tuple[str, bool]:
        """The answer, and whether it is one: otherwise it says what went wrong. Raises ConfigError where the functions
        cannot be loaded in their process."""
        if name not in self.names:
            return f"error: there is no function {name!r}, only {', '.join(self.names)}", False
        if self._process is None:
            self._process = isolated_calls(partial(ToolBox, self.codes), self.limits)
        try:
            return str(self._process.call((name, dict(arguments)))), True
        except (RewardFailed, RewardError) as error:
            return f"error: {self._said(name, error)}", False

    def _said(self, name: str, error: RewardFailed | RewardError) -> str:
        """Without what is another one each time, such as the number of a process: the model reads it."""
        if isinstance(error, RewardFailed) and error.lost:
            late = str(error).startswith("gave no answer")
            return f"{name} gave no answer within {self.limits.timeout:g} s" if late else f"{name} ended its process"
        return str(error).removeprefix("raised ")
