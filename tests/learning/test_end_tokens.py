"""Instruct models name several end tokens: each of them ends a text, for whoever writes, reads or saves one."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rlhf_env.cli.main import app
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.tokenizers import FileTokenizer, end_ids, load_tokenizer
from rlhf_env.errors import DataError
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.offline import pair_episode
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.learning.collect import collect
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.workplace import build
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.types import Prompt

sys.path.insert(0, str(Path(__file__).parents[1]))
from chat_tokenizers import save_chat_tokenizer

TURN, OTHER, LAST = 260, 257, 261  # the tokenizer's own <|im_end|>; </s>; <|end_of_text|>
LENGTH = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose configuration names one end token, its generation configuration a second, its tokenizer a third."""
    made = save_chat_tokenizer(tmp_path / "model")
    model = tiny_language_model(vocab_size=262, hidden_size=8, layers=1, heads=1, end_id=OTHER, dtype=torch.float32)
    model.model.generation_config.eos_token_id = [LAST]
    with torch.no_grad():  # so that the end tokens are drawn often
        model.model.lm_head.weight[[TURN, OTHER, LAST]] *= 0
    model.model.save_pretrained(made)
    for name, named in (("generation_config.json", [LAST]), ("config.json", OTHER)):
        content = json.loads((made / name).read_text()) | {"eos_token_id": named}
        (made / name).write_text(json.dumps(content))
    return made


def experiment(folder: Path, **table: Any) -> Experiment:
    return Experiment.from_table(
        {
            "task": {"name": "prompts", "prompts": ["Hi", "Well"]},
            "policy": {"model": str(folder)},
            "environment": {"num_envs": 64, "max_new_tokens": LENGTH, "max_prompt_tokens": 16},
            "rewards": {"length": {"weight": 1.0, "target": 3}, "kl": 0.1},
            "agent": {"name": "grpo", "group_size": 4},
            **table,
        }
    )


def test_every_end_token_that_a_file_names(folder: Path) -> None:
    tokenizer = FileTokenizer(folder)
    assert (tokenizer.end_id, tokenizer.end_ids) == (TURN, (TURN, LAST, OTHER)), "the tokenizer's own is the first"
    assert pickle.loads(pickle.dumps(tokenizer)).end_ids == tokenizer.end_ids
    assert set(LanguageModel.from_pretrained(folder).end_ids) == {TURN, LAST, OTHER}
    assert FileTokenizer(folder, end="</s>").end_ids == (OTHER,), "unless one is named"
    assert end_ids(load_tokenizer("bytes")) == (258,)


