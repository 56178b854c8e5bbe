"""The reward of examples/agent_curves.toml: how much of a word was repeated."""


def repeated(completions, completion, **columns):
    """The share of places with the right letter, of the longer text's length: 1 for exactly the column `completion`."""
    return [
        sum(a == b for a, b in zip(text, word, strict=False)) / max(len(text), len(word))
        for text, word in zip(completions, completion, strict=True)
    ]
