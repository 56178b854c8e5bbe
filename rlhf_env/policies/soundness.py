"""Does a model state, while it writes, the log-probabilities of its own forward pass? Asked once, when it is loaded.

Texts are written side by side: prompts of several lengths share a padded batch, equal prompts share one cache, and rows
whose text has ended are dragged along or leave the cache. Families of language models differ in what they do with that:
recurrent ones may mix up the states of rows, some keep no cache and then see the newest token alone, and encoders that
pass for language models look at what comes after a token. All of them would train, on ratios of two numbers that have
nothing to do with each other. So one small ragged batch in which rows end early is written, and compared with the
model's plain forward pass on each text alone, by the scale on which other contexts change the model's mind.

Where only the cache is wrong, texts are read whole at every step: slow, and right for every causal model. A model whose
forward pass itself does not fit is refused by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.errors import DataError
from rlhf_env.policies.attention import CAPPED
from rlhf_env.policies.decoding import Decoding
from rlhf_env.policies.fused import FusedStep
from rlhf_env.policies.policy import Sampling
from rlhf_env.policies.untyped import HFModel, HFModule
from rlhf_env.types import Int

if TYPE_CHECKING:
    from rlhf_env.policies.language_model import LanguageModel


_FEW = 2_000_000_000  # parameters: in float32, 8 GB


@dataclass(frozen=True)
class Batch:
    """A small batch of texts to be written."""

    prompts: tuple[int, ...]
    """The length of each prompt, in tokens. The first and the fifth are equal, as in a group of answers to one."""
    steps: tuple[tuple[int, ...], ...]
    """Which rows write, step by step (1), and which have ended."""
    compared: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """The rows whose texts are read alone, too. Each is a forward pass, which is what a check costs."""

    @property
    def longest(self) -> int:
        """The length of the longest text, in tokens."""
        return max(length + sum(step[row] for step in self.steps) for row, length in enumerate(self.prompts))

    def within(self, context: int | None) -> Batch:
        """The same, its texts cut so that a model with this context can read them."""
        if context is None or context >= self.longest:
            return self
        steps = self.steps[: max(context - 1, 0)]
        prompts = tuple(min(length, max(1, context - len(steps))) for length in self.prompts)
        return Batch(prompts, steps, self.compared)


# One row ends and stays in the cache, three end and the cache drops them, then one is left.
_ENDING = ((1, 1, 1, 1, 1, 1), (1, 0, 1, 1, 1, 1), (1, 0, 0, 0, 1, 1), (0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 0, 1))
RAGGED_AND_ENDING = Batch((5, 3, 2, 4, 5, 1), _ENDING)
AT_LOAD = Batch((5, 3, 2, 4, 5, 1), _ENDING, compared=(0, 2, 4, 5))
RAGGED = Batch((5, 3, 2, 4, 5, 1), ((1,) * 6,) * 3)
ENDING = Batch((4,) * 6, _ENDING)
LONG = Batch((27, 3, 20, 12, 27, 1), _ENDING)


@dataclass(frozen=True)
class Differences:
    """How far a model's log-probabilities are from its plain forward pass on each text alone, in nats, at most."""

    own: float
    """The plain forward pass itself, on a text and on the same text without its last token: the library's own error."""
    ahead: float
    """What is said of a token when another token comes after it. The sizes of everything computed are equal, so that in
    any precision there is (nearly) no rounding in it: 0 for what is causal."""
    write: float
    """What is stated while texts are written side by side."""
    recompute: float
    """What `evaluate` says of the texts, padded to one rectangle."""
    scale: float
    """How much the context matters: the spread, over texts, of a token's log-probability (the median over tokens)."""
    rounding: float
    """What rounding may do: a small share of the scale, and what the size of log-probabilities lets be lost."""
    mean: float
    """The mean over tokens of what `write` and `recompute` are the largest of; the larger of the two."""
    half: bool
    """Whether the weights are in half precision."""

    @property
    def right(self) -> bool:
        """Whether all of it is the library's own error: some families differ from themselves by more than rounding.

        In half precision single tokens differ by much, and a wrong context makes all of them differ.
        """
        if self.looks_ahead:
            return False
        if self.half:
            return self.mean <= 0.15 * self.scale
        return max(self.write, self.recompute) <= min(max(self.rounding, 4 * self.own), 0.5 * self.scale)

    @property
    def looks_ahead(self) -> bool:
        """Whether later tokens change what is said of earlier ones: so for encoders, or decoders set up as ones."""
        return not self.ahead <= 0.02 * self.scale


