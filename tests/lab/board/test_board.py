"""Five entries, some of them dishonest: what is caught without running code, what only by running it, and the ranks."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlhf_env
from rlhf_env import plugins
from rlhf_env.errors import ConfigError, DataError, UnknownName
from rlhf_env.lab.board import making
from rlhf_env.lab.board.again import SeedAgain
from rlhf_env.lab.board.checking import faults_of, own_settings_faults
from rlhf_env.lab.board.costs import Cost, cost_of
from rlhf_env.lab.board.entry import (
    ENTRY_ENDING,
    LARGEST,
    BoardEntry,
    EntrySource,
    read_entry,
    read_entry_text,
    text_sha256,
)
from rlhf_env.lab.board.making import Board, make_board
from rlhf_env.lab.board.packing import pack
from rlhf_env.lab.board.tracks import Track, load_track, track_names
from rlhf_env.lab.board.verdicts import EntryVerdict, here, judged, ranked
from rlhf_env.lab.jobs import Progress
from rlhf_env.lab.processes import InThisProcess
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.experiment_checks import check_plugins

EMPTY = {"sha256": text_sha256(""), "text": ""}
HONEST = """\
from rlhf_agents.reinforce import Reinforce


class Mine(Reinforce):
    pass
"""
# Writes each answer twice, and gives the loop one of them: as many tokens again, which nobody counts.
WRITES_MORE = """\
from rlhf_agents.reinforce import Reinforce


class Mine(Reinforce):
    def act(self, observation, /):
        super().act(observation)
        return super().act(observation)
"""
BEGINS_ELSEWHERE = """\
import torch

from rlhf_agents.reinforce import Reinforce


class Mine(Reinforce):
    def __init__(self, setup, config: Reinforce.Config):
        with torch.no_grad():
            for weight in setup.policy.parameters():
                weight.mul_(1.01)
        super().__init__(setup, config)

    Config = Reinforce.Config
