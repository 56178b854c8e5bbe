"""How far the log-probabilities that a model with adapters writes are from those that it learns from.

    python benchmarks/written_and_learned.py                 # the shipped model
    python benchmarks/written_and_learned.py my-model 16     # a folder or hub name, and the rank

Texts are written with adapters merged into copies of the matrices, and learned from with the adapters beside them: the
same numbers but for rounding. The adapters here are random, and change the model about as much as training does: the
mean KL to the base is printed with them. Without adapters the first columns say what the same model differs by.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from rlhf_env.lora_settings import Lora
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.lora import adapter_weights, add_adapter

TEXTS, PROMPT, ANSWER = 32, 16, 32


def differences(name: str, dtype: torch.dtype, rank: int, scale: float) -> tuple[float, float, float]:
    """The largest and the mean difference of a token's log-probability, and the mean KL of a token to the base.

    `rank` 0: without adapters.
    """
    policy = LanguageModel.from_pretrained(name, dtype=dtype)
    base = policy.frozen_copy()
    if rank:
        add_adapter(policy.model, Lora(rank=rank, alpha=2.0 * rank), seed=0)
        generator = torch.Generator().manual_seed(1)
        for part, value in adapter_weights(policy.model).items():
            if ".lora_B." in part:
                value.copy_(scale * torch.randn(value.shape, generator=generator))
    policy.eval()
    asked = np.random.default_rng(0).integers(0, policy.vocab_size, (TEXTS, PROMPT))
    written = policy.write({"input_ids": asked, "attention_mask": np.ones(asked.shape, bool)}, ANSWER)
    there = written.tokens < policy.vocab_size
    tokens = torch.from_numpy(np.concatenate([asked, np.where(there, written.tokens, 0)], axis=1))
    mask = torch.from_numpy(np.concatenate([np.ones(asked.shape, bool), there], axis=1))
    where = mask.clone()
    where[:, :PROMPT] = False
    with torch.no_grad():
        learned, reference = (
            it.evaluate(tokens, mask, where).logprobs.double().cpu().numpy()[:, PROMPT:][there] for it in (policy, base)
        )
    apart = np.abs(written.logprobs[there] - learned)
    return float(apart.max()), float(apart.mean()), float((learned - reference).mean())  # noise in bfloat16


def main(name: str = "rlhf-env/chitchat", rank: str = "16") -> None:
    torch.set_num_threads(1)
    print(f"{name}: log-probability of a token as written less as learned, over {TEXTS} answers of up to {ANSWER}")
    kl = differences(name, torch.float64, int(rank), 0.01)[2]
    print(f"The adapters are {kl:.2g} nats a token from the base.\n")
    print(f"| | without adapters: largest | mean | with, rank {rank}: largest | mean |")
    print("|---|---:|---:|---:|---:|")
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        plain = differences(name, dtype, 0, 0.0)
        lora = differences(name, dtype, int(rank), 0.01)
        numbers = [*plain[:2], *lora[:2]]
        print(f"| {str(dtype).removeprefix('torch.')} | {' | '.join(f'{number:.2g}' for number in numbers)} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
