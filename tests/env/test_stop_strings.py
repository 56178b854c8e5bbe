"""A text ends with the token in which it first holds a stop string, whoever writes and however much at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlhf_env import assets
from rlhf_env.envs.endings import finished_episodes, turns_of
from rlhf_env.envs.stop_strings import StopStrings, completions
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.token_bytes import token_bytes
from rlhf_env.envs.tokenizers import FileTokenizer, load_tokenizer
from rlhf_env.errors import ConfigError
from rlhf_env.types import Bool, Episode, Int, Prompt, ResetOptions, Tokenizer

# Symbols of which each other one begins like another, and whose characters have one to four bytes.
SYMBOLS = "ab\né😀ё"


@cache
def shipped() -> FileTokenizer:
    return FileTokenizer(assets.resolve("rlhf-env/chitchat"))


@cache
def some_ids() -> list[int]:
    """Tokens of the shipped tokenizer that spell the symbols, whole or in pieces, and a few words."""
    words = shipped()
    ids = {token for text in (*SYMBOLS, " the", "You:", "\n\n", "ab", " é") for token in words.encode(text)}
    return sorted(ids)


def by_definition(ids: Sequence[int], stop: Sequence[str], words: Tokenizer) -> int | None:
    """How many tokens it takes until the decoded text holds a stop string."""
    for count in range(1, len(ids) + 1):
        if any(string in words.decode(ids[:count]) for string in stop):
            return count
    return None


def by_automaton(ids: Sequence[int], stop: Sequence[str], words: Tokenizer) -> int | None:
    tokens = np.array([ids], dtype=np.int64)
    _, completing = completions(StopStrings(stop, words), np.zeros(1, np.int64), tokens, np.ones_like(tokens, np.bool_))
    assert completing.sum() <= 1
    return int(completing.argmax()) + 1 if completing.any() else None


STRINGS = st.lists(st.text(SYMBOLS, min_size=1, max_size=4), min_size=1, max_size=4)


@settings(max_examples=200)
@example(ids=[97, 98, 97], stop=["abé", "b"])  # the shorter one ends within the longer one
@given(ids=st.lists(st.sampled_from(sorted(set(SYMBOLS.encode()))), max_size=14), stop=STRINGS)
def test_bytes_end_where_the_decoded_text_first_holds_the_string(ids: list[int], stop: list[str]) -> None:
    words = load_tokenizer("bytes")
    assert by_automaton(ids, stop, words) == by_definition(ids, stop, words)


@settings(max_examples=150)
@given(data=st.data(), stop=st.lists(st.sampled_from(["\n", "ab", "é", "😀", "You:", "e\nY", "ё", " é"]), min_size=1))
def test_tokens_end_where_the_decoded_text_first_holds_the_string(data: st.DataObject, stop: list[str]) -> None:
    ids = data.draw(st.lists(st.sampled_from(some_ids()), max_size=12))
    assert by_automaton(ids, stop, shipped()) == by_definition(ids, stop, shipped())


@given(text=st.text(SYMBOLS, max_size=12), stop=STRINGS)
def test_the_text_is_cut_before_the_string_that_is_complete_first(text: str, stop: list[str]) -> None:
    cut = StopStrings(stop, load_tokenizer("bytes")).cut(text)
    ends = [text.find(string) + len(string) for string in stop if string in text]
    assert text.startswith(cut)
    if not ends:
        assert cut == text
    else:
        assert any(text[: min(ends)] == cut + string for string in stop)
        assert not any(text[: min(ends)].endswith(string) and len(string) > min(ends) - len(cut) for string in stop)


def test_a_special_token_between_two_halves_is_in_no_text() -> None:
    words = shipped()
    pad = words.pad_id
    assert by_automaton([*words.encode("a"), pad, *words.encode("b")], ["ab"], words) == 3


def test_the_bytes_of_tokens_add_up_to_their_text(tmp_path: Path) -> None:
    words, pieces, stream = shipped(), token_bytes(shipped()), np.random.default_rng(0)
    ids = [i for i in range(words.vocab_size) if i not in words.end_ids]
    for _ in range(200):
        some = stream.choice(ids, size=6).tolist()
        assert b"".join(pieces[i] for i in some).decode(errors="replace") == words.decode(some)
    # SentencePiece's format gives up whole runs of byte tokens that are no character: whole characters are compared.
    words = byte_fallback(tmp_path)
    pieces = token_bytes(words)
    for _ in range(200):
        some = words.encode("a" + "".join(stream.choice([*SYMBOLS, " ", " the", "You"], size=6)))
        assert b"".join(pieces[i] for i in some).decode() == words.decode(some)


def byte_fallback(folder: Path) -> FileTokenizer:
    """A tokenizer in the format of SentencePiece's: spaces as U+2581, single bytes as <0xE2>."""
    pieces = ["</s>", "a", "b", "\u2581", "\u2581the", "You", ":", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = {
        "type": "BPE",
        "vocab": {piece: i for i, piece in enumerate(pieces)},
        "merges": [],
        "byte_fallback": True,
        "fuse_unk": False,
        "unk_token": "</s>",
        "dropout": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "ignore_merges": True,
    }
    decoders = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": 0,
                "content": "</s>",
                "special": True,
                **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            }
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}), encoding="utf-8")
    return FileTokenizer(folder)


