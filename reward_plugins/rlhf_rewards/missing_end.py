"""A penalty for responses without an end token, which the length limit stopped (the "EOS trick")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from rlhf_env.settings import settings
from rlhf_env.types import Episode, Float


@settings(kw_only=False)
class MissingEnd:
    """-1 for a response that the length limit stopped, 0 for one that ended.

    Ziegler et al. 2019 and Stiennon et al. 2020 *replace* the score of such a response by a constant (Huang et al.
    2024, 2403.17031, "EOS trick"). Here the penalty is added, so that the parts still sum to the reward, and the
    objective is the same for every agent. With a weight above the spread of the other parts, every response that ended
    scores above every response that did not, as with the constant.
    """

    low: ClassVar[float] = -1.0
    high: ClassVar[float] = 0.0

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]."""
        return np.array([-1.0 if episode.finish_reason == "length" else 0.0 for episode in episodes], dtype=np.float64)
