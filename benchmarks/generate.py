"""Writing beside transformers' `generate`: one batch of prompts, every answer of the same length.

    OMP_NUM_THREADS=1 python benchmarks/generate.py --sizes SM

Both sides continue the same prompts with the same weights in float32, by plain sampling at temperature 1, the end token
suppressed. They take turns, so that whatever else the machine does falls on both; the processor's time counts, not the
wall's. `generate` keeps no log-probabilities, we do. "roofline": see roofline.py.
"""

from __future__ import annotations

import argparse

import numpy as np
import roofline
import torch
from side_by_side import heading, take_turns
from written_side import model

from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.policies import LanguageModel

AT_LEAST = {"S": 2.2, "M": 1.6, "L": 1.1}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sizes", default="SML", help="of the models: letters of S, M, L (default: %(default)s)")
    arguments.add_argument("--rows", type=int, help="prompts side by side (default 32; 8 for L)")
    arguments.add_argument("--prompt-tokens", type=int, default=32)
    arguments.add_argument("--new-tokens", type=int, default=64)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--general", action="store_true", help="without the fused step")
    given = arguments.parse_args()
    heading()
    with quiet_transformers():
        for size in given.sizes:
            measure(size, given)


def measure(size: str, given: argparse.Namespace) -> None:
    rows = given.rows or (8 if size == "L" else 32)
    random = model(size)
    prompts = np.random.default_rng(0).integers(2, random.config.vocab_size, (rows, given.prompt_tokens))
    mask = np.ones_like(prompts)
    policy = LanguageModel(random, fused=not given.general)
    batch = {"input_ids": torch.from_numpy(prompts), "attention_mask": torch.from_numpy(mask)}

    def ours() -> int:
        written = policy.write({"input_ids": prompts, "attention_mask": mask}, given.new_tokens)
        return int((written.tokens < policy.vocab_size).sum())

    def theirs() -> int:
        texts = random.generate(**batch, do_sample=True, top_k=0, max_new_tokens=given.new_tokens)
        return int(texts[:, given.prompt_tokens :].numel())

    name = f"generate {size}: {rows} prompts of {given.prompt_tokens}, {given.new_tokens} new tokens each"
    assert ours() == theirs() == rows * given.new_tokens, "the sides did not do the same"
    shape, lengths = roofline.Shape.of(random.config), [given.new_tokens] * rows
    take_turns(
        name,
        ours,
        theirs,
        rounds=3 * given.rounds if size == "S" else given.rounds,  # short turns, of uneven length
        at_least=AT_LEAST[size],
        warm_up=False,
        floor=lambda: roofline.writing(shape, "float32", lengths, prompt=given.prompt_tokens),
    )


if __name__ == "__main__":
    main()
