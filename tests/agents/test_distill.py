"""Distillation: its gradients against sums over all texts, who writes which texts, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_agents.distill import Distill
from rlhf_agents.reinforce import Reinforce
from rlhf_rewards.teacher import Teacher

import rlhf_env
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.tokenizers import load_tokenizer
from rlhf_env.errors import ConfigError
from rlhf_env.learning.agent import OTHERS_WROTE
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.teachers import load_teacher, token_difference
from rlhf_env.policies import tiny_language_model
from rlhf_env.policies.next_tokens import NextTokens
from rlhf_env.testing import check_agent

from .conftest import World, stir

TEXTS = {"divergence": "sequence", "best_of": 4}


def teacher_of(world: World) -> Any:
    """A model of the same shape that writes otherwise."""
    teacher = world.setup.policy.frozen_copy()
    stir(teacher, seed=7)
    return teacher


def distill(world: World, teacher: Any = None, **settings: Any) -> Distill:
    teacher = teacher_of(world) if teacher is None else teacher
    return Distill(world.setup, Distill.Config(**{"teacher": "lent", **settings}), teacher=teacher)


def gradient(loss: torch.Tensor, policy: Any) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))])


# ---------------------------------------------------------------- exact gradients


@pytest.mark.parametrize("divergence", ["forward", "sequence"])
def test_on_the_teachers_texts_the_gradient_is_that_of_its_kl(
    enumerate_world: Any, gradient_of: Any, divergence: str
) -> None:
    """KL(teacher || policy) of whole texts, and the cross-entropy, which has the same gradient."""
    enumerated = enumerate_world(length=2, rows=1)
    world, policy = enumerated.world, enumerated.world.setup.policy
    teacher = teacher_of(world)
    agent = distill(world, teacher, divergence=divergence, aggregation="sequence-sum")
    theirs = enumerated._of(teacher).detach()
    exact = gradient((theirs.exp() * (theirs - enumerated._of(policy))).sum(), policy)
    written = replace(enumerated, answers=replace(enumerated.answers, logprobs=by(teacher, enumerated)))
    found = written.expected_gradient(lambda rollout: gradient_of(agent, rollout))
    assert exact.norm() > 0.1
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)


def by(writer: Any, enumerated: Any) -> torch.Tensor:
    """[N, L]: how likely `writer` finds each token of each text."""
    texts = enumerated.answers
    found: torch.Tensor = writer.evaluate(texts.tokens, texts.mask, texts.actions).logprobs.detach()
    return found


def test_the_reward_of_a_teacher_has_the_exact_gradient_of_reverse_kl(enumerate_world: Any, gradient_of: Any) -> None:
    enumerated = enumerate_world(length=2, rows=1, kl=0.0)
    world, policy = enumerated.world, enumerated.world.setup.policy
    teacher = teacher_of(world)
    mix = RewardMix({"teacher": Teacher(teacher)})
    rewarded = replace(enumerated.answers, scores=tuple(mix.score(enumerated.answers.episodes)))
    ours, theirs = enumerated.logprobs, enumerated._of(teacher).detach()
    exact = gradient((ours.exp() * (ours - theirs)).sum(), policy)
    mean = ours.detach().exp() @ rewarded.returns()
    assert abs(float(mean + (ours.exp() * (ours - theirs)).sum().detach())) < 1e-10
    agent = Reinforce(world.setup, Reinforce.Config(baseline="none", reward_to_go=True))
    written = replace(enumerated, answers=rewarded)
    found = written.expected_gradient(lambda rollout: gradient_of(agent, rollout))
    assert exact.norm() > 0.1
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("divergence", ["reverse", "jsd"])
def test_on_its_own_texts_no_gradient_passes_through_the_sampling(
    enumerate_world: Any, gradient_of: Any, divergence: Any
) -> None:
    """The expected gradient is that of the divergences with the probabilities of texts held fixed: a part of all."""
    enumerated = enumerate_world(length=2, rows=1)
    world, policy = enumerated.world, enumerated.world.setup.policy
    teacher, beta = teacher_of(world), 0.3
    agent = distill(
        world,
        teacher,
        divergence=divergence,
        aggregation="sequence-sum",
        **({"beta": beta} if divergence == "jsd" else {}),
    )
    texts = enumerated.answers.tokens, enumerated.answers.mask, enumerated.answers.actions
    p, q = (softmax_at(it, texts) for it in (policy, teacher))
    m = beta * q + (1.0 - beta) * p
    of_tokens = (p * (p / q).log()).sum(-1)
    if divergence == "jsd":
        of_tokens = beta * (q * (q / m).log()).sum(-1) + (1.0 - beta) * (p * (p / m).log()).sum(-1)
    of_texts = torch.zeros(texts[2].shape, dtype=torch.float64).masked_scatter(texts[2], of_tokens).sum(1)
    partial = gradient((enumerated.probabilities * of_texts).sum(), policy)
    found = enumerated.expected_gradient(lambda rollout: gradient_of(agent, rollout))
    torch.testing.assert_close(found, partial, rtol=0, atol=1e-10)
    whole = gradient((enumerated.logprobs.exp() * of_texts_again(enumerated, policy, teacher)).sum(), policy)
    assert (partial - whole).norm() > 0.05 * whole.norm()


def softmax_at(policy: Any, texts: Any) -> torch.Tensor:
    found = policy.next_tokens(*texts)
    logits = found.states if found.head is None else found.states @ found.head.weight.T
    return logits.softmax(-1)


def of_texts_again(enumerated: Any, policy: Any, teacher: Any) -> torch.Tensor:
    return enumerated._of(policy) - enumerated._of(teacher).detach()


# ---------------------------------------------------------------- who writes


def test_the_share_of_texts_by_the_policy_is_as_asked(make_world: Any) -> None:
    for share, group_size in ((0.0, 1), (0.3, 1), (0.5, 4), (1.0, 2)):
        world = make_world(rows=8)
        agent = distill(world, on_policy=share, group_size=group_size)
        taught = []
        for _ in range(60):
            agent.begin()
            assert agent._taught is not None
            of_groups = agent._taught.reshape(-1, group_size)
            assert (of_groups == of_groups[:, :1]).all()
            taught.append(agent._taught.mean())
        assert abs(np.mean(taught) - (1.0 - share)) < 0.02
        assert max(taught) - min(taught) <= group_size / 8 + 1e-9


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "by token"])
def test_each_text_is_its_writers_and_says_how_likely_its_writer_finds_it(make_world: Any, whole: bool) -> None:
    world = make_world(rows=8, whole_responses=whole)
    agent = distill(world, on_policy=0.5)
    rollout = world.rollout(agent, seed=3)
    others = rollout.extras[OTHERS_WROTE]
    by_teacher = (others > 0).any(dim=1)
    assert by_teacher.sum() == 4 and torch.equal(others > 0, rollout.actions & by_teacher[:, None])
    for writer, rows in ((agent.teacher, by_teacher), (agent.policy, ~by_teacher)):
        part = rollout.select(torch.nonzero(rows).squeeze(1))
        for row, expected in enumerate(writer.response_logprobs(part.episodes)):
            stated = part.logprobs[row][part.actions[row]].numpy()
            assert np.abs(stated - expected).max() < 1e-10
    assert agent.update(rollout)["taught"] == 0.5


def test_what_is_not_learned_from_the_policy_writes_alone(make_world: Any) -> None:
    """An evaluation, which asks for no options, measures the policy."""
    world = make_world(rows=8)
    agent = distill(world, on_policy=0.0)
    asked: Any = {"input_ids": np.zeros((8, 2), np.int64), "attention_mask": np.ones((8, 2), np.int8)}
    agent.update(world.rollout(agent))
    assert OTHERS_WROTE not in agent.act(asked).extras
    agent.begin()
    assert OTHERS_WROTE in agent.act(asked).extras
    agent.load_state_dict(agent.state_dict())
    assert OTHERS_WROTE not in agent.act(asked).extras


def test_of_best_of_n_every_answer_counts_and_the_best_is_learned(make_world: Any) -> None:
    world = make_world(rows=8)
    agent = Distill(world.setup, Distill.Config(**TEXTS))
    assert agent.teacher is world.setup.reference
    plain = world.mean_score(agent, batches=2)  # of the policy
    before = world.setup.spending.generated_tokens
    streams = world.setup.reference.sampling_state()
    rollout = world.rollout(agent)
    thrown_away = world.setup.spending.generated_tokens - before
    assert thrown_away > 2 * int(rollout.actions.sum())  # the three others of each
    assert world.setup.reference.sampling_state() == streams
    assert float(rollout.returns(without=("kl",)).mean()) > plain - 0.2


def test_a_teacher_of_a_larger_vocabulary_does_not_write(make_world: Any) -> None:
    world = make_world(rows=8)
    large = tiny_language_model(vocab_size=9, end_id=4, pad_id=5, dtype=torch.float64, hidden_size=16, heads=2)
    with pytest.raises(ConfigError, match="the teacher has 9 tokens and the policy 6"):
        distill(world, large)
    agent = distill(world, large, on_policy=1.0)
    assert agent.update(world.rollout(agent))["nats_per_token"] > 0.0


# ---------------------------------------------------------------- it learns, and goes on


@pytest.mark.parametrize("settings", [{"divergence": "forward"}, {"divergence": "reverse", "on_policy": 1.0}, {}])
def test_it_comes_near_its_teacher(make_world: Any, settings: dict[str, Any]) -> None:
    world = make_world(rows=16)
    agent = distill(world, **settings, optimization=Optimization(lr=2e-2))
    first, *_, last = [agent.update(world.rollout(agent))["nats_per_token"] for _ in range(20)]
    assert last < 0.4 * first


def test_over_epochs_a_teacher_reads_a_text_once_and_says_the_same_of_it(make_world: Any) -> None:
    def learned(kept: bool) -> tuple[torch.Tensor, int]:
        world = make_world(rows=8)
        teacher = teacher_of(world)
        agent = distill(world, teacher, epochs=3, minibatches=4, optimization=Optimization(lr=1e-2))
        rollout, said, rows = world.rollout(agent), teacher.next_tokens, []

        def next_tokens(tokens: torch.Tensor, *texts: torch.Tensor) -> NextTokens:
            rows.append(len(tokens))
            found = said(tokens, *texts)
            return found if kept else NextTokens(found.states @ found.head.weight.T, None, found.temperature)

        teacher.next_tokens = next_tokens
        agent.update(rollout)
        return torch.cat([weight.detach().flatten() for weight in world.setup.policy.parameters()]), sum(rows)

    (once, read), (again, read_again) = learned(True), learned(False)
    assert (read, read_again) == (8, 24)
    torch.testing.assert_close(once, again, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        {"divergence": "jsd", "on_policy": 0.5, "minibatches": 2, "group_size": 2},
        {"divergence": "sequence", "best_of": 2},
    ],
)
def test_state(assert_resumes: Any, make_world: Any, settings: dict[str, Any]) -> None:
    teacher = teacher_of(make_world())
    assert_resumes(lambda setup: Distill(setup, Distill.Config(teacher="lent", **settings), teacher=teacher), rows=8)


@pytest.mark.parametrize("divergence", ["sequence", "forward", "reverse", "jsd"])
def test_layout(assert_layout_changes_nothing: Any, make_world: Any, divergence: Any) -> None:
    teacher = teacher_of(make_world())
    assert_layout_changes_nothing(
        lambda setup, **more: Distill(
            setup, Distill.Config(teacher="lent", divergence=divergence, **more), teacher=teacher
        )
    )


def test_the_contract_where_two_write() -> None:
    """A teacher that writes nothing but `a`."""

    def make(setup: Any) -> Distill:
        teacher = setup.reference.frozen_copy()
        with torch.no_grad():
            teacher.model.get_output_embeddings().weight.data[0] *= 8.0
        return Distill(setup, Distill.Config(teacher="lent", on_policy=0.5), teacher=teacher)

    check_agent(make, updates=1, margin=-2.0)


# ---------------------------------------------------------------- teachers by name


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of a small model with the alphabet of the world."""
    folder = tmp_path_factory.mktemp("runs") / "large"
    rlhf_env.run(
        {
            "policy": {"model": "tiny", "tokenizer": "alphabet:ab:="},
            "task": {"name": "count", "target": 4},
            "environment": {"num_envs": 4, "max_new_tokens": 4},
            "agent": {"name": "reinforce"},
            "budget": {"updates": 1},
            "evaluation": {"prompts": 1},
        },
        folder,
    )
    return str(folder)


