"""Code of one's own, `function = "polite.py:polite"`: files, names and settings of it."""

from __future__ import annotations

from wrong.table import AGENT, REWARD, TASK, Content, command, experiment, grid

FORGOT = """\
from dataclasses import dataclass


class Forgot:
    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, setup, config):
        self.policy = setup.policy

    def begin(self):
        return {}

    def act(self, observation):
        return self.policy.write(observation, 1)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass
"""
POLITE = "def polite(completions, strictness: int = 1, **columns):\n    return [1.0 for _ in completions]\n"


def own(what: str, code: Content, *says: str, name: str = "polite", more: str = "") -> None:
    """The toy experiment with a reward of this code."""
    reward = f'polite = {{ function = "polite.py:{name}"{more} }}'
    experiment(f"own code: {what}", REWARD, reward, *says, files={"polite.py": code})


experiment("own code: no file", REWARD, 'x = { function = "no.py:x" }', "cannot read no.py: No such file or directory")
experiment("own code: no name", REWARD, 'x = { function = "no.py" }', "'no.py' is not of the form \"FILE.py:NAME\" or")
experiment("own code: no module", REWARD, 'x = { function = "no_such:x" }', "the module no_such cannot be imported: No")
experiment("own code: a number", REWARD, "x = { function = 3 }", "reward 'x': function must be a string, got 3")
experiment("own code: a list", TASK, "function = [1]", 'function must be "FILE.py:NAME" or "MODULE:NAME", got [1]')
experiment(
    "own code: two names for a task",
    TASK,
    'name = "echo"\nfunction = "polite.py:polite"',
    "name and function are both set: name is that of a registered task, and function your own code: leave one out",
)
experiment(
    "own code: two names for an agent",
    AGENT,
    'name = "ppo"\nfunction = "polite.py:polite"',
    "name and function are both set: name is that of a registered agent, and function your own code: leave one out",
)
own("a folder", None, "cannot read polite.py: Is a directory")
own("no Python", "def polite(:\n", "polite.py, line 1 cannot be imported: SyntaxError: invalid syntax")
own("an import within", "import nowhere\n", "polite.py, line 1 cannot be imported: No module named 'nowhere'")
own("an error", "\n1 / 0\n", "polite.py, line 2 cannot be imported: ZeroDivisionError: division by zero")
own("an exit", "raise SystemExit(0)\n", "polite.py, line 1 cannot be imported: it would end the program (SystemExit)")
own("a misspelt name", POLITE, "polite.py has no 'polit': did you mean 'polite'? Known: polite", name="polit")
own(
    "a number for a function",
    "polite = 3\n",
    "polite.py:polite is an int, and a reward is a function of lists",
)
own(
    "another parameter",
    "def polite(texts):\n    pass\n",
    "takes 'texts', which is none of prompts",
)
own("an unknown setting", POLITE, "no setting 'strictnes': did you mean 'strictness'?", more=", strictnes = 2")
own("a setting of another type", POLITE, "strictness must be a whole number, got 'x'", more=', strictness = "x"')
own("two names for a reward", POLITE, "plugin and function are both set: plugin is that", more=', plugin = "length"')
own(
    "in a process of its own",
    "import nowhere\n",
    "polite.py, line 1 cannot be imported: No module named 'nowhere'",
    more=", isolate = true",
)
FUNCTION = 'function = "polite.py:polite"'
experiment(
    "own code: a function of lists for a task",
    TASK,
    FUNCTION,
    "task polite.py:polite: the setting 'completions' is required",
    files={"polite.py": POLITE},
)
experiment(
    "own code: a function for an agent",
    AGENT,
    FUNCTION,
    "polite.py:polite is a function, and an agent is a class NAME(setup, config) with",
    files={"polite.py": POLITE},
)
grid(
    "an own agent without a file", '[agents.mine]\nfunction = "mine.py:Mine"', "cannot read mine.py: No such file or d"
)
command("check polite.py", 'polite.py is a file: name what is in it, "polite.py:NAME"', polite_DOT_py=POLITE)
command("check nowhere.py:polite", "cannot read nowhere.py: No such file or directory")
command("check reward:nowhere.py:polite", "cannot read nowhere.py: No such file or directory")
command(
    "check forgot.py:Forgot",
    "and load_state_dict (rlhf_env.Agent); what it lacks: update",
    forgot_DOT_py=FORGOT,
)
command("check polite.py:polit", "polite.py has no 'polit': did you mean 'polite'?", polite_DOT_py=POLITE)
command("check polite.py:polite strictnes=2", "no setting 'strictnes': did you mean", polite_DOT_py=POLITE)
command("check polite.py:polite function=a.py:b", "function=a.py:b: reward:polite.py:polite a", polite_DOT_py=POLITE)
command("plugins nowhere.py:polite", "cannot read nowhere.py: No such file or directory")
command("plugins polite.py:no", "polite.py has no 'no'. Known: polite", polite_DOT_py=POLITE)


def own_loss(what: str, code: Content, *says: str, agent: str = "grpo", more: str = "") -> None:
    """The toy experiment with a loss of this code."""
    loss = f'name = "{agent}"\nloss = {{ function = "mine.py:loss"{more} }}'
    experiment(f"own loss: {what}", AGENT, loss, *says, files={"mine.py": code})


LOSS = "def loss(tokens, scale: float = 1.0):\n    return -scale * tokens.advantages * tokens.log_ratio.exp()\n"
own_loss("another name", LOSS.replace("loss", "los"), "loss: mine.py has no 'loss': did you mean 'los'?")
own_loss(
    "a class", "class loss:\n    pass\n", "loss: mine.py:loss is the class loss, and a token loss is a function NAME"
)
own_loss(
    "two batches", "def loss(tokens, others):\n    pass\n", "loss: mine.py:loss is a function, and a token loss is a f"
)
own_loss("a misspelt setting", LOSS, "token loss 'loss': no setting 'scal': did you mean 'scale'?", more=", scal = 2.0")
own_loss("a setting of words", LOSS, "token loss 'loss': scale must be a finite number, got 'x'", more=', scale = "x"')
own_loss("no function of pairs", "loss = 3\n", "loss: mine.py:loss is an int, and a pair loss is a", agent="dpo")
