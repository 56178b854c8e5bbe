"""What people (or simulated annotators) say about responses: the nouns that all kinds of judgement share.

A `Response` to a prompt, with its `Author`; a `Judgement`, whatever its kind (`rlhf_env.feedback.kinds` has one file
for each kind, and says how it becomes pairs); a `Preference`, the weighted pair that training reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, Protocol, get_args

import numpy as np

from rlhf_env.envs.tokenizers import conversation_of
from rlhf_env.errors import DataError
from rlhf_env.feedback import findings
from rlhf_env.types import Episode, FinishReason, JsonObject, Prompt

AuthorKind = Literal["policy", "human", "dataset"]
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Author:
    """Who wrote a response."""

    kind: AuthorKind
    """A policy, a person, or a data set that does not say."""
    name: str
    """The policy's, the person's or the file's."""
    temperature: float | None = None
    """What a policy sampled at."""

    def __post_init__(self) -> None:
        findings.refuse(
            findings.one_of("author kind", self.kind, get_args(AuthorKind)),
            findings.text("author name", self.name),
            self.temperature is not None and findings.number("temperature", self.temperature, zero_is_fine=True),
        )


@dataclass(frozen=True)
class Response:
    """One answer to a prompt.

    What a policy wrote keeps its token ids, which are never made again from the text. Text that no policy wrote has
    neither ids nor a finish reason.
    """

    text: str
    author: Author
    ids: Ids | None = None
    """The response's tokens, the end token included when `finish_reason` is "stop", and the whole stop string when it
    is "stop_string"."""
    prompt_ids: Ids | None = None
    """The prompt's tokens, as the policy that answered read them."""
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        reason = self.finish_reason
        findings.refuse(
            findings.text("text", self.text, empty_is_fine=True),
            findings.token_ids("ids", self.ids),
            findings.token_ids("prompt_ids", self.prompt_ids),
            (self.ids is None) != (self.prompt_ids is None) and "ids and prompt_ids: both or neither are given",
            reason is not None and findings.one_of("finish_reason", reason, get_args(FinishReason)),
        )

    @classmethod
    def from_episode(cls, episode: Episode, author: Author) -> Response:
        return cls(
            text=episode.response,
            author=author,
            ids=tuple(episode.response_ids.tolist()),
            prompt_ids=tuple(episode.prompt_ids.tolist()),
            finish_reason=episode.finish_reason,
        )

    def episode(self, prompt: Prompt) -> Episode:
        """The response as rewards see it. Raises DataError when its token ids are not known."""
        if self.ids is None or self.prompt_ids is None or self.finish_reason is None:
            raise DataError(f"the response {self.text!r} has no token ids: it was not written by a policy")
        return Episode(
            prompt=prompt,
            prompt_ids=np.array(self.prompt_ids, dtype=np.int64),
            response=self.text,
            response_ids=np.array(self.ids, dtype=np.int64),
            finish_reason=self.finish_reason,
            actions=np.ones(len(self.ids), dtype=np.bool_),
        )

    def says_the_same_as(self, other: Response) -> bool:
        """Equal text, and equal ids where both have them: an answer cut short differs from the same one finished."""
        return self.text == other.text and (self.ids is None or other.ids is None or self.ids == other.ids)


class Judgement(Protocol):
    """What a judgement of any kind says. Each kind is a frozen dataclass with these, and with what was said."""

    @property
    def prompt(self) -> Prompt: ...

    @property
    def responses(self) -> tuple[Response, ...]:
        """In the order they were shown."""

    @property
    def annotator(self) -> str: ...

    @property
    def criterion(self) -> str:
        """What the responses were judged by."""

    @property
    def weight(self) -> float: ...

    @property
    def created(self) -> str:
        """When, as ISO 8601; "" where that is not known."""

    @property
    def seconds(self) -> float | None:
        """How long the judgement took."""


