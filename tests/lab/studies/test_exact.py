"""The enumerable world: its optimum, its gradients, what every estimator expects, and where DPO goes astray."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from rlhf_env.cli.main import app
from rlhf_env.envs.toy_tasks import Enumerable
from rlhf_env.errors import ConfigError
from rlhf_env.lab.studies.exact.estimators import (
    ESTIMATORS,
    Batches,
    Estimator,
    MeasuredEstimate,
    Placement,
    example,
    loss_terms,
    measure,
)
from rlhf_env.lab.studies.exact.world import (
    Objective,
    best_of_n,
    kl,
    response_logprobs,
    table_of,
    three_responses,
    token_logprobs,
    tree_of_actions,
)
from rlhf_env.learning.functional import kl_estimate
from rlhf_env.policies import ResponseTree, TabularPolicy
from rlhf_env.types import Episode, Prompt

EXACT = 1e-12
WORLDS = [(4, 3, 0.5, 0), (2, 3, 0.1, 1), (3, 1, 2.0, 2), (1, 4, 1.0, 3)]  # symbols, longest, beta, seed


def world(symbols: int = 4, longest: int = 3, beta: float = 0.5, seed: int = 0) -> tuple[Objective, Tensor]:
    """An objective, and a policy between its reference and nowhere."""
    return example(symbols, longest, beta, seed)


def small() -> tuple[Objective, Tensor]:
    """Seven responses."""
    return world(2, 2)


def assert_near(given: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    torch.testing.assert_close(given, expected, rtol=0, atol=tolerance)


def probabilities(objective: Objective, logits: Tensor) -> dict[str, float]:
    """Of every response, multiplied out by hand."""
    task = Enumerable("abcdefg"[: objective.tree.symbols], objective.tree.longest)
    chances = {}
    for text in task.responses:
        chance = 1.0
        for place in range(min(len(text) + 1, task.longest)):
            weights = np.exp(logits[task.responses.index(text[:place])].numpy())
            choice = task.symbols.index(text[place]) if place < len(text) else -1
            chance *= weights[choice] / weights.sum()
        chances[text] = chance
    return chances


class TestObjective:
    @pytest.mark.parametrize("given", WORLDS)
    def test_the_definition(self, given: tuple[int, int, float, int]) -> None:
        objective, logits = world(*given)
        p, q = probabilities(objective, logits), probabilities(objective, objective.reference)
        assert abs(sum(p.values()) - 1.0) <= EXACT
        reward = Enumerable("abcdefg"[: given[0]], given[1], given[3]).rewards
        expected_reward = sum(p[y] * r for y, r in zip(p, reward, strict=True))
        divergence = sum(p[y] * math.log(p[y] / q[y]) for y in p)
        backward = sum(q[y] * math.log(q[y] / p[y]) for y in p)
        assert abs(float(objective.expected_reward(logits)) - expected_reward) <= EXACT
        assert abs(float(objective.kl(logits)) - divergence) <= EXACT
        assert abs(float(objective.forward_kl(logits)) - backward) <= EXACT
        assert abs(float(objective.value(logits)) - (expected_reward - given[2] * divergence)) <= EXACT

    @pytest.mark.parametrize("given", WORLDS)
    def test_the_optimum(self, given: tuple[int, int, float, int]) -> None:
        """Every policy falls short of J* by exactly beta * KL(policy || pi*)."""
        objective, logits = world(*given)
        best = objective.optimal_logprobs
        weights = response_logprobs(objective.tree, objective.reference).exp() * (objective.reward / given[2]).exp()
        assert_near(best.exp(), weights / weights.sum())
        assert abs(float(objective.value(objective.optimum)) - objective.optimal_value) <= EXACT
        assert float(objective.gradient(objective.optimum).abs().max()) <= EXACT
        for policy in (logits, objective.reference, torch.zeros_like(logits)):
            short = objective.optimal_value - float(objective.value(policy))
            assert abs(short - given[2] * float(kl(response_logprobs(objective.tree, policy), best))) <= EXACT
            assert short > 0.0
        assert abs(objective.shortfall(objective.optimum)) <= EXACT
        assert objective.shortfall(objective.reference) == 1.0

    @pytest.mark.parametrize("given", WORLDS)
    def test_the_gradient_is_the_policy_gradient(self, given: tuple[int, int, float, int]) -> None:
        """sum over y of p(y) (r(y) - beta log p(y)/q(y)) d log p(y), with the softmax's derivative by hand."""
        objective, logits = world(*given)
        tree = objective.tree
        p = response_logprobs(tree, logits)
        worth = p.exp() * (objective.reward - objective.beta * (p - response_logprobs(tree, objective.reference)))
        expected = torch.zeros_like(logits)
        for number in range(tree.responses):
            for state, token in zip(*(choice[number][tree.mask[number]] for choice in tree.choices), strict=True):
                expected[state] -= worth[number] * logits[state].softmax(0)
                expected[state, token] += worth[number]
        assert_near(objective.gradient(logits), expected)

    def test_divergences_add_up_over_states(self) -> None:
        """The chain rule: KL of responses is the sum over states of how often they are seen times their own KL."""
        objective, logits = world()
        p, q = logits.log_softmax(-1), objective.reference.log_softmax(-1)
        assert abs(float(visits(objective, logits) @ (p.exp() * (p - q)).sum(1) - objective.kl(logits))) <= EXACT
        assert float(objective.kl(objective.reference)) == 0.0  # N16: exactly
        assert float(objective.forward_kl(objective.reference)) == 0.0

    @pytest.mark.parametrize("given", WORLDS)
    def test_a_distribution_has_one_table(self, given: tuple[int, int, float, int]) -> None:
        objective, logits = world(*given)
        back = table_of(objective.tree, response_logprobs(objective.tree, logits))
        assert_near(back.log_softmax(-1), logits.log_softmax(-1))

    def test_numbers_that_do_not_fit(self) -> None:
        tree, reward, reference = ResponseTree(2, 2), torch.zeros(7), torch.zeros(3, 3)
        with pytest.raises(ConfigError) as caught:
            Objective(tree, reward[1:], reference[1:], 0.0)
        assert len(caught.value.problems) == 3
        with pytest.raises(ConfigError, match="do not belong together"):
            Objective.of_task(Enumerable("ab", 2), TabularPolicy(2, 3), 0.5)

    def test_the_reference_is_read_at_its_temperature(self) -> None:
        from rlhf_env.policies import Sampling

        reference = TabularPolicy(2, 2, sampling=Sampling(temperature=2.0))
        objective = Objective.of_task(Enumerable("ab", 2), reference, 0.5)
        episode = Episode(Prompt("p", "a"), np.array([0]), "b", np.array([1, 2]), "stop", np.ones(2, bool))
        stated = reference.response_logprobs([episode])[0].sum()
        assert abs(float(response_logprobs(objective.tree, objective.reference)[2]) - stated) <= EXACT


