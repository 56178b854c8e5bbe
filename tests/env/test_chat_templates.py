"""Conversations are rendered as transformers renders them: the same text, the same ids, the same refusals."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.envs.file_task import File
from rlhf_env.envs.tokenizers import FileTokenizer, as_asked, plain_conversation, prompt_ids
from rlhf_env.errors import DataError
from rlhf_env.types import Prompt

sys.path.insert(0, str(Path(__file__).parents[1]))
from chat_tokenizers import save_chat_tokenizer, templates_of_trl

CONVERSATIONS: dict[str, list[dict[str, str]]] = {
    "one question": [{"role": "user", "content": "Why is the sky <blue> & not 'green'?"}],
    "with a system message": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi é"}],
    "several turns": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello."},
        {"role": "user", "content": "Bye"},
    ],
}


def rows_of(tmp_path: Path, conversations: Sequence[Any]) -> str:
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return str(file)


def as_transformers(folder: Path, messages: list[dict[str, str]]) -> tuple[str, list[int]] | None:
    """Text and ids by the library alone; None where it refuses the conversation."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text, tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    except Exception:
        return None


def as_we_do(folder: Path, messages: list[dict[str, str]], tmp_path: Path) -> tuple[str, list[int]] | None:
    """The same of the template by name, and by default, where the model that is asked decides."""
    tokenizer = FileTokenizer(folder)
    asked = File(rows_of(tmp_path, [messages])).prompt(0, {})
    try:
        prompt = File(rows_of(tmp_path, [messages]), chat_template=str(folder)).prompt(0, {})
    except DataError as error:
        assert "the chat template refuses it" in str(error)
        with pytest.raises(DataError, match=r"^chats\.jsonl:1: the model's chat template refuses it: "):
            prompt_ids(tokenizer, asked)
        return None
    ids = prompt_ids(tokenizer, prompt)
    assert prompt_ids(tokenizer, asked) == ids
    assert (asked.text, as_asked(asked, tokenizer).text) == (plain_conversation(messages), prompt.text)
    return prompt.text, ids


def test_the_plain_layout_by_name_is_read_as_text(tmp_path: Path) -> None:
    tokenizer = FileTokenizer(save_chat_tokenizer(tmp_path / "model"))
    messages = CONVERSATIONS["with a system message"]
    prompt = File(rows_of(tmp_path, [messages]), chat_template="plain").prompt(0, {})
    assert prompt_ids(tokenizer, prompt) == [256, *tokenizer.encode("System: Be brief.\nUser: Hi é\nAssistant:")]
    assert prompt.messages, "rewards still see them"


@pytest.mark.skipif(not templates_of_trl(), reason="TRL, whose templates these are, is not installed")
@pytest.mark.parametrize("template", templates_of_trl(), ids=lambda path: path.stem)
def test_templates_that_trl_ships(template: Path, tmp_path: Path) -> None:
    folder = save_chat_tokenizer(tmp_path / "model", template.read_text(encoding="utf-8"))
    rendered = [as_we_do(folder, messages, tmp_path) for messages in CONVERSATIONS.values()]
    assert rendered == [as_transformers(folder, messages) for messages in CONVERSATIONS.values()]


@pytest.mark.skipif(not templates_of_trl(), reason="TRL, whose templates these are, is not installed")
def test_there_are_as_many_as_were_counted() -> None:
    assert len(templates_of_trl()) >= 72


# One for each rule that is the library's own.
RULES = {
    "the generation tag": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.content }}{% endfor %}.",
    "JSON keeps its characters": "{{ messages | tojson }}",
    "JSON with an indent": "{{ messages[0] | tojson(indent=2) }}",
    "special tokens by name": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}",
    "a begin token of its own": "<s>{{ messages[0].content }}",
    "no begin token": "{{ messages[0].content }}",
    "blocks leave no lines": "{% for m in messages %}\n  {{ m.role }}\n{% endfor %}\n",
}


@pytest.mark.parametrize("template", RULES.values(), ids=RULES)
def test_rules_of_the_library(template: str, tmp_path: Path) -> None:
    folder = save_chat_tokenizer(tmp_path / "model", template)
    for messages in CONVERSATIONS.values():
        rendered = as_we_do(folder, messages, tmp_path)
        assert rendered is not None
        assert rendered == as_transformers(folder, messages)


def test_the_date_is_todays(tmp_path: Path) -> None:
    """As in templates of Llama 3, which otherwise fall back to a day of 2024."""
    today = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}2024{% endif %}"
    template = today + " {{ messages[0].content }}"

    folder = save_chat_tokenizer(tmp_path / "model", template)
    years = {f"{datetime.now():%Y}", str(int(f"{datetime.now():%Y}") + 1)}  # the year may change in between
    rendered = as_we_do(folder, CONVERSATIONS["one question"], tmp_path)
    assert rendered is not None
    assert rendered[0].split()[0] in years


def test_the_default_of_several_named_templates(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "[{{ messages[0].content }}]"}]
    folder = save_chat_tokenizer(tmp_path / "model", named)
    messages = CONVERSATIONS["one question"]
    rendered = as_we_do(folder, messages, tmp_path)
    assert rendered == as_transformers(folder, messages)
    assert rendered is not None
    assert rendered[0] == f"[{messages[0]['content']}]"
    save_chat_tokenizer(folder, named[:1])
    with pytest.raises(DataError, match="several templates \\(tool_use\\), and none of them is named 'default'"):
        File(rows_of(tmp_path, [messages]), chat_template=str(folder))


def test_a_template_in_a_file_of_its_own_wins(tmp_path: Path) -> None:
    folder = save_chat_tokenizer(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("({{ messages[0].content }})")
    messages = CONVERSATIONS["one question"]
    rendered = as_we_do(folder, messages, tmp_path)
    assert rendered == as_transformers(folder, messages)
    assert rendered is not None
    assert rendered[0].startswith("(")


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("text", ["Hello", "é 😀", " two  spaces ", "<|im_start|>user\nHi<|im_end|>"])
def test_plain_prompts_have_the_tokenizers_own_ids(text: str, begins: bool, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = save_chat_tokenizer(tmp_path / "model", begins=begins)
    ids = prompt_ids(FileTokenizer(folder), Prompt("", text))
    assert ids == AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    assert ids.count(256) == begins


def test_a_begin_token_is_never_written_twice(tmp_path: Path) -> None:
    """Whoever rendered a prompt elsewhere has it in the text already."""
    tokenizer = FileTokenizer(save_chat_tokenizer(tmp_path / "model"))
    assert prompt_ids(tokenizer, Prompt("", "<s>Hi")) == prompt_ids(tokenizer, Prompt("", "Hi"))
