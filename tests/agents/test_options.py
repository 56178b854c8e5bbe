"""Options: what a token's probability is, credit to manager and writers, and that both learn and resume."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_agents.options import Options, marginal_logprobs, shares_by_place, told_apart
from rlhf_agents.ppo import PPO
from rlhf_agents.random import Random
from rlhf_agents.reference import Reference
from torch import Tensor

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.rollout import Rollout
from rlhf_env.policies import Sampling

VIEWS = {"token": {"whole_responses": False}, "segment": {"action_length": 2}, "response": {}}


@pytest.fixture(params=VIEWS.values(), ids=VIEWS)
def view(request) -> dict[str, Any]:
    return request.param


def options(setup: Any, **settings: Any) -> Options:
    return Options(setup, Options.Config(**{"optimization": Optimization(lr=3e-3), **settings}))


def with_opinions(agent: Options, size: float = 0.2) -> Options:
    """Writers that differ, and heads that say something."""
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters(agent):
            parameter.add_(size * torch.randn(parameter.shape, generator=stream, dtype=parameter.dtype))
    return agent


def drop_out(agent: Options) -> None:
    """What an agent that leaves dropout on would do."""
    for writer in agent.writers:
        writer.train()


def parameters(agent: Options) -> list[Tensor]:
    return [
        *(parameter for writer in agent.writers for parameter in writer.parameters()),
        *agent.bids.parameters(),
        *agent.values.parameters(),
    ]


def first_gradient(agent: Options, rollout: Rollout) -> Tensor:
    """Of both levels and the critic, as one vector; the agent is not changed."""

    class Looked(Exception):
        pass

    def look() -> float:
        raise Looked

    step, order = agent.optimizer.step, agent._order.bit_generator.state
    agent.optimizer.step = look  # type: ignore[method-assign]
    with pytest.raises(Looked):
        agent.update(rollout)
    agent.optimizer.step, agent._order.bit_generator.state = step, order  # type: ignore[method-assign]
    found = flat([parameter.grad for parameter in parameters(agent)], agent)
    for parameter in parameters(agent):
        parameter.grad = None
    return found


def flat(gradients: Sequence[Tensor | None], agent: Options) -> Tensor:
    """One vector; zero where nothing depends on a parameter."""
    pairs = zip(gradients, parameters(agent), strict=True)
    return torch.cat([(torch.zeros_like(p) if gradient is None else gradient).flatten() for gradient, p in pairs])


def on_paper(agent: Options, ids: list[int], start: int, segment: int) -> list[tuple[Tensor, Tensor]]:
    """For each segment of one text, log mu [K] where it begins and log pi of its tokens [K, tokens], no padding."""
    tokens = torch.tensor([ids])
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    where = everywhere.clone()
    where[:, :start] = False
    seen = [writer.evaluate(tokens, everywhere, where) for writer in agent.writers]
    rows = []
    for begin in range(start, len(ids), segment):
        bids = torch.stack([head(s.hidden[0, begin]) for head, s in zip(agent.bids, seen, strict=True)])
        written = torch.stack([s.logprobs[0, begin : begin + segment] for s in seen])  # [K, tokens]
        rows.append((bids.log_softmax(0), written))
    return rows


# ---------------------------------------------------------------- probabilities


def test_the_marginal_of_a_segment_by_hand() -> None:
    """Two options at 1/4 and 3/4; they give the first token 1/2 and 1/10, the second 1/5 and 4/5."""
    choice = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    written = torch.tensor([[[0.5, 0.1], [0.2, 0.8], [1.0, 1.0]]], dtype=torch.float64).log()
    first = 0.25 * 0.5 + 0.75 * 0.1
    both = 0.25 * 0.5 * 0.2 + 0.75 * 0.1 * 0.8
    expected = torch.tensor([[first, both / first, 1.0]], dtype=torch.float64).log()
    torch.testing.assert_close(marginal_logprobs(choice, written), expected, rtol=0, atol=1e-15)


def test_what_is_stated_is_the_probability_of_the_text(make_world, view) -> None:
    """Summed over every sequence of options that could have written it; so the KL part is that of the texts."""
    world = make_world(rows=4, length=5, **view)
    agent = with_opinions(options(world.setup))
    rollout = world.rollout(agent)
    segment = world.setup.action_length
    against = world.setup.reference.response_logprobs(rollout.episodes)
    for row, episode in enumerate(rollout.episodes):
        start = len(episode.prompt_ids)
        with torch.no_grad():
            segments = on_paper(agent, episode.ids.tolist(), start, segment)
        paths = [
            sum(float(choice[z] + written[z].sum()) for z, (choice, written) in zip(path, segments, strict=True))
            for path in itertools.product(range(2), repeat=len(segments))
        ]
        text = float(np.logaddexp.reduce(paths))
        assert abs(float(rollout.logprobs[row].sum()) - text) < 1e-10
        kl = float(rollout.scores[row].raw["kl"])
        assert abs(kl - (against[row].sum() - text)) < 1e-10
        extras = {name: values[row][rollout.actions[row]] for name, values in rollout.extras.items()}
        for place, (choice, written) in enumerate(segments):
            here = slice(place * segment, (place + 1) * segment)
            z = int(extras["option"][here][0])
            assert set(extras["option"][here].tolist()) == {float(z)}
            assert extras["segment_start"][here].tolist() == [1.0] + [0.0] * (written.shape[1] - 1)
            assert (extras["option_logprob"][here] - choice[z]).abs().max() < 1e-10
            assert (extras["writer_logprob"][here] - written[z]).abs().max() < 1e-10
    assert {0.0, 1.0} == set(rollout.extras["option"][rollout.actions].tolist())


def test_options_are_chosen_as_often_as_their_bids_say(make_world) -> None:
    world = make_world(rows=512, length=1)
    agent = options(world.setup, options=3)
    with torch.no_grad():
        for bias, head in zip([0.2, 0.3, 0.5], agent.bids, strict=True):
            head.bias.fill_(np.log(bias))
    rollout = world.rollout(agent)
    counts = np.bincount(rollout.extras["option"][rollout.actions].long(), minlength=3)
    # Five standard errors: 0.11 of 512 draws.
    assert np.abs(counts / 512 - [0.2, 0.3, 0.5]).max() < 0.11


def test_a_beginner_writes_as_the_reference(make_world, view) -> None:
    world = make_world(rows=8, **view)
    rollout = world.rollout(options(world.setup, options=3))
    assert rollout.part("kl").abs().max() < 1e-12


@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_the_first_ratio_is_one(make_world, view, temperature: float) -> None:  # N10, N12, N15
    world = make_world(rows=8, sampling=Sampling(temperature=temperature), dropout=0.2, **view)
    agent = with_opinions(options(world.setup, epochs=1))
    drop_out(agent)
    rollout = world.rollout(agent)
    drop_out(agent)
    metrics = agent.update(rollout)
    assert abs(metrics["approx_kl"]) < 1e-12 and abs(metrics["option_kl"]) < 1e-12
    assert abs(metrics["policy_loss"]) < 1e-10  # whitened advantages at ratio 1


# ---------------------------------------------------------------- credit


def test_both_levels_get_their_share_of_the_policy_gradient(make_world, view) -> None:
    """Without critic and whitening: -(return to go) of log mu where a segment begins, and of log pi of each token."""
    world = make_world(rows=8, length=5, **view)
    agent = with_opinions(options(world.setup, value_coefficient=0.0, whiten_advantages=False, lam=1.0))
    with torch.no_grad():
        for head in agent.values:
            head.weight.zero_()
            head.bias.zero_()
    rollout = world.rollout(agent)
    loss = torch.zeros((), dtype=torch.float64)
    for row, episode in enumerate(rollout.episodes):
        start, segment = len(episode.prompt_ids), world.setup.action_length
        to_go = rollout.rewards()[row, start : len(episode.ids)].flip(0).cumsum(0).flip(0)
        for place, (choice, written) in enumerate(on_paper(agent, episode.ids.tolist(), start, segment)):
            first = place * segment
            z = int(rollout.extras["option"][row, start + first])
            loss = loss - to_go[first] * choice[z] - (to_go[first : first + segment] * written[z]).sum()
    loss = loss / rollout.actions.sum()
    expected = flat(torch.autograd.grad(loss, parameters(agent), allow_unused=True), agent)
    torch.testing.assert_close(first_gradient(agent, rollout), expected, rtol=0, atol=1e-12)
    bids = slice(-4 * 17, -2 * 17)
    assert expected[bids].abs().max() > 1e-3, "the manager is given credit"


@pytest.mark.parametrize(("segment", "diversity"), [(1, 0.0), (2, 0.7)])
def test_the_expected_gradient_is_that_of_the_objective(enumerate_world, segment: int, diversity: float) -> None:  # N20
    """Over all decisions of both levels: E[gradient] is that of E[reward] - beta KL(texts || reference), exactly.

    Whatever the critic says: a baseline changes no expectation. The KL is that of the marginal distribution of texts.
    With a diversity coefficient, the mutual information of options and segments is a part of the objective, and what
    is paid for it has that expectation. It is computed from entropies here: H(segment) - H(segment | option).
    """
    beta = 0.3
    views = {1: {"whole_responses": False}, 2: {}}
    enumerated = enumerate_world(length=2, rows=1, kl=beta, **views[segment])
    world, answers = enumerated.world, enumerated.answers
    settings: dict[str, Any] = {"value_coefficient": 0.0, "whiten_advantages": False, "lam": 1.0}
    agent = with_opinions(options(world.setup, diversity_coefficient=diversity, **settings))
    expected = torch.zeros(sum(parameter.numel() for parameter in parameters(agent)), dtype=torch.float64)
    likely: list[Tensor] = []
    paid_for_diversity = 0.0
    after: dict[tuple[int, ...], dict[tuple[int, ...], Tensor]] = {}  # [K]: log mu(z) and log pi_z(segment), by text
    reached: dict[tuple[int, ...], Tensor] = {}
    for row, answer in enumerate(answers.episodes):
        ids, start = answer.ids.tolist(), len(answer.prompt_ids)
        decisions = on_paper(agent, ids, start, segment)
        marginals = [marginal_logprobs(choice[None], written.T[None])[0] for choice, written in decisions]
        likely.append(torch.cat(marginals).sum())
        for place, (choice, written) in enumerate(decisions):
            before, here = tuple(ids[: start + place * segment]), tuple(ids[start + place * segment :][:segment])
            reached[before] = sum((it.sum() for it in marginals[:place]), torch.zeros((), dtype=torch.float64)).exp()
            after.setdefault(before, {})[here] = torch.stack([choice, written.sum(1)])
        stated = replace(answer, logprobs=torch.cat(marginals).detach().numpy())
        text = answers.select([row])
        logprobs = torch.zeros(text.tokens.shape, dtype=torch.float64)
        text = replace(
            text,
            episodes=(stated,),
            scores=tuple(world.env.reward.score([stated])),
            logprobs=logprobs.masked_scatter(text.actions, torch.cat(marginals).detach()),
        )
        for path in itertools.product(range(2), repeat=len(decisions)):
            picked = [(choice[z].detach(), of[z].detach()) for (choice, of), z in zip(decisions, path, strict=True)]
            sizes = [len(of) for _, of in picked]
            first = [float(token == 0) for size in sizes for token in range(size)]
            decided = {
                "option": torch.cat([torch.full((n,), float(z)) for z, n in zip(path, sizes, strict=True)]).double(),
                "segment_start": torch.tensor(first, dtype=torch.float64),
                "option_logprob": torch.cat([choice.expand(len(of)) for choice, of in picked]),
                "writer_logprob": torch.cat([of for _, of in picked]),
            }
            nothing = torch.zeros(text.tokens.shape, dtype=torch.float64)
            extras = {name: nothing.masked_scatter(text.actions, values) for name, values in decided.items()}
            decided_text = text.with_extras(**extras)
            chance = float(sum(choice + of.sum() for choice, of in picked).exp())  # type: ignore[union-attr]
            # The loss is a mean over the tokens of its batch, here one text: times their number, it is their sum.
            expected += chance * sum(sizes) * first_gradient(agent, decided_text)
            paid_for_diversity += chance * float(told_apart(decided_text).sum())

    information = torch.zeros((), dtype=torch.float64)
    for before, segments in after.items():
        choice, written = torch.stack(list(segments.values())).unbind(1)  # [segments, K] each
        assert abs(float((choice + written).exp().sum().detach()) - 1.0) < 1e-12
        segment_alone = (choice + written).logsumexp(1)
        of_option = (choice[0].exp() * (written.exp() * written).sum(0)).sum()
        information = information + reached[before] * (of_option - (segment_alone.exp() * segment_alone).sum())
    assert float(information.detach()) > 1e-3
    assert abs(paid_for_diversity - float(information.detach())) < 1e-10

    text_logprobs = torch.stack(likely)
    assert abs(float(text_logprobs.detach().exp().sum()) - 1.0) < 1e-12
    reference = np.array([values.sum() for values in world.setup.reference.response_logprobs(answers.episodes)])
    worth = answers.returns(without=("kl",)) - beta * (text_logprobs - torch.from_numpy(reference))
    objective = (text_logprobs.exp() * worth).sum() + diversity * information
    exact = flat(torch.autograd.grad(-objective, parameters(agent), allow_unused=True), agent)
    assert exact.abs().max() > 0.01
    torch.testing.assert_close(expected, exact, rtol=0, atol=1e-12)


def test_what_tells_options_apart_by_hand(make_world) -> None:
    """The metric is the mean over segments of log p(option | segment) - log mu(option), by Bayes' rule."""
    world = make_world(rows=8, length=5, action_length=2)
    agent = with_opinions(options(world.setup), size=0.5)
    rollout = world.rollout(agent)
    surer = []
    for row, episode in enumerate(rollout.episodes):
        start = len(episode.prompt_ids)
        for place, (choice, written) in enumerate(on_paper(agent, episode.ids.tolist(), start, 2)):
            z = int(rollout.extras["option"][row, start + 2 * place])
            joint = (choice + written.sum(1)).detach().exp()
            surer.append(float((joint[z] / joint.sum()).log() - choice[z].detach()))
    metrics = agent.update(rollout)
    assert metrics["mutual_information"] == pytest.approx(np.mean(surer), abs=1e-10)
    assert metrics["mutual_information"] > 0.05


