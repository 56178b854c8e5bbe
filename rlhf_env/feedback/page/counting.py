"""What takes long to count, counted anew when somebody asks, and no more than a twentieth of the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from rlhf_env.feedback.page.shown import Shown
from rlhf_env.feedback.store.store import PreferenceStore


class Recount:
    """`await recount()` gives what `count` last found in the store, counted again if that is old.

    `count` reads the store through a connection of its own, in a thread: nobody waits for it with a vote.
    """

    def __init__(self, store: Path, count: Callable[[PreferenceStore], Shown]) -> None:
        self._store = store
        self._count = count
        self._counting = asyncio.Lock()
        self._last: Shown = {}
        self._until = 0.0

    async def __call__(self) -> Shown:
        async with self._counting:
            if time.monotonic() >= self._until:
                start = time.monotonic()
                self._last = await asyncio.to_thread(self._read)
                end = time.monotonic()
                self._until = end + max(2.0, 20 * (end - start))
        return self._last

    def _read(self) -> Shown:
        with PreferenceStore(self._store, check=False) as store:
            return self._count(store)