def test_a_string_over_byte_tokens_of_a_sentencepiece_vocabulary(tmp_path: Path) -> None:
    words = byte_fallback(tmp_path)
    ids = words.encode("a é b")
    assert len(ids) > 5
    assert by_automaton(ids, [" é"], words) == by_definition(ids, [" é"], words) == len(ids) - 2


# ---------------------------------------------------------------- one machine, three views

END, LIMIT, ROWS = 2, 6, 3  # alphabet "ab": a is 0, b is 1


class Talk:
    """Answers "b" to the first turn."""

    size = 2

    def prompt(self, index: int, _options: ResetOptions, /) -> Prompt:
        return Prompt(id=f"talk/{index}", text="ab" * (1 + index))

    def reply(self, episode: Episode, /) -> str | None:
        return "b" if len(episode.turns) == 1 else None


ENV: dict[str, Any] = {
    "task": {"name": "prompts", "prompts": ["b", "ab"]},
    "reward": {"length": {"target": 3}},
    "tokenizer": "alphabet:ab",
    "max_new_tokens": LIMIT,
    "max_prompt_tokens": 8,
}


def played(env: TextVectorEnv, script: Int) -> list[Episode]:
    """The episodes when the token at place t of row b's response is `script[b, t]`."""
    observation, _ = env.reset(seed=0)
    start = observation["attention_mask"].sum(axis=1)
    found: dict[int, Episode] = {}
    while len(found) < ROWS:
        places = observation["attention_mask"].sum(axis=1) - start
        columns = np.minimum(places[:, None] + np.arange(env.action_length), script.shape[1] - 1)
        tokens = np.take_along_axis(script, columns, axis=1)
        observation, _, _, _, infos = env.step(tokens if env.action_length > 1 else tokens[:, 0])
        for row in np.flatnonzero(infos.get("_text_episode", [])):
            found.setdefault(int(row), infos["text_episode"][row])
    return [found[row] for row in range(ROWS)]


@settings(max_examples=60)
@given(
    script=st.lists(st.lists(st.integers(0, 2), min_size=LIMIT, max_size=LIMIT), min_size=ROWS, max_size=ROWS),
    stop=st.lists(st.text("ab", min_size=1, max_size=3), max_size=2),
    talks=st.booleans(),
)
def test_the_same_tokens_are_the_same_episodes_in_every_view(
    script: list[list[int]], stop: list[str], talks: bool
) -> None:
    table = {**ENV, "task": Talk()} if talks else ENV
    episodes = [
        played(
            TextVectorEnv(ROWS, **table, action_length=length, autoreset_mode="Disabled", stop=stop), np.array(script)
        )
        for length in (1, 2, 3, None)
    ]
    assert all(view == episodes[0] for view in episodes)
    for episode in episodes[0]:
        said = episode.response_ids[episode.actions]
        if talks:
            assert not any(string in turn for turn in episode.turns for string in stop)
            continue
        count = by_definition(said.tolist(), stop, load_tokenizer("alphabet:ab")) if stop else None
        assert (episode.finish_reason == "stop_string") == (count is not None)
        assert count in (None, len(said)), "the text ends with the token that completes the string"
        assert not any(string in episode.response for string in stop)


def test_what_the_numbers_are() -> None:
    env = TextVectorEnv(1, **ENV, action_length=None, autoreset_mode="Disabled", stop=["ba", "bab"])
    env.reset(seed=0)
    _, _, terminated, _, infos = env.step([[0, 1, 0, 1, END, 4]])
    assert terminated.all()
    (episode,) = infos["text_episode"]
    assert (episode.response, episode.finish_reason) == ("a", "stop_string")
    assert episode.response_ids.tolist() == [0, 1, 0], "what came after the string is ignored"
    assert infos["response_length"] == [3]
    env.reset(seed=0)
    _, _, _, _, infos = env.step([[0, 0, 0, 0, 1, 0]])
    assert infos["finish_reason"] == ["stop_string"], "completed by the last token that fits"


