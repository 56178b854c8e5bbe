"""A lock that lets one process at a time write into a folder."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from rlhf_env.errors import ConfigError, DiskRefused, RunFailed
from rlhf_env.whole_files import remedy_of

UNGUARDED = 76
"""The exit status of a worker process that, while it was made, found itself at work: see `hold`."""
GUARD_IT = 'worker processes import the script that made them: put its work under `if __name__ == "__main__":`'


def hold(folder: Path) -> IO[str]:
    """Make `folder` if it does not exist, and lock it until the returned file is closed or the process ends.

    Raises ConfigError when another process holds the lock (the message names its process id), or when the folder cannot
    be written to; DiskRefused when the disk is full.

    A worker process imports the script that made it. One whose work stands outside of `if __name__ == "__main__":`
    would begin it again in there, and does not.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself finds out
        print(f"rlhf-env: {GUARD_IT}", file=sys.stderr)
        sys.exit(UNGUARDED)
    if folder.is_symlink() and not folder.exists():
        raise ConfigError(f"{folder} is a link to {folder.readlink()}, which is not there: make it, or remove the link")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write in the folder {folder}: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise ConfigError(f"{folder} is in use ({holder}): wait for it, or choose another folder") from error
    try:
        lock.seek(0)
        lock.truncate()
        lock.write(f"pid {os.getpid()}")
        lock.flush()
    except OSError as error:
        with suppress(OSError):
            lock.close()
        raise DiskRefused(f"{lock.name} cannot be written: {error.strerror or error}: {remedy_of(error)}") from error
    return lock


def require_in_place(folder: Path, before: os.stat_result) -> None:
    """Raise RunFailed where `folder` is no longer the one of `before`: what is written there would be lost."""
    try:
        there = os.path.samestat(folder.stat(), before)
    except OSError:
        there = False
    if not there:
        raise RunFailed(
            f"{folder} was removed, moved or replaced while a run was at work in it: put it back and go on with "
            "--resume, or begin anew in another folder"
        )
