"""What a step of the environment costs: beside Gymnasium's SyncVectorEnv of singles, and as a share of a rollout.

    OMP_NUM_THREADS=1 python benchmarks/env_step.py

The two sides take turns on the same tokens, so that whatever else the machine does falls on both. Each line ends with
the median, the least and the greatest of the rounds. Absolute times are this machine's; ratios travel.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv

from rlhf_env.envs.text_env import TextEnv
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.tokenizers import ByteTokenizer
from rlhf_env.policies import LanguageModel, tiny_language_model

ROWS, NEW_TOKENS = 32, 64
TEXTS: dict[str, Any] = {"task": "count", "max_new_tokens": NEW_TOKENS, "max_prompt_tokens": 32}
AT_LEAST, AT_MOST, SHARE = 9.0, 0.65, 0.02  # SyncVectorEnv / native, microseconds a row, step() / rollout


def whole_texts(envs: Any, rounds: int) -> float:
    """Microseconds a step and row, texts that run to the length limit; the processor's time, not the wall's."""
    tokens = np.random.default_rng(0).integers(250, size=(rounds * (NEW_TOKENS + 1), ROWS))
    envs.reset(seed=0)
    started = time.process_time()
    for row_tokens in tokens:
        envs.step(row_tokens)
    return (time.process_time() - started) / len(tokens) / ROWS * 1e6


def share_of_a_rollout(model: LanguageModel, texts: dict[str, Any]) -> float:
    """The share of `step()` in writing one batch of texts, one token a step; without what reading the clock takes."""
    envs = TextVectorEnv(ROWS, **texts, autoreset_mode="Disabled")
    observation, _ = envs.reset(seed=0)
    inside = 0.0
    clock = min(-(time.process_time() - time.process_time()) for _ in range(100))
    started = time.process_time()
    while (writing := envs.writing).any():
        tokens = model.write({**observation, "writing": writing}, 1).tokens[:, 0]
        stepping = time.process_time()
        observation, *_ = envs.step(tokens)
        inside += time.process_time() - stepping - clock
    return inside / (time.process_time() - started)


def line(name: str, values: list[float], bound: str) -> None:
    print(f"{name:42} {statistics.median(values):9.4g} {min(values):9.4g} {max(values):9.4g}   {bound}", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--rounds", type=int, default=9)
    rounds = arguments.parse_args().rounds
    torch.set_num_threads(1)
    words = ByteTokenizer()
    words.vocab_size = 2048  # ids that stand for nothing on top, for a model of 1.1 M parameters
    texts = {**TEXTS, "tokenizer": words}
    model = tiny_language_model(
        hidden_size=128, layers=4, vocab_size=2048, dtype=torch.float32, pad_id=words.pad_id, end_id=words.end_id
    )
    native = TextVectorEnv(ROWS, **TEXTS)
    singles = SyncVectorEnv([lambda: TextEnv(**TEXTS)] * ROWS)
    ours, theirs, shares = [], [], []
    for _ in range(rounds):
        ours.append(whole_texts(native, 4))
        theirs.append(whole_texts(singles, 1))
        shares.append(share_of_a_rollout(model, texts))
    print(f"{ROWS} rows of {NEW_TOKENS} tokens, one token a step, {rounds} rounds")
    print(f"{'':42} {'median':>9} {'min':>9} {'max':>9}")
    line("us a step and row, native", ours, f"at most {AT_MOST}")
    line("us a step and row, SyncVectorEnv", theirs, "")
    line("ratio SyncVectorEnv / native", [b / a for a, b in zip(ours, theirs, strict=True)], f"at least {AT_LEAST:g}")
    line("ratio step() / rollout", shares, f"at most {SHARE}")


if __name__ == "__main__":
    main()