"""


@pytest.fixture(scope="module")
def track() -> Track:
    """The first track with texts that take a moment: three updates of eight."""
    real = load_track("least-tokens")
    small = {**real.experiment, "budget": {"updates": 3}, "evaluation": {**real.experiment["evaluation"], "prompts": 4}}
    small["environment"] = {**small["environment"], "num_envs": 8}
    return replace(real, level=-10.0, seeds=[0, 1, 2], experiment=small)


def trained(folder: Path, track: Track, code: str) -> list[Path]:
    """The runs of one agent, a folder for each seed."""
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text(code)
    table = {**track.experiment, "agent": {"function": "mine.py:Mine"}}
    for seed in track.seeds:
        rlhf_env.run(Experiment.from_table({**table, "seed": seed}, folder=folder), folder / f"runs/{seed}")
    return [folder / f"runs/{seed}" for seed in track.seeds]


@pytest.fixture(scope="module")
def runs(track: Track, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return trained(tmp_path_factory.mktemp("honest") / "mine", track, HONEST)


@pytest.fixture(scope="module")
def honest(track: Track, runs: list[Path]) -> BoardEntry:
    return pack(runs, track, "honest")


@pytest.fixture
def boarded(track: Track, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Board]:
    """The board of some entries, of which one process runs all again."""
    monkeypatch.setattr(making, "load_track", lambda name: track if name == track.name else load_track(name))

    def make(*entries: BoardEntry, trust: bool) -> Board:
        for entry in entries:
            entry.save(tmp_path / "entries" / f"{entry.name}{ENTRY_ENDING}")
        return make_board(tmp_path / "entries", tmp_path / "out", trust=trust, jobs=InThisProcess())

    return make


def with_source(entry: BoardEntry, name: str, text: str, sha256: str | None = None) -> BoardEntry:
    return replace(entry, name=name, sources={"mine.py": EntrySource(sha256 or text_sha256(text), text)})


def with_rows(
    entry: BoardEntry, track: Track, change: Callable[[dict[str, Any]], dict[str, Any]], name: str
) -> BoardEntry:
    """The entry with other numbers, and with results that follow from them."""
    changed = [replace(run, rows=tuple(change(dict(row)) for row in run.rows)) for run in entry.runs]
    told = tuple(replace(run, result=cost_of(track, run.rows)) for run in changed)
    return replace(entry, name=name, runs=told)


def halved(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value / 2 if key == "spent/generated_tokens" else value for key, value in row.items()}


def better(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value + 0.5 if key == "eval/gold" else value for key, value in row.items()}


class TestFiveEntries:
    def test_of_five_the_dishonest_are_caught(
        self, honest: BoardEntry, track: Track, boarded: Callable[..., Board]
    ) -> None:
        board = boarded(
            honest,
            with_source(honest, "wrong-hash", HONEST + "# edited\n", sha256=text_sha256(HONEST)),
            with_rows(honest, track, halved, "half-the-tokens"),
            with_rows(honest, track, better, "better-gold"),
            with_source(honest, "writes-more", WRITES_MORE),
            trust=True,
        )
        said = {verdict.name: (verdict.standing, " ".join(verdict.faults)) for verdict in board.verdicts}
        assert said["honest"] == ("bit for bit", "")
        assert {name for name, (standing, _) in said.items() if standing == "refused"} == said.keys() - {"honest"}
        assert "the source mine.py is not what its hash says" in said["wrong-hash"][1]
        assert "tokens were counted" in said["half-the-tokens"][1]
        assert "update 0: eval/gold is" in said["better-gold"][1]
        assert "that are not counted: a budget spent elsewhere" in said["writes-more"][1]
        assert next((verdict.name, verdict.rank) for verdict in board.verdicts) == ("honest", 1)
        page = board.page.read_text("utf-8")
        assert "wrong-hash: refused" in page
        assert "class Mine(Reinforce):" in page

    def test_without_trust_no_code_runs_and_nothing_is_ranked(
        self, honest: BoardEntry, boarded: Callable[..., Board], tmp_path: Path
    ) -> None:
        mark = tmp_path / "ran"
        code = f"open({str(mark)!r}, 'w').close()\n"
        quiet = honest.experiment.replace('function = "mine.py:Mine"', 'name = "reinforce"')
        other = replace(
            with_source(honest, "reward", code), experiment=f'{quiet}\n[rewards.x]\nfunction = "mine.py:x"\n'
        )
        board = boarded(honest, with_source(honest, "loud", code), other, trust=False)
        assert [(it.standing, it.rank) for it in board.verdicts][:2] == [("not run again", None)] * 2
        assert board.refused[0].faults == ("rewards.x.function is 'mine.py:x', and in the track it is not set",)
        assert not mark.exists()
        assert not (tmp_path / "out" / "again").exists()

    def test_nobody_can_block_a_name(self, honest: BoardEntry, boarded: Callable[..., Board], tmp_path: Path) -> None:
        folder = tmp_path / "entries"
        with_source(honest, "honest", HONEST + "# another's\n").save(folder / "first.entry.json")
        board = boarded(honest, trust=False)
        digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:8] for file in folder.iterdir()}
        expected = {file: f"honest ({digest})" for file, digest in digests.items()}
        assert {it.file: it.name for it in board.verdicts} == expected
        assert {it.standing for it in board.verdicts} == {"not run again"}
        only = expected["first.entry.json"]
        one = make_board(folder, tmp_path / "out", only=[only], jobs=InThisProcess())
        assert [it.file for it in one.verdicts] == ["first.entry.json"]
        assert len(make_board(folder, tmp_path / "out", only=["honest"], jobs=InThisProcess()).verdicts) == 2

    def test_a_copy_is_ranked_once(self, honest: BoardEntry, boarded: Callable[..., Board], tmp_path: Path) -> None:
        honest.save(tmp_path / "entries" / "a.entry.json")
        said = {it.file: (it.name, it.standing, it.faults) for it in boarded(honest, trust=False).verdicts}
        assert said == {
            "a.entry.json": ("honest", "not run again", ()),
            "honest.entry.json": ("honest", "refused", ("a copy of a.entry.json",)),
        }

    def test_weights_from_elsewhere(self, honest: BoardEntry, track: Track, boarded: Callable[..., Board]) -> None:
        (verdict,) = boarded(with_source(honest, "warm", BEGINS_ELSEWHERE), trust=True).verdicts
        assert verdict.standing == "refused"
        assert "begins with other weights than the track's: a budget spent elsewhere" in verdict.faults[0]

    def test_the_page_shows_code_as_text(self, honest: BoardEntry, boarded: Callable[..., Board]) -> None:
        hostile = HONEST + "# </pre><script>alert(1)</script>\u202e\n"
        page = boarded(with_source(honest, "hostile", hostile), trust=False).page.read_text("utf-8")
        assert "<script" not in page and "&lt;/pre&gt;&lt;script&gt;" in page
        assert "\u202e" not in page and "⟨U+202E⟩" in page


class TestCutShort:
    """What is left of a board that was killed, and of a process that was."""

    def test_a_second_call_runs_what_is_missing(
        self, honest: BoardEntry, boarded: Callable[..., Board], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        work, ran = SeedAgain.work, []

        def killed_in_the_second(job: SeedAgain, folder: Path, on_update: Any) -> Any:
            ran.append(job.seed)
            if len(ran) == 2:
                raise KeyboardInterrupt
            return work(job, folder, on_update)

        monkeypatch.setattr(SeedAgain, "work", killed_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            boarded(honest, trust=True)
        assert boarded(honest, trust=False).verdicts[0].standing == "not run again"
        (damaged,) = tmp_path.glob("out/again/*/seed-0.json")
        damaged.write_bytes(damaged.read_bytes()[:100])
        assert boarded(honest, trust=True).verdicts[0].standing == "bit for bit"
        assert ran == [0, 1, 0, 1, 2]

    def test_code_that_ends_its_process_ends_no_board(
        self, honest: BoardEntry, track: Track, boarded: Callable[..., Board], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The others are ranked. Its process is played here by a crew that says what a crew of processes says."""
        outcome = making.run_jobs

        def run_jobs(work: Any, folder: Path, *, jobs: Any, on_progress: Any) -> Any:
            if work[0].entry.name == "honest":
                return outcome(work, folder, jobs=jobs, on_progress=on_progress)
            for job in work:
                on_progress(Progress(job, 0.0, "died", {}, "its process died (exit code 3)", gone=True))
            return []

        monkeypatch.setattr(making, "run_jobs", run_jobs)
        best, refused = boarded(honest, with_source(honest, "exits", "import os\nos._exit(3)\n"), trust=True).verdicts
        assert (best.name, best.rank) == ("honest", 1)
        assert refused.faults == ("seeds 0, 1, 2: it does not run here: its process died (exit code 3)",)