def test_a_conversation_is_cut_turn_by_turn() -> None:
    env = TextVectorEnv(1, **{**ENV, "task": Talk()}, action_length=3, autoreset_mode="Disabled", stop=["ba"])
    env.reset(seed=0)
    env.step([[0, 1, 0]])  # "aba": the first turn is "a", and "b" is answered
    # The answer's b and the agent's a are no stop string: only what the agent says is looked at.
    _, _, terminated, _, infos = env.step([[0, END, 0]])
    (episode,) = infos["text_episode"]
    assert terminated.all() and episode.turns == ("a", "a")
    assert episode.response_ids.tolist() == [0, 1, 0, 1, 0, END] and episode.response == "ababa"
    env.reset(seed=0)
    env.step([[1, 0, 4]])
    _, _, _, _, infos = env.step([[0, 1, 0]])  # the second turn, too, is closed by the string
    (episode,) = infos["text_episode"]
    assert (episode.response, episode.turns, episode.finish_reason) == ("baba", ("", "a"), "task")
    assert turns_of(np.array([0, 1, 0, 0]), env.tokenizer, env.stops) == ("a", "a")


def test_a_token_after_the_string_may_be_one_that_the_task_forbids() -> None:
    class Sparing:
        size = 1

        def prompt(self, _index: int, _options: ResetOptions, /) -> Prompt:
            return Prompt(id="p", text="a")

        def action_mask(self, _prompt: Prompt, response_ids: Int, /) -> Bool:
            return np.array([True, len(response_ids) < 2, True, False])

    settings = {**ENV, "task": Sparing()}
    env = TextVectorEnv(1, **settings, action_length=3, autoreset_mode="Disabled", stop=["bb"])
    env.reset(seed=0)
    _, _, terminated, _, _ = env.step([[1, 1, 1]])
    assert terminated.all()


@pytest.mark.parametrize("view", ["rlhf_env/Token-v0", "rlhf_env/Response-v0"])
def test_gymnasium_takes_it(view: str, recwarn: pytest.WarningsRecorder) -> None:
    env = gym.make(view, **ENV, stop=["ab", "bb"])
    check_env(env.unwrapped, skip_render_check=True)
    assert not [warning for warning in recwarn if "deprecat" not in str(warning.message)]


def test_what_a_policy_wrote_in_one_go() -> None:
    words = load_tokenizer("bytes")
    texts = ["Hi.\nUser: x", "Hi.", "Hi.\nUse"]
    tokens = np.full((3, 12), words.vocab_size)
    for row, text in enumerate(texts):
        ids = words.encode(text)[:9] if row != 1 else [*words.encode(text), words.end_id]
        tokens[row, : len(ids)] = ids
    prompts, asked = [Prompt("p", "?")] * 3, [np.array([63])] * 3
    stops = StopStrings(["\nUser:"], words)
    found = list(finished_episodes(prompts, asked, tokens, words, nothing=words.vocab_size, stops=stops))
    assert [episode.response for episode in found] == ["Hi.", "Hi.", "Hi.\nUse"]
    assert [episode.finish_reason for episode in found] == ["stop_string", "stop", "length"]


# ---------------------------------------------------------------- strings that are none


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        ("User:", "is a list of strings"),
        ([""], "with a character or more, got ''"),
        ([3], "with a character or more, got 3"),
        (["a"] * 33, "has 33 strings, and at most 32"),
        (["a" * 201], "has a string of 201 characters"),
        (["\ufffd"], "stands for what is no text"),
        (["\ud800"], "stands for what is no text"),
    ],
    ids=["text", "empty", "number", "many", "long", "replacement", "surrogate"],
)
def test_what_is_no_stop_string(stop: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TextVectorEnv(1, **{**ENV, "tokenizer": "bytes"}, stop=stop)


def test_strings_that_no_text_of_the_tokenizer_holds() -> None:
    with pytest.raises(ConfigError, match=r"which no text can hold: .* outside the alphabet 'ab'"):
        TextVectorEnv(1, **ENV, stop=["c"])
    with pytest.raises(ConfigError, match=r"no text shows the special token '<\|end\|>': to end texts with that token"):
        StopStrings(["x<|end|>"], shipped())
