"""The working directory, kept: paths that people give are relative to where they stand, whatever a plugin does."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def same_folder(who: str) -> Iterator[None]:
    """Put the working directory back where `who`, somebody else's code, has changed it; a RuntimeWarning says so."""
    before = _folder()
    try:
        yield
    finally:
        if before is not None and _folder() != before:
            with suppress(OSError):  # it is gone: nothing can be done about it
                os.chdir(before)
            warnings.warn(f"{who} changed the working directory: put back", RuntimeWarning, stacklevel=4)


def _folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 - a third of the time of Path.cwd, and it is asked at every question
    except OSError:
        return None
