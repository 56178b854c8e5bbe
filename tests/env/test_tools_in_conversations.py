"""Tools, calls of them, their answers, and contents of parts reach the chat template as transformers passes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.envs.file_task import File
from rlhf_env.envs.over_long import cut_prompt
from rlhf_env.envs.tokenizers import ByteTokenizer, FileTokenizer, prompt_ids
from rlhf_env.errors import DataError
from rlhf_env.learning.agent import Demonstrated
from rlhf_env.learning.demonstrations import answered_turns, demonstrations_of

sys.path.insert(0, str(Path(__file__).parents[1]))
from chat_tokenizers import save_chat_tokenizer, templates_of_trl

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}
CALL: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "id": "call12345", "function": {"arguments": {"a": 1, "b": 2}, "name": "add"}}],
}
ASKED: list[dict[str, Any]] = [{"role": "user", "content": "1 + 2?"}]
RETURNED = {"role": "tool", "name": "add", "tool_call_id": "call12345", "content": "3"}
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]}]
# Writes every key that a template may look at.
ALL = (
    "{{ tools | tojson }}{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m | tojson }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def task(tmp_path: Path, row: dict[str, Any], **settings: Any) -> File:
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps(row))
    return File(str(file), **settings)


ROWS: dict[str, dict[str, Any]] = {
    "tools": {"messages": ASKED, "tools": [ADD]},
    "tools as JSON text": {"messages": ASKED, "tools": json.dumps([ADD])},
    "a call and its answer": {"messages": [*ASKED, CALL, RETURNED], "tools": [ADD]},
    "no content beside a call": {"messages": [*ASKED, {**CALL, "content": None}, RETURNED]},
    "an empty list of tools": {"messages": ASKED, "tools": []},
    "parts": {"messages": PARTS},
    "a name of the template's own": {"messages": ASKED, "chat_template_kwargs": {"enable_thinking": False}},
}


@pytest.mark.skipif(not templates_of_trl(), reason="TRL, whose templates these are, is not installed")
@pytest.mark.parametrize("template", [Path(), *templates_of_trl()], ids=lambda path: path.stem or "all")
def test_ids_are_those_of_the_library(template: Path, tmp_path: Path) -> None:
    written = template.read_text(encoding="utf-8") if template.stem else ALL
    folder = save_chat_tokenizer(tmp_path / "model", written)
    tokenizer = FileTokenizer(folder)
    rendered = 0
    for row in ROWS.values():
        tools = row.get("tools") or None
        options = {"tools": json.loads(tools) if isinstance(tools, str) else tools}
        options |= row.get("chat_template_kwargs", {})
        try:
            theirs = tokenizer.own.apply_chat_template(
                row["messages"], add_generation_prompt=True, return_dict=False, **options
            )
        except Exception:
            with pytest.raises(DataError, match="the model's chat template refuses it"):
                prompt_ids(tokenizer, task(tmp_path, row).prompt(0, {}))
            continue
        assert prompt_ids(tokenizer, task(tmp_path, row).prompt(0, {})) == theirs
        assert prompt_ids(tokenizer, task(tmp_path, row, chat_template=str(folder)).prompt(0, {})) == theirs
        rendered += 1
    assert rendered >= 1


def test_a_call_is_learned_as_the_template_writes_it(tmp_path: Path) -> None:
    tokenizer = FileTokenizer(save_chat_tokenizer(tmp_path / "model", ALL))
    last_call = {key: it for key, it in CALL.items() if key != "content"}
    talk = [*ASKED, CALL, RETURNED, last_call]
    given = task(tmp_path, {"messages": talk, "tools": [ADD]})
    wanted = Demonstrated(turns="every")
    first, last = demonstrations_of(given, tokenizer, wanted=wanted).episodes
    for episode, message in ((first, CALL), (last, talk[-1])):
        assert tokenizer.own.decode(episode.response_ids.tolist()) == f"{json.dumps(message)}<|im_end|>"
    assert [completion for _, completion in answered_turns(given.prompt(0, {}), tokenizer, wanted)] == [
        '{"arguments": {"a": 1, "b": 2}, "name": "add"}'
    ] * 2


def test_a_call_that_no_template_writes_is_refused(tmp_path: Path) -> None:
    given = task(tmp_path, {"messages": [*ASKED, CALL]})
    with pytest.raises(DataError, match="the answer calls tools, and the model's chat template does not write"):
        demonstrations_of(given, ByteTokenizer())


def test_parts_are_cut_and_calls_are_not(tmp_path: Path) -> None:
    tokenizer = FileTokenizer(save_chat_tokenizer(tmp_path / "model", ALL))
    row = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 99}]}, CALL, RETURNED]}
    prompt = task(tmp_path, row).prompt(0, {})
    most = len(prompt_ids(tokenizer, prompt)) - 50
    shorter = cut_prompt(prompt, lambda it: len(prompt_ids(tokenizer, it)) <= most, "cut right", tokenizer)
    assert shorter is not None
    assert list(shorter.messages) == [{"role": "user", "content": [{"type": "text", "text": "x" * 49}]}, CALL, RETURNED]


def test_without_a_template_a_call_is_written_and_tools_are_refused(tmp_path: Path) -> None:
    prompt = task(tmp_path, {"messages": [*ASKED, CALL, RETURNED]}).prompt(0, {})
    assert bytes(prompt_ids(ByteTokenizer(), prompt)).decode() == (
        'User: 1 + 2?\nAssistant: {"arguments": {"a": 1, "b": 2}, "name": "add"}\nTool: 3\nAssistant:'
    )
    with pytest.raises(DataError, match="it has tools, and without a chat template nothing tells a model of them"):
        prompt_ids(ByteTokenizer(), task(tmp_path, ROWS["tools"]).prompt(0, {}))


PICTURE = {"type": "image_url", "image_url": {"url": "x.png"}}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a picture": (
        {"messages": [{"role": "user", "content": [PICTURE]}]},
        "message 1, 'content': a part of the type 'image_url': only text is read, no pictures and no sounds",
    ),
    "tools that are no schemas": ({"messages": ASKED, "tools": ["add"]}, "expected a list of JSON schemas"),
    "tools that are no JSON": ({"messages": ASKED, "tools": "[{"}, "tools: not JSON"),
    "calls that are none": ({"messages": [*ASKED, {**CALL, "tool_calls": "add"}, RETURNED]}, "'tool_calls': expected"),
    "what the asker says": (
        {"messages": ASKED, "chat_template_kwargs": {"tokenize": True}},
        "chat_template_kwargs: expected a table without",
    ),
    "tools in the plain layout": ({"messages": ASKED, "tools": [ADD], "plain": 1}, "the plain layout tells a model of"),
}


@pytest.mark.parametrize(("row", "said"), WRONG.values(), ids=WRONG)
def test_what_is_refused(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    settings = {"chat_template": "plain"} if row.pop("plain", 0) else {}
    with pytest.raises(DataError, match=r"chats.jsonl, line 1, field ") as refused:
        task(tmp_path, row, **settings)
    assert said in str(refused.value)
