"""Conversations as data sets hold them: messages with roles, ShareGPT's turns, and transcripts as one text.

Messages are `{"role": ..., "content": "text"}`; a content may also be a list of parts, of which text is read. What is
asked may call tools (`tool_calls`) and answer such calls; a judged answer, and ShareGPT's turns, may not. What a text
cannot hold (pictures) is refused by a sentence that says what to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_env.envs.tokenizers import SPEAKERS, message_problem
from rlhf_env.errors import DataError
from rlhf_env.feedback import findings
from rlhf_env.types import JsonObject

Messages = list[JsonObject]

_TOOLS = ("tool", "function", "function_call", "observation", "ipython")
_ABOUT_TOOLS = ("tool_calls", "tool_call_id", "name")  # of a message, what chat templates read beside its content
_TURN = re.compile(r"\n\n(Human|Assistant):")
_NO_TOOLS = "calls of tools are not read: leave the row out (--skip does), or write the prompt as one text"


def is_conversation(content: object) -> bool:
    return isinstance(content, list) and any(isinstance(it, Mapping) for it in content)


def messages_of(content: object) -> Messages:
    """Messages with a role and a text each. Raises DataError with the first problem, by the number of its message."""
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        raise DataError(f"expected text, got {json.dumps(content)[:40]}")
    if not content:
        raise DataError("expected text, or messages with a role and a content of text")
    return [_message(number, message) for number, message in enumerate(content, start=1)]


def _message(number: int, message: Any) -> JsonObject:
    if not isinstance(message, Mapping):
        raise DataError(f"expected text, or messages with a role and a content of text; message {number} is no object")
    role, content = message.get("role"), message.get("content")
    if "from" in message and role is None:  # ShareGPT
        if message["from"] in _TOOLS:
            raise DataError(f"message {number}: {_NO_TOOLS}")
        role, content = SPEAKERS.get(str(message["from"])), message.get("value")
        if role is None:
            raise DataError(f"message {number}: from: {message['from']!r} is none of {', '.join(SPEAKERS)}")
    if message.get("function_call") or role in _TOOLS[1:]:
        raise DataError(f"message {number}: {_NO_TOOLS}")
    about = {name: message[name] for name in _ABOUT_TOOLS if message.get(name)}
    if content is None and "tool_calls" in about:
        content = ""
    if isinstance(content, list):
        content = _text_of_parts(number, content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(f"expected text, or messages with a role and a content of text; message {number} has none")
    found = {"role": role, "content": content, **about}
    if problem := message_problem(found):
        raise DataError(f"message {number}{problem}")
    return found


def _text_of_parts(number: int, parts: Sequence[Any]) -> str:
    texts = []
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else findings.in_words(part)
            raise DataError(f"message {number}: a part of the type {kind!r}: only text is read, leave the row out")
        texts.append(part["text"])
    return "".join(texts)


def transcript(text: object) -> Messages | None:
    """The messages of a text in the layout of Anthropic's hh-rlhf, which ends with the assistant's; None for another.

    "\\n\\nHuman: ...\\n\\nAssistant: ...", any number of times.
    """
    messages = _turns_of(text)
    return messages if len(messages) > 1 and messages[-1]["role"] == "assistant" else None


def asked_in(text: str) -> str | Messages:
    """The messages of a prompt in the same layout, which ends with the assistant's turn to speak; or the text itself.

    "\\n\\nHuman: ...\\n\\nAssistant: "
    """
    messages = _turns_of(text)
    if len(messages) > 1 and messages[-1] == {"role": "assistant", "content": ""}:
        return messages[:-1]
    return text


def _turns_of(text: object) -> Messages:
    if not isinstance(text, str) or not text.startswith("\n\nHuman:"):
        return []
    _, *turns = _TURN.split(text)
    return [
        {"role": "user" if who == "Human" else "assistant", "content": said.strip()}
        for who, said in zip(turns[::2], turns[1::2], strict=True)
    ]


def divided(chosen: Messages, rejected: Messages) -> tuple[Messages, JsonObject, JsonObject]:
    """(prompt, chosen answer, rejected answer) of two whole conversations, which differ in their last message."""
    if len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
        raise DataError("chosen, rejected: without a prompt both must begin with the same messages, and differ in one")
    return chosen[:-1], chosen[-1], rejected[-1]


def answer_in(message: JsonObject) -> str:
    """The text of an answer. Raises DataError for a message of somebody else."""
    if message["role"] != "assistant":
        raise DataError(f"expected a message of the assistant, got one of {message['role']!r}")
    if "tool_calls" in message:
        raise DataError(f"a judged answer is one text, and {_NO_TOOLS}")
    return str(message["content"])