class TestVerdicts:
    """What is said of results, on this machine and on another."""

    def results(self, entry: BoardEntry, **changes: object) -> dict[int, dict[str, Any]]:
        return {
            run.seed: {
                "status": "finished",
                "rows": [dict(row) for row in run.rows],
                "weights_of_track": run.initial_weights,
                "begun_with": run.initial_weights,
                "written": 0,
                **changes,
            }
            for run in entry.runs
        }

    def elsewhere(self, entry: BoardEntry) -> BoardEntry:
        return replace(entry, made_with={**here(), "processor": "another"})

    def test_one_bit_is_seen_on_the_same_processor_alone(self, honest: BoardEntry, track: Track) -> None:
        results = self.results(honest)
        results[1]["rows"][2]["eval/kl"] = np.nextafter(results[1]["rows"][2]["eval/kl"], 9.0)
        verdict = judged("f", honest, track, results)
        assert verdict.standing == "refused"
        assert verdict.faults[0].startswith("seed 1, update 2: eval/kl is")
        assert judged("f", self.elsewhere(honest), track, results).standing == "same verdict"

    def test_elsewhere_another_cost_is_seen(self, honest: BoardEntry, track: Track) -> None:
        results = self.results(honest)
        for result in results.values():
            for row in result["rows"]:
                row["spent/generated_tokens"] *= 2.0
        verdict = judged("f", self.elsewhere(honest), track, results)
        assert verdict.standing == "refused"
        assert "it claims" in verdict.faults[0]

    def test_time_is_no_bit(self, honest: BoardEntry, track: Track) -> None:
        results = self.results(honest)
        for result in results.values():
            result["rows"][1] |= {"time/processor_seconds": 9.0, "spent/seconds": 9.0}
        assert judged("f", honest, track, results).standing == "bit for bit"

    def test_seconds_are_those_of_the_board(self, honest: BoardEntry, track: Track) -> None:
        seconds = replace(track, counts="processor_seconds", limit=60)
        results = self.results(honest)
        for result in results.values():
            for row in result["rows"][1:]:
                row["time/processor_seconds"] = 7.0
        costs = judged("f", honest, seconds, results).costs
        assert costs is not None and costs.tolist() == [7.0] * 3

    def test_code_that_fails(self, honest: BoardEntry, track: Track) -> None:
        results: dict[int, Any] = {seed: {"status": "failed", "why": "no weights.pt"} for seed in track.seeds}
        verdict = judged("f", honest, track, results)
        assert verdict.faults == ("seeds 0, 1, 2: it does not run here: no weights.pt",)
        one = self.results(honest) | {1: {"status": "failed", "why": "it had not ended after 1,800 seconds"}}
        assert judged("f", honest, track, one).faults == (
            "seed 1: it does not run here: it had not ended after 1,800 seconds",
        )


