"""Does a model state, while it writes, the log-probabilities of its own forward pass? Asked once, when it is loaded.

Families of language models differ in what they do with texts that are written side by side: recurrent ones may mix up
the states of rows, some keep no cache and then see the newest token alone, and encoders that pass for language models
look at what comes after a token. All of them would train, on ratios of two numbers that have nothing to do with each
other. So one small ragged batch in which rows end early is written, and compared with the model's plain forward pass on
each text alone, by the scale on which other contexts change the model's mind (see `differences`).

Where our own code for a family does not fit, the model's own is used; where only the cache is wrong, texts are read
whole at every step: slow, and right for every causal model. A model whose forward pass itself does not fit is refused
by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.errors import DataError
from rlhf_env.policies.attention import CAPPED
from rlhf_env.policies.differences import (
    AT_LOAD,
    Batch,
    ForwardPath,
    computed,
    differences_at_load,
    evaluated_with_gradient,
    in_one_line,
    short_windows,
    written_texts,
)
from rlhf_env.policies.fused import SeparateLinear
from rlhf_env.policies.untyped import HFModel

if TYPE_CHECKING:
    from rlhf_env.policies.language_model import LanguageModel


_FEW = 2_000_000_000  # parameters: in float32, 8 GB


def trusted_path(policy: LanguageModel) -> ForwardPath:
    """What of the ways to compute its texts the model is right by, the quickest first: our own code for its family
    ("fused"), the model's with its key/value cache ("cached"), or without ("whole"). The last is slow.

    Raises DataError, which names the model's class and family, if it cannot be written with or learned from. Nothing is
    drawn from a global generator, and the policy's own streams do not move. Call it without dropout.
    """
    model, batch = policy.model, AT_LOAD.within(policy.context)
    ways: list[ForwardPath] = ["cached", "whole"]
    if policy.anatomy() is not None:
        ways.insert(0, "fused")
    if not batch.steps:
        return ways[0]  # there is no room to write in
    found = _Found("")
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        with _in_full_precision(model) as changed:
            for way in ways:
                found = _tried(policy, batch, way)
                if not found.problem:
                    break
        if changed and not found.problem:
            found = _Found(_problem_in_half(policy, batch, way, found.scale))
    attention = getattr(model.config, "_attn_implementation", None)
    usual = attention in (None, "eager", "sdpa", CAPPED)
    if way == "whole" and not usual and not found.problem:  # it may not be the family that is wrong
        found = _Found("while it writes texts side by side it states other log-probabilities than its own forward pass")
    if found.problem:
        named = f"{type(model).__name__} (model_type {getattr(model.config, 'model_type', '?')!r})"
        remedy = "use a causal language model (Llama, Qwen, Gemma, Mistral, GPT-2, ...)"
        remedy = remedy if usual else f'leave attention = "{attention}" out, or {remedy}'
        raise DataError(f"{named}: {found.problem}: {remedy}")
    return way


def warn_if_slow(policy: LanguageModel, name: str, *, fused: bool) -> None:
    """Say why a model's texts take longer than with a cache, or than our own code takes. `fused`: what was wanted.

    Said once in a process of each model, as Python does with warnings.
    """
    who = f"model {name!r} (model_type {getattr(policy.model.config, 'model_type', '?')!r})"
    if policy.forward_path == "whole":
        said = (
            f"{who} is read whole: its own cache does not give what its forward pass says, so every text is read from "
            "its beginning for each new token. Right, and slow: to write 100 tokens after a prompt of 100 it reads "
            "15,000 tokens instead of 200"
        )
    elif fused and not policy.fused:
        said = (
            f"{who}: our own code for its family does not give what the model itself says, so that the library's code "
            "computes it. Right, and slower; please report its config.json"
        )
    else:
        return
    warnings.warn(said, RuntimeWarning, stacklevel=2)


@dataclass(frozen=True)
class _Found:
    problem: str
    """What is wrong; "" if nothing is."""
    scale: float = 0.0
    """As in `Differences`."""


@contextmanager
def _in_full_precision(model: HFModel) -> Iterator[bool]:
    """Weights in half precision are in float32 meanwhile, and afterwards what they were, to the bit.

    Half precision hides what is wrong. Gives whether anything changed: larger models stay as they are, for they would
    need twice their memory.
    """
    weights = [it for it in (*model.parameters(), *model.buffers()) if it.dtype in (torch.bfloat16, torch.float16)]
    if sum(weight.numel() for weight in weights) > _FEW:
        weights = []
    before = [weight.dtype for weight in weights]
    try:
        for weight in weights:
            weight.data = weight.data.float()
        yield bool(weights)
    finally:
        for weight, dtype in zip(weights, before, strict=True):
            weight.data = weight.data.to(dtype)


@torch.no_grad()
def _tried(policy: LanguageModel, batch: Batch, way: ForwardPath) -> _Found:
    """What is wrong with the model's texts this way. Windows, if it has any, are shorter than the texts meanwhile."""
    try:
        with short_windows(policy.model, 2), computed(policy, way):
            found, no_gradient = differences_at_load(policy, batch, way)
    except Exception as error:  # whatever the family's own code raises when it is called as others are
        broken = [name for name, weight in policy.model.named_parameters() if not bool(weight.isfinite().all())]
        if broken:
            raise DataError(
                f"{len(broken)} of its weights are not finite, {broken[0]} among them: the files are damaged, or were "
                "written by a training that diverged"
            ) from error
        return _Found(f"its forward pass fails on a batch of texts ({in_one_line(error)})")
    if found.looks_ahead:
        return _Found(
            f"what it says of a token changes by up to {found.ahead:.2g} nats when later tokens change, so it is no "
            "causal language model (an encoder, or a decoder set up as one)"
        )
    if not found.right:
        return _Found(
            f"the texts beside a text, or padding after it, change its log-probabilities by up to "
            f"{max(found.recompute, found.write):.2g} nats (its own error is {found.own:.1g})"
        )
    return _Found(no_gradient, found.scale)


@torch.no_grad()
def _problem_in_half(policy: LanguageModel, batch: Batch, way: ForwardPath, scale: float) -> str:
    """What is wrong with a model in half precision which is right in float32; "" if nothing is."""
    try:
        with computed(policy, way):
            texts, stated, _ = written_texts(policy, batch, way, linear=SeparateLinear)
            scored, no_gradient = evaluated_with_gradient(policy, texts)
        apart = [abs(value - float(scored[row, place])) for (row, place), value in stated.items()]
    except Exception as error:
        return f"its forward pass fails on a batch of texts in {_precision(policy)} ({in_one_line(error)})"
    if float(np.mean(apart)) <= 0.15 * scale:  # single tokens differ by much, and a wrong context makes all differ
        return no_gradient
    return (
        f"in {_precision(policy)} the texts beside a text, or padding after it, change its log-probabilities by "
        f"{np.mean(apart):.2g} nats per token"
    )


def _precision(policy: LanguageModel) -> str:
    return str(policy.dtype).removeprefix("torch.")
