"""A reward of one's own: a function of lists, named in polite.toml beside this file.

rlhf-env check examples/polite/polite.py:polite     # attacks it with odd texts
rlhf-env plugins examples/polite/polite.py:polite   # what can be set
"""


def polite(completions, wanted: int = 3, log_metric=None, **columns):
    """How many times "ty" is said, out of `wanted`; nothing is said about an empty text."""
    log_metric("rude", sum("ty" not in text for text in completions) / len(completions))
    return [min(1.0, text.count("ty") / wanted) if text else None for text in completions]