class TestTables:
    def test_an_honest_entry_has_no_faults(self, honest: BoardEntry, track: Track) -> None:
        assert faults_of(honest, track) == []

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda e: replace(e, track_sha256="0" * 64), "another version of the track"),
            (lambda e: replace(e, runs=e.runs[:2]), "its seeds are 0, 1, and the track has 0, 1, 2"),
            (lambda e: replace(e, sources={}), "mine.py is not packed in it"),
            (lambda e: replace(e, experiment=e.experiment.replace('"tiny"', '"gpt2"')), "policy.model is 'gpt2'"),
            (
                lambda e: replace(e, experiment=e.experiment.replace("updates = 3", "updates = 9")),
                "budget.updates is 9",
            ),
            (lambda e: replace(e, experiment="["), "its experiment is no TOML"),
            (lambda e: first_run(e, rows=e.runs[0].rows[1:]), "seed 0: its rows are not those of updates 0, 1, 2"),
            (lambda e: first_run(e, result=Cost(True, 1.0, 9.0)), "seed 0: it claims 1 tokens, and its rows say"),
            (lambda e: first_run(e, rows=without(e, "eval/gold")), "update 2 has no eval/gold"),
            (lambda e: first_run(e, rows=without(e, "spent/episodes")), "update 2 does not say what was spent"),
        ],
        ids=["track", "seeds", "code", "model", "budget", "toml", "rows", "claim", "gold", "spent"],
    )
    def test_what_does_not_add_up(
        self, honest: BoardEntry, track: Track, change: Callable[[BoardEntry], BoardEntry], says: str
    ) -> None:
        assert says in " | ".join(faults_of(change(honest), track))

    def test_files_and_models_of_elsewhere(self, honest: BoardEntry, track: Track) -> None:
        agent = 'name = "distill"\nteacher = "elsewhere/model"'
        other = replace(honest, sources={}, experiment=honest.experiment.replace('function = "mine.py:Mine"', agent))
        assert faults_of(other, track) == ["it reads elsewhere/model: an entry learns from its own texts alone"]
        plain = replace(other, experiment=other.experiment.replace(agent, 'name = "reinforce"'))
        assert faults_of(plain, track) == []


def first_run(entry: BoardEntry, **changes: Any) -> BoardEntry:
    return replace(entry, runs=(replace(entry.runs[0], **changes), *entry.runs[1:]))


