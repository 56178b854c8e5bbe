"""How far a model's log-probabilities are from its plain forward pass on each text alone, written and recomputed.

Texts are written side by side as they are in a run: prompts of several lengths share a padded batch, equal prompts
share one cache, and rows whose text has ended are dragged along or leave the cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from rlhf_env.policies.decoding import Decoding
from rlhf_env.policies.fused import FusedStep, Linear, SeparateLinear
from rlhf_env.policies.policy import Sampling
from rlhf_env.policies.untyped import HFModel, HFModule
from rlhf_env.types import Int

if TYPE_CHECKING:
    from rlhf_env.policies.language_model import LanguageModel


ForwardPath = Literal["fused", "cached", "whole"]
"""What computes texts: our own code for the model's family; the model's code, with its cache; or without."""

_NEVER = -1e4  # nats: below this, a token never comes
EXACT = 1e-10  # nats: up to here a difference is nothing but the order of sums in float64


@dataclass(frozen=True)
class Batch:
    """A small batch of texts to be written."""

    prompts: tuple[int, ...]
    """The length of each prompt, in tokens. The first and the last but one are one prompt, as in a group of answers."""
    steps: tuple[tuple[int, ...], ...]
    """Which rows write, step by step (1), and which have ended."""

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
        return Batch(prompts, steps)


# One row ends and stays in the cache, three end and the cache drops them, then one is left.
_ENDING = ((1, 1, 1, 1, 1, 1), (1, 0, 1, 1, 1, 1), (1, 0, 0, 0, 1, 1), (0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 0, 1))
RAGGED_AND_ENDING = Batch((5, 3, 2, 4, 5, 1), _ENDING)
AT_LOAD = Batch((3, 2, 3, 1), ((1, 1, 1, 1), (1, 0, 1, 1), (1, 0, 1, 1), (0, 0, 0, 1)))
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
    least: float
    """The part of it that is there however little the context matters."""
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
        most = min(max(self.rounding, 4 * self.own), max(0.5 * self.scale, self.least))
        return max(self.write, self.recompute) <= most

    @property
    def looks_ahead(self) -> bool:
        """Whether later tokens change what is said of earlier ones: so for encoders, or decoders set up as ones."""
        return not self.ahead <= max(0.02 * self.scale, self.least)


@contextmanager
def computed(policy: LanguageModel, way: ForwardPath) -> Iterator[None]:
    """Inside, our own code for the model's family is used for "fused" alone."""
    usual, policy.fused = policy.fused, policy.fused and way == "fused"
    try:
        yield
    finally:
        policy.fused = usual


