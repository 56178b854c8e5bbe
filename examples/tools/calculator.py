"""A tool, and a reward that looks at its calls.

A tool is a function with types and a docstring that describes it and each parameter, as transformers reads them.
"""

from __future__ import annotations

import numpy as np


def calculate(a: int, b: int, operation: str = "+") -> int:
    """Calculate with two whole numbers.

    Args:
        a: The first number.
        b: The second number.
        operation: What to do with them. (choices: ["+", "-", "*"])
    """
    return {"+": a + b, "-": a - b, "*": a * b}[operation]


class Asked:
    """1 where the tool was called and gave a number, 0 where it was not."""

    def __call__(self, episodes):
        answers = [[m["content"] for m in it.messages if m["role"] == "tool"] for it in episodes]
        return np.array([float(any(said.lstrip("-").isdecimal() for said in each)) for each in answers])
