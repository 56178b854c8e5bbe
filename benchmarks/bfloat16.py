"""What `dtype = "bfloat16"` gains over float32, and what it costs: GRPO on a model of the shape of SmolLM2-135M.

    python benchmarks/bfloat16.py [--rounds 3] [--seeds 5]

Both sides are ours, with random weights, 4 prompts of 32 tokens with 4 answers of 64 each. The gradient is that of one
update on given texts, of all weights. The curve is that of a small model that learns the toy task `count`: the mean
reward of its last texts, by seed; intervals are of means over seeds, 95 % (Student's t). Beside it stands float32 from
the very weights that bfloat16 starts from, which are its own rounded: what so small a move changes is chance, and the
run that follows is another one. A processor without instructions for bfloat16 (avx512_bf16, AMX) gains nothing, and the
script says so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator

import groups
import numpy as np
import side_by_side as bench
import torch
from rlhf_agents.grpo import GRPO

from rlhf_env.envs.reward_functions import from_function
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.lab.statistics import student_mean
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.workplace import build
from rlhf_env.policies import LanguageModel
from rlhf_env.policies.linear import multiplies_bfloat16
from rlhf_env.types import Observation, Score

PROMPTS, LAST = 4, 10
ROWS = PROMPTS * groups.GROUP
RATIO_AT_LEAST, COSINE_AT_LEAST = 1.5, 0.999


def sides(dtype: torch.dtype) -> tuple[Callable[[], float], Callable[[], float], Callable[[], torch.Tensor]]:
    """Of a policy of this precision: writing, an update on given texts, and the update's gradient."""
    policy = bench.model("L")
    policy.model.to(dtype)
    episodes = bench.texts(policy.vocab_size, ROWS, per_prompt=groups.GROUP)
    worth = groups.liked([it.response_ids for it in episodes])
    scores = [Score(raw={"liked": value}, weights={"liked": 1.0}) for value in worth]
    rollout = bench.stated_by(policy, Rollout.from_episodes(episodes, scores, pad_id=1, group_size=groups.GROUP))
    setup = bench.setup(policy, policy, RewardMix({"liked": from_function(groups.liked)}), ROWS)
    agent = GRPO(setup, GRPO.Config())
    prompts = np.stack([it.prompt_ids for it in episodes])
    observation: Observation = {"input_ids": prompts, "attention_mask": np.ones_like(prompts, bool)}

    def write() -> float:
        return float((policy.write(observation, bench.ANSWER).tokens < policy.vocab_size).sum())

    def update() -> float:
        agent.update(rollout)
        return float(rollout.actions.sum())

    def gradient() -> torch.Tensor:
        return gradient_of(policy, rollout)

    return write, update, gradient


def gradient_of(policy: LanguageModel, rollout: Rollout) -> torch.Tensor:
    """Of the policy gradient loss on the rollout, all weights in a row, in float32."""
    scores = policy.evaluate(rollout.tokens, rollout.mask, rollout.actions)
    advantages = torch.linspace(-1.0, 1.0, len(rollout))
    (-(scores.logprobs.sum(1) * advantages).sum()).backward()
    gradient = torch.cat([weight.grad.float().flatten() for weight in policy.parameters() if weight.grad is not None])
    policy.zero_grad()
    return gradient


def curve(dtype: str, seeds: int, *, rounded: bool = False) -> Iterator[float]:
    """By seed, the mean reward of the last updates; `rounded`: of runs whose first weights are rounded to bfloat16."""
    for seed in range(seeds):
        experiment = Experiment.from_table(
            {
                "seed": seed,
                "task": {"name": "count", "letter": "a", "target": 4},
                "policy": {"model": "tiny", "tokenizer": "alphabet:abcd:", "dtype": dtype},
                "environment": {"num_envs": 64, "max_new_tokens": 12, "max_prompt_tokens": 4},
                "rewards": {"task": 1.0, "missing_end": 1.0},
                "agent": {"name": "grpo", "group_size": 8, "lr": 3e-3},
                "budget": {"updates": 60},
            }
        )
        workplace = build(experiment)
        if rounded:
            with torch.no_grad():
                for weight in workplace.setup.policy.parameters():
                    weight.copy_(weight.bfloat16())
        rows = workplace.train().rows
        yield statistics.mean(row["rollout/reward"] for row in rows[-LAST:])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="of the learning curve (default: %(default)s)")
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error("--seeds: an interval takes 2 or more")
    if not multiplies_bfloat16():
        sys.exit("this processor has no instructions for bfloat16 (avx512_bf16, AMX): nothing is gained, nor measured")
    bench.heading("processor time, float32 / bfloat16")
    (write, update, gradient), (write_exactly, update_exactly, exact_gradient) = map(
        sides, (torch.bfloat16, torch.float32)
    )
    ours, exact = gradient(), exact_gradient()
    cosine = float(torch.nn.functional.cosine_similarity(ours.double(), exact.double(), dim=0))
    del ours, exact
    what = f"{PROMPTS} x {groups.GROUP} x {bench.ANSWER}"
    bench.take_turns(f"write, L, {what}", write, write_exactly, rounds=given.rounds)
    bench.take_turns(f"update, L, {what}", update, update_exactly, rounds=given.rounds)
    bench.take_turns(
        f"write and update, L, {what}",
        lambda: write() + update(),
        lambda: write_exactly() + update_exactly(),
        rounds=given.rounds,
        at_least=RATIO_AT_LEAST,
    )
    print(f"{'cosine of the gradients':64} {cosine:7.5f} {'':15} {COSINE_AT_LEAST:9}", flush=True)
    half, single = (np.array(list(curve(dtype, given.seeds))) for dtype in ("bfloat16", "float32"))
    moved = np.array(list(curve("float32", given.seeds, rounded=True)))
    for name, found in (
        ("float32", student_mean(single)),
        ("float32 from rounded weights", student_mean(moved)),
        ("bfloat16", student_mean(half)),
        ("rounded weights - float32, by seed", student_mean(moved - single)),
        ("bfloat16 - float32, by seed", student_mean(half - single)),
        ("bfloat16 - rounded weights, by seed", student_mean(half - moved)),
    ):
        named = f"reward at the end, {given.seeds} seeds, {name}"
        print(f"{named:64} {found.value:7.3f} {found.low:7.3f} {found.high:7.3f}", flush=True)


if __name__ == "__main__":
    main()
