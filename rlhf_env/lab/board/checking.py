"""What an entry can be caught at without running any of its code: hashes, settings, and tables that do not add up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from rlhf_env import plugins
from rlhf_env.errors import ConfigError, RlhfEnvError
from rlhf_env.lab.board.costs import cost_of
from rlhf_env.lab.board.entry import BoardEntry, EntryRun
from rlhf_env.lab.board.tracks import Track
from rlhf_env.learning.experiment import Experiment
from rlhf_env.own_code import OwnCode, code_named_in
from rlhf_env.types import JsonObject, JsonView

_SHOWN = 5  # problems of one kind


def faults_of(entry: BoardEntry, track: Track) -> list[str]:
    """Everything that is wrong with the entry, a line each; nothing of it is run."""
    found = [f"the source {path} is not what its hash says" for path, it in entry.sources.items() if not it.is_whole]
    if entry.track_sha256 != track.sha256:
        found.append(f"it is of another version of the track {track.name}: run it again")
    seeds = [run.seed for run in entry.runs]
    if sorted(seeds) != sorted(track.seeds):
        found.append(f"its seeds are {_listed(seeds)}, and the track has {_listed(track.seeds)}")
    try:
        experiment = entry.loaded()
    except ConfigError as error:
        return [*found, *error.problems]
    found += track.differences(experiment)
    found += own_settings_faults(experiment)
    found += _unpacked_code(entry, experiment)
    for run in entry.runs:
        found += [f"seed {run.seed}: {fault}" for fault in list(_faults_of_run(run, track, experiment))[:_SHOWN]]
    return found


def own_settings_faults(experiment: Experiment) -> list[str]:
    """What an entry's own settings may not ask for: plugins that nobody else has, files and models besides its code.

    No plugin but ours is loaded to find out, and no code.
    """
    own: JsonObject = {"agent": experiment.agent, "stopping": experiment.stopping}
    found = []
    for kind, name in _plugins_named(own):
        try:
            origin = plugins.host().entry(kind, name).origin
        except RlhfEnvError as error:
            found.append(str(error))
            continue
        if origin != plugins.OWN:
            found.append(
                f"the {kind} {name!r} is of {origin}, which others may not have: name its class, function = "
                '"FILE.py:CLASS", in a file beside the experiment'
            )
    if not found and not code_named_in(own):  # which would have to be imported to know its settings
        plain = Experiment()
        bare = replace(plain, agent=experiment.agent, stopping=experiment.stopping)
        if read := [path for path in bare.data_named if path not in plain.data_named]:
            found.append(f"it reads {', '.join(read)}: an entry learns from its own texts alone")
    return found


def _plugins_named(own: JsonView) -> Iterator[tuple[plugins.PluginKind, str]]:
    agent = own["agent"]
    while isinstance(agent, dict):  # one may wrap another
        if "function" not in agent and isinstance(name := agent.get("name"), str):
            yield "agent", name
        agent = agent.get("agent")
    for key, table in own["stopping"].items():
        if isinstance(table, dict) and "function" not in table:
            yield "stopping rule", str(table.get("plugin", key))


def _unpacked_code(entry: BoardEntry, experiment: Experiment) -> Iterator[str]:
    for written in experiment.code_named:
        code = OwnCode(written)
        if not code.is_file or code.source not in entry.sources:
            yield f"it names {written}, and {code.source} is not packed in it"


def _faults_of_run(run: EntryRun, track: Track, experiment: Experiment) -> Iterator[str]:
    rows = run.rows
    if not rows or [row.get("update") for row in rows] != list(range(len(rows))):
        yield "its rows are not those of updates 0, 1, 2 and so on"
        return
    every = experiment.evaluation.every
    for row in rows:
        if every and row["update"] % every == 0 and not isinstance(row.get("eval/gold"), (int, float)):
            yield f"update {row['update']:g} has no eval/gold"
        if row["update"] and track.counts == "processor_seconds" and not row.get("time/processor_seconds"):
            yield f"update {row['update']:g} has no time/processor_seconds"
    spent = [_spent(row) for row in rows]
    if bad := next((row["update"] for row in rows[1:] if None in _spent(row)), None):
        yield f"update {bad:g} does not say what was spent"
        return
    yield from _faults_of_spending(rows, spent, experiment)  # type: ignore[arg-type]
    if (found := cost_of(track, rows)) != run.result:
        yield f"it claims {run.result.spent:g} {track.unit}, and its rows say {found.spent:g}"


def _spent(row: JsonView) -> tuple[float | None, float | None, float | None]:
    if row["update"] == 0:
        return 0.0, 0.0, 0.0
    names = ("episodes", "generated_tokens", "reward_calls")
    tokens = [row.get(f"spent/{name}") for name in names]
    return tokens[0], tokens[1], tokens[2]


def _faults_of_spending(
    rows: Sequence[JsonView], spent: Sequence[tuple[float, float, float]], experiment: Experiment
) -> Iterator[str]:
    """Counters that do not fit what the same rows say was written."""
    for row, (before, after) in zip(rows[1:], pairwise(spent), strict=True):
        episodes, tokens, calls = (now - then for now, then in zip(after, before, strict=True))
        if min(episodes, tokens, calls) < 0:
            yield f"what is spent falls at update {row['update']:g}"
            return
        if calls < episodes:
            yield f"update {row['update']:g}: {episodes:g} texts and {calls:g} labels"
        length = row.get("rollout/length")
        if isinstance(length, (int, float)) and tokens < length * episodes - 0.5:
            wrote = f"{episodes:g} texts of {length:.3g} tokens"
            yield f"update {row['update']:g}: {wrote}, and {tokens:g} tokens were counted"
    limits = experiment.budget.limits()
    for row in rows[1:-1]:
        if over := [name for name, limit in limits.items() if (row.get(f"spent/{name}") or 0) >= limit]:
            yield f"it goes on after its budget of {over[0]} is spent, at update {row['update']:g}"
            return


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(str(seed) for seed in sorted(seeds))
