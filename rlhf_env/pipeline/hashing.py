"""What a pipeline knows files and folders by: the sha256 of their content, never their time or their place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from rlhf_env import assets
from rlhf_env.whole_files import write_json

_LARGE = 2**25  # bytes: a file of this size is read again only where its time or its size has changed


def hash_of(content: object) -> str:
    """Of anything that JSON can hold: the same whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True, default=str).encode()).hexdigest()


class Hashes:
    """Hashes of files and folders; those of large files are kept in `memory`, a JSON file, from call to call."""

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self.keeps = False
        """Whether `memory` is written to."""
        self._known: dict[str, list[object]] = {}
        self._said: dict[Path, tuple[tuple[int, int], str | None]] = {}
        if memory is not None and memory.is_file():
            try:
                self._known = dict(json.loads(memory.read_text(encoding="utf-8")))
            except ValueError:  # it only saves time
                self._known = {}

    def of_path(self, path: str | Path) -> str | None:
        """Of a file, of a folder with all that is in it, or of a shipped model; None where there is no such thing."""
        place = Path(assets.resolve(str(path)))
        if place.is_file():
            return self._of_file(place)
        if place.is_dir():
            return self.of_files(place, (file for file in place.rglob("*") if file.is_file()))
        return None

    def of_files(self, folder: Path, files: Iterable[Path]) -> str | None:
        """Of some files of a folder, with their names in it; None where there are none."""
        found = {str(file.relative_to(folder)): self._of_file(file) for file in files}
        return hash_of(found) if found else None

    def _of_file(self, file: Path) -> str:
        about = file.stat()
        stamp = [about.st_size, about.st_mtime_ns]
        name = str(file.absolute())
        if about.st_size >= _LARGE and self._known.get(name, [])[:2] == stamp:
            return str(self._known[name][2])
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if about.st_size >= _LARGE:
            self._known[name] = [*stamp, found]
            self._keep()
        return found

    def remembered(self, file: Path, make: Callable[[], str | None]) -> str | None:
        """What `make` says of a file, asked again only where its time or its size has changed since this began."""
        if not file.is_file():
            return None
        about = file.stat()
        stamp = (about.st_size, about.st_mtime_ns)
        if file not in self._said or self._said[file][0] != stamp:
            self._said[file] = (stamp, make())
        return self._said[file][1]

    def _keep(self) -> None:
        if self.keeps and self._memory is not None:
            write_json(self._memory, self._known)


def changed_among(before: Mapping[str, str | None], hashes: Hashes) -> list[str]:
    """Those of the files that are not what they were."""
    return [path for path, was in before.items() if hashes.of_path(path) != was]
