"""The agents themselves in the enumerable world: their expected gradients, and where training takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_agents.best_of_n import BestOfN
from rlhf_agents.grpo import GRPO
from torch import Tensor
from typer.testing import CliRunner

from rlhf_env.cli.main import app
from rlhf_env.errors import ConfigError
from rlhf_env.lab.studies.exact import agents as exact_agents
from rlhf_env.lab.studies.exact.agents import AGENTS, WITHIN, Reached, enumerable_experiment, train_exactly
from rlhf_env.lab.studies.exact.estimators import ESTIMATORS, Batches, Placement, loss_terms, measure
from rlhf_env.lab.studies.exact.world import Objective, best_of_n, kl, response_logprobs
from rlhf_env.learning.collect import collect
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.functional import pair_loss
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.workplace import Workplace, build
from rlhf_env.policies import TabularPolicy
from rlhf_env.types import Episode

torch.set_num_threads(1)


def small_experiment(agent: Mapping[str, Any], size: int = 2, **changes: Any) -> Experiment:
    """Seven responses: the empty one, a, b, aa, ab, ba, bb; `size` rows."""
    table = {
        "task": {"name": "enumerable", "symbols": "ab", "longest": 2},
        "policy": {"model": "table", "tokenizer": "alphabet:ab", "dtype": "float64"},
        "environment": {"num_envs": size, "max_new_tokens": 2, "max_prompt_tokens": 1},
        "rewards": {"task": 1.0, "kl": 0.5},
        "agent": dict(agent),
        "budget": {"updates": 1},
    }
    return Experiment.from_table({**table, **changes})


def away(agent: Mapping[str, Any], size: int = 2) -> tuple[Workplace, TabularPolicy, Objective]:
    """A workplace whose policy has left its reference, as after some updates."""
    workplace = build(small_experiment(agent, size))
    policy, reference, task = workplace.setup.policy, workplace.setup.reference, workplace.env.task
    assert isinstance(policy, TabularPolicy) and isinstance(reference, TabularPolicy)
    with torch.no_grad():
        policy.logits += TabularPolicy(2, 2, seed=5).logits
    return workplace, policy, Objective.of_task(task, reference, 0.5)


def episodes_of(workplace: Workplace, policy: TabularPolicy) -> list[Episode]:
    """Each response once, with the log-probabilities that the policy states of it."""
    tree, prompt = policy.tree, workplace.env.task.prompt(0, {})
    blank = [
        Episode(
            prompt=prompt,
            prompt_ids=np.array(policy.prompt),
            response=response,
            response_ids=token[mask].numpy(),
            finish_reason="stop" if policy.end_id in token[mask] else "length",
            actions=np.ones(int(mask.sum()), dtype=np.bool_),
        )
        for response, token, mask in zip(workplace.env.task.responses, tree.choices[1], tree.mask, strict=True)
    ]
    stated = policy.response_logprobs(blank)
    return [replace(episode, logprobs=logprobs) for episode, logprobs in zip(blank, stated, strict=True)]


def expected_gradient(agent: Mapping[str, Any], size: int) -> tuple[Tensor, Workplace, TabularPolicy, Objective]:
    """The ascent direction [S, V] of the agent's first gradient step, averaged over every batch it could be given."""
    workplace, policy, objective = away(agent, size)
    episodes, learner = episodes_of(workplace, policy), workplace.agent
    scores = workplace.env.reward.score(episodes)
    batches = Batches.of(policy.tree, size)
    chances = batches.orders * response_logprobs(policy.tree, policy.logits.detach())[batches.members].sum(1).exp()
    mean = torch.zeros_like(policy.logits)

    def look() -> float:
        assert policy.logits.grad is not None
        mean.sub_(policy.logits.grad * chance)
        policy.logits.grad = None
        return 0.0

    learner.optimizer.step = look
    for members, chance in zip(batches.members.tolist(), chances, strict=True):  # noqa: B007 - `look` reads it
        batch = Rollout.from_episodes(
            [episodes[i] for i in members], [scores[i] for i in members], pad_id=policy.pad_id, group_size=size
        )
        learner.update(batch)
    return mean.detach(), workplace, policy, objective