def keeps_cache(policy: LanguageModel) -> bool:
    """Whether the model's key/value cache can be trusted; if not, its texts have to be read whole at every step.

    Raises DataError, which names the model's class and family, if it cannot be written with or learned from. Nothing is
    drawn from a global generator, and the policy's own streams do not move. Call it without dropout.
    """
    model = policy.model
    named = f"{type(model).__name__} (model_type {getattr(model.config, 'model_type', '?')!r})"
    batch = AT_LOAD.within(policy.context)
    if not batch.steps:
        return True  # there is no room to write in
    attention = getattr(model.config, "_attn_implementation", None)
    usual = attention in (None, "eager", "sdpa", CAPPED)
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        with _in_full_precision(model) as changed:
            cached = _is_right(policy, batch)
            problem = "" if cached else _problem(policy, batch, whole=True)
        if changed and not problem:
            problem = _problem(policy, batch, whole=not cached)
        problem = problem or _problem_of_gradients(policy)
    if not cached and not usual and not problem:  # it may not be the family that is wrong
        problem = "while it writes texts side by side it states other log-probabilities than its own forward pass"
    if problem:
        remedy = "use a causal language model (Llama, Qwen, Gemma, Mistral, GPT-2, ...)"
        raise DataError(
            f"{named}: {problem}: " + ("" if usual else f'leave attention = "{attention}" out, or ') + remedy
        )
    return cached


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
def _is_right(policy: LanguageModel, batch: Batch) -> bool:
    """Whether the model is right as it is, its cache included."""
    try:
        found = differences(policy, batch)
        if not found.right:
            return False
        with short_windows(policy.model) as any_windows:
            return not any_windows or differences(policy, batch).right
    except Exception:  # whatever the family's own code raises when it is called as others are
        return False


@torch.no_grad()
def _problem(policy: LanguageModel, batch: Batch, *, whole: bool) -> str:
    """What is wrong with the model's texts, read whole or not; "" if nothing is."""
    try:
        found = differences(policy, batch, whole=whole)
    except Exception as error:
        return f"its forward pass fails on a batch of texts ({_line(error)})"
    if found.looks_ahead:
        return (
            f"what it says of a token changes by up to {found.ahead:.2g} nats when later tokens change, so it is no "
            "causal language model (an encoder, or a decoder set up as one)"
        )
    if not found.right:
        wrong = max(found.recompute, found.write)
        return (
            f"the texts beside a text, or padding after it, change its log-probabilities by up to {wrong:.2g} nats "
            f"(its own error is {found.own:.1g})"
        )
    return ""


