"""What each process of a run will need of memory, from its file alone: as it is written, and in other ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_env.errors import ConfigError, Problem
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.memory_need import MemoryNeed, memory_need
from rlhf_env.learning.run_models import model_folder
from rlhf_env.learning.workplace import load_of
from rlhf_env.lora_settings import Lora
from rlhf_env.policies.loading import base_and_adapter
from rlhf_env.policies.sizes import ModelSize, in_bytes, size_of
from rlhf_env.toml_files import naming_lines

if TYPE_CHECKING:
    from rich.table import Table


def needs_of(file: str | Path, *, processes: int = 1) -> MemoryNeed:
    """Of each of `processes` of the run of an experiment's file. Raises ConfigError."""
    with naming_lines(file):
        experiment = Experiment.load(file).located()
        return _need(experiment, _size_of(experiment), processes)


def ways_of(file: str | Path, *, processes: int = 1) -> Mapping[str, MemoryNeed]:
    """The same of the file as it is, and of what else could be trained: all weights or adapters, in each process or
    divided among them. Raises ConfigError."""
    with naming_lines(file):
        experiment = Experiment.load(file).located()
        size = _size_of(experiment)
        ways = {"as the file says": _need(experiment, size, processes)}
        for name, lora in (("all weights", None), ("LoRA", experiment.policy.lora or Lora())):
            for shard in (False, True) if processes > 1 else (False,):
                engine = replace(experiment.engine, shard=shard)
                other = replace(experiment, policy=replace(experiment.policy, lora=lora), engine=engine)
                ways[f"{name}{', divided' if shard else ''}"] = _need(other, size, processes)
    return ways


def memory_table(ways: Mapping[str, MemoryNeed]) -> Table:
    """One column for each way."""
    from rich.table import Table

    table = Table("of each process", *ways)
    for phase in ("stays", "learning", "writing"):
        names = dict.fromkeys(name for need in ways.values() for name, size in getattr(need, phase).items() if size)
        for name in names:
            sizes = [getattr(need, phase).get(name, 0) for need in ways.values()]
            table.add_row(
                name if phase == "stays" else f"{phase}: {name}", *(in_bytes(it) if it else "" for it in sizes)
            )
        table.add_section()
    table.add_row("at most", *(in_bytes(need.total) for need in ways.values()))
    return table


def _need(experiment: Experiment, size: ModelSize, processes: int) -> MemoryNeed:
    parts = processes if experiment.engine.shard else 1
    return memory_need(size, experiment.policy, load_of(experiment, processes=processes, parts=parts))


def _size_of(experiment: Experiment) -> ModelSize:
    name = experiment.policy.model
    if name in ("tiny", "table"):
        said = f"{name!r} is made for each run, and too small to be counted: name a folder, a run or a hub name"
        raise ConfigError(Problem(said, ("policy", "model")))
    found = size_of(base_and_adapter(model_folder(name))[0], experiment.policy.revision)
    if found is None:
        said = f"model {name!r}: its configuration does not say how large it is: look at `rlhf-env check` of the file"
        raise ConfigError(Problem(said, ("policy", "model")))
    return found
