"""Losses by hand, what they declare, and code of one's own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rlhf_env
from rlhf_env import plugins
from rlhf_env.errors import ConfigError, DataError, PluginError
from rlhf_env.learning.advantages import mean_scaled_advantages
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.functional import kl_estimate, without_overlong
from rlhf_env.learning.losses.declaring import Pairs, TokenBatch, load_pair_loss, load_token_loss
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.workplace import build
from rlhf_env.testing import make_episode
from rlhf_env.types import Score


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_close(given: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-12)


def batch(ratio: list[float], advantages: list[float], logprobs: list[float] | None = None) -> TokenBatch:
    """One row."""
    given = [-1.0] * len(ratio) if logprobs is None else logprobs
    return TokenBatch(
        logprobs=f64(*given)[None],
        log_ratio=f64(*ratio)[None].log(),
        advantages=f64(*advantages)[None],
        actions=torch.ones(1, len(ratio), dtype=torch.bool),
    )


# ---------------------------------------------------------------- by hand


def test_the_clip_of_dapo_is_wider_upwards() -> None:
    tokens = batch([1.25, 1.4, 0.7, 0.7], [1.0, 1.0, 1.0, -1.0])
    assert_close(load_token_loss("dapo")(tokens), f64(-1.25, -1.28, -0.7, 0.8)[None])
    assert_close(load_token_loss("clip")(tokens), f64(-1.2, -1.2, -0.7, 0.8)[None])


def test_gspo_has_one_ratio_for_an_answer() -> None:
    """The geometric mean of 2 and 0.5 is 1, that of 1.1 twice is 1.1, which the clip holds at 1.0004."""
    loss = load_token_loss("gspo")
    assert_close(loss(batch([2.0, 0.5], [3.0, 3.0])), f64(-3.0, -3.0)[None])
    assert_close(loss(batch([1.1, 1.1], [3.0, 3.0])), f64(-3.0012, -3.0012)[None])
    assert_close(loss(batch([1.1, 1.1], [-1.0, -1.0])), f64(1.1, 1.1)[None])


def test_cispo_keeps_the_gradient_of_every_token() -> None:
    """-min(r, 5) A log pi, differentiated by log pi: where PPO's clip binds its gradient is 0."""
    logprobs = f64(-1.0, -2.0)[None].requires_grad_()
    old = f64(-1.0 - math.log(9.0), -2.0 - math.log(3.0))[None]
    tokens = TokenBatch(
        logprobs=logprobs, log_ratio=logprobs - old, advantages=f64(2.0, 2.0)[None], actions=torch.ones(1, 2).bool()
    )
    for name, expected in (("cispo", [-10.0, -6.0]), ("clip", [0.0, 0.0])):
        (gradient,) = torch.autograd.grad(load_token_loss(name)(tokens).sum(), logprobs, retain_graph=True)
        assert_close(gradient, f64(*expected)[None])


def test_sapo_fades_out_and_begins_as_the_ratio_does() -> None:
    def gradient(ratio: float, advantage: float) -> float:
        given = f64(math.log(ratio))[None].requires_grad_()
        tokens = TokenBatch(
            logprobs=given, log_ratio=given, advantages=f64(advantage)[None], actions=torch.ones(1, 1).bool()
        )
        return float(torch.autograd.grad(load_token_loss("sapo")(tokens).sum(), given)[0])

    assert abs(gradient(1.0, 2.0) + 2.0) < 1e-12 and abs(gradient(1.0, -2.0) - 2.0) < 1e-12
    slope = 1.0 / (1.0 + math.exp(-1.0)) * (1.0 - 1.0 / (1.0 + math.exp(-1.0)))  # of the sigmoid at tau (2 - 1)
    assert abs(gradient(2.0, 1.0) + 4.0 * slope * 2.0) < 1e-12
    assert abs(gradient(3.0, -1.0)) < abs(gradient(3.0, 1.0)), "pushing down fades out sooner"
    assert gradient(math.exp(600.0), 1.0) == 0.0, "and is no NaN"


def test_clip_cov_leaves_out_tokens_of_high_covariance() -> None:
    """log pi: -1 -3 -1 -3, A: 2 -2 -2 2; means -2 and 0, products 2 2 -2 -2. Only the first two are candidates."""
    tokens = batch([1.0, 1.0, 1.0, 1.0], [2.0, -2.0, -2.0, 2.0], [-1.0, -3.0, -1.0, -3.0])
    loss = load_token_loss("clip-cov")
    among, count = loss.candidates(tokens)
    assert among.tolist() == [[True, True, False, False]] and count == 1
    assert load_token_loss({"name": "clip-cov", "share": 0.5}).candidates(tokens)[1] == 2
    assert not load_token_loss({"name": "clip-cov", "highest": 2.0}).candidates(tokens)[0].any()
    held = batch([1.5, 1.0, 1.0, 1.0], [2.0, -2.0, -2.0, 2.0], [-1.0, -3.0, -1.0, -3.0])
    assert loss.candidates(held)[0].tolist() == [[False, True, False, False]], "the clip holds the first already"
    drawn = [loss.left_out(tokens, np.random.default_rng(seed)) for seed in range(20)]
    assert {tuple(one.flatten().tolist()) for one in drawn} == {(True, *[False] * 3), (False, True, False, False)}
    kept = TokenBatch(**{**vars(tokens), "left_out": drawn[0]})
    assert_close(loss(kept), torch.where(drawn[0], 0.0, f64(-2.0, 2.0, 2.0, -2.0)[None]))