def test_options_are_counted_by_place(make_world) -> None:
    """Segments of two tokens; of texts that are shorter, only those that there are."""
    world = make_world(rows=64, length=6, action_length=2)
    agent = with_opinions(options(world.setup, options=3))
    rollout = world.rollout(agent)
    metrics = agent.update(rollout)
    begins = np.array([len(episode.prompt_ids) for episode in rollout.episodes])
    for place in range(3):
        there = [row for row, it in enumerate(rollout.episodes) if len(it.response_ids) > 2 * place]
        written = rollout.extras["option"][there, begins[there] + 2 * place].numpy()
        for option in range(3):
            found = metrics[f"options/segment_{place + 1}/option_{option + 1}"]
            assert found == pytest.approx(np.mean(written == option), abs=1e-12)
    assert "options/segment_4/option_1" not in metrics
    many = make_world(rows=4, length=12, action_length=1, whole_responses=False)
    of_many = shares_by_place(many.rollout(options(many.setup)), 2)
    assert {name.split("/")[1] for name in of_many} == {f"segment_{place}" for place in range(1, 9)}


def test_the_diversity_term_drives_copies_apart(make_world) -> None:
    """Of nothing else: writers that begin as copies come to be told apart from two tokens; without it, they do not."""
    apart = {}
    for coefficient in (0.0, 1.0):
        world = make_world(rows=32, length=2, kl=0.0)
        agent = options(world.setup, diversity_coefficient=coefficient, epochs=1, optimization=Optimization(lr=1e-2))
        for _ in range(10):
            rollout = world.rollout(agent)
            nothing = tuple(replace(it, raw=dict.fromkeys(it.raw, 0.0)) for it in rollout.scores)
            apart[coefficient] = agent.update(replace(rollout, scores=nothing))["mutual_information"]
    assert abs(apart[0.0]) < 0.05 and apart[1.0] > 0.3


