"""Sampling beside transformers' `generate`: one batch of prompts, every response of the same length.

    OMP_NUM_THREADS=1 python benchmarks/generate.py --sizes SM

Both sides continue the same prompts with the same weights in float32, by plain sampling at temperature 1, the end token
suppressed. They take turns, so that whatever else the machine does falls on both; the processor's time counts, not the
wall's. `generate` keeps no log-probabilities, we do. Absolute times are this machine's; the ratio travels.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from side_by_side import heading, take_turns
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.policies import LanguageModel

# name: hidden size, layers, heads, vocabulary (1.1 M, 10.1 M, 134 M parameters), and the least ratio
MODELS = {"S": (128, 4, 4, 2048), "M": (320, 6, 5, 8192), "L": (576, 30, 9, 49152)}
AT_LEAST = {"S": 2.0, "M": 1.6, "L": 1.1}


def model_of_size(name: str) -> Any:
    """A random Llama with tied embeddings; token 0 ends a text, token 1 pads."""
    hidden, layers, heads, vocabulary = MODELS[name]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads if name != "L" else 3,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def never_ending(model: Any) -> Any:
    """The model with an end token that cannot come: -inf among its logits."""
    model.lm_head.register_parameter("bias", torch.nn.Parameter(torch.zeros(model.config.vocab_size)))
    with torch.no_grad():
        model.lm_head.bias[0] = -torch.inf
    return model


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
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
    model = never_ending(model_of_size(size))
    prompts = np.random.default_rng(0).integers(2, model.config.vocab_size, (rows, given.prompt_tokens))
    mask = np.ones_like(prompts)
    policy = LanguageModel(model, fused=not given.general)
    batch = {"input_ids": torch.from_numpy(prompts), "attention_mask": torch.from_numpy(mask)}

    def ours() -> int:
        written = policy.write({"input_ids": prompts, "attention_mask": mask}, given.new_tokens)
        return int((written.tokens < policy.vocab_size).sum())

    def theirs() -> int:
        texts = model.generate(**batch, do_sample=True, top_k=0, max_new_tokens=given.new_tokens)
        return int(texts[:, given.prompt_tokens :].numel())

    name = f"generate {size}: {rows} prompts of {given.prompt_tokens}, {given.new_tokens} new tokens each"
    assert ours() == theirs() == rows * given.new_tokens, "the sides did not do the same"
    rounds = 3 * given.rounds if size == "S" else given.rounds  # short turns, of uneven length
    take_turns(name, ours, theirs, rounds=rounds, at_least=AT_LEAST[size], warm_up=False)


if __name__ == "__main__":
    main()
