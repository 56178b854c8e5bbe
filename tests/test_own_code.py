"""Code of one's own: `function = "polite.py:polite"`."""

from __future__ import annotations

import copy
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_env import own_code
from rlhf_env.declared import declaration, find
from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.tasks import Prompts, load_task
from rlhf_env.errors import ConfigError, PluginError
from rlhf_env.own_code import OwnCode, load_code, pinned
from rlhf_env.plugins import host
from rlhf_env.testing.episodes import make_episode

POLITE = """\
def polite(completions, strictness: int = 1, **columns):
    return [t.count("a") * strictness for t in completions]
"""
AS_A_CLASS = "class It:\n    def __call__(self, episodes):\n        return [len(e.response) for e in episodes]\n"
TASK = Prompts(["ab", "b"])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before = dict(sys.modules)
    yield
    for name in sys.modules.keys() - before.keys():
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def scores(table: object, *texts: str) -> list[float | None]:
    """What the part `it` gives for the texts."""
    mix = load_rewards({"it": table}, TASK)
    return [score.raw.get("it") for score in mix.score([make_episode("?", text) for text in texts])]


def write(**files: str) -> None:
    for name, content in files.items():
        path = Path(name.replace("_IN_", "/") + ".py")
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(content)


# ---------------------------------------------------------------- the four shapes of a reward


def test_a_function_is_a_reward_and_its_parameters_are_settings() -> None:
    write(polite=POLITE)
    assert scores({"function": "polite.py:polite"}, "aa", "b") == [2.0, 0.0]
    assert scores({"function": "polite.py:polite", "strictness": 3, "weight": 0.5}, "aa", "b") == [6.0, 0.0]


def test_it_may_abstain_wait_and_log() -> None:
    write(
        polite="import asyncio\n"
        "async def polite(completions, log_metric, **columns):\n"
        '    await asyncio.sleep(0)\n    log_metric("seen", len(completions))\n'
        '    return [None if "b" in text else 1.0 for text in completions]\n'
    )
    mix = load_rewards({"it": {"function": "polite.py:polite"}}, TASK)
    assert [score.raw.get("it") for score in mix.score([make_episode("?", "a"), make_episode("?", "b")])] == [1.0, None]
    assert mix.parts["it"].take_logged() == {"seen": [2.0]}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (AS_A_CLASS, "It"),
        ("class It:\n    def __call__(self, completions, **_):\n        return [len(t) for t in completions]\n", "It"),
        (
            "import numpy as np\nclass It:\n    def token_rewards(self, episodes):\n"
            "        return [np.eye(1, len(e.response_ids))[0] * len(e.response) for e in episodes]\n",
            "It",
        ),
        (
            "import numpy as np\nclass It:\n    def group_rewards(self, group):\n"
            "        return np.array([len(e.response) for e in group])\n",
            "It",
        ),
        (AS_A_CLASS + "it = It()", "it"),
        (
            "class A:\n    @staticmethod\n    def it(completions):\n        return [len(t) for t in completions]\n",
            "A.it",
        ),
    ],
)
def test_every_shape_of_a_reward_will_do(code: str, name: str) -> None:
    write(shapes=code)
    assert list(load_rewards({"it": {"function": f"shapes.py:{name}"}}, TASK).parts) == ["it"]
    if "group" not in code:
        assert scores({"function": f"shapes.py:{name}"}, "aa", "bbb") == [2.0, 3.0]


def test_a_module_is_imported_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(kindness_IN___init__="", kindness_IN_polite=POLITE)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert scores({"function": "kindness.polite:polite"}, "aa") == [2.0]


def test_in_a_process_of_its_own() -> None:
    write(elsewhere="import os\ndef pid(completions):\n    return [float(os.getpid()) for _ in completions]\n")
    (pid,) = scores({"function": "elsewhere.py:pid", "timeout": 30.0}, "a")
    assert pid != os.getpid()
    assert not [name for name in sys.modules if name.startswith("elsewhere_")], "it is imported in that process alone"


# ---------------------------------------------------------------- which file, and which version


def test_two_files_of_one_name_are_two_modules_with_their_own_neighbours() -> None:
    for folder, word in (("one", "a"), ("two", "b")):
        write(**{
            f"{folder}_IN_words": f'WORD = "{word}"\n',
            f"{folder}_IN_polite": "from words import WORD\ndef polite(completions):\n"
            "    return [t.count(WORD) for t in completions]\n",
        })  # fmt: skip
    assert scores({"function": "one/polite.py:polite"}, "aab") == [2.0]
    assert scores({"function": "two/polite.py:polite"}, "aab") == [1.0]
    assert scores({"function": "one/polite.py:polite"}, "aab") == [2.0]
    assert str(Path.cwd() / "one") not in sys.path and str(Path.cwd() / "two") not in sys.path


