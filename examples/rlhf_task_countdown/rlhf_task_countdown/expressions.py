"""Arithmetic as people write it, computed exactly. Python's `eval` would run whatever a model writes."""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST = 120  # characters; a longer text is no expression, so that no text is nested deeper than Python's stack
_TOKENS = re.compile(r"[0-9]{1,9}|[-+*/()]")


class NoExpression(ValueError):
    """The text is not an expression, or it divides by zero."""


def evaluate(text: str) -> tuple[Fraction, list[int]]:
    """The value of `text` and the numbers in it, in their order. `+ - * /` and parentheses; no sign before a number.

    Raises NoExpression.
    """
    text = text.strip()
    tokens = _TOKENS.findall(text)
    if len(text) > LONGEST or "".join(tokens) != re.sub(r"\s", "", text) or re.search(r"\d\s+\d", text):
        raise NoExpression(text)
    reader = _Reader(tokens)
    value = reader.sum()
    if reader.left:
        raise NoExpression(text)
    return value, reader.numbers


class _Reader:
    """Recursive descent: a sum of products of atoms."""

    def __init__(self, tokens: list[str]) -> None:
        self.left = tokens[::-1]  # the next one last
        self.numbers: list[int] = []

    def sum(self) -> Fraction:
        value = self.product()
        while self.left and self.left[-1] in "+-":
            value = value + self.product() if self.left.pop() == "+" else value - self.product()
        return value

    def product(self) -> Fraction:
        value = self.atom()
        while self.left and self.left[-1] in "*/":
            if self.left.pop() == "*":
                value *= self.atom()
                continue
            divisor = self.atom()
            if not divisor:
                raise NoExpression("division by zero")
            value /= divisor
        return value

    def atom(self) -> Fraction:
        token = self.left.pop() if self.left else ""
        if token.isdecimal():
            self.numbers.append(int(token))
            return Fraction(int(token))
        if token != "(":
            raise NoExpression(token)
        value = self.sum()
        if not self.left or self.left.pop() != ")":
            raise NoExpression("a parenthesis that is not closed")
        return value
