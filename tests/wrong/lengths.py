"""Texts that are too long, demonstrations and margins: settings that do not fit, and data that nothing is left of."""

from __future__ import annotations

from dataclasses import replace

from rlhf_env.lab.evaluation.preparing import prepare
from wrong.table import AGENT, BAD, TASK, TEXTS, TOY, command, experiment, experiment_file

for wrong, said in {
    '"cut"': "over_long must be one of 'refuse', 'leave out', 'cut left', 'cut right', 'cut middle', got 'cut'",
    "true": "over_long must be one of 'refuse', 'leave out', 'cut left', 'cut right', 'cut middle', got True",
}.items():
    experiment(f"over_long = {wrong}", TEXTS, f"{TEXTS}\nover_long = {wrong}", said)
experiment(
    "every prompt left out",
    "max_prompt_tokens = 4",
    'max_prompt_tokens = 2\nover_long = "leave out"',
    "over_long = 'leave out' leaves no prompt: 1,000 of the task's have more than 2 tokens",
    lines=range(3, 4),
)

_LONG = '{"prompt":"a","chosen":"' + "b" * 2000 + '","rejected":"c"}\n'
_PAIRS = 'preferences = "a.jsonl"\n' + TOY.replace("alphabet:ab=", "bytes").replace(AGENT, 'name = "dpo"').replace(
    "[rewards]", "[rewards]\nkl = 0.1"
)


def _stored(what: str, toml: str, content: str, *says: str) -> None:
    experiment_file(what, toml, *says, files={"a.jsonl": content})
    BAD[-1] = replace(BAD[-1], python=lambda: prepare("toy.toml"))


_stored(
    "a pair that is too long",
    _PAIRS,
    '{"prompt":"a","chosen":"b","rejected":"c"}\n' + _LONG,
    "a.jsonl:2: prompt and response have 2002 tokens together, and the policy reads",
)
_stored(
    "every pair left out",
    _PAIRS.replace(TEXTS, f'{TEXTS}\nover_long = "leave out"'),
    _LONG * 2,
    "a.jsonl: over_long = 'leave out' leaves nothing of 2 judgements: the policy reads",
)
_stored(
    "no margin in any pair",
    _PAIRS.replace('name = "dpo"', 'name = "dpo"\nmargin = "offset"'),
    '{"prompt":"a","chosen":"b","rejected":"c"}\n',
    "a.jsonl: the agent learns from margins, and none of the 1 pairs has one: a column 'margin', or ratings",
)
_stored(
    "sft on judgements",
    _PAIRS.replace('name = "dpo"', 'name = "sft"'),
    '{"prompt":"a","chosen":"b","rejected":"c"}\n',
    "line 1: sft imitates every text it is given, and of judged answers some were rejected: dpo and kto",
)

for wrong, said in {
    'name = "dpo"\nmargin = "yes"': "margin must be one of 'ignore', 'offset', 'log offset', got 'yes'",
    'name = "dpo"\nmargin_scale = 2.0': "margin_scale scales margins, and they are ignored: set margin = 'offset'",
    'name = "dpo"\nmargin = "offset"\nmargin_scale = 0': "margin_scale must be above 0, got 0",
    'name = "dpo"\nmargin = "offset"\nlabel_smoothing = 0.1': "margin is for hard labels: leave out label_smoothing",
    'name = "dpo"\nmargin = "log offset"\nloss = "ipo"': "margin 'log offset' belongs to the sigmoid loss",
    'name = "sft"\nturns = "all"': "turns must be one of 'last', 'every', got 'all'",
    'name = "sft"\nloss_on = "prompts"': "loss_on must be one of 'answers', 'all', got 'prompts'",
    'name = "sft"\nturns = "every"\nloss_on = "all"': "turns 'every' marks answers, and loss_on = 'all' marks",
    'name = "sft"\npack_tokens = -1': "pack_tokens must be at least 0, got -1",
}.items():
    shown = wrong.replace("\n", ", ")
    experiment(shown, AGENT, wrong, said)

_ROWS = '{"prompt":"a","completion":"b"}\n'
_SFT = (
    TOY.replace(AGENT, 'name = "sft"').replace(TASK, 'name = "file"\npath = "a.jsonl"').replace("max_new", "# max_new")
)
_SFT = _SFT.replace("length = { target = 2 }", "").replace("alphabet:ab=", "bytes").replace("[rewards]", "")
_ENDLESS = '{"prompt":"a","completion":"' + "b" * 2000 + '"}\n'
_stored("a demonstration that is too long", _SFT, _ROWS + _ENDLESS, "a.jsonl:2: 2002 tokens, the model reads")
_stored(
    "demonstrations of which nothing is left",
    _SFT.replace("num_envs = 8", 'num_envs = 8\nover_long = "leave out"'),
    _ENDLESS,
    "leaves no answer: each of the 1 is too long",
)
_stored("no completions at all", _SFT, '{"prompt":"a"}\n' * 3, "the task File: no completion to learn in any of its 3")
_stored(
    "conversations beside prompts",
    _SFT,
    '{"prompt":"a","messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n' * 3,
    "it has the columns 'prompt' and 'messages', of which 'prompt' is read: leave that out",
)

command("scorecard folder a.jsonl --over-long cut", "'--over-long': Value error, 'cut' is not one of")
command("preferences verify s.db --model folder --over-long left", "'--over-long': Value error, 'left' is not one")
