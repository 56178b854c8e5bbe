"""What the scripts share that compare our writing with this library's before it had copies that write, `1d702d9`.

A Llama with random weights continues prompts, sampled at temperature 1, the end token suppressed. Each side is a
process of its own on one thread, and they take turns; what counts is the processor's time, and in it is the making of a
copy, once for every turn, as after an update.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

# name: hidden size, layers, heads, key and value heads, vocabulary (1.0 M, 10.0 M, 134.5 M parameters)
MODELS = {"S": (128, 4, 4, 4, 2048), "M": (320, 6, 5, 5, 8192), "L": (576, 30, 9, 3, 49152)}
SIDES = {
    "float32": "float32, now",
    "float32-mkl": "float32, now, without oneDNN",
    "bfloat16": "a copy in bfloat16",
    "int8": "a copy in 8 bits",
}
CAN_DIFFER = 0.02  # share of the mean log-probability by which a copy's may be another than the policy's


@dataclass(frozen=True)
class Texts:
    """`rows` answers of `answer` tokens; `per_prompt` neighbours answer one prompt of `prompt` tokens."""

    rows: int
    prompt: int
    answer: int
    per_prompt: int = 1

    def __str__(self) -> str:
        if self.per_prompt == 1:
            return f"{self.rows} x ({self.prompt} + {self.answer})"
        return f"{self.rows // self.per_prompt} x ({self.prompt} + {self.per_prompt} x {self.answer})"


def config_of(size: str) -> Any:
    """What transformers makes a model of this size of."""
    from transformers import LlamaConfig

    hidden, layers, heads, kv_heads, vocabulary = MODELS[size]
    return LlamaConfig(
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


def model(size: str) -> Any:
    """A random Llama with tied embeddings whose end token, 0, cannot come."""
    from transformers import LlamaForCausalLM

    config = config_of(size)
    torch.manual_seed(0)
    return without_end(LlamaForCausalLM(config).eval())


def without_end(model: Any, end: int = 0) -> Any:
    """The model with an end token that cannot come: its probability is 0 even in float64, its logit finite."""
    bias = torch.zeros(model.config.vocab_size)
    bias[end] = -1000.0
    model.lm_head.register_parameter("bias", torch.nn.Parameter(bias))
    return model


def policy_of(side: str, size: str) -> Any:
    """What writes on that side; None where this processor has no instructions for the copy."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(1)
    if side == "float32-mkl":
        torch.backends.mkldnn.is_available = lambda: False  # type: ignore[assignment]
    from rlhf_env.policies import LanguageModel

    if side not in ("int8", "bfloat16"):
        return LanguageModel(model(size))
    policy = LanguageModel(model(size), writer_dtype=side)
    return policy if policy.copy_writes else None


def observation(texts: Texts, vocabulary: int) -> Any:
    prompts = np.random.default_rng(0).integers(2, vocabulary, (texts.rows // texts.per_prompt, texts.prompt))
    prompts = np.repeat(prompts, texts.per_prompt, axis=0)
    return {"input_ids": prompts, "attention_mask": np.ones_like(prompts)}


def worker(task: str) -> None:
    """Writes once for every line on standard input, and answers with what it took and what it did.

    `task`: JSON of the side, the size of the model, the texts.
    """
    asked = json.loads(task)
    side, size, texts = asked["side"], asked["size"], Texts(**asked["texts"])
    policy = policy_of(side, size)
    if policy is None:
        print(json.dumps({"cannot": f"this processor has no instructions for {side}"}), flush=True)
        return
    import roofline

    shape, prompts = roofline.Shape.of(policy.model.config), observation(texts, policy.vocab_size)
    kind = side if side in roofline.BYTES else "float32"
    for _ in sys.stdin:
        policy.reseed(0)
        policy.forget()
        start = time.process_time()
        written = policy.write(prompts, texts.answer)
        seconds = time.process_time() - start
        policy.forget()
        floor = roofline.writing(
            shape, kind, [texts.answer] * texts.rows, prompt=texts.prompt, per_prompt=texts.per_prompt
        )
        said = {
            "seconds": seconds,
            "tokens": int((written.tokens < policy.vocab_size).sum()),
            "first": hashlib.sha256(written.tokens[:, :8].tobytes()).hexdigest(),
            "logprob": float(written.logprobs.mean()),
            "roofline": floor / seconds,
        }
        print(json.dumps(said), flush=True)


def started(script: str, side: str, size: str, texts: Texts, build: Path | None = None) -> Any:
    """The process of a side."""
    from earlier_build import Side

    return Side(script, "--worker", json.dumps({"side": side, "size": size, "texts": asdict(texts)}), build=build)


def measure(
    script: str,
    what: str,
    size: str,
    texts: Texts,
    *,
    asked: Sequence[str],
    rounds: int,
    at_least: Mapping[str, float],
) -> None:
    """Prints a line for each of the sides `asked`, and one for what oneDNN alone gains where both are."""
    from earlier_build import required_build
    from side_by_side import line

    before = started(script, "before", size, texts, required_build())
    sides = {side: started(script, side, size, texts) for side in asked}
    first = before.turn()
    for side in list(sides):
        said = sides[side].turn()  # warms up, and is looked at
        if "cannot" in said:
            print(f"{SIDES[side]}: not measured, {said['cannot']}")
            del sides[side]
            continue
        assert said["tokens"] == first["tokens"] == texts.rows * texts.answer, "the sides did not do the same"
        assert abs(said["logprob"] / first["logprob"] - 1.0) < CAN_DIFFER, "the sides are of different models"
        if side.startswith("float32"):
            assert said["first"] == first["first"], "the sides wrote different texts"
    took: dict[str, list[float]] = {side: [] for side in ["before", *sides]}
    distances: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        took["before"].append(before.turn()["seconds"])
        for side, process in sides.items():
            said = process.turn()
            took[side].append(said["seconds"])
            distances[side].append(said["roofline"])
    for side in sides:
        ratios = [theirs / ours for theirs, ours in zip(took["before"], took[side], strict=True)]
        line(f"{what} {size}: {texts}, {SIDES[side]}", ratios, at_least.get(side), distances[side])
    if {"float32", "float32-mkl"} <= set(sides):
        gains = [without / with_it for without, with_it in zip(took["float32-mkl"], took["float32"], strict=True)]
        line(f"{what} {size}: {texts}, what oneDNN alone gains", gains, None, distances["float32"])
    for process in (before, *sides.values()):
        process.end()


def script(
    file: str,
    description: str | None,
    what: str,
    sizes: Mapping[str, Texts],
    *,
    sides: Sequence[str],
    rounds: int,
    at_least: Mapping[tuple[str, str], float],
) -> None:
    """The command line of a script that measures these texts; `at_least`: by size and side."""
    import argparse

    parser = argparse.ArgumentParser(
        description=(description or "").replace("%", "%%"), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="".join(sizes), help=f"of the models: letters of {', '.join(sizes)} (all)")
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each side (default: %(default)s)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(sides), help="(default: %(default)s)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker)
        return
    from side_by_side import heading

    heading("processor time, 1d702d9 / ours")
    for size in given.sizes:
        if size not in sizes:
            parser.error(f"--sizes {given.sizes}: {size} is none of {', '.join(sizes)}")
        marks = {side: mark for (of, side), mark in at_least.items() if of == size}
        measure(file, what, size, sizes[size], asked=given.sides, rounds=given.rounds, at_least=marks)