def visits(objective: Objective, logits: Tensor) -> Tensor:
    """[S]: how likely a text passes each state."""
    tree = objective.tree
    chances, state = response_logprobs(tree, logits).exp(), tree.choices[0]
    return torch.stack([chances[((state == s) & tree.mask).any(1)].sum() for s in range(tree.states)])


class TestBestOfN:
    @pytest.mark.parametrize("n", [1, 2, 3])
    @pytest.mark.parametrize("ties", [False, True])
    def test_against_every_way_to_draw(self, n: int, ties: bool) -> None:
        objective, logits = small()
        reward = objective.reward.round() if ties else objective.reward
        assert len(reward.unique()) == (3 if ties else 7)
        logprobs = response_logprobs(objective.tree, logits)
        expected = torch.zeros(7, dtype=torch.float64)
        for drawn in itertools.product(range(7), repeat=n):
            best = max(drawn, key=lambda y: float(reward[y]))  # the first of equals
            expected[best] += logprobs[list(drawn)].sum().exp()
        assert_near(best_of_n(logprobs, reward, n).exp(), expected)

    @pytest.mark.parametrize("n", [1, 2, 4, 16, 1000])
    def test_its_divergence_is_within_the_bound(self, n: int) -> None:
        for seed in range(5):
            objective, logits = world(seed=seed)
            logprobs = response_logprobs(objective.tree, logits)
            bound = math.log(n) - (n - 1) / n
            divergence = float(kl(best_of_n(logprobs, objective.reward, n), logprobs))
            tied = float(kl(best_of_n(logprobs, objective.reward.round(), n), logprobs))
            assert -EXACT <= tied <= divergence + EXACT <= bound + 2 * EXACT
            assert n == 1 or 0.1 * bound < divergence < bound  # a bound, and not far off

    def test_many_draws_of_something_rare(self) -> None:
        """1 - (1 - p)^n where (1 - p) rounds to 1."""
        logprobs = torch.tensor([math.log1p(-1e-18), math.log(1e-18)], dtype=torch.float64)
        rare = best_of_n(logprobs, torch.tensor([0.0, 1.0]), 10)
        assert abs(float(rare[0])) <= EXACT
        with pytest.raises(ConfigError, match="n must be at least 1"):
            best_of_n(logprobs, torch.tensor([0.0, 1.0]), 0)