@pytest.mark.parametrize("edited", ["polite", "words"])
def test_an_edited_file_is_imported_anew(edited: str) -> None:
    write(words="FACTOR = 2\n", polite="from words import FACTOR\n" + POLITE.replace("strictness for", "FACTOR for"))
    assert scores({"function": "polite.py:polite"}, "a") == [2.0]
    write(**({"words": "FACTOR = 3\n"} if edited == "words" else {"polite": POLITE.replace("* strictness", "* 3")}))
    assert scores({"function": "polite.py:polite"}, "a") == [3.0]


@pytest.mark.parametrize("edited", ["polite", "words"])
def test_pinned_code_refuses_another_version(edited: str) -> None:
    write(words="FACTOR = 2\n", polite="import words\n" + POLITE)
    code = pinned("polite.py:polite", Path())
    assert {Path(file).name for file in code.files} == {"polite.py", "words.py"}
    write(**{edited: "import words\n# other\n" + POLITE})
    for copied in (code, copy.deepcopy(code), pickle.loads(pickle.dumps(code)), pinned(code, Path("elsewhere"))):
        with pytest.raises(PluginError, match=f"{edited}.py changed while it was in use"):
            load_code(copied)
    assert load_code(pinned(str(code), Path()))


def test_a_process_of_its_own_refuses_another_version() -> None:
    write(polite=POLITE)
    code = pinned("polite.py:polite", Path())
    write(polite=POLITE + "\n")
    with pytest.raises(ConfigError, match=r"polite.py changed while it was in use"):
        load_rewards({"it": {"function": code, "isolate": True}}, TASK)


def test_the_same_content_is_one_module() -> None:
    write(polite=POLITE)
    assert load_code(OwnCode("polite.py:polite")) is load_code(pinned("polite.py:polite", Path()))


def test_it_prints_to_stderr_and_leaves_the_working_directory(capsys: pytest.CaptureFixture[str]) -> None:
    write(polite='import os\nprint("hello")\nos.chdir("/")\n' + POLITE)
    here = Path.cwd()
    with pytest.warns(RuntimeWarning, match="changed the working directory"):
        load_code(OwnCode("polite.py:polite"))
    printed = capsys.readouterr()
    assert (printed.out, printed.err, Path.cwd()) == ("", "hello\n", here)


# ---------------------------------------------------------------- what is wrong with it


@pytest.mark.parametrize(
    ("code", "function", "said"),
    [
        ("", "nowhere.py:polite", r"cannot read nowhere.py: No such file or directory"),
        ("", "polite", r"'polite' is not of the form \"FILE.py:NAME\" or \"MODULE:NAME\""),
        ("", "own.py:", r"'own.py:' is not of the form"),
        ("", "own.py", r"'own.py' is not of the form"),
        ("", "no_such_module:polite", r"the module no_such_module cannot be imported: No module named 'no_such_m"),
        ("x = 1\ndef polite(:\n", "own.py:polite", r"own.py, line 2 cannot be imported: SyntaxError: invalid s"),
        ("import no_such\n", "own.py:polite", r"own.py, line 1 cannot be imported: No module named 'no_such'"),
        ("\n1 / 0\n", "own.py:polite", r"own.py, line 2 cannot be imported: ZeroDivisionError: division by zero"),
        ("\nimport sys\nsys.exit(3)\n", "own.py:polite", r"own.py, line 3 cannot be imported: it would end the progra"),
        (POLITE, "own.py:polit", r"own.py has no 'polit': did you mean 'polite'\? Known: polite"),
        ("polite = 3\n", "own.py:polite", r"own.py:polite is an int, and a reward is a function of lists"),
        ("import os\n", "own.py:os", r"own.py:os is the module os, and a reward is a function of lists"),
        (
            "def polite(texts):\n    return []\n",
            "own.py:polite",
            r"the function polite takes 'texts', which is none of prompts, completions, .*, and the task has no col",
        ),
        ("def polite(completions, /):\n    return []\n", "own.py:polite", r"takes 'completions' by place"),
        ("class It:\n    def __call__(self):\n        return []\n", "own.py:It", r"own.py:It is an It, and a reward"),
        ("class It:\n    pass\n", "own.py:It", r"own.py:It is an It, and a reward"),
        (
            "class polite:\n    def __init__(self, size):\n        pass\n",
            "own.py:polite",
            r"reward 'it': the setting 'size' is required",
        ),
        (
            "def polite(completions):\n    import beside\n",
            "own.py:polite",
            r"own.py, line 2: imports 'beside', a file beside it, in polite: import it at the top",
        ),
        (
            "from rlhf_env.own_code import *\nload_code(OwnCode('own.py:polite'))\n",
            "own.py:polite",
            r"own.py imports itself: what it runs belongs under",
        ),
        ("import beside\n", "own.py:polite", r"own.py, line 1 cannot be imported: ValueError: two lines"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_one_line(code: str, function: str, said: str) -> None:
    write(own=code, beside='raise ValueError("two\\nlines")\n')
    with pytest.raises(ConfigError, match=said) as refused:
        load_rewards({"it": {"function": function}}, TASK)
    (problem,) = refused.value.problems
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"strictnes": 2}, "reward 'it': no setting 'strictnes': did you mean 'strictness'?"),
        ({"strictness": "2"}, "reward 'it': strictness must be a whole number, got '2'"),
        ({"completions": ["a"]}, "reward 'it': no setting 'completions'"),
        ({"plugin": "length"}, "plugin and function are both set"),
        ({"function": 3}, "function must be a string"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], said: str) -> None:
    write(polite=POLITE)
    with pytest.raises(ConfigError) as refused:
        load_rewards({"it": {"function": "polite.py:polite", **settings}}, TASK)
    assert said in str(refused.value)


