"""The loop closed by hand, from nothing but the page and the commands: for two tastes and three seeds, with a table.

    make closed-loop                                    # all six, in runs/closed_loop
    python examples/closed_loop/loop.py --tastes curious --seeds 0

Of each taste and seed: the shipped model writes replies, a person (person.py, the only one who knows the taste) judges
200 pairs of them on the annotation page by keyboard, a reward model is fitted to the votes, PPO trains on it under KL,
and the same person judges 100 blind pairs of the trained model's and the shipped model's replies to held-out prompts.
What is run is what a user types; the commands of each run are in `commands.txt` in its folder, what they printed in
`log.txt`; the numbers of all are in `results.json`, which docs/example_tables.py puts into the READMEs. Ends with 1
where a win rate is below 0.60, or the lower end of its interval not above 0.50.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMMAND = [sys.executable, "-m", "rlhf_env"]
WIN_RATE, LOWER_END = 0.60, 0.50
HEADS = ("Taste", "Seed", "Votes", "Ties", "Reward model", "Blind pairs", "Win rate", "KL", "Seconds")


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    prompts: int = 220
    votes: int = 200
    blind: int = 104
    """Held-out prompts: a few more than pairs, since replies that are the same make no pair."""
    pairs: int = 100
    reward_model: Mapping[str, int] = field(default_factory=dict)
    """What is set otherwise than in reward_model.toml."""
    train: Mapping[str, int] = field(default_factory=dict)
    """What is set otherwise than in train.toml."""


SMALL = Sizes(
    prompts=16, votes=12, blind=8, pairs=6, reward_model={"epochs": 1}, train={"generated_tokens": 1000, "prompts": 8}
)


@dataclass(frozen=True)
class Loop:
    """What came out of one loop."""

    taste: str
    seed: int
    votes: int
    ties: int
    accuracy: float | None
    """Of the reward model, on the votes of prompts that it was not fitted to; None without such votes."""
    pairs: int
    win_rate: tuple[float, float, float]
    """With the ends of its 95 % interval."""
    kl: float
    seconds: float
    at_the_page: float
    """Of the seconds, those in which the person judged."""

    @property
    def holds(self) -> bool:
        return self.win_rate[0] >= WIN_RATE and self.win_rate[1] > LOWER_END

    def row(self) -> tuple[str, ...]:
        value, low, high = self.win_rate
        won = f"{value:.2f} ({low:.2f} to {high:.2f})"
        accuracy = "-" if self.accuracy is None else f"{self.accuracy:.2f}"
        return (
            *(self.taste, str(self.seed), str(self.votes), str(self.ties), accuracy, str(self.pairs), won),
            *(f"{self.kl:.2f}", f"{self.seconds:.0f}"),
        )


class Desk:
    """A folder in which one user works: commands run there, and what they print is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.at_the_page = 0.0  # seconds
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def command(self, *words: str) -> str:
        """Run `rlhf-env WORDS`; what it printed."""
        self._note("rlhf-env", *words)
        return self._run([*COMMAND, *words])

    def judged(self, store: str, taste: str, votes: int, browser: Sequence[str]) -> tuple[int, int]:
        """Serve the page, and have the person judge on it; votes and ties."""
        self._note("rlhf-env", "annotate", "--store", store)
        serving = [*COMMAND, "annotate", "--store", store, "--port", "0"]
        log = (self.folder / "log.txt").open("a", encoding="utf-8")
        with log, subprocess.Popen(serving, cwd=self.folder, stdout=subprocess.PIPE, stderr=log, text=True) as server:
            try:
                assert server.stdout is not None
                lines = iter(server.stdout)
                link = next((line.split()[1] for line in lines if line.startswith("Open ")), None)
                if link is None:
                    raise SystemExit(f"annotate --store {store}: no page was served")
                ballot = f"{Path(store).stem}.ballot.jsonl"
                person = [sys.executable, HERE / "person.py", link, "--taste", taste, "--votes", str(votes)]
                said = self._run([*person, "--ballot", ballot, *browser])
            finally:
                server.send_signal(signal.SIGINT)
        cast, ties, seconds = map(int, re.findall(r"^(\d+) votes \((\d+) ties\) in (\d+) s", said)[0])
        self.at_the_page += seconds
        return cast, ties

    def _note(self, *words: str) -> None:
        with (self.folder / "commands.txt").open("a", encoding="utf-8") as file:
            file.write(shlex.join(words) + "\n")
        print(f"{self.folder.name}: {shlex.join(words)}", flush=True)

    def _run(self, command: Sequence[str | Path]) -> str:
        settings = {"COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}
        done = subprocess.run(
            command, cwd=self.folder, env=os.environ | settings, capture_output=True, encoding="utf-8", check=False
        )
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"$ {shlex.join(map(str, command))}\n{done.stdout}{done.stderr}\n")
        if done.returncode:
            raise SystemExit(f"{self.folder}: {shlex.join(map(str, command))}\n{done.stdout}{done.stderr}")
        return done.stdout


