"""Sums of two small numbers; a quarter of them is held out."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from rlhf_env.envs.splits import Part
from rlhf_env.envs.tasks import places_of
from rlhf_env.settings import AtLeastOne, settings
from rlhf_env.types import Episode, Prompt, ResetOptions

_SET_ASIDE = 0.25  # the share of sums that is held out for evaluation


@settings(kw_only=False)
class Addition:
    """`"3+4="` asks for `"7"`. Reward: 1 / (1 + |answer - sum|); 0 for a response that is not a number.

    A number has no leading zeros, and no more digits than the largest sum.
    """

    largest: AtLeastOne = 9
    """The largest term; the smallest is 0."""
    part: Part = "training"
    """Which prompts: those of training, or those set aside for evaluation."""

    @cached_property
    def _sums(self) -> list[tuple[int, int]]:
        sums = [(a, b) for a in range(self.largest + 1) for b in range(self.largest + 1)]
        return [sums[place] for place in places_of(self.part, [f"{a}+{b}=" for a, b in sums], _SET_ASIDE)]

    @property
    def size(self) -> int:
        return len(self._sums)

    def prompt(self, index: int, _options: ResetOptions, /) -> Prompt:
        a, b = self._sums[index % self.size]
        return Prompt(id=f"addition/{a}+{b}", text=f"{a}+{b}=", meta={"answer": str(a + b)})

    def held_out(self) -> Addition:
        return replace(self, part="held_out")

    def well_formed(self, episode: Episode, /) -> bool:
        answer = episode.response
        digits = answer.isascii() and answer.isdigit() and len(answer) <= len(str(2 * self.largest))
        return digits and answer == str(int(answer))

    def score(self, episode: Episode, /) -> float:
        if not self.well_formed(episode):
            return 0.0
        return 1.0 / (1 + abs(int(episode.response) - int(episode.prompt.meta["answer"])))
