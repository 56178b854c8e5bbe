"""The agent `sb3`: Stable-Baselines3 is handed our numbers, learns from them, and goes on in the same bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_agents.sb3_agent import SB3

from rlhf_env import plugins
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.errors import ConfigError, DataError, RunFailed
from rlhf_env.learning.advantages import gae, paid_to_actions
from rlhf_env.learning.collect import collect
from rlhf_env.learning.rollout import Rollout
from rlhf_env.policies import Sampling, TabularPolicy
from rlhf_env.testing import check_agent
from rlhf_env.types import Episode, Prompt, ResetOptions

EVERY_ALGORITHM = pytest.mark.parametrize("algorithm", ["ppo", "a2c"])


class OnlyA:
    """Worth a third for each a; asked with "a"."""

    size = 1

    def prompt(self, index: int, _options: ResetOptions, /) -> Prompt:
        return Prompt(id=f"a/{index % 1}", text="a")

    def score(self, episode: Episode, /) -> float:
        return episode.response.count("a") / 3


def sb3(setup: Any, **settings: Any) -> SB3:
    return SB3(setup, SB3.Config(**{"learning_rate": 3e-3, **settings}))


def with_a_value(agent: SB3) -> SB3:
    """Its value head starts at zero, which would hide much."""
    with torch.no_grad():
        agent.actor_critic.value_head.weight.copy_(torch.linspace(-1, 1, agent.policy.hidden_size))
        agent.actor_critic.value_head.bias.fill_(0.3)
    return agent


def our_values(agent: SB3, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """V [B, L] of the state each token was drawn from, and [B] of the state each text ends in; a text at a time."""
    values, final = torch.zeros(rollout.tokens.shape, dtype=torch.float64), []
    for row, length in enumerate(rollout.lengths.tolist()):
        text = torch.cat([rollout.tokens[row, :length], torch.zeros(1, dtype=torch.int64)])[None]
        everywhere = torch.ones_like(text, dtype=torch.bool)
        states = agent.policy.evaluate(text, everywhere, ~everywhere).hidden[0]
        worth = agent.actor_critic.value_head(states).detach().double()
        values[row, :length] = worth[:-1]
        final.append(worth[-1])
    return values, torch.stack(final)


# ---------------------------------------------------------------- what they are handed


@pytest.mark.parametrize(
    "view",
    [{}, {"action_length": 2}, {"whole_responses": False}, {"whole_responses": False, "max_episode_steps": 3}],
    ids=["response", "segment", "token", "cut"],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_they_are_handed_our_numbers(make_world, view: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    """Each token of the agent is a step of theirs, and their GAE of these steps is ours of the texts."""
    world = make_world(rows=24, kl=0.3, dtype=dtype, **view)
    agent = with_a_value(sb3(world.setup, gamma=0.9, gae_lambda=0.7, batch_size=5, n_epochs=1))
    world.learn(agent, 1)  # off the reference, so that KL is paid on every token
    rollout = world.rollout(agent)
    assert len(set(rollout.lengths.tolist())) > 1
    assert {bool(row) for row in rollout.truncated} == ({True, False} if "max_episode_steps" in view else {False})

    buffer = agent._buffer(rollout)
    where = rollout.actions
    values, final = our_values(agent, rollout)
    rewards = paid_to_actions(rollout.rewards(), rollout.mask, where)
    advantages = gae(rewards, values, where, gamma=0.9, lam=0.7, truncated=rollout.truncated, final_values=final)
    assert rewards.count_nonzero() > rollout.scored.sum()
    assert buffer.full
    assert buffer.observations[:, 0].tolist() == where.nonzero().tolist()
    assert buffer.actions[:, 0, 0].tolist() == rollout.tokens[where].tolist()
    assert torch.equal(torch.from_numpy(buffer.log_probs[:, 0]), rollout.logprobs[where])
    for theirs, ours in {
        "values": values,
        "advantages": advantages,
        "returns": advantages + values,
    }.items():
        found = getattr(buffer, theirs)
        assert found.dtype == np.float64
        torch.testing.assert_close(torch.from_numpy(found[:, 0]), ours[where], rtol=0, atol=tolerance, msg=theirs)
    lengths = [int(row.sum()) for row in where]
    assert buffer.episode_starts[:, 0].tolist() == [float(t == 0) for length in lengths for t in range(length)]


def test_tokens_that_the_agent_did_not_choose_are_no_steps(make_world) -> None:
    """And what is paid on them goes to the choice before."""
    world = make_world(rows=8, kl=0.3)
    agent = with_a_value(sb3(world.setup))
    world.learn(agent, 1)  # off the reference, so that KL is paid on every token
    rollout = world.rollout(agent, seed=3)
    mask = rollout.actions.clone()
    start = len(rollout.episodes[0].prompt_ids)
    long = rollout.actions.sum(dim=1) >= 3
    assert long.any()
    mask[long, start + 1] = False
    partly = replace(rollout, actions=mask)
    buffer = agent._buffer(partly)
    assert buffer.observations[:, 0].tolist() == mask.nonzero().tolist()
    assert abs(buffer.rewards.sum() - float(rollout.returns().sum())) < 1e-12


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_first_ratio_is_one(make_world, temperature: float) -> None:
    world = make_world(sampling=Sampling(temperature=temperature), dropout=0.2)
    agent = sb3(world.setup, n_epochs=1, batch_size=10_000)
    agent.policy.train()  # dropout, if an agent left it on, would show
    metrics = agent.update(world.rollout(agent))
    assert metrics["gradient_steps"] == 1.0
    assert metrics["clip_fraction"] == 0.0
    assert abs(metrics["approx_kl"]) < 1e-12
    assert abs(metrics["policy_loss"]) < 1e-10  # normalised advantages at ratio 1


@EVERY_ALGORITHM
def test_the_first_gradient_is_that_of_the_published_loss(make_world, algorithm: str) -> None:
    """On the whole rollout: mean over tokens of -A log pi + 1/2 (V - R)^2 - 0.1 H, clipped to nothing."""
    world = make_world(rows=8)
    settings: dict[str, Any] = {"n_epochs": 1, "batch_size": 10_000, "ent_coef": 0.1, "max_grad_norm": 1e9}
    agent = with_a_value(sb3(world.setup, algorithm=algorithm, normalize_advantage=False, **settings))
    rollout = world.rollout(agent, seed=3)
    values, _ = our_values(agent, rollout)
    rewards = paid_to_actions(rollout.rewards(), rollout.mask, rollout.actions)
    advantages = gae(rewards, values, rollout.actions, gamma=1.0, lam=0.95)
    seen = agent.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions)
    now = agent.actor_critic.value_head(seen.hidden)
    terms = -advantages * seen.logprobs + 0.5 * (now - advantages - values).square() - 0.1 * seen.entropy
    expected = torch.autograd.grad(terms[rollout.actions].mean(), list(agent.policy.parameters()))

    found: list[torch.Tensor] = []
    agent.optimizer.register_step_pre_hook(lambda *_: found.extend(p.grad.clone() for p in agent.policy.parameters()))
    agent.update(rollout)
    for theirs, ours in zip(found, expected, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-12)
    assert max(float(gradient.abs().max()) for gradient in expected) > 1e-3


def test_a_table_of_logits_learns_too(make_world) -> None:
    """Any policy can be trained, not only a transformer."""
    policy = TabularPolicy(2, 3, seed=1)
    env = TextVectorEnv(
        32,
        task=OnlyA(),
        tokenizer="alphabet:ab",
        max_new_tokens=3,
        max_prompt_tokens=1,
        action_length=3,
        autoreset_mode="Disabled",
    )
    env.reset(seed=0)
    setup = replace(make_world().setup, policy=policy, action_length=3, max_new_tokens=3)
    agent = sb3(setup, learning_rate=0.05)
    before = float(collect(env, agent).returns().mean())
    for _ in range(8):
        agent.update(collect(env, agent))
    assert before < 0.6 < 0.9 < float(collect(env, agent).returns().mean())


# ---------------------------------------------------------------- what it spends, keeps and refuses


def test_gradient_steps_are_counted_as_they_are_made(make_world) -> None:
    world = make_world(rows=8)
    agent = sb3(world.setup, n_epochs=3, batch_size=16)
    rollout = world.rollout(agent)
    tokens = int(rollout.actions.sum())
    steps = 3 * -(-tokens // 16)
    assert agent.update(rollout)["gradient_steps"] == steps
    assert world.setup.spending.gradient_steps == steps
    early = sb3(world.setup, learning_rate=0.05, n_epochs=10, batch_size=1000, target_kl=1e-3)
    made = early.update(world.rollout(early))["gradient_steps"]
    assert 1 <= made < 10  # it stops before the step from too far
    assert world.setup.spending.gradient_steps == steps + made


def test_the_learning_rate_follows_the_budget(make_world) -> None:
    world = make_world(rows=8)
    agent = sb3(world.setup, learning_rate=0.1, schedule="linear")
    world.setup.engine.progress = 0.75
    assert abs(agent.update(world.rollout(agent))["lr"] - 0.025) < 1e-15
    assert abs(agent.optimizer.param_groups[0]["lr"] - 0.025) < 1e-15


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # inf * 0 in their GAE
def test_a_gradient_that_is_not_finite_leaves_the_parameters(make_world, with_returns) -> None:
    world = make_world(rows=4)
    agent = sb3(world.setup)
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    with pytest.raises(RunFailed, match="the gradient is not finite"):
        agent.update(with_returns(world.rollout(agent), [1.0, 1.7e308, 0.0, 0.0]))
    assert all(torch.equal(value, before[name]) for name, value in agent.policy.state_dict().items())
    assert world.setup.spending.gradient_steps == 0


def test_equal_rewards_give_finite_numbers(make_world, with_returns) -> None:
    world = make_world(rows=4)
    agent = sb3(world.setup, gae_lambda=1.0)
    metrics = agent.update(with_returns(world.rollout(agent), [1.0] * 4))
    assert metrics["explained_variance"] == 0.0
    assert all(np.isfinite(value) for value in metrics.values())


def test_what_it_cannot_learn_from_is_refused(make_world) -> None:
    world = make_world(rows=4)
    agent = sb3(world.setup, algorithm="a2c")
    rollout = world.rollout(agent)
    with pytest.raises(DataError, match="needs the log-probabilities of the policy that wrote"):
        agent.update(replace(rollout, stated=False))
    with pytest.raises(DataError, match="another policy wrote these"):
        agent.update(replace(rollout, logprobs=rollout.logprobs - 0.2))
    only = torch.zeros_like(rollout.actions)
    only[0, int(rollout.lengths[0]) - 1] = True
    with pytest.raises(DataError, match="this rollout has 1"):
        agent.update(replace(rollout, actions=only))
    with pytest.raises(ConfigError, match="top_k 2"):
        sb3(make_world(sampling=Sampling(top_k=2)).setup)
    with pytest.raises(ConfigError, match="does not divide"):
        sb3(world.setup, group_size=3)


def test_every_wrong_setting_is_named() -> None:
    with pytest.raises(ConfigError) as refused:
        SB3.Config(
            algorithm="sac",  # type: ignore[arg-type]
            schedule="up",  # type: ignore[arg-type]
            group_size=0,
            n_epochs=0,
            batch_size=1,
            gamma=1.1,
            gae_lambda=-0.1,
            learning_rate=0.0,
            clip_range=0.0,
            max_grad_norm=float("nan"),
            clip_range_vf=-1.0,
            target_kl=-1.0,
            ent_coef=-1.0,
            vf_coef=float("inf"),
        )
    named = [problem.split()[0] for problem in refused.value.problems]
    fields = set(SB3.Config.__dataclass_fields__) - {"normalize_advantage", "use_rms_prop"}
    assert sorted(named) == sorted(fields)


def test_a2c_keeps_the_contract() -> None:
    """As ppo does, which test_check_agent puts through it by the agent's name."""
    assert check_agent({"name": "sb3", "algorithm": "a2c", "learning_rate": 0.01}) == []