def of_group(**settings: Any) -> Callable[[int], dict[str, Any]]:
    """An agent's table, whose group is the batch."""
    return lambda size: {**settings, "group_size": size}


DPO = {"name": "dpo", "group_size": 2, "lr": 0.1, "schedule": "linear", "max_grad_norm": 0.0}
PPO = {"name": "ppo", "epochs": 1}
AS_ESTIMATORS: dict[str, Callable[[int], dict[str, Any]]] = {
    "REINFORCE": of_group(name="reinforce", baseline="none"),
    "REINFORCE, reward to go": of_group(name="reinforce", baseline="none", reward_to_go=True),
    "REINFORCE less batch mean": of_group(name="reinforce", baseline="batch"),
    "RLOO": of_group(name="rloo"),
    "GRPO": of_group(name="grpo"),
    "GRPO without std": of_group(name="grpo", scale_by_std=False),
    "Dr. GRPO": of_group(name="grpo", scale_by_std=False, aggregation="dr-grpo"),
    "PPO": of_group(**PPO),
    "PPO, unwhitened": of_group(**PPO, whiten_advantages=False),
    "PPO, unwhitened, lambda 1": of_group(**PPO, whiten_advantages=False, lam=1.0),
}


class TestExpectedGradients:
    """What the agent's own code makes of every batch, weighted by how likely it is."""

    @pytest.mark.parametrize("size", [2, 3])
    @pytest.mark.parametrize("name", ["REINFORCE", "REINFORCE, reward to go", "RLOO"])
    def test_reinforce_and_rloo_are_unbiased(self, name: str, size: int) -> None:  # N20, N32
        found, _, policy, objective = expected_gradient(AS_ESTIMATORS[name](size), size)
        torch.testing.assert_close(found, objective.gradient(policy.logits), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("name", AS_ESTIMATORS)
    def test_the_table_of_estimators_is_about_the_agents(self, name: str) -> None:
        found, _, policy, objective = expected_gradient(AS_ESTIMATORS[name](2), 2)
        (estimator,) = (one for one in ESTIMATORS if one.name == name)
        expected = measure(objective, policy.logits, estimator, Batches.of(policy.tree, 2))["k1 in reward"].mean
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)

    def test_every_estimator_has_its_agent(self) -> None:
        assert set(AS_ESTIMATORS) == {one.name for one in ESTIMATORS}

    @pytest.mark.parametrize("kind", ["k2", "k3"])
    def test_the_penalty_in_grpos_loss(self, kind: str) -> None:  # N20
        agent = {**AS_ESTIMATORS["Dr. GRPO"](2), "kl_in_loss": kind}
        found, _, policy, objective = expected_gradient(agent, 2)
        (estimator,) = (one for one in ESTIMATORS if one.name == "Dr. GRPO")
        placement: Placement = "k2 in loss" if kind == "k2" else "k3 in loss"
        expected = measure(objective, policy.logits, estimator, Batches.of(policy.tree, 2))[placement].mean
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)

    def test_k1_in_the_loss_is_refused(self) -> None:  # N20
        with pytest.raises(ConfigError, match="would teach nothing"):
            GRPO.Config(kl_in_loss="k1")

    @pytest.mark.parametrize("name", ["RLOO", "GRPO", "Dr. GRPO", "REINFORCE less batch mean"])
    def test_at_the_optimum_nothing_moves(self, name: str) -> None:  # N27
        """The returns of all responses are equal there, so that comparing them is exact or drowned in epsilon."""
        workplace, policy, objective = away(AS_ESTIMATORS[name](2))
        with torch.no_grad():
            policy.logits.copy_(objective.optimum)
        episodes = episodes_of(workplace, policy)
        returns = [score.total for score in workplace.env.reward.score(episodes)]
        assert max(returns) - min(returns) < 1e-12  # beta log Z
        assert abs(returns[0] - objective.optimal_value) < 1e-12
        rollout = collect(workplace.env, workplace.agent)
        norms = []
        workplace.agent.optimizer.step = lambda: norms.append(float(policy.logits.grad.norm())) or 0.0
        workplace.agent.update(rollout)
        assert norms and norms[0] < 1e-9


