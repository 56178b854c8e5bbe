"""The policy protocol: what an agent may ask of a language model, a table of logits or another engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import torch
from annotated_types import Gt, Le
from torch import Tensor, nn

from rlhf_env.policies.anatomy import Anatomy
from rlhf_env.policies.next_tokens import NextTokens
from rlhf_env.settings import Positive, Whole, settings
from rlhf_env.types import Bool, Episode, Float, Int, Observation, State

_T = TypeVar("_T")


@settings(kw_only=False)
class Sampling:
    """The distribution that tokens are drawn from, given a model's logits.

    The temperature divides the logits. Then the `top_k` likeliest tokens are kept, and of those the smallest
    set of the likeliest whose probabilities sum to `top_p` or more.
    """

    temperature: Positive = 1.0
    """The divisor of the logits. For greedy text use top_k = 1."""
    top_k: Whole = 0
    """How many of the likeliest tokens are kept (0: all). 1 is greedy: always the likeliest token, of equal ones that
    with the lowest id, whose stated log-probability is 0 because no other can come."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """The probability that the tokens kept have together (1: all are kept)."""

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.top_k == 1

    def __str__(self) -> str:
        """Like "greedily", "at temperature 0.7, top_p 0.9"."""
        if self.greedy:
            return "greedily"
        kept = [
            f"{name} {value:g}"
            for name, value, all_of in (("top_k", self.top_k, 0), ("top_p", self.top_p, 1))
            if value != all_of
        ]
        return ", ".join([f"at temperature {self.temperature:g}", *kept])

    @property
    def exact(self) -> bool:
        """Whether no token is cut off, so that `evaluate` scores by the distribution that `write` draws from."""
        return self.top_k == 0 and self.top_p == 1.0


@dataclass(frozen=True, eq=False)
class Written:
    """New tokens, k columns per row."""

    tokens: Int
    """int64[B, k]: a row ends with the end token, or with the token that completes a stop string, if there is one.
    After it, and in rows that were not asked to write, the value is `vocab_size`."""
    logprobs: Float
    """float64[B, k]: under the distribution that was sampled from, truncated if `Sampling` truncates; 0 where there is
    no token."""


class WritesTogether(Protocol):
    """Several processes that write one batch of texts: each some of the rows, and all get the tokens of all."""

    def written(
        self, observation: Observation, rows: Bool, length: int, nothing: int, write: Callable[[Bool], Written]
    ) -> Written:
        """What `write(rows)` gives: int64[B, length], `nothing` where there is no token.

        Equal texts that are continued by equal tokens have equal log-probabilities, whoever wrote them.
        """

    def known(self, reader: object, episodes: Sequence[Episode]) -> list[Float] | None:
        """`reader.response_logprobs(episodes)`, where the processes have read all of these together; else None."""


class InShards(Protocol):
    """How a model is divided among processes; all of them call every method alike."""

    gathers: int
    """How often it was made whole."""

    def anatomy_of(self, model: object) -> Anatomy | None: ...

    def run(self, compute: Callable[..., _T], *arguments: Tensor) -> _T:
        """`compute(*arguments)`, in which `layer` and `calling_layers` have the weights of layers, and all others are
        there; with gradients until the backward pass is through."""

    def layer(self, number: int, compute: Callable[..., _T], *arguments: Any, **named: Any) -> _T: ...

    def calling_layers(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside, the model's own code computes each of its layers by `layer`."""

    def gather(self) -> None:
        """Make it whole, until `release` or the next `run`."""

    def release(self) -> None: ...

    def release_unless(self, needed: bool) -> None:
        """Divide it again, unless some process needs it whole."""

    def most(self, count: int) -> int:
        """The largest count of all processes."""

    def of_copy(self, model: Any) -> InShards:
        """How a copy is divided that was made while this one was whole."""

    def cut(self, weights: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """Of whole weights the parts that are here of `own`."""


class TextWriter(Protocol):
    """Another engine that writes a policy's texts."""

    name: str
    of_training: bool
    """Whether training alone has its texts, which it writes with the policy's weights; else evaluations have them."""
    max_kl: float
    """How far what it wrote may be from the policy, in nats per token."""

    def write(
        self, policy: Any, weights: tuple[object, ...], observation: Observation, rows: Bool, numbers: Float, /
    ) -> Written:
        """As `Policy.write`, for `rows` bool[B]; `numbers` float64[B, k] in [0, 1) decide what is drawn.

        `weights` is another value after every change of the policy's weights. Raises WriterFailed.
        """

    def take_distance(self) -> dict[str, float]:
        """How far what it wrote since the last call is from the policy: see `WriterDistance.take`."""


class WritesAlone:
    """One process that writes all rows."""

    def written(
        self, observation: Observation, rows: Bool, length: int, nothing: int, write: Callable[[Bool], Written]
    ) -> Written:
        return write(rows)

    def known(self, reader: object, episodes: Sequence[Episode]) -> None:
        return None


ALONE = WritesAlone()


class TextEvaluation(NamedTuple):
    """A policy's scores of given texts; every tensor speaks about `tokens[b, t]` itself."""

    logprobs: Tensor
    """[B, L]: log p(tokens[b, t] | tokens[b, <t]) where asked for; exactly 0 and without gradient elsewhere."""
    entropy: Tensor
    """[B, L]: the entropy, in nats, of the distribution that tokens[b, t] was drawn from; 0 where not asked for."""
    hidden: Tensor
    """[B, L, H]: the state from which tokens[b, t] is drawn, that is, the hidden state of the token before it, after
    the final norm; 0 where no text precedes. At the first token of padding it is the state after the last token."""


@runtime_checkable
class HasContext(Protocol):
    """A policy that reads at most `context` tokens (None: any number)."""

    @property
    def context(self) -> int | None: ...


@runtime_checkable
class HasNextTokens(Protocol):
    """A policy that gives whole distributions, which divergences are measured between."""

    def next_tokens(self, tokens: Tensor, mask: Tensor, where: Tensor) -> NextTokens:
        """The distributions that the tokens at `where` were drawn from, row by row; arguments as in `evaluate`."""


class Policy(Protocol):
    """A model that generates texts (`write`) and scores them (`evaluate`, `response_logprobs`).

    `device`, `dtype` and the module methods are as in `torch.nn.Module`; nothing uses a global random generator.

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

        A row's text ends at the end token, and with the token that completes one of `observation["stops"]`. A call that
        continues the texts of the call before does not read them again.
        """

    def evaluate(self, tokens: Tensor, mask: Tensor, where: Tensor) -> TextEvaluation:
        """Score given texts: `tokens` int64[B, L]; `mask` bool[B, L], True on text; `where` bool[B, L], True to score.

        Log-probabilities are those at `sampling.temperature`, never truncated. ConfigError when `where` asks for
        padding or for the first token of a text.
        """

    def response_logprobs(self, episodes: Sequence[Episode], /) -> list[Float]:
        """log p(response token | text before it), B arrays float64[T_b], 0 where the agent did not write the token."""

    def frozen_copy(self) -> Policy:
        """An independent copy whose parameters do not train: a reference policy."""

    def reseed(self, seed: int) -> None:
        """Start the random streams of `write` again from `seed`."""

    def sampling_state(self) -> State:
        """Where those streams are, ready for JSON."""

    def load_sampling_state(self, state: Mapping[str, object], /) -> None: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state_dict: Mapping[str, object], /) -> Any: ...

    def train(self, mode: bool = True) -> Self: ...

    def eval(self) -> Self: ...


def all_weights(policy: Policy) -> dict[str, Tensor]:
    """Every weight by name, those included that never train (below adapters) and so are in no `state_dict`."""
    return nn.Module.state_dict(policy) if isinstance(policy, nn.Module) else dict(policy.state_dict())