@EVERY_ALGORITHM
def test_it_goes_on_in_the_same_bits(assert_resumes, algorithm: str) -> None:
    # Slowly, for a2c takes no text of a policy that it has left.
    settings: dict[str, Any] = {"algorithm": algorithm, "batch_size": 16, "learning_rate": 1e-5}
    assert_resumes(lambda setup: sb3(setup, **settings), rows=8, dtype=torch.float32)


def test_only_its_own_stream_orders_the_minibatches(make_world) -> None:
    """Whatever stands in numpy's global generator, which they draw from; and it stands there afterwards."""
    weights = []
    for seed in (0, 1):
        np.random.seed(seed)  # noqa: NPY002
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        world = make_world(rows=8)
        agent = sb3(world.setup, batch_size=16)
        agent.update(world.rollout(agent))
        assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
        weights.append(torch.cat([p.detach().flatten() for p in agent.policy.parameters()]))
    assert torch.equal(*weights)


def test_a_minibatch_reads_each_text_once(make_world) -> None:
    world = make_world(rows=8)
    agent = sb3(world.setup)
    rollout = world.rollout(agent)
    agent.actor_critic.read(rollout)
    sizes: list[int] = []
    evaluate = agent.policy.evaluate

    def watch(tokens: torch.Tensor, *rest: Any) -> Any:
        sizes.append(len(tokens))
        return evaluate(tokens, *rest)

    agent.policy.evaluate = watch
    places = rollout.actions.nonzero()
    agent.actor_critic.evaluate_actions(places, places)
    assert sizes == [8] and len(places) > 8