@pytest.mark.parametrize("view", ["response", "token"])
@pytest.mark.parametrize("name", ["reinforce", "rloo", "grpo", "ppo"])
def test_on_the_penalty_alone_the_policy_comes_back(name: str, view: str) -> None:  # N19
    settings = {"name": name, "lr": 0.05, "max_grad_norm": 0.0}
    experiment = small_experiment(settings, rewards={"kl": 0.5})
    workplace = build(replace(experiment, environment=replace(experiment.environment, num_envs=64, view=view)))
    policy, reference = workplace.setup.policy, workplace.setup.reference
    assert isinstance(policy, TabularPolicy) and isinstance(reference, TabularPolicy)
    with torch.no_grad():
        policy.logits += 2.0 * TabularPolicy(2, 2, seed=5).logits
    divergences = []
    for _ in range(4):
        pair = (response_logprobs(policy.tree, one.logits.detach()) for one in (policy, reference))
        divergences.append(float(kl(*pair)))
        workplace.agent.update(workplace.source.next(workplace.agent))
    assert divergences == sorted(divergences, reverse=True) and divergences[-1] < 0.8 * divergences[0]


@pytest.mark.parametrize("name", AGENTS)
def test_training_ends_at_the_optimum(name: str) -> None:
    """Within 1 % of the way there; `rlhf-env lab agents` trains longer, with ten seeds."""
    experiment = enumerable_experiment(AGENTS[name], seed=0)
    trained = train_exactly(replace(experiment, budget=replace(experiment.budget, updates=60)))
    assert 0.0 <= trained.shortfall <= WITHIN


def trained_long(agent: Mapping[str, Any]) -> Experiment:
    """Sixty updates of 128 responses, seven of which are different."""
    return small_experiment(agent, 128, budget={"updates": 60})


