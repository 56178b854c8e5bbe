"""For other people's code that draws from the global random generators: it is lent seeded ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def lent_generators(seed: int) -> Iterator[None]:
    """`random` and `numpy.random`, seeded inside; afterwards they are as they were, so that nobody else notices."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002  # that is what it is about
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
