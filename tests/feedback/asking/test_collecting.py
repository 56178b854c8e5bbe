"""Responses by a policy, by people and out of files, and the items made of them."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env.envs.tokenizers import ByteTokenizer
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.asking.collecting import items_of, read_responses, sample_responses
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.policies.policy import Sampling, Written
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.types import Prompt

PROMPTS = [Prompt("p0", "a"), Prompt("p1", "a longer one")]
PERSON = Author("human", "Zoë")


@pytest.fixture(scope="module")
def policy() -> Any:
    made = tiny_language_model("gpt2", context=64)
    made.sampling = Sampling(top_k=200)
    return made


def test_several_responses_at_each_temperature(policy: Any) -> None:
    tokenizer = ByteTokenizer()

    def sample(batch_size: int = 64) -> list[Any]:
        policy.reseed(0)
        temperatures = (0.5, 2.0)
        return list(
            sample_responses(
                policy,
                tokenizer,
                PROMPTS,
                temperatures,
                name="tiny",
                max_new_tokens=5,
                each=3,
                batch_size=batch_size,
            )
        )

    found = sample()
    assert Counter((it.prompt.id, author.temperature) for it, author in found) == {
        (prompt.id, t): 3 for prompt in PROMPTS for t in (0.5, 2.0)
    }
    assert policy.sampling == Sampling(top_k=200)
    for episode, author in found:
        assert author.name == "tiny"
        assert episode.prompt_ids.tolist() == tokenizer.encode(episode.prompt.text)
        assert 1 <= len(episode.response_ids) <= 5
        assert (episode.finish_reason == "stop") == (episode.response_ids[-1] == tokenizer.end_id)
    assert [it for it, _ in sample()] == [it for it, _ in found]
    assert len(sample(batch_size=5)) == 12
    with pytest.raises(ConfigError, match="temperature must be above 0, got 0"):
        list(sample_responses(policy, tokenizer, PROMPTS, (0,), name="x", max_new_tokens=1))
    with pytest.raises(ConfigError, match="at least 1"):
        list(sample_responses(policy, tokenizer, PROMPTS, (), name="x", max_new_tokens=1))


def test_low_temperatures_write_the_likeliest(policy: Any) -> None:
    found = sample_responses(policy, ByteTokenizer(), PROMPTS, (1e-4,), name="x", max_new_tokens=1, each=20)
    for prompt, group in zip(PROMPTS, np.array_split([int(it.response_ids[0]) for it, _ in found], 2), strict=True):
        ids = torch.tensor([ByteTokenizer().encode(prompt.text)])
        assert set(group.tolist()) == {int(policy.model(ids).logits[0, -1].argmax())}


class Says:
    """A policy that says 3, and then the end (9) where there is room for it."""

    sampling = Sampling()
    vocab_size = 10

    def write(self, observation: Any, length: int) -> Written:
        rows = len(observation["input_ids"])
        tokens = np.tile(np.array([3, 9, 10, 10])[:length], (rows, 1))
        return Written(tokens, np.zeros(tokens.shape))


class Shows:
    """A tokenizer whose text shows every id, the end token too."""

    vocab_size, end_id, pad_id = 10, 9, 0

    def encode(self, text: str) -> list[int]:
        return [1] * len(text)

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def test_the_end_token_is_in_the_ids_and_not_in_the_text() -> None:
    def said(length: int) -> list[Any]:
        found = sample_responses(Says(), Shows(), PROMPTS, (1.0,), name="x", max_new_tokens=length)  # type: ignore[arg-type]
        return [(it.response, it.response_ids.tolist(), it.finish_reason, len(it.prompt_ids)) for it, _ in found]

    assert said(4) == [("3", [3, 9], "stop", 1), ("3", [3, 9], "stop", 12)]
    assert said(1) == [("3", [3], "length", 1), ("3", [3], "length", 12)]


def test_responses_of_people_and_files(tmp_path: Path) -> None:
    lines = tmp_path / "theirs.jsonl"
    lines.write_text('{"prompt": "q", "response": "a"}\n{"prompt": "q", "response": "b", "author": "Ann"}\n')
    (prompt, first), (same, second) = read_responses(lines)
    assert prompt == same
    assert (first.author, second.author) == (Author("dataset", "theirs.jsonl"), Author("human", "Ann"))
    table = tmp_path / "theirs.csv"
    table.write_text("prompt,response\nq,a\n")
    assert read_responses(table, PERSON) == [(prompt, Response("a", PERSON))]
    with PreferenceStore(tmp_path / "store.sqlite") as store:
        for asked, response in read_responses(lines) + read_responses(table, PERSON):
            store.add_response(asked, response)
        assert (store.counts().prompts, store.counts().responses) == (1, 3)
    lines.write_text('{"prompt": 1, "response": "a"}\n{"response": "b"}\n{"prompt": "q", "response": null}\n')
    with pytest.raises(DataError) as caught:
        read_responses(lines)
    assert [problem.split(": ", 1)[1] for problem in caught.value.problems] == [
        "prompt: expected text",
        "prompt: missing",
        "text: expected text, got null",
    ]


def written(count: int) -> list[tuple[Prompt, Response]]:
    return [(prompt, Response(f"r{i}", PERSON)) for i in range(count) for prompt in PROMPTS]


def test_items_of_every_kind() -> None:
    rng = np.random.default_rng(0)
    pairs = items_of([*written(4), *written(2)], "comparison", rng, per_prompt=None, overlap=3, criterion="kind")
    assert len(pairs) == 12
    assert {(it.overlap, it.criterion) for it in pairs} == {(3, "kind")}
    found = {tuple(sorted(response.text for response in it.responses)) for it in pairs if it.prompt.id == "p0"}
    assert found == set(combinations(["r0", "r1", "r2", "r3"], 2))
    (one, two) = items_of(written(4), "ranking", rng, size=4)
    assert (len(one.responses), one.prompt.id, two.prompt.id) == (4, "p0", "p1")
    assert [len(it.responses) for it in items_of(written(7), "ranking", rng, per_prompt=None, size=3)] == [3, 3, 3, 3]
    scored = items_of(written(3), "criteria", rng, per_prompt=2, criteria=("kind",))
    assert len(scored) == 4
    assert items_of([(PROMPTS[0], Response("only", PERSON))], "comparison", rng) == []
    with pytest.raises(ConfigError, match="per_prompt"):
        items_of([], "rating", rng, per_prompt=0)
    with pytest.raises(ConfigError, match="size"):
        items_of([], "ranking", rng, size=1)