class TestOtherEnds:
    """Agents that optimise something else arrive there."""

    def test_dpo_with_ipo_answers_to_win_rates(self) -> None:
        """pi ~ reference exp(P(y beats y') / beta), y' drawn from pi itself (Azar et al. 2023, sec. 5)."""
        trained = train_exactly(trained_long({**DPO, "loss": "ipo"}))
        objective, policy = trained.objective, trained.policy
        reference = response_logprobs(objective.tree, objective.reference)
        beats = torch.sign(objective.reward[:, None] - objective.reward) / 2.0 + 0.5
        end = reference
        for _ in range(200):
            end = (0.9 * end + 0.1 * (reference + beats @ end.exp() / objective.beta)).log_softmax(0)
        again = (reference + beats @ end.exp() / objective.beta).log_softmax(0)
        torch.testing.assert_close(end, again, rtol=0, atol=1e-8)
        found = response_logprobs(objective.tree, policy.logits.detach())
        assert float(kl(found, end)) < 0.03 * float(kl(reference, end))
        assert trained.shortfall > 0.3  # which is far from the optimum of the objective

    @pytest.mark.parametrize("name", ["dpo", "kto"])
    def test_labels_that_never_err_lead_to_the_best_response(self, name: str) -> None:
        """A pair that is always labelled the same way wants an infinite margin: no finite beta holds it back."""
        trained = train_exactly(trained_long({**DPO, "name": name}))
        chances = response_logprobs(trained.objective.tree, trained.policy.logits.detach()).exp()
        assert chances[trained.objective.reward.argmax()] > 0.9
        assert float(trained.objective.kl(trained.policy.logits.detach())) > 3 * float(
            trained.objective.kl(trained.objective.optimum)
        )
        assert trained.shortfall > 1.0  # worse than the reference, as the objective sees it

    @pytest.mark.parametrize("kind", ["k2", "k3"])
    def test_grpo_with_the_penalty_in_the_loss(self, kind: str) -> None:
        """Where its own expected gradient is 0 (followed exactly), and not at the optimum."""
        settings = {"name": "grpo", "scale_by_std": False, "aggregation": "sequence-sum", "kl_in_loss": kind}
        trained = train_exactly(trained_long({**settings, "group_size": 2, "lr": 0.1, "schedule": "linear"}))
        objective, policy = trained.objective, trained.policy

        def step(logits: Tensor) -> Tensor:
            """Its group of two takes half off the reward's gradient, and nothing off the term's."""
            given = logits.clone().requires_grad_()
            (of_reward,) = torch.autograd.grad(objective.expected_reward(given), given)
            (term,) = (one for one in loss_terms(objective, logits) if (one.kind, one.level) == (kind, "token"))
            return of_reward / 2 - objective.beta * term.gradient

        (estimator,) = (one for one in ESTIMATORS if one.name == "REINFORCE less batch mean")
        placement: Placement = "k2 in loss" if kind == "k2" else "k3 in loss"
        expected = measure(objective, policy.logits, estimator, Batches.of(policy.tree, 2))[placement].mean
        torch.testing.assert_close(step(policy.logits.detach()), expected, rtol=0, atol=1e-12)
        end = objective.reference.clone()
        for _ in range(100):
            end = end + 8.0 * step(end)
        assert float(step(end).norm()) < 1e-4
        found, meant = (response_logprobs(policy.tree, one) for one in (policy.logits.detach(), end))
        assert float(kl(found, meant)) < 0.02 * float(kl(found, objective.optimal_logprobs))
        assert trained.shortfall > 2 * WITHIN

    def test_rejection_circles_the_optimum(self) -> None:
        trained = train_exactly(trained_long({**DPO, "name": "rejection"}))
        assert trained.shortfall < 0.05

    def test_best_of_n(self) -> None:
        """Chi-square over seven responses (mean 6, standard deviation 3.5)."""
        workplace, policy, objective = away({"name": "best_of_n", "n": 3}, size=4000)
        rollout = collect(workplace.env, workplace.agent)
        assert isinstance(workplace.agent, BestOfN)
        responses = workplace.env.task.responses
        seen = np.array([[episode.response for episode in rollout.episodes].count(text) for text in responses])
        own = response_logprobs(policy.tree, policy.logits.detach())
        expected = 4000 * best_of_n(own, objective.reward, 3).exp().numpy()
        assert ((seen - expected) ** 2 / expected).sum() < 6 + 4 * 3.5
        assert float(kl(best_of_n(own, objective.reward, 3), own)) <= workplace.agent.kl_bound

    def test_dpo_on_labels_that_err_as_bradley_and_terry_say_has_the_optimum(self) -> None:
        """Rafailov et al. 2023, sec. 4: then the loss over all pairs has its minimum at pi*."""
        _, policy, objective = away(DPO)
        reference = response_logprobs(policy.tree, objective.reference)
        first, second = torch.triu_indices(7, 7, offset=1)
        wrong = torch.sigmoid(objective.reward[second] - objective.reward[first])

        def gradient(logits: Tensor) -> Tensor:
            logits = logits.detach().requires_grad_()
            ratio = response_logprobs(policy.tree, logits) - reference
            loss = pair_loss(ratio[first], ratio[second], beta=objective.beta, label_smoothing=wrong).mean()
            return torch.autograd.grad(loss, logits)[0]

        assert float(gradient(objective.optimum).norm()) < 1e-12 < float(gradient(policy.logits).norm())

    def test_dpo_on_margins_has_the_optimum(self) -> None:
        """Fisch et al. 2024, eq. 7: where every margin is the difference in reward, the loss is 0 at pi*."""
        _, policy, objective = away(DPO)
        reference = response_logprobs(policy.tree, objective.reference)
        first, second = torch.triu_indices(7, 7, offset=1)
        margin = objective.reward[first] - objective.reward[second]

        def loss(logits: Tensor) -> Tensor:
            ratio = response_logprobs(policy.tree, logits) - reference
            return pair_loss(ratio[first], ratio[second], beta=objective.beta, kind="ipo", offset=margin).mean()

        assert float(loss(objective.optimum)) < 1e-24
        logits = objective.optimum.detach().requires_grad_()
        assert float(torch.autograd.grad(loss(logits), logits)[0].norm()) < 1e-12
        assert float(loss(policy.logits.detach())) > 1e-2


