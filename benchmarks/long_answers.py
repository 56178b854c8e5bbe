"""Long answers beside this library before it had copies that write: most of the work is attention to the cache.

    OMP_NUM_THREADS=1 python benchmarks/long_answers.py        needs git, Linux; --rounds 2 --sides float32 int8

A Llama of 10 million random weights continues 16 prompts of 64 tokens by 1,024 tokens each. Sides, clock and columns
are those of writing.py.
"""

from __future__ import annotations

from written_side import Texts, script

AT_LEAST = dict.fromkeys([("M", "float32"), ("M", "bfloat16"), ("M", "int8")], 1.5)

if __name__ == "__main__":
    texts = Texts(rows=16, prompt=64, answer=1024)
    script(__file__, __doc__, "long answers", {"M": texts}, sides=["float32", "int8"], rounds=2, at_least=AT_LEAST)