@pytest.mark.parametrize("whiten_advantages", [True, False])
def test_one_option_is_ppo(make_world, view, whiten_advantages: bool) -> None:
    """The same critic, the same lambda: the gradients of policy and value head agree."""
    world = make_world(rows=8, **view)
    settings: dict[str, Any] = {"whiten_advantages": whiten_advantages, "value_coefficient": 0.3}
    agent = options(world.setup, options=1, **settings)
    rollout = world.rollout(agent)
    other = PPO(world.setup, PPO.Config(**settings))
    with torch.no_grad():
        for head in (agent.values[0], other.value_head):
            head.weight.copy_(torch.linspace(-1, 1, 16))
    gradient = first_gradient(agent, rollout)
    other.optimizer.step = lambda: 0.0  # type: ignore[method-assign]
    other.config = PPO.Config(**settings, epochs=1)
    other.update(rollout)
    bid = 17  # parameters of the bid, which has nothing to choose
    theirs = [*other.policy.parameters(), *other.value_head.parameters()]
    expected = torch.cat([p.grad.flatten() for p in theirs if p.grad is not None])
    assert gradient[-2 * bid : -bid].abs().max() == 0.0
    torch.testing.assert_close(torch.cat([gradient[: -2 * bid], gradient[-bid:]]), expected, rtol=0, atol=1e-12)