class TestExperiment:
    """`[policy] model = "table"`."""

    @pytest.mark.parametrize("view", ["response", "token"])
    def test_both_views_tell_the_same_story(self, view: str) -> None:
        """Another view, other draws; but what the environment pays is what the enumeration says."""
        experiment = small_experiment({"name": "grpo"}, 256)
        workplace = build(replace(experiment, environment=replace(experiment.environment, view=view)))
        policy, reference = workplace.setup.policy, workplace.setup.reference
        assert isinstance(policy, TabularPolicy) and isinstance(reference, TabularPolicy)
        with torch.no_grad():
            policy.logits += TabularPolicy(2, 2, seed=5, init_std=0.2).logits
        objective = Objective.of_task(workplace.env.task, reference, 0.5)
        own = response_logprobs(policy.tree, policy.logits.detach())
        worth = objective.reward - 0.5 * (own - response_logprobs(policy.tree, objective.reference))
        rollout = workplace.source.next(workplace.agent)
        numbers = [workplace.env.task.responses.index(episode.response) for episode in rollout.episodes]
        torch.testing.assert_close(rollout.returns(), worth[numbers], rtol=0, atol=1e-12)
        torch.testing.assert_close(rollout.logprobs.sum(1), own[numbers], rtol=0, atol=1e-12)
        assert len(set(numbers)) == 7

    def test_a_table_needs_an_alphabet_and_one_prompt(self) -> None:
        policy = {"model": "table", "dtype": "float64"}
        for tokenizer in ({}, {"tokenizer": "bytes"}):
            with pytest.raises(ConfigError, match="needs a tokenizer of few symbols"):
                build(small_experiment({"name": "grpo"}, 4, policy={**policy, **tokenizer}))
        for task, size in (("increasing", 5), ("echo", "unbounded")):
            with pytest.raises(ConfigError, match=f"answers one prompt, and the task has {size}"):
                build(
                    small_experiment(
                        {"name": "grpo"}, 4, task={"name": task}, policy={**policy, "tokenizer": "alphabet:0123456789<"}
                    )
                )

    def test_another_task_or_policy_has_no_known_optimum(self) -> None:
        tiny = {"model": "tiny", "tokenizer": "alphabet:ab", "dtype": "float64"}
        with pytest.raises(ConfigError, match="a table of logits"):
            train_exactly(small_experiment({"name": "grpo"}, 4, policy=tiny))
        one_letter = {"name": "count"}
        with pytest.raises(ConfigError, match="not for Count"):
            train_exactly(
                small_experiment(
                    {"name": "grpo"}, 4, task=one_letter, policy={**tiny, "model": "table", "tokenizer": "alphabet:a:"}
                )
            )


def test_the_command_counts_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Reached("one", (0.005, 0.02)), Reached("other", (0.0, WITHIN))]
    monkeypatch.setattr(exact_agents, "reach", lambda seeds: found if seeds == 2 else [])
    answer = CliRunner().invoke(app, ["lab", "agents", "--seeds", "2"])
    assert "3 of 4 within 1 %" in answer.output and "1 of 2" in answer.output and "1.25 %" in answer.output
