"""What a preference store holds beside judgements: items to judge, assignments, checks, progress."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

import numpy as np

from rlhf_env.feedback import findings
from rlhf_env.feedback.judgements import (
    KINDS,
    Judgement,
    Kind,
    Response,
    digest,
    prompt_digest,
    prompt_problems,
    response_digest,
)
from rlhf_env.feedback.store.schema import to_bytes
from rlhf_env.types import Prompt

Purpose = Literal["collection", "evaluation", "verification"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


@dataclass(frozen=True)
class Counts:
    """What a store holds.

    `comparisons` counts judgements of that kind, of which `preferences` have a winner, and `ties` and `cannot_say` have
    none; judgements of all kinds are `comparisons + ratings + rankings + criteria`. Withdrawn ones are not counted.
    """

    prompts: int
    responses: int
    annotators: int
    comparisons: int
    preferences: int
    ties: int
    cannot_say: int
    ratings: int = 0
    rankings: int = 0
    criteria: int = 0


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
    """Something to be judged.

    Args:
        kind: comparison (2 responses), ranking (2 or more), rating or criteria (1).
        criterion: what the judgement goes by; for the kind "criteria" see `criteria`.
        criteria: the names that the kind "criteria" asks a score for.
        overlap: how many people judge it.
        seed: what the order of the responses is drawn from, for each annotator anew.
        repeat: 1, 2, ... put the same item to the same people again, which shows how far they agree with themselves.
        priority: items of higher priority are judged first, those of equal priority in the order they were added.
        purpose: what the votes are for. The same responses with another purpose are another item.
    """

    kind: Kind
    prompt: Prompt
    responses: tuple[Response, ...]
    criterion: str = "overall"
    criteria: tuple[str, ...] = ()
    overlap: int = 1
    seed: int = 0
    repeat: int = 0
    priority: float = 0.0
    purpose: Purpose = "collection"

    def __post_init__(self) -> None:
        fits = {"comparison": len(self.responses) == 2, "ranking": len(self.responses) > 1}
        findings.refuse(
            findings.one_of("kind", self.kind, KINDS),
            not fits.get(self.kind, len(self.responses) == 1)
            and f"responses: {len(self.responses)} do not make an item of kind {self.kind!r}",
            *(
                f"responses: {i + 1} and {j + 1} say the same"
                for (i, a), (j, b) in combinations(enumerate(self.responses), 2)
                if a.says_the_same_as(b)
            ),
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
    """A reward model's opinion of a pair, put before people: an item for verification and why it was chosen.

    Args:
        item: a comparison of the purpose verification. Of one that is in the store already its votes count here too.
        model: the name of the model.
        reason: why this pair, in a word or two.
        favoured: the response of the two that the model scores higher.
        log_odds: by how much, 0 or more: the log-odds it gives that one over the other.
    """

    item: Item
    model: str
    reason: str
    favoured: Response
    log_odds: float

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
    """An item lent to one annotator until `expires` (seconds since 1970); `item.responses` are in the order to show."""

    id: int
    item: Item
    annotator: str
    expires: float


@dataclass(frozen=True)
class Receipt:
    """What `submit` did: the vote that stands, and whether it is this call's (`new`) or that of an earlier one."""

    item: int
    judgement: Judgement
    new: bool


@dataclass(frozen=True)
class VoteProgress:
    """Votes given of those `wanted` (the sum of overlaps); `complete` items have all of theirs.

    Of one annotator: the votes they gave (`own`), and the items that are still open to them (`open`).
    """

    items: int
    complete: int
    votes: int
    wanted: int
    own: int
    open: int

    @property
    def left(self) -> int:
        return self.wanted - self.votes


def criteria_names_problems(kind: Kind, names: Sequence[str]) -> list[str | bool]:
    """What keeps an item of the kind from asking a score for each of these names."""
    return [
        (kind == "criteria") != bool(names) and "criteria: names go with the kind 'criteria'",
        *(findings.text("criteria", name) for name in names),
        *(f"criteria: {name!r} stands there twice" for place, name in enumerate(names) if name in names[:place]),
    ]
