"""What is known of each prompt's returns: a mean that older answers count less and less in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class PromptBaselines:
    """For each prompt, by its id: a mean of returns v, and how many answers it stands for, n.

        n <- memory * n + 1,    v <- v + (return - v) / n

    For returns of 0 and 1 this is the paper's Beta(a, b) with v = a / (a + b), n = a + b (equations 5 to 7, without a
    prior). An unknown prompt is expected to be like the known ones.
    """

    def __init__(self, memory: float) -> None:
        self.memory = memory
        self._known: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def expected(self, prompts: Sequence[str], unknown: float) -> Floats:
        """float64[B]: what each prompt's answers have earned; `unknown` before anything is known of any prompt."""
        if self._known:
            unknown = float(np.mean([value for value, _ in self._known.values()]))
        return np.array([self._known.get(prompt, (unknown, 0.0))[0] for prompt in prompts])

    def observe(self, prompts: Sequence[str], returns: Floats) -> None:
        """Learn from answers, one after the other."""
        for prompt, value in zip(prompts, returns.tolist(), strict=True):
            mean, weight = self._known.get(prompt, (0.0, 0.0))
            weight = self.memory * weight + 1.0
            self._known[prompt] = (mean + (value - mean) / weight, weight)

    # Ids beside an array: names of prompts may have any character, and a checkpoint's dicts are made into paths.
    def state_dict(self) -> dict[str, Any]:
        return {"prompts": list(self._known), "known": np.array([*self._known.values()]).reshape(-1, 2)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        known = np.asarray(state["known"]).tolist()
        self._known = {prompt: (v, n) for prompt, (v, n) in zip(state["prompts"], known, strict=True)}
