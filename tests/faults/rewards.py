"""Rewards and plugins that misbehave in a run: they raise, hang, grab memory, die, or do not load."""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from faults import resume_matrix
from faults.catalogue import fault
from faults.processes import Ended, rlhf_env

from rlhf_env import plugins
from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.toy_tasks import Count
from rlhf_env.errors import RewardError
from rlhf_env.testing import make_episode

EXPERIMENT = """
budget = {{ updates = 3 }}
checkpoint_every = 1
[task]
name = "count"
[policy]
tokenizer = "alphabet:abcdefgh:"
[environment]
num_envs = 16
max_new_tokens = 12
[agent]
name = "grpo"
group_size = 4
[evaluation]
prompts = 4
[rewards.task]
[rewards.odd]
{settings}
"""

# One reward of each kind of misbehaviour; those that count do so over the calls of their process.
ODD = """
import os, re, signal, time
from itertools import count

import numpy as np

calls = count()
ANSWERS = {
    "too_few": lambda n: [0.5] * (n - 1),
    "scalar": lambda n: 0.5,
    "text": lambda n: "good",
    "nothing": lambda n: None,
    "matrix": lambda n: np.zeros((n, 1)),
    "complex": lambda n: [1j] * n,
    "words": lambda n: ["0.5"] * n,
    "on_a_graph": lambda n: __import__("torch").ones(n, requires_grad=True),
}

class Odd:
    def __init__(self, how, after=0, rows=None):
        self.how, self.after, self.rows = how, after, rows

    def __call__(self, episodes):
        if next(calls) < self.after:
            return np.zeros(len(episodes))
        if self.how in ANSWERS:
            return ANSWERS[self.how](len(episodes))
        scores = np.zeros(len(episodes))
        for row, episode in enumerate(episodes):
            if self.rows is None or row in self.rows:
                scores[row] = getattr(self, self.how)()
        return scores

    def raises(self):
        raise ZeroDivisionError("a bad day")

    def nan(self):
        return float("nan")

    def inf(self):
        return float("inf")

    def minus_inf(self):
        return float("-inf")

    def huge(self):
        return 3e38

    def sleeps(self):
        time.sleep(600)

    def busy(self):
        while True:
            pass

    def regex(self):
        return float(bool(re.fullmatch("(a+)+b", "a" * 60)))

    def holds_gil(self):
        return float(10 ** (10 ** 9) > 0)  # one instruction: no other Python thread runs before it is done

    def grabs(self):
        held = []
        while True:
            held.append(os.urandom(1) * (1 << 24))

    def dies(self):
        open(__file__ + ".died", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def train(
    folder: Path, settings: str, *more: str, source: str = ODD, prepare: Callable[[], object] | None = None
) -> tuple[Ended, Path]:
    """A run of three updates with the reward `odd` set so, in the folder that is given back.

    `source`: its code; `prepare` is called first in its process.
    """
    (folder / "odd_rewards.py").write_text(source, encoding="utf-8")
    file, run = folder / "experiment.toml", folder / "run"
    file.write_text(EXPERIMENT.format(settings=settings), encoding="utf-8")

    def before() -> None:
        sys.path.insert(0, str(folder))
        plugins.register_reward("odd", "odd_rewards:Odd")
        if prepare is not None:
            prepare()

    return rlhf_env("train", str(file), "--out", str(run), *more, before=before), run


def rows(run: Path) -> list[dict[str, float]]:
    """The metrics of each update; before them stands an evaluation, which is the rewards' first call."""
    said = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in said if row["update"] > 0]


def stops(
    folder: Path, settings: str, *said: str, updates: int = 2, prepare: Callable[[], object] | None = None
) -> str:
    """Exit 3 with one line of these words, and a run that goes on when the reward is well again. The line."""
    ended, run = train(folder, settings, prepare=prepare)
    assert ended.status == 3, ended
    (line,) = ended.stderr.splitlines()
    assert all(words in line for words in ("reward 'odd'", *said)), line
    assert len(rows(run)) == updates
    assert sorted(run.glob("checkpoints/step-*"))[-1].name.endswith(str(updates)), list(run.glob("checkpoints/*"))
    return line


