"""Entries of a board, which strangers send, and the commands about them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rlhf_env.lab.board.tracks import load_track
from wrong.table import TOY, command

_TRACK = load_track("least-tokens")
_HASH = hashlib.sha256(b"").hexdigest()
_ENTRY: dict[str, Any] = {
    "format": 1,
    "name": "mine",
    "track": "least-tokens",
    "track_sha256": _HASH,
    "experiment": "",
    "sources": {},
    "made_with": {"versions": {}, "processor": "", "library": ""},
    "runs": [],
}


def entry(says: str, *more: str, **changes: object) -> None:
    """`rlhf-env board d` of one entry."""
    content = json.dumps(_ENTRY | changes)
    command("board d", f"mine.entry.json: {says}", *more, d_IN_mine_DOT_entry_DOT_json=content)


command("board", "name a folder of entries, or say --tracks, or --track NAME")
command("board folder --tracks", "name a folder of entries, or say --tracks, or --track NAME")
command("board nowhere", "nowhere: no *.entry.json in it (rlhf-env submit makes them)")
command("board text", "text: no *.entry.json in it")
command("board --track least-token", "unknown track 'least-token': did you mean 'least-tokens'? Known: least-labels,")
command("board d --only x", "d: no entry x in it", d_IN_a_DOT_entry_DOT_json="{}")
command("board d --jobs 0", "Invalid value for '--jobs'", d_IN_a_DOT_entry_DOT_json="{}")
command("board d --minutes 0", "Invalid value for '--minutes'", d_IN_a_DOT_entry_DOT_json="{}")
command("board d --minutes nan", "Invalid value for '--minutes'", d_IN_a_DOT_entry_DOT_json="{}")
command("board d", "a.entry.json: no entry of a board: ", d_IN_a_DOT_entry_DOT_json=json.dumps(_ENTRY)[:200])
command("board d --out toy.toml", "toy.toml", d_IN_a_DOT_entry_DOT_json="{}")
command("board d", "a.entry.json: no entry of a board: format is missing, or no int", d_IN_a_DOT_entry_DOT_json="{}")
command("board d", "a.entry.json: no entry of a board: ", d_IN_a_DOT_entry_DOT_json=b"PK\x03\x04")
command("board d", "a.entry.json: no entry of a board: brackets too deep", d_IN_a_DOT_entry_DOT_json="[" * 100_000)
entry("no entry of a board: 0 runs, and 1 to 100 can be read")
entry("no entry of a board: format 2, and this version reads 1", format=2)
entry("no entry of a board: '../../x' is no name of an entry", name="../../x")
entry("no entry of a board: track_sha256 is no sha256", track_sha256="0")
entry(
    "no entry of a board: the source '../x.py' is no path of a Python file below",
    sources={"../x.py": {"sha256": _HASH, "text": ""}},
)
entry(
    "no entry of a board: the source x.py is longer than 262,144 characters",
    sources={"x.py": {"sha256": _HASH, "text": "x" * 2**19}},
)
_RUN = {
    "seed": 0,
    "threads": 1,
    "initial_weights": _HASH,
    "result": {"reached": True, "spent": 1.0, "gold": 1.0},
    "rows": [{"update": 0}],
}
entry("no entry of a board: name is missing, or no str", name=["mine"])
entry("no entry of a board: track is longer than 200 characters", track="x" * 10**6)
entry("no entry of a board: its experiment is longer than 16,384 characters", experiment="x = 1\n" * 10_000)
entry("no entry of a board: seed must be from 0 to", runs=[{**_RUN, "seed": 10**4000}])
entry(
    "it cannot be checked: RecursionError",
    runs=[_RUN],
    experiment="agent" + ".a" * 5000 + " = 1",
    track_sha256=_TRACK.sha256,
)
entry(
    "its seeds are 0, and the track has 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    "mine.entry.json: evaluation.every is 0, and in the track it is 1",
    "mine.entry.json: seed 0: it claims 1 tokens, and its rows say 32000",
    runs=[_RUN],
    experiment=_TRACK.to_begin_with().replace("every = 1", "every = 0"),
    track_sha256=_TRACK.sha256,
)
entry("unknown track 'x'. Known: least-labels, least-seconds", track="x", runs=[_RUN])
entry(
    "the source x.py is not what its hash says",
    "mine.entry.json: it is of another version of the track least-tokens: run it again",
    "mine.entry.json: its seeds are 0, and the track has 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    "mine.entry.json: its experiment is no TOML",
    sources={"x.py": {"sha256": "0" * 64, "text": ""}},
    experiment="[",
    runs=[_RUN],
)
command("submit", "Missing argument 'RUN...'.")
command("submit r --track least-tokens", "Missing option '--name'.")
command("submit r --name x --track x", "unknown track 'x'")
command("submit r --name a/b --track least-tokens", "'a/b' is no name of an entry: letters, digits and . _ -")
command("submit folder --name x --track least-tokens", "folder holds no run: it has no experiment.toml")
command(
    "submit r --name x --track least-tokens",
    "r has not ended: resume it first (rlhf-env train ... --resume)",
    r_IN_experiment_DOT_toml=TOY,
)
command(
    "submit r --name x --track least-tokens",
    "r was made by a version that did not record the processor: run it again",
    r_IN_experiment_DOT_toml=TOY,
    r_IN_evaluation_DOT_json='{"reason": "budget"}',
)
