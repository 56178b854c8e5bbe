"""Sums of two small numbers, a quarter of which training never sees."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from rlhf_env.envs.splits import Part
from rlhf_env.envs.tasks import places_of
from rlhf_env.settings import AtLeastOne, settings
from rlhf_env.types import Episode, Options, Prompt

_SET_ASIDE = 0.25  # of the sums


@settings(kw_only=False)
class Addition:
    """`"3+4="` asks for `"7"`. Reward: 1 / (1 + how far off the answer is); 0 for what is not a number.

    A number has no zero before it, and no more digits than the largest sum.
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

    def prompt(self, index: int, _options: Options, /) -> Prompt:
        a, b = self._sums[index % self.size]
        return Prompt(id=f"addition/{a}+{b}", text=f"{a}+{b}=", meta={"answer": str(a + b)})

    def held_out(self) -> Addition:
        return replace(self, part="held_out")

    def well_formed(self, episode: Episode, /) -> bool:
        said = episode.response
        digits = said.isascii() and said.isdigit() and len(said) <= len(str(2 * self.largest))
        return digits and said == str(int(said))

    def score(self, episode: Episode, /) -> float:
        if not self.well_formed(episode):
            return 0.0
        return 1.0 / (1 + abs(int(episode.response) - int(episode.prompt.meta["answer"])))