class TestBatches:
    @pytest.mark.parametrize("size", [2, 3])
    def test_each_is_there_as_often_as_it_is_drawn(self, size: int) -> None:
        objective, logits = small()
        batches = Batches.of(objective.tree, size)
        assert batches.orders.sum() == 7**size
        drawn = [tuple(sorted(some)) for some in itertools.product(range(7), repeat=size)]
        for members, orders in zip(batches.members.tolist(), batches.orders.tolist(), strict=True):
            assert drawn.count(tuple(members)) == orders
        chances = response_logprobs(objective.tree, logits)[batches.members].sum(1).exp()
        assert abs(float(batches.orders @ chances) - 1.0) <= EXACT

    def test_what_cannot_be_summed_over_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="85 responses make 2,331,890 batches of 4"):
            Batches.of(ResponseTree(4, 3), 4)
        with pytest.raises(ConfigError, match="at least 2"):
            Batches.of(ResponseTree(4, 3), 1)


@cache
def found(name: str, size: int = 2, symbols: int = 2, longest: int = 2) -> dict[Placement, MeasuredEstimate]:
    objective, logits = world(symbols, longest)
    (estimator,) = (one for one in ESTIMATORS if one.name == name)
    return measure(objective, logits, estimator, Batches.of(objective.tree, size))