@fault("F17", "a reward raises in the third rollout: exit 3 with plugin and row; the run is resumable")
def raises(folder: Path) -> None:
    stops(folder, 'how = "raises"\nafter = 3', "raised ZeroDivisionError: a bad day", "episode 0 of 0..")
    mend = ODD.replace('raise ZeroDivisionError("a bad day")', "return 0.0")
    resumed, run = train(folder, 'how = "raises"\nafter = 3', "--resume", source=mend)
    assert resumed.status == 0 and len(rows(run)) == 3, resumed


@fault("F17", "a reward raises for one row in 16, skipped: the row is counted, the run ends well", quick=True)
def skips(folder: Path) -> None:
    ended, run = train(folder, 'how = "nan"\nrows = [5]\non_error = "skip"\nmax_bad_fraction = 0.25')
    assert ended.status == 0, ended
    assert all(1 <= row["rollout/failed/odd"] <= 4 for row in rows(run)), "the row, and those of the same text"


@fault("F18", "NaN for all: more than max_bad_fraction ends the run before it learns from any")
def all_nan(folder: Path) -> None:
    stops(
        folder, 'how = "nan"\nafter = 2\non_error = "skip"', "returned nan", "16 of 16", "max_bad_fraction", updates=1
    )


@fault("F19", "inf, -inf and 3e38: each refused by name, or a row that is skipped and statistics that are finite")
def not_sane(folder: Path) -> None:
    for how in ("inf", "minus_inf", "huge"):
        (place := folder / how).mkdir()
        stops(place, f'how = "{how}"\nafter = 2', "returned", updates=1)
        (place := folder / f"{how} skipped").mkdir()
        ended, run = train(place, f'how = "{how}"\nrows = [2]\non_error = "skip"\nmax_bad_fraction = 0.25')
        assert ended.status == 0, ended
        assert all(np.isfinite(row[key]) for row in rows(run) for key in row if isinstance(row[key], float))


@fault("F20", "8 of 8 answers of a wrong form, whatever on_error says: exit 3, got and expected")
def wrong_form(folder: Path) -> None:
    for how in ("too_few", "scalar", "text", "nothing", "matrix", "complex", "words", "on_a_graph"):
        (place := folder / how).mkdir()
        line = stops(place, f'how = "{how}"\nafter = 2\non_error = "skip"\nmax_bad_fraction = 1.0', updates=1)
        assert re.search(r"returned .+expected|tensor\.detach", line), line


def batch() -> list[object]:
    return [make_episode("q", "a"), make_episode("r", "b")]


def odd(folder: Path, how: str, settings: dict[str, object]) -> Callable[[], Sequence[object]]:
    """What asks a mix of this one reward, in a process of its own that is up and running."""
    (folder / "odd_rewards.py").write_text(ODD, encoding="utf-8")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    plugins.register_reward("odd", "odd_rewards:Odd")
    mix = load_rewards({"odd": {"how": how, **settings}}, Count("a", 4))
    return lambda: mix.score(batch())  # type: ignore[arg-type]


@fault("F21", "hangs 4 of 4: sleep, busy loop, catastrophic regex, one endless instruction; back within timeout + 1 s")
def hangs(folder: Path) -> None:
    for how in ("sleeps", "busy", "regex", "holds_gil"):
        ask = odd(folder, how, {"timeout": 0.5})
        began = time.monotonic()
        try:
            ask()
        except RewardError as error:
            assert "reward 'odd' gave no answer within 0.5 s" in str(error), error
        else:
            raise AssertionError(f"{how}: it answered")
        assert time.monotonic() - began < 1.5, how


@fault("F21", "a reward hangs in a run: exit 3 that names it, and the last update saved")
def hangs_in_a_run(folder: Path) -> None:
    stops(folder, 'how = "regex"\nafter = 2\ntimeout = 1.0', "gave no answer within 1 s", updates=1)


@fault("F22", "a reward grabs memory: its process meets its limit, the run does not grow")
def grabs_memory(folder: Path) -> None:
    ask = odd(folder, "grabs", {"timeout": 60.0, "memory_mb": 800})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        ask()
    except RewardError as error:
        assert "reward 'odd' raised MemoryError" in str(error), error
    else:
        raise AssertionError("it had memory without end")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # KiB


