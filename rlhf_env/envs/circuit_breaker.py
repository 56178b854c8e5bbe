"""A circuit breaker: who fails at every text is not asked about all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Failures in a row after which the others are taken to fail as well; of those that cost a process each (a timeout).
_IN_A_ROW, _LOST_IN_A_ROW = 16, 6


class CircuitBreaker:
    """Counts the texts that a reward failed at one after the other, since it last scored one or `close`.

    While it is open, one question in 16 is asked all the same, so that a reward which has recovered is found out.
    """

    def __init__(self) -> None:
        self.close()

    def close(self) -> None:
        """Begin anew: the reward has scored a text, or another rollout begins."""
        self._failed = self._lost = self._passed_over = 0
        self._did = ""

    def lets_through(self) -> bool:
        """Whether the next question is to be asked."""
        if self._failed < _IN_A_ROW and self._lost < _LOST_IN_A_ROW:
            return True
        self._passed_over += 1
        return self._passed_over % _IN_A_ROW == 0

    def failed(self, texts: int, did: str, *, lost: bool) -> None:
        """It failed at this many texts; `lost`: which cost a process, or the patience with a server."""
        self._failed += texts
        self._lost += lost
        self._did = did

    @property
    def said(self) -> str:
        """What is said of a text that it is not asked about."""
        return f"was not asked any more, after {self._failed} texts in a row: it {self._did}"


def spread_out(count: int) -> Sequence[int]:
    """0..count-1 so that the first few are spread over all: neighbours are often of one prompt, and fail together."""
    stride = next((step for step in range(max(1, count * 5 // 8), count) if math.gcd(step, count) == 1), 1)
    return [place * stride % count for place in range(count)]
