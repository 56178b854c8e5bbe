"""What a run's folder says of the model that it trained, as plain data: for whoever names a run where a model is named.

A folder stands for a run if it is one (`experiment.toml` lies in it), or if it is the folder of a stage that holds one.
"""

from __future__ import annotations

import json
from pathlib import Path

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.toml_files import read_toml
from rlhf_env.types import JsonObject

DESCRIBED = "experiment.toml"  # in every run's folder
BASE = "base"  # of a run's folder: configuration and tokenizer of the model that it began with, without weights
TOKENIZER_NAME = "tokenizer_name.json"  # in there, where the tokenizer is none of files: "bytes", "alphabet:..."


def run_in(folder: Path) -> Path | None:
    """The run's folder, for that of a run or of a stage with one run in it; None for any other folder or name.

    Raises ConfigError for a folder with several runs in it.
    """
    try:
        if not folder.is_dir() or (folder / "config.json").is_file():
            return None
        if (folder / DESCRIBED).is_file():
            return folder
        inside = sorted(file.parent for file in folder.glob(f"*/{DESCRIBED}") if not file.parent.name.startswith("."))
    except OSError:  # a name that is too long for a path, a folder that may not be read: loading says what is wrong
        return None
    if len(inside) > 1:
        names = ", ".join(str(run) for run in inside[:3])
        raise ConfigError(f"{folder} holds {len(inside)} runs: name one of them ({names}{', ...' * (len(inside) > 3)})")
    return inside[0] if inside else None


def model_in(folder: Path) -> Path | None:
    """The model in the folder of a stage that made one without a run; None for any other folder or name."""
    try:
        made = not (folder / "config.json").is_file() and (folder / "model" / "config.json").is_file()
    except OSError:
        return None
    return folder / "model" if made else None


def experiment_table_of(run: Path) -> JsonObject:
    """The experiment of a run as plain data; in its table `policy`, names of folders lead from the working directory.

    Raises ConfigError where it cannot be read.
    """
    table = read_toml(run / DESCRIBED)
    policy = table.get("policy", {})
    if not isinstance(policy, dict):
        raise DataError(f"{run / DESCRIBED}: [policy] is no table: the file is damaged")
    named = {key: _led(policy[key], paths_from(run)) for key in ("model", "tokenizer") if key in policy}
    return {**table, "policy": {**policy, **named}}


def tokenizer_of(run: Path) -> str:
    """What names the tokenizer of a run's model: "bytes", "alphabet:...", a folder, a hub name. Raises ConfigError."""
    if (run / BASE / "tokenizer.json").is_file():
        return str(run / BASE)
    try:
        return str(json.loads((run / BASE / TOKENIZER_NAME).read_text(encoding="utf-8"))["tokenizer"])
    except (OSError, ValueError, LookupError, TypeError):  # of an older version's run
        policy = experiment_table_of(run)["policy"]
    named = str(policy.get("tokenizer") or policy.get("model", "tiny"))
    before = run_in(Path(named).expanduser())
    return named if before is None else tokenizer_of(before)


def paths_from(run: Path) -> Path | None:
    """Where the relative paths of a run's experiment lead from; None, the working directory, if that was not kept."""
    try:
        kept = json.loads((run / "record.json").read_text(encoding="utf-8"))["paths_from"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return Path(kept) if isinstance(kept, str) else None


def asked_in_plain(run: Path) -> bool:
    """Whether the folder holds a run that was begun when conversations were asked in the plain layout by default."""
    if not (run / DESCRIBED).is_file():
        return False
    try:
        return "conversations" not in json.loads((run / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _led(name: object, folder: Path | None) -> object:
    """A folder's name led from `folder`, if there is one of that name; any other name as it is."""
    if not isinstance(name, str) or folder is None:
        return name
    path = Path(name).expanduser()
    return str(folder / path) if (folder / path).exists() else name
