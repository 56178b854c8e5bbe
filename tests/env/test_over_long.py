"""Prompts that are too long: which part remains, that ids stay the tokenizer's, and what is counted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.envs.file_task import File
from rlhf_env.envs.over_long import FittedTask, OverLongCount, cut_prompt, cut_text, fitted_task
from rlhf_env.envs.tasks import Prompts, held_out, load_task
from rlhf_env.envs.tokenizers import ByteTokenizer, FileTokenizer, plain_conversation, prompt_ids
from rlhf_env.errors import DataError
from rlhf_env.types import JudgesForm, MasksActions, Prompt, Replies, ScoresItself, Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from chat_tokenizers import save_chat_tokenizer

BYTES = ByteTokenizer()


def cut(prompt: Prompt, most: int, how: Any, tokenizer: Tokenizer = BYTES) -> Prompt | None:
    return cut_prompt(prompt, lambda it: len(prompt_ids(tokenizer, it)) <= most, how, tokenizer)


@pytest.mark.parametrize(("how", "rest"), [("cut left", "456789"), ("cut right", "012345"), ("cut middle", "012789")])
def test_what_remains_of_a_text(how: Any, rest: str) -> None:
    assert cut_text("0123456789", 6, how) == rest
    shorter = cut(Prompt(id="p", text="0123456789", meta={"answer": 3}), 6, how)
    assert shorter is not None and (shorter.text, shorter.id, dict(shorter.meta)) == (rest, "p", {"answer": 3})
    assert shorter.uncut is not None and shorter.uncut.text == "0123456789"


def test_what_fits_is_not_touched() -> None:
    prompt = Prompt(id="p", text="0123")
    assert cut(prompt, 4, "cut left") is prompt


@pytest.mark.parametrize("how", ["cut left", "cut right", "cut middle"])
def test_no_character_is_broken_and_nothing_that_fits_is_lost(how: Any) -> None:
    """A letter of four bytes is there or not; one letter more would be too many tokens."""
    text = "🦊" * 9
    shorter = cut(Prompt(id="p", text=text), 15, how)
    assert shorter is not None and shorter.text == "🦊" * 3
    assert BYTES.decode(prompt_ids(BYTES, shorter)) == shorter.text


CHAT = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "second question"},
    {"role": "assistant", "content": "second answer"},
    {"role": "user", "content": "third question, a long one: " + "x" * 30},
]


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    return save_chat_tokenizer(tmp_path / "model", begins=True)


def rendered(model: Path, tokenizer: FileTokenizer, messages: Sequence[Any] = CHAT) -> Prompt:
    text = tokenizer.own.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return Prompt(id="p", text=text, messages=tuple(messages), rendered=True)


@pytest.mark.parametrize("how", ["cut left", "cut right", "cut middle"])
@pytest.mark.parametrize("most", [40, 75, 110, 150])
@pytest.mark.parametrize("by_default", [True, False])
def test_ids_are_those_of_the_template_for_the_messages_that_remain(
    chat_model: Path, how: Any, most: int, by_default: bool
) -> None:
    tokenizer = FileTokenizer(chat_model)
    prompt = rendered(chat_model, tokenizer)
    if by_default:
        prompt = Prompt(id="p", text=plain_conversation(CHAT), messages=tuple(CHAT))
    whole = prompt_ids(tokenizer, prompt)
    shorter = cut(prompt, most, how, tokenizer)
    assert len(whole) > most and shorter is not None
    expected = tokenizer.own.apply_chat_template(list(shorter.messages), tokenize=True, add_generation_prompt=True)
    ids = prompt_ids(tokenizer, shorter)
    assert ids == list(expected["input_ids"]) and len(ids) <= most
    assert ids[0] == whole[0], "the begin token stays"
    assert [shorter.messages[place]["role"] for place in (0, -1)] == ["system", "user"]


def test_the_oldest_exchanges_go_first_and_whole(chat_model: Path) -> None:
    tokenizer = FileTokenizer(chat_model)
    prompt = rendered(chat_model, tokenizer)
    for gone in (1, 2):
        rest = [CHAT[0], *CHAT[1 + 2 * gone :]]
        room = len(prompt_ids(tokenizer, rendered(chat_model, tokenizer, rest)))
        shorter = cut(prompt, room, "cut left", tokenizer)
        assert shorter is not None and list(shorter.messages) == rest
    shorter = cut(prompt, room - 5, "cut left", tokenizer)
    assert shorter is not None
    assert [len(m["content"]) for m in shorter.messages] == [len("be kind"), len(CHAT[-1]["content"]) - 5]
    assert CHAT[-1]["content"].endswith(str(shorter.messages[-1]["content"]))


def test_the_longest_messages_are_cut_to_one_length(chat_model: Path) -> None:
    tokenizer = FileTokenizer(chat_model)
    prompt = rendered(chat_model, tokenizer)
    room = len(prompt_ids(tokenizer, prompt)) - len(CHAT[-1]["content"])
    shorter = cut(prompt, room, "cut right", tokenizer)
    assert shorter is not None
    lengths = [len(str(message["content"])) for message in shorter.messages]
    longest = max(lengths)
    assert lengths == [min(longest, len(m["content"])) for m in CHAT] and longest < len("second question")


def test_another_models_template_is_not_guessed_at(chat_model: Path) -> None:
    tokenizer = FileTokenizer(chat_model)
    foreign = Prompt(
        id="p", text="<other>" + "x" * 50, messages=({"role": "user", "content": "x" * 50},), rendered=True
    )
    assert cut(foreign, 20, "cut left", tokenizer) is None
    too_small = rendered(chat_model, tokenizer)
    assert cut(too_small, 3, "cut right", tokenizer) is None, "the template alone has more"


def test_a_stored_conversation_stays_one() -> None:
    """In the plain layout, with its messages among the columns: both are of what remains."""
    stored = Prompt(id="p", text=plain_conversation(CHAT), meta={"messages": CHAT})
    shorter = cut(stored, 90, "cut left")
    assert shorter is not None and plain_conversation(shorter.meta["messages"]) == shorter.text
    assert shorter.meta["messages"][0] == CHAT[0] and len(shorter.text) <= 90


# ---------------------------------------------------------------- tasks

TEXTS = ["a" * n for n in range(1, 21)]


@pytest.mark.parametrize("how", ["leave out", "cut right"])
def test_sizes_and_counts_are_of_what_remains(how: Any) -> None:
    task = Prompts(TEXTS, held_out_fraction=0.4)
    fitted, notes = fitted_task(task, BYTES, 12, how)
    asked = [fitted.prompt(index, {"group_size": 2, "indices": [0]}).text for index in range(fitted.size or 0)]
    aside = held_out(fitted)
    unseen = [aside.prompt(index, {}).text for index in range(aside.size or 0)]
    assert isinstance(fitted, FittedTask) and isinstance(aside, FittedTask)
    assert max(map(len, asked + unseen)) == 12
    assert fitted.count.of == task.size and aside.count.of == task.held_out().size
    if how == "leave out":
        assert sorted(asked + unseen) == TEXTS[:12] and not set(asked) & set(unseen)
        assert fitted.count.left_out + aside.count.left_out == 8 and not fitted.count.cut
    else:
        assert len(asked) + len(unseen) == 20 and fitted.count.cut + aside.count.cut == 8
    assert len(notes) == 2 and "training prompts" in notes[0] and "held-out prompts" in notes[1]
    assert all("more than 12 tokens" in note for note in notes)


def test_where_nothing_is_too_long_nothing_is_said() -> None:
    assert fitted_task(Prompts(["a"]), BYTES, 4, "cut left")[1] == ()
    task = Prompts(["a" * 9])
    assert fitted_task(task, BYTES, 4, "refuse") == (task, ())


def test_leaving_out_all_is_refused() -> None:
    with pytest.raises(DataError, match="leaves no prompt: each of the 3 has more than 2 tokens"):
        FittedTask(Prompts(["aaa", "bbbb", "ccc"]), BYTES, 2, "leave out")


def test_prompts_that_cannot_be_cut_are_named(chat_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "hello"}]}\n' * 2)
    with pytest.raises(DataError, match=r"cannot be cut to 2: the chat template alone has more.*leave out") as refused:
        FittedTask(File(str(file), chat_template=str(chat_model)), FileTokenizer(chat_model), 2, "cut left")
    assert [problem[:17] for problem in refused.value.problems] == ["prompt 'p.jsonl:1", "prompt 'p.jsonl:2"]


@pytest.mark.parametrize("how", ["leave out", "cut middle"])
def test_a_task_without_end_asks_only_what_fits(how: Any) -> None:
    """A mixture draws its prompts: they are looked at as they come, and the same index gives the same prompt."""
    task = load_task({"name": "mixture", "tasks": [{"name": "prompts", "prompts": TEXTS}, {"name": "echo"}]})
    fitted = FittedTask(task, BYTES, 6, how)
    asked = [fitted.prompt(index, {}) for index in range(200)]
    assert fitted.size is None and max(len(prompt.text) for prompt in asked) == 6
    assert asked == [fitted.prompt(index, {}) for index in range(200)]
    assert any(prompt.uncut is not None for prompt in asked) == (how == "cut middle")
    with pytest.raises(DataError, match="leaves no prompt"):
        FittedTask(task, BYTES, 0, "leave out").prompt(0, {})


@pytest.mark.parametrize("name", ["count", "echo", "guess", "addition", "textarena"])
def test_it_can_what_the_task_can(name: str) -> None:
    task = load_task({"name": name, "game": "GuessTheNumber-v0"} if name == "textarena" else name)
    fitted = FittedTask(task, BYTES, 4000, "cut right")
    for ability in (ScoresItself, Replies, MasksActions, JudgesForm):
        assert isinstance(fitted, ability) == isinstance(task, ability), ability


def test_counts_add_up_and_speak() -> None:
    count = OverLongCount(of=10, left_out=1, cut=2) + OverLongCount(of=5, cut=1)
    assert count.said_of("pairs", 1_000) == "4 of 15 pairs have more than 1,000 tokens: 1 left out, 3 cut"
    assert OverLongCount(of=3, left_out=1).said_of("ratings") == "1 of 3 ratings is too long: 1 left out"
    assert not OverLongCount(of=3)