def without(entry: BoardEntry, key: str) -> tuple[dict[str, Any], ...]:
    return tuple({k: v for k, v in row.items() if k != key or row["update"] != 2} for row in entry.runs[0].rows)


class TestFiles:
    """An entry is a stranger's file."""

    def text(self, entry: BoardEntry, **changes: object) -> bytes:
        return json.dumps({"format": 1, **asdict(entry), **changes}).encode()

    def test_it_comes_back_as_it_was(self, honest: BoardEntry, tmp_path: Path) -> None:
        honest.save(tmp_path / "a.entry.json")
        assert replace(read_entry(tmp_path / "a.entry.json"), sha256="") == honest

    @pytest.mark.parametrize(
        "path",
        ["../mine.py", "/mine.py", "a/../../mine.py", ".mine.py", "a\\mine.py", "mine.pkl", "mine.py\n", "~/a.py"],
    )
    def test_no_source_leads_out_of_its_folder(self, path: str, honest: BoardEntry, tmp_path: Path) -> None:
        sources = {path: {"sha256": text_sha256(""), "text": ""}}
        with pytest.raises(DataError, match="is no path of a Python file below"):
            read_entry_text(self.text(honest, sources=sources), "it")
        with pytest.raises(DataError, match="would lie outside"):
            replace(honest, sources={path: EntrySource("", "")}).unpack(tmp_path / "sources")

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"format": 2}, "format 2, and this version reads 1"),
            ({"name": "../x"}, "is no name of an entry"),
            ({"runs": []}, "0 runs"),
            ({"runs": [{"rows": [{"update": "0"}]}]}, "something else than numbers"),
            ({"sources": {"a.py": {"sha256": "x", "text": ""}}}, "sha256 is no sha256"),
            ({"sources": {"a.py": {"sha256": text_sha256(""), "text": "x" * 300_000}}}, "longer than 262,144"),
            ({"sources": {f"a{i}.py": {} for i in range(65)}}, "65 sources"),
            ({"made_with": {}}, "versions is missing"),
            ({"track": 3}, "track is missing, or no str"),
            ({"runs": [{"rows": [{"update": 10**400}]}]}, "something else than numbers"),
            ({"runs": [{"rows": [], "threads": 10**6}]}, "threads must be from 1 to 1,024"),
            ({"sources": dict.fromkeys(("a.py", "a.py/b.py"), EMPTY)}, "'a.py' is a file and a folder"),
        ],
        ids=["format", "name", "runs", "rows", "hash", "long", "many", "versions", "type", "huge", "threads", "folder"],
    )
    def test_what_is_none_is_refused_on_one_line(self, honest: BoardEntry, changes: dict[str, Any], says: str) -> None:
        with pytest.raises(DataError, match="it: no entry of a board") as refused:
            read_entry_text(self.text(honest, **changes), "it")
        assert says in str(refused.value) and len(refused.value.problems) == 1

    @pytest.mark.parametrize("content", [b"", b"[]", b'{"a": NaN}', b'{"a": 1, "a": 1}', b"[" * 100_000, b"\xff", b"1"])
    def test_what_is_no_json(self, content: bytes) -> None:
        with pytest.raises(DataError, match="it: no entry of a board"):
            read_entry_text(content, "it")

    def test_a_large_one_is_not_read(self, tmp_path: Path) -> None:
        (tmp_path / "a.entry.json").write_bytes(b" " * (LARGEST + 1))
        with pytest.raises(DataError, match="larger than"):
            read_entry(tmp_path / "a.entry.json")