class TestEstimators:
    @pytest.mark.parametrize("name", ["REINFORCE", "REINFORCE, reward to go", "RLOO"])
    @pytest.mark.parametrize(("size", "symbols", "longest"), [(2, 4, 3), (2, 2, 2), (3, 2, 2), (4, 2, 2)])
    def test_the_unbiased_ones_are(self, name: str, size: int, symbols: int, longest: int) -> None:  # N20, N32
        one = found(name, size, symbols, longest)["k1 in reward"]
        assert_near(one.mean, one.exact)
        assert one.bias <= EXACT and abs(one.cosine - 1.0) <= EXACT and one.noise > 1.0

    @pytest.mark.parametrize("size", [2, 3, 4])
    def test_a_baseline_that_includes_itself_shortens_the_gradient(self, size: int) -> None:  # N32
        """By (n - 1) / n; and Dr. GRPO's by another constant, the longest response."""
        one = found("REINFORCE less batch mean", size)["k1 in reward"]
        assert_near(one.mean, one.exact * (size - 1) / size)
        one = found("Dr. GRPO", size)["k1 in reward"]
        assert_near(one.mean, one.exact * (size - 1) / size / 2)

    @pytest.mark.parametrize(
        "name", ["GRPO", "GRPO without std", "PPO", "PPO, unwhitened", "PPO, unwhitened, lambda 1"]
    )
    def test_the_others_point_elsewhere(self, name: str) -> None:
        assert found(name)["k1 in reward"].cosine < 0.999

    @pytest.mark.parametrize("name", ["PPO, unwhitened", "PPO, unwhitened, lambda 1"])
    def test_what_is_wrong_with_them_is_length(self, name: str) -> None:
        """Where every response is one token long, nothing is."""
        one = found(name, 2, 3, 1)["k1 in reward"]
        assert_near(one.mean, one.exact)
        one = found("GRPO without std", 2, 3, 1)["k1 in reward"]
        assert_near(one.mean, one.exact / 2)

    def test_whitening_needs_a_batch(self) -> None:
        """Over two responses PPO's whitened advantages point away from the gradient; over six nearly along it."""
        cosines = [found("PPO", size)["k1 in reward"].cosine for size in (2, 3, 4, 6)]
        assert cosines == sorted(cosines) and cosines[0] < 0.0 and cosines[-1] > 0.9

    def test_k1_in_the_loss_teaches_nothing(self) -> None:  # N20
        """What is left is the gradient of the expected reward, without any penalty."""
        objective, logits = small()
        given = logits.clone().requires_grad_()
        (expected,) = torch.autograd.grad(objective.expected_reward(given), given)
        for name in ("REINFORCE", "REINFORCE, reward to go", "RLOO"):
            assert_near(found(name)["k1 in loss"].mean, expected)
        assert float((expected - objective.gradient(logits)).norm()) > 0.1 * float(expected.norm())

    @pytest.mark.parametrize("placement", ["k2 in loss", "k3 in loss"])
    def test_other_terms_in_the_loss_are_biased(self, placement: Placement) -> None:
        for name in ("REINFORCE", "RLOO"):
            assert found(name)[placement].bias > 0.01
            one = found(name, 2, 3, 1)["k2 in loss"]
            assert_near(one.mean, one.exact)  # of a single token, k2 has the gradient of the penalty

    def test_the_spread_is_that_of_a_mean_of_independent_gradients(self) -> None:
        objective, logits = small()
        p = response_logprobs(objective.tree, logits)
        worth = objective.reward - objective.beta * (p - response_logprobs(objective.tree, objective.reference))
        gradients = torch.stack([score(objective, logits, number) * worth[number] for number in range(7)])
        variance = float(p.exp() @ (gradients - objective.gradient(logits)).square().sum((1, 2)))
        for size in (2, 3):
            assert abs(found("REINFORCE", size)["k1 in reward"].spread ** 2 - variance / size) <= EXACT

    def test_the_spread_of_rloo(self) -> None:
        """Of a pair, RLOO's gradient is (R_0 - R_1) (s_0 - s_1) / 2."""
        objective, logits = small()
        p = response_logprobs(objective.tree, logits)
        worth = objective.reward - objective.beta * (p - response_logprobs(objective.tree, objective.reference))
        scores = [score(objective, logits, number) for number in range(7)]
        variance = 0.0
        for i, j in itertools.product(range(7), repeat=2):
            gradient = (worth[i] - worth[j]) * (scores[i] - scores[j]) / 2
            variance += float((p[i] + p[j]).exp() * (gradient - objective.gradient(logits)).square().sum())
        assert abs(found("RLOO")["k1 in reward"].spread ** 2 - variance) <= EXACT

    @pytest.mark.parametrize(
        "estimator", [one for one in ESTIMATORS if one.name.endswith(("GRPO", "std", "RLOO", "mean"))]
    )
    def test_nothing_is_left_to_learn_at_the_optimum(self, estimator: Estimator) -> None:  # N27
        """All returns are equal there, but for rounding: what compares them has neither a gradient nor noise."""
        objective, _ = small()
        one = measure(objective, objective.optimum, estimator, Batches.of(objective.tree, 2))["k1 in reward"]
        assert float(one.mean.abs().max()) < 1e-9 and one.spread < 1e-9


def score(objective: Objective, logits: Tensor, number: int) -> Tensor:
    """[S, V]: d log p of one response."""
    given = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(response_logprobs(objective.tree, given)[number], given)
    return gradient


