"""The pretraining mix: its gradient in every agent, its order, its cost, what it reads."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_agents.ppo import PPO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agents.conftest import World, build_world, flat_gradient, weights_of_setup

from rlhf_env.envs.tasks import load_task
from rlhf_env.envs.tokenizers import load_tokenizer
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.learning import checkpoints
from rlhf_env.learning.engine import Engine, Optimization
from rlhf_env.learning.loop import train
from rlhf_env.learning.making_agents import make_agent
from rlhf_env.learning.pretraining_mix import texts_to_predict
from rlhf_env.learning.rollout import Rollout, demonstrations
from rlhf_env.learning.sources import EnvSource
from rlhf_env.learning.spending import Budget

TEXTS = {"name": "prompts", "prompts": ["a:bb=", "ab:", "=:ab=b:a", "ba"]}
MIX: dict[str, Any] = {"ptx_coefficient": 0.7, "ptx_data": TEXTS, "ptx_rows": 4}
GROUPS: dict[str, Any] = {"group_size": 4}
AGENTS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "ppo, separate": {"value_model": "separate"},
    "reinforce": {},
    "rloo": GROUPS,
    "grpo": GROUPS,
    "grpo, dapo": {**GROUPS, "loss": "dapo"},
    "dpo": GROUPS,
    "kto": GROUPS,
    "rejection": GROUPS,
    "sft": {},
    "replay": {"agent": {"name": "rloo", **GROUPS}},
}


def built(world: World, variant: str, **more: Any) -> Any:
    table = {"name": variant.partition(",")[0], **AGENTS[variant]}
    if isinstance(table.get("agent"), dict):
        return make_agent({**table, "agent": {**table["agent"], **more}}, world.setup)
    return make_agent({**table, **more}, world.setup)


def lesson(world: World, agent: Any) -> Rollout:
    if getattr(agent, "imitates", False):
        texts = texts_to_predict(load_task({"name": "prompts", "prompts": ["ab:", "bb"]}), world.env.tokenizer)
        return demonstrations(texts, pad_id=world.setup.tokenizer.pad_id)
    return world.rollout(agent, seed=3)


def first_gradient(agent: Any, rollout: Rollout) -> torch.Tensor:
    """What AdamW is given at the first step, before it is clipped."""
    optimizer, seen = agent.optimizer, []
    step = optimizer._adamw.step
    optimizer.settings = Optimization(
        **{**{name: getattr(optimizer.settings, name) for name in MIX}, "max_grad_norm": 0.0}
    )

    def look() -> None:
        seen.append(flat_gradient(agent))
        step()

    optimizer._adamw.step = look
    agent.update(rollout)
    return seen[0]


def of_texts(world: World) -> torch.Tensor:
    """The gradient of the mean of -log p over the texts' tokens, by the transformers model alone."""
    policy: Any = world.setup.policy
    terms = []
    for text in TEXTS["prompts"]:
        ids = torch.tensor([world.env.tokenizer.encode(text)])
        logprobs = policy.model(ids).logits[0].log_softmax(-1)
        terms += [-logprobs[t - 1, ids[0, t]] for t in range(1, ids.shape[1])]
    gradients = torch.autograd.grad(torch.stack(terms).mean(), list(policy.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("variant", AGENTS)
def test_each_step_adds_the_gradient_of_the_texts(variant: str) -> None:
    """To 1e-10, in every agent that trains; micro-batches change nothing of it."""
    world = build_world(rows=8, kl=0.3)
    rollout = lesson(world, built(world, variant))
    plain = first_gradient(built(build_world(rows=8, kl=0.3), variant), rollout)
    for limit in ({}, {"micro_batch_size": 2}):
        other = build_world(rows=8, kl=0.3)
        mixed = first_gradient(built(other, variant, **MIX, **limit), rollout)
        expected = plain + 0.7 * of_texts(world)
        torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-10)
        assert (mixed - plain).abs().max() > 1e-3


def test_the_loop_logs_it_and_counts_its_tokens() -> None:
    """PPO makes two steps an update: all four texts twice, or eight tokens of each of two texts more."""
    spent, rows = [], []
    for mix in ({}, MIX):
        world = build_world(rows=8)
        setup = world.setup
        agent = make_agent({"name": "ppo", **mix}, setup)
        source = EnvSource(world.env, seed=0, spending=setup.spending)
        training = train(agent, source, Budget(updates=1), spending=setup.spending, engine=setup.engine)
        spent.append(setup.spending.gradient_tokens)
        rows.append(training.rows[0])
    assert spent[1] - spent[0] == 2 * sum(len(text) for text in TEXTS["prompts"])
    assert "train/ptx_loss" not in rows[0]
    assert 0.5 < rows[1]["train/ptx_loss"] < 3.0


def test_it_keeps_its_texts_likely() -> None:
    """The same updates with and without it: the texts end up likelier, by a nat a token, and the task is learned."""
    likely, scores = [], []
    for mix in ({}, {**MIX, "ptx_coefficient": 1.0}):
        world = build_world()
        agent = make_agent({"name": "ppo", "lr": 3e-3, **mix}, world.setup)
        world.learn(agent, 15)
        texts = texts_to_predict(load_task(TEXTS), world.env.tokenizer)
        values = world.setup.policy.response_logprobs(texts)
        likely.append(sum(v.sum() for v in values) / sum(len(v) for v in values))
        scores.append(world.mean_score(agent, batches=2))
    assert likely[1] > likely[0] + 1.0
    assert min(scores) > 0.2


@pytest.mark.parametrize("variant", ["ppo", "rloo", "dpo", "rejection"])
def test_a_resumed_run_takes_the_texts_that_come_next(variant: str, tmp_path: Path) -> None:
    """Two updates, the state through a checkpoint into a fresh agent: the same bits. Three texts a step of four."""
    first = build_world(rows=8, kl=0.3)
    agent = built(first, variant, **{**MIX, "ptx_rows": 3})
    first.learn(agent, 2)
    state, _ = checkpoints.load(checkpoints.save(tmp_path, 2, agent.state_dict(), {}))
    second = build_world(rows=8, kl=0.3)
    fresh = built(second, variant, **{**MIX, "ptx_rows": 3})
    fresh.load_state_dict(state)
    rollout = first.rollout(agent, seed=9)
    for _ in range(2):
        assert agent.update(rollout) == fresh.update(second.rollout(fresh, seed=9))
        assert torch.equal(weights_of_setup(agent), weights_of_setup(fresh))
        rollout = first.rollout(agent, seed=9)


def test_a_run_of_ppo_from_before_resumes_where_its_texts_were() -> None:
    """There, ppo itself kept how many texts it had read."""
    agent = built(build_world(rows=8), "ppo", **MIX)
    state = agent.state_dict()
    del state["optimizer"]["texts_read"]
    agent.load_state_dict({**state, "texts_read": 12})
    assert agent.state_dict()["optimizer"]["texts_read"] == 12


def test_a_demonstration_is_predicted_from_its_prompt(tmp_path: Path) -> None:
    """A file's rows: with a completion, that and the end token; without, every token but the first."""
    rows = [{"prompt": "ab=", "completion": "ba"}, {"prompt": "aab"}, {"prompt": "a", "completion": ""}]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokenizer = load_tokenizer("alphabet:ab:=")
    made = texts_to_predict(load_task({"name": "file", "path": str(file)}), tokenizer, longest=6)
    assert [(e.prompt_ids.tolist(), e.response_ids.tolist()) for e in made] == [
        ([0, 1, 3], [1, 0, 4]),
        ([0], [0, 1]),
        ([0], [4]),
    ]
    with pytest.raises(DataError) as caught:
        texts_to_predict(load_task({"name": "prompts", "prompts": ["a", "abab", "ab"]}), tokenizer, longest=3)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "ptx_data, prompts/0",
        "ptx_data, prompts/1",
    ]
    with pytest.raises(ConfigError, match="for ever"):
        texts_to_predict(load_task("echo"), tokenizer)
    file.write_text(json.dumps({"prompt": "ab=", "completion": "ba", "label": False}), encoding="utf-8")
    with pytest.raises(DataError, match="its label is false"):
        texts_to_predict(load_task({"name": "file", "path": str(file)}), tokenizer)


def test_it_is_refused_where_nobody_reads_the_texts() -> None:
    with pytest.raises(ConfigError, match="make the agent with make_agent"):
        Engine().optimizer([torch.zeros(1, requires_grad=True)], Optimization(**MIX))
    with pytest.raises(ConfigError, match="belong together"):
        PPO.Config(optimization=Optimization(ptx_coefficient=0.5))


def test_measured_numbers_are_the_means_since_the_last_time() -> None:
    engine = Engine()
    for value in (1.0, 4.0):
        engine.measure(ptx_loss=value)
    assert engine.take_measured() == {"ptx_loss": 2.5}
    assert engine.take_measured() == {}
    assert np.isfinite(engine.progress)
