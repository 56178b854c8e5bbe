"""Bad inputs: each is refused with exit status 2 and a line for each problem, which names it and says what to do.

    python tests/bad_inputs.py              # all of them: `N of N`
    python tests/bad_inputs.py budget csv   # those with a word in their names

Each goes through the command line and, where there is one, through the same door of the Python API, which raises a
ConfigError of the same text.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from rlhf_env.cli import main as cli
from rlhf_env.envs.file_task import File
from rlhf_env.errors import ConfigError
from rlhf_env.feedback.asking.collecting import read_responses
from rlhf_env.feedback.interchange import read_judgements
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.learning.experiment import Experiment, build
from rlhf_env.shown_text import for_terminal

Content = str | bytes | Callable[[Path], object]

TOY = """\
name = "toy"

[task]
name = "echo"
length = 2

[policy]
tokenizer = "alphabet:ab="

[environment]
num_envs = 8
max_new_tokens = 4
max_prompt_tokens = 4

[rewards]
length = { target = 2 }

[agent]
name = "ppo"
lr = 1e-2

[budget]
updates = 2

[evaluation]
prompts = 4
"""
TASK, TOKENIZER, AGENT = 'name = "echo"\nlength = 2', 'tokenizer = "alphabet:ab="', 'name = "ppo"\nlr = 1e-2'
REWARD, TEXTS, BUDGET = "length = { target = 2 }", "max_new_tokens = 4", "updates = 2"
GRID = "seeds = 1\n" + TOY.replace(f"[agent]\n{AGENT}\n\n", "").replace("\n[", "\n[experiment.").replace(
    'name = "toy"\n', ""
)
PROMPTS = (
    TOY.replace(TASK, 'name = "file"\npath = "PATH"')
    .replace("alphabet:ab=", "bytes")
    .replace("max_prompt_tokens = 4", "max_prompt_tokens = 16")
)


@dataclass(frozen=True)
class Bad:
    """`command` among `files` is refused with a line for each of `says`, in order, that has these words in it.

    `python` raises the same by the Python API. `lines`: of the file, one of which each must name.
    """

    what: str
    command: tuple[str, ...]
    says: tuple[str, ...]
    files: Mapping[str, Content | None] = field(default_factory=dict)
    python: Callable[[], object] | None = None
    lines: range | None = None

    def __str__(self) -> str:
        return self.what


BAD: list[Bad] = []


def experiment(
    what: str,
    old: str,
    new: str,
    *says: str,
    files: Mapping[str, Content | None] | None = None,
    lines: range | None = None,
) -> None:
    """The toy experiment with `new` in the place of `old`; what is said names a line of it, or its table's header.

    Where another table is to blame, one of `lines`.
    """
    assert old in TOY, old
    experiment_file(what, TOY.replace(old, new, 1), *says, files=files)
    start = TOY.index(old)
    first = TOY.count("\n", 0, max(TOY.rfind("\n[", 0, start) + 1, 0)) + 1
    BAD[-1] = replace(BAD[-1], lines=lines or range(first, TOY.count("\n", 0, start) + new.count("\n") + 2))


def experiment_file(
    what: str, content: Content | None, *says: str, files: Mapping[str, Content | None] | None = None
) -> None:
    all_files = {**(files or {}), "toy.toml": content}
    BAD.append(Bad(what, ("check", "toy.toml"), says, all_files, _from_toml))


def _from_toml() -> None:
    made = Experiment.load("toy.toml")
    workplace = build(made)
    workplace.check_prompts()
    _ = workplace.evaluation_rewards


def grid(what: str, table: str, *says: str, ahead: bool = False, word: str = "check") -> None:
    """A grid of the toy experiment and ppo, `table` at its end or its beginning; what is said names a line of it."""
    before, after = ("", f"\n{GRID}\n[agents.ppo]\n") if ahead else (f"{GRID}\n[agents.ppo]\n", "\n")
    first = before.count("\n") + 1
    lines = range(first, first + table.count("\n") + 1)
    BAD.append(Bad(f"grid: {what}", (word, "g.toml"), says, {"g.toml": before + table + after}, lines=lines))


def prompts(what: str, content: Content | None, *says: str, name: str = "a.jsonl") -> None:
    """A file of prompts, or what stands in its place."""
    files = {"toy.toml": PROMPTS.replace("PATH", name), name: content}
    BAD.append(Bad(f"prompts: {what}", ("check", "toy.toml"), says, files, lambda: File(name)))


def judgements(what: str, content: Content | None, *says: str, name: str = "a.jsonl") -> None:
    command = ("preferences", "import", "s.db", name)
    BAD.append(Bad(f"judgements: {what}", command, says, {name: content}, lambda: read_judgements(name)))


def responses(what: str, content: Content | None, *says: str, name: str = "a.jsonl") -> None:
    command = ("preferences", "responses", "s.db", name)
    BAD.append(Bad(f"responses: {what}", command, says, {name: content}, lambda: read_responses(Path(name), None)))


def store(what: str, content: Content | None, *says: str) -> None:
    def opened() -> None:
        with PreferenceStore("s.db"):
            pass

    BAD.append(Bad(f"store: {what}", ("preferences", "show", "s.db"), says, {"s.db": content}, opened))


def command(words: str, *says: str, **files: Content | None) -> None:
    """`rlhf-env WORDS` among the toy experiment, a folder, a text and a store without content."""
    there: dict[str, Content | None] = {"toy.toml": TOY, "folder/in it": "", "text": "x", "s.db": _empty_store}
    named = {name.replace("_DOT_", ".").replace("_IN_", "/"): content for name, content in files.items()}
    BAD.append(Bad(f"rlhf-env {words}", tuple(words.split()), says, {**there, **named}))


def _empty_store(path: Path) -> None:
    with PreferenceStore(path):
        pass


def _database(sql: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as made:
            made.executescript(sql)

    return make


def _link(to: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(to)


# ---------------------------------------------------------------- files of experiments

experiment_file("no TOML file", _link("nowhere"), "cannot read toy.toml: No such file or directory")
experiment_file("a folder for a TOML file", None, "cannot read toy.toml: Is a directory")
experiment_file("a link to itself", _link("toy.toml"), "cannot read toy.toml: Too many levels of symbolic links")
experiment_file("an endless TOML file", _link("/dev/zero"), "toy.toml is larger than 1,048,576 bytes")
experiment_file("an empty TOML file", "", '[policy] model "tiny" needs a tokenizer: tokenizer = "bytes"')
experiment_file("TOML that is not UTF-8", b'seed = 1\nname = "\xff"\n', "toy.toml, line 2: not UTF-8: byte 0xff")
experiment_file("TOML with NUL", b'name = "\x00"\n', "line 1: Illegal character '\\x00' (column 9)")
experiment_file(
    "a bracket not closed",
    TOY.replace("[budget]", "[budget"),
    "line 22: Expected ']' at the end of a table declaration (col",
)
experiment_file("a table twice", TOY + "[task]\n", "line 27: Cannot declare ('task',) twice (column 6)")
experiment_file("a key twice", "seed = 1\nseed = 2\n" + TOY, "line 2: Cannot overwrite a value (column")
experiment_file("brackets too deep", "a = " + "[" * 5000 + "]" * 5000, "line 1: brackets too deep to be read")
experiment_file("5,000 digits", "seed = " + "9" * 5000, "Exceeds the limit (4300 digits)")
experiment_file(
    "a date for a number", "seed = 2020-01-01\n" + TOY, "seed must be a whole number, got datetime.date(2020, 1, 1)"
)
experiment_file("an array of tables", TOY.replace("[task]", "[[task]]"), "task must be a table, got [{'name': 'echo'")
experiment_file("an unknown key", "sede = 3\n" + TOY, "no setting 'sede': did you mean 'seed'? Known:")
experiment("an unknown table", "[budget]", "[bugdet]", "no setting 'bugdet': did you mean 'budget'?")
experiment(
    "an unknown nested key", "num_envs", "num_env", "environment: no setting 'num_env': did you mean 'num_envs'?"
)
experiment(
    "a string for a table", 'name = "toy"\n\n[task]\n' + TASK, 'task = "echo"', "task must be a table, got 'echo'"
)
experiment("no name", '"toy"', '""', "name must be one or more printable characters, got ''")
experiment("a name with NUL", '"toy"', '"a\\u0000"', "name must be one or more printable characters, got 'a\\x00'")
for wrong, said in {
    '"one"': "seed must be a whole number, got 'one'",
    "true": "seed must be a whole number, got True",
    "1.0": "seed must be a whole number, got 1.0",
    "nan": "seed must be a whole number, got nan",
    "[1]": "seed must be a whole number, got [1]",
    "1_000_000_000_000_000_000_000": "seed must be from 0 to 1,099,511,627,775, got 1000000000000000000000",
    "-1": "seed must be from 0 to 1,099,511,627,775, got -1",
    "2_000_000_000_000": "seed must be from 0 to 1,099,511,627,775, got 2000000000000",
}.items():
    experiment_file(f"seed = {wrong}", f"seed = {wrong}\n{TOY}", f"toy.toml, line 1: {said}")
experiment_file("max_kl = -1", "max_kl = -1.0\n" + TOY, "toy.toml, line 1: max_kl must be above 0, got -1.0")
experiment_file("max_kl alone", "max_kl = 1.0\n" + TOY, "line 1: max_kl is measured by a KL penalty, and none is")
experiment_file(
    "patience alone", "patience = 3\n" + TOY, "toy.toml, line 1: patience = 3 counts evaluations on the way"
)
experiment_file("no such preferences", 'preferences = "no.db"\n' + TOY, "no.db: no such file of preferences")
BAD[-1] = replace(BAD[-1], python=None)  # read when a run begins

# ---------------------------------------------------------------- settings, each with its table

experiment(
    "temperature 0", "[policy]", "[policy.sampling]\ntemperature = 0\n[policy]", "temperature must be above 0, got 0"
)
experiment(
    "three of sampling",
    "[policy]",
    "[policy.sampling]\ntop_p = 2.0\ntop_k = -1\ntemperature = -1\n[policy]",
    "line 10, policy sampling: temperature must be above 0, got -1",
    "line 9, policy sampling: top_k must be at least 0, got -1",
    "line 8, policy sampling: top_p must be in (0, 1], got 2.0",
)
experiment(
    "top_p for ppo",
    "[policy]",
    "[policy.sampling]\ntop_p = 0.9\n[policy]",
    "ppo learns by probability ratios",
    lines=range(20, 22),
)
experiment(
    "dtype", "[policy]", '[policy]\ndtype = "float16"', "policy: dtype must be one of 'float32', 'float64', got 'fl"
)
experiment("no tokenizer", TOKENIZER, "", '[policy] model "tiny" needs a tokenizer')
experiment("an empty tokenizer", TOKENIZER, 'tokenizer = ""', "policy: tokenizer must have one or more characters")
experiment("an empty model", "[policy]", '[policy]\nmodel = ""', "policy: model must have one or more characters")
experiment("a symbol twice", "alphabet:ab=", "alphabet:aab", "one or more different symbols, got 'aab'")
experiment("no symbols", "alphabet:ab=", "alphabet:", "one or more different symbols, got ''")
experiment("no such tokenizer", "alphabet:ab=", "no/such", "tokenizer 'no/such' is not 'bytes', 'alphabet:...' or a")
experiment("no tokenizer in a folder", "alphabet:ab=", ".", ". has no tokenizer.json: name a folder that holds")
experiment("a damaged tokenizer", "alphabet:ab=", ".", "is not a tokenizer file", files={"tokenizer.json": "{"})
experiment("no such model folder", "[policy]", '[policy]\nmodel = "./no"', "model './no': there is no such folder")
experiment("no model in a folder", "[policy]", '[policy]\nmodel = "."', "not a model folder, config.json is missing")
experiment(
    "weights in pickle",
    "[policy]",
    '[policy]\nmodel = "."',
    "(pickled weights are not read: save them as safetens",
    files={"config.json": "{}", "pytorch_model.bin": "x"},
)
experiment("no such model", TOKENIZER, 'model = "no/such"', "'no/such' is not")
experiment(
    "another vocabulary", TOKENIZER, 'tokenizer = "bytes"\nmodel = "rlhf-env/chitchat"', "they do not belong toge"
)
experiment(
    "many prompts of a table", "[policy]", '[policy]\nmodel = "table"', '"table" answers one prompt, and the task'
)
experiment(
    "max_new_tokens = -5",
    TEXTS,
    "max_new_tokens = -5",
    "environment: max_new_tokens must be from 1 to 1,048,576, got -5",
)
experiment(
    "too large a length", TEXTS, "max_new_tokens = 2_000_000", "max_new_tokens must be from 1 to 1,048,576, got 2"
)
experiment(
    "too many texts", "num_envs = 8", "num_envs = 4_000_000_000_000", "num_envs must be from 1 to 1,048,576, got 4"
)
experiment("too many tokens", TEXTS, "max_new_tokens = 1_000_000\nnum_envs = 1_000_000\n#", "Cannot overwrite a value")
experiment("a view", TEXTS, f'{TEXTS}\nview = "words"', "environment: view must be one of 'response', 'token', got")
experiment(
    "an action_length", TEXTS, f"{TEXTS}\naction_length = 9", "action_length must be at most 4 (max_new_tokens), got"
)
experiment(
    "three of the environment",
    TEXTS,
    'max_new_tokens = "many"\nnum_env = 3',
    "environment: max_new_tokens must be a whole number, got 'many'",
    "environment: no setting 'num_env'",
)
experiment("a budget of nothing", BUDGET, "", "budget: a budget needs at least one limit: updates, episodes")
experiment(
    "three budgets",
    BUDGET,
    "updates = -2\nepisodes = 0\nseconds = -0.0",
    "line 23, budget: updates must be at least 1, got -2",
    "line 24, budget: episodes must be at least 1, got 0",
    "line 25, budget: seconds must be above 0, got -0.0",
)
experiment("half a budget", BUDGET, "updates = 2.5", "budget: updates must be a whole number, got 2.5")
experiment("evaluation prompts", "prompts = 4", "prompts = 0", "evaluation: prompts must be from 1 to 1,048,576, got 0")

# ---------------------------------------------------------------- plugins: names and settings

experiment("no task name", TASK, "", "a task table needs a name, got {}")
experiment("a task by number", TASK, "name = 3", "a task table needs a name, got {'name': 3}")
experiment("a task by path", '"echo"', '"os:system"', "unknown task 'os:system'")
experiment(
    "three unknown plugins",
    f"[rewards]\n{REWARD}\n\n[agent]\n{AGENT}",
    '[rewards]\nlenght = 1.0\n\n[agent]\nname = "pppo"',
    "unknown reward 'lenght': did you mean 'length'?",
    "unknown agent 'pppo': did you mean 'ppo'?",
)
experiment("a task's key", "length = 2\n", "lenght = 2\n", "task 'echo': no setting 'lenght': did you mean 'length'?")
for wrong in ('"x"', "true", "2.0", "nan", "[]", "{}"):
    told = "task 'echo': length must be a whole number, got "
    experiment(f"length = {wrong}", "length = 2\n", f"length = {wrong}\n", told)
experiment("a length of -1", "length = 2\n", "length = -1\n", "task 'echo': length must be at least 1, got -1")
experiment(
    "a prompt outside the alphabet",
    '"alphabet:ab="\n',
    '"alphabet:ab"\n',
    *["outside the alphabet 'ab': '='"] * 4,
    lines=range(3, 4),
)
experiment(
    "prompts longer than the context",
    "max_prompt_tokens = 4",
    "max_prompt_tokens = 2",
    *["the environment takes 2"] * 4,
    lines=range(3, 4),
)
for value, said in {
    "[]": "task 'prompts': prompts must have one or more entries, got []",
    '"abc"': "task 'prompts': prompts must be a list, each a string, got 'abc'",
    "[1]": "task 'prompts': prompts[0] must be a string, got 1",
    '[""]': "prompt 'prompts/0' has no token: the first response token needs one before it",
}.items():
    experiment(f"prompts = {value}", TASK, f'name = "prompts"\nprompts = {value}', f"{said}")
experiment("no rewards", REWARD, "", "a reward mix needs at least one part")
for value in ('"abc"', "true", "[1]"):
    experiment(f"a reward = {value}", REWARD, f"length = {value}", "length: a weight or a table of settings is needed")
experiment("a reward by number", REWARD, "x = { plugin = 3 }", "reward 'x': plugin must be a string, got 3")
experiment("a reward by path", REWARD, 'x = { plugin = "os:system" }', "unknown reward 'os:system'. Known:")
experiment("a reward's key", REWARD, "length = { taget = 2 }", "no setting 'taget': did you mean 'target'?")
experiment("a reward without target", REWARD, "length = {}", "reward 'length': the setting 'target' is required")
for value in ('"two"', "nan", "2.5", "[2]", "true"):
    told = "reward 'length': target must be a whole number, got "
    experiment(f"target = {value}", REWARD, f"length = {{ target = {value} }}", told)
experiment("target = -2", REWARD, "length = { target = -2 }", "reward 'length': target must be at least 1, got -2")
for value in ("nan", "inf", '"x"', "true", "[]"):
    weighted = f"length = {{ weight = {value}, target = 2 }}"
    experiment(f"weight = {value}", REWARD, weighted, "reward 'length': weight must be a finite number, got ")
experiment(
    "a gold reward", "prompts = 4", "prompts = 4\nrewards = { lenght = 1.0 }", "unknown reward 'lenght': did you"
)
experiment("no agent", AGENT, "", "[agent] needs a name")
experiment("an agent by number", AGENT, "name = 1", "[agent] needs a name")
experiment("an agent by path", AGENT, 'name = "os:system"', "unknown agent 'os:system'. Known:")
experiment(
    "three of an agent",
    "lr = 1e-2",
    'lr = -1\nclip = "x"\nganma = 1',
    "line 21: [agent] ppo: clip must be a finite number, got 'x'",
    "line 22: [agent] ppo: no setting 'ganma': did you mean 'gamma'?",
    "line 20: [agent] ppo optimization: lr must be above 0, got -1",
)
for value, said in {
    '"abc"': "lr must be a finite number, got 'abc'",
    "nan": "lr must be a finite number, got nan",
}.items():
    experiment(f"lr = {value}", "lr = 1e-2", f"lr = {value}", said)
for size in (-1, 0, 1):
    experiment(f"a group of {size}", AGENT, f'name = "grpo"\ngroup_size = {size}', "[agent] grpo: group_size ")
experiment("a group of 3", AGENT, 'name = "rloo"\ngroup_size = 3', "group_size 3 does not divide the batch of 8 rows")
experiment("nobody wrapped", AGENT, 'name = "curriculum"\nlevels = [1]', "curriculum wraps another agent: agent = {")
experiment("a wrapped number", AGENT, 'name = "curriculum"\nlevels = [1]\nagent = 3', "curriculum: agent needs a name")

for value in ("inf", "nan", "-inf", '"x"', "true"):
    experiment(f"clip = {value}", "lr = 1e-2", f"clip = {value}", "[agent] ppo: clip must be a finite number, got ")
experiment("inf for a limit", BUDGET, "seconds = inf", "budget: seconds must be a finite number, got inf")
experiment(
    "inf for a temperature", TASK, f"{TASK}\n[policy.sampling]\ntemperature = inf", "sampling: temperature must be a f"
)
experiment_file(
    "inf for a patience's delta", "min_delta = inf\n" + TOY, "line 1: min_delta must be a finite number, got inf"
)
experiment(
    "a string of many lines before it",
    TASK,
    f'{TASK}\nalphabet = """\n[agent]\nlr = 3\n"""\nlenght = 2',
    "task 'echo': no setting 'lenght': did you mean 'length'?",
)
experiment("a task within", TASK, 'name = "validation"\ntask = { name = "echo", lenght = 2 }', "no setting 'lenght'")
experiment(
    "a list of tasks", TASK, 'name = "mixture"\ntasks = [\n  "echo",\n  { name = "eco" },\n]', "unknown task 'eco'"
)
experiment(
    "tasks by number",
    TASK,
    'name = "mixture"\ntasks = 3',
    "tasks must be a list (each a string or a table) or a table (",
)
experiment(
    "weights of nan",
    TASK,
    'name = "mixture"\ntasks = ["echo"]\nweights = [nan]',
    "weights must be a list (each a finit",
)
experiment(
    "an agent within an agent",
    AGENT,
    'name = "curriculum"\nlevels = [1]\n[agent.agent]\nname = "ppo"\nclip = "x"',
    "line 23: [agent] curriculum: agent ppo: clip must be a finite number, got",
)

# ---------------------------------------------------------------- grids

for table, told in {
    "tasks = 3": "tasks must be a table, each a table, got 3",
    "seeds_ = 3": "no setting 'seeds_': did you mean 'seeds'?",
    'optima = { echo = "x" }': "optima.echo must be a finite number, got 'x'",
    "optima = { ecco = 1.0 }": "optima.ecco: no task of this name, only echo",
    "tuning = 3": "tuning must be a table, got 3",
    "tuning = { budget = nan }": "tuning: budget must be a finite number, got nan",
    "tuning = { seeds = 0 }": "tuning: seeds must be at least 1, got 0",
    "title = 3": "title must be a string, got 3",
    "reward_model = 3": "reward_model must be a table, got 3",
    "reward_model = { promts = 9 }": "[reward_model]: no setting 'promts': did you mean 'prompts'?",
    "reward_model = { prompts = 0 }": "[reward_model]: prompts must be at least 1, got 0",
    "reward_model = { temperatures = [1.0, nan] }": "[reward_model]: temperatures[1] must be a finite number, got nan",
    "reward_model = { temperatures = [1.0] }": "[reward_model]: temperatures must have at least 2 entries, got [1.0]",
    "reward_model = { held_out_pairs = 2.0 }": "[reward_model]: held_out_pairs must be in (0, 1), got 2.0",
    "reward_model = { learning_rate = inf }": "[reward_model] reward_model: learning_rate must be a finite n",
}.items():
    grid(table, table, told, ahead=True)
for table, told in {
    '[agents.x]\nname = "nope"': "unknown agent 'nope'",
    "[agents.x]\nname = 3": "[agent] needs a name",
    '[agents."a/b"]\nname = "ppo"': "'a/b' is no name for a file",
    '[agents.y]\nname = "ppo"\nlr = -1': "[agent] ppo optimization: lr must be above 0, got -1",
    '[tasks."../x"]': "'../x' is no name for a file",
    "[tasks]\na = 3": "tasks.a must be a table, got 3",
    "[tasks.a]\nenvironment = 3": "task a: environment must be a table, got 3",
    '[tasks.a]\ntask = "echo"': "task a: task must be a table, got 'echo'",
    "[tasks.a.environment]\nnum_envs = 0": "environment: num_envs must be from 1 to 1,048,576, got 0",
    "[tasks.a.agents]\nppo = 3": "tasks.a.agents.ppo must be a table, got 3",
    "[tasks.a.agents.nope]\nlr = 1": "tasks.a.agents.nope: no row of this name, only ppo",
    '[tasks.a.agents.ppo]\nlr = "x"': "[agent] ppo optimization: lr must be a finite number, got 'x'",
    '[tasks.a.task]\nname = "echo"\nlenght = 3': "task 'echo': no setting 'lenght'",
    "[tasks.a.rewards]\nlenght = 3": "unknown reward 'lenght': did you mean 'length'?",
}.items():
    grid(table, table, told)
    grid(f"{table}, bench", table, told, word="bench")

# ---------------------------------------------------------------- prompts, judgements, responses, stores

prompts("nothing there", _link("nowhere"), "cannot read a.jsonl: No such file or directory")
prompts("a folder", None, "cannot read a.jsonl: Is a directory")
prompts("an empty file", "", "a.jsonl: no prompts: the file is empty")
prompts("blank lines", "\n\n", "a.jsonl: no prompts: the file is empty")
prompts("another ending", '{"prompt": "a"}', "a.txt: the name of a file of prompts ends in one of .jsonl", name="a.txt")
prompts(
    "ten kinds of bad line",
    '{"text": "a"}\n{"prompt": "fine"}\n[1]\n{"prompt": null}\n{"prompt": 3}\n{"prompt": " "}\n{"prompt": []}\n'
    '{"messages": [{"role": "user"}]}\n{"prompt": "a", "prompt": "b"}\n{"prompt": "a", "x": NaN}\n{bad\n',
    "a.jsonl, line 1: no field 'prompt' (or 'messages'), it has 'text'",
    "a.jsonl, line 3: expected an object",
    "a.jsonl, line 4, field 'prompt': expected a text, got null",
    "a.jsonl, line 5, field 'prompt': expected a text, got int",
    "a.jsonl, line 6, field 'prompt': it has no text",
    "a.jsonl, line 7, field 'prompt': no message asks for an answer",
    "a.jsonl, line 8, field 'messages': message 1, 'content': expected a text, got null",
    "a.jsonl, line 9: this JSON cannot be read: an object has the field 'prompt' more than once",
    "a.jsonl, line 10: this JSON cannot be read: NaN is not a number",
    "a.jsonl, line 11: not JSON: ",
)
prompts("twenty and more", "{}\n" * 30, *["no field 'prompt'"] * 20, "and 1 more")
prompts("not UTF-8", b'{"prompt": "\xff"}\n', "a.jsonl, line 1: not UTF-8: byte 0xff at position 13")
prompts("a line of 4 MiB", '{"prompt": "' + "a" * 2**22 + '"}', "a.jsonl, line 1: 4,194,318 bytes, a line may have")
prompts(
    "brackets too deep", '{"prompt": ' + "[" * 10**5 + "]" * 10**5 + "}", "line 1: this JSON cannot be read: maximum"
)
prompts(
    "csv: no column", "a,b\n1,2\n", "a.csv, line 2: no field 'prompt' (or 'messages'), it has 'a', 'b'", name="a.csv"
)
prompts("csv: a column twice", "prompt,prompt\n1,2\n", "more than one column is named 'prompt'", name="a.csv")
prompts("csv: a field missing", "prompt,b\n1\n", "a.csv, line 2: 1 fields, the header has 2", name="a.csv")
prompts("csv: a quote not closed", 'prompt,b\n"1,2\n', "a.csv, line 2: not CSV", name="a.csv")
judgements("nothing there", _link("nowhere"), "cannot read a.jsonl: No such file or directory")
judgements("chosen equal to rejected", '{"prompt": "a", "chosen": "b", "rejected": "b"}', "a.jsonl:1: chosen equal to")
judgements(
    "five kinds of bad line",
    '{"prompt": "a", "chosen": null, "rejected": "b"}\n{"prompt": "a"}\n{"prompt": 3, "chosen": "x", "rejected": "y"}\n'
    '{"prompt": "a", "prompt": "b", "chosen": "x", "rejected": "y"}\nxx\n',
    "a.jsonl:1: chosen: a preference without a winner",
    "a.jsonl:2: chosen: missing",
    "a.jsonl:2: rejected: missing",
    "a.jsonl:3: prompt: expected text, got 3",
    "a.jsonl:4: not JSON: an object has the field 'prompt' more than once",
    "a.jsonl:5: not JSON",
)
judgements("another ending", "x", "a.txt: judgements come as .jsonl, .ndjson, .csv, .json, or a folder", name="a.txt")
judgements("another JSON", '{"a": 1}', "a.json: expected a list of Argilla records or Label Studio", name="a.json")
judgements("a line of 4 MiB", " " * 2**22 + "{}", "a.jsonl:1: 4,194,306 bytes, a line may have at most 4,194,304")
responses(
    "four kinds of bad line",
    '{"prompt": "a"}\n{"response": "b"}\n{"prompt": 1, "response": "b"}\nx\n',
    "a.jsonl:1: response: missing",
    "a.jsonl:2: prompt: missing",
    "a.jsonl:3: prompt: expected text",
    "a.jsonl:4: not JSON",
)
store("corrupt", b"SQLite format 3\0" + b"\x07" * 4000, "preference store s.db: file is not a database")
store("a text", "hello", "preference store s.db: file is not a database")
store("a text of one byte", "x", "preference store s.db: file is not a database")
store("another database", _database("create table x (a)"), "s.db is a database, but no preference store")

# ---------------------------------------------------------------- commands

command("trian toy.toml", "No such command 'trian'. Did you mean 'train'?")
command("lab exat", "No such command 'exat'. Did you mean 'exact'?")
command("plugins x", "unknown plugin 'x'")
command("plugins reward:pppo", "unknown plugin 'reward:pppo': did you mean 'reward:")
command("plugins ppo x", "Got unexpected extra argument(s) (x)")
command("schema experimnt", "Invalid value for 'kind'")
command("train", "Missing argument 'file'.")
command("train no.toml", "cannot read no.toml: No such file or directory")
command("train toy.toml --sed 1", "No such option: --sed (Possible options: --seed)")
command("train toy.toml --seed one", "Invalid value for '--seed'")
command("train toy.toml --seed 1.5", "Invalid value for '--seed'")
command("train toy.toml --seed -1", "--seed -1: seed must be from 0 to 1,099,511,627,775, got -1")
command("train toy.toml --seed 99999999999999999", "--seed 99999999999999999: seed must be from 0 to 1,099,511")
command("train toy.toml --threads 0", "Invalid value for '--threads'")
command("train toy.toml --agent poo", "--agent poo: unknown agent 'poo': did you mean 'ppo'? Known:")
command("train toy.toml --out toy.toml", "cannot write in the folder toy.toml")
command("train out.toml", "'../../x-ppo-seed0' would lie outside of runs/", out_DOT_toml=TOY.replace("toy", "../../x"))
command("train abs.toml", "'/x-ppo-seed0' would lie outside of runs/", abs_DOT_toml=TOY.replace('"toy"', '"/x"'))
command(
    "train toy.toml --out r --resume",
    "r/experiment.toml cannot be read, so nothing says what ran here",
    r_IN_experiment_DOT_toml="[x",
)
command("train toy.toml --out r", "r already holds a run: choose another folder", r_IN_experiment_DOT_toml=TOY)
command("bench no.toml", "cannot read no.toml: No such file or directory")
command("bench out.toml", "'../x' is no name for a file", out_DOT_toml='name = "../x"\n[agents.ppo]\n')
command(
    "bench out.toml",
    "out.toml, line 1: agents must be a table, each a table, got 3",
    "out.toml, line 2: no setting 'naem': did you mean 'name'?",
    out_DOT_toml="agents = 3\nnaem = 1\n",
)
command("report folder", "folder: no results/*.json in it; is this the folder of a benchmark?")
command("report text", "text: no results/*.json in it")
command("report r", "r/results/a--b--seed-0.json: not a JSON file", **{"r_IN_results_IN_a--b--seed-0_DOT_json": "{"})
command("evaluate folder", "folder holds no run: it has no experiment.toml")
command("evaluate text", "text holds no run: it has no experiment.toml")
command("scorecard folder s.db --held-out x", "--held-out x: a share such as 0.2 or 1/6 is needed")
command("annotate --store no.db", "preference store no.db: there is no such file")
command("annotate --store s.db --port 70000", "Invalid value for '--port'")
command("annotate --store s.db --lease nan", "lease must be a finite number, got nan")
command("preferences show folder", "preference store folder: there is no such file")
command("preferences ask s.db --kind raking", "unknown kind of judgement 'raking': did you mean 'ranking'?")
command("preferences ask s.db --kind criteria --criteria a,b,a", "criteria: 'a' stands there twice")
command("preferences ask s.db --kind criteria", "criteria: names go with the kind 'criteria'")
command("preferences ask s.db --criteria a", "criteria: names go with the kind 'criteria'")
command("preferences ask s.db --overlap 0", "Invalid value for '--overlap'")
command("preferences export s.db o --format xml", "format: 'xml' is none of jsonl, csv, trl")
command("preferences simulate s.db text", "text, line 1: Expected '=' after a key")
command("preferences evaluate s.db text", "two or more sources are needed, each with a name of its own: say NAME=PATH")
command("check reward:lenght", "unknown reward 'lenght': did you mean 'length'?")
command("check task:cuont", "unknown task 'cuont': did you mean 'count'?")
command("check agent:grop", "unknown agent 'grop': did you mean 'grpo'?")
command("check task:count name=echo", "name=echo: task:count already names the task")
command("check agent:ppo name=grpo", "name=grpo: agent:ppo already names the agent")
command("check reward:length plugin=http", "plugin=http: reward:length already names the reward")
command("check reward:length target", "'target' is not of the form KEY=VALUE")
command("check reward:length target=3 target=4", "'target=4': 'target' is set twice")
command("check reward:length tagret=3", "no setting 'tagret': did you mean 'target'?")
command("check toy.toml a=1", "a=1: settings are for reward:, task: and agent:NAME; a file has its own")
command("check \x1b[31mx\u202e.toml", "rlhf-env: cannot read x.toml: No such file or directory")
SIMULATED = '[gold]\nname = "length"\ntarget = 3\n[annotator]\nname = "simulated"\n'
for old, new, told in (
    ('"length"', '["length"]', "line 1: expected a table [gold] with a name"),
    ("[gold]", "[[gold]]", "line 1: expected a table [gold] with a name"),
    ("[annotator]", "[annotater]", "expected a table [annotator] with a name"),
    ("target = 3", 'target = "x"', "line 3: reward 'length': target must be a whole number, got 'x'"),
    ("target = 3", "target = 3\nweight = nan", "line 4: reward 'length': weight must be a finite number, got nan"),
    ('"length"', '"lenght"', "line 1: unknown reward 'lenght': did you mean 'length'?"),
    ('"length"\ntarget = 3', '"kl"', "line 1: reward 'kl': the setting 'reference' is required"),
    ('"simulated"', '"simulatd"', "line 5: unknown annotator 'simulatd': did you mean 'simulated'?"),
    (
        '"simulated"',
        '"simulated"\ntemperature = inf',
        "line 6: annotator 'simulated': temperature must be a finite num",
    ),
    (
        '"simulated"',
        '"simulated"\nthresholds = [3, 2, 1, 0]',
        "line 6: annotator 'simulated': thresholds must be 4 rising numbers, got [3",
    ),
):
    command("preferences simulate s.db a.toml", told, a_DOT_toml=SIMULATED.replace(old, new))
command("preferences simulate s.db no.toml", "cannot read no.toml: No such file or directory")
command("preferences evaluate s.db one=text", "two or more sources are needed, each with a name of its own")
command("preferences verify s.db --model folder", "folder is not a reward model: there is no reward_model.json")
command("preferences verify no.db --model folder", "preference store no.db: there is no such file")
command(
    "preferences import s.db no.jsonl text", "cannot read no.jsonl: No such file", "text: judgements come as .jsonl"
)
command(
    "preferences import text a.jsonl",
    "preference store text: file is not a database",
    a_DOT_jsonl='{"prompt":"a","chosen":"b","rejected":"c"}',
)
command("preferences tournament no.db", "preference store no.db: there is no such file")
command("annotate --store s.db --lease inf", "lease must be a finite number, got inf")
command(
    "annotate --store s.db --host 0.0.0.0 --remote",
    "names must say how the page is reached, 0.0.0.0 is no name: give one (--name)",
)
command("annotate --store s.db --host 0.0.0.0 --remote --name a/b", "names must be names of hosts, got 'a/b'")
command(
    "annotate --store s.db --host 256.0.0.1", "host 256.0.0.1 is reached by other machines: say --remote if they may"
)
for share in ("nan", "1/0", "1e400", "1e-99999999", "-1", "2", "inf/inf"):
    command(
        f"scorecard folder a.jsonl --held-out {share}", "", a_DOT_jsonl='{"prompt":"a","chosen":"b","rejected":"c"}'
    )
command("evaluate r", "r has no checkpoint yet: train further", r_IN_experiment_DOT_toml=TOY)
command("evaluate r", "r/experiment.toml, line 1: Expected ']'", r_IN_experiment_DOT_toml="[x")
command(
    "report r",
    "r/results/a--b--seed-0.json: must hold a JSON object",
    **{"r_IN_results_IN_a--b--seed-0_DOT_json": "[]"},
)
command("report r", "NaN is not JSON (write null for what", **{"r_IN_results_IN_a--b--seed-0_DOT_json": "NaN"})
command("train toy.toml --threads 99999999999999999999", "Invalid value for '--threads'")
command(
    "train toy.toml --agent curriculum", "--agent curriculum: [agent] curriculum: the setting 'levels'", "wraps another"
)
command("lab exact --beta inf", "beta must be positive, got inf")
command("lab exact --symbols 27", "Invalid value for '--symbols'")
command("lab labels --quick --out text", "cannot work in text: File exists: name another place")
command("lab labels --quick --out text/x", "cannot work in text/x: Not a directory: name another place")
command("lab labels --seeds 0", "Invalid value for '--seeds'")
command("lab overoptimization --jobs 0", "Invalid value for '--jobs'")
command("lab regularisation --seeds 0", "Invalid value for '--seeds'")
command("lab agents --seeds 0", "Invalid value for '--seeds'")
command("pipeline reward-model --prompts 9", "Invalid value for '--prompts'")
command("pipeline reward-model --epochs -1", "Invalid value for '--epochs'")
command("pipeline base-model --jobs 0", "Invalid value for '--jobs'")
command("demo --seeds 0", "Invalid value for '--seeds'")
command("check agent:ppo clip=inf", "[agent] ppo: clip must be a finite number, got inf")
command("check reward:length target=3 weight=nan", "reward 'length': weight must be a finite number, got nan")
command("check reward:ensemble model=folder penalty=inf", "penalty must be a finite number, got inf")
command("lab exact --beta nan", "beta must be positive, got nan")
command("lab exact --symbols 26 --longest 9", "more than can be summed over in reasonable time")


# ---------------------------------------------------------------- going through them


def wrong_with(bad: Bad, folder: Path) -> str:
    """ "" where it is refused as it must be; else what is not so. `folder` is empty, and the working directory."""
    for name, content in bad.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif callable(content):
            content(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    status, lines = _said(bad.command)
    if status != 2:
        return f"exit status {status}, said {lines}"
    if len(lines) != len(bad.says) or any(said not in line for line, said in zip(lines, bad.says, strict=False)):
        return f"said {lines}, expected {list(bad.says)}"
    if any(not line.startswith("rlhf-env: ") for line in lines):
        return f"not a line of ours among {lines}"
    place = rf"^rlhf-env: {re.escape(bad.command[-1])}, line (\d+)[:,]"
    named = [int(number) for number in re.findall(place, "\n".join(lines), re.MULTILINE)]
    if bad.lines is not None and (len(named) < len(lines) or not set(named) <= set(bad.lines)):
        return f"said {lines}, and not each names one of the lines {bad.lines}"
    return "" if bad.python is None else _wrong_with_python(bad.python, lines)


def _wrong_with_python(call: Callable[[], object], lines: list[str]) -> str:
    try:
        call()
    except ConfigError as error:
        missing = [
            problem for problem in error.problems[:20] if not any(for_terminal(problem) in line for line in lines)
        ]
        return f"by Python it says {missing}, and the command {lines}" if missing else ""
    except Exception as error:
        return f"by Python {type(error).__name__}: {error}"
    return "Python takes it"


def _said(words: tuple[str, ...]) -> tuple[object, list[str]]:
    """Exit status and the lines on stderr of `rlhf-env WORDS`, run in this process."""
    errors, before = io.StringIO(), sys.argv
    sys.argv = ["rlhf-env", *words]
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            cli.main()
    except SystemExit as end:
        return end.code, errors.getvalue().splitlines()
    except Exception as error:
        return f"{type(error).__name__}: {error}", []
    finally:
        sys.argv = before
    return 0, []


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    selected = [bad for bad in BAD if all(word in bad.what for word in sys.argv[1:])]
    taken = 0
    for one in selected:
        with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
            why = wrong_with(one, Path(place))
        taken += bool(why)
        if why:
            print(f"NOT REFUSED {one}: {why}")
    print(f"{len(selected) - taken} of {len(selected)} refused")
    sys.exit(bool(taken))
