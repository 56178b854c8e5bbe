"""An experiment is a file: it round-trips, and what is wrong in it is said with file, field and remedy."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_env import plugins
from rlhf_env.envs.tokenizers import FileTokenizer
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.learning.collect import collect
from rlhf_env.learning.experiment import EnvironmentSettings, EvaluationSettings, Experiment
from rlhf_env.learning.loop import train
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.learning.spending import Budget
from rlhf_env.learning.workplace import build
from rlhf_env.policies import tiny_language_model
from rlhf_env.policies.policy import Sampling
from rlhf_env.toml_files import read_toml


def problems_of(call: Any, *arguments: Any) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        call(*arguments)
    return list(refused.value.problems)


# ---------------------------------------------------------------- a file and back

EXPERIMENTS = {
    "defaults": Experiment(),
    "everything changed": Experiment(
        name="other",
        seed=5,
        task={"name": "prompts", "prompts": ['quotes " and \\ and\nlines', "😀"], "held_out_fraction": 0.5},
        policy=PolicySettings(
            model="x/y", tokenizer="bytes", dtype="float64", sampling=Sampling(temperature=0.7, top_k=3)
        ),
        environment=EnvironmentSettings(
            num_envs=2, max_new_tokens=3, max_prompt_tokens=4, view="token", action_length=1
        ),
        rewards={"length": {"weight": -0.5, "target": 2}, "task": 1, "kl": 0.0},
        agent={"name": "grpo", "lr": 1e-3, "group_size": 2},
        budget=Budget(updates=3),
        evaluation=EvaluationSettings(prompts=2, every=1, seed=1, rewards={"length": {"target": 9}}),
        checkpoint_every=0,
        max_kl=12,
        patience=3,
        min_delta=0.5,
    ),
    "two limits": Experiment(budget=Budget(seconds=60, gradient_steps=10)),
}


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_a_written_experiment_reads_as_itself(experiment: Experiment, tmp_path: Path) -> None:
    file = tmp_path / "toy.toml"
    file.write_text(experiment.to_toml(), encoding="utf-8")
    assert Experiment.load(file) == experiment
    assert Experiment.load(file).to_toml() == experiment.to_toml()


def test_a_budget_in_a_file_is_the_whole_budget(tmp_path: Path) -> None:
    """Not the default's 100,000 tokens as well: a run of 10,000 updates would end early and never say why."""
    file = tmp_path / "toy.toml"
    file.write_text("[budget]\nupdates = 10_000\n")
    assert Experiment.load(file).budget == Budget(updates=10_000)


def test_another_agent_is_one_word() -> None:
    experiment = Experiment(agent={"name": "ppo", "lr": 1.0})
    assert experiment.with_agent("grpo").agent == {"name": "grpo"}
    assert experiment.with_agent({"name": "dpo", "lr": 2.0}).agent == {"name": "dpo", "lr": 2.0}
    assert experiment.agent == {"name": "ppo", "lr": 1.0}