def test_credit_by_hand(make_world) -> None:
    """Three tokens in segments of two: each level's advantages with lambda 1/2 (a baseline of its own, V and Q)."""
    world = make_world(rows=4, length=3, action_length=2, kl=0.0)
    agent = with_opinions(options(world.setup, lam=0.5, whiten_advantages=False))
    rollout = world.rollout(agent)
    assessed = agent._assess(rollout)
    row = max(range(4), key=lambda row: len(rollout.episodes[row].response_ids))
    episode, begin = rollout.episodes[row], len(rollout.episodes[row].prompt_ids)
    assert len(episode.response_ids) == 3
    tokens = torch.from_numpy(episode.ids)[None]
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    states = [writer.evaluate(tokens, everywhere, ~everywhere).hidden[0, begin:].detach() for writer in agent.writers]
    worth = [
        torch.stack([head(s) for head, s in zip(heads, states, strict=True)], -1).detach()
        for heads in (agent.bids, agent.values)
    ]
    mu, values = worth[0].softmax(-1), worth[1]
    v = (mu * values).sum(-1)
    z = [int(o) for o in rollout.extras["option"][row, begin : begin + 3]]
    q = [float(values[t, z[t]]) for t in range(3)]
    reward = float(rollout.returns()[row])
    third = reward - q[2]
    second = q[2] - q[1] + 0.5 * third
    first = q[1] - q[0] + 0.5 * second
    found = assessed.extras["advantages"][row, begin : begin + 3]
    torch.testing.assert_close(found, torch.tensor([first, second, third], dtype=torch.float64), rtol=0, atol=1e-12)
    later = reward - float(v[2])
    sooner = float(v[2]) - float(v[0]) + 0.5 * later
    found = assessed.extras["option_advantages"][row, begin : begin + 3]
    torch.testing.assert_close(found, torch.tensor([sooner, 0.0, later], dtype=torch.float64), rtol=0, atol=1e-12)


