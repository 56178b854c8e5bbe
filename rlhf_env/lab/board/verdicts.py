"""What a board says of an entry, from its tables and from what came when it was run again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rlhf_env.lab.board.costs import cost_of, ranks, same_cost
from rlhf_env.lab.board.entry import BoardEntry, EntryRun
from rlhf_env.lab.board.tracks import Track
from rlhf_env.learning.provenance import library_sha256, processor_family
from rlhf_env.learning.run_record import versions
from rlhf_env.types import Float, JsonObject, JsonView

EntryStanding = Literal["bit for bit", "same verdict", "not run again", "refused"]
_SHOWN = 6  # faults of an entry
_NOT_OF_BITS = ("time/", "spent/seconds", "histogram/")


@dataclass(frozen=True)
class EntryVerdict:
    """Of one file of a board."""

    file: str
    name: str
    track: str
    standing: EntryStanding
    faults: tuple[str, ...] = ()
    entry: BoardEntry | None = None
    costs: Float | None = None
    """float64[S], by the track's seeds: as measured here or, of what was not run again, as claimed."""
    reached: int = 0
    """In how many seeds the level was reached."""
    rank: int | None = None

    @property
    def is_ranked(self) -> bool:
        return self.standing in ("bit for bit", "same verdict")


def here() -> JsonObject:
    """What a run that is made now would record."""
    made = {name: version for name, version in versions().items() if name != "platform"}
    return {"versions": made, "processor": processor_family(), "library": library_sha256()}


def judged(file: str, entry: BoardEntry, track: Track, results: Mapping[int, JsonView] | None) -> EntryVerdict:
    """The verdict of an entry without faults in its tables; `results` of `SeedAgain` by seed, None: not run again."""
    about = EntryVerdict(file, entry.name, track.name, "not run again", entry=entry)
    runs = sorted(entry.runs, key=lambda run: run.seed)
    if results is None:
        claimed = [run.result for run in runs]
        costs = np.array([cost.spent for cost in claimed])
        return replace(about, costs=costs, reached=sum(cost.reached for cost in claimed))
    exact = entry.made_with == here()
    faults = list(_failures(results))
    ended = [run for run in runs if results[run.seed]["status"] == "finished"]
    faults += [fault for run in ended for fault in _faults_of_seed(run, results[run.seed], exact)]
    if faults:
        return replace(about, standing="refused", faults=few(faults))
    measured = [cost_of(track, results[run.seed]["rows"]) for run in runs]
    costs = np.array([cost.spent for cost in measured])
    about = replace(about, costs=costs, reached=sum(cost.reached for cost in measured))
    if exact:
        return replace(about, standing="bit for bit")
    in_tokens = _in_tokens(track)  # seconds are another machine's own
    said = np.array([cost_of(in_tokens, run.rows).spent for run in runs])
    came = np.array([cost_of(in_tokens, results[run.seed]["rows"]).spent for run in runs])
    if same_cost(said, came):
        return replace(about, standing="same verdict")
    means = (float(np.exp(np.log(each).mean())) for each in (said, came))
    fault = "it claims {:.4g} {unit}, and spends {:.4g} here".format(*means, unit=in_tokens.unit)
    return replace(about, standing="refused", faults=(fault,), costs=None)


def ranked(verdicts: Sequence[EntryVerdict]) -> list[EntryVerdict]:
    """With their ranks, the best first; what has none comes after, the refused last."""
    found = list(verdicts)
    for track in {verdict.track for verdict in verdicts}:
        costs = {it.file: it.costs for it in verdicts if it.track == track and it.is_ranked and it.costs is not None}
        places = ranks(costs)
        found = [replace(it, rank=places[it.file]) if it.file in places else it for it in found]

    def order(verdict: EntryVerdict) -> tuple[object, ...]:
        typical_cost = np.inf if verdict.costs is None else float(np.log(verdict.costs).mean())
        return verdict.track, verdict.standing == "refused", verdict.rank or len(found) + 1, typical_cost, verdict.file

    return sorted(found, key=order)


def few(faults: Sequence[str]) -> tuple[str, ...]:
    """The first of them, and how many more there are."""
    more = len(faults) - _SHOWN
    return (*faults[:_SHOWN], *([f"and {more} more"] if more > 0 else []))


def _failures(results: Mapping[int, JsonView]) -> Iterator[str]:
    """Seeds that do not run here: a line for each reason."""
    seeds: dict[str, list[str]] = {}
    for seed, result in sorted(results.items()):
        if result["status"] != "finished":
            seeds.setdefault(str(result.get("why")), []).append(str(seed))
    for why, these in seeds.items():
        yield f"seed{'s'[: len(these) > 1]} {', '.join(these)}: it does not run here: {why}"


def _faults_of_seed(run: EntryRun, result: JsonView, exact: bool) -> Iterator[str]:
    where = f"seed {run.seed}"
    if result["begun_with"] != result["weights_of_track"]:
        yield f"{where}: it begins with other weights than the track's: a budget spent elsewhere"
    rows = result["rows"]
    counted = float(rows[-1].get("spent/generated_tokens") or 0.0)
    if (more := result["written"] - counted) > 0:
        wrote = f"besides {counted:,.0f} tokens it wrote {more:,.0f} that are not counted"
        yield f"{where}: {wrote}: a budget spent elsewhere"
    if exact:
        yield from (f"{where}, {difference}" for difference in _difference(run, rows))


def _difference(run: EntryRun, rows: Sequence[JsonView]) -> Iterator[str]:
    """The first place where a run and its repetition are not the same bits."""
    for claimed, found in zip(run.rows, rows, strict=False):
        for key in [key for key in {**found, **claimed} if not key.startswith(_NOT_OF_BITS)]:
            if claimed.get(key) != found.get(key):
                yield f"update {found['update']}: {key} is {found.get(key)} here, and {claimed.get(key)} in the entry"
                return
    if len(run.rows) != len(rows):
        yield f"it has {len(run.rows) - 1} updates, and {len(rows) - 1} here"


def _in_tokens(track: Track) -> Track:
    """The same track; one of seconds as if it counted tokens, which are the same on every machine."""
    if track.counts != "processor_seconds":
        return track
    limit = float(track.experiment["budget"]["generated_tokens"])
    return replace(track, counts="generated_tokens", limit=limit)
