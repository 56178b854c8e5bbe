"""Judges, verified answers and tools that cannot work: said before anything is asked, run or written."""

from __future__ import annotations

from wrong.table import REWARD, TASK, command, experiment

JUDGE = 'judge = { url = "https://judge.example.org/v1", model = "m"'
WORSE = {
    "a judge without an address": ('judge = { model = "m" }', "reward 'judge': the setting 'url' is required"),
    "a judge by http": (
        'judge = { url = "http://judge.example.org/v1", model = "m" }',
        "reward 'judge': url must be https://: by http://, texts and token would cross the network in the clear",
    ),
    "a judge without its key": (
        JUDGE + ', token_env = "NO_SUCH_KEY" }',
        "reward 'judge': token_env names no environment variable with a token in it, got NO_SUCH_KEY",
    ),
    "a rubric that is not there": (
        JUDGE + ', rubric = "helpfull" }',
        "reward 'judge': rubric 'helpfull' is no file, and none of helpful, correct, harmless: did you mean 'helpful'",
    ),
    "a vote that is asked for twice": (
        JUDGE + ", votes = 2 }",
        "reward 'judge': votes = 2 at temperature 0 asks for the same answer again: raise temperature",
    ),
    "a scale upside down": (JUDGE + ", lowest = 3.0, highest = 1.0 }", "highest must be above lowest, 3, got 1"),
    "a field of ours": (JUDGE + ", fields = { model = 1 } }", "fields has 'model', which is not for them to say"),
    "a typo in a judge": (JUDGE + ", rubrik = 1 }", "reward 'judge': no setting 'rubrik': did you mean 'rubric'?"),
    "code without trust": ("code = 1.0", "reward 'code': trust must be true: this reward runs code that a model wrote"),
    "seconds of no code": ("code = { trust = true, seconds = 0.0 }", "reward 'code': seconds must be above 0, got 0.0"),
    "no column": ('math = { column = "" }', "reward 'math': column must have one or more characters, got"),
}
for what, (table, said) in WORSE.items():
    experiment(what, REWARD, table, said)
experiment(
    "a rubric without a place",
    REWARD,
    JUDGE + ', rubric = "mine.txt" }',
    "has no place {response}: what scores a response needs {prompt}, {response}",
    files={"mine.txt": "{prompt} {answer}"},
)
experiment(
    "a rubric that is no text",
    REWARD,
    JUDGE + ', rubric = "mine.txt" }',
    "mine.txt is not UTF-8: byte 0",
    files={"mine.txt": b"\xff"},
)

GOOD = 'def f(a: int) -> int:\n    """F.\n\n    Args:\n        a: A.\n    """\n    return a\n'
TOOLS = 'name = "tools"\ntask = { name = "echo", length = 2 }\n'
NO_TOOLS = {
    "a tool without types": (GOOD.replace("a: int", "a"), "mine.py:f: Argument a is missing a type hint"),
    "a tool without a docstring": ("def f(a: int) -> int:\n    return a\n", "because it has no docstring"),
    "a tool that is not there": ("g = 1\n", "mine.py has no 'f'"),
    "a tool that cannot be imported": ("1 +\n", "mine.py, line 1 cannot be imported: SyntaxError: invalid syntax"),
    "a model without a template for tools": (GOOD, "tools: this model has no chat template"),
}
for what, (source, said) in NO_TOOLS.items():
    experiment(what, TASK, TOOLS + 'tools = ["mine.py:f"]', said, files={"mine.py": source})
experiment("no tools", TASK, TOOLS + "tools = []", "task 'tools': tools must have one or more entries, got []")
experiment("tools of a typo", TASK, TOOLS + 'tool = ["mine.py:f"]', "no setting 'tool': did you mean 'tools'?")
experiment(
    "a form of calls that nobody reads",
    TASK,
    TOOLS + 'tools = ["mine.py:f"]\ncall_format = "xml"',
    "call_format must be one of 'auto', 'hermes', 'llama', 'mistral', got 'xml'",
    files={"mine.py": GOOD},
)
experiment(
    "tools of a task that answers",
    TASK,
    'name = "tools"\ntask = { name = "guess" }\ntools = ["mine.py:f"]',
    "task: Guess answers itself, and has no tools",
    files={"mine.py": GOOD},
)
ANNOTATOR = '[annotator]\nname = "judge"\nmodel = "m"\nurl = "https://judge.example.org/v1"\n'
for what, words in {
    'rubric = "correct"': "line 5: annotator 'judge': rubric 'correct' scores one response and compares none",
    'rating_rubric = "no"': "line 5: annotator 'judge': rating_rubric 'no' is no file, and none of helpful",
    'token_env = "NO_SUCH_KEY"': "line 5: annotator 'judge': token_env names no environment variable",
}.items():
    command("preferences simulate s.db a.toml", words, a_DOT_toml=ANNOTATOR + what)
