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
# What ended a text: an end token, a string that the environment stops at, the task, the limit, or somebody outside.
FinishReason = Literal["stop", "stop_string", "task", "length", "truncated"]
# What a reward that is a function of lists is given by name, beside the task's columns.
GIVEN_TO_FUNCTIONS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")

# Reset options: `group_size`, `indices`, `prefix`, and the names that a task reads.
ResetOptions = Mapping[str, Any]
# An object of JSON, a table of TOML, a row of a file: named plain values, as they are read and before they are checked,
# or as they are written. Who only reads one takes any mapping.
JsonObject = dict[str, Any]
JsonView = Mapping[str, Any]
# What a `state_dict` gives: nested dicts of tensors, arrays and plain values.
State = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """What the agent is asked. `id` is stable between runs; `meta` holds the task's own columns (answer, level).

    `messages` is the conversation that `text` was rendered from, `{"role", "content"}` each; empty for a plain text. A
    model with a chat template reads the messages in it, and not the text, unless one of the next two says otherwise.
    `rendered`: a chat template wrote the text, with all special tokens that belong in it: tokenizers add none.
    `as_text`: the text is what every model reads, although there are messages.
    `uncut`: of a prompt that was cut to fit, the whole one, by which it is known whether two ask the same.
    """

    id: str
    text: str
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)
    messages: Sequence[JsonView] = field(default=(), hash=False)
    rendered: bool = field(default=False, kw_only=True)
    as_text: bool = field(default=False, kw_only=True)
    uncut: Prompt | None = field(default=None, kw_only=True, hash=False, compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class Episode:
    """One finished text, as rewards see it.

    `response_ids` (int64[T]) includes the end token when `finish_reason` is "stop", and the whole stop string when it
    is "stop_string". `actions` (bool[T]) is True where the agent chose the token; other positions were written by the
    environment (later turns of a conversation). `logprobs` (float64[T]) are those the writing policy stated, 0 where
    `actions` is False, or None when the environment did not ask for them. `response` is the decoded response without
    the end token, and without the stop string and what its last token holds behind it. In a conversation `turns` are
    the agent's words, turn by turn; empty, where nobody else spoke: `response` is the one turn. Where a task answers in
    messages, `messages` is what was said since the prompt, as chat templates take it: the agent's turns, with the
    `tool_calls` that were read in them, and the answers.

    The arrays can be read and not written: many read the same episode.
    """

    prompt: Prompt
    prompt_ids: Int
    response: str
    response_ids: Int
    finish_reason: FinishReason
    actions: Bool
    logprobs: Float | None = None
    turns: tuple[str, ...] = ()
    messages: Sequence[JsonView] = ()

    def __post_init__(self) -> None:
        for name in ("prompt_ids", "response_ids", "actions", "logprobs"):
            values = getattr(self, name)
            if isinstance(values, np.ndarray) and values.flags.writeable:
                read_only = values.view()  # whoever made the episode may go on writing into an array of its own
                read_only.flags.writeable = False
                object.__setattr__(self, name, read_only)

    @property
    def ids(self) -> Int:
        """int64[L]: prompt and response."""
        return np.concatenate([self.prompt_ids, self.response_ids])

    def __eq__(self, other: object) -> bool:
        """Equal in every field, arrays element by element."""
        if not isinstance(other, Episode):
            return NotImplemented
        return (self.prompt, self.response, self.finish_reason, self.turns, tuple(self.messages)) == (
            other.prompt,
            other.response,
            other.finish_reason,
            other.turns,
            tuple(other.messages),
        ) and all(
            np.array_equal(np.asarray(getattr(self, name)), np.asarray(getattr(other, name)))
            for name in ("prompt_ids", "response_ids", "actions", "logprobs")
        )

    def __hash__(self) -> int:
        return hash((self.prompt, self.finish_reason, self.response_ids.tobytes()))


@dataclass(frozen=True, eq=False)
class Score:
    """What one episode earned. `raw` holds each part unweighted; `tokens` the token parts, float64[T] unweighted.

    `failed`: what the parts that could not score it did ("raised ..."). Where one of them is to be skipped, all of
    `raw` is empty: an episode without a score, which nothing may be learned from. That of a text that was cut from
    outside is empty as well.

    `abstained`: the parts that had nothing to say about it (None); `raw` is without them. Where no part speaks but the
    KL penalty, all of `raw` is empty. `raw` is also without the parts that do not count in the text's task of a
    mixture.

    `weights` are those that the text was paid with, which may change over a run. What shaping made of a part's score
    has a line of its own after the part's, "NAME/shaping" (`envs.shaping`): what was paid less what was said.
    """

    raw: Mapping[str, float]
    weights: Mapping[str, float]
    tokens: Mapping[str, Float] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    abstained: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """sum(weight_i * raw_i), added in the order of the ledger."""
        total = 0.0
        for name, raw in self.raw.items():  # not `sum`: from Python 3.12 on it compensates, and numpy's floats do not
            total += self.weights[name] * raw
        return total

    def __eq__(self, other: object) -> bool:
        """Equal in every field, arrays element by element."""
        if not isinstance(other, Score):
            return NotImplemented
        return (
            (self.raw, self.weights, self.failed, self.abstained)
            == (other.raw, other.weights, other.failed, other.abstained)
            and self.tokens.keys() == other.tokens.keys()
            and all(np.array_equal(values, other.tokens[name]) for name, values in self.tokens.items())
        )

    def __hash__(self) -> int:
        return hash((*self.raw.items(), *self.weights.items()))


class Observation(TypedDict):
    """`input_ids` int64[B, L] padded on the right; `attention_mask` int8[B, L], 1 on text. L is fixed.

    `collect()` adds `writing` bool[B]: rows whose text is not finished, so that nothing is computed for the others; and
    `prompts`, B of them, for agents that score texts of their own with the environment's reward. They hold the task's
    columns, the right answer among them: what a policy reads is `input_ids`. Where the environment has stop strings, it
    adds them as `stops` too, with `stop_states` int64[B], how far each text is in them: a writer ends its texts where
    the environment does.
    """

    input_ids: Int
    attention_mask: npt.NDArray[np.int8]
    writing: NotRequired[Bool]
    prompts: NotRequired[Sequence[Prompt]]
    stops: NotRequired[Stops]
    stop_states: NotRequired[Int]


class Stops(Protocol):
    """Strings that end a text with the token in which it first holds one. A text begins in state 0."""

    def after(self, states: Int, tokens: Int, /) -> Int:
        """int64[N]: the state of each text after one token more."""

    def completed(self, states: Int, /) -> Bool:
        """bool[N]: whether the text holds a stop string."""

    def cut(self, text: str, /) -> str:
        """The text without the first stop string and what follows it."""


@runtime_checkable
class Reward(Protocol):
    """One float per episode, which depends on that episode alone and not on the others in the batch.

    It may also return a list, with None for an episode that it cannot judge (an abstention). An exception, or a score
    that is not finite, is a RewardError that names the part, unless its `on_error` says otherwise.
    """

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]."""


@runtime_checkable
class TokenReward(Protocol):
    """One float per response token (KL penalties, process rewards); 0 where the environment wrote the token."""

    def token_rewards(self, episodes: Sequence[Episode], /) -> Sequence[Float]:
        """B arrays, float64[T_b] each."""


@runtime_checkable
class GroupReward(Protocol):
    """One float per response to the same prompt (diversity, pairwise judges), or None, as for a Reward."""

    def group_rewards(self, group: Sequence[Episode], /) -> Float:
        """float64[G]."""


AnyReward = Reward | TokenReward | GroupReward


@runtime_checkable
class KLPenalty(TokenReward, Protocol):
    """The token reward that charges a policy for leaving a reference: what it is and not what it is called.

    `token_rewards` are -`coefficient` * (log p - log p_ref) for each token the agent chose. A controller may move
    `coefficient` between rollouts. A mix has one at most (`RewardMix.kl`), and its weight times the coefficient is the
    `beta` of agents that carry the KL term themselves.
    """

    @property
    def coefficient(self) -> float: ...

    @property
    def reference(self) -> TokenScorer: ...


@runtime_checkable
class ReadsLogprobs(Protocol):
    """A reward that reads `episode.logprobs`, if `needs_logprobs` is true: actions then carry them."""

    @property
    def needs_logprobs(self) -> bool: ...


@runtime_checkable
class ReadsBatch(Protocol):
    """A reward that looks at the texts beside each text, if `needs_batch` is true.

    It is then given whole batches, groups side by side and equal texts as often as they are there.
    """

    @property
    def needs_batch(self) -> bool: ...


@dataclass(frozen=True)
class TrainerState:
    """Where training stands, under the names of transformers' TrainerState.

    `global_step` counts the updates that are done. `max_steps` is how many there will be: exact where the budget counts
    updates or episodes, otherwise estimated from the share that is spent. `epoch` counts passes over the prompts.
    `progress`, which theirs does not have, is the share of the budget that is spent.
    """

    global_step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    num_train_epochs: int = 1
    num_input_tokens_seen: int = 0
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True
    log_history: Sequence[JsonView] = ()
    progress: float = 0.0


@runtime_checkable
class FollowsTraining(Protocol):
    """A reward that is told where training stands, and may log numbers of its own."""

    def follow(self, state: TrainerState, /) -> None: ...

    def take_logged(self) -> Mapping[str, Sequence[float]]:
        """What it has logged since the last time, by name."""


@runtime_checkable
class BoundedBelow(Protocol):
    """A reward that says which number its scores are never below (None: there is none)."""

    @property
    def low(self) -> float | None: ...


@runtime_checkable
class BoundedAbove(Protocol):
    """A reward that says which number its scores are never above (None: there is none)."""

    @property
    def high(self) -> float | None: ...


@runtime_checkable
class Remembers(Protocol):
    """A reward with memory (novelty, an adaptive KL weight).

    It scores against a snapshot and takes in `episodes` only when the environment resets, so rewards do not depend on
    the order in which rows finish.
    """

    def observe(self, episodes: Sequence[Episode], /) -> None: ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State, /) -> None: ...


# What a task answers to a turn of the agent: a text, messages, or nothing more.
TaskReply = str | Sequence[JsonView] | None


class Task(Protocol):
    """Where prompts come from: an indexed source.

    `prompt` is a pure function of (index, options); `size` is the number of distinct prompts, None when unbounded.
    What a task may offer beyond that are the protocols below: `HoldsOut`, `ScoresItself`, `Replies`, `MasksActions`,
    `ReadsOptions`, `JudgesForm`. They are looked for once, as methods and attributes of the object or its class: a task
    that wraps another has those of its own, and what `__getattr__` would find does not count.
    """

    @property
    def size(self) -> int | None: ...

    def prompt(self, index: int, options: ResetOptions, /) -> Prompt: ...


@runtime_checkable
class HoldsOut(Protocol):
    """A task with evaluation prompts that training never sees."""

    def held_out(self) -> Task: ...


@runtime_checkable
class ScoresItself(Protocol):
    """A task with a reward of its own, the part named "task"."""

    def score(self, episode: Episode, /) -> float | None:
        """None: it has nothing to say about this text."""


@runtime_checkable
class Replies(Protocol):
    """A task that answers: a conversation. `episode.turns` is what the agent has said so far, at least one turn."""

    def reply(self, episode: Episode, /) -> TaskReply:
        """The next message; None ends the conversation.

        A string is written as it is. Messages are written as the model's own chat template writes them; a first one of
        the assistant's is the agent's turn as the task has understood it, and is not written.
        """


@runtime_checkable
class MasksActions(Protocol):
    """A task in which not every token may follow."""

    def action_mask(self, prompt: Prompt, response_ids: Int, /) -> Bool:
        """bool[V]: the tokens allowed next."""


@runtime_checkable
class ReadsOptions(Protocol):
    """A task that reads reset options of its own, by these names."""

    @property
    def option_names(self) -> Sequence[str]: ...


@runtime_checkable
class MixesTasks(Protocol):
    """Several tasks as one: the reset option `weights` says how often each comes, in the order of `tasks`, and
    `prompt.meta["task"]` which one a prompt is of."""

    @property
    def tasks(self) -> Mapping[str, object]:
        """By label."""

    @property
    def weights(self) -> Float:
        """float64[tasks], sum 1: how often each comes without the option."""


@runtime_checkable
class JudgesForm(Protocol):
    """A task that says whether an answer, right or wrong, has the form it asked for: the evaluator counts."""

    def well_formed(self, episode: Episode, /) -> bool: ...


class Tokenizer(Protocol):
    """Text to ids and back. `end_id` ends a response, `pad_id` fills the right of a row.

    `encode` gives the ids of the text alone. `HasEndIds` and `EncodesPrompts` are what a tokenizer may have beyond
    this; `envs.tokenizers.end_ids` and `prompt_ids` ask any tokenizer.
    """

    vocab_size: int
    end_id: int
    pad_id: int

    def encode(self, text: str, /) -> list[int]: ...

    def decode(self, ids: Sequence[int], /) -> str: ...


class HasEndId(Protocol):
    """A tokenizer or a policy: one token ends a text."""

    @property
    def end_id(self) -> int: ...


@runtime_checkable
class HasEndIds(Protocol):
    """A tokenizer, or a policy, of a model in which several tokens end a text; `end_id` is the first of them."""

    @property
    def end_ids(self) -> Sequence[int]: ...


@runtime_checkable
class EncodesPrompts(Protocol):
    """A tokenizer that writes something of its own around a prompt: a begin token, say."""

    def encode_prompt(self, prompt: Prompt, /) -> list[int]: ...


@runtime_checkable
class TokenScorer(Protocol):
    """Whatever can say how likely a response was: a frozen reference policy, as the KL penalty needs it."""

    def response_logprobs(self, episodes: Sequence[Episode], /) -> list[Float]:
        """log p(response token | text before it): B arrays, float64[T_b]."""
