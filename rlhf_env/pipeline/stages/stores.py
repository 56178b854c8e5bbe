"""The preference stores of a pipeline: each stage has its own, a copy of the one that it takes from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_env.errors import ConfigError, DataError, Problem
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.pipeline.hashing import hash_of

STORE = "preferences.sqlite"


@contextmanager
def new_store(folder: Path, source: str | None = None) -> Iterator[PreferenceStore]:
    """A store that is in `folder` once the context ends without an error, and not before; begun as a copy of `source`.

    Its clock stands still, so that the same work gives the same store.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{STORE}.partial"
    for file in folder.glob(f"{partial.name}*"):
        file.unlink()
    if source is not None:
        if not Path(source).is_file():
            raise DataError(f"preference store {source}: there is no such file")
        with PreferenceStore(source) as read:
            read.copy_to(partial)
    with PreferenceStore(partial, clock=lambda: 0.0) as store:
        yield store
    partial.replace(folder / STORE)


def identity_of(file: Path) -> str | None:
    """What a store is known by: what stands in it, in order, whatever its file looks like."""
    if not file.is_file():
        return None
    with PreferenceStore(file) as store:
        said = [(repr(prompt), repr(response)) for prompt, response in store.responses()]
        return hash_of([said, [repr(judgement) for judgement in store.judgements()]])


def require_store(store: str | None, what: str = "store") -> None:
    """Raises ConfigError where a stage names no store that is there or that an earlier stage makes."""
    if not store:
        said = f'no {what} to work on: from = "the stage that gives it", or {what} = "a file"'
        raise ConfigError(Problem(said, (what,)))
    if not Path(store).is_absolute() and not Path(store).is_file():
        raise ConfigError(Problem(f"{what} = {store!r}: there is no such file", (what,)))
