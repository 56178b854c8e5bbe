"""Write the folder of an experiment out of templates: experiment.toml, rewards.py, grid.toml, a README, prompts.

What stands in the file fits what was named: prompts are read as the task `file` reads them and measured in the model's
tokens, a large model is trained by adapters, and an agent that this experiment cannot feed is refused.
"""

from __future__ import annotations

import json
import keyword
import os
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

import tomli_w

from rlhf_env.errors import ConfigError
from rlhf_env.learning.making_agents import agent_factory, agent_trains, imitates
from rlhf_env.new_experiment.prompts import AskedPrompts, FittingLengths, relative_from
from rlhf_env.new_experiment.writer import Writer, look_at_model
from rlhf_env.plugins import host
from rlhf_env.settings import hints_of
from rlhf_env.types import JsonObject
from rlhf_env.whole_files import folder_written

_TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"\w[\w.]*(-[\w.]+)*", re.ASCII)  # as a grid wants it, whose runs are files
_LONGEST = 60
_RUN = "runs/first"
_SHIPPED = "rlhf-env/chitchat"
_GROUP = 8  # answers to a prompt
_MEASURED = 64  # answers of an evaluation
_OTHERS = ("ppo", "rloo", "grpo")  # whom the grid compares with
_CONTROLS = ("best_of_n", "reference")
_COMMANDS = (
    ("rlhf-env check experiment.toml", "is everything right? It changes nothing"),
    (f"rlhf-env train experiment.toml --out {_RUN}", "Ctrl-C saves it, --resume continues it"),
    (f"rlhf-env watch {_RUN}", "its curves and texts in the browser, also while it trains"),
    (f"rlhf-env evaluate {_RUN}", "against the model that it began with"),
    (f"rlhf-env chat {_RUN} --compare", "talk to it, the first model's answers beside"),
    (f"rlhf-env export {_RUN} model", "a folder for transformers, TRL, vLLM"),
    ("rlhf-env bench grid.toml", "other agents at the same budget, three seeds each"),
)


@dataclass(frozen=True)
class NewExperiment:
    """An experiment that has been written."""

    folder: Path
    notes: tuple[str, ...] = ()
    """What its author should know of the prompts and the model."""

    @property
    def rewards(self) -> Path:
        """The file to change first."""
        return self.folder / "rewards.py"

    def commands(self) -> list[str]:
        """What to do with it, each with what it is for, from where the folder was put."""
        return _with_reasons([(f"cd {shlex.quote(str(self.folder))}", "the rest is said in this folder"), *_COMMANDS])


def write_experiment(
    name: str,
    where: str | Path = ".",
    *,
    model: str | None = None,
    prompts: str | Path | None = None,
    agent: str = "grpo",
) -> NewExperiment:
    """Write the folder `name` in `where`.

    Args:
        name: the folder's name, the experiment's, and that of its grid.
        where: the folder to put it in.
        model: a folder, that of a run, a shipped model or a hub name; left out: the shipped model of small talk.
        prompts: a file or a data set as the task `file` reads it; left out: a few prompts are written.
        agent: one that learns from rewards of what it writes.

    Raises ConfigError or DataError, and writes nothing, where a name cannot be used, the folder is there already, the
    agent needs something else, or model and prompts cannot be read; DiskRefused where it cannot be written.
    """
    _require_name(name)
    folder = Path(where) / name
    if os.path.lexists(folder):
        raise ConfigError(f"{folder} is there already, and stays as it is: choose another name, or another folder")
    _require_trainable(agent)
    writer = look_at_model(model or _SHIPPED)
    with folder_written(folder) as half:
        if prompts is None:
            (half / "prompts.jsonl").write_text(_first_prompts(writer.wants_messages), encoding="utf-8")
        asked = AskedPrompts(str(half / "prompts.jsonl" if prompts is None else prompts))
        path = "prompts.jsonl" if prompts is None else relative_from(folder, str(prompts))
        usual = 64 if writer.is_large else 24
        lengths = FittingLengths.of(asked, writer.tokenizer, usual=usual, context=writer.context)
        values = _values(name, folder, writer, asked, path, lengths, agent)
        experiment = _filled("experiment.toml", values)
        (half / "experiment.toml").write_text(experiment, encoding="utf-8")
        grid = _filled("grid.toml", values) + _grid_of(experiment, writer, agent)
        (half / "grid.toml").write_text(grid, encoding="utf-8")
        (half / "rewards.py").write_text(_filled(f"{values['reward']}.py", values), encoding="utf-8")
        (half / "README.md").write_text(_filled("README.md", values), encoding="utf-8")
    return NewExperiment(folder, tuple(_notes(writer, asked, lengths)))


def _require_name(name: str) -> None:
    if _NAME.fullmatch(name) and len(name) <= _LONGEST:
        return
    near = re.sub(r"[^\w.]+", "-", name, flags=re.ASCII).strip("-.")[:_LONGEST].rstrip("-")
    guess = f": did you mean {near!r}?" if _NAME.fullmatch(near) and near != name else ""
    raise ConfigError(
        f"{name!r} cannot name an experiment, its folder and its runs: letters, digits, '_', '.' and single '-', at "
        f"most {_LONGEST}{guess}"
    )


def _require_trainable(agent: str) -> None:
    """Raise ConfigError, with what it needs, for an agent that does not learn from rewards of its own texts alone."""
    host().load("agent", agent)
    if not agent_trains({"name": agent}):
        raise ConfigError(
            f"--agent {agent}: it is a control and does not train: take one that does, and compare afterwards with "
            f"`rlhf-env train experiment.toml --agent {agent}`"
        )
    needs = []
    if imitates({"name": agent}):
        needs.append("it imitates given answers, a column 'completion' of the prompts, and is paid no reward")
    try:
        agent_factory({"name": agent})
    except ConfigError as error:
        needs += [problem.removeprefix(f"[agent] {agent}").lstrip(": ") for problem in error.problems]
    if needs:
        page = f"`rlhf-env plugins agent:{agent}` says how it is set"
        raise ConfigError(f"--agent {agent}: {'; '.join(needs)}: begin with another one (grpo, ppo, dpo, ...); {page}")


