"""Talking to a model: the ids of its own template, the draws of its own policy, and what does not fit is said."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rlhf_env
from rlhf_env.envs.tokenizers import ByteTokenizer, load_tokenizer
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.lab.chat import Chat, open_chat
from rlhf_env.learning.experiment import Experiment
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.policy import Written
from rlhf_env.policies.tiny import tiny_language_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from chat_tokenizers import save_chat_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = save_chat_tokenizer(tmp_path_factory.mktemp("chat") / "model")
    model = tiny_language_model(vocab_size=262, hidden_size=8, layers=1, heads=1, context=96, end_id=260)
    model.model.save_pretrained(made)
    return made


def ids_of(folder: Path, messages: list[dict[str, str]]) -> list[int]:
    own = load_tokenizer(folder).own  # type: ignore[attr-defined]
    return list(own.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False))


def test_the_conversation_is_read_in_the_models_own_template(folder: Path) -> None:
    chat = open_chat(str(folder), max_new_tokens=5, system="Be kind", seed=1)
    first = chat.ask("Hi", say=lambda _: None)
    told = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"}]
    assert first.episode.prompt_ids.tolist() == ids_of(folder, told)
    second = chat.ask("So?", say=lambda _: None)
    told += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "So?"}]
    kept = told[0:1] + told[3:] if second.left_out else told
    assert second.episode.prompt_ids.tolist() == ids_of(folder, kept)


def test_pieces_are_the_answer_and_come_one_by_one(folder: Path) -> None:
    pieces: list[str] = []
    answer = open_chat(str(folder), max_new_tokens=24, seed=3).ask("Hi", say=pieces.append)
    assert "".join(pieces) == answer.text
    assert len([piece for piece in pieces if piece]) > 3
    again = open_chat(str(folder), max_new_tokens=24, seed=3).ask("Hi", say=lambda _: None)
    assert again.text == answer.text
    other = open_chat(str(folder), max_new_tokens=24, seed=4).ask("Hi", say=lambda _: None)
    assert other.text != answer.text


def test_it_writes_what_the_policy_writes_in_one_go(folder: Path) -> None:
    chat = open_chat(str(folder), max_new_tokens=20, seed=5)
    answer = chat.ask("Hi", say=lambda _: None)
    policy = LanguageModel.from_pretrained(folder, end_id=260, pad_id=258)
    policy.reseed(5)
    asked = answer.episode.prompt_ids[None]
    written = policy.write({"input_ids": asked, "attention_mask": np.ones_like(asked, np.int8)}, 20)
    tokens = written.tokens[written.tokens < policy.vocab_size]
    assert answer.episode.response_ids.tolist() == tokens.tolist()
    assert answer.episode.logprobs == pytest.approx(written.logprobs[0, : len(tokens)], abs=1e-5)


class Scripted:
    """A policy that writes given tokens, whatever it is asked."""

    vocab_size = 259

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def reseed(self, _seed: int) -> None:
        self.place = 0

    def write(self, _observation: Any, _length: int, _rows: Any = None) -> Written:
        self.place += 1
        return Written(np.array([[self.ids[self.place - 1]]]), np.zeros((1, 1)))


def test_letters_of_several_bytes_are_said_when_they_are_whole() -> None:
    content = "é😀!".encode()
    chat = Chat(Scripted([*content, 258]), ByteTokenizer(), max_new_tokens=20)  # type: ignore[arg-type]
    pieces: list[str] = []
    answer = chat.ask("Hi", say=pieces.append)
    assert [piece for piece in pieces if piece] == ["é", "😀", "!"]
    assert (answer.text, answer.episode.finish_reason) == ("é😀!", "stop")
    cut = Chat(Scripted([65, 0xF0, 0x9F, 66]), ByteTokenizer(), max_new_tokens=3)  # type: ignore[arg-type]
    pieces.clear()
    assert cut.ask("Hi", say=pieces.append).text == "A\N{REPLACEMENT CHARACTER}" == "".join(pieces)


def test_a_stop_string_ends_an_answer_and_is_not_shown() -> None:
    chat = Chat(Scripted([*b"ab\nUs\nUser: no"]), ByteTokenizer(), max_new_tokens=20, stop=["\nUser:"])  # type: ignore[arg-type]
    pieces: list[str] = []
    answer = chat.ask("Hi", say=pieces.append)
    assert (answer.text, answer.episode.finish_reason) == ("ab\nUs", "stop_string")
    assert [piece for piece in pieces if piece] == ["a", "b", "\nUs"]  # what may become a stop string waits
    assert bytes(answer.episode.response_ids.tolist()) == b"ab\nUs\nUser:"


def test_the_oldest_turns_make_room(folder: Path) -> None:
    chat = open_chat(str(folder), max_new_tokens=8, seed=1)
    left_out = [chat.ask("Question", say=lambda _: None).left_out for _ in range(4)]
    assert left_out[0] == 0 and left_out[-1] > 0
    assert sorted(left_out) == left_out
    assert len(chat.turns) == 4
    chat.forget()
    assert chat.ask("Question", say=lambda _: None).left_out == 0


def test_a_question_that_is_too_long_is_refused_and_forgotten(folder: Path) -> None:
    chat = open_chat(str(folder), max_new_tokens=8)
    chat.ask("Hi", say=lambda _: None)
    with pytest.raises(DataError, match=r"the question has \d+ tokens by itself, which with 8 of an answer exceed the"):
        chat.ask("x" * 90, say=lambda _: None)
    assert [question for question, _ in chat.turns] == ["Hi"]


def experiment(**table: Any) -> Experiment:
    content: dict[str, Any] = {
        "policy": {"tokenizer": "alphabet:ab:", "sampling": {"temperature": 0.5}},
        "task": {"name": "count", "target": 4},
        "environment": {"num_envs": 8, "max_new_tokens": 6},
        "rewards": {"task": 1.0, "kl": 0.5, "length": {"weight": 2.0, "target": 3}, "diversity": 0.1},
        "agent": {"name": "grpo", "lr": 0.05, "group_size": 4},
        "budget": {"updates": 3},
        "evaluation": {"prompts": 4},
    }
    return Experiment.from_table({**content, **table})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("runs") / "count"
    rlhf_env.run(experiment(), made)
    return made


def test_a_toy_run_answers_with_its_sampling_and_its_length(run: Path) -> None:
    chat = open_chat(str(run))
    assert not chat.remembers
    assert (chat.max_new_tokens, chat.policy.sampling.temperature) == (6, 0.5)
    assert set(chat.ask("a:", say=lambda _: None).text) <= set("ab:")
    with pytest.raises(DataError, match="outside the alphabet"):
        chat.ask("xyz", say=lambda _: None)
    assert open_chat(str(run), greedy=True).policy.sampling.top_k == 1
    assert open_chat(str(run), temperature=2.0).policy.sampling.temperature == 2.0


def test_with_rewards_it_answers_the_same(run: Path) -> None:
    answers = {open_chat(str(run), rewards=it, seed=7).ask("a:", say=lambda _: None).text for it in (True, False)}
    assert len(answers) == 1


def test_the_parts_of_the_reward_are_those_of_the_environment(run: Path) -> None:
    chat = open_chat(str(run), rewards=True, seed=2)
    workplace = chat._workplace
    assert workplace is not None
    question = workplace.env.task.prompt(0, {}).text
    answer = chat.ask(question, say=lambda _: None)
    said = {part.name: part for part in chat.rewards_of(answer)}
    mix = workplace.env.reward
    assert said.keys() == mix.parts.keys()
    assert said["task"].value == workplace.env.task.score(answer.episode)  # type: ignore[attr-defined]
    assert said["length"].value == pytest.approx(mix.parts["length"]([answer.episode])[0])
    stated = workplace.setup.reference.response_logprobs([answer.episode])[0]
    # The environment's sign: what is paid is minus the log ratio.
    assert said["kl"].value == pytest.approx(float((stated - answer.episode.logprobs).sum()), abs=1e-6)
    assert said["diversity"].value is None and "compares several answers" in said["diversity"].why_not
    assert {name: part.weight for name, part in said.items()} == dict(mix.weights)


def test_a_run_without_a_reward_shows_none(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"prompt": "a:", "completion": "b"}\n{"prompt": "b:", "completion": "a"}\n')
    task = {"name": "file", "path": str(answers)}
    agent, budget = {"name": "sft"}, {"updates": 1}
    rlhf_env.run(experiment(task=task, rewards={"task": 1.0}, agent=agent, budget=budget), tmp_path / "run")
    chat = open_chat(str(tmp_path / "run"), rewards=True)
    assert chat.rewards_of(chat.ask("a:", say=lambda _: None)) == []


def test_what_needs_a_tasks_columns_is_named_and_does_not_fail(tmp_path: Path) -> None:
    rlhf_env.run(
        experiment(
            task={"name": "addition"},
            policy={"tokenizer": "alphabet:0123456789+="},
            rewards={"task": 1.0, "length": {"target": 3}},
        ),
        tmp_path,
    )
    chat = open_chat(str(tmp_path), rewards=True)
    said = {part.name: part for part in chat.rewards_of(chat.ask("1+", say=lambda _: None))}
    assert said["length"].value is not None
    assert said["task"].value is None and "none of the task's" in said["task"].why_not
    workplace = chat._workplace
    assert workplace is not None
    own = chat.ask(workplace.env.task.prompt(3, {}).text, say=lambda _: None)
    assert own.episode.prompt == workplace.env.task.prompt(3, {})
    assert {part.name: part.value is None for part in chat.rewards_of(own)} == {"task": False, "length": False}


def test_the_reference_answers_as_the_model_before_training(run: Path) -> None:
    chat = open_chat(str(run), rewards=True, seed=9)
    answer = chat.ask("aa:", say=lambda _: None)
    beside = chat.beside(answer, say=lambda _: None)
    assert beside.episode.prompt_ids.tolist() == answer.episode.prompt_ids.tolist()
    workplace = chat._workplace
    assert workplace is not None
    again = workplace.setup.reference
    again.reseed(9)
    asked = answer.episode.prompt_ids[None]
    observation = {"input_ids": asked, "attention_mask": np.ones_like(asked, np.int8)}
    tokens = again.write(observation, 6).tokens  # type: ignore[arg-type]
    assert beside.episode.response_ids.tolist() == tokens[tokens < again.vocab_size].tolist()
    assert not all(
        torch.equal(a, b) for a, b in zip(workplace.setup.policy.parameters(), again.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "tiny"}, "'tiny' is made anew for each run"),
        ({"name": "MODEL", "rewards": True}, "is no run: there is no reward and no reference to show"),
        ({"name": "RUN", "system": "Be kind"}, "no chat template, so nothing says how it is told a system message"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str, run: Path, folder: Path) -> None:
    name = options.pop("name").replace("MODEL", str(folder)).replace("RUN", str(run))
    with pytest.raises(ConfigError, match=message):
        open_chat(name, **options)


def test_a_table_and_an_agent_without_a_model(tmp_path: Path) -> None:
    table = experiment(
        task={"name": "enumerable"},
        policy={"model": "table", "tokenizer": "alphabet:abcd"},
        environment={"num_envs": 8, "max_new_tokens": 3},
        rewards={"task": 1.0},
        agent={"name": "reinforce", "lr": 0.1},
    )
    finished = rlhf_env.run(table, tmp_path / "table")
    question = finished.workplace.env.task.prompt(0, {}).text
    chat = open_chat(str(tmp_path / "table"), rewards=True)
    (part,) = chat.rewards_of(chat.ask(question, say=lambda _: None))
    assert part.value is not None
    rlhf_env.run(experiment(agent={"name": "reference"}), tmp_path / "reference")
    for rewards in (True, False):
        with pytest.raises(DataError, match="its agent 'reference'"):
            open_chat(str(tmp_path / "reference"), rewards=rewards)


def test_a_stop_string_ends_an_answer_and_is_never_shown() -> None:
    content = b"Fine.\nUse it.\nUser: x"
    pieces: list[str] = []
    chat = Chat(Scripted([*content]), ByteTokenizer(), max_new_tokens=40, stop=["\nUser:"])  # type: ignore[arg-type]
    answer = chat.ask("Hi", pieces.append)
    assert (answer.text, "".join(pieces)) == ("Fine.\nUse it.",) * 2
    assert answer.episode.finish_reason == "stop_string"
    assert bytes(answer.episode.response_ids.tolist()) == b"Fine.\nUse it.\nUser:", "the next token is not asked for"
    shown = [text for i in range(len(pieces)) if (text := "".join(pieces[: i + 1])).endswith(("\n", "\nU", "\nUs"))]
    assert not shown, "what may become the string waits"


def test_the_stop_strings_of_a_run_are_those_it_was_trained_with(tmp_path: Path) -> None:
    table = {
        "task": {"name": "echo", "length": 2},
        "rewards": {"task": 1.0},
        "agent": {"name": "grpo", "group_size": 2},
    }
    table |= {"policy": {"model": "tiny", "tokenizer": "alphabet:ab="}, "budget": {"updates": 1}}
    environment = {"num_envs": 4, "max_new_tokens": 4, "max_prompt_tokens": 6, "stop": ["ab"]}
    rlhf_env.run({**table, "environment": environment, "evaluation": {"prompts": 2}}, tmp_path / "run")
    for rewards in (False, True):
        chat = open_chat(str(tmp_path / "run"), rewards=rewards)
        texts = [chat.ask("ab=", lambda _: None).text for _ in range(20)]
        assert any(texts) and not [text for text in texts if "ab" in text]
