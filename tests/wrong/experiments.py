"""Files of experiments that cannot be read, or are no experiment."""

from __future__ import annotations

from dataclasses import replace

from wrong.table import BAD, TASK, TOKENIZER, TOY, experiment, experiment_file, link

experiment_file("no TOML file", link("nowhere"), "cannot read toy.toml: No such file or directory")
experiment_file("a folder for a TOML file", None, "cannot read toy.toml: Is a directory")
experiment_file("a link to itself", link("toy.toml"), "cannot read toy.toml: Too many levels of symbolic links")
experiment_file("an endless TOML file", link("/dev/zero"), "toy.toml is larger than 1,048,576 bytes")
experiment_file("an empty TOML file", "", '[policy] model "tiny" needs a tokenizer: tokenizer = "bytes"')
experiment_file("TOML that is not UTF-8", b'seed = 1\nname = "\xff"\n', "toy.toml, line 2: not UTF-8: byte 0xff")
experiment_file("TOML with NUL", b'name = "\x00"\n', "line 1: Illegal character '\\x00' (column 9)")
experiment_file(
    "a bracket not closed",
    TOY.replace("[budget]", "[budget"),
    "line 22: Expected ']' at the end of a table declaration (col",
)
experiment_file("a table twice", TOY + "[task]\n", "line 27: [task] stands here a second time, first on line 3")
experiment_file(
    "a key twice", "seed = 1\nseed = 2\n" + TOY, "line 2: seed is set a second time, first on line 1: leave one"
)
experiment_file(
    "a key of a table twice",
    TOY.replace("[budget]", "[budget]\nupdates = [\n1]"),
    "line 25: budget.updates is set a second time, first on line 23: leave one of them out",
)
experiment_file("a key twice in a line", TOY + "a = { b = 1, b = 2 }\n", "line 27: evaluation.a.b is set a second time")
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
experiment_file("a number for shard", TOY + "[engine]\nshard = 1\n", "shard must be true or false, got 1")
experiment_file(
    "no setting of engines", TOY + "[engine]\nshards = true\n", "no setting 'shards': did you mean 'shard'?"
)
experiment_file(
    "Stable-Baselines3 in parts",
    TOY.replace('"ppo"\nlr = 1e-2', '"sb3"') + "[engine]\nshard = true\n",
    "shard = true: sb3 learns with Stable-Baselines3's own optimizer and batches: take another agent, or leave it out",
)
experiment_file("texts two updates ahead", TOY + "[engine]\nahead = 2\n", "engine: ahead must be from 0 to 1, got 2")
experiment_file(
    "texts ahead of several processes",
    TOY + "[engine]\nahead = 1\nshard = true\n",
    "ahead = 1 is of one process that learns, and shard = true of several: leave one out",
)
experiment_file(
    "texts ahead for who does not correct for it",
    TOY.replace('"ppo"', '"options"') + "[engine]\nahead = 1\n",
    "ahead = 1: texts would be of weights that are one update old, and options has no importance ratio",
)
experiment_file(
    "vLLM's texts ahead",
    TOY.replace("[policy]", '[policy]\nwriter = "vllm"') + "[engine]\nahead = 1\n",
    'ahead = 1: writer = "vllm" writes in its place: leave one out',
)
experiment_file(
    "tokens ahead",
    TOY.replace("[environment]", '[environment]\nview = "token"') + "[engine]\nahead = 1\n",
    "ahead = 1: whole texts are written ahead, and here one action is a part of a text",
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
experiment_file(
    "a brake without gold",
    TOY + "every = 1\n[stopping.brake]\n",
    "watches gold, and there is none: name a reward in [evaluation.rewards]",
)
experiment_file(
    "a brake without evaluations",
    TOY + "[evaluation.rewards]\ntask = 1.0\n[stopping.brake]\n",
    "counts evaluations on the way, and there are none",
)
experiment_file(
    "a brake's drop below 0",
    TOY + "every = 1\n[evaluation.rewards]\ntask = 1.0\n[stopping.brake]\ndrop = -1.0\n",
    "drop must be at least 0, got -1.0",
)
experiment_file("no such preferences", 'preferences = "no.db"\n' + TOY, "no.db: no such file of preferences")
BAD[-1] = replace(BAD[-1], python=None)  # read when a run begins

# ---------------------------------------------------------------- models that are none

_WORDS = '{"added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}'

experiment(
    "a PEFT adapter of a model that is not there",
    TOKENIZER,
    'model = "a"',
    "'owner/base', cannot be loaded",
    files={"a/adapter_config.json": '{"base_model_name_or_path": "owner/base"}'},
)
experiment(
    "an end token that is no id",
    "alphabet:ab=",
    ".",
    "generation_config.json: eos_token_id must be a token id, or a list of them, got [1, '</s>']",
    files={
        "tokenizer.json": _WORDS,
        "tokenizer_config.json": '{"eos_token": "b"}',
        "generation_config.json": '{"eos_token_id": [1, "</s>"]}',
    },
)
experiment(
    "a model that only reads",
    TOKENIZER,
    'model = "a"\ntokenizer = "bytes"',
    "Unrecognized configuration class",
    files={"a/config.json": '{"model_type": "vit"}', "a/model.safetensors": ""},
)
