"""Tracks: what every entry of a board has in common, and what is counted. Each is a TOML file in `tracks/`."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from typing import Annotated, Literal

import tomli_w
from annotated_types import MinLen

from rlhf_env.errors import Problem, UnknownName
from rlhf_env.learning.configuration import from_table
from rlhf_env.learning.experiment import Experiment
from rlhf_env.plain_data import flat
from rlhf_env.settings import Positive, Seed, fault, settings
from rlhf_env.types import JsonObject

Currency = Literal["generated_tokens", "reward_calls", "processor_seconds"]
CURRENCIES: dict[Currency, str] = {
    "generated_tokens": "tokens",
    "reward_calls": "labels",
    "processor_seconds": "processor seconds",
}

# What is an entry's own. All else is the track's.
FREE = ("agent", "name", "seed", "checkpoint_every", "stopping", "max_kl", "patience", "min_delta", "texts")
_BEGIN_WITH = {"name": "rloo", "lr": 3e-3, "group_size": 8}


@settings
class Track:
    """What is asked, and by what entries are ranked: the least that they spend until gold is at `level`."""

    name: str = ""
    """What it is called: its file's name."""
    title: str
    """One line."""
    counts: Currency
    """What is spent."""
    level: float
    """The gold reward, `eval/gold`, that an evaluation on the way has to reach."""
    limit: Positive
    """Who has not reached the level when this is spent counts with twice as much."""
    seeds: Annotated[list[Seed], MinLen(2)]
    """The seeds that every entry runs: with fewer than six, entries whose seeds all differ alike are not told apart."""
    experiment: JsonObject
    """The experiment, but for what is an entry's own: `agent`, `stopping`, and how often a checkpoint is kept."""
    sha256: str = ""
    """Of its file: an entry of another version of the track is of another track."""

    def problems(self) -> Iterator[Problem]:
        if len(set(self.seeds)) < len(self.seeds):
            yield fault("seeds", "has one seed twice")

    @property
    def unit(self) -> str:
        return CURRENCIES[self.counts]

    def differences(self, experiment: Experiment) -> list[str]:
        """Where an experiment is not the track's, a line each."""
        wanted = _fixed(Experiment.from_table(self.experiment, f"track {self.name}"))
        given = _fixed(replace(experiment, folder=None))
        return [
            f"{key} is {_spoken(given, key)}, and in the track it is {_spoken(wanted, key)}"
            for key in sorted(wanted.keys() | given.keys())
            if wanted.get(key) != given.get(key)
        ]

    def to_begin_with(self) -> str:
        """An experiment of the track, as a file to change: the agent is the entry's own."""
        seeds = " ".join(str(seed) for seed in self.seeds)
        said = (
            f"# {self.title}.",
            '# Yours: [agent] (a registered one, or your code, function = "FILE.py:CLASS") and [stopping].',
            "# All else is the track's. Then, in a shell:",
            f"#     for seed in {seeds}; do rlhf-env train FILE --seed $seed --out runs/mine/$seed; done",
            f"#     rlhf-env submit runs/mine/* --track {self.name} --name mine",
        )
        table = {"name": self.name, "agent": _BEGIN_WITH, **self.experiment}
        return "\n".join(said) + "\n\n" + tomli_w.dumps(table)


def track_names() -> list[str]:
    """The tracks that come with the library."""
    files = resources.files(__package__).joinpath("tracks").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_track(name: str) -> Track:
    """The track of this name. Raises UnknownName."""
    if name not in track_names():
        raise UnknownName("track", name, track_names())
    content = resources.files(__package__).joinpath("tracks", f"{name}.toml").read_bytes()
    about = {"name": name, "sha256": hashlib.sha256(content).hexdigest()}
    return from_table(Track, {**tomllib.loads(content.decode()), **about}, f"track {name}")


def _fixed(experiment: Experiment) -> dict[str, object]:
    table = flat(tomllib.loads(experiment.to_toml()))
    return {key: value for key, value in table.items() if key.partition(".")[0] not in FREE}


def _spoken(table: dict[str, object], key: str) -> str:
    return repr(table[key]) if key in table else "not set"