def test_a_teacher_is_loaded_once_for_the_agent_and_the_reward(make_world: Any, large: str) -> None:
    world = make_world(rows=8)
    agent = Distill(world.setup, Distill.Config(teacher=large))
    reward = Teacher(large, reference=world.setup.reference, tokenizer=world.setup.tokenizer)
    assert reward._scorer is agent.teacher and agent.teacher.dtype == torch.float64
    assert not any(parameter.requires_grad for parameter in agent.teacher.parameters())
    other = load_teacher(large, world.setup.policy, world.setup.tokenizer, "bfloat16")
    assert other is not agent.teacher and other.dtype == torch.bfloat16


def test_a_teacher_of_other_tokens_is_refused_by_name(make_world: Any, large: str) -> None:
    world = make_world(rows=8)
    setup = replace(world.setup, tokenizer=load_tokenizer("alphabet:abc="))
    with pytest.raises(
        ConfigError, match=r"large has another tokenizer than the policy \(token 2 is ':' there and 'c' here"
    ):
        Distill(setup, Distill.Config(teacher=large))
    with pytest.raises(
        ConfigError, match=r"rlhf-env/chitchat has another tokenizer .*token 0 is .* there and 'a' here"
    ):
        Teacher("rlhf-env/chitchat", reference=world.setup.reference, tokenizer=world.setup.tokenizer)
    with pytest.raises(ConfigError, match="'tiny' is new and random, and teaches nothing"):
        Distill(world.setup, Distill.Config(teacher="tiny"))


def test_tokens_of_files_are_compared_one_by_one() -> None:
    ours = load_tokenizer("rlhf-env/chitchat")
    assert token_difference(ours, load_tokenizer("rlhf-env/chitchat-judge")) == ""
    assert token_difference(ours, load_tokenizer("bytes")) == "ByteTokenizer and FileTokenizer"
    theirs: Any = load_tokenizer("rlhf-env/chitchat")
    renamed = {**theirs.tokens(), 7: "<other>"}
    theirs.tokens = lambda: renamed
    assert token_difference(ours, theirs).startswith("token 7 is '<other>' there and ")