def loop(folder: Path, taste: str, seed: int, sizes: Sizes, browser: Sequence[str]) -> Loop:
    """From replies to the verdict on blind pairs."""
    start = time.monotonic()
    desk = Desk(folder)
    drawn = ("--seed", str(seed))
    for name, changed in (("reward_model.toml", sizes.reward_model), ("train.toml", sizes.train)):
        settings = (HERE / name).read_text(encoding="utf-8")
        for setting, value in changed.items():
            settings = re.sub(rf"^{setting} = .*$", f"{setting} = {value}", settings, flags=re.MULTILINE)
        (folder / name).write_text(settings, encoding="utf-8")

    asked = ("--prompts", "chitchat", "--limit", str(sizes.prompts), "--temperatures", "0.7,1.0,1.3")
    desk.command("preferences", "responses", "votes.sqlite", "--model", "rlhf-env/chitchat", *asked, *drawn)
    desk.command("preferences", "ask", "votes.sqlite", *drawn)
    votes, ties = desk.judged("votes.sqlite", taste, sizes.votes, browser)
    desk.command("reward-model", "votes.sqlite", "--config", "reward_model.toml", *drawn)
    desk.command("train", "train.toml", "--out", "trained", *drawn)
    desk.command("train", "train.toml", "--agent", "reference", "--out", "reference", *drawn)
    writers = ("trained=trained", "reference=reference")
    desk.command("preferences", "evaluate", "blind.sqlite", *writers, "--prompts", str(sizes.blind), *drawn)
    pairs, _ = desk.judged("blind.sqlite", taste, sizes.pairs, browser)
    ranked = desk.command("preferences", "tournament", "blind.sqlite")

    won = re.search(r"^policy trained +\d+ +(\S+) \[(\S+), (\S+)\]", ranked, re.MULTILINE)
    if won is None:
        raise SystemExit(f"{folder}: no win rate in\n{ranked}")
    value, low, high = map(float, won.groups())
    fit = json.loads((folder / "reward_model/record.json").read_text(encoding="utf-8"))["accuracy"]
    evaluated = json.loads((folder / "trained/evaluation.json").read_text(encoding="utf-8"))
    return Loop(
        taste=taste,
        seed=seed,
        votes=votes,
        ties=ties,
        accuracy=None if fit is None else fit["value"],
        pairs=pairs,
        win_rate=(value, low, high),
        kl=evaluated["metrics"]["kl"],
        seconds=time.monotonic() - start,
        at_the_page=desk.at_the_page,
    )


def table(loops: Sequence[Loop], *, seconds: bool = True) -> str:
    rows = [HEADS, *(it.row() for it in loops)]
    if not seconds:
        rows = [row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tastes", default="curious,cheerful", help="of those in person.py, with commas")
    parser.add_argument("--seeds", default="0,1,2", help="with commas")
    parser.add_argument("--out", type=Path, default=Path("runs/closed_loop"))
    parser.add_argument("--jobs", type=int, default=3, help="loops side by side: a person mostly waits for the page")
    parser.add_argument("--no-browser", action="store_true", help="votes as requests, where there is no Chromium")
    parser.add_argument("--small", action="store_true", help="12 votes and 6 pairs: that it runs, and no more")
    given = parser.parse_args()
    sizes = SMALL if given.small else Sizes()
    browser = ["--no-browser"] if given.no_browser else []
    wanted = [(taste, int(seed)) for taste in given.tastes.split(",") for seed in given.seeds.split(",")]
    start = time.monotonic()

    def one(taste: str, seed: int) -> Loop:
        done = loop(given.out / f"{taste}-{seed}", taste, seed, sizes, browser)
        print(f"{taste}-{seed}: won {done.win_rate[0]:.2f} of {done.pairs} blind pairs", flush=True)
        return done

    with ThreadPoolExecutor(given.jobs) as pool:
        loops = list(pool.map(lambda it: one(*it), wanted))
    print(f"\n{table(loops)}\n")
    held = sum(it.holds for it in loops)
    spent = os.times()
    minutes = (time.monotonic() - start) / 60
    processor_minutes = (spent.children_user + spent.children_system) / 60
    print(
        f"{held} of {len(loops)} have a win rate of at least {WIN_RATE:.2f} with the lower end of its interval above "
        f"{LOWER_END:.2f}; {minutes:.1f} minutes, {processor_minutes:.1f} of processor time"
    )
    cost = {"minutes": minutes, "processor_minutes": processor_minutes}
    results = {**cost, "loops": [asdict(it) for it in loops]}
    (given.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"What each command printed, and every vote: {given.out}/TASTE-SEED; these numbers: {given.out}/results.json")
    sys.exit(0 if held == len(loops) or given.small else 1)


if __name__ == "__main__":
    main()