class TestPacking:
    def test_code_that_changed_since(self, runs: list[Path], track: Track) -> None:
        code = runs[0].parents[1] / "mine.py"
        code.write_text(HONEST + "\n# later\n")
        try:
            with pytest.raises(ConfigError, match=r"mine.py is not what .*runs/0 ran"):
                pack(runs, track, "x")
        finally:
            code.write_text(HONEST)

    @pytest.mark.parametrize("agent", [{"name": "theirs"}, {"name": "curriculum", "agent": {"name": "theirs"}}])
    def test_an_agent_that_no_board_has_installed(
        self, agent: dict[str, Any], track: Track, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        theirs = plugins.Entry("agent", "theirs", "rlhf_agents.reinforce:Reinforce", "rlhf-agent-theirs")
        monkeypatch.setitem(plugins.host()._entries, ("agent", "theirs"), [theirs])
        experiment = Experiment.from_table({**track.experiment, "agent": agent})
        (tmp_path / "experiment.toml").write_text(experiment.to_toml())
        (tmp_path / "evaluation.json").write_text('{"reason": "budget"}')
        (tmp_path / "record.json").write_text('{"processor": "x"}')
        with pytest.raises(ConfigError, match="the agent 'theirs' of rlhf-agent-theirs, which is not installed where"):
            pack([tmp_path], track, "mine")

    def test_seeds_that_are_missing_or_there_twice(self, runs: list[Path], track: Track) -> None:
        with pytest.raises(ConfigError, match="no run with seed 2"):
            pack(runs[:2], track, "x")
        with pytest.raises(ConfigError, match="a second run with seed 0"):
            pack([*runs, runs[0]], track, "x")

    def test_runs_of_another_track(self, runs: list[Path]) -> None:
        with pytest.raises(ConfigError, match="no run with seed 3, 4, 5, 6, 7, 8, 9"):
            pack(runs, load_track("least-labels"), "x")


class TestOrder:
    def test_the_refused_are_last_and_have_no_rank(self) -> None:
        made = [
            EntryVerdict("r", "r", "t", "refused", ("why",)),
            EntryVerdict("n", "n", "t", "not run again", costs=np.full(10, 1.0)),
            EntryVerdict("b", "b", "t", "bit for bit", costs=np.full(10, 2.0)),
        ]
        assert [(it.name, it.rank) for it in ranked(made)] == [("b", 1), ("n", None), ("r", None)]


class TestTracks:
    @pytest.mark.parametrize("name", track_names())
    def test_what_a_track_prints_is_an_experiment_of_it(self, name: str, tmp_path: Path) -> None:
        track = load_track(name)
        (tmp_path / "mine.toml").write_text(track.to_begin_with())
        experiment = Experiment.load(tmp_path / "mine.toml")
        assert track.differences(experiment) == []
        larger = replace(experiment, environment=replace(experiment.environment, num_envs=128))
        assert track.differences(larger) == ["environment.num_envs is 128, and in the track it is 64"]

    def test_there_are_three(self) -> None:
        assert [(name, load_track(name).counts) for name in track_names()] == [
            ("least-labels", "reward_calls"),
            ("least-seconds", "processor_seconds"),
            ("least-tokens", "generated_tokens"),
        ]
        with pytest.raises(UnknownName, match="unknown track 'least-token': did you mean 'least-tokens'"):
            load_track("least-token")

    @pytest.mark.parametrize(
        ("name", "agent"), [("least-tokens", "peeking.py:Peeking"), ("least-labels", "reinforce")], ids=["own", "ours"]
    )
    def test_what_the_trial_makes_is_an_experiment_of_the_track(self, name: str, agent: str, tmp_path: Path) -> None:
        """`examples/board/trial.sh` puts tables of its own in the place of [agent]; the code beside it loads."""
        here = Path(__file__).parents[3] / "examples/board"
        for file in here.glob("*.py"):
            (tmp_path / file.name).write_text(file.read_text("utf-8"))
        track = load_track(name)
        without = subprocess.run(
            ["sed", r"/^\[agent\]$/,/^$/d"], input=track.to_begin_with(), capture_output=True, text=True, check=True
        ).stdout
        key = "function" if ":" in agent else "name"
        tables = f'[agent]\n{key} = "{agent}"\n[stopping.reached]\nfunction = "reached.py:Reached"\nlevel = 0.8\n'
        (tmp_path / "x.toml").write_text(without + tables)
        experiment = Experiment.load(tmp_path / "x.toml")
        check_plugins(experiment)
        assert track.differences(experiment) == []
        assert own_settings_faults(experiment) == []
