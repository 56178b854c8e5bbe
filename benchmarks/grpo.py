"""GRPO beside TRL's trainer, on the same weights, prompts and tokens; no reference on either side.

python benchmarks/grpo.py [--sizes SM]            needs: pip install -e ".[bench]"
"""

from __future__ import annotations

import groups
import side_by_side as bench

AT_LEAST = {"S": 2.2, "M": 1.8}

if __name__ == "__main__":
    given = bench.arguments(__doc__, sizes="SM")
    for size in given.sizes:
        groups.compare("GRPO", size, beta=0.0, rounds=given.rounds, at_least=AT_LEAST[size], loss_type="grpo")
