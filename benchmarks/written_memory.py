"""Memory of writing: what keys, values and all else take beside the model, and took before, at 1d702d9.

    OMP_NUM_THREADS=1 python benchmarks/written_memory.py        needs git, Linux; --sides float32 int8

A Llama of 10 million random weights continues 64 prompts of 64 tokens by 1,024 each. Each side is a process of its own:
it writes two short texts, so that all code is loaded, notes what memory it has, lets the kernel count its peak anew,
and writes. What is printed is the peak less what it had; a copy that writes is in it. Here "roofline" is the share of
that which keys and values need that are kept once each, in the precision that writes, but at least in 16 bits. A side
takes 20 to 60 seconds; memory hardly differs between two runs, so one is the default.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from written_side import SIDES, Texts, observation, policy_of, started

TEXTS, SIZE = Texts(rows=64, prompt=64, answer=1024), "M"
AT_LEAST = 1.8


def status(field: str) -> float:
    """A line of this process's status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:"))) / 1024


def worker(task: str) -> None:
    """Writes for every line on standard input, and answers with the memory that it took."""
    import roofline

    asked: Any = json.loads(task)
    texts, side = Texts(**asked["texts"]), asked["side"]
    policy = policy_of(side, asked["size"])
    if policy is None:
        print(json.dumps({"cannot": f"this processor has no instructions for {side}"}), flush=True)
        return
    shape = roofline.Shape.of(policy.model.config)
    position = 2 * shape.layers * shape.kv_heads * shape.width * max(2, roofline.BYTES.get(side, 4))
    for _ in sys.stdin:
        policy.write(observation(Texts(rows=2, prompt=8, answer=2), policy.vocab_size), 2)
        policy.forget()
        gc.collect()
        had = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from now
        written = policy.write(observation(texts, policy.vocab_size), texts.answer)
        took = status("VmHWM") - had
        policy.forget()
        needed = texts.rows * (texts.prompt + texts.answer) * position / 2**20
        tokens = int((written.tokens < policy.vocab_size).sum())
        print(json.dumps({"took": took, "tokens": tokens, "roofline": needed / took}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="turns of each side (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=TEXTS.rows, help="texts at once (default: %(default)s)")
    parser.add_argument("--answer", type=int, default=TEXTS.answer, help="tokens of a text (default: %(default)s)")
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, default=["float32", "bfloat16"], help="(default: %(default)s)"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker)
        return
    from earlier_build import required_build
    from side_by_side import heading, line

    texts = Texts(**{**asdict(TEXTS), "rows": given.rows, "answer": given.answer})
    build = required_build()
    heading("memory of writing, 1d702d9 / ours")
    before = turns(started(__file__, "before", SIZE, texts, build), given.rounds)
    for side in given.sides:
        ours = turns(started(__file__, side, SIZE, texts), given.rounds)
        if "cannot" in ours[0]:
            print(f"{SIDES[side]}: not measured, {ours[0]['cannot']}")
            continue
        for theirs, mine in zip(before, ours, strict=True):
            assert mine["tokens"] == theirs["tokens"] == texts.rows * texts.answer, "the sides did not do the same"
        ratios = [theirs["took"] / mine["took"] for theirs, mine in zip(before, ours, strict=True)]
        line(f"writing {SIZE}: {texts}, {SIDES[side]}", ratios, AT_LEAST, [mine["roofline"] for mine in ours])
        print(f"    {before[0]['took']:.0f} MB before, {ours[0]['took']:.0f} MB now", flush=True)


def turns(side: Any, rounds: int) -> list[Any]:
    """What a side says in each of its turns; it is alone, so that there is memory for it."""
    said = [side.turn() for _ in range(rounds)]
    side.end()
    return said


if __name__ == "__main__":
    main()
