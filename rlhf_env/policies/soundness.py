"""Does a model state, while it writes, the log-probabilities of its own forward pass? Asked once, when it is loaded.

Texts are written side by side: prompts of several lengths share a padded batch, equal prompts share one cache, and rows
whose text has ended are dragged along or leave the cache. Families of language models differ in what they do with that:
recurrent ones may mix up the states of rows, some keep no cache and then see the newest token alone, and encoders that
pass for language models look at what comes after a token. All of them would train, on ratios of two numbers that have
nothing to do with each other. So one small ragged batch in which rows end early is written, and compared with the
model's plain forward pass on each text alone, by the scale on which other contexts change the model's mind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.errors import DataError
from rlhf_env.policies.attention import CAPPED
from rlhf_env.policies.decoding import Decoding
from rlhf_env.policies.policy import Sampling
from rlhf_env.policies.untyped import HFModel
from rlhf_env.types import Int

if TYPE_CHECKING:
    from rlhf_env.policies.language_model import LanguageModel

# Tokens of the prompts: the first and the fifth are equal, as in a group of answers to one prompt.
_PROMPTS = (5, 3, 2, 4, 5, 1)
# Which rows write, step by step: one ends and stays in the cache, three end and the cache drops them, then one is left.
_WRITING = ((1, 1, 1, 1, 1, 1), (1, 0, 1, 1, 1, 1), (1, 0, 0, 0, 1, 1), (0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 0, 1))
_LONGEST = max(length + sum(step[row] for step in _WRITING) for row, length in enumerate(_PROMPTS))

_REMEDY = "use a model of a family that keeps keys and values of each text (Llama, Qwen, Gemma, Mistral, GPT-2, ...)"


def require_sound(policy: LanguageModel) -> None:
    """Raise DataError, which names the model's class and family, if it cannot be written with or learned from.

    Nothing is drawn from a global generator, and the policy's own streams do not move. Call it without dropout.
    """
    model = policy.model
    named = f"{type(model).__name__} (model_type {getattr(model.config, 'model_type', '?')!r})"
    if policy.context is not None and policy.context < _LONGEST:
        return  # nothing as long as this will be written
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), quiet_transformers():
            problem = _problem(policy)
    except DataError:
        raise
    except Exception as error:  # whatever the family's own code raises when it is called as others are
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{named} cannot write texts side by side here ({type(error).__name__}: {said[:160]}): {_remedy(model)}"
        ) from error
    if problem:
        raise DataError(f"{named}: {problem}: {_remedy(model)}")


def _remedy(model: HFModel) -> str:
    attention = getattr(model.config, "_attn_implementation", None)
    if attention in (None, "eager", "sdpa", CAPPED):
        return _REMEDY
    return f'leave attention = "{attention}" out, or {_REMEDY}'


def _problem(policy: LanguageModel) -> str:
    """What is wrong; "" if nothing is."""
    texts, stated = _written(policy)
    alone = [_logprobs(policy.model, text) for text in texts]
    scale, error = _scale(alone), _rounding(policy, alone)
    # Of the last token of two texts: what the model says of it before it knows that the text goes on.
    ahead = max(_difference(_logprobs(policy.model, texts[row][:-1])[-1], alone[row][-2]) for row in (0, -1))
    if ahead > max(0.05 * scale, error):
        return (
            f"what it says of a token changes by up to {ahead:.2g} nats when later tokens are there, so it is no "
            "causal language model (an encoder, or a decoder set up as one)"
        )
    allowed = max(error, 8 * ahead)  # some families differ from themselves by more than rounding
    while_writing = max(
        abs(value - float(alone[row][place - 1, texts[row][place]])) for (row, place), value in stated.items()
    )
    if not while_writing <= allowed:
        return (
            f"while it writes texts side by side it states log-probabilities that are up to {while_writing:.2g} nats "
            f"from its own forward pass (its own error is {ahead:.1g}): it keeps no cache, or mixes up states or "
            "positions when rows are padded or end"
        )
    learning = _learning_error(policy, texts, alone)
    if not learning <= allowed:
        return f"padding after a text changes its log-probabilities by up to {learning:.2g} nats"
    return ""


def _written(policy: LanguageModel) -> tuple[list[Int], dict[tuple[int, int], float]]:
    """Six texts, and the log-probabilities stated of the tokens written, by (row, place)."""
    stream = np.random.default_rng(0)
    lengths = np.array(_PROMPTS)
    tokens = np.zeros((len(lengths), _LONGEST), np.int64)
    for row, length in enumerate(lengths):
        tokens[row, :length] = stream.integers(policy.vocab_size, size=length)
    tokens[4] = tokens[0]
    decoding = Decoding(policy.model, tokens, lengths, np.ones(len(lengths), bool))
    stated: dict[tuple[int, int], float] = {}
    for step in _WRITING:
        rows = np.array(step, bool)
        before = decoding.lengths.copy()
        uniforms = stream.random((len(rows), 1))
        written = decoding.write(uniforms, rows, Sampling(), end_ids=[-1], vocab_size=policy.vocab_size)
        for row in np.flatnonzero(rows).tolist():
            stated[row, int(before[row])] = float(written.logprobs[row, 0])
    return [text[:length].copy() for text, length in zip(decoding.texts, decoding.lengths, strict=True)], stated


def _logprobs(model: HFModel, text: Int) -> Tensor:
    """[L, V]: of the next token after each token of a text by itself, as the library computes it."""
    ids = torch.from_numpy(text)[None].to(next(model.parameters()).device)
    logits: Tensor = model(input_ids=ids).logits[0]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _scale(alone: list[Tensor]) -> float:
    """How far apart texts are in the model's eyes: the median over tokens of the spread of their log-probability."""
    ends = torch.stack([logprobs[-1] for logprobs in alone])
    return float(ends.std(dim=0).median())


def _rounding(policy: LanguageModel, alone: list[Tensor]) -> float:
    """What rounding may do: a small share of the scale, and what the log-probabilities' own size lets be lost."""
    precision = torch.finfo(policy.dtype).eps
    largest = max(float(logprobs.median(dim=-1).values.abs().max()) for logprobs in alone)
    return max(0.002, 64 * precision) * _scale(alone) + 32 * max(precision, 1e-7) * largest


def _learning_error(policy: LanguageModel, texts: list[Int], alone: list[Tensor]) -> float:
    """How far `evaluate` is from the texts alone when they are padded to one rectangle."""
    tokens, mask = np.zeros((len(texts), _LONGEST), np.int64), np.zeros((len(texts), _LONGEST), np.bool_)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], mask[row, : len(text)] = text, True
    where = mask.copy()
    where[:, 0] = False
    usual, policy.sampling = policy.sampling, Sampling()
    try:
        scored = policy.evaluate(torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(where)).logprobs
    finally:
        policy.sampling = usual
    return max(
        _difference(scored[row, 1 : len(text)], alone[row][:-1].gather(1, _column(text[1:], alone[row]))[:, 0])
        for row, text in enumerate(texts)
    )


def _column(ids: Int, like: Tensor) -> Tensor:
    return torch.from_numpy(ids).to(like.device)[:, None]