def _first_prompts(as_messages: bool) -> str:
    """The prompts to begin with; as messages for a model that has a chat template."""
    text = (_TEMPLATES / "prompts.jsonl.template").read_text(encoding="utf-8")
    if not as_messages:
        return text
    rows = []
    for row in map(json.loads, text.splitlines()):
        rows.append({"messages": [{"role": "user", "content": row.pop("prompt")}], **row})
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def _values(
    name: str, folder: Path, writer: Writer, asked: AskedPrompts, path: str, lengths: FittingLengths, agent: str
) -> dict[str, str]:
    """What the templates are filled with."""
    model = relative_from(folder, writer.model) if writer.is_folder else writer.model
    fraction = asked.held_out_fraction
    measured = max(2, min(_MEASURED, asked.held_out(fraction)))
    column = asked.answers
    is_name = column is not None and column.isidentifier() and not keyword.iskeyword(column)
    return {
        "name": name,
        "quoted_name": _quoted(name),
        "model": model,
        "quoted_model": _quoted(model),
        "lora": _lora(writer),
        "path": path,
        "quoted_path": _quoted(path),
        "asked": "messages" if asked.are_conversations else "prompt",
        "fraction": f"{fraction}",
        "num_envs": f"{32 if writer.is_large else 64}",
        "new": f"{lengths.new}",
        "prompt": f"{lengths.prompt}",
        "over_long": 'over_long = "cut left" # the beginning of longer prompts\n' if lengths.too_long else "",
        "reward": "takes_up" if column is None else "overlap",
        "column": "" if column is None else column,
        "quoted_column": _quoted(column or ""),
        "parameter": f" {column}," if is_name else "",
        "wanted": f"{column}" if is_name else f"columns[{_quoted(column or '')}]",
        "given": "" if column is None else f" --column {shlex.quote(f'{column}=a text')}",
        "agent": agent,
        "agent_table": tomli_w.dumps(_agent_table(agent, writer)).strip(),
        "updates": f"{100 if writer.is_large else 30}",
        "measured": f"{measured}",
        "samples": f"samples = {_MEASURED // measured} # answers to each\n" if 2 * measured <= _MEASURED else "",
        "commands": "\n".join(f"    {line}" for line in _with_reasons([*_COMMANDS])),
    }


def _lora(writer: Writer) -> str:
    """The table [policy.lora], commented out where it does not fit, with the reason."""
    table = ["[policy.lora]", "rank = 16"]
    if writer.adapters:
        return "\n".join(["", "# Adapters are trained, and the model stays as it is (needs peft).", *table, ""])
    if writer.is_adapter:
        return "\n# The model is a folder of adapters: these train, and [policy.lora] is left out.\n"
    why = 'it needs peft: pip install "rlhf-env[peft]"' if writer.is_large else "for large models (needs peft)"
    return "\n".join(["", f"# Train adapters in place of all weights: {why}.", *(f"# {line}" for line in table), ""])


def _agent_table(agent: str, writer: Writer) -> JsonObject:
    """A start, not a tuned setting: as far as the agent has these."""
    hints = hints_of(host().load("agent", agent).Config)
    lr = 2e-4 if writer.adapters or writer.is_adapter else 1e-5 if writer.is_large else 3e-4
    table: JsonObject = {"group_size": _GROUP} if "group_size" in hints else {}
    if "optimization" in hints:
        table["lr"] = lr
    elif "learning_rate" in hints:
        table["learning_rate"] = lr
    return table


def _grid_of(experiment: str, writer: Writer, agent: str) -> str:
    """The tables of the grid: the experiment's own, and rows for its agent, another one and the controls."""
    table = tomllib.loads(experiment)
    shared = {key: value for key, value in table.items() if key not in ("name", "seed", "agent")}
    own = {key: value for key, value in table["agent"].items() if key != "name"}
    known = host().names("agent")
    other = [name for name in _OTHERS if name != agent and name in known][:1]
    controls = [name for name in _CONTROLS if name in known]
    agents = {agent: own, **{name: _agent_table(name, writer) for name in other}, **{name: {} for name in controls}}
    return tomli_w.dumps({"agents": agents, "experiment": shared})


def _notes(writer: Writer, asked: AskedPrompts, lengths: FittingLengths) -> Iterator[str]:
    if writer.wants_messages and not asked.are_conversations:
        yield (
            f"{writer.model} has a chat template, and {asked.path} has plain texts, which are asked without it: write "
            'them as {"messages": [{"role": "user", "content": "..."}]} to be asked in it'
        )
    if lengths.too_long:
        of = f"{lengths.too_long:,} of {len(asked.prompts):,} prompts have more than {lengths.prompt:,} tokens"
        yield f"{of} and are cut at their beginning: max_prompt_tokens and over_long in [environment] say how"
    if not asked.held_out_fraction:
        yield "the prompts are too few, or too equal, to hold some out: evaluations ask those of training"


def _filled(name: str, values: Mapping[str, str]) -> str:
    return Template((_TEMPLATES / f"{name}.template").read_text(encoding="utf-8")).substitute(values)


def _quoted(text: str) -> str:
    """As TOML and Python write it."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _with_reasons(lines: list[tuple[str, str]]) -> list[str]:
    width = max(len(command) for command, _ in lines)
    return [f"{command:{width}}   # {why}" for command, why in lines]