@fault("F33", "the process of a reward is killed, idle and at work: replaced, or named with its pid")
def killed(folder: Path) -> None:
    (folder / "odd_rewards.py").write_text(ODD, encoding="utf-8")
    sys.path.insert(0, str(folder))
    plugins.register_reward("odd", "odd_rewards:Odd")
    mix = load_rewards({"odd": {"how": "nan", "rows": [], "isolate": True}}, Count("a", 4))
    episodes = [make_episode("q", "a")]
    first = mix.parts["odd"].pid  # type: ignore[union-attr]
    os.kill(first, 9)
    time.sleep(0.2)
    assert mix.score(episodes)[0].raw == {"odd": 0.0}, "one that died idle is replaced unseen"
    assert mix.parts["odd"].pid != first  # type: ignore[union-attr]
    try:
        odd(folder, "dies", {"isolate": True})()
    except RewardError as error:
        assert "reward 'odd' died: its process " in str(error) and "was killed by SIGKILL" in str(error), error
    else:
        raise AssertionError("it answered")


@fault("F33", "the process of a reward dies in a run: exit 3 within 5 s, its pid named, the last update saved")
def dies_in_a_run(folder: Path) -> str:
    line = stops(folder, 'how = "dies"\nafter = 2\nisolate = true', "died: its process ", "SIGKILL", updates=1)
    took = time.time() - (folder / "odd_rewards.py.died").stat().st_mtime
    assert took < 5.0, f"{took:.1f} s, {line}"
    return f"{took:.1f} s"


@fault("F33", "the process of a reward is killed before every step: replaced, and the run is as if nothing had been")
def killed_before_every_step(folder: Path) -> str:
    def kill(env: TextVectorEnv, *_: object) -> None:
        if "odd" in env.reward.parts:  # an evaluation asks it elsewhere
            os.kill(env.reward.parts["odd"].pid, 9)  # type: ignore[union-attr]
            time.sleep(0.1)
            with (folder / "killed").open("a") as file:
                file.write("x")

    left = []
    for place, harm in (
        ("untouched", lambda: None),
        ("harmed", lambda: resume_matrix.before(TextVectorEnv, "step", kill)),
    ):
        (folder / place).mkdir()
        ended, run = train(folder / place, 'how = "nan"\nrows = []\nisolate = true', prepare=harm)
        assert ended.status == 0, ended
        left.append([resume_matrix.timeless(row) for row in rows(run)])
    assert (folder / "killed").stat().st_size == 3, "once an update"
    assert left[0] == left[1]
    return "3 times, exact"


BROKEN = {
    "an-import-error": "raise RuntimeError('first line\\nsecond line')",
    "a-missing-dependency": "import a_package_that_nobody_has",
    "another-api": "RLHF_ENV_API = 999",
    "a-slow-import": "import time; time.sleep(5)",
    "a-rival": """
        from rlhf_env.plugins import hookimpl

        @hookimpl
        def register_rewards(register):
            register("length", "a_rival:Length")
        """,
}


@fault("F24", "5 of 5 plugins that do not load are one row each in `plugins`, and nobody else's problem")
def broken_plugins(folder: Path) -> None:
    for name, source in BROKEN.items():
        module = name.replace("-", "_")
        (folder / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        information = folder / f"{module}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[rlhf_env]\nplugin = {module}\n")

    def before(choice: str | None = None) -> Callable[[], None]:
        def prepare() -> None:
            sys.path.insert(0, str(folder))
            plugins.host.cache_clear()
            if choice is not None:
                os.environ["RLHF_ENV_PLUGINS"] = choice

        return prepare

    listed = rlhf_env("plugins", before=before())
    failed = [line for line in listed.stdout.splitlines() if line.startswith("failed: ")]
    assert listed.status == 0 and len(failed) == len(BROKEN), listed
    assert all(sum(name in line for line in failed) == 1 for name in BROKEN), failed
    used = rlhf_env("check", "reward:length", "target=3", before=before())
    assert used.status == 2 and "a-rival" in used.stderr and "rlhf-env" in used.stderr, used
    assert rlhf_env("check", "reward:repetition", before=before()).status == 0
    for arguments, choice in ((["--no-plugins"], None), ([], ""), ([], ",".join(f"-{name}" for name in BROKEN))):
        quiet = rlhf_env(*arguments, "plugins", before=before(choice))
        assert quiet.status == 0 and "failed: " not in quiet.stdout and quiet.stdout.count("kept out: ") == 5, quiet
    one = rlhf_env("plugins", before=before("a-rival"))
    assert one.stdout.count("failed: ") == 1 and one.stdout.count("kept out: ") == 4, one
