"""The mean of the others as a baseline."""

from __future__ import annotations

import math

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.studies.exact.estimators import ESTIMATORS, Batches, example, measure
from rlhf_env.lab.studies.exact.world import Objective


def _less_noise(seed: int, mean: float) -> float:
    world, logits = example(2, 2, 0.5, seed)
    objective = Objective(world.tree, world.reward - world.reward.mean() + mean, world.reference, world.beta)
    batches = Batches.of(objective.tree, 4)
    noise = {
        each.name: measure(objective, logits, each, batches)["k1 in reward"].noise
        for each in ESTIMATORS
        if each.name in ("REINFORCE", "RLOO")
    }
    return math.log(noise["REINFORCE"] / noise["RLOO"])


LAW = Law(
    name="leave-one-out",
    claim="A leave-one-out baseline (RLOO) makes the policy gradient less noisy than none (REINFORCE).",
    source="Kool, van Hoof and Welling 2019; Ahmadian et al. 2024, arXiv 2402.14740",
    prediction=(
        "log of the ratio of standard deviations, REINFORCE over RLOO, of groups of four; exact; standard normal "
        "rewards around a mean of 1. Predicted: above 0."
    ),
    smallest=0.05,
    measure=_less_noise,
    at=1.0,
    axis="mean reward, in standard deviations",
    places=(-2.0, -1.0, 0.0, 0.5, 1.0, 2.0),
    teaches="Rewards are not centred for you: with a mean near 0 a baseline of few answers costs more than it brings.",
)