@pytest.mark.parametrize("named", ["2", [2, "3"], True, -1, 2.5])
def test_what_is_no_id(folder: Path, named: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    with pytest.raises(DataError, match=r"generation_config\.json: eos_token_id must be a token id"):
        FileTokenizer(folder)


@pytest.mark.parametrize("action_length", [1, 3, LENGTH])
@pytest.mark.parametrize("end", [TURN, OTHER, LAST])
def test_any_of_them_ends_a_text(folder: Path, end: int, action_length: int) -> None:
    env = TextVectorEnv(
        1,
        task={"name": "prompts", "prompts": ["Hi"]},
        reward={"length": {"weight": 1.0, "target": 3}},
        tokenizer=str(folder),
        max_new_tokens=LENGTH,
        action_length=action_length,
        autoreset_mode="Disabled",
    )
    said = [ord("a"), ord("b"), end, ord("c"), ord("d"), ord("e")]
    env.reset(seed=0)
    for start in range(0, len(said), action_length):
        piece = np.array([said[start : start + action_length]])
        piece = np.pad(piece, ((0, 0), (0, action_length - piece.shape[1])), constant_values=env.tokenizer.vocab_size)
        _, _, terminated, _, info = env.step(piece[:, 0] if action_length == 1 else piece)
        if terminated[0]:
            break
    episode = info["text_episode"][0]
    letters = FileTokenizer(folder).decode([ord("a"), ord("b")])
    assert (episode.finish_reason, episode.response) == ("stop", letters)
    assert episode.response_ids.tolist() == [ord("a"), ord("b"), end]


def test_texts_of_a_policy_end_at_any_of_them(folder: Path) -> None:
    workplace = build(experiment(folder))
    ends = set(end_ids(workplace.env.tokenizer))
    assert ends == {TURN, LAST, OTHER}
    rollouts = [workplace.source.next(workplace.agent) for _ in range(4)]
    episodes = [episode for rollout in rollouts for episode in rollout.episodes]
    last = [int(episode.response_ids[-1]) for episode in episodes if episode.finish_reason == "stop"]
    assert set(last) == ends, "each was drawn"
    assert not any(ends & set(episode.response_ids[:-1].tolist()) for episode in episodes), "and nothing after it"
    for rollout in rollouts:
        scored = workplace.setup.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs
        assert torch.allclose(rollout.logprobs, scored.double(), atol=1e-5)
    token_view = build(experiment(folder, environment={"num_envs": 64, "max_new_tokens": LENGTH, "view": "token"}))
    one_by_one = token_view.source.next(token_view.agent)
    assert [e.response_ids.tolist() for e in one_by_one.episodes] == [
        e.response_ids.tolist() for e in rollouts[0].episodes
    ]


def test_nobody_says_more_after_any_of_them(folder: Path) -> None:
    """Neither a policy nor the control that draws at random: what they say after an end would count as written."""
    workplace = build(experiment(folder, agent={"name": "random"}))
    observation, _ = workplace.env.reset(seed=0)
    said_by_policy = workplace.setup.policy.write(observation, 8 * LENGTH).tokens
    for tokens in (said_by_policy, np.asarray(workplace.agent.act(observation).tokens)):
        ends = np.isin(tokens, [TURN, OTHER, LAST])
        assert len(set(tokens[ends].tolist())) > 1
        after = ends.cumsum(axis=1) - ends > 0
        assert (tokens[after] == workplace.env.tokenizer.vocab_size).all()


def test_controls_and_samplers_end_at_any_of_them(folder: Path) -> None:
    for agent in ({"name": "random"}, {"name": "best_of_n", "n": 2}):
        workplace = build(experiment(folder, agent=agent))
        workplace.env.reset(seed=0)
        rollout = collect(workplace.env, workplace.agent, seed=0)
        ends = set(end_ids(workplace.env.tokenizer))
        for episode in rollout.episodes:
            assert not ends & set(episode.response_ids[:-1].tolist())
            assert (episode.finish_reason == "stop") == (int(episode.response_ids[-1]) in ends)


def test_saving_keeps_the_list(folder: Path, tmp_path: Path) -> None:
    LanguageModel.from_pretrained(folder).save_pretrained(tmp_path / "again")
    for name in ("config.json", "generation_config.json"):
        assert set(json.loads((tmp_path / "again" / name).read_text())["eos_token_id"]) == {TURN, LAST, OTHER}
    assert set(LanguageModel.from_pretrained(tmp_path / "again").end_ids) == {TURN, LAST, OTHER}
    tiny_language_model(vocab_size=9).save_pretrained(tmp_path / "one")
    assert json.loads((tmp_path / "one" / "config.json").read_text())["eos_token_id"] == 8, "one stays a number"


def test_a_reward_model_keeps_how_its_texts_begin_and_end(folder: Path, tmp_path: Path) -> None:
    model = RewardModel.from_trunk(folder)
    model.save(tmp_path / "reward")
    loaded = RewardModel.load(tmp_path / "reward")
    (text,) = loaded.read([(Prompt("p", "Hi"), Response("yes", Author("dataset", "d", None)))])
    own = FileTokenizer(folder)
    assert text.ids.tolist() == [256, *own.encode("Hi"), *own.encode("yes"), TURN]
    assert FileTokenizer(tmp_path / "reward").end_ids == own.end_ids


def test_stored_answers_are_read_with_the_ids_they_were_written_with(folder: Path) -> None:
    tokenizer = FileTokenizer(folder)
    asked, said = tuple(tokenizer.encode_prompt(Prompt("p", "Hi"))), tuple(tokenizer.encode("yes"))
    stored = Response("yes", Author("policy", "p", 1.0), (*said, LAST), asked, "stop")
    assert pair_episode(Prompt("p", "Hi"), stored, tokenizer).response_ids.tolist() == [*said, LAST]
    by_people = Response("yes", Author("human", "p", None))
    read = pair_episode(Prompt("p", "Hi"), by_people, tokenizer)
    assert (read.prompt_ids.tolist(), read.response_ids.tolist()) == (list(asked), [*said, TURN])
    env = TextVectorEnv(
        task={"name": "prompts", "prompts": ["Hi"]}, reward={"length": {"target": 3}}, tokenizer=str(folder)
    )
    assert env.prompt_ids(Prompt("p", "Hi")).tolist() == list(asked), "what is trained on is what is asked"


def test_a_model_that_ends_where_the_environment_does_not(folder: Path) -> None:
    model = tiny_language_model(vocab_size=259, end_id=258, dtype=torch.float32).model
    policy = LanguageModel(model, end_id=[258, 7], pad_id=256)
    with pytest.raises(DataError, match=r"ends a text with token 258, the model .* with 258, 7"):
        build(experiment(folder, policy={"model": "tiny", "tokenizer": "bytes"}), policy=policy)


def test_by_command_every_end_token_ends_a_text(folder: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "toy.toml", tmp_path / "run"
    table = experiment(folder, budget={"updates": 1}, evaluation={"prompts": 64}).to_toml()
    file.write_text(table, encoding="utf-8")
    for command in (f"train {file} --out {out}", f"evaluate {out} --greedy", f"export {out} {tmp_path / 'made'}"):
        done = CliRunner().invoke(app, command.split())
        assert done.exit_code == 0, done.output
    for name in ("config.json", "generation_config.json"):
        assert set(json.loads((tmp_path / "made" / name).read_text())["eos_token_id"]) == {TURN, LAST, OTHER}
    samples = json.loads((out / "evaluation.json").read_text())["samples"]
    assert {sample["finish_reason"] for sample in samples} == {"stop", "length"}
    exported = FileTokenizer(tmp_path / "made")
    assert exported.end_id == TURN and set(exported.end_ids) == {TURN, LAST, OTHER}
