"""Training and held-out texts: a hash of the text decides, so that equal prompts are always on the same side."""

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
    """About `fraction` of the different texts; of two texts or more, at least one and not all.

    When a text is added, the other texts stay on their sides (unless one side would be empty without the new text).
    """
    ranked = sorted(set(texts), key=unit_interval)
    if fraction <= 0 or len(ranked) < 2:
        return frozenset()
    return frozenset([ranked[0], *(text for text in ranked[1:-1] if unit_interval(text) < fraction)])