@dataclass(frozen=True)
class Preference:
    """A weighted pair with a winner: what training reads, whatever kind of judgement it comes from."""

    prompt: Prompt
    chosen: Response
    rejected: Response
    annotator: str
    criterion: str = "overall"
    weight: float = 1.0
    created: str = ""
    chosen_was_first: bool = True
    """The order in which the two were shown."""
    seconds: float | None = None
    group: str = ""
    """Pairs of one group (not "") come from one judgement. They share its noise, so training keeps them in one batch,
    where their weights are those of one judgement."""
    margin: float | None = None
    """By how much the chosen response is better, in the annotator's own scale; None where nobody said."""
    note: str = ""
    """What the annotator wrote beside the judgement."""

    def __post_init__(self) -> None:
        findings.refuse(
            findings.one_of("chosen_was_first", self.chosen_was_first, (True, False)),
            *prompt_problems(self.prompt),
            no_winner_problem(self.chosen, self.rejected),
            findings.text("criterion", self.criterion),
            *circumstance_problems(self.annotator, self.weight, self.created, self.seconds),
            findings.text("group", self.group, empty_is_fine=True),
            margin_problem(self.margin),
            findings.text("note", self.note, empty_is_fine=True),
        )


def id_of_text(text: str) -> str:
    """What names a prompt that has no name of its own: the same text has the same id in every file."""
    return hashlib.sha256(json.dumps(text).encode("ascii")).hexdigest()[:16]


def prompt_digest(prompt: Prompt) -> str:
    return digest(prompt.id, prompt.text, kept_meta(prompt))


def kept_meta(prompt: Prompt) -> JsonObject:
    """What is written down of a prompt beside its text: its columns, and the messages of a conversation as `messages`,
    so that whoever reads it asks it in their own chat template."""
    spoken = {"messages": [dict(message) for message in conversation_of(prompt)]} if prompt.messages else {}
    return {**prompt.meta, **(spoken if spoken.get("messages") else {})}


def response_digest(prompt: str, response: Response) -> str:
    """`prompt` is the digest of the prompt it answers."""
    author = response.author
    by = (author.kind, author.name, None if author.temperature is None else float(author.temperature))
    return digest(prompt, response.text, response.ids, response.prompt_ids, response.finish_reason, by)


def digest(*content: object) -> str:
    """sha256 in hexadecimal of anything JSON can hold."""
    return hashlib.sha256(findings.as_json(content).encode("ascii")).hexdigest()


# ---------------------------------------------------------------- findings about what all kinds have


def prompt_problems(prompt: Prompt) -> Iterator[str]:
    yield findings.text("prompt id", prompt.id)
    yield findings.text("prompt", prompt.text, empty_is_fine=True)
    yield findings.json_object("prompt meta", prompt.meta)


def no_winner_problem(chosen: Response, rejected: Response) -> str:
    return "chosen equal to rejected: there is no winner" if chosen.says_the_same_as(rejected) else ""


def repetition_problems(responses: Sequence[Response]) -> Iterator[str]:
    """Nobody can put two responses in order that say the same."""
    for (i, one), (j, other) in combinations(enumerate(responses, start=1), 2):
        if one.says_the_same_as(other):
            yield f"responses: {i} and {j} say the same"


def margin_problem(margin: object) -> str:
    return "" if margin is None else findings.number("margin", margin, zero_is_fine=True)


def circumstance_problems(annotator: object, weight: object, created: object, seconds: object) -> Iterator[str]:
    """Who judged, with which weight, when, for how long."""
    yield findings.text("annotator", annotator)
    yield findings.number("weight", weight)
    yield findings.text("created", created, empty_is_fine=True)
    if seconds is not None:
        yield findings.number("seconds", seconds, zero_is_fine=True)


def judgement_problems(judgement: Judgement) -> Iterator[str]:
    """Of what a judgement of any kind has, its criterion left out: a kind may make it of its other fields."""
    yield from prompt_problems(judgement.prompt)
    yield from circumstance_problems(judgement.annotator, judgement.weight, judgement.created, judgement.seconds)
