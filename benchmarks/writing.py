"""Writing by a copy of the policy in 8 bits or bfloat16, beside this library before it had copies, in float32.

    OMP_NUM_THREADS=1 python benchmarks/writing.py        needs git, Linux; --sizes ML --rounds 5

A Llama with random weights continues 32 prompts of 32 tokens by 128 tokens each, sampled at temperature 1, the end
token suppressed. Each side is a process of its own on one thread, and they take turns; what counts is the processor's
time, and in it is the making of the copy, once for every turn, as after an update. The earlier build comes from this
repository's history, into build/.

"roofline" is the share of the time that the matrix products alone would need, if each ran as fast as the quicker of two
plain products of the same kind, [32 or 1024, 576] x [576, 3072], which the same process measures in the same turn.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROWS, PROMPT, ANSWER = 32, 32, 128
# name: hidden size, layers, heads, key and value heads, vocabulary (10.1 M, 134 M parameters)
MODELS = {"M": (320, 6, 5, 5, 8192), "L": (576, 30, 9, 3, 49152)}
SIDES = {
    "float32": "float32, now",
    "float32-mkl": "float32, now, without oneDNN",
    "bfloat16": "a copy in bfloat16",
    "int8": "a copy in 8 bits",
}
AT_LEAST = {("L", "int8"): 2.2, ("L", "bfloat16"): 1.5}


def model(size: str) -> Any:
    """A random Llama with tied embeddings whose end token, 0, cannot come."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, layers, heads, kv_heads, vocabulary = MODELS[size]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    made = LlamaForCausalLM(config).eval()
    bias = torch.zeros(vocabulary)
    bias[0] = -torch.inf
    made.lm_head.register_parameter("bias", torch.nn.Parameter(bias))
    return made


def worker(side: str, size: str) -> None:
    """Writes once for every line on standard input, and answers with what it took and what it did."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(1)
    if side == "float32-mkl":
        torch.backends.mkldnn.is_available = lambda: False  # type: ignore[assignment]
    from rlhf_env.policies import LanguageModel

    copy: dict[str, Any] = {"writer_dtype": side} if side in ("int8", "bfloat16") else {}
    policy = LanguageModel(model(size), **copy)
    if copy and not policy.copy_writes:
        print(json.dumps({"cannot": f"this processor has no instructions for {side}"}), flush=True)
        return
    prompts = np.random.default_rng(0).integers(2, policy.vocab_size, (ROWS, PROMPT))
    observation: Any = {"input_ids": prompts, "attention_mask": np.ones_like(prompts)}
    for _ in sys.stdin:
        policy.reseed(0)
        policy.forget()
        start = time.process_time()
        written = policy.write(observation, ANSWER)
        seconds = time.process_time() - start
        policy.forget()
        said = {
            "seconds": seconds,
            "tokens": int((written.tokens < policy.vocab_size).sum()),
            "first": hashlib.sha256(written.tokens[:, :8].tobytes()).hexdigest(),
            "logprob": float(written.logprobs.mean()),
            "roofline": multiplications(size) * seconds_per_multiplication(side) / seconds,
        }
        print(json.dumps(said), flush=True)


def multiplications(size: str) -> float:
    """Of all matrix products: the layers read every token but the last, the head gives one token after another."""
    hidden, layers, heads, kv_heads, vocabulary = MODELS[size]
    width = hidden // heads
    layer = hidden * (heads + 2 * kv_heads) * width + heads * width * hidden + 3 * hidden * (8 * hidden // 3)
    return float(ROWS * ((PROMPT + ANSWER - 1) * layers * layer + ANSWER * vocabulary * hidden))


def seconds_per_multiplication(side: str) -> float:
    """In the quickest of several runs of two plain products."""
    return min(_seconds_per_multiplication(side, rows) for rows in (32, 1024))


def _seconds_per_multiplication(side: str, rows: int) -> float:
    x, weight = torch.randn(rows, 576), torch.randn(3072, 576)
    product: Callable[[], Any]
    if side == "int8":
        whole, other = (it.mul(20).clamp(-127, 127).to(torch.int8) for it in (x, weight))
        product = partial(torch._int_mm, whole, other.t())
    elif side == "float32-mkl":
        product = partial(torch.nn.functional.linear, x, weight)
    else:
        kind = torch.bfloat16 if side == "bfloat16" else torch.float32
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(kind), 32)
        product = partial(torch.ops.mkldnn._linear_pointwise, x.to(kind), packed, None, "none", [], "")
    repeats, took = 320 // rows + 1, []
    for _ in range(20):
        start = time.process_time()
        for _ in range(repeats):
            product()
        took.append((time.process_time() - start) / repeats)
    return min(took) / (rows * 576 * 3072)


class Side:
    """A process that writes when it is told to."""

    def __init__(self, side: str, size: str, build: Path | None = None) -> None:
        from run_memory import SOURCES

        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        if build is not None:
            environment["PYTHONPATH"] = os.pathsep.join(str(build / part) for part in SOURCES)
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", side, "--sizes", size],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def turn(self) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write("write\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has said why, and ended
        said = self.process.stdout.readline()
        return json.loads(said) if said else sys.exit("a side ended early")

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(size: str, rounds: int, build: Path, asked: list[str]) -> None:
    before = Side("before", size, build)
    sides = {side: Side(side, size) for side in asked}
    first, ratios, rooflines = before.turn(), dict[str, list[float]](), dict[str, list[float]]()
    for side in list(sides):
        said = sides[side].turn()  # warms up, and is looked at
        if "cannot" in said:
            print(f"{SIDES[side]}: not measured, {said['cannot']}")
            del sides[side]
            continue
        assert said["tokens"] == first["tokens"] == ROWS * ANSWER, "the sides did not do the same"
        assert abs(said["logprob"] / first["logprob"] - 1.0) < 0.02, "the sides are of different models"
        if side.startswith("float32"):
            assert said["first"] == first["first"], "the sides wrote different texts"
    for _ in range(rounds):
        theirs = before.turn()["seconds"]
        for side, process in sides.items():
            said = process.turn()
            ratios.setdefault(side, []).append(theirs / said["seconds"])
            rooflines.setdefault(side, []).append(said["roofline"])
    for side in sides:
        name = f"writing {size}: {ROWS} x {PROMPT} + {ANSWER}, {SIDES[side]} / before"
        bound = AT_LEAST.get((size, side))
        said = f"{name:64} {statistics.median(ratios[side]):7.2f} {min(ratios[side]):7.2f} {max(ratios[side]):7.2f}"
        print(f"{said} {bound or '':>9} {statistics.median(rooflines[side]):9.2f}", flush=True)
    for process in (before, *sides.values()):
        process.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default="ML", help="of the models: letters of M, L (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default: %(default)s)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="default: all")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker, given.sizes)
        return
    from run_memory import BEFORE, earlier_build
    from side_by_side import machine

    build = earlier_build()
    if build is None:
        sys.exit(f"not measured: this clone has no commit {BEFORE}")
    print(machine())
    print(f"{'processor time, before / ours':64} {'median':>7} {'min':>7} {'max':>7} {'at least':>9} {'roofline':>9}")
    for size in given.sizes:
        measure(size, given.rounds, build, given.sides)


if __name__ == "__main__":
    main()
