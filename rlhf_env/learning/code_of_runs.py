"""The code of one's own that a run was trained with: kept in its record, and run again for its owner alone.

`record.json` has the sha256 of each file (`code`). A run that resumes with another content is another experiment, and
is refused unless it is told to go on.

Whoever opens a run folder has it name code to run: `function = "os:system"` is a line in a file that somebody may have
sent. So a record also has a mark (`made_here`), an HMAC of the experiment and of those sha256 with a key that only this
user has ($XDG_STATE_HOME/rlhf-env/key). A folder without the right mark has its code run only for `trust_code`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rlhf_env.errors import ConfigError
from rlhf_env.own_code import changed, pinned
from rlhf_env.shown_text import near
from rlhf_env.types import JsonView

_KEY_BYTES = 32


def as_recorded(files: Mapping[str, str], folder: Path | None) -> dict[str, str]:
    """sha256 by path; by the relative path of those in `folder`, where the file of settings is: it may be moved."""
    if folder is None:
        return dict(sorted(files.items()))
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - as the code's paths are: links are not followed
    inside = {file: Path(file).is_relative_to(folder) for file in files}
    return {
        (Path(file).relative_to(folder).as_posix() if inside[file] else file): sha256
        for file, sha256 in sorted(files.items())
    }


def led_from(recorded: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The same by absolute paths."""
    return {os.path.abspath(folder / file): sha256 for file, sha256 in recorded.items()}  # noqa: PTH100 - as above


def mark_of(experiment_toml: str, paths_from: str, code: JsonView) -> str:
    """What shows that this user made the run on this machine; "" where no key can be kept."""
    key = _key()
    said = json.dumps([experiment_toml, paths_from, dict(sorted(code.items()))])
    return "" if key is None else hmac.new(key, said.encode(), hashlib.sha256).hexdigest()


def require_own_code(
    run: Path, experiment_toml: str, named: Sequence[str], record: JsonView, *, trust_code: bool
) -> None:
    """Refuse a run folder whose experiment names code, unless this user made it and the code is what it was.

    Raises ConfigError. Nothing is imported to find out.
    """
    if trust_code or not named:
        return
    code, paths_from, mark = (record.get(name) for name in ("code", "paths_from", "made_here"))
    ways = f"read {', '.join(sorted(set(named)))} and, if you trust it, say --trust-code (trust_code=True)"
    if not (isinstance(code, Mapping) and isinstance(paths_from, str) and isinstance(mark, str) and mark):
        raise ConfigError(f"{run} names code to run, and nothing shows that you made it on this machine: {ways}")
    if not hmac.compare_digest(mark, mark_of(experiment_toml, paths_from, code)):
        raise ConfigError(f"{run} names code to run, and its record is not one that you made on this machine: {ways}")
    now = {file: sha256 for each in named for file, sha256 in pinned(each, paths_from).files.items()}
    if others := changed(led_from(code, Path(paths_from)), now):
        those = ", ".join(str(near(Path(file))) for file in others)
        raise ConfigError(
            f"{run}: {those} is not what the run was trained with: put it back, or say --trust-code (trust_code=True) "
            "to use it as it is"
        )


def _key() -> bytes | None:
    """This user's key on this machine, made when it is first asked for; None where it cannot be kept."""
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        folder = Path(state) / "rlhf-env"
        file = folder / "key"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            new = folder / f".key-{os.getpid()}-{secrets.token_hex(4)}"
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(secrets.token_bytes(_KEY_BYTES))
            with suppress(FileExistsError):  # another process was first: its key is the one
                os.link(new, file)
            new.unlink()
        key = file.read_bytes()
    except (OSError, RuntimeError):  # no home, or one that cannot be written
        return None
    return key if len(key) == _KEY_BYTES else None