class TestLossTerms:
    """N20: what each KL estimate teaches, differentiated."""

    @pytest.mark.parametrize("given", WORLDS)
    def test_of_whole_responses(self, given: tuple[int, int, float, int]) -> None:
        objective, logits = world(*given)
        terms = {term.kind: term.gradient for term in loss_terms(objective, logits) if term.level == "response"}
        table = logits.clone().requires_grad_()
        assert_near(terms["k1"], torch.zeros_like(logits))
        assert_near(terms["k2"], torch.autograd.grad(objective.kl(table), table)[0])
        assert_near(terms["k3"], torch.autograd.grad(objective.forward_kl(table), table)[0])

    @pytest.mark.parametrize("given", WORLDS)
    def test_of_tokens(self, given: tuple[int, int, float, int]) -> None:
        """The next token's divergence in each state, weighted by how often the policy comes there."""
        objective, logits = world(*given)
        terms = {term.kind: term.gradient for term in loss_terms(objective, logits) if term.level == "token"}
        table, q = logits.clone().requires_grad_(), objective.reference.log_softmax(-1)
        p, seen = table.log_softmax(-1), visits(objective, logits)
        assert_near(terms["k1"], torch.zeros_like(logits))
        per_state = seen @ (p.exp() * (p - q)).sum(1)
        assert_near(terms["k2"], torch.autograd.grad(per_state, table, retain_graph=True)[0])
        assert_near(terms["k3"], torch.autograd.grad(seen @ (q.exp() * (q - p)).sum(1), table)[0])

    def test_where_texts_have_one_token_both_are_the_same(self) -> None:
        terms = loss_terms(*world(3, 1))
        for token, response in zip(terms[:4], terms[4:], strict=True):
            assert (token.kind, token.level, response.level) == (response.kind, "token", "response")
            assert_near(token.gradient, response.gradient)

    def test_as_values_they_are_fine(self) -> None:  # N16
        objective, logits = world()
        own, other = token_logprobs(objective.tree, logits), token_logprobs(objective.tree, objective.reference)
        chances = own.sum(1).exp()
        for kind in ("k1", "k3"):
            assert abs(float(chances @ kl_estimate(own, other, kind).sum(1) - objective.kl(logits))) <= EXACT
        for kind in ("k2", "k3"):
            assert (kl_estimate(own, other, kind) >= 0.0).all()

    def test_in_low_precision(self) -> None:  # N16
        """Logits in bfloat16 give the divergence that the very same logits give in float64, to 1e-3."""
        low, low_reference = (TabularPolicy(4, 3, seed=seed, init_std=1.0, dtype=torch.bfloat16) for seed in (0, 1))
        tree = low.tree
        exact = kl(*(response_logprobs(tree, one.logits.detach().double()) for one in (low, low_reference)))
        episodes = [
            Episode(Prompt("p", "a"), np.array([0]), "", token[mask].numpy(), "stop", np.ones(int(mask.sum()), bool))
            for token, mask in zip(tree.choices[1], tree.mask, strict=True)
        ]
        p, q = ([row.sum() for row in one.response_logprobs(episodes)] for one in (low, low_reference))
        measured = sum(math.exp(one) * (one - other) for one, other in zip(p, q, strict=True))
        assert abs(measured / float(exact) - 1.0) < 1e-3

    def test_a_step_on_the_penalty_alone_brings_the_policy_back(self) -> None:  # N19
        objective, logits = world()
        only = Objective(objective.tree, torch.zeros_like(objective.reward), objective.reference, objective.beta)
        estimators = {one.name: one for one in ESTIMATORS}
        for name in ("REINFORCE", "RLOO", "GRPO", "Dr. GRPO", "PPO, unwhitened"):
            step = measure(only, logits, estimators[name], Batches.of(only.tree, 2))["k1 in reward"].mean
            assert float(only.kl(logits + 0.1 * step)) < float(only.kl(logits))


