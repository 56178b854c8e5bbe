"""Seeded global random generators, lent to other people's code that draws from them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def lent_generators(seed: int) -> Iterator[None]:
    """Seed `random` and `numpy.random` inside the context, and restore their states afterwards."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002  # global on purpose
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
