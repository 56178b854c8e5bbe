"""Sampling beside transformers' `generate`: many prompts whose responses end early, as most do.

    OMP_NUM_THREADS=1 python benchmarks/generate_ragged.py --sizes SM

`generate` takes the prompts in waves and runs each to its longest response; we take all at once and drop the rows that
are done. The same weights, the same prompts, and the same lengths on both sides, drawn once: geometric, of mean 29, cut
at 128. There a stopping criterion ends each row, here the numbers that our sampler is given: 0 draws the first token,
which is the end token. The sides take turns; the processor's time counts.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from generate import model_of_size
from side_by_side import heading, take_turns

from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.policies import LanguageModel

AT_LEAST = {"S": 4.0, "M": 3.0}
WAVE, LONGEST, MEAN = 32, 128, 29


class Scripted:
    """Streams of numbers that end row i with its token number lengths[i], the first time of 0, and never before."""

    def __init__(self, lengths: Any) -> None:
        self.lengths = lengths
        self.random = np.random.default_rng(0)

    def next(self, rows: int, length: int) -> Any:
        numbers = self.random.uniform(0.01, 1.0, (rows, length))  # the end token is less likely than 0.01
        numbers[np.arange(length) == self.lengths[:, None] - 1] = 0.0
        return numbers

    def take(self, counts: Any) -> None:
        """What was asked for counts as taken."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--sizes", default="SM", help="of the models: letters of S, M (default: %(default)s)")
    arguments.add_argument("--prompts", type=int, default=96)
    arguments.add_argument("--prompt-tokens", type=int, default=32)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--general", action="store_true", help="without the fused step")
    given = arguments.parse_args()
    heading()
    with quiet_transformers():
        for size in given.sizes:
            measure(size, given)


def measure(size: str, given: argparse.Namespace) -> None:
    model = model_of_size(size)
    random = np.random.default_rng(0)
    prompts = random.integers(2, model.config.vocab_size, (given.prompts, given.prompt_tokens))
    lengths = random.geometric(1 / MEAN, given.prompts).clip(max=LONGEST)
    policy = LanguageModel(model, fused=not given.general)
    policy._streams = Scripted(lengths)  # type: ignore[assignment]

    def ours() -> int:
        written = policy.write({"input_ids": prompts, "attention_mask": np.ones_like(prompts)}, LONGEST)
        return int((written.tokens < policy.vocab_size).sum())

    def theirs() -> int:
        tokens = 0
        for start in range(0, len(prompts), WAVE):
            wave, ends = (
                torch.from_numpy(prompts[start : start + WAVE]),
                torch.from_numpy(lengths[start : start + WAVE]),
            )
            texts = model.generate(
                input_ids=wave,
                attention_mask=torch.ones_like(wave),
                do_sample=True,
                top_k=0,
                max_new_tokens=LONGEST,
                eos_token_id=None,
                stopping_criteria=[lambda ids, _scores, ends=ends, **_: ids.shape[1] - given.prompt_tokens >= ends],
            )
            tokens += int(ends.clamp(max=texts.shape[1] - given.prompt_tokens).sum())
        return tokens

    model.generation_config.eos_token_id = None
    name = f"generate {size}: {given.prompts} prompts, responses of {lengths.mean():.1f} on average"
    assert ours() == theirs() == lengths.sum(), "the sides did not do the same"
    take_turns(name, ours, theirs, rounds=given.rounds, at_least=AT_LEAST[size], warm_up=False)


if __name__ == "__main__":
    main()
