"""Control questions: how often each annotator gives the answer that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_env.feedback.judgements import Judgement
from rlhf_env.feedback.kinds import kind_of
from rlhf_env.feedback.kinds.kind import Opinion
from rlhf_env.feedback.reward_models.calibration import wilson_interval
from rlhf_env.feedback.store.store import PreferenceStore


@dataclass(frozen=True, kw_only=True)
class ControlScore:
    """One annotator's answers to control questions."""

    annotator: str
    answered: int
    right: int
    """A score counts as right within one step of the known one; of an order every pair has to be right."""
    undecided: int
    """Answers without an opinion ("cannot say"), which are not right."""

    @property
    def share(self) -> tuple[float, float, float]:
        """(right / answered, and its 95 % interval by Wilson)."""
        share = self.right / self.answered
        return share, *wilson_interval(share, self.answered)

    def __str__(self) -> str:
        share, low, high = self.share
        said = f"{self.right:,} of {self.answered:,} right, {share:.2f} [{low:.2f}, {high:.2f}]"
        return said + (f"; {self.undecided:,} without an opinion" if self.undecided else "")


def control_scores(store: PreferenceStore) -> list[ControlScore]:
    """Of everybody who answered a control question, in the order they came; the first answer to each counts."""
    known = store.controls()
    verdicts: dict[str, list[bool | None]] = {}
    for item, vote in store.control_votes():
        if item in known:
            verdicts.setdefault(vote.annotator, []).append(is_right(known[item], vote))
    return [
        ControlScore(
            annotator=name, answered=len(said), right=said.count(True), undecided=sum(one is None for one in said)
        )
        for name, said in verdicts.items()
    ]


def is_right(known: Judgement, vote: Judgement) -> bool | None:
    """Whether a vote says what is known; None where it has no opinion."""
    wanted, said = _by_unit(known), _by_unit(vote)
    if not said:
        return None
    step = 1.0 if kind_of(known).level == "ordinal" else 0.0
    return all(unit in said and abs(said[unit] - value) <= step for unit, value in wanted.items())


def _by_unit(judgement: Judgement) -> Mapping[tuple[str, str], float]:
    opinions: Mapping[str, Sequence[Opinion]] = kind_of(judgement).opinions_of(judgement)
    return {(criterion, unit): value for criterion, found in opinions.items() for unit, value in found}