def test_the_layout_of_a_batch_does_not_decide_what_is_left_out() -> None:
    stream = torch.Generator().manual_seed(0)
    shape = (6, 4)
    logprobs = -torch.rand(*shape, generator=stream, dtype=torch.float64)
    advantages = torch.randn(6, 1, generator=stream, dtype=torch.float64).expand(shape)
    loss = load_token_loss({"name": "clip-cov", "lowest": 0.001, "share": 0.2})

    def left_out(order: list[int]) -> Tensor:
        tokens = TokenBatch(
            logprobs=logprobs[order],
            log_ratio=torch.zeros(shape, dtype=torch.float64),
            advantages=advantages[order],
            actions=torch.ones(shape, dtype=torch.bool),
        )
        found = loss.left_out(tokens, np.random.default_rng(7))
        return found[[order.index(row) for row in range(6)]]

    first = left_out(list(range(6)))
    assert int(first.sum()) == 4
    assert torch.equal(first, left_out([3, 1, 5, 0, 4, 2]))


def test_maxrl_divides_by_the_rate_of_success() -> None:
    """Two of four succeed, one of four, none; with a KL penalty in what is compared, and not in what divides."""
    rewards = f64(1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0)
    group = torch.arange(12) // 4
    found = mean_scaled_advantages(rewards, rewards, group)
    assert_close(found, f64(1, 1, -1, -1, 3, -1, -1, -1, 0, 0, 0, 0))
    penalised = rewards - f64(0.4, 0, 0, 0, *[0] * 8)
    assert_close(mean_scaled_advantages(penalised, rewards, group)[:4], f64(0.4, 1.2, -0.8, -0.8))
    with pytest.raises(DataError, match=r"an answer has the reward -0\.5: take rewards of at least 0"):
        mean_scaled_advantages(rewards - 0.5, rewards - 0.5, group)


def test_the_corrected_kl_has_the_gradient_of_the_divergence_on_texts_of_another_policy() -> None:
    """Over what mu writes, in expectation; k3 itself has not, nor k2."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    p, q, mu = logits[0].clone().requires_grad_(), logits[1].log_softmax(0), logits[2].log_softmax(0)
    own = p.log_softmax(0)
    (exact,) = torch.autograd.grad((own.exp() * (own - q)).sum(), p, retain_graph=True)

    def expected(kind: Any) -> Tensor:
        value = (mu.exp() * kl_estimate(own, q, kind, own - mu)).sum()
        return torch.autograd.grad(value, p, retain_graph=True)[0]

    assert_close(expected("k3-corrected"), exact)
    assert float((expected("k2") - exact).norm()) > 0.1 * float(exact.norm())
    value = (mu.exp() * kl_estimate(own, q, "k3-corrected", own - mu)).sum()
    assert_close(value, (own.exp() * (own - q)).sum())


def test_overlong_texts_teach_nothing_and_are_still_compared_with() -> None:
    episodes = [make_episode("p", "a b"), make_episode("p", "b")]
    cut = [type(episodes[0])(**{**vars(episodes[0]), "finish_reason": "length"}), episodes[1]]
    scores = [Score(raw={"task": 1.0}, weights={"task": 1.0})] * 2
    rollout = Rollout.from_episodes(cut, scores, pad_id=0, group_size=2)
    masked = without_overlong(rollout)
    assert rollout.actions.any(1).tolist() == [True, True] and masked.actions.any(1).tolist() == [False, True]
    assert masked.returns().tolist() == rollout.returns().tolist() and masked.scored.all()


HALF = torch.tensor([3, 1])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hinge", [0.6, 1.5]),
        ("sppo", [(0.3 - 1.0) ** 2 + (-0.5 + 1.0) ** 2, (-0.6 - 1.0) ** 2 + (0.4 + 1.0) ** 2]),
        ("ipo", [(0.8 - 1.0) ** 2, (-1.0 - 1.0) ** 2]),
        ("cpo", [math.log1p(math.exp(-0.08)) - 0.3, math.log1p(math.exp(0.1)) + 0.6]),
        ("simpo", [math.log1p(math.exp(-(2 * (0.1 + 0.5) - 1))), math.log1p(math.exp(-(2 * (-0.6 - 0.4) - 1)))]),
    ],
)
def test_pair_losses_by_hand(name: str, expected: list[float]) -> None:
    """beta = 0.5; of three tokens and one."""
    chosen = f64(0.3, -0.6)
    pairs = Pairs(
        chosen=chosen, rejected=f64(-0.5, 0.4), chosen_tokens=HALF, rejected_tokens=torch.tensor([1, 1]), beta=0.5
    )
    assert_close(load_pair_loss(name)(pairs), f64(*expected))


def test_a_robust_loss_is_on_average_that_of_right_labels() -> None:
    """Over labels of which a fifth is wrong, it is the sigmoid's on the right ones."""

    def value(name: str, chosen: float, rejected: float, wrong: float) -> float:
        one = torch.ones(1, dtype=torch.int64)
        answers = {"chosen": f64(chosen), "rejected": f64(rejected), "chosen_tokens": one, "rejected_tokens": one}
        return float(load_pair_loss(name)(Pairs(**answers, beta=0.5, wrong=wrong)))

    mean = 0.8 * value("robust", 1.0, -0.4, 0.2) + 0.2 * value("robust", -0.4, 1.0, 0.2)
    assert abs(mean - value("sigmoid", 1.0, -0.4, 0.0)) < 1e-12


