"""Texts that begin with the first tokens of a demonstrated answer, so that the agent writes only the rest of it.

The tokens of the prefix are the environment's, as a reply in a conversation is: `actions` is False there, they count
against `max_new_tokens`, and rewards read the whole answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.settings import Name, Share, fault, settings
from rlhf_env.types import Prompt, Tokenizer


@settings
class Prefixes:
    """The reset option `prefix`: `{"column": "completion", "shares": [0.75, 0.0]}`."""

    column: Name
    """The column of the task that holds a prompt's demonstrated answer. A prompt without one has no prefix."""
    shares: list[Share]
    """Of each group, the share of that answer's tokens that its texts begin with; 0: none."""

    @classmethod
    def read(cls, option: Any, groups: int) -> Prefixes:
        """Raises ConfigError for what is no such table, and where it is not of `groups` groups."""
        if not isinstance(option, Mapping) or set(option) != {"column", "shares"}:
            raise ConfigError(f"prefix is a table of column and shares, got {option!r}")
        found = cls(column=option["column"], shares=list(option["shares"]))
        if len(found.shares) != groups:
            raise ConfigError(fault("shares", f"of prefix are one for each of {groups} groups, got {option['shares']}"))
        return found

    def tokens(self, prompt: Prompt, group: int, tokenizer: Tokenizer, room: int) -> list[int]:
        """The ids that the texts of a group begin with. Raises DataError where no token fits after them.

        An answer of n tokens, its end token not counted, gives floor(share * n).
        """
        answer, share = prompt.meta.get(self.column), self.shares[group]
        if answer is None or share == 0.0:
            return []
        if not isinstance(answer, str):
            raise DataError(f"{prompt.id}: the column {self.column!r} must be a text to begin with, got {answer!r}")
        ids = tokenizer.encode(answer)
        ids = ids[: math.floor(share * len(ids) + 1e-9)]  # 3 * (1 / 3) may round to less than 1
        if len(ids) >= room:
            raise DataError(
                f"{prompt.id}: a prefix of {len(ids)} tokens leaves no room for another one: set max_new_tokens to "
                f"{len(ids) + 1} or more"
            )
        return ids
