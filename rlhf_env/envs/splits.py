"""Which texts are for training and which for evaluation: the text alone decides, so equal prompts are never parted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

Part = Literal["training", "held_out"]


def unit_interval(text: str) -> float:
    """A number in [0, 1) that depends on the text alone (Python's own `hash` differs between processes)."""
    digest = hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def held_out_texts(texts: Iterable[str], fraction: float) -> frozenset[str]:
    """About `fraction` of the different texts; where there are two, at least one, and not all of them.

    A text added to the others moves none of them to the other side (except where one side had been empty without it).
    """
    ranked = sorted(set(texts), key=unit_interval)
    if fraction <= 0 or len(ranked) < 2:
        return frozenset()
    return frozenset([ranked[0], *(text for text in ranked[1:-1] if unit_interval(text) < fraction)])
