"""The nouns: what the environment, rewards, agents and data stores say to each other.

Axis letters, used in every docstring of the project: **B** episodes (rows), **L** positions of a whole text,
**T** positions of a response, **V** vocabulary, **G** responses to one prompt, **P** preference pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
FinishReason = Literal["stop", "task", "length", "truncated"]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Prompt:
    """What the agent is asked. `id` is stable between runs; `meta` holds the task's own columns (answer, level)."""

    id: str
    text: str
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, eq=False)
class Episode:
    """One finished text, as rewards see it.

    `response_ids` (int64[T]) includes the end token when `finish_reason` is "stop". `actions` (bool[T]) is True where
    the agent chose the token; other positions were written by the environment (later turns of a conversation).
    `logprobs` (float64[T]) are those the writing policy stated, 0 where `actions` is False, or None when the
    environment did not ask for them. `response` is the decoded response without the end token. In a conversation
    `turns` are the agent's words, turn by turn; empty, where nobody else spoke: `response` is the one turn.
    """

    prompt: Prompt
    prompt_ids: Int
    response: str
    response_ids: Int
    finish_reason: FinishReason
    actions: Bool
    logprobs: Float | None = None
    turns: tuple[str, ...] = ()

    @property
    def ids(self) -> Int:
        """int64[L]: prompt and response."""
        return np.concatenate([self.prompt_ids, self.response_ids])

    def __eq__(self, other: object) -> bool:
        """Equal in every field, arrays element by element."""
        if not isinstance(other, Episode):
            return NotImplemented
        return (self.prompt, self.response, self.finish_reason, self.turns) == (
            other.prompt,
            other.response,
            other.finish_reason,
            other.turns,
        ) and all(
            np.array_equal(np.asarray(getattr(self, name)), np.asarray(getattr(other, name)))
            for name in ("prompt_ids", "response_ids", "actions", "logprobs")
        )

    def __hash__(self) -> int:
        return hash((self.prompt, self.finish_reason, self.response_ids.tobytes()))


class Observation(TypedDict):
    """`input_ids` int64[B, L] padded on the right; `attention_mask` int8[B, L], 1 on text. L is fixed.

    `collect()` adds `writing` bool[B]: rows whose text is not finished, so that nothing is computed for the others; and
    `prompts`, B of them, for agents that score texts of their own with the environment's reward. They hold the task's
    columns, the right answer among them: what a policy reads is `input_ids`.
    """

    input_ids: Int
    attention_mask: npt.NDArray[np.int8]
    writing: NotRequired[Bool]
    prompts: NotRequired[Sequence[Prompt]]


@runtime_checkable
class Reward(Protocol):
    """One float per episode, from that episode alone: batch mates change nothing."""

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]."""


@runtime_checkable
class TokenReward(Protocol):
    """One float per response token (KL penalties, process rewards)."""

    def token_rewards(self, episodes: Sequence[Episode], /) -> Sequence[Float]:
        """B arrays, float64[T_b] each."""


@runtime_checkable
class GroupReward(Protocol):
    """One float per member of a group of responses to one prompt (diversity, pairwise judges)."""

    def group_rewards(self, group: Sequence[Episode], /) -> Float:
        """float64[G]."""


AnyReward = Reward | TokenReward | GroupReward


@runtime_checkable
class Remembers(Protocol):
    """A reward with memory (novelty, an adaptive KL weight).

    It scores against a snapshot and takes in `episodes` only when the environment resets, so rewards do not depend on
    the order in which rows finish.
    """

    def observe(self, episodes: Sequence[Episode], /) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


class Task(Protocol):
    """Where prompts come from: an indexed source.

    `prompt` is a pure function of (index, options); `size` is the number of distinct prompts, None when unbounded.
    A task may also have: `held_out() -> Task` (evaluation prompts that training never sees), `score(episode) -> float`
    (its own reward, the part named "task"), `reply(episode) -> str | None` (the next message of a conversation, of
    which `episode.turns` is what the agent has said so far; None ends it),
    `action_mask(prompt, response_ids) -> bool[V]` (tokens allowed next), `option_names` (the reset options it reads),
    `well_formed(episode) -> bool` (whether an answer, right or wrong, has the form asked for: the evaluator counts).
    """

    @property
    def size(self) -> int | None: ...

    def prompt(self, index: int, options: Options, /) -> Prompt: ...


class Tokenizer(Protocol):
    """Text to ids and back. `end_id` ends a response, `pad_id` fills the right of a row."""

    vocab_size: int
    end_id: int
    pad_id: int

    def encode(self, text: str, /) -> list[int]: ...

    def decode(self, ids: Sequence[int], /) -> str: ...


class TokenScorer(Protocol):
    """Whatever can say how likely a response was: a frozen reference policy, as the KL penalty needs it."""

    def response_logprobs(self, episodes: Sequence[Episode], /) -> list[Float]:
        """log p(response token | text before it): B arrays, float64[T_b]."""
