"""A ranking: two or more responses put in order, with ties."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from rlhf_env.errors import DataError
from rlhf_env.feedback import findings
from rlhf_env.feedback.judgements import Preference, Response, judgement_problems, repetition_problems
from rlhf_env.feedback.kinds.dialects import Answered, Dialect, MessagePart, Names, order_of
from rlhf_env.feedback.kinds.form import Form, OrderInput, by_criterion
from rlhf_env.feedback.kinds.kind import (
    JudgementKind,
    Lesson,
    Opinion,
    lesson_of_pair,
    opinion_of_pair,
)
from rlhf_env.types import Prompt


@dataclass(frozen=True)
class Ranking:
    """K responses put in order."""

    prompt: Prompt
    responses: tuple[Response, ...]
    """In the order they were shown."""
    ranks: tuple[int, ...]
    """The place of each response, 1 the best. Equal places are ties, and places are dense: 1, 2, 2, 3."""
    annotator: str
    criterion: str = "overall"
    weight: float = 1.0
    created: str = ""
    """When, as ISO 8601."""
    seconds: float | None = None
    """How long the judgement took."""
    note: str = ""
    """What the annotator wrote beside the judgement."""
    flag: bool = False
    """The annotator wants whoever asked to look at it."""

    def __post_init__(self) -> None:
        findings.refuse(
            len(self.responses) < 2 and f"responses: a ranking needs at least 2, got {len(self.responses)}",
            _rank_problem(self.ranks, len(self.responses)),
            *repetition_problems(self.responses),
            *judgement_problems(self),
            findings.text("criterion", self.criterion),
            findings.text("note", self.note, empty_is_fine=True),
            findings.one_of("flag", self.flag, (True, False)),
        )

    @property
    def preferences(self) -> list[Preference]:
        """The pairs of different rank of the C(K, 2), each of weight `weight / C(K, 2)`, in one group.

        All pairs of a ranking together weigh as much as one comparison, as in Ouyang et al. 2022 (2203.02155, equation
        1): treated as independent, each response would count in K - 1 updates, and the model overfits. Ties leave their
        share unused: a ranking that says less weighs less.
        """
        share = self.weight / (len(self.responses) * (len(self.responses) - 1) / 2)
        group = RANKING.digest(self)
        return [
            Preference(
                prompt=self.prompt,
                chosen=self.responses[i if first_wins else j],
                rejected=self.responses[j if first_wins else i],
                annotator=self.annotator,
                criterion=self.criterion,
                weight=share,
                created=self.created,
                chosen_was_first=first_wins,
                seconds=self.seconds,
                group=group,
            )
            for i, j in combinations(range(len(self.responses)), 2)
            if self.ranks[i] != self.ranks[j]
            for first_wins in (self.ranks[i] < self.ranks[j],)
        ]


def _rank_problem(ranks: object, count: int) -> str:
    if not isinstance(ranks, tuple) or not all(type(rank) is int for rank in ranks):
        return "ranks: expected a tuple of whole numbers"
    if len(ranks) != count:
        return f"ranks: {len(ranks)} for {count} responses"
    if set(ranks) != set(range(1, len(set(ranks)) + 1)):
        return f"ranks: {ranks} are not dense places 1, 2, ... (equal places are ties)"
    return ""


def _pairs(ranking: Ranking) -> list[Preference]:
    return ranking.preferences


def _lessons(ranking: Ranking, whole_orders: bool) -> Iterator[Lesson]:
    """One lesson, the whole order; of a ranking with ties the pairs that it decides."""
    if len(set(ranking.ranks)) == len(ranking.ranks):
        placed = sorted(zip(ranking.ranks, ranking.responses, strict=True), key=lambda one: one[0])
        best_first = tuple(response for _, response in placed)
        yield Lesson(prompt=ranking.prompt, responses=best_first, weight=ranking.weight)
    elif whole_orders:
        raise DataError(
            f"the ranking of {ranking.annotator!r} on prompt {ranking.prompt.id!r} has ties, which Plackett-Luce does "
            "not know: set ranking_loss = 'auto', which takes the pairs of such rankings"
        )
    else:
        yield from map(lesson_of_pair, ranking.preferences)


def _opinions(ranking: Ranking) -> Mapping[str, list[Opinion]]:
    """A ranking is judged pair by pair."""
    shown, ranks = ranking.responses, ranking.ranks
    pairs = combinations(range(len(shown)), 2)
    return {
        ranking.criterion: [
            opinion_of_pair(ranking.prompt, (shown[i], shown[j]), (ranks[i], ranks[j])) for i, j in pairs
        ]
    }


def _form(guidelines: Mapping[str, str]) -> Form:
    criterion, text = next(iter(guidelines.items()))
    question = f"Put the responses in order{by_criterion(criterion)}, the best first."
    return Form(question=question, guidelines=text, inputs=(OrderInput(),))


# Argilla: the question "ranking" with a list of names, the best first; its server also writes {"value": name, "rank":
# place}, where places may tie. Label Studio: `ranker`, with the names in order.


def _to_argilla(answer: object, names: Names) -> list[MessagePart]:
    return [MessagePart(name="ranking", value=order_of(answer, names))]


def _from_argilla(part: MessagePart, names: Names) -> Answered | None:
    if not isinstance(part.value, list):
        return None
    places: dict[str, int] = {}
    for place, entry in enumerate(part.value, start=1):
        name, rank = (entry.get("value"), entry.get("rank")) if isinstance(entry, Mapping) else (entry, None)
        places[str(name)] = rank if type(rank) is int else place
    if set(places) != set(names):
        raise DataError(f"responses.{part.name}: does not rank {', '.join(names)}")
    return Answered(value=_dense([places[name] for name in names]))


def _dense(places: Sequence[int]) -> list[int]:
    return [1 + sorted(set(places)).index(place) for place in places]


def _to_label_studio(answer: object, names: Names) -> list[MessagePart]:
    return [MessagePart(name="rank", type="ranker", value={"ranker": {"rank": order_of(answer, names)}}, about="items")]


def _from_label_studio(part: MessagePart, _: Names) -> Answered | None:
    match part.type, part.value:
        case "ranker", {"places": [*places]}:  # of each name, as the reader made them of lists or buckets
            return Answered(value=_dense([int(place) for place in places]))
    return None


RANKING = JudgementKind(
    name="ranking",
    plural="rankings",
    judgement=Ranking,
    responses=("responses",),
    answer=("ranks",),
    form=_form,
    pairs=_pairs,
    lessons=_lessons,
    opinions=_opinions,
    simulation="rank",
    argilla=Dialect(write=_to_argilla, read=_from_argilla),
    label_studio=Dialect(write=_to_label_studio, read=_from_label_studio, lists_items=True),
)
