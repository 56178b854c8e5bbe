"""A needle in a haystack, with a decoy beside it, for the rows of guided exploration in examples/mechanisms.toml.

One string earns 1. Any other text earns a little for its share of one letter, so that a policy which follows what it
earns leaves the string behind.
"""


def needle(completions, completion, decoy="a", worth=0.5, **columns):
    """1 for exactly the column `completion`; otherwise `worth` times the share of the letter `decoy`."""
    return [
        1.0 if text == wanted else worth * text.count(decoy) / max(len(text), 1)
        for text, wanted in zip(completions, completion, strict=True)
    ]


def found(completions, completion, **columns):
    """1 for exactly the column `completion`, else 0: what is measured."""
    return [float(text == wanted) for text, wanted in zip(completions, completion, strict=True)]


def progress(completions, completion, **columns):
    """A potential: the share of `completion` that the text so far begins with; 0 once it has left it."""
    return [
        len(text) / len(wanted) if wanted.startswith(text) else 0.0
        for text, wanted in zip(completions, completion, strict=True)
    ]
