"""Writing beside transformers: many prompts whose answers end early, as most do.

    OMP_NUM_THREADS=1 python benchmarks/generate_ragged.py --sizes SM --peers generate continuous

96 prompts of 32 tokens and their answers' lengths, drawn once: geometric, of mean 29, cut at 128. The same weights in
float32, the same prompts and lengths on both sides, by plain sampling at temperature 1, the end token suppressed; the
sides take turns, and the processor's time counts. Ours ends a text by what it reads among its stops.

"generate" takes the prompts in waves of 32 and runs each to its longest answer; a stopping criterion ends each row.
"continuous" is transformers' continuous batching, which admits a request when another is done: each has its length,
`num_blocks` 96. Five of its settings are tried once (two for L), which is printed, and the quickest is kept. A turn of
both sides takes 3 seconds with S, 10 with M, one to two minutes with L.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import roofline
import torch
from side_by_side import heading, take_turns, timed
from written_side import model

from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.policies import LanguageModel

AT_LEAST = {
    "generate": {"S": 5.0, "M": 6.0, "L": 3.0},
    "continuous": {"S": 4.0, "M": 4.0, "L": 2.0},
}
ROUNDS = {"S": 9, "M": 3, "L": 1}
PROMPTS, PROMPT, WAVE, LONGEST, MEAN = 96, 32, 32, 128, 29
# The first is what gave the figures that the marks were set by. Asynchronous batching needs a GPU; the order of
# admission, the sharing of prompts and the size of pages were tried and make no difference here.
SETTINGS: tuple[dict[str, int], ...] = (
    {"max_batch_tokens": 1024},
    {"max_batch_tokens": 1024, "max_requests_per_batch": 32},
    {"max_batch_tokens": 1024, "max_requests_per_batch": 16},
    {"max_batch_tokens": 256, "max_requests_per_batch": 32},
    {"max_batch_tokens": 256},
)


class Countdown:
    """Stops that end a text after as many tokens as its state says."""

    def after(self, states: Any, _tokens: Any) -> Any:
        return states - 1

    def completed(self, states: Any) -> Any:
        return states <= 0

    def cut(self, text: str) -> str:
        return text


def in_waves(model: Any, prompts: Any, lengths: Any) -> int:
    """By `generate`; how many tokens were asked for and came."""
    tokens = 0
    for start in range(0, len(prompts), WAVE):
        wave, ends = (torch.from_numpy(it[start : start + WAVE]) for it in (prompts, lengths))
        texts = model.generate(
            input_ids=wave,
            attention_mask=torch.ones_like(wave),
            do_sample=True,
            top_k=0,
            max_new_tokens=LONGEST,
            eos_token_id=None,
            stopping_criteria=[lambda ids, _scores, ends=ends, **_: ids.shape[1] - PROMPT >= ends],
        )
        tokens += int(ends.clamp(max=texts.shape[1] - PROMPT).sum())
    return tokens


@torch.inference_mode()
def continuously(model: Any, prompts: Any, lengths: Any, settings: dict[str, int]) -> int:
    """By continuous batching, as `generate_batch` does it, but that every request has its own length."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    with model.continuous_batching_context_manager(
        generation_config=GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=LONGEST, eos_token_id=-1, pad_token_id=1
        ),
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=PROMPTS, **settings),
        block=True,
        timeout=5,
    ) as manager:
        for prompt, length in zip(prompts.tolist(), lengths.tolist(), strict=True):
            manager.add_request(prompt, max_new_tokens=length)
        tokens = done = 0
        while done < len(prompts):
            found = manager.get_result(timeout=1)
            assert found is not None or manager.is_running(), "continuous batching ended early"
            if found is not None and found.is_finished():
                tokens, done = tokens + len(found.generated_tokens), done + 1
    return tokens


def quickest(work: Callable[[dict[str, int]], float], settings: tuple[dict[str, int], ...]) -> dict[str, int]:
    """Which of them takes least, which is printed."""
    took = [timed(lambda it=it: work(it))[0] for it in settings]
    best = took.index(min(took))
    for seconds, tried in zip(took, settings, strict=True):
        said = ", ".join(f"{name} {value}" for name, value in tried.items())
        print(f"    {seconds:7.2f} s by {said}{', kept' if tried is settings[best] else ''}", flush=True)
    return settings[best]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="SML", help="of the models: letters of S, M, L (default: %(default)s)")
    parser.add_argument("--peers", nargs="+", choices=AT_LEAST, default=list(AT_LEAST), help="(default: both)")
    parser.add_argument("--rounds", type=int, help=f"turns of each side (default: {ROUNDS})")
    given = parser.parse_args()
    heading()
    with quiet_transformers():
        for size in given.sizes:
            measure(size, given)


def measure(size: str, given: argparse.Namespace) -> None:
    theirs = model(size)
    theirs.generation_config.eos_token_id = None
    random = np.random.default_rng(0)
    prompts = random.integers(2, theirs.config.vocab_size, (PROMPTS, PROMPT))
    lengths = random.geometric(1 / MEAN, PROMPTS).clip(max=LONGEST)
    policy = LanguageModel(theirs)
    asked: Any = {"input_ids": prompts, "attention_mask": np.ones_like(prompts), "stops": Countdown()}
    asked["stop_states"] = lengths

    def ours() -> int:
        written = policy.write(asked, LONGEST)
        assert ((written.tokens < policy.vocab_size).sum(1) == lengths).all(), "a text has another length"
        return int(lengths.sum())

    shape = roofline.Shape.of(theirs.config)
    for peer in given.peers:
        if peer == "generate":
            take = partial(in_waves, theirs)
        else:
            continuously(theirs, prompts[:8], lengths[:8].clip(max=4), SETTINGS[0])  # what is made once
            tried = SETTINGS[:2] if size == "L" else SETTINGS
            settings = quickest(partial(continuously, theirs, prompts, lengths), tried)
            take = partial(continuously, theirs, settings=settings)
        work = partial(take, prompts=prompts, lengths=lengths)
        assert ours() == work() == lengths.sum(), "the sides did not do the same"
        take_turns(
            f"{peer} {size}: {PROMPTS} x ({PROMPT} + {lengths.mean():.0f} on average)",
            ours,
            work,
            rounds=given.rounds or ROUNDS[size],
            at_least=AT_LEAST[peer][size],
            warm_up=False,
            floor=lambda: roofline.writing(shape, "float32", lengths.tolist(), prompt=PROMPT),
        )


if __name__ == "__main__":
    main()
