"""The reward, and what is measured beside it: does the response give the answer, and nothing else?

Both read the column `completion`, the answer that a question of `questions.jsonl` ends with.
"""

import re
from collections import Counter
from collections.abc import Sequence


def overlap(completions: Sequence[object], completion: Sequence[str], **columns: object) -> list[float]:
    """F1 of the words of response and answer (SQuAD: Rajpurkar et al. 2016, 1606.05250): 1 for the answer alone, 0
    without it, and in between the less the more is said beside it. Trained on: it tells a half right text from none."""
    return [_f1(_words(text), _words(answer)) for text, answer in zip(_texts(completions), completion, strict=True)]


def exact(completions: Sequence[object], completion: Sequence[str], **columns: object) -> list[float]:
    """1 where the response is the answer, whatever its case, its articles and the point after it. Never trained on."""
    return [float(_words(text) == _words(answer)) for text, answer in zip(_texts(completions), completion, strict=True)]


def _texts(completions: Sequence[object]) -> list[str]:
    """A response to a conversation comes as a list of messages."""
    return [text if isinstance(text, str) else text[0]["content"] for text in completions]


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text.lower()) if word not in ("a", "an", "the")]


def _f1(said: list[str], answer: list[str]) -> float:
    shared = sum((Counter(said) & Counter(answer)).values())
    return 2 * shared / (len(said) + len(answer)) if shared else 0.0