class TestDPOGoesAstray:
    def test_a_response_that_no_preference_mentions_gets_the_mass(self) -> None:
        """Xu et al. 2024: y0 before y1, and DPO writes y2, which the reference hardly knows."""
        three = three_responses(unseen=0.01)
        before = three.train(beta=0.5, steps=0).exp()
        assert_near(before, torch.tensor([0.495, 0.495, 0.01], dtype=torch.float64))
        after = three.train(beta=0.5, steps=1000)
        assert float(three.loss(after, 0.5)) < 0.01 < float(three.loss(before.log(), 0.5))
        assert after.exp()[2] > 0.99 and after.exp()[0] < before[0] and after.exp()[1] < before[1]

    def test_the_loss_cannot_tell(self) -> None:
        """Whatever y2 gets, the loss is the same; nothing but the parametrisation keeps a policy from it."""
        three = three_responses()
        losses = [
            three.loss(torch.tensor([0.9 * (1 - mass), 0.1 * (1 - mass), mass], dtype=torch.float64).log(), 0.5)
            for mass in (0.0, 0.5, 0.999)
        ]
        assert_near(torch.stack(losses), losses[0].expand(3))

    @pytest.mark.parametrize("beta", [0.1, 0.5])
    def test_the_penalised_objective_can(self, beta: float) -> None:
        """With any reward that ranks y2 no higher than y0, pi* writes it no more, next to y0, than the reference."""
        three = three_responses()
        for reward in ([1.0, 0.0, 0.0], [1.0, 0.0, 1.0]):
            best = (three.reference + torch.tensor(reward, dtype=torch.float64) / beta).log_softmax(0).exp()
            assert best[2] / best[0] <= 0.01 / 0.495 + EXACT

    def test_in_a_tree_both_paths_that_were_compared_are_abandoned(self) -> None:
        """Rafailov et al. 2024: a0 a1 before a0 a2, and DPO takes a1 a1."""
        tree = tree_of_actions()
        before, after = tree.train(beta=0.5, steps=0).exp(), tree.train(beta=0.5, steps=1000)
        assert_near(before, torch.full((9,), 1 / 9, dtype=torch.float64))
        assert float(tree.loss(after, 0.5)) < 0.01
        after = after.exp()
        assert after[4] > 0.99  # a1 a1, which no preference mentions
        assert after[1] < 0.01 and after[2] < 0.01  # the one that was preferred, too

    def test_the_tree(self) -> None:
        tree = tree_of_actions(3)
        assert tree.features.shape == (27, 3) and (tree.features.sum(1) == 3).all()
        assert tree.features[tree.chosen].tolist() == [2, 1, 0] and tree.features[tree.rejected].tolist() == [2, 0, 1]
        theta = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
        of_actions = theta.log_softmax(0)
        assert_near(tree.logprobs(theta), tree.features @ of_actions)  # the product of pi(action)
        with pytest.raises(ConfigError, match="depth of at least 1"):
            tree_of_actions(0)


class TestCommand:
    def test_the_tables(self) -> None:
        answer = CliRunner(env={"COLUMNS": "80"}).invoke(
            app, ["lab", "exact", "--symbols", "2", "--longest", "2", "--batch", "3"]
        )
        assert answer.exit_code == 0, answer.output
        rows = {line.split("│")[1].strip(): line for line in answer.output.splitlines() if line.startswith("│")}
        assert {one.name for one in ESTIMATORS} <= set(rows)
        assert "over all 84 batches of 3 responses" in answer.output
        assert [cell.strip() for cell in rows["RLOO"].split("│")[2:5]] == ["k1 in reward", "0", "1.000"]
        assert rows["k3, whole response"].split("│")[4].split() == ["1.000", "0"]
        objective, logits = world(2, 2)
        assert rows["sigmoid"].split("│")[-2].strip() == rows["dr-grpo"].split("│")[-2].strip() == "0.0 %"
        assert rows["dr-grpo"].split("│")[4].strip() == "1.000"
        assert f"{objective.optimal_value:.4f}" in rows["optimal"]
        assert f"{float(objective.kl(logits)):.4f}" in rows["the one below"]

    def test_what_it_cannot_do(self) -> None:
        for wrong in (["--beta", "0"], ["--beta", "inf"], ["--batch", "4"], ["--longest", "40"]):
            assert isinstance(CliRunner().invoke(app, ["lab", "exact", *wrong]).exception, ConfigError)