# ---------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[agent\n", "line 1"),
        (b'seed = 0\nname = "toy\n', "line 2"),
        (b"seed = 0\nseed = 1\n", "line 2"),
        (b"name = \xff\n", "not UTF-8"),
    ],
    ids=["bracket", "quote", "twice", "bytes"],
)
def test_malformed_toml_names_the_file_and_the_line(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "toy.toml"
    file.write_bytes(content)
    (problem,) = problems_of(read_toml, file)
    assert str(file) in problem
    assert said in problem


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert problems_of(Experiment.load, tmp_path / "no.toml") == [
        f"cannot read {tmp_path / 'no.toml'}: No such file or directory"
    ]
    assert problems_of(Experiment.load, tmp_path) == [f"cannot read {tmp_path}: Is a directory"]


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("seeed = 1", "no setting 'seeed': did you mean 'seed'?"),
        ("[enviroment]\nnum_envs = 1", "no setting 'enviroment': did you mean 'environment'?"),
        ("[environment]\nmax_tokens = 5", "environment: no setting 'max_tokens'"),
        ("[environment]\nmax_new_tokens = -5", "environment: max_new_tokens must be from 1 to 1,048,576, got -5"),
        ("[environment]\nnum_envs = 0", "environment: num_envs must be from 1 to 1,048,576, got 0"),
        ("[environment]\naction_length = 99", "environment: action_length must be at most 24"),
        ('[environment]\nview = "tokens"', "view must be one of 'response', 'token', got 'tokens'"),
        ("[policy.sampling]\ntemperature = 0", "policy sampling: temperature must be above 0, got 0"),
        ("[policy.sampling]\ntop_p = 1.5", "policy sampling: top_p must be in (0, 1], got 1.5"),
        ('[policy]\ndtype = "float16"', "dtype must be one of 'float32', 'float64', 'bfloat16', 'auto', got 'float16'"),
        ("seed = -1", "seed must be from 0 to 1,099,511,627,775, got -1"),
        ("checkpoint_every = -1", "checkpoint_every must be at least 0"),
        ("max_kl = 0.0\n[rewards]\nkl = 1.0", "max_kl must be above 0"),
        (
            'max_kl = 1.0\npreferences = "pairs.jsonl"\n[budget]\nupdates = 3\n[rewards]\nkl = 1.0',
            "with `preferences` it writes none",
        ),
        ("patience = -1", "patience must be at least 0, got -1"),
        ("min_delta = -0.1", "min_delta must be at least 0, got -0.1"),
        ("patience = 2", "patience = 2 counts evaluations on the way, and there are none: set `every` in [evaluation]"),
        ("[budget]\nupdates = 0", "budget: updates must be at least 1, got 0"),
        ("[budget]", "a budget needs at least one limit"),
        ('[budget]\nupdates = "many"', "updates must be a whole number, got 'many'"),
        ("[evaluation]\nprompts = 0", "prompts must be from 1 to 1,048,576, got 0"),
        ("[evaluation]\nevery = -1", "every must be at least 0"),
        ('task = "count"', "task must be a table, got 'count'"),
    ],
)
def test_a_setting_that_does_not_fit_is_named_with_its_file(toml: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "toy.toml"
    file.write_text(toml + "\n")
    (problem,) = problems_of(Experiment.load, file)
    assert problem.startswith(str(file))
    assert said in problem


# ---------------------------------------------------------------- bad plugins and their settings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"agent": {"name": "gprp"}}, "unknown agent 'gprp': did you mean 'grpo'?"),
        ({"task": {"name": "eco"}}, "unknown task 'eco': did you mean 'echo'?"),
        ({"rewards": {"lenght": 1.0}}, "unknown reward 'lenght': did you mean 'length'?"),
        ({"rewards": {"bonus": {"plugin": "lenght"}}}, "unknown reward 'lenght': did you mean 'length'?"),
        ({"rewards": {"length": {"taget": 3}}}, "reward 'length': no setting 'taget': did you mean 'target'?"),
        ({"rewards": {"length": {"target": "x"}}}, "target must be a whole number, got 'x'"),
        ({"rewards": {"length": 1.0}}, "reward 'length': the setting 'target' is required"),
        ({"rewards": {"task": "much"}}, "[rewards] task: a weight or a table of settings is needed, got 'much'"),
        ({"rewards": {}}, "at least one part"),
        ({"evaluation": EvaluationSettings(rewards={"lenght": 1.0})}, "unknown reward 'lenght'"),
        ({"task": {"name": "echo", "lenght": 3}}, "task 'echo': no setting 'lenght': did you mean 'length'?"),
        ({"task": {"length": 3}}, "a task table needs a name"),
        ({"agent": {"lr": 1.0}}, "[agent] needs a name"),
        (
            {"agent": {"name": "grpo", "group_sise": 4}},
            "[agent] grpo: no setting 'group_sise': did you mean 'group_size'?",
        ),
        ({"agent": {"name": "grpo", "group_size": 1}}, "group_size must be at least 2, got 1"),
        ({"agent": {"name": "grpo", "group_size": 3}}, "group_size 3 does not divide the batch of 8 rows"),
        ({"agent": {"name": "ppo", "lr": -1.0}}, "[agent] ppo optimization: lr must be above 0, got -1.0"),
        ({"agent": {"name": "ppo", "lr": "fast"}}, "[agent] ppo optimization: lr must be a finite number, got 'fast'"),
        (
            {"max_kl": 1.0, "rewards": {"kl": {"plugin": "length", "target": 3}}},
            "max_kl is measured by a KL penalty, and none is among [rewards]: add one",
        ),
        ({"agent": {"name": "dpo"}, "rewards": {"task": 1.0}}, "dpo's beta is the weight of the reward's KL penalty"),
        ({"policy": PolicySettings()}, 'model "tiny" needs a tokenizer'),
        ({"policy": PolicySettings(tokenizer="alphabet:aa")}, "an alphabet is one or more different symbols"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_an_experiment_is_said_before_it_runs(changes: dict[str, Any], said: str, toy: Any) -> None:
    (problem,) = problems_of(build, toy(**changes))
    assert said in problem


def test_all_unknown_names_are_said_at_once_and_before_a_model_is_loaded(toy: Any) -> None:
    experiment = toy(
        task={"name": "eco"},
        rewards={"lenght": 1.0, "bonus": {"plugin": "divresity"}},
        agent={"name": "ppo", "lr": -1.0, "clip": 0.0},
        policy=PolicySettings(model="/no/such/model"),
    )
    found = problems_of(build, experiment)
    assert [word in problem for word, problem in zip(["eco", "lenght", "divresity", "lr"], found, strict=True)] == [
        True
    ] * 4


@pytest.fixture
def shapeless() -> Iterator[None]:
    plugins.register_agent("shapeless", lambda setup, config: None)
    yield
    plugins.host()._entries.pop(("agent", "shapeless"))


def test_an_agent_plugin_without_a_config_is_named(shapeless: None, toy: Any) -> None:
    (problem,) = problems_of(build, replace(toy(), agent={"name": "shapeless"}))
    assert "agent 'shapeless'" in problem
    assert "Config" in problem


# ---------------------------------------------------------------- models and tokenizers

SYMBOLS = "ab=:"


def save_model(folder: Path, *, tokens: int = 6, end_id: int = 4) -> Path:
    """A folder as transformers writes it, with a tokenizer of the four symbols, an end and a pad token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tiny_language_model(vocab_size=tokens, end_id=end_id, hidden_size=8, layers=1, heads=1).save_pretrained(folder)
    vocabulary = {symbol: i for i, symbol in enumerate([*SYMBOLS, "<end>", "<pad>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<end>", "<pad>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "<end>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return folder


def with_model(toy: Any, model: Path | str, **changes: Any) -> Experiment:
    experiment: Experiment = toy("grpo", rewards={"task": 1.0}, policy=PolicySettings(model=str(model), **changes))
    return experiment


def test_a_model_folder_brings_its_tokenizer(tmp_path: Path, toy: Any) -> None:
    workplace = build(with_model(toy, save_model(tmp_path / "model")))
    rollout = workplace.source.next(workplace.agent)
    assert workplace.env.tokenizer.end_id == workplace.setup.policy.end_id == 4
    assert all(episode.prompt.text.endswith("=") for episode in rollout.episodes)


@pytest.mark.parametrize("view", ["response", "token"])
def test_a_vocabulary_rounded_up_is_written_in_full(tmp_path: Path, toy: Any, view: str) -> None:
    """Many models have more rows of embeddings than their tokenizer has tokens; the rest decodes to nothing."""
    experiment = with_model(toy, save_model(tmp_path / "model", tokens=16))
    experiment = replace(experiment, environment=replace(experiment.environment, view=view))
    workplace = build(experiment)
    rollout = workplace.source.next(workplace.agent)
    assert workplace.env.tokenizer.vocab_size == 16
    ids = rollout.tokens[rollout.actions]
    assert ids.max() > 5, "a random model draws from all of its vocabulary"
    assert set("".join(episode.response for episode in rollout.episodes)) <= set(SYMBOLS)


def test_a_filled_up_tokenizer_survives_its_way_to_another_process(tmp_path: Path) -> None:
    wider = FileTokenizer(save_model(tmp_path / "model")).belonging_to(16, ())
    copy = pickle.loads(pickle.dumps(wider))
    assert (copy.vocab_size, copy.end_id, copy.pad_id, copy.encode("ab=")) == (16, 4, 5, [0, 1, 2])
    assert FileTokenizer(tmp_path / "model").vocab_size == 6


def test_the_tokenizer_says_how_a_text_ends(tmp_path: Path, toy: Any) -> None:
    """Chat models list several end tokens, and the tokenizer's need not be the first. All of them end a text."""
    folder = save_model(tmp_path / "model")
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, "eos_token_id": [0, 4]}))
    workplace = build(with_model(toy, folder))
    rollout = collect(workplace.env, workplace.agent, seed=0)
    assert workplace.setup.policy.end_ids == (4, 0)
    ended = [episode for episode in rollout.episodes if episode.finish_reason == "stop"]
    assert ended
    assert {int(episode.response_ids[-1]) for episode in ended} == {0, 4}


