"""Actions of the environment: their space, and what a caller handed over as one, checked."""

from __future__ import annotations

from collections.abc import Mapping

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from rlhf_env.envs.text_buffer import anywhere
from rlhf_env.errors import EnvironmentMisuse
from rlhf_env.types import Bool, Float, Int

# Token ids of every row, or a table of `tokens` and `probs`: whatever numpy makes an array of.
Actions = npt.ArrayLike | Mapping[str, npt.ArrayLike]

_INT64, _UINT64 = np.dtype(np.int64), np.dtype(np.uint64)


class ActionReader:
    """Reads actions of B rows: `length` tokens each, and with `needs_logprobs` the probability of each as well."""

    def __init__(self, rows: int, length: int, vocab_size: int, *, needs_logprobs: bool) -> None:
        self._length, self._vocab_size, self._needs_logprobs = length, vocab_size, needs_logprobs
        self._shape = (rows,) if length == 1 else (rows, length)
        # V itself means "nothing here" in actions of several tokens. An array, because numpy takes twice as long to
        # compare with a Python number.
        self._largest: npt.NDArray[np.uint64] = np.array(vocab_size - (length == 1), dtype=np.uint64)

    @property
    def space(self) -> gym.spaces.Space[object]:
        """Of one row."""
        tokens: gym.spaces.Space[object] = (
            gym.spaces.Discrete(self._vocab_size)
            if self._length == 1
            else gym.spaces.MultiDiscrete(np.full(self._length, self._vocab_size + 1, dtype=np.int64))
        )
        if not self._needs_logprobs:
            return tokens
        return gym.spaces.Dict(tokens=tokens, probs=gym.spaces.Box(0.0, 1.0, self._shape[1:], np.float64))

    def read(self, actions: Actions, writing: Bool) -> tuple[Int, Float | None]:
        """Tokens int64, in the shape of the action, and their log-probabilities; checked for the rows that write.

        Raises EnvironmentMisuse.
        """
        probs = None
        if self._needs_logprobs:
            table = dict(actions) if isinstance(actions, Mapping) else {}
            if table.keys() != {"tokens", "probs"}:
                raise EnvironmentMisuse(
                    "a reward part needs to know how likely the action was: "
                    "pass {'tokens': ids, 'probs': their probabilities}"
                )
            actions, probs = table["tokens"], as_array(table["probs"])
            if probs.dtype.kind not in "fiu":
                raise EnvironmentMisuse(f"probs are numbers, got dtype {probs.dtype}")
        given = as_array(actions)
        if given.dtype is not _INT64 and given.dtype.kind not in "iu":
            raise EnvironmentMisuse(f"token ids are integers, got an action of dtype {given.dtype}")
        tokens: Int = given.astype(_INT64, copy=False)
        if tokens.shape != self._shape:
            raise EnvironmentMisuse(f"an action has shape {self._shape}, got {tokens.shape}")
        by_token = writing if self._length == 1 else writing[:, None]
        wrong = tokens.view(_UINT64) > self._largest  # negative ids too: as unsigned numbers they are huge
        if anywhere(wrong) and anywhere(wrong := wrong & by_token):  # what rows at rest say is nobody's business
            row, *column = np.argwhere(wrong)[0]
            raise EnvironmentMisuse(f"token id {tokens[row, *column]} in row {row} is outside 0..{self._largest}")
        if probs is None:
            return tokens, None
        if probs.shape != self._shape:
            raise EnvironmentMisuse(f"probs have shape {probs.shape}, tokens {self._shape}")
        stated = np.where(by_token & (tokens < self._vocab_size), probs.astype(np.float64), 1.0)
        if not ((stated > 0.0) & (stated <= 1.0 + 1e-9)).all():
            raise EnvironmentMisuse("probs must lie in (0, 1]: the probability the policy gave to each token it chose")
        return tokens, np.log(stated)


def as_array(values: object) -> npt.NDArray[np.generic]:
    """What a caller handed over as (part of) an action, as an array. Raises EnvironmentMisuse if it is none."""
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise EnvironmentMisuse(f"an action is an array, the same number of tokens in each row: {error}") from error