def test_orpo_keeps_its_digits_where_an_answer_is_certain_or_hopeless() -> None:
    pairs = Pairs(
        chosen=f64(-1e-13, -1e-300, -800.0),
        rejected=f64(-800.0, -1.0, -1e-13),
        chosen_tokens=torch.ones(3),
        rejected_tokens=torch.ones(3),
        beta=0.0,
    )
    terms = load_pair_loss({"name": "orpo", "weight": 1.0})(pairs)
    assert terms.isfinite().all()
    # log odds of p = 1 - 1e-13 are log(1e13); of e^-800, -800.
    assert abs(float(terms[2]) - (800.0 + 800.0 + math.log(1e13))) < 1e-3


# ---------------------------------------------------------------- code of one's own


@pytest.fixture
def registered() -> Iterator[None]:
    entries = plugins.host()._entries
    before = dict(entries)
    yield
    entries.clear()
    entries.update(before)


def test_a_function_that_declares_nothing_takes_what_the_agent_has(registered: None) -> None:
    def plain(tokens: TokenBatch, scale: float = 2.0) -> Tensor:
        return -scale * tokens.advantages * tokens.log_ratio.exp()

    rlhf_env.register_token_loss("plain", plain)
    loss = load_token_loss({"name": "plain", "scale": 3.0})
    assert (loss.declared.advantages, loss.declared.aggregation) == ("agent", None)
    assert_close(loss(batch([2.0], [1.0])), f64(-6.0)[None])
    with pytest.raises(ConfigError, match="no setting 'scal': did you mean 'scale'"):
        load_token_loss({"name": "plain", "scal": 3.0})


def test_what_a_decorator_declares_stands_and_a_table_overrules_it(registered: None) -> None:
    @rlhf_env.TokenLoss(advantages="group", aggregation="token-mean")
    def mine(tokens: TokenBatch) -> Tensor:
        return -tokens.advantages * tokens.logprobs

    rlhf_env.register_token_loss("mine", mine)
    assert load_token_loss("mine").declared.groups
    changed = load_token_loss({"name": "mine", "advantages": "agent", "aggregation": "dr-grpo"}).declared
    assert (changed.advantages, changed.aggregation) == ("agent", "dr-grpo")

    @rlhf_env.PairLoss(reference=False)
    def without(pairs: Pairs, margin: float = 1.0) -> Tensor:
        return torch.relu(margin - pairs.chosen + pairs.rejected)

    rlhf_env.register_pair_loss("without", without)
    assert not load_pair_loss("without").declared.reference


def test_a_loss_of_the_wrong_shape_is_named(registered: None) -> None:
    rlhf_env.register_token_loss("summed", lambda tokens: tokens.advantages.sum())
    rlhf_env.register_token_loss("nothing", lambda tokens: None)
    with pytest.raises(PluginError, match=r"'summed' gave a tensor of shape \(\): it must give one number for each to"):
        load_token_loss("summed")(batch([1.0], [1.0]))
    with pytest.raises(PluginError, match="'nothing' gave NoneType"):
        load_token_loss("nothing")(batch([1.0], [1.0]))


def test_a_file_of_ones_own_trains(tmp_path: Path) -> None:
    """Named by a relative path in an experiment's file, from another directory."""
    (tmp_path / "mine.py").write_text(
        "def loss(tokens, scale: float = 1.0):\n    return -scale * tokens.advantages * tokens.log_ratio.exp()\n"
    )
    table = {
        "task": {"name": "count", "target": 2},
        "policy": {"tokenizer": "alphabet:ab:"},
        "environment": {"num_envs": 8, "max_new_tokens": 4},
        "agent": {"name": "grpo", "loss": {"function": "mine.py:loss", "scale": 2.0}},
        "budget": {"updates": 1},
    }
    experiment = Experiment.from_table(table, folder=tmp_path)
    assert experiment.code_named == ["mine.py:loss"], "so that a run of somebody else's does not run it"
    workplace = build(experiment)
    metrics = workplace.agent.update(workplace.source.next(workplace.agent))
    assert metrics["grad_norm"] > 0.0
