"""Where a setting stands in a TOML file, however it is written there; and that messages say so."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_env.errors import ConfigError, Key, Problem, under
from rlhf_env.toml_files import lines_of, naming_lines, narrowed, read_toml

# A line says at its end which settings it is the line of.
EVERY_WAY = """\
# a = 1
plain = 1 # plain
"quoted key" = "[not = a table] # nor a comment" # quoted key
'"literal"' = 1 # "literal"
dotted.key . here = 1.5 # dotted | dotted.key | dotted.key.here
dotted.other = 2020-01-01T12:00:00.5+01:00 # dotted.other
"\\u0061b".c = 2020-01-01 12:00:00 # ab | ab.c
text = \"\"\" # text
[no.table]
key = 1 \\\"\"\"
\"\"\"\"\"
after_text = ''' # after_text
'' [[x]] " = {
'''''
empty = "" # empty
empties = ['''''', \"\"\"\"\"\", []] # empties | empties.0 | empties.1 | empties.2
list = [ # list
  1, # list.0
  # "in between"
  { a = 1, b.c = "}" }, # list.1 | list.1.a | list.1.b | list.1.b.c
  [ # list.2
    "]", # list.2.0
  ],
]
in = { x = { y = [ { z = 1 } ] }, w = {} } # in | in.x | in.x.y | in.x.y.0 | in.x.y.0.z | in.w

[ table . "sub" ] # table.sub
key = "\\\\" # table.sub.key
[table] # table
key = '\\' # table.key
[[many]] # many | many.0
name = 1 # many.0.name
[many.deep] # many.0.deep
key = 1 # many.0.deep.key
[[many]] # many.1
name = 2 # many.1.name
[[many.inner]] # many.1.inner | many.1.inner.0
[[many.inner]] # many.1.inner.1
key = 1 # many.1.inner.1.key
[many.inner.last] # many.1.inner.1.last
key = -inf # many.1.inner.1.last.key
"""


@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_every_way_to_write_a_key(ends: str) -> None:
    text = EVERY_WAY.replace("\n", ends)
    tomllib.loads(text)
    marked = {
        path: number
        for number, line in enumerate(EVERY_WAY.split("\n"), 1)
        if not line.lstrip().startswith("#")
        for path in line.partition(" # ")[2].rpartition("# ")[2].split(" | ")
        if path
    }
    assert {".".join(map(str, path)): line for path, line in lines_of(text).items()} == marked


KEYS = (f"k{number}" for number in range(10**9))
TEXTS = st.text("ab []{}=#,.\"'\\\n\t\u00e9", max_size=12)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.integers() | st.booleans() | st.floats(allow_nan=False) | TEXTS | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(lambda them: {next(KEYS): it for it in them})
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(st.lists(VALUES, max_size=5).map(lambda them: {next(KEYS): it for it in them}), st.booleans())
def test_a_key_stands_where_its_name_is_first_read(table: dict[str, Any], multiline: bool) -> None:
    """No key is there twice, and none in a text, so that a search finds them, too."""
    text = tomli_w.dumps(table, multiline_strings=multiline)
    assert tomllib.loads(text) == table
    found = {path[-1]: line for path, line in lines_of(text).items() if isinstance(path[-1], str)}
    lines = text.split("\n")
    assert found == {key: 1 + next(at for at, line in enumerate(lines) if key in words(line)) for key in names(table)}
    for path in lines_of(text):
        at: Any = table
        for key in path:
            at = at[key]


def words(line: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in line).split()


def names(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(name for it in value.values() for name in names(it))]
    return [name for it in value for name in names(it)] if isinstance(value, list) else []


# ---------------------------------------------------------------- problems


TABLE = {"agent": {"name": "curriculum", "lr": 1.0, "agent": {"name": "ppo"}}, "tasks": [{"a": 1}, {"b": 2}], "seed": 1}


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        (("agent", "lr"), ("agent", "lr")),
        (("agent", "optimization", "lr"), ("agent", "lr")),
        (("agent", "agent", "clip"), ("agent", "agent")),
        (("seed",), ("seed",)),
        ((), ()),
        (("tasks", 1, "b"), ("tasks", 1, "b")),
        (("tasks", 2), ("tasks",)),
        (("budget", "updates"), ()),
    ],
)
def test_a_path_leads_as_far_as_the_table_goes(keys: tuple[Key, ...], path: tuple[Key, ...]) -> None:
    assert narrowed(keys, TABLE) == path


def told(file: Path, *problems: str, flags: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as refused, naming_lines(file, flags), under("agent"):
        raise ConfigError(*problems)
    assert str(refused.value) == "; ".join(refused.value.problems)
    return list(refused.value.problems)


def test_a_problem_is_said_with_its_line_once(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("seed = 1\n[agent]\n\nlr = 1\n")
    at = ("lr",)
    problems = ("low", f"{file} agent lr: odd", f"{file}: lr", f"{file}, line 9: lr")
    assert told(file, *(Problem(problem, at) for problem in problems)) == [
        f"{file}, line 4: low",
        f"{file}, line 4, agent lr: odd",
        f"{file}, line 4: lr",
        f"{file}, line 9: lr",
    ]


def test_the_words_of_a_problem_do_not_say_where_it_is(tmp_path: Path) -> None:
    """Only its keys do: a message that speaks of another setting is not taken there."""
    file = tmp_path / "a.toml"
    file.write_text("seed = 1\n[agent]\n\nlr = 1\nclip = 1\n")
    assert told(file, "lr is low, see clip", Problem("lr is low for clip", ("clip",))) == [
        f"{file}, line 2: lr is low, see clip",
        f"{file}, line 5: lr is low for clip",
    ]


def test_what_the_command_line_set_has_its_words_for_a_place(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("seed = 1\n[agent]\nlr = 1\n")
    assert told(file, "lr is low", flags={"agent": "--agent dpo"}) == ["--agent dpo: lr is low"]
    with (
        pytest.raises(ConfigError, match="--seed -1: seed must not be negative"),
        naming_lines(file, {"seed": "--seed -1"}),
    ):
        raise ConfigError(Problem("seed must not be negative", ("seed",)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a = 1\nb = [1\n", ", line 2: Unclosed array (at the end of the file)"),
        ("a = 1\n\nb = = 1\n", ", line 3: Invalid value (column 5)"),
        (f"a = 1\nb = {'9' * 5000}\n", ", line 2: Exceeds the limit (4300 digits)"),
        (f"a = [1]\nb = {'[' * 5000}", ", line 2: brackets too deep to be read"),
    ],
    ids=["end", "middle", "digits", "brackets"],
)
def test_what_is_no_toml_is_said_with_its_line(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(content)
    with pytest.raises(ConfigError) as refused:
        read_toml(file)
    assert str(refused.value).startswith(f"{file}{said}")
