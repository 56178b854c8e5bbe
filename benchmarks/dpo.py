"""DPO on 8 pairs of 32 + 64 tokens beside TRL's trainer: with the reference read in every update, and read once.

    python benchmarks/dpo.py [--sizes SM]             needs: pip install -e ".[bench]"

"live" reads the reference on both sides. "cached" is ours on pairs that carry its log-probabilities, as stored pairs
do, beside TRL as it comes, which reads it in every update; "both cached" is beside TRL told to compute them before.
"""

from __future__ import annotations

from typing import Any

import side_by_side as bench
from rlhf_agents.dpo import DPO

from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.functional import with_reference_logprobs
from rlhf_env.learning.rollout import Rollout, preference_pairs

PAIRS, BETA = 8, 0.1


def compare(size: str, rounds: int) -> None:
    trl = bench.peer("trl", bench.TRL)
    policy, reference = bench.model(size), bench.model(size, seed=1)
    episodes = bench.texts(policy.vocab_size, 2 * PAIRS, per_prompt=2)
    live = preference_pairs(episodes[0::2], episodes[1::2], pad_id=1)
    cached = with_reference_logprobs(reference, live)
    setup = bench.setup(policy, reference, load_rewards({"kl": BETA}, bench.Given([""]), {"reference": reference}), 16)
    agent = DPO(setup, DPO.Config(group_size=2, optimization=Optimization(lr=1e-6, beta2=0.999)))

    rows = [
        {
            "prompt_ids": chosen.prompt_ids.tolist(),
            "chosen_ids": chosen.response_ids.tolist(),
            "rejected_ids": rejected.response_ids.tolist(),
        }
        for chosen, rejected in zip(episodes[0::2], episodes[1::2], strict=True)
    ]
    known = cached.extras["reference"].sum(1)
    rows_with = [
        {**row, "ref_chosen_logps": float(known[2 * i]), "ref_rejected_logps": float(known[2 * i + 1])}
        for i, row in enumerate(rows)
    ]

    trainer = bench.trainer(
        trl,
        "DPO",
        policy.model,
        reference.model,
        rows=[{"prompt": "w2", "chosen": "w3", "rejected": "w4"}] * 2,
        beta=BETA,
        per_device_train_batch_size=PAIRS,
    )

    def theirs(rows: Any, precomputed: bool) -> float:
        trainer.precompute_ref_logps = precomputed
        bench.step_of(trainer, trainer.data_collator(rows))
        return float(PAIRS)

    def ours(pairs: Rollout) -> float:
        agent.update(pairs)
        return float(PAIRS)

    metrics = agent.update(live)
    loss, norm = bench.step_of(trainer, trainer.data_collator(rows))
    bench.same("loss", metrics["loss"], loss)
    bench.same("gradient norm", metrics["grad_norm"], norm, 1e-3)

    what = f"TRL DPO, {size}, {PAIRS} pairs of {bench.PROMPT} + {bench.ANSWER}"
    small = size == "S"
    bench.take_turns(
        f"{what}, live", lambda: ours(live), lambda: theirs(rows, False), rounds=rounds, at_least=1.9 if small else None
    )
    bench.take_turns(
        f"{what}, cached",
        lambda: ours(cached),
        lambda: theirs(rows, False),
        rounds=rounds,
        at_least=2.4 if small else None,
    )
    bench.take_turns(f"{what}, both cached", lambda: ours(cached), lambda: theirs(rows_with, True), rounds=rounds)


if __name__ == "__main__":
    given = bench.arguments(__doc__)
    for size in given.sizes:
        compare(size, given.rounds)
