"""Groups of answers to one long prompt, beside this library before it had copies that write.

    OMP_NUM_THREADS=1 python benchmarks/shared_prompts.py        needs git, Linux; --rounds 2 --sides float32 int8

A Llama of 134 million random weights answers one prompt of 512 tokens 16 times, by 64 tokens each, as a group of GRPO's
does. The prompt is read once on both sides; what differs is how often its keys and values are kept and read. Sides,
clock and columns are those of writing.py.
"""

from __future__ import annotations

from written_side import Texts, script

AT_LEAST = dict.fromkeys([("L", "float32"), ("L", "bfloat16"), ("L", "int8")], 1.5)

if __name__ == "__main__":
    texts = Texts(rows=16, prompt=512, answer=64, per_prompt=16)
    script(__file__, __doc__, "one prompt", {"L": texts}, sides=["float32", "int8"], rounds=2, at_least=AT_LEAST)
