"""What a pipeline's folder knows of each of its stages: OUT/stages/NAME.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rlhf_env.errors import DataError
from rlhf_env.learning.run_folder import is_raised
from rlhf_env.plain_data import flat
from rlhf_env.types import JsonObject
from rlhf_env.whole_files import write_json

RECORDS = "stages"
Status = Literal["begun", "waiting", "finished"]


@dataclass(frozen=True)
class Record:
    """A stage as it was when it was last worked on."""

    name: str
    kind: str
    key: str
    """What it was made of: see `Planned.key`."""
    status: Status
    settings: JsonObject
    inputs: Mapping[str, str]
    """By stage, the output that it took."""
    files: Mapping[str, str | None]
    """By path, the content that it read."""
    identity: str = ""
    """Its output, once it is finished."""
    seconds: float = 0.0
    numbers: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[Mapping[str, float]] = ()
    texts: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def file(folder: Path, name: str) -> Path:
        return folder / RECORDS / f"{name}.json"

    @classmethod
    def read(cls, folder: Path, name: str) -> Record | None:
        """None where the stage has not begun. Raises DataError for a record that is damaged."""
        file = cls.file(folder, name)
        if not file.is_file():
            return None
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise DataError(f"{file}: not what a stage left ({error}): remove it, and the stage's folder") from error

    def save(self, folder: Path) -> None:
        write_json(self.file(folder, self.name), asdict(self))

    def raised(self, settings: JsonObject, inputs: Mapping[str, str], files: Mapping[str, str | None]) -> str:
        """The limits of the budget that became larger, in words, where nothing else changed; "" otherwise."""
        before, now = (flat(json.loads(json.dumps(table))) for table in (self.settings, settings))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if self.inputs != inputs or sorted(map(str, self.files.values())) != sorted(map(str, files.values())):
            return ""
        if not all(is_raised(key, before.get(key), now.get(key)) for key in changed):
            return ""
        return ", ".join(f"{key} {before[key]} -> {now.get(key, 'no limit')}" for key in changed)

    def why_another(self, settings: JsonObject, inputs: Mapping[str, str], files: Mapping[str, str | None]) -> str:
        """What is not as it was, in words."""
        before, now = (flat(json.loads(json.dumps(table))) for table in (self.settings, settings))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        said = [f"{', '.join(changed)} changed"] if changed else []
        if set(self.inputs) != set(inputs):
            said.append(f"it takes from {', '.join(inputs) or 'no stage'} now")
        remade = [name for name, identity in inputs.items() if self.inputs.get(name, identity) != identity]
        said += [f"the output of {', '.join(remade)} changed"] if remade else []
        contents = set(self.files.values())
        other = [Path(path).name for path, content in files.items() if content not in contents]
        said += [f"{', '.join(other)} changed"] if other else []
        return "; ".join(said) or "it was made by another version"