def test_only_a_text_cut_from_outside_is_worth_its_last_state(make_world) -> None:  # N23
    """The same texts, said to be cut or to be over: the last decisions differ by V, for another option could come."""
    world = make_world(rows=8, kl=0.0, action_length=2, max_episode_steps=2)
    agent = with_opinions(options(world.setup, lam=1.0, whiten_advantages=False))
    rollout = world.rollout(agent)
    over = agent._assess(replace(rollout, truncated=torch.zeros_like(rollout.truncated))).extras
    cut = agent._assess(rollout).extras
    assert {bool(row) for row in rollout.truncated} == {True, False}
    for row, episode in enumerate(rollout.episodes):
        ((choice, _), *_) = on_paper(agent, [*episode.ids.tolist(), 0], len(episode.ids), 1)
        one_more = torch.tensor([[*episode.ids, 0]])
        everywhere = torch.ones_like(one_more, dtype=torch.bool)
        values = [
            head(writer.evaluate(one_more, everywhere, ~everywhere).hidden[0, -1])
            for head, writer in zip(agent.values, agent.writers, strict=True)
        ]
        worth = float((choice.exp() * torch.stack(values)).sum().detach()) if rollout.truncated[row] else 0.0
        starts = rollout.extras["segment_start"][row] > 0
        for name, where in (("targets", rollout.actions[row]), ("option_advantages", starts)):
            difference = (cut[name] - over[name])[row][where]
            torch.testing.assert_close(difference, torch.full_like(difference, worth), rtol=0, atol=1e-12)


def test_layout_changes_nothing(assert_layout_changes_nothing) -> None:  # N3, N4, N8, N34
    assert_layout_changes_nothing(options)


@pytest.mark.parametrize("garbage", [1e6, float("nan")])
def test_what_is_masked_is_never_read(make_world, garbage: float) -> None:  # N4, N21
    world = make_world(rows=8, action_length=2)
    agent = with_opinions(options(world.setup, option_entropy_coefficient=0.1))
    rollout = world.rollout(agent)
    assert not rollout.mask.all()
    extras = {name: values.masked_fill(~rollout.actions, garbage) for name, values in rollout.extras.items()}
    dirty = replace(rollout, extras=extras, logprobs=rollout.logprobs.masked_fill(~rollout.actions, garbage))
    assert torch.equal(first_gradient(agent, rollout), first_gradient(agent, dirty))