def test_a_name_that_is_taken_is_refused_instead_of_another_module() -> None:
    """`import numpy` in a file beside numpy.py would be the library, or not, by who came first."""
    write(numpy="", own="import numpy\n" + POLITE)
    with pytest.raises(PluginError, match=r"own.py imports 'numpy', a file beside it, and .*numpy.* has that name"):
        load_code(OwnCode("own.py:polite"))


def test_what_failed_is_imported_again() -> None:
    write(own="1 / 0\n")
    with pytest.raises(PluginError):
        load_code(OwnCode("own.py:polite"))
    write(own=POLITE)
    assert callable(load_code(OwnCode("own.py:polite")))
    assert str(Path.cwd()) not in sys.path


# ---------------------------------------------------------------- tasks, and what it says of itself


def test_a_task_is_a_class_a_function_that_makes_one_or_one_made() -> None:
    write(
        questions="from rlhf_env import Prompt\n"
        'class Questions:\n    size = 2\n    def __init__(self, letter="a"):\n        self.letter = letter\n'
        "    def prompt(self, index, options, /):\n        return Prompt(id=str(index), text=self.letter)\n"
        'def made(letter: str):\n    return Questions(letter)\nready = Questions("c")\ndef nothing():\n    return 3\n'
    )
    for function, settings, text in (("Questions", {}, "a"), ("made", {"letter": "b"}, "b"), ("ready", {}, "c")):
        task = load_task({"function": f"questions.py:{function}", **settings})
        assert task.prompt(0, {}).text == text
    with pytest.raises(ConfigError, match=r"questions.py:nothing is an int, and a task is a class, or a function that"):
        load_task({"function": "questions.py:nothing"})
    with pytest.raises(ConfigError, match=r"name and function are both set"):
        load_task({"name": "echo", "function": "questions.py:made"})
    with pytest.raises(ConfigError, match=r"is made already, and has no setting 'letter'"):
        load_task({"function": "questions.py:ready", "letter": "b"})


def test_it_describes_itself() -> None:
    write(polite=POLITE.replace("**columns):", "**columns):\n    '''Says please.'''"))
    told = declaration(find(host(), "polite.py:polite"))
    assert (told.kind, told.name, told.about) == ("reward", "polite", "Says please.")
    assert [setting.name for setting in told.settings] == ["strictness"]
    assert 'function = "polite.py:polite"' in told.example
    assert find(host(), "task:polite.py:polite").kind == "task"


def test_where_an_error_was_raised() -> None:
    write(polite="def polite(completions):\n    return [1 / len(t) for t in completions]\n")
    with pytest.raises(ZeroDivisionError) as raised:
        load_code(OwnCode("polite.py:polite"))(completions=[""])  # type: ignore[operator]
    assert own_code.raised_at(raised.value) == "polite.py, line 2"
    assert own_code.raised_at(ValueError()) == ""


def test_what_is_our_own_under_another_name_is_nobody_s_plugin() -> None:
    """A built-in that somebody registers again would have every error of this library named as the plugin's."""
    own_code.is_of_plugin(OwnCode)
    with pytest.raises(ConfigError) as raised:
        load_code(OwnCode("no such form"))
    assert own_code.raised_at(raised.value) == ""
