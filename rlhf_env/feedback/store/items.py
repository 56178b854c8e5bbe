"""What a preference store holds beside judgements: items to judge, assignments, checks, progress."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from rlhf_env.feedback import findings
from rlhf_env.feedback.judgements import (
    Judgement,
    Response,
    digest,
    prompt_digest,
    prompt_problems,
    repetition_problems,
    response_digest,
)
from rlhf_env.feedback.kinds import kind_named, kinds
from rlhf_env.feedback.store.schema import to_bytes
from rlhf_env.types import Prompt

Purpose = Literal["collection", "evaluation", "verification", "control"]
Origin = Literal["page", "simulated", "file", "unknown"]
"""Where an annotator's votes come from: a person on the page, a simulated annotator, a file, or nobody said."""
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


@dataclass(frozen=True)
class Counts:
    """How much a store holds. Withdrawn judgements are not counted."""

    prompts: int
    responses: int
    annotators: int
    judgements: Mapping[str, int]
    """By what each kind calls them: "comparisons", of which "preferences" have a winner, "ties" and "cannot say" none;
    "ratings", "rankings", "criteria", and those of other kinds."""


@dataclass(frozen=True)
class Criterion:
    """What responses are judged by, with the guidelines that annotators read."""

    name: str
    guidelines: str = ""

    def __post_init__(self) -> None:
        findings.refuse(
            findings.text("criterion", self.name), findings.text("guidelines", self.guidelines, empty_is_fine=True)
        )


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something to be judged."""

    kind: str
    """The kind of judgement that is asked for; it says how many responses there are."""
    prompt: Prompt
    responses: tuple[Response, ...]
    criterion: str = "overall"
    """What to judge by; a kind of many criteria has `criteria` instead."""
    criteria: tuple[str, ...] = ()
    """The names that a kind of many criteria asks a score for."""
    overlap: int = 1
    """How many people judge it."""
    seed: int = 0
    """What the order of the responses is drawn from, for each annotator anew."""
    repeat: int = 0
    """1, 2, ... put the same item to the same people again, which shows how far they agree with themselves."""
    priority: float = 0.0
    """Items of higher priority are judged first, those of equal priority in the order they were added."""
    purpose: Purpose = "collection"
    """What the votes are for. The same responses with another purpose are another item."""

    def __post_init__(self) -> None:
        kind = kind_named(self.kind)
        findings.refuse(
            not kind.is_asked and f"kind: {self.kind!r} is an answer, and nothing that people are asked for",
            (len(self.responses) < 2 if kind.count is None else len(self.responses) != kind.count)
            and f"responses: {len(self.responses)} do not make an item of kind {self.kind!r}",
            *repetition_problems(self.responses),
            *criteria_names_problems(self.kind, self.criteria),
            *prompt_problems(self.prompt),
            findings.text("criterion", self.criterion),
            findings.whole_number("overlap", self.overlap, 1, 1_000_000),
            findings.whole_number("seed", self.seed, 0, 2**63 - 1),
            findings.whole_number("repeat", self.repeat, 0, 1_000_000),
            not math.isfinite(self.priority) and f"priority: {self.priority!r} is not a finite number",
            findings.one_of("purpose", self.purpose, PURPOSES),
        )

    @property
    def digest(self) -> str:
        prompt = prompt_digest(self.prompt)
        shown = sorted(response_digest(prompt, response) for response in self.responses)
        # What schema version 2 did not know stays out where it is not given, so that digests of its rows hold.
        later = [] if self.purpose == "collection" else [self.purpose]
        return digest("item", self.kind, prompt, shown, self.criterion, sorted(self.criteria), self.repeat, *later)

    def order_for(self, annotator: str) -> list[int]:
        """Which response is shown where: a permutation drawn from (seed, item, annotator), uniform over all."""
        source = hashlib.sha256(to_bytes(f"{self.seed}\n{self.digest}\n{annotator}")).digest()
        order = np.random.default_rng(list(source)).permutation(len(self.responses))
        return [int(place) for place in order]


@dataclass(frozen=True, kw_only=True)
class VerificationItem:
    """A reward model's opinion of a pair, put before people: an item for verification, and the reason for it."""

    item: Item
    """A comparison of the purpose verification. If the store has it already, its votes count here too."""
    model: str
    """The name of the model."""
    reason: str
    """Why this pair, in a word or two."""
    favoured: Response
    """The response of the two that the model scores higher."""
    log_odds: float
    """By how much, 0 or more: the log-odds that the model gives the one over the other."""

    def __post_init__(self) -> None:
        findings.refuse(
            (self.item.kind, self.item.purpose) != ("comparison", "verification")
            and "item: expected a comparison of the purpose verification",
            self.favoured not in self.item.responses and "favoured: none of the item's responses",
            findings.text("model", self.model),
            findings.text("reason", self.reason),
            findings.number("log_odds", self.log_odds, zero_is_fine=True),
        )


@dataclass(frozen=True)
class Assignment:
    """An item lent to one annotator."""

    id: int
    item: Item
    """Its responses are in the order to show."""
    annotator: str
    expires: float
    """Until when, in seconds since 1970."""

    @property
    def ticket(self) -> str:
        """What a vote shows to say what it is about: this item, put before this annotator, in this order."""
        prompt = prompt_digest(self.item.prompt)
        shown = [response_digest(prompt, response) for response in self.item.responses]
        return digest("asked", self.id, self.item.digest, self.annotator, shown)


@dataclass(frozen=True)
class Receipt:
    """What `submit` did."""

    item: int
    judgement: Judgement
    """The vote that stands."""
    new: bool
    """Whether it is this call's vote, and not that of an earlier call."""


@dataclass(frozen=True)
class OwnVote:
    """What somebody said earlier, to be looked at again."""

    number: int
    """Later votes have larger ones."""
    assignment: Assignment
    """What was put before them, lent no longer."""
    judgement: Judgement


@dataclass(frozen=True)
class VoteProgress:
    """How far annotation has come, for everybody and for one annotator.

    For an annotator a control question counts as an item that asks for one vote, theirs; without one it counts nowhere.
    """

    items: int
    complete: int
    """Items that have all their votes."""
    votes: int
    wanted: int
    """Votes asked for: the sum of overlaps."""
    own: int
    """Votes that the annotator gave, answers to control questions among them."""
    open: int
    """Items that are still open to the annotator."""

    @property
    def left(self) -> int:
        return self.wanted - self.votes


def criteria_names_problems(kind: str, names: Sequence[str]) -> list[str]:
    """What keeps an item of the kind from asking a score for each of these names."""
    problems = []
    if kind_named(kind).many_criteria != bool(names):
        scored = " or ".join(repr(one.name) for one in kinds() if one.many_criteria)
        problems.append(f"criteria: names go with the kind {scored}")
    problems += [findings.text("criteria", name) for name in names]
    return problems + [
        f"criteria: {name!r} stands there twice" for place, name in enumerate(names) if name in names[:place]
    ]
