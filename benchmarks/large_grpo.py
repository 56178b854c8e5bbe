"""GRPO on a model of the shape of SmolLM2-135M (random weights) beside TRL's trainer, with and without adapters.

    python benchmarks/large_grpo.py [--rounds 3] [--rows int8 lora full]       needs: pip install -e ".[bench,peft]"

In float32, 4 prompts of 32 tokens with 4 answers of 64 each, without a reference; adapters of rank 16 on all matrices
but the head's ("few": on queries and values, peft's default), or on `--targets`. "int8" is "lora" with the answers
written by a copy of the policy in 8 bits, which is made anew after every update, in the time that is compared. A turn
of both sides takes about a minute.

"roofline" is the floor over our time: the products that nobody can do without, as fast as a plain product runs here.
Where a mark is missed, what the ratio would be at that floor is printed: a mark above it is out of reach here.
"""

from __future__ import annotations

import argparse

import groups
import side_by_side as bench

PROMPTS, RANK = 4, 16
AT_LEAST = {"int8": 3.5, "lora": 2.2, "few": 2.2, "full": 2.0}
FEW = ["q_proj", "v_proj"]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default: %(default)s)")
    parser.add_argument("--rows", nargs="+", choices=AT_LEAST, default=list(AT_LEAST), help="(default: all)")
    parser.add_argument("--targets", nargs="+", help="the modules that have adapters, in the rows of adapters on all")
    given = parser.parse_args()
    bench.heading()
    for row in given.rows:
        groups.compare(
            "GRPO",
            "L",
            beta=0.0,
            rounds=given.rounds,
            at_least=AT_LEAST[row],
            prompts_at_once=PROMPTS,
            lora=0 if row == "full" else RANK,
            targets=tuple(FEW if row == "few" else given.targets or ["all-linear"]),
            writer="int8" if row == "int8" else None,
            # The update is that of "lora", which stands there.
            parts=["rollout and update"] if row == "int8" else ["update", "rollout and update"],
            loss_type="grpo",
        )