@pytest.mark.parametrize("tokenizer", ["alphabet:abcdefgh=", "alphabet:a=", "bytes"])
def test_a_tokenizer_of_another_vocabulary_is_refused(tokenizer: str, tmp_path: Path, toy: Any) -> None:
    with pytest.raises(DataError, match="do not belong together"):
        build(with_model(toy, save_model(tmp_path / "model"), tokenizer=tokenizer))


def test_a_policy_that_ends_texts_otherwise_is_refused(toy: Any) -> None:
    other = tiny_language_model(vocab_size=5, end_id=2, dtype=torch.float32)
    with pytest.raises(DataError, match="ends a text with token 3, the model tiny with 2"):
        build(toy("grpo"), policy=other)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_is_no_model_says_what_is_missing(missing: str, tmp_path: Path, toy: Any) -> None:
    folder = save_model(tmp_path / "model")
    (folder / missing).unlink()
    with pytest.raises(DataError) as refused:
        build(with_model(toy, folder))
    assert str(folder) in str(refused.value)
    assert missing.replace("model.safetensors", "*.safetensors") in str(refused.value)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path, toy: Any) -> None:
    with pytest.raises(DataError, match="nowhere"):
        build(with_model(toy, tmp_path / "nowhere", tokenizer="alphabet:ab="))
    shutil.copytree(save_model(tmp_path / "model"), tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="broken"):
        build(with_model(toy, tmp_path / "broken"))