# ---------------------------------------------------------------- it learns


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_learns(make_world, seed: int) -> None:
    """Beats both controls by 0.6 of a reward in [-1, 1]; token by token, the reference by 0.4."""

    def control(world: Any, name: str, batches: int) -> float:
        kind = plugins.host().load("agent", name)
        return float(world.mean_score(kind(world.setup, kind.Config()), batches))

    world = make_world(seed=seed)
    controls = max(control(world, name, 8) for name in ("random", "reference"))
    agent = sb3(world.setup)
    world.learn(agent, 12)
    assert world.mean_score(agent) > controls + 0.6

    world = make_world(seed=seed, whole_responses=False)
    reference = control(world, "reference", 2)
    agent = sb3(world.setup, learning_rate=1e-2)
    world.learn(agent, 4)
    assert world.mean_score(agent, batches=2) > reference + 0.4


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a2c_learns(make_world, seed: int) -> None:
    world = make_world(seed=seed)
    kinds = [plugins.host().load("agent", name) for name in ("random", "reference")]
    controls = max(world.mean_score(kind(world.setup, kind.Config())) for kind in kinds)
    agent = sb3(world.setup, algorithm="a2c", learning_rate=5e-3)
    world.learn(agent, 60)
    assert world.mean_score(agent) > controls + 0.6
