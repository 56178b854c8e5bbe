"""Calls of tools in what a model writes: each family's chat template has a form of its own.

    hermes    <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>, any number (Hermes, Qwen 2.5 and 3)
    llama     {"name": "add", "parameters": {"a": 1}}, and nothing else in the turn (Llama 3.1 and later)
    mistral   [TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}], or [TOOL_CALLS]add[ARGS]{"a": 1} (Mistral)

`require_calls` asks a model's template to write a call, and refuses one whose call would not be read: nothing is
guessed, and no call passes unseen because its form is another one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args
from weakref import WeakKeyDictionary

from rlhf_env.envs.chat_replies import reply_ids
from rlhf_env.envs.tokenizers import FileTokenizer, conversation_of, has_template, template_options
from rlhf_env.envs.transformers_tokenizer import render_chat
from rlhf_env.errors import DataError
from rlhf_env.types import JsonObject, JsonView, Prompt, Tokenizer

CallFormat = Literal["auto", "hermes", "llama", "mistral"]
CALL_FORMATS: tuple[CallFormat, ...] = get_args(CallFormat)
FORMAT_COLUMN = "tool_call_format"  # of a prompt whose answers may call tools
UNREADABLE = "unreadable_call"  # the name of what is called where that cannot be read
_HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
_MISTRAL = re.compile(r"\[TOOL_CALLS\]")
_BY_NAME = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*[\w-]+\s*)?\[ARGS\]")
_MARKERS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]")
_MOST_IN_A_TURN = 32


@dataclass(frozen=True)
class ToolCall:
    """A call: which function, with which arguments by name; or why it cannot be read."""

    name: str
    arguments: JsonView
    problem: str = ""

    def as_message(self, number: int) -> JsonObject:
        """As transformers' templates take it. Ids are nine letters and digits, which Mistral's ask for."""
        function = {"name": self.name, "arguments": dict(self.arguments)}
        return {"type": "function", "id": f"call{number % 100_000:05d}", "function": function}


def calls_in(turn: str, how: CallFormat = "auto") -> tuple[str, list[ToolCall]]:
    """What a turn says beside its calls, and the calls, in order. One that cannot be read is one with a `problem`."""
    for name, read in _READERS.items():
        if how in ("auto", name) and (found := read(turn)) is not None:
            return found[0].strip(), found[1][:_MOST_IN_A_TURN]
    return turn, []


def _hermes(turn: str) -> tuple[str, list[ToolCall]] | None:
    found = list(_HERMES.finditer(turn))
    return (turn[: found[0].start()], [_call(it[1]) for it in found]) if found else None


def _mistral(turn: str) -> tuple[str, list[ToolCall]] | None:
    begins = list(_MISTRAL.finditer(turn))
    if not begins:
        return None
    calls: list[ToolCall] = []
    for begin, end in zip(begins, [*(it.start() for it in begins[1:]), len(turn)], strict=True):
        written = turn[begin.end() : end]
        if named := _BY_NAME.match(written):
            calls.append(_call(json.dumps({"name": named[1]})[:-1] + f', "arguments": {written[named.end() :]}}}'))
            continue
        try:
            listed = json.loads(written)
        except (ValueError, RecursionError) as error:
            calls.append(_unreadable(f"not JSON: {error}"))
        else:
            calls += map(_of_table, listed if isinstance(listed, list) else [listed])
    return turn[: begins[0].start()], calls


def _llama(turn: str) -> tuple[str, list[ToolCall]] | None:
    written = turn.strip()
    if not (written.startswith("{") and '"name"' in written):
        return None
    return "", [_call(written)]


_READERS: Mapping[str, Callable[[str], tuple[str, list[ToolCall]] | None]] = {
    "hermes": _hermes,
    "mistral": _mistral,
    "llama": _llama,
}


def _call(written: str) -> ToolCall:
    try:
        return _of_table(json.loads(written))
    except (ValueError, RecursionError) as error:
        return _unreadable(f"not JSON: {error}")


def _of_table(table: object) -> ToolCall:
    if not isinstance(table, dict) or not isinstance(name := table.get("name"), str) or not name:
        return _unreadable('expected an object {"name": ..., "arguments": {...}}')
    arguments = table.get("arguments", table.get("parameters", {}))
    if isinstance(arguments, str):  # as OpenAI's own API writes them
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            return _unreadable(f"the arguments of {name} are not JSON: {error}")
    if not isinstance(arguments, dict):
        return _unreadable(f"the arguments of {name} are no object of names and values")
    return ToolCall(name, arguments)


def _unreadable(problem: str) -> ToolCall:
    return ToolCall(UNREADABLE, {}, problem)


# ---------------------------------------------------------------- a model's own template


_asked: WeakKeyDictionary[Tokenizer, set[tuple[str, ...]]] = WeakKeyDictionary()  # who was found fit for which


def require_calls(tokenizer: Tokenizer, prompt: Prompt) -> None:
    """Raises DataError where a prompt has tools (`FORMAT_COLUMN`), and the model's template tells it of none, writes a
    call that would not be read, or cannot go on after one. A template is asked once."""
    if FORMAT_COLUMN not in prompt.meta:
        return
    options = template_options(prompt.meta)
    names = [str(it["function"]["name"]) for it in options["tools"]]
    which = (str(prompt.meta[FORMAT_COLUMN]), *names)
    if which in _asked.setdefault(tokenizer, set()):
        return
    if not has_template(tokenizer):
        raise DataError("tools: this model has no chat template, and nothing else tells a model of tools")
    assert isinstance(tokenizer, FileTokenizer)
    messages = list(conversation_of(prompt) or prompt.messages)
    told = _rendered(tokenizer, messages, options, asks=True)
    if told == _rendered(tokenizer, messages, {name: it for name, it in options.items() if name != "tools"}, asks=True):
        raise DataError("tools: the model's chat template does not tell it of tools: take a model whose template does")
    _require_read(tokenizer, prompt, names[0], told)
    _asked[tokenizer].add(which)


def _require_read(tokenizer: FileTokenizer, prompt: Prompt, name: str, told: str) -> None:
    how, options = prompt.meta[FORMAT_COLUMN], template_options(prompt.meta)
    messages = list(conversation_of(prompt) or prompt.messages)
    call = ToolCall(name, {"x": 1})
    own = {"role": "assistant", "content": "", "tool_calls": [call.as_message(0)]}
    written = _rendered(tokenizer, [*messages, own], options, asks=False)
    begun = told if written.startswith(told) else _rendered(tokenizer, messages, options, asks=False)
    turn = tokenizer.decode(tokenizer.encode(written.removeprefix(begun)))
    if [(it.name, it.arguments) for it in calls_in(turn, how)[1]] != [(call.name, call.arguments)]:
        own_part = written.removeprefix(begun)
        hidden = [it for it in _MARKERS if it in own_part and it not in turn]
        keep = f": keep_special = {json.dumps(hidden)} in [policy] shows what is hidden of it" if hidden else ""
        shown = repr(turn.strip()[:80])
        raise DataError(
            f"tools: the model's chat template writes a call as {shown}, which call_format = {how!r} does not read "
            f"(there are {', '.join(CALL_FORMATS)}){keep}"
        )
    answer = {"role": "tool", "name": name, "tool_call_id": "call00000", "content": "1"}
    try:
        reply_ids(tokenizer, prompt, [own], [answer])
    except DataError as error:
        raise DataError(*(f"tools: {problem}" for problem in error.problems)) from error


def _rendered(tokenizer: FileTokenizer, messages: Sequence[JsonView], options: JsonView, *, asks: bool) -> str:
    try:
        return render_chat(tokenizer.own, messages, options, asks=asks)
    except Exception as error:  # templates refuse conversations with exceptions of their own
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"tools: the model's chat template refuses a conversation with tools: {said}") from error