def evaluated_with_gradient(policy: LanguageModel, texts: list[Int]) -> tuple[Tensor, str]:
    """`_evaluated`, and why the model cannot learn; "" if it can.

    The gradient is that of the embeddings: it goes all the way down, and no gradient of weights is computed, which
    would cost as much memory as the model. Our own code for a family is held by tests, and not asked.
    """
    if policy.anatomy() is not None:
        return _evaluated(policy, texts), ""
    embedded: list[Tensor] = []

    def keep(_module: HFModule, _arguments: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # some families change it in place, which a leaf does not allow

    train = [weight for weight in policy.parameters() if weight.requires_grad]
    hook = policy.model.get_input_embeddings().register_forward_hook(keep)
    try:
        for weight in train:
            weight.requires_grad_(False)
        with torch.enable_grad():
            scored = _evaluated(policy, texts)
            # The head may have been tried on the way, by a pass that the log-probabilities do not hang on.
            found = torch.autograd.grad(scored.sum(), embedded, allow_unused=True)
            gradients = [it for it in found if it is not None]
    except Exception as error:
        problem = f"its log-probabilities have no gradient ({in_one_line(error)})"
    else:
        finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
        problem = "" if finite else "the gradient of its log-probabilities is not finite"
        return scored.detach(), problem if gradients else "its log-probabilities have no gradient"
    finally:
        hook.remove()
        for weight in train:
            weight.requires_grad_()
    return _evaluated(policy, texts), problem


def differences(policy: LanguageModel, batch: Batch, *, whole: bool | None = None) -> Differences:
    """Write a batch and recompute it, and read each text alone. `whole`: read texts whole at every step, or not; by
    default, as `policy` does.

    Raises what the model's own code raises. Call it without gradients, and without dropout.
    """
    whole = policy.forward_path == "whole" if whole is None else whole
    texts, stated, _ = written_texts(policy, batch, "whole" if whole else "fused" if policy.anatomy() else "cached")
    alone = [logprobs_alone(policy.model, text) for text in texts]
    shorter = logprobs_alone(policy.model, texts[0][:-1])
    ahead = logprobs_alone(policy.model, _with_another_end(policy, texts[-1]))
    return _summary(
        policy,
        alone,
        own=_difference(shorter, alone[0][:-1]),
        ahead=_difference(ahead[:-1], alone[-1][:-1]),
        while_writing=_distances_of(stated, texts, alone),
        recomputed=_distances(_evaluated(policy, texts), texts, alone),
    )


def differences_at_load(policy: LanguageModel, batch: Batch, way: ForwardPath) -> tuple[Differences, str]:
    """The same from fewer forward passes, which are what it costs: one rectangle instead of most texts alone.

    In it, every text is followed by more text, and nothing is masked, which is all the same to a causal model. The
    first text is read alone, too; the rectangle has to agree with it. Two texts have a prompt in common, of which the
    rectangle has to say the same, whatever comes later. Also gives why the model cannot learn.
    """
    texts, stated, meanwhile = written_texts(policy, batch, way, linear=SeparateLinear)
    width = max(map(len, texts))
    filled = [np.concatenate([text, np.resize(texts[0], width - len(text))]) for text in texts]
    rectangle = _logprobs(policy.model, np.stack(filled))
    together = [logprobs[: len(text)] for text, logprobs in zip(texts, rectangle, strict=True)]
    first, common = texts[0], batch.prompts[0]
    alone = logprobs_alone(policy.model, first)
    if meanwhile is None:
        meanwhile = logprobs_alone(policy.model, first[:-1])
    beside = (together[0] - alone)[:-1].gather(1, _column(first[1:], alone)).abs().flatten().tolist()
    scored, no_gradient = evaluated_with_gradient(policy, texts)
    found = _summary(
        policy,
        [alone, *together[1:]],
        own=_difference(meanwhile, alone[: len(meanwhile)]),
        ahead=_difference(rectangle[0, :common], rectangle[-2, :common]),
        while_writing=_distances_of(stated, texts, together),
        recomputed=_distances(scored, texts, together) + beside,
    )
    return found, no_gradient


def _summary(
    policy: LanguageModel,
    texts: list[Tensor],
    *,
    own: float,
    ahead: float,
    while_writing: list[float],
    recomputed: list[float],
) -> Differences:
    """Of texts with log-probabilities [L, V], and the distances of their tokens."""
    scale, rounding = _scale(texts), _rounding(texts)
    return Differences(
        own=own,
        ahead=ahead,
        write=_largest(while_writing),
        recompute=_largest(recomputed),
        scale=scale,
        rounding=1e-4 * scale + rounding,
        least=rounding,
        mean=max(float(np.mean(it)) for it in (while_writing, recomputed)),
        half=policy.dtype in (torch.bfloat16, torch.float16),
    )


def _with_another_end(policy: LanguageModel, text: Int) -> Int:
    """The same text with another last token."""
    another = text.copy()
    another[-1] = (another[-1] + policy.vocab_size // 2) % policy.vocab_size
    return another


def _distances_of(stated: dict[tuple[int, int], float], texts: list[Int], alone: list[Tensor]) -> list[float]:
    return [abs(value - float(alone[row][at - 1, texts[row][at]])) for (row, at), value in stated.items()]


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
    return _logprobs(model, text[None])[0]


def _logprobs(model: HFModel, texts: Int) -> Tensor:
    """[B, L, V] of texts [B, L] of one length."""
    ids = torch.from_numpy(texts).to(next(model.parameters()).device)
    # A few families fail, or cannot be differentiated, while they fill a cache that nobody reads.
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    logits: Tensor = model(input_ids=ids, **options).logits
    return _bounded(logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1))


def written_texts(
    policy: LanguageModel, batch: Batch, way: ForwardPath, *, linear: type[Linear] = Linear
) -> tuple[list[Int], dict[tuple[int, int], float], Tensor | None]:
    """The texts; the log-probabilities stated of the tokens written, by (row, place); and those [n, V] of the first n
    tokens of the first text, which the model read by itself after the first step, if there was another.

    No text has the padding token in it, of which some families think otherwise than of others, and the two with one
    prompt go on differently: if not, another batch is written, as far as 8 of them help. `linear`: what our own code
    multiplies with.
    """
    for seed in range(8):
        found = _drawn(policy, batch, way, np.random.default_rng(seed), linear)
        texts, common = found[0], batch.prompts[0]
        if not any(policy.pad_id in it for it in texts) and texts[0][common] != texts[-2][common]:
            break
    return found


def _drawn(
    policy: LanguageModel, batch: Batch, way: ForwardPath, stream: np.random.Generator, linear: type[Linear]
) -> tuple[list[Int], dict[tuple[int, int], float], Tensor | None]:
    """`written_texts`, of texts that `stream` decides."""
    lengths = np.array(batch.prompts)
    tokens = np.zeros((len(lengths), batch.longest), np.int64)
    for row, length in enumerate(lengths):
        tokens[row, :length] = _text(policy, stream, length)
    tokens[-2] = tokens[0]
    anatomy = policy.anatomy() if way == "fused" else None
    fused = None if anatomy is None else FusedStep(policy.model, anatomy, linear)
    decoding = Decoding(policy.model, tokens, lengths, np.ones(len(lengths), bool), fused, whole=way == "whole")
    stated: dict[tuple[int, int], float] = {}
    meanwhile: Tensor | None = None
    for number, step in enumerate(batch.steps):
        if number == 1:  # the model reads something else meanwhile: a family that keeps states in its modules forgets
            meanwhile = logprobs_alone(policy.model, decoding.texts[0, : decoding.lengths[0]])
        rows = np.array(step, bool)
        before = decoding.lengths.copy()
        uniforms = stream.random((len(rows), 1))
        written = decoding.write(uniforms, rows, Sampling(), end_ids=[-1], vocab_size=policy.vocab_size)
        for row in np.flatnonzero(rows).tolist():
            stated[row, int(before[row])] = float(written.logprobs[row, 0])
    texts = [text[:length].copy() for text, length in zip(decoding.texts, decoding.lengths, strict=True)]
    return texts, stated, meanwhile


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
        return _bounded(
            policy.evaluate(torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(where)).logprobs
        )
    finally:
        policy.sampling = usual


def _bounded(logprobs: Tensor) -> Tensor:
    """Numbers that can be compared: a token that a model never says (a bias of -inf) is -inf on both sides."""
    return logprobs.clamp(min=_NEVER)


def _text(policy: LanguageModel, stream: np.random.Generator, length: int) -> Int:
    """Tokens int64[length] drawn evenly, but for padding: its embedding may be 0, which has no direction."""
    text: Int = stream.integers(policy.vocab_size, size=length)
    return np.where(text == policy.pad_id, (policy.pad_id + 1) % policy.vocab_size, text)


def _distances(scored: Tensor, texts: list[Int], alone: list[Tensor]) -> list[float]:
    """How far `scored` [B, L] is from the texts alone, token by token."""
    distances: list[float] = []
    for row, (text, logprobs) in enumerate(zip(texts, alone, strict=True)):
        plain = logprobs[:-1].gather(1, _column(text[1:], logprobs))[:, 0]
        distances += (scored[row, 1 : len(text)] - plain).abs().tolist()
    return distances


def _scale(alone: list[Tensor]) -> float:
    ends = torch.stack([logprobs[-1] for logprobs in alone])
    return float(ends.std(dim=0).median())


def _rounding(alone: list[Tensor]) -> float:
    largest = max(float(logprobs.median(dim=-1).values.abs().max()) for logprobs in alone)
    return 32 * 1.2e-7 * largest  # many families compute in float32 whatever their weights are in


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _largest(values: list[float]) -> float:
    """NaN if one is: it is no number that can be right."""
    return float(np.max(values, initial=0.0))


def in_one_line(error: Exception) -> str:
    """Its kind and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:160]


def _column(ids: Int, like: Tensor) -> Tensor:
    return torch.from_numpy(ids).to(like.device)[:, None]
