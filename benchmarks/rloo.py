"""RLOO with a KL penalty in the reward, beside TRL's trainer, on the same weights, prompts and tokens.

python benchmarks/rloo.py [--sizes SM]            needs: pip install -e ".[bench]"
"""

from __future__ import annotations

import groups
import side_by_side as bench

AT_LEAST = {"S": 2.2, "M": None}

if __name__ == "__main__":
    given = bench.arguments(__doc__)
    for size in given.sizes:
        groups.compare("RLOO", size, beta=0.05, rounds=given.rounds, at_least=AT_LEAST[size])