def test_a_prompt_longer_than_the_context_is_refused_by_name(toy: Any) -> None:
    short = tiny_language_model(vocab_size=5, end_id=3, context=5, dtype=torch.float32)
    workplace = build(toy("grpo"), policy=short)
    with pytest.raises(DataError, match="3 tokens and 4 new ones exceed the model's context of 5"):
        workplace.source.next(workplace.agent)


# ---------------------------------------------------------------- what building builds


def test_a_seed_decides_everything(toy: Any) -> None:
    def first_rollout(seed: int) -> Any:
        workplace = build(replace(toy("ppo"), seed=seed))
        return workplace.source.next(workplace.agent)

    one, same, other = first_rollout(1), first_rollout(1), first_rollout(2)
    assert torch.equal(one.tokens, same.tokens)
    assert torch.equal(one.logprobs, same.logprobs)
    assert one.tokens.shape != other.tokens.shape or not torch.equal(one.tokens, other.tokens)


def test_the_reference_is_the_initial_policy_and_stays(toy: Any) -> None:
    workplace = build(toy("ppo"))
    setup = workplace.setup
    before = {name: value.clone() for name, value in setup.reference.state_dict().items()}
    assert all(torch.equal(value, setup.policy.state_dict()[name]) for name, value in before.items())
    workplace.agent.update(workplace.source.next(workplace.agent))
    assert all(torch.equal(value, before[name]) for name, value in setup.reference.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in setup.policy.state_dict().items())


def test_gold_rewards_may_use_what_the_run_lends(toy: Any) -> None:
    experiment = toy("ppo", evaluation=EvaluationSettings(rewards={"kl": 2.0, "length": {"target": 2}, "task": 1.0}))
    gold = build(experiment).evaluation_rewards
    assert gold is not None
    assert gold.weights == {"kl": 2.0, "length": 1.0, "task": 1.0}
    assert build(toy("ppo")).evaluation_rewards is None


# ---------------------------------------------------------------- Workplace.train


def test_a_workplace_trains_as_its_experiment_says(toy: Any) -> None:
    """The budget, the schedule over it, the evaluations: what the loop does with the same settings."""
    experiment = replace(
        toy("ppo", updates=4),
        evaluation=EvaluationSettings(prompts=4, every=2),
        agent={"name": "ppo", "lr": 1e-2, "schedule": "linear"},
    )
    whole, by_hand = build(experiment), build(experiment)
    seen: list[tuple[int, float]] = []
    training = whole.train(on_update=lambda row, spent: seen.append((row["update"], spent)))
    assert training.reason == "budget"
    assert [row["update"] for row in training.rows] == [1, 2, 3, 4]
    assert seen == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    lent = by_hand.setup
    train(by_hand.agent, by_hand.source, experiment.budget, spending=lent.spending, engine=lent.engine)
    ours, theirs = (it.setup.policy.state_dict() for it in (whole, by_hand))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    asked: list[int] = []
    again = build(experiment)
    evaluated = again.train(evaluate=lambda: {"objective": float(len(asked)), "n": asked.append(1) or 0.0})
    assert [(row["update"], row.get("eval/objective")) for row in evaluated.rows] == [
        (0, 0.0),
        (1, None),
        (2, 1.0),
        (3, None),
        (4, 2.0),
    ]


def test_a_workplace_stops_when_its_experiment_says(toy: Any) -> None:
    patient = replace(toy("ppo", updates=9), patience=2, evaluation=EvaluationSettings(prompts=4, every=1))
    with pytest.raises(ConfigError, match="patience = 2 counts evaluations: pass `evaluate`"):
        build(patient).train()
    workplace = build(patient)
    training = workplace.train(evaluate=lambda: {"objective": 1.0})
    assert training.reason == "no better objective in 2 evaluations (the best was 1)"
    assert workplace.setup.spending.updates == 2
    control = build(toy("reference")).train()
    assert (control.reason, list(control.rows)) == ("does not train", [])


def test_a_workplace_without_pairs_does_not_learn_from_preferences(toy: Any) -> None:
    experiment = replace(toy("dpo", updates=2), preferences="pairs.jsonl")
    with pytest.raises(ConfigError, match="pass a source of pairs"):
        build(experiment).train()
