"""The shipped model answers what a user asks, with no marker of its own format in the prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_env import assets
from rlhf_env.envs import chitchat
from rlhf_env.envs.file_task import File
from rlhf_env.envs.tokenizers import PLAIN_PROMPTS, load_tokenizer, prompt_ids
from rlhf_env.errors import DataError
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.workplace import build
from rlhf_env.types import Prompt

MODEL = "rlhf-env/chitchat"
ASKED = ["How was your weekend?", "I like pizza.", "What do you do for fun?", "My dog is sick."]


@pytest.mark.parametrize("name", [MODEL, "rlhf-env/chitchat-judge"])
def test_the_tokenizer_has_the_template_of_the_corpus(name: str) -> None:
    settings = json.loads((Path(assets.resolve(name)) / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert (settings["chat_template"], settings[PLAIN_PROMPTS]) == (chitchat.CHAT_TEMPLATE, "user")


def test_a_plain_prompt_is_a_users_message() -> None:
    tokenizer = load_tokenizer(MODEL)
    marked = tokenizer.encode(f"Hello, how are you?{chitchat.TURN}")
    assert prompt_ids(tokenizer, Prompt("", "Hello, how are you?")) == marked
    assert prompt_ids(tokenizer, Prompt("", f"Hello, how are you?{chitchat.TURN}")) == marked, "rendered elsewhere"
    assert prompt_ids(tokenizer, Prompt("", "Hello, how are you?", rendered=True)) == marked[:-1], "as it is"


def test_conversations_have_the_format_of_the_corpus() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(assets.resolve(MODEL))
    talk = [
        {"role": role, "content": said}
        for role, said in zip(("user", "assistant", "user"), ("A?", "B.", "C!"), strict=True)
    ]
    asked = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert asked == "A?<|turn|>B.<|turn|>C!<|turn|>"
    assert tokenizer.apply_chat_template(talk[:2], tokenize=False) == "A?<|turn|>B.<|end|>"
    with pytest.raises(Exception, match="reads no system message"):
        tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}, *talk], tokenize=False)


@pytest.mark.parametrize("conversations", [False, True])
def test_it_speaks(conversations: bool, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    rows: list[dict[str, Any]] = [{"prompt": text} for text in ASKED]
    if conversations:
        rows = [{"messages": [{"role": "user", "content": text}]} for text in ASKED]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "file", "path": str(file)} | ({"chat_template": MODEL} if conversations else {})
    workplace = build(
        Experiment.from_table(
            {
                "task": task,
                "policy": {"model": MODEL},
                "environment": {"num_envs": 32, "max_new_tokens": 28},
                "rewards": {"length": {"target": 12}},
                "agent": {"name": "grpo", "group_size": 8},
            }
        )
    )
    episodes = workplace.source.next(workplace.agent).episodes
    replies = [episode.response for episode in episodes]
    assert sum(episode.finish_reason == "stop" for episode in episodes) >= 30
    assert not any(chitchat.TURN in reply for reply in replies)
    assert sum(len(reply.split()) >= 2 for reply in replies) >= 30, "not mute"


def test_it_reads_no_system_message(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    file.write_text(json.dumps({"messages": messages}))
    with pytest.raises(DataError, match="refuses it: this small model reads no system message: leave it out"):
        File(str(file), chat_template=MODEL)
