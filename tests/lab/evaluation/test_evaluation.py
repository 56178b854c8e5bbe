"""The external evaluator: the same question to everyone, and nothing is changed by asking."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env.envs.tasks import held_out, load_task
from rlhf_env.lab.evaluation.evaluator import Evaluation, Evaluator
from rlhf_env.lab.studies.exact import world as exact
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.workplace import Workplace, build
from rlhf_env.policies.tabular import TabularPolicy
from rlhf_env.text_measures import distinct_n

Toy = Mapping[str, Any]


def workplace_of(toy: Toy, agent: str | Mapping[str, Any] = "ppo", **changes: Any) -> Workplace:
    settings = {"name": agent} if isinstance(agent, str) else dict(agent)
    return build(Experiment.from_table({**toy, "agent": settings, **changes}))


def evaluated(toy: Toy, agent: str | Mapping[str, Any] = "ppo", **changes: Any) -> Evaluation:
    return Evaluator.of(workplace_of(toy, agent, **changes))()


def learn(workplace: Workplace, updates: int) -> None:
    for _ in range(updates):
        workplace.agent.update(workplace.source.next(workplace.agent))


# ---------------------------------------------------------------- the same question to everyone


def test_everyone_answers_the_same_held_out_prompts(toy: Toy) -> None:
    tasks = held_out(load_task(toy["task"]))
    asked = [tasks.prompt(index, {}).text for index in range(12)]
    trained_on = {load_task(toy["task"]).prompt(index, {}).text for index in range(200)}
    assert not set(asked) & trained_on
    for agent in ("ppo", "grpo", "dpo", "best_of_n", "reference", "random"):
        assert [sample["prompt"] for sample in evaluated(toy, agent).samples] == asked, agent


def test_common_random_numbers(toy: Toy) -> None:
    """Untrained, they all write what the reference writes, however many draws each has made before."""
    reference = evaluated(toy, "reference")
    said = [sample["response"] for sample in reference.samples]
    assert len(set(said)) > 3
    for agent in ("ppo", "grpo", "dpo"):
        workplace = workplace_of(toy, agent)
        workplace.source.next(workplace.agent)
        workplace.setup.policy.reseed(99)
        assert [sample["response"] for sample in Evaluator.of(workplace)().samples] == said, agent
    other = {**toy["evaluation"], "seed": 1}
    assert [sample["response"] for sample in evaluated(toy, "ppo", evaluation=other).samples] != said


def test_an_evaluation_repeats_itself(toy: Toy) -> None:
    workplace = workplace_of(toy)
    evaluator = Evaluator.of(workplace)
    assert evaluator() == evaluator()
    learn(workplace, 2)
    assert evaluator().metrics != Evaluator.of(workplace_of(toy))().metrics


class AsksForLess:
    """An agent that would like one-letter words in groups; whoever evaluates it must not listen."""

    trains = True

    def __init__(self, workplace: Workplace) -> None:
        self.agent = workplace.agent

    def begin(self) -> dict[str, Any]:
        return {"level": 1, "group_size": 4}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.agent, name)


def test_an_agent_cannot_choose_what_it_is_asked(toy: Toy) -> None:
    workplace = workplace_of(toy)
    plain = Evaluator.of(workplace)()
    assert Evaluator.of(workplace)(AsksForLess(workplace)) == plain


# ---------------------------------------------------------------- what is measured


def test_the_kl_of_the_reference_to_itself_is_zero(toy: Toy) -> None:
    """N16, to the rounding between writing (token by token, cached) and reading (the whole text at once)."""
    for agent in ("reference", "ppo"):
        assert abs(evaluated(toy, agent).metrics["kl"]) < 1e-6
        exact = {**toy["policy"], "dtype": "float64"}
        assert abs(evaluated(toy, agent, policy=exact).metrics["kl"]) < 1e-14


def test_the_kl_of_a_trained_policy_is_the_one_of_its_texts(toy: Toy) -> None:
    workplace = workplace_of(toy, {"name": "ppo", "lr": 3e-2})
    learn(workplace, 5)
    evaluation = Evaluator.of(workplace)()
    assert evaluation.metrics["kl"] > 0.1
    assert evaluation.metrics["kl"] == pytest.approx(
        np.mean([sample["kl"] for sample in evaluation.samples]), abs=1e-12
    )
    assert evaluation.metrics["kl"] == pytest.approx(-evaluation.metrics["part/kl"], abs=1e-9)


def test_the_kl_of_the_random_agent_is_against_what_it_stated(toy: Toy) -> None:
    """Uniform over 4 tokens against a nearly uniform model over 5."""
    metrics = evaluated(toy, "random").metrics
    assert metrics["kl"] / metrics["length"] == pytest.approx(math.log(5 / 4), abs=0.05)


def test_objective_proxy_and_gold_are_sums_of_the_parts(toy: Toy) -> None:
    metrics = evaluated(toy).metrics
    parts = {name: metrics[f"part/{name}"] for name in ("length", "kl", "diversity")}
    assert metrics["objective"] == pytest.approx(
        parts["length"] + 0.05 * parts["kl"] + 0.1 * parts["diversity"], abs=1e-12
    )
    assert metrics["proxy"] == pytest.approx(parts["length"], abs=1e-12), "neither KL nor what compares a group"
    evaluation = evaluated(toy)
    gold = [sample["gold"] for sample in evaluation.samples]
    assert metrics["gold"] == pytest.approx(np.mean(gold), abs=1e-12)
    assert metrics["gold_std"] == pytest.approx(np.std(gold), abs=1e-12)
    echoed = [
        sum(a == b for a, b in zip(sample["prompt"][:3], sample["response"], strict=False))
        / max(3, len(sample["response"]))
        for sample in evaluation.samples
    ]
    assert gold == pytest.approx(echoed)


def test_without_a_gold_reward_there_is_no_gold(toy: Toy) -> None:
    evaluation = evaluated(toy, evaluation={"prompts": 4})
    assert "gold" not in evaluation.metrics
    assert "gold" not in evaluation.samples[0]


def test_lengths_and_endings(toy: Toy) -> None:
    evaluation = evaluated(toy)
    ended = [sample["finish_reason"] for sample in evaluation.samples]
    assert set(ended) == {"stop", "length"}
    assert evaluation.metrics["cut_at_limit"] == ended.count("length") / len(ended)
    said = [len(sample["response"]) + (sample["finish_reason"] == "stop") for sample in evaluation.samples]
    said_and_padding = evaluation.metrics["length"]  # pad is a token that decodes to nothing
    assert np.mean(said) <= said_and_padding <= 4
    assert evaluation.metrics["distinct_replies"] == len({s["response"] for s in evaluation.samples}) / len(ended)


def test_thrown_away_answers_are_paid_for(toy: Toy) -> None:
    """What best-of-n writes for one reply: n answers. Its KL is the analytic bound."""
    one, four = (evaluated(toy, {"name": "best_of_n", "n": n}).metrics for n in (1, 4))
    assert one["inference_tokens"] == one["length"]
    assert four["inference_tokens"] > 2.5 * four["length"]
    assert four["inference_tokens"] <= 4 * 4
    assert (four["kl"], four["kl_is_bound"]) == (math.log(4) - 3 / 4, 1.0)
    assert four["proxy"] > one["proxy"]
    plain = evaluated(toy, "reference").metrics
    assert (plain["inference_tokens"], plain["kl_is_bound"]) == (plain["length"], 0.0)


@pytest.mark.parametrize(
    ("texts", "n", "share"),
    [(["a b c", "a b"], 2, 2 / 3), (["A a a"], 2, 1 / 2), (["one"], 2, 0.0), ([], 1, 0.0), (["x y", "x y"], 1, 1 / 2)],
)
def test_distinct_n(texts: list[str], n: int, share: float) -> None:
    assert distinct_n(texts, n) == share


# ---------------------------------------------------------------- nothing is changed by asking


@pytest.mark.parametrize("agent", ["ppo", "best_of_n", "reference", "random"])
def test_evaluating_leaves_everything_as_it_was(agent: str, toy: Toy) -> None:
    watched, other = workplace_of(toy, agent), workplace_of(toy, agent)
    evaluator = Evaluator.of(watched)
    for _ in range(3):
        evaluator()
        assert watched.setup.spending == other.setup.spending
        assert watched.setup.policy.sampling_state() == other.setup.policy.sampling_state()
        assert watched.setup.reference.sampling_state() == other.setup.reference.sampling_state()
        assert watched.source.state_dict() == other.source.state_dict()
        rollout, expected = (place.source.next(place.agent) for place in (watched, other))
        assert torch.equal(rollout.tokens, expected.tokens)
        assert torch.equal(rollout.logprobs, expected.logprobs)
        assert watched.agent.update(rollout) == other.agent.update(expected)
    for name, value in watched.setup.policy.state_dict().items():
        assert torch.equal(value, other.setup.policy.state_dict()[name])


def test_an_adaptive_penalty_does_not_adapt_to_evaluations(toy: Toy) -> None:
    workplace = workplace_of(
        toy, rewards={"length": {"target": 3}, "kl": {"weight": 0.05, "target": 1.0, "horizon": 8}}
    )
    evaluator = Evaluator.of(workplace)
    before = workplace.env.reward.state_dict()
    evaluator()
    evaluator()
    assert workplace.env.reward.state_dict() == before
    workplace.source.next(workplace.agent)
    assert workplace.env.reward.state_dict() != before


def test_a_failed_evaluation_gives_the_streams_back(toy: Toy) -> None:
    workplace = workplace_of(toy)
    evaluator = Evaluator.of(workplace)
    assert evaluator.gold is not None

    def broken(_episodes: Any, /) -> Any:
        raise OSError("no judge")

    evaluator.gold.parts["task"] = broken
    before = workplace.setup.policy.sampling_state()
    with pytest.raises(Exception, match="no judge"):
        evaluator()
    assert workplace.setup.policy.sampling_state() == before


# ---------------------------------------------------------------- KL, entropy, form


ENUMERABLE = {
    "task": {"name": "enumerable"},
    "environment": {"num_envs": 8, "max_new_tokens": 3, "max_prompt_tokens": 1},
    "rewards": {"task": 1.0, "kl": 0.1},
}


@pytest.mark.parametrize(("model", "lr"), [("table", 0.2), ("tiny", 1e-2)])
def test_the_exact_kl_of_enumerable_responses(toy: Toy, model: str, lr: float) -> None:
    """Against the mean of many sampled ones; for a table also against the sum of `lab.exact`."""
    policy = {"model": model, "tokenizer": "alphabet:abcd", "dtype": "float64"}
    many = {"prompts": 1500}
    workplace = workplace_of(
        toy, {"name": "grpo", "lr": lr, "group_size": 4}, policy=policy, evaluation=many, **ENUMERABLE
    )
    learn(workplace, 6)
    metrics = Evaluator.of(workplace)().metrics
    assert 0.05 < metrics["kl_exact"] < 3.0
    error = (metrics["kl_high"] - metrics["kl_low"]) / (2 * 1.96)
    assert abs(metrics["kl"] - metrics["kl_exact"]) < 4 * error < 0.5 * metrics["kl_exact"]
    if model == "table":
        ours, theirs = workplace.setup.policy, workplace.setup.reference
        assert isinstance(ours, TabularPolicy)
        assert isinstance(theirs, TabularPolicy)
        logprobs = [exact.response_logprobs(table.tree, table.logits.detach()) for table in (ours, theirs)]
        assert metrics["kl_exact"] == pytest.approx(float(exact.kl(*logprobs)), abs=1e-12)
    for control in ("random", "reference", "best_of_n"):
        short = {**ENUMERABLE, "policy": policy, "evaluation": {"prompts": 4}}
        assert "kl_exact" not in evaluated(toy, control, **short).metrics, "its texts are not the trained policy's"


def test_too_many_responses_are_sampled(toy: Toy) -> None:
    assert "kl_exact" not in evaluated(toy, "ppo").metrics


def test_the_interval_of_the_kl_is_that_of_a_mean(toy: Toy) -> None:
    workplace = workplace_of(toy, {"name": "ppo", "lr": 3e-2})
    learn(workplace, 3)
    evaluation = Evaluator.of(workplace)()
    kls = np.array([sample["kl"] for sample in evaluation.samples])
    prompts = [sample["prompt"] for sample in evaluation.samples]
    assert len(set(prompts)) == 3 and len(kls) == 12, "three prompts are held out, and asked several times"
    deviations = np.array([sum(kls[[it == one for it in prompts]] - kls.mean()) for one in set(prompts)])
    # Student's t at 0.975 with 2 degrees of freedom; the variance of a mean of 12 values in 3 clusters.
    wide = 4.302652729911275 * math.sqrt(3 / 2 * (deviations**2).sum()) / 12
    assert evaluation.metrics["kl_low"] == pytest.approx(kls.mean() - wide, abs=1e-9)
    assert evaluation.metrics["kl_high"] == pytest.approx(kls.mean() + wide, abs=1e-9)
    assert "kl_low" not in evaluated(toy, "best_of_n").metrics, "a bound has no interval"


def test_the_entropy_is_that_of_the_policy_on_its_own_samples(toy: Toy) -> None:
    workplace = workplace_of(toy, {"name": "ppo", "lr": 3e-2}, evaluation={"prompts": 800})
    learn(workplace, 5)
    evaluator = Evaluator.of(workplace)
    rollout, _ = evaluator.texts(workplace.agent)
    with torch.no_grad():
        exactly = workplace.setup.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).entropy
    assert evaluator().metrics["entropy"] == pytest.approx(float(exactly.sum() / rollout.actions.sum()), rel=0.03)
    assert evaluated(toy, "random").metrics["entropy"] == pytest.approx(math.log(4), abs=1e-12)
    assert "entropy" not in evaluated(toy, "best_of_n").metrics


def test_form_is_the_tasks_to_declare(toy: Toy) -> None:
    """`echo` asks for a word over "ab"; `count` says nothing, so that its answers only have to end."""
    echoed = evaluated(toy)
    wrong = [not (sample["response"] and set(sample["response"]) <= set("ab")) for sample in echoed.samples]
    assert 0 < sum(wrong) < len(wrong)
    assert echoed.metrics["format_failures"] == np.mean(wrong)
    assert wrong != [sample["finish_reason"] == "length" for sample in echoed.samples]
    counted = evaluated(toy, task={"name": "count"}, policy={"model": "tiny", "tokenizer": "alphabet:ab:"}).metrics
    assert 0.0 < counted["format_failures"] == counted["cut_at_limit"] < 1.0
    both = evaluated(toy, task={"name": "mixture", "tasks": [toy["task"], {"name": "echo", "length": 2}]})
    wrong = [not (sample["response"] and set(sample["response"]) <= set("ab")) for sample in both.samples]
    assert both.metrics["format_failures"] == np.mean(wrong)


@pytest.mark.parametrize("kl", [{"kl": 0.05}, {}, {"kl": {"weight": 0.1, "target": 2.0, "horizon": 8}}])
def test_the_reference_reads_the_texts_once(toy: Toy, kl: dict[str, Any]) -> None:
    workplace = workplace_of(toy, {"name": "ppo", "lr": 3e-2}, rewards={"length": {"target": 3}, **kl})
    learn(workplace, 4)
    plain = Evaluator.of(workplace)()
    reference, calls = workplace.setup.reference, []
    read = reference.response_logprobs
    reference.response_logprobs = lambda episodes: calls.append(len(episodes)) or read(episodes)  # type: ignore
    assert Evaluator.of(workplace)() == plain
    assert calls == [12]
    rollout, _ = Evaluator.of(workplace).texts(workplace.agent)
    under = np.array([row.sum() for row in read(rollout.episodes)])
    kls = rollout.logprobs.sum(dim=1).numpy() - under
    assert plain.metrics["kl"] == pytest.approx(kls.mean(), abs=1e-12)
    assert [sample["kl"] for sample in plain.samples] == pytest.approx(kls, abs=1e-12)
    assert abs(kls).max() > 0.1
