"""Run an entry again, one job for each seed. **This runs its code**: only for whoever asked for it by name.

Besides the numbers of the run, a job notes two things that no table can show: whether the agent began with the track's
weights, and how many tokens its policy wrote in all, counted where they are written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf_env.lab.board.entry import BoardEntry
from rlhf_env.lab.evaluation.preparing import prepare
from rlhf_env.lab.evaluation.runs import run
from rlhf_env.learning.devices import set_threads
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.loop import Row
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.sharding import weights_told
from rlhf_env.learning.workplace import build
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.policy import WritesTogether, Written
from rlhf_env.types import Bool, Episode, Float, JsonObject, Observation
from rlhf_env.whole_files import write_json


class CountedWriting:
    """Counts the tokens that a policy writes."""

    def __init__(self, together: WritesTogether) -> None:
        self._together, self.tokens = together, 0

    def written(
        self, observation: Observation, rows: Bool, length: int, nothing: int, write: Callable[[Bool], Written]
    ) -> Written:
        found = self._together.written(observation, rows, length, nothing, write)
        self.tokens += int((found.tokens != nothing).sum())
        return found

    def known(self, reader: object, episodes: Sequence[Episode]) -> list[Float] | None:
        return self._together.known(reader, episodes)


@dataclass(frozen=True)
class SeedAgain:
    """One seed of an entry; `place` is the entry's folder in the board's."""

    entry: BoardEntry
    place: str
    seed: int
    threads: int

    @property
    def key(self) -> str:
        return f"{self.place}--{self.seed}"

    @property
    def title(self) -> str:
        return f"{self.entry.name} · seed {self.seed}"

    def result_file(self, folder: Path) -> Path:
        return folder / self.place / f"seed-{self.seed}.json"

    def leaves(self, folder: Path) -> list[Path]:
        return [folder / self.place / "runs" / str(self.seed), self.result_file(folder)]

    def reads(self, folder: Path) -> list[str]:
        return [str(folder / self.place / "sources")]

    def work(self, folder: Path, on_update: Callable[[Row, float], None]) -> JsonObject:
        where = folder / self.place / "runs" / str(self.seed)
        shutil.rmtree(where, ignore_errors=True)  # of a call that was cut short: seconds, and what it counted is gone
        set_threads(self.threads)
        experiment = self.entry.loaded(self.seed, folder / self.place / "sources")
        of_track = _weights_of_track(experiment)  # before any code of the entry's is imported
        workplace = prepare(experiment)
        begun_with = weights_told(workplace.setup.policy)
        policy, written = workplace.setup.policy, 0
        counting = None
        if isinstance(policy, LanguageModel):
            policy.together = counting = CountedWriting(policy.together)

        def follow(row: Row, fraction: float) -> None:
            nonlocal written
            written = 0 if counting is None else counting.tokens
            on_update(row, fraction)

        run(workplace, where, threads=self.threads, on_update=follow, on_warning=lambda _: None)
        rows = read_metrics(where)
        replies = experiment.evaluation.prompts * experiment.evaluation.samples
        evaluated = sum(replies * float(row.get("eval/inference_tokens") or 0.0) for row in rows)
        result = {
            "status": "finished",
            "rows": rows,
            "weights_of_track": of_track,
            "begun_with": begun_with,
            "written": round(written - evaluated),
        }
        write_json(self.result_file(folder), result)
        return result

    def failed(self, folder: Path, why: str) -> None:
        write_json(self.result_file(folder), {"status": "failed", "why": why.splitlines()[0] if why else "unknown"})


def _weights_of_track(experiment: Experiment) -> str:
    plain = build(replace(experiment, agent={"name": "reference"}, stopping={}))
    return weights_told(plain.setup.policy)
