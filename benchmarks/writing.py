"""Writing by a copy of the policy in 8 bits or bfloat16, beside this library before it had copies, in float32.

    OMP_NUM_THREADS=1 python benchmarks/writing.py        needs git, Linux; --sizes L --rounds 3

A Llama with random weights continues 32 prompts of 32 tokens by 128 tokens each, sampled at temperature 1, the end
token suppressed. Each side is a process of its own on one thread, and they take turns; what counts is the processor's
time, and in it is the making of the copy, once for every turn, as after an update. The earlier build comes from this
repository's history, into build/. "roofline": see roofline.py. The last line is ours beside ours without oneDNN.
"""

from __future__ import annotations

from written_side import SIDES, Texts, script

TEXTS = Texts(rows=32, prompt=32, answer=128)
AT_LEAST = {("L", "int8"): 2.2, ("L", "bfloat16"): 1.5}

if __name__ == "__main__":
    script(__file__, __doc__, "writing", {"M": TEXTS, "L": TEXTS}, sides=list(SIDES), rounds=3, at_least=AT_LEAST)
