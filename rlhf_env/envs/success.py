"""When an answer counts as a success: by what a part of the reward says of it."""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass

import numpy as np

from rlhf_env.errors import ConfigError
from rlhf_env.types import Float

_RELATIONS = {">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt}
_COMPARED = re.compile(r"(.+?)\s*(>=|<=|==|>|<)\s*(\S+)")


@dataclass(frozen=True)
class Success:
    """The value of the part called `part` stands in this `relation` to `bar`; without one, it is 0 or 1 itself."""

    part: str
    relation: str = ""
    bar: float = 1.0

    @classmethod
    def read(cls, words: str) -> Success:
        """From words such as "task >= 1" or "task". Raises ConfigError."""
        compared = _COMPARED.fullmatch(words.strip())
        if compared is None:
            if not words.strip() or any(sign in words for sign in "<>="):
                raise ConfigError(f'{words!r} is no criterion: say a part of the reward, or "PART >= NUMBER"')
            return cls(words.strip())
        part, relation, number = compared.groups()
        try:
            bar = float(number)
        except ValueError:
            bar = math.nan
        if not math.isfinite(bar):
            raise ConfigError(f"{words!r} compares with {number!r}, which is not a number")
        return cls(part, relation, bar)

    def __str__(self) -> str:
        return f"{self.part} {self.relation} {self.bar:g}" if self.relation else self.part

    def of(self, values: Float) -> Float:
        """float64[N]: 1 for a success, 0 for none, NaN where the part said nothing (NaN).

        Raises ConfigError for values other than 0 and 1 where they are compared with nothing.
        """
        said = ~np.isnan(values)
        if not self.relation:
            others = values[said & (values != 0.0) & (values != 1.0)]
            if others.size:
                raise ConfigError(
                    f"success = {self.part!r}: the part is not 0 or 1 for every answer ({others[0]:.4g} is among its "
                    f'values): say what a success is, such as success = "{self.part} >= 1"'
                )
            return values
        return np.where(said, _RELATIONS[self.relation](values, self.bar), np.nan).astype(np.float64)
