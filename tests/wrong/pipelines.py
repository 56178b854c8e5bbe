"""Pipelines: their files, the stages in them, and what is asked of them."""

from __future__ import annotations

from wrong.table import Content, command

HEAD = """\
name = "p"
[defaults]
task = { name = "echo", length = 2 }
policy = { model = "tiny", tokenizer = "alphabet:ab=" }
environment = { num_envs = 8, max_new_tokens = 4, max_prompt_tokens = 4 }
rewards = { length = { target = 2 } }
budget = { updates = 1 }
"""
ONE = '[[stage]]\nname = "one"\nkind = "train"\n'


def pipeline(content: Content, *says: str, options: str = "") -> None:
    command(f"pipeline p.toml{options}", *says, p_DOT_toml=content)


def stages(text: str, *says: str, options: str = "") -> None:
    """Below the head and a stage that is right."""
    pipeline(HEAD + ONE + text, *says, options=options)


def line(number: int) -> str:
    """A line of such a text."""
    return f"p.toml, line {(HEAD + ONE).count(chr(10)) + number}"


pipeline('name = "p"\n', "p.toml: stage must be one or more tables [[stage]]")
pipeline('name = "a/b"\n' + ONE, "p.toml, line 1: name 'a/b' is no name for a folder")
pipeline("stage = 3\n", "p.toml, line 1: stage must be a list, each a table, got 3")
pipeline("nmae = 1\n" + HEAD + ONE, "p.toml, line 1: no setting 'nmae': did you mean 'name'?")
pipeline(
    HEAD.replace('"echo"', '"ecko"') + ONE,
    "p.toml, line 3: unknown task 'ecko': did you mean 'echo'?",
)
pipeline(HEAD.replace("num_envs = 8", "num_envs = 0") + ONE, "p.toml, line 5, environment: num_envs must be from 1 to")
stages('[[stage]]\nname = "b"\nkind = "trian"\n', f"{line(3)}: unknown kind of stage 'trian': did you mean 'train'?")
stages('[[stage]]\nkind = "train"\n', f"{line(1)}: stage 2: the setting 'name' is required")
stages('[[stage]]\nname = "b"\n', f"{line(1)}: stage 2: the setting 'kind' is required")
stages('[[stage]]\nname = 3\nkind = "train"\n', f"{line(2)}: stage 2: name must be a string, got 3")
stages('[[stage]]\nname = "../b"\nkind = "train"\n', f"{line(2)}: '../b' is no name for a stage's folder")
stages('[[stage]]\nname = "stages"\nkind = "train"\n', f"{line(2)}: 'stages' is no name for a stage's folder")
stages(ONE, f"{line(2)}: stage 'one': there is one of this name already (stage 1)")
stages(
    '[[stage]]\nname = "b"\nkind = "train"\nfrom = "oen"\n',
    f"{line(4)}: stage 'b': from: there is no stage 'oen': did you mean 'one'?",
)
stages('[[stage]]\nname = "b"\nkind = "train"\nfrom = 3\n', f"{line(4)}: stage 'b': from: the name of an earlier stage")
stages('[[stage]]\nname = "b"\nkind = "train"\nfrom = "b"\n', f"{line(4)}: stage 'b': takes from itself: stages run in")
stages(
    '[[stage]]\nname = "b"\nkind = "train"\nfrom = "c"\n[[stage]]\nname = "c"\nkind = "train"\nfrom = "b"\n',
    f"{line(4)}: stage 'b': takes from 'c', which comes later: stages run in order",
)
stages(
    '[[stage]]\nname = "b"\nkind = "judge"\nfrom = "one"\n',
    f"{line(4)}: stage 'b': from: a stage of kind 'judge' takes store, and 'one' (train) gives model or runs",
)
stages(
    '[[stage]]\nname = "b"\nkind = "train"\n[[stage]]\nname = "c"\nkind = "train"\nfrom = ["one", "b"]\n',
    f"{line(7)}: stage 'c': 'train' takes one model, and 'one' and 'b' give one each",
)
stages(
    '[[stage]]\nname = "b"\nkind = "train"\nfrom = { modle = "one" }\n',
    f"{line(4)}: stage 'b': from: 'train' takes no 'modle': did you mean 'model'?",
)
stages(
    '[[stage]]\nname = "b"\nkind = "train"\n[stage.rewards.length]\ntarget = "$one.size"\n',
    f"{line(5)}: '$one.size': stage 'one' gives no 'size', only $one",
)
stages(
    '[[stage]]\nname = "b"\nkind = "train"\n[stage.policy]\nmodel = "$tow"\n',
    f"{line(5)}: stage 'b': $tow is the output of a stage, and there is no such stage",
)
stages(
    '[[stage]]\nname = "b"\nkind = "train"\nagent = { name = "ppo", lr = 0 }\nbudget = { updates = 0 }\n'
    '[[stage]]\nname = "c"\nkind = "evaluate"\nfrom = "one"\nby = "peple"\n'
    '[[stage]]\nname = "d"\nkind = "bench"\n[stage.agents.pppo]\n',
    f"{line(5)}, budget: updates must be at least 1, got 0",
    f"{line(10)}: by must be one of 'rewards', 'simulated', 'people', got 'peple'",
    f"{line(14)}: unknown agent 'pppo': did you mean 'ppo'?",
)
stages(
    '[[stage]]\nname = "b"\nkind = "sft"\nagent = { name = "ppo" }\n',
    f"{line(4)}: a stage of kind 'sft' imitates, and ppo does not: kind = 'train'",
)
stages(
    '[[stage]]\nname = "b"\nkind = "judge"\n',
    f'{line(1)}: no store to work on: from = "the stage that gives it", or store = "a file"',
)
stages('[[stage]]\nname = "b"\nkind = "evaluate"\n', f'{line(1)}: nothing to evaluate: from = "a stage that trains"')
stages(
    '[[stage]]\nname = "b"\nkind = "responses"\ntemperatures = [0.0]\nmodle = "x"\n',
    f"{line(4)}: temperatures[0] must be above 0, got 0.0",
    f"{line(5)}: no setting 'modle': did you mean 'model'?",
)
stages(
    '[[stage]]\nname = "b"\nkind = "train"\nrewards = { own = { function = "own.py:f" } }\n',
    f"{line(4)}: cannot read own.py: No such file or directory",
)
stages(
    '[[stage]]\nname = "b"\nkind = "train"\npolicy = { model = "no/where" }\n',
    f"{line(4)}: ",
)
stages("", "--only: no stage 'tow'", options=" --only tow")
stages("", "--again: no stage 'tow'", options=" --again tow")
stages("", "--only and --until: one of the two", options=" --only one --until one")
stages("", "--set two.lr: no stage 'two'", options=" --set two.lr=1")
stages("", "--set one: expected STAGE.SETTING=VALUE", options=" --set one")
stages("", "Invalid value for '--jobs'", options=" --jobs 0")
command("pipeline", "which pipeline? A TOML file, or a shipped one: demo, base-model")
command("pipeline no.toml", "cannot read no.toml: No such file or directory")
command("pipeline --show dmo", "unknown pipeline 'dmo': did you mean 'demo'? Known: base-model, demo")
command("pipeline toy.toml", "toy.toml is an experiment, and pipelines are read here: rlhf-env train toy.toml")
for reads in ("train", "bench"):
    command(f"{reads} p.toml", "are read here: rlhf-env pipeline p.toml", p_DOT_toml=HEAD + ONE)
