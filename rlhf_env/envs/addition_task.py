"""Sums of two small numbers, a quarter of which training never sees."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from rlhf_env.envs.splits import Part
from rlhf_env.envs.tasks import places_of
from rlhf_env.errors import ConfigError
from rlhf_env.types import Episode, Prompt, ResetOptions

_SET_ASIDE = 0.25  # of the sums


@dataclass(frozen=True)
class Addition:
    """`"3+4="` asks for `"7"`. Reward: 1 / (1 + how far off the answer is); 0 for what is not a number.

    Terms are 0 to `largest`. A number has no zero before it, and no more digits than the largest sum.
    """

    largest: int = 9
    part: Part = "training"

    def __post_init__(self) -> None:
        if self.largest < 1:
            raise ConfigError(f"addition needs largest >= 1, got {self.largest}")

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
        said = episode.response
        digits = said.isascii() and said.isdigit() and len(said) <= len(str(2 * self.largest))
        return digits and said == str(int(said))

    def score(self, episode: Episode, /) -> float:
        if not self.well_formed(episode):
            return 0.0
        return 1.0 / (1 + abs(int(episode.response) - int(episode.prompt.meta["answer"])))