def _problem_of_gradients(policy: LanguageModel) -> str:
    """Why the model cannot learn; "" if it can. The gradient is that of the embeddings of a few tokens: it goes all the
    way down, and no gradient of weights is computed, which would cost as much memory as the model."""
    embedded: list[Tensor] = []

    def keep(_module: HFModule, _arguments: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # some families change it in place, which a leaf does not allow

    train = [weight for weight in policy.parameters() if weight.requires_grad]
    hook = policy.model.get_input_embeddings().register_forward_hook(keep)
    try:
        for weight in train:
            weight.requires_grad_(False)
        last = policy.vocab_size - 1
        with torch.enable_grad():
            logprobs = _evaluated(policy, [np.array([last, last - 1, last]), np.array([last - 1, last])])
            gradients = torch.autograd.grad(logprobs.sum(), embedded)
    except Exception as error:
        return f"its log-probabilities have no gradient ({_line(error)})"
    finally:
        hook.remove()
        for weight in train:
            weight.requires_grad_()
    finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    return "" if finite else "the gradient of its log-probabilities is not finite"


def differences(policy: LanguageModel, batch: Batch, *, whole: bool | None = None) -> Differences:
    """Write a batch and recompute it. `whole`: read texts whole at every step, or not; by default, as `policy` does.

    Raises what the model's own code raises. Call it without gradients, and without dropout.
    """
    whole = policy.forward_path == "whole" if whole is None else whole
    texts, stated = _written(policy, batch, whole)
    alone = {row: logprobs_alone(policy.model, texts[row]) for row in batch.compared}
    first, last = batch.compared[0], batch.compared[-1]
    shorter = logprobs_alone(policy.model, texts[first][:-1])
    another = texts[last].copy()  # the same text with another last token
    another[-1] = (another[-1] + policy.vocab_size // 2) % policy.vocab_size
    ahead = logprobs_alone(policy.model, another)
    while_writing = [
        abs(value - float(alone[row][place - 1, texts[row][place]]))
        for (row, place), value in stated.items()
        if row in alone
    ]
    recomputed = _recomputed(policy, texts, alone)
    scale = _scale([*alone.values()])
    return Differences(
        own=_difference(shorter, alone[first][:-1]),
        ahead=_difference(ahead[:-1], alone[last][:-1]),
        write=_largest(while_writing),
        recompute=_largest(recomputed),
        scale=scale,
        rounding=_rounding([*alone.values()], scale),
        mean=max(float(np.mean(it)) for it in (while_writing, recomputed)),
        half=policy.dtype in (torch.bfloat16, torch.float16),
    )


@contextmanager
def short_windows(model: HFModel, window: int = 3) -> Iterator[bool]:
    """Sliding windows and chunks of attention become this short, so that a text of a few tokens outgrows them.

    Gives whether the model has any.
    """
    config = model.config.get_text_config()
    owners = [config, *model.modules()]
    found = [
        (owner, name)
        for owner in owners
        for name in ("sliding_window", "attention_chunk_size", "chunk_size")
        if type(vars(owner).get(name)) is int and vars(owner)[name] > window
    ]
    before = [getattr(owner, name) for owner, name in found]
    try:
        for owner, name in found:
            setattr(owner, name, window)
        yield bool(found)
    finally:
        for (owner, name), value in zip(found, before, strict=True):
            setattr(owner, name, value)


def logprobs_alone(model: HFModel, text: Int) -> Tensor:
    """[L, V]: of the next token after each token of a text by itself, as the library computes it."""
    ids = torch.from_numpy(text)[None].to(next(model.parameters()).device)
    # A few families fail, or cannot be differentiated, while they fill a cache that nobody reads.
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    logits: Tensor = model(input_ids=ids, **options).logits[0]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _written(policy: LanguageModel, batch: Batch, whole: bool) -> tuple[list[Int], dict[tuple[int, int], float]]:
    """The texts, and the log-probabilities stated of the tokens written, by (row, place)."""
    stream = np.random.default_rng(0)
    lengths = np.array(batch.prompts)
    tokens = np.zeros((len(lengths), batch.longest), np.int64)
    for row, length in enumerate(lengths):
        tokens[row, :length] = _text(policy, stream, length)
    tokens[4] = tokens[0]
    anatomy = None if whole else policy.anatomy()
    fused = None if anatomy is None else FusedStep(policy.model, anatomy)
    decoding = Decoding(policy.model, tokens, lengths, np.ones(len(lengths), bool), fused, whole=whole)
    stated: dict[tuple[int, int], float] = {}
    for number, step in enumerate(batch.steps):
        if number == 2:  # the model reads something else meanwhile: a family that keeps states in its modules forgets
            logprobs_alone(policy.model, tokens[1, : lengths[1]])
        rows = np.array(step, bool)
        before = decoding.lengths.copy()
        uniforms = stream.random((len(rows), 1))
        written = decoding.write(uniforms, rows, Sampling(), end_ids=[-1], vocab_size=policy.vocab_size)
        for row in np.flatnonzero(rows).tolist():
            stated[row, int(before[row])] = float(written.logprobs[row, 0])
    return [text[:length].copy() for text, length in zip(decoding.texts, decoding.lengths, strict=True)], stated


def gradient_error(policy: LanguageModel, batch: Batch) -> float:
    """How far the gradient of all log-probabilities by `evaluate` is from that by the plain forward pass on each text
    alone: the norm of the difference divided by the norm, over all parameters that train.

    Gradients of the parameters are gone afterwards. Raises what the model's own code raises.
    """
    stream = np.random.default_rng(0)
    texts = [_text(policy, stream, length + 2) for length in batch.prompts]
    policy.zero_grad(set_to_none=True)
    try:
        for text in texts:
            alone = logprobs_alone(policy.model, text)
            alone[:-1].gather(1, _column(text[1:], alone)).sum().backward()  # type: ignore[no-untyped-call]
        norm = _norm_of_gradients(policy)
        (-_evaluated(policy, texts).sum()).backward()  # type: ignore[no-untyped-call]
        return _norm_of_gradients(policy) / norm
    finally:
        policy.zero_grad(set_to_none=True)


def _norm_of_gradients(policy: LanguageModel) -> float:
    norms = [weight.grad.double().norm() for weight in policy.parameters() if weight.grad is not None]
    return float(torch.stack(norms).norm())


def _evaluated(policy: LanguageModel, texts: list[Int]) -> Tensor:
    """[B, L]: the log-probabilities of the texts' tokens, 0 at the first and at padding, by `evaluate`."""
    width = max(map(len, texts))
    tokens, mask = np.zeros((len(texts), width), np.int64), np.zeros((len(texts), width), np.bool_)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], mask[row, : len(text)] = text, True
    where = mask.copy()
    where[:, 0] = False
    usual, policy.sampling = policy.sampling, Sampling()
    try:
        return policy.evaluate(torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(where)).logprobs
    finally:
        policy.sampling = usual


def _text(policy: LanguageModel, stream: np.random.Generator, length: int) -> Int:
    """Tokens int64[length] drawn evenly, but for padding: its embedding may be 0, which has no direction."""
    text: Int = stream.integers(policy.vocab_size, size=length)
    return np.where(text == policy.pad_id, (policy.pad_id + 1) % policy.vocab_size, text)


def _recomputed(policy: LanguageModel, texts: list[Int], alone: dict[int, Tensor]) -> list[float]:
    """How far `evaluate` is from the texts alone when they are padded to one rectangle, token by token."""
    scored = _evaluated(policy, texts)
    distances: list[float] = []
    for row, logprobs in alone.items():
        text = texts[row]
        plain = logprobs[:-1].gather(1, _column(text[1:], logprobs))[:, 0]
        distances += (scored[row, 1 : len(text)] - plain).abs().tolist()
    return distances


def _scale(alone: list[Tensor]) -> float:
    ends = torch.stack([logprobs[-1] for logprobs in alone])
    return float(ends.std(dim=0).median())


def _rounding(alone: list[Tensor], scale: float) -> float:
    largest = max(float(logprobs.median(dim=-1).values.abs().max()) for logprobs in alone)
    return 5e-4 * scale + 32 * 1.2e-7 * largest  # many families compute in float32 whatever their weights are in


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _largest(values: list[float]) -> float:
    """NaN if one is: it is no number that can be right."""
    return float(np.max(values, initial=0.0))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:160]


def _column(ids: Int, like: Tensor) -> Tensor:
    return torch.from_numpy(ids).to(like.device)[:, None]
