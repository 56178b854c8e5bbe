"""What an agent may ask of whoever writes the texts: a language model, a table of logits, another engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from rlhf_env.errors import ConfigError
from rlhf_env.plain_data import refuse_misfits
from rlhf_env.types import Bool, Episode, Float, Int, Observation, State


@dataclass(frozen=True)
class Sampling:
    """The distribution that tokens are drawn from, given a model's logits.

    The temperature divides the logits; then the `top_k` likeliest tokens are kept (0: all), then the fewest of those
    that together have probability `top_p` (1: all).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        refuse_misfits(self)
        problems = []
        if not self.temperature > 0.0:
            problems.append(f"temperature: {self.temperature} is not above 0 (for greedy text use top_k=1)")
        if self.top_k < 0:
            problems.append(f"top_k: {self.top_k} is negative (0 keeps every token)")
        if not 0.0 < self.top_p <= 1.0:
            problems.append(f"top_p: {self.top_p} is not in (0, 1] (1 keeps every token)")
        if problems:
            raise ConfigError(*problems)

    @property
    def exact(self) -> bool:
        """Nothing is cut off: `evaluate` then speaks of the very distribution that `write` draws from."""
        return self.top_k == 0 and self.top_p == 1.0


@dataclass(frozen=True, eq=False)
class Written:
    """New tokens, k places a row.

    `tokens` int64[B, k] ends with the end token where there is one; places after it, and rows that were not asked,
    hold the value `vocab_size`. `logprobs` float64[B, k] are those of the distribution sampled from (truncated, if
    `Sampling` truncates), and 0 in unused places.
    """

    tokens: Int
    logprobs: Float


class TextEvaluation(NamedTuple):
    """How a policy sees given texts; every tensor speaks about `tokens[b, t]` itself.

    `logprobs` [B, L]: log p(tokens[b, t] | tokens[b, <t]) where asked, exactly 0 and without gradient elsewhere.
    `entropy` [B, L]: of the distribution that tokens[b, t] was drawn from, in nats, 0 where not asked.
    `hidden` [B, L, H]: the state in which tokens[b, t] is chosen, that is, the last layer's state one position earlier
    (after the final norm); 0 where no text precedes. It also exists at the first padding place: the state after the
    last token.
    """

    logprobs: Tensor
    entropy: Tensor
    hidden: Tensor


class Policy(Protocol):
    """A writer. `device`, `dtype` and the module methods are as in `torch.nn.Module`; nothing uses a global generator.

    `write` and `response_logprobs` run without dropout and without gradients and leave `training` as it was;
    `evaluate` runs in the mode the module is in.
    """

    sampling: Sampling
    training: bool

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def end_id(self) -> int: ...

    @property
    def pad_id(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    def write(self, observation: Observation, length: int, rows: Bool | None = None) -> Written:
        """Up to `length` next tokens for each row of `rows` (bool[B]; default: `observation["writing"]`, else all).

        A row's text ends at the end token.

        Calls that continue the texts of the call before, token by token, do not read them again.
        """

    def evaluate(self, tokens: Tensor, mask: Tensor, where: Tensor) -> TextEvaluation:
        """Score given texts: `tokens` int64[B, L]; `mask` bool[B, L], True on text; `where` bool[B, L], True to score.

        Log-probabilities are those at `sampling.temperature`, never truncated. ConfigError when `where` asks for a
        place outside the text, or for the first token of one.
        """

    def response_logprobs(self, episodes: Sequence[Episode], /) -> list[Float]:
        """log p(response token | text before it), B arrays float64[T_b], 0 where the agent did not choose the token."""

    def frozen_copy(self) -> Policy:
        """An independent copy that does not train: a reference."""

    def reseed(self, seed: int) -> None:
        """Start the stream that drives `write` anew."""

    def sampling_state(self) -> State:
        """The place in that stream, as JSON knows it."""

    def load_sampling_state(self, state: Mapping[str, object], /) -> None: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state_dict: Mapping[str, object], /) -> Any: ...

    def train(self, mode: bool = True) -> Self: ...

    def eval(self) -> Self: ...
