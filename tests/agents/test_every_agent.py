"""What holds of every agent alike: its numbers, a rollout without a signal, one with a NaN, one that was cut short."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rlhf_env import plugins
from rlhf_env.errors import DataError, RunFailed
from rlhf_env.learning import functional
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.logged import number_called
from rlhf_env.learning.loop import describe
from rlhf_env.learning.pretraining_mix import mixing
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.sources import EnvSource
from rlhf_env.types import Score

from .conftest import World, build_world, stir

TEXTS = {"name": "prompts", "prompts": ["a:bb=", "ab:", "=:ab=b:a"]}
GROUPS: dict[str, Any] = {"group_size": 4}
PAIRS = str(Path(__file__).with_name("pairs.jsonl"))
# Every agent that trains with micro-batches, in the variants that log numbers of their own.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "reinforce": ("reinforce", {}),
    "reinforce, to go": ("reinforce", {"baseline": "batch", "reward_to_go": True}),
    "rloo": ("rloo", GROUPS),
    "grpo": ("grpo", GROUPS),
    "grpo, kl in loss": ("grpo", {**GROUPS, "kl_in_loss": "k2", "importance": "sequence", "aggregation": "dr-grpo"}),
    "grpo, dapo": ("grpo", {**GROUPS, "loss": "dapo"}),
    "grpo, gspo": ("grpo", {**GROUPS, "loss": "gspo", "kl_in_loss": "k3-corrected"}),
    "grpo, clip-cov": ("grpo", {**GROUPS, "loss": {"name": "clip-cov", "lowest": 0.01, "share": 0.2}}),
    "grpo, maxrl": ("grpo", {**GROUPS, "loss": "maxrl"}),
    "rloo, sapo": ("rloo", {**GROUPS, "loss": "sapo"}),
    "reinforce, ++": ("reinforce", {"loss": "reinforce++", "reward_to_go": True, "mask_overlong": True}),
    "ppo": ("ppo", {}),
    "ppo, cispo": ("ppo", {"loss": {"name": "cispo", "aggregation": "sequence-mean"}, "mask_overlong": True}),
    "ppo, separate": ("ppo", {"value_model": "separate", "value_clip": 0.01, "entropy_coefficient": 0.01}),
    "ppo, mixed": ("ppo", {"optimization": {"ptx_coefficient": 0.5, "ptx_rows": 5, "ptx_data": TEXTS}}),
    "sft+rm": ("sft+rm", {"preferences": PAIRS, "step_tokens": 100}),
    "sft+rm, separate": ("sft+rm", {"preferences": PAIRS, "step_tokens": 100, "way": "separate"}),
    "dpo": ("dpo", GROUPS),
    "dpo, soft": ("dpo", {**GROUPS, "labels": "bradley-terry", "length_normalised": True}),
    "dpo, sppo": ("dpo", {**GROUPS, "loss": "sppo"}),
    "dpo, simpo": ("dpo", {**GROUPS, "loss": "simpo"}),
    "dpo, orpo": ("dpo", {**GROUPS, "loss": {"name": "orpo", "weight": 0.5}}),
    "kto": ("kto", GROUPS),
    "rejection": ("rejection", {**GROUPS, "keep": 2}),
    "options": ("options", {"option_entropy_coefficient": 0.01, "diversity_coefficient": 0.1}),
    "distill": ("distill", {"divergence": "sequence", "best_of": 2}),
    "distill, jsd": ("distill", {"teacher": "lent", "group_size": 4}),
    "curriculum": ("curriculum", {"levels": (2,), "agent": ("ppo", {})}),
    "replay": ("replay", {"agent": ("grpo", GROUPS)}),
    "temperature": ("temperature", {"agent": ("rloo", {**GROUPS, "entropy_coefficient": 0.1})}),
    "backward_curriculum": ("backward_curriculum", {"column": "answer", "agent": ("grpo", GROUPS)}),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sb3": ("sb3", {"batch_size": 1000, "n_epochs": 2}),
    "sb3, a2c": ("sb3", {"algorithm": "a2c"}),
    "best_of_n": ("best_of_n", {"n": 2}),
    "reference": ("reference", {}),
    "random": ("random", {}),
}
GROUPED = [
    "rloo",
    "rloo, sapo",
    "grpo",
    "grpo, dapo",
    "grpo, maxrl",
    "dpo",
    "dpo, sppo",
    "dpo, simpo",
    "kto",
    "rejection",
]


def make(world: World, variant: str, optimization: Optimization | None = None, **more: Any) -> Any:
    """The agent of a variant; what does not fit it (gradient steps of controls) is left out."""
    name, settings = {**VARIANTS, **OTHERS}[variant]
    kind: Any = plugins.host().load("agent", name)
    inner = settings.get("agent")
    mixing(world.setup)  # its engine may be new
    if "optimization" in settings:
        optimization = replace(optimization or Optimization(), **settings["optimization"])
    settings = {key: value for key, value in settings.items() if key not in ("agent", "optimization")}
    if inner is None:
        fields = kind.Config.__dataclass_fields__
        more = {key: value for key, value in more.items() if key in fields}
        if optimization is not None and "optimization" in fields:
            more["optimization"] = optimization
        lent: dict[str, Any] = {}
        if settings.get("teacher") == "lent":
            lent["teacher"] = world.setup.reference.frozen_copy()
            stir(lent["teacher"], seed=7)
        return kind(world.setup, kind.Config(**settings, **more), **lent)
    inside: Any = plugins.host().load("agent", inner[0])
    if optimization is not None:
        more["optimization"] = optimization
    return kind(world.setup, kind.Config(**settings), inside(world.setup, inside.Config(**inner[1], **more)))


def world_of(variant: str, **more: Any) -> World:
    # Of 0 to 1, which maxrl needs.
    echo = {"task": {"name": "echo", "length": 2, "alphabet": "ab"}}
    task = echo if variant in ("curriculum", "backward_curriculum", "grpo, maxrl") else {}
    return build_world(rows=8, kl=0.3, **task, **more)


def material(variant: str) -> Rollout:
    """Eight texts of unequal length. Who updates has moved since they were written: no ratio is 1, no KL is 0."""
    world = world_of(variant, action_length=2 if variant == "options" else None)
    agent = make(world, variant)
    rollout = world.rollout(agent, seed=5)
    if variant in ("curriculum", "backward_curriculum", "grpo, maxrl"):  # echo hardly succeeds at first
        return with_rewards(rollout, [0.1, 0.9, 0.4, 0.0, 1.0, 0.3, 0.6, 0.2])
    return rollout


def update(variant: str, rollout: Rollout, optimization: Optimization, **more: Any) -> dict[str, float]:
    """The numbers of a first update on `rollout`, whose texts an older policy wrote."""
    world = world_of(variant, action_length=2 if variant == "options" else None)
    agent = make(world, variant, optimization, **more)
    stir(agent.policy, seed=2)
    numbers: dict[str, float] = agent.update(rollout)
    return numbers


def assert_same(numbers: dict[str, float], expected: dict[str, float], what: str) -> None:
    assert numbers.keys() == expected.keys()
    off = {name: (numbers[name], expected[name]) for name in expected if abs(numbers[name] - expected[name]) > 1e-12}
    assert not off, f"{what}: {off}"


def said_of(name: str, variant: tuple[str, dict[str, Any]]) -> bool:
    """Whether it is written down what a number is that an agent, or the one inside it, logs."""
    entry = number_called(name if "/" in name else f"train/{name}")
    inside = variant[1].get("agent", ("",))[0]
    return entry is not None and (not entry.of or bool({variant[0], inside} & {*entry.of}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_number_knows_how_the_batch_was_split_or_laid_out(variant: str) -> None:
    rollout = material(variant)
    assert len(set(rollout.lengths.tolist())) > 2
    two_steps: dict[str, Any] = {"epochs": 2, "minibatches": 2}
    whole = update(variant, rollout, Optimization(lr=1e-3))
    assert sum(abs(value) > 1e-6 for value in whole.values()) >= 3
    unexplained = [name for name in whole if not said_of(name, VARIANTS[variant])]
    assert not unexplained, f"say what they mean, and whose they are, in rlhf_env/learning/logged.py: {unexplained}"
    several = update(variant, rollout, Optimization(lr=1e-3), **two_steps)
    for size in (2, 4):
        split = Optimization(lr=1e-3, micro_batch_size=size, micro_batch_tokens=0)
        assert_same(update(variant, rollout, split), whole, f"micro-batches of {size}")
        assert_same(update(variant, rollout, split, **two_steps), several, f"micro-batches of {size}, four steps")
    by_tokens = Optimization(lr=1e-3, micro_batch_tokens=17)
    assert_same(update(variant, rollout, by_tokens), whole, "micro-batches of 17 tokens")
    for order in ([5, 2, 7, 0, 1, 4, 3, 6], [7, 6, 5, 4, 3, 2, 1, 0]):
        shuffled = rollout.select(order)
        assert_same(update(variant, shuffled, Optimization(lr=1e-3)), whole, f"rows {order}")
        assert_same(
            update(variant, shuffled, Optimization(lr=1e-3, micro_batch_size=2)), whole, f"rows {order} in twos"
        )
    wider = replace(
        rollout,
        **{name: F.pad(getattr(rollout, name), (0, 3)) for name in ("tokens", "mask", "actions")},
        logprobs=F.pad(rollout.logprobs, (0, 3), value=7.0),
        extras={name: F.pad(values, (0, 3), value=7.0) for name, values in rollout.extras.items()},
    )
    assert_same(update(variant, wider, Optimization(lr=1e-3)), whole, "three columns of padding")


def test_the_numbers_of_stable_baselines3_know_no_order_of_rows() -> None:
    rollout = material("sb3")
    whole = update("sb3", rollout, Optimization())
    assert "loss" not in whole  # theirs is of the last minibatch
    for order in ([5, 2, 7, 0, 1, 4, 3, 6], [7, 6, 5, 4, 3, 2, 1, 0]):
        assert_same(update("sb3", rollout.select(order), Optimization()), whole, f"rows {order}")


def test_what_a_rollout_says_of_itself_knows_no_order_of_rows() -> None:
    rollout = material("grpo")
    said = {name: value for name, value in describe(rollout).items() if isinstance(value, float)}
    assert len(said) > 6
    other = describe(rollout.select([5, 2, 7, 0, 1, 4, 3, 6]))
    assert_same({name: other[name] for name in said}, said, "describe")


ONE_STEP = ("sft", "sft+rm", "sft+rm, separate", "reinforce", "reinforce, to go", "reinforce, ++")


@pytest.mark.parametrize("variant", [it for it in VARIANTS if it not in ONE_STEP])
def test_an_update_logs_the_mean_over_all_its_gradient_steps(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = material(variant)
    world = world_of(variant, action_length=2 if variant == "options" else None)
    agent = make(world, variant, Optimization(lr=1e-2), epochs=2, minibatches=2)
    stir(agent.policy, seed=2)
    stepper, name = (agent.imitation, "update") if variant == "rejection" else (agent, "_step")
    stepper = agent.agent if "agent" in {**VARIANTS, **OTHERS}[variant][1] else stepper
    steps: list[dict[str, float]] = []
    step = getattr(stepper, name)
    monkeypatch.setattr(stepper, name, lambda *given: steps.append(step(*given)) or steps[-1])
    logged = agent.update(rollout)
    assert len(steps) == 4
    shared = steps[0].keys() & logged.keys() - {"lr", "steps_without_signal"}
    assert "grad_norm" in shared and (len(shared) > 2 or variant == "rejection")
    for key in shared:
        values = [it[key] for it in steps]
        assert abs(logged[key] - math.fsum(values) / 4) < 1e-12, key
    assert len({round(it["grad_norm"], 9) for it in steps}) == 4


def test_a_step_without_a_gradient_is_counted_as_one() -> None:
    steps = [{"loss": 1.0, "grad_norm": 0.0}, {"loss": 4.0, "grad_norm": 3.0}]
    assert functional.over_steps(steps) == {"loss": 2.5, "grad_norm": 1.5, "steps_without_signal": 0.5}


# ---------------------------------------------------------------- no signal, no step


def with_rewards(rollout: Rollout, rewards: list[float]) -> Rollout:
    scores = tuple(Score(raw={"task": reward}, weights={"task": 1.0}) for reward in rewards)
    return replace(rollout, scores=scores)


def everything(agent: Any) -> Any:
    """Parameters and moments, without the streams that draw orders."""
    state = copy.deepcopy(agent.state_dict())
    inner = state.get("agent", state.get("imitation", state))
    return {key: value for key, value in inner.items() if key not in ("order", "dropout", "sampling", "baseline")}


def assert_unchanged(before: Any, now: Any) -> None:
    if isinstance(before, dict):
        assert before.keys() == now.keys()
        for key in before:
            assert_unchanged(before[key], now[key])
    elif isinstance(before, torch.Tensor):
        assert torch.equal(before, now)
    else:
        assert before == now


def trained(variant: str) -> tuple[Any, Rollout]:
    """An agent whose optimizer has moments and decays weights, and a rollout of its own."""
    world = world_of(variant, action_length=2 if variant == "options" else None)
    settings: dict[str, Any] = {}
    if variant in ("ppo", "options", "curriculum"):
        settings["value_coefficient"] = 0.0  # a value may learn from any rollout
    if variant == "sb3":
        settings = {"vf_coef": 0.0}
    if variant == "reinforce":
        settings = {"baseline": "batch"}
    agent = make(world, variant, Optimization(lr=1e-2, weight_decay=0.1), **settings)
    rollout = world.rollout(agent, seed=5)
    agent.update(rollout)
    return agent, world.rollout(agent, seed=6)


@pytest.mark.parametrize("variant", [*GROUPED, "reinforce"])
def test_a_rollout_without_spread_moves_nothing_and_is_counted(variant: str) -> None:
    agent, rollout = trained(variant)
    before, steps = everything(agent), agent.setup.spending.gradient_steps
    metrics = agent.update(with_rewards(rollout, [0.7] * 8))
    assert_unchanged(before, everything(agent))
    assert metrics["steps_without_signal"] == 1.0
    assert agent.setup.spending.gradient_steps == steps
    agent.update(with_rewards(rollout, [0.7] * 4 + [0.1, 0.2, 0.3, 0.4]))
    assert agent.setup.spending.gradient_steps == steps + 1


@pytest.mark.parametrize("variant", [*GROUPED, "reinforce", "ppo", "options", "curriculum"])
def test_a_rollout_in_which_nothing_is_trainable_moves_nothing_and_is_counted(variant: str) -> None:
    agent, rollout = trained(variant)
    before, steps = everything(agent), agent.setup.spending.gradient_steps
    nothing = torch.zeros_like(rollout.actions)
    episodes = tuple(replace(it, actions=it.actions & False) for it in rollout.episodes)
    metrics = agent.update(replace(rollout, actions=nothing, episodes=episodes))
    assert_unchanged(before, everything(agent))
    assert metrics["steps_without_signal"] == 1.0
    assert agent.setup.spending.gradient_steps == steps
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(("variant", "says"), [("sft", "none of the texts has a token"), ("sb3", "two tokens or more")])
def test_who_cannot_do_without_tokens_says_so_and_changes_nothing(variant: str, says: str) -> None:
    agent, rollout = trained(variant)
    before = everything(agent)
    with pytest.raises(DataError, match=says):
        agent.update(replace(rollout, actions=torch.zeros_like(rollout.actions)))
    assert_unchanged(before, everything(agent))


def test_steps_of_stable_baselines3_without_a_gradient_change_nothing() -> None:
    agent, rollout = trained("sb3")
    before, steps = everything(agent), agent.setup.spending.gradient_steps
    metrics = agent.update(with_rewards(rollout.with_extras(), [0.0] * 8))
    values_are_zero = not any(values.any() for values in agent.actor_critic.value_head.state_dict().values())
    assert values_are_zero  # so that advantages are 0
    assert_unchanged(before, everything(agent))
    assert metrics["steps_without_signal"] == 1.0 and metrics["gradient_steps"] == 0.0
    assert agent.setup.spending.gradient_steps == steps


# ---------------------------------------------------------------- no number, no step


@pytest.mark.parametrize("variant", [*VARIANTS, *OTHERS])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_log_probability_that_is_no_number_is_named_and_nothing_is_learned(variant: str, value: float) -> None:
    world = world_of(variant, action_length=2 if variant == "options" else None)
    agent = make(world, variant)
    rollout = world.rollout(agent, seed=5)
    row, position = rollout.actions.nonzero().tolist()[-2]
    logprobs = rollout.logprobs.clone()
    logprobs[row, position] = value
    before, spent = copy.deepcopy(agent.state_dict()), world.setup.spending.as_dict()
    weights = [parameter.clone() for parameter in world.setup.policy.parameters()]
    with pytest.raises(RunFailed, match=f"logprobs of row {row} is {value} at position {position}"):
        agent.update(replace(rollout, logprobs=logprobs))
    assert_unchanged(before, agent.state_dict())
    assert world.setup.spending.as_dict() == spent
    assert all(torch.equal(a, b) for a, b in zip(weights, world.setup.policy.parameters(), strict=True))
    elsewhere = torch.where(rollout.actions, rollout.logprobs, math.nan)
    agent.update(replace(rollout, logprobs=elsewhere))  # where no token of the agent stands, nobody looks


def test_other_numbers_of_a_rollout_are_named_too() -> None:
    rollout = material("grpo")
    wrong = torch.zeros_like(rollout.logprobs).masked_fill(rollout.actions, math.nan)
    with pytest.raises(RunFailed, match=r"extra 'values' of row 0 is nan at position \d+ \(one of \d+ such numbers\)"):
        rollout.with_extras(values=wrong).require_finite()
    scores = list(rollout.scores)
    scores[3] = Score(raw={"task": math.inf}, weights={"task": 1.0})
    with pytest.raises(RunFailed, match="reward part 'task' of row 3 is inf"):
        replace(rollout, scores=tuple(scores)).require_finite()


# ---------------------------------------------------------------- cut from outside


@pytest.mark.parametrize("variant", [*VARIANTS, *OTHERS])
def test_texts_that_were_cut_stand_beside_others(variant: str) -> None:
    """Cut after two of up to six tokens; what ended before that has a score."""
    if variant in ("best_of_n", "distill", "rejection"):  # whole answers in one step are never cut
        steps = {"whole_responses": variant != "rejection"}
    else:
        steps = {"action_length": 2} if variant == "options" else {"whole_responses": False}
    world = world_of(variant, max_episode_steps=2, **steps)
    agent = make(world, variant)
    source = EnvSource(world.env, seed=0, spending=world.setup.spending, reference=world.setup.reference)
    seen = set()
    for _ in range(6):
        rollout = source.next(agent)
        row = describe(rollout)
        metrics = agent.update(rollout)
        assert all(math.isfinite(value) for value in metrics.values())
        cut = int(rollout.truncated.sum())
        seen.add("all" if cut == 8 else "some" if cut else "none")
        assert row.get("rollout/cut_from_outside", 0.0) == cut / 8
        if 0 < cut < 8:
            totals = [score.total for score in rollout.scores if score.raw]
            assert abs(row["rollout/reward"] - sum(totals) / len(totals)) < 1e-12
            assert len(totals) == 8 - cut
            of_task = [score.raw["task"] for score in rollout.scores if score.raw]
            assert abs(row["rollout/part/task"] - sum(of_task) / len(of_task)) < 1e-12
    assert "some" in seen or variant in ("best_of_n", "distill", "random")
