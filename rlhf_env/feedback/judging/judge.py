"""A judging model's opinions: a score of each response, a verdict on each pair; None where it has none.

One vote on a pair asks both orders, and counts for a response only if both name it: a judge that goes by the place
says "first" twice, which is a tie (Zheng et al. 2023, "Judging LLM-as-a-Judge", section 3.4, the conservative rule).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlhf_env.errors import Problem
from rlhf_env.feedback.judging.chat_model import ChatModel
from rlhf_env.feedback.judging.rubrics import Rubric, Side, score_in, side_in
from rlhf_env.settings import AtLeastOne, fault, settings
from rlhf_env.types import Episode

_OTHER: dict[Side, Side] = {"first": "second", "second": "first", "tie": "tie"}


@settings(frozen=False, eq=False)
class Judging(ChatModel):
    """What every judge is told."""

    votes: AtLeastOne = 1
    """How often the judge is asked about the same; more than once needs a temperature above 0."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.votes > 1 and self.temperature == 0:
            yield fault("votes", f"= {self.votes} at temperature 0 asks for the same answer again: raise temperature")

    def scores(self, episodes: Sequence[Episode], rubric: Rubric, scale: tuple[float, float]) -> list[list[float]]:
        """The votes on each response that could be read, 0 to 1 each: `votes` of them, or fewer, or none."""
        lowest, highest = scale
        asked = [
            rubric.about(it.prompt, response=it.response, lowest=f"{lowest:g}", highest=f"{highest:g}")
            for it in episodes
        ]
        said = iter(self.ask([(text, vote) for text in asked for vote in range(self.votes)]))
        read = [[score_in(next(said), lowest, highest) for _ in range(self.votes)] for _ in asked]
        return [[score for score in votes if score is not None] for votes in read]

    def sides(self, pairs: Sequence[tuple[Episode, Episode]], rubric: Rubric, *, swap: bool) -> list[list[Side]]:
        """The votes on each pair that could be read; with `swap`, in both orders."""
        orders = [(first, second) for pair in pairs for first, second in ([pair, pair[::-1]] if swap else [pair])]
        asked = [rubric.about(one.prompt, first=one.response, second=two.response) for one, two in orders]
        said = iter(self.ask([(text, vote) for text in asked for vote in range(self.votes)]))
        read = iter([[side_in(next(said)) for _ in range(self.votes)] for _ in asked])
        found: list[list[Side]] = []
        for _ in pairs:
            forward = next(read)
            backward = [None if it is None else _OTHER[it] for it in next(read)] if swap else forward
            found.append([_agreed(one, two) for one, two in zip(forward, backward, strict=True) if one and two])
        return found


def _agreed(one: Side, two: Side) -> Side:
    return one if one == two else "tie"


def majority(votes: Sequence[Side]) -> Side | None:
    """What more votes name; a tie where as many name the other. None where there is no vote."""
    if not votes:
        return None
    lead = votes.count("first") - votes.count("second")
    return "first" if lead > 0 else "second" if lead < 0 else "tie"


def scale_problems(lowest: float, highest: float) -> Iterator[Problem]:
    if lowest >= highest:
        yield fault("highest", f"must be above lowest, {lowest:g}, got {highest:g}")