def test_the_entropy_bonus_is_paid_where_an_option_is_chosen(make_world) -> None:
    world = make_world(rows=4, action_length=2)
    agent = with_opinions(options(world.setup))
    rollout = world.rollout(agent)
    paid = with_opinions(options(make_world(rows=4, action_length=2).setup, option_entropy_coefficient=0.5))
    entropy = torch.zeros((), dtype=torch.float64)
    for episode in rollout.episodes:
        for choice, _ in on_paper(agent, episode.ids.tolist(), len(episode.prompt_ids), 2):
            entropy = entropy - (choice.exp() * choice).sum()
    bonus = -0.5 * entropy / rollout.actions.sum()
    expected = flat(torch.autograd.grad(bonus, parameters(agent), allow_unused=True), agent)
    found = first_gradient(paid, rollout) - first_gradient(agent, rollout)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- the loop


def test_it_learns(assert_learns) -> None:
    """Whole responses and token by token."""
    assert_learns(options, 0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_in_segments(make_world, seed: int) -> None:
    """Beats both controls by 0.5 (of a reward in [-1, 1]) after 12 bold updates in segments of three tokens."""
    world = make_world(seed=seed, action_length=3)
    controls = max(world.mean_score(kind(world.setup, kind.Config()), 2) for kind in (Random, Reference))
    agent = options(world.setup, optimization=Optimization(lr=1e-2))
    world.learn(agent, 12)
    assert world.mean_score(agent, batches=2) > controls + 0.5


def test_it_resumes(assert_resumes, view) -> None:
    assert_resumes(lambda setup: with_opinions(options(setup, minibatches=2)), rows=8, **view)


def test_every_weight_is_in_the_state(make_world) -> None:
    agent = with_opinions(options(make_world().setup, options=3))
    fresh = options(make_world(seed=1).setup, options=3)
    fresh.load_state_dict(agent.state_dict())
    pairs = list(zip(parameters(agent), parameters(fresh), strict=True))
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    assert all(mine.data_ptr() != theirs.data_ptr() for mine, theirs in pairs)


def test_an_update_moves_the_manager_the_critic_and_every_writer(make_world) -> None:
    world = make_world(action_length=2)
    agent = options(world.setup, options=3)
    before = [parameter.detach().clone() for parameter in parameters(agent)]
    assert len({parameter.data_ptr() for parameter in parameters(agent)}) == len(before)
    world.learn(agent, 1)
    moved = [not torch.equal(old, new) for old, new in zip(before, parameters(agent), strict=True)]
    assert all(moved)


def test_the_stream_goes_on_whoever_writes(make_world) -> None:
    world = make_world(rows=8)
    agent = options(world.setup)
    with torch.no_grad():
        agent.bids[0].bias.fill_(-50.0)  # the writer whose stream it is never writes
    first, second = world.rollout(agent, seed=0), world.rollout(agent, seed=0)
    assert first.extras["option"][first.actions].min() == 1.0
    assert not torch.equal(first.tokens, second.tokens)


def test_the_policys_stream_governs_all_of_it(make_world, view) -> None:
    """So that the evaluator, which reseeds the policy and puts its stream back, disturbs no training."""
    world = make_world(rows=8, **view)
    agent = with_opinions(options(world.setup))
    before = world.setup.policy.sampling_state()
    first = world.rollout(agent, seed=0)
    assert not torch.equal(first.tokens, world.rollout(agent, seed=0).tokens)
    world.setup.policy.load_sampling_state(before)
    again = world.rollout(agent, seed=0)
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.extras["option"], again.extras["option"])


def test_it_refuses_texts_of_others(make_world) -> None:
    world = make_world()
    with pytest.raises(DataError, match="option, segment_start, option_logprob, writer_logprob"):
        options(world.setup).update(world.rollout(Reference(world.setup, Reference.Config())))


def test_it_refuses_a_truncated_distribution(make_world) -> None:  # N11
    with pytest.raises(ConfigError, match="top_k"):
        options(make_world(sampling=Sampling(top_k=2)).setup)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError) as caught:
        Options.Config(
            options=0,
            epochs=0,
            minibatches=0,
            group_size=0,
            lam=1.5,
            clip=0.0,
            value_coefficient=-1.0,
            diversity_coefficient=-0.1,
        )
    assert len(caught.value.problems) == 8
