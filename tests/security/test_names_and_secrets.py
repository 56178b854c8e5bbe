"""Who is not trusted, and what they cannot do: one probe for each row of the project's list (S7 to S20).

Held elsewhere: files and plugins of others (S1 to S6) beside this file; the annotation page (S8 to S13, S17 and S20) in
tests/feedback/page/ and interchange/test_formats.py; rewards in processes of their own (S7) in tests/rewards; a score
from a server (S16) beside it.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from pathlib import Path
from re import _constants as marks  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import pytest
import torch

import rlhf_env
from rlhf_env import declared, plain_data
from rlhf_env.cli import main as cli
from rlhf_env.cli import training
from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.tasks import load_task
from rlhf_env.errors import DataError
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.lab.jobs import outcome_of
from rlhf_env.learning import checkpoints
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.shown_text import for_terminal, without_secrets

sys.path.insert(0, str(Path(__file__).parents[1]))
from security.probes import calls, exit_of, imports, sources

# ---------------------------------------------------------------- S9, S19: what is shown and kept


def test_a_terminal_gets_text_and_no_orders(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """S9: colours, titles, bidi and zero-width marks, in an error that repeats what a file says."""
    assert for_terminal("a\x1b[2J\x1b]0;title\x07b\u202ec\u200bd\n\re\x9b1mf") == "abcd ef"
    assert exit_of(monkeypatch, "check", "\x1b[31mred\u202e\u200b\x07.toml") == 2
    said = capsys.readouterr().err
    assert said == "rlhf-env: cannot read red.toml: No such file or directory\n"


CANARY = "c4n4ry-0123456789"


@pytest.mark.parametrize(
    "text",
    [
        f"cannot reach https://user:{CANARY}@host/path",
        f"https://host/score?key={CANARY}&n=1",
        f"token hf_{'A' * 10}c4n4ryc4n4ry",
        f"Authorization: Bearer {CANARY}",
        "in the environment: another c4n4ry",
    ],
)
def test_secrets_are_taken_out(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """S19: each by its own rule, which no other stands in for."""
    monkeypatch.setenv("MY_API_KEY", "another c4n4ry")
    shown = without_secrets(text)
    assert "c4n4ry" not in shown
    assert "***" in shown
    assert without_secrets("a?b=c of 3 tokens, see https://host/a@b").startswith("a?b=")


def test_a_canary_is_in_no_record_log_or_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """S19: the command is recorded, an error repeats its argument, a fault of ours has a traceback."""
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.setattr(sys, "argv", ["rlhf-env", "train", f"https://me:{CANARY}@host/a.toml?key={CANARY}", CANARY])
    with RunFolder(tmp_path / "run", 'name = "toy"\n', tensorboard=False) as run:
        run.log({"update": 1})
        run.save(1, {"weights": torch.zeros(1)}, 1)
    kept = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert len(kept) >= 5
    assert not [file for file in kept if CANARY.encode() in file.read_bytes()]
    assert "https://***@host/a.toml?key=***" in (tmp_path / "run" / "record.json").read_text()
    assert exit_of(monkeypatch, "check", f"https://me:{CANARY}@host/{CANARY}") == 2
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    try:
        raise ZeroDivisionError(f"by {CANARY}")
    except ZeroDivisionError as error:
        cli._traceback(type(error), error, error.__traceback__)
    said = capsys.readouterr().err
    assert "ZeroDivisionError: by ***" in said
    assert CANARY not in said


def test_a_canary_is_in_no_result_of_a_cell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """S19: why a cell of a benchmark failed is kept, and shown in the report."""
    monkeypatch.setenv("HF_TOKEN", CANARY)

    class Job:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def work(self, *_: Any) -> None:
            raise self.error

    for error in (DataError(f"at https://me:{CANARY}@host/: no"), ValueError(f"key {CANARY}")):
        outcome = outcome_of(Job(error), tmp_path, lambda *_: None)  # type: ignore[arg-type]
        assert outcome[1] == "failed"
        assert "***" in outcome[3] and CANARY not in str(outcome)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc")
def test_a_canary_is_in_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """S7, S19: neither on the command line of a reward's process, which everybody may read, nor in its environment."""
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.setenv("http_proxy", f"http://me:{CANARY}@proxy/")
    monkeypatch.setattr(sys, "argv", ["rlhf-env", "train", f"https://me:{CANARY}@host/"])
    mix = load_rewards({"length": {"isolate": True, "target": 3}}, load_task("count"))
    child = Path(f"/proc/{mix.parts['length'].pid}")  # type: ignore[union-attr]
    assert b"isolated_process" in (child / "cmdline").read_bytes() and b"PATH=" in (child / "environ").read_bytes()
    assert CANARY.encode() not in (child / "cmdline").read_bytes() + (child / "environ").read_bytes()
    most = re.findall(
        r"^Max (cpu time|address space|open files|core file size) +(\S+)", (child / "limits").read_text(), re.M
    )
    assert len(most) == 4 and "unlimited" not in dict(most).values(), "what is busy for ever ends, whoever is left"


# ---------------------------------------------------------------- S14, S15: names that are more than names

HOSTILE = ["'; DROP TABLE responses; --", '" OR 1=1 --', "../../etc/passwd", "%2e%2e%2f", "a\x00b", "x' UNION SELECT 1"]


@pytest.mark.parametrize("text", HOSTILE)
def test_sql_in_text_is_text(text: str, tmp_path: Path) -> None:
    """S14: every column that others fill. What the page takes is in tests/feedback/page/test_page_security.py."""
    from rlhf_env.feedback.judgements import Author, Response
    from rlhf_env.feedback.kinds import Comparison
    from rlhf_env.types import Prompt

    sides = Response(text, Author("human", text)), Response("other", Author("human", text))
    made = Comparison(Prompt(text, text), *sides, "first", annotator=text, criterion=text)
    with PreferenceStore(tmp_path / "s.db") as store:
        store.add([made])
        (back,) = store.judgements()
    assert (back.prompt.text, back.annotator, back.criterion, back.first.text) == (text, text, text, text)


def test_statements_are_made_of_our_own_constants() -> None:
    """S14: nothing that is put into a statement comes from outside; values go by parameters."""
    uses = {file for file, name in imports() if name == "sqlite3"}
    assert uses == {"answer_cache.py", "database.py", "integrity.py", "rescue.py", "store.py"}
    modules = {file.name: tree for file, tree in sources().items() if file.name in uses}
    composed = _outside_sql(modules.pop("rescue.py"))
    assert [outside for module in modules.values() for outside in _outside_sql(module)] == []
    # The rescue goes through all tables: the names that it puts in are those of our own schema, the rest are numbers.
    for statement in composed:
        names = set(re.findall(r"[({ ]([a-z_]+)(?=[}(.]|:d})", re.sub(r"[A-Z_]{2,}", " ", statement)))
        assert names <= {"table", "owner", "parent", "select", "columns", "values", "join", "page", "version"} | {
            "other",
            "others",
            "_other",
            "_other_table",
            "max",
            "count",
            "table_info",
        }, statement
    for told in ('f"SELECT {name}"', '"SELECT " + name', '"SELECT %s" % name', '"SELECT {}".format(name)', "made"):
        source = f"def f(self, name):\n    made = f'SELECT {{name}}'\n    self.db.execute({told})\nit.f(read())\n"
        assert _outside_sql(ast.parse(source)), told


def _outside_sql(tree: ast.Module) -> list[str]:
    """The statements of a module into which more goes than its constants: what stands in upper case and in quotes."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = [(function, call) for function in functions for call in ast.walk(function) if isinstance(call, ast.Call)]
    executes = ("execute", "executemany", "executescript")

    def is_ours(node: ast.AST, function: ast.FunctionDef, seen: frozenset[tuple[str, str]] = frozenset()) -> bool:
        match node:
            case ast.Constant():
                return True
            case ast.Name(id=name) if name.isupper() or (function.name, name) in seen:
                return True
            case ast.Name(id=name):
                seen |= {(function.name, name)}
                values = [(value, function) for value in _bound_to(name, function)]
                names = [it.arg for it in function.args.args if it.arg != "self"]
                if name in names:  # what each caller gives
                    calls = [it for it in inside if ast.unparse(it[1].func).rpartition(".")[2] == function.name]
                    values += [(call.args[names.index(name)], caller) for caller, call in calls]
                return bool(values) and all(is_ours(value, at, seen) for value, at in values)
            case ast.JoinedStr(values=parts) | ast.Tuple(elts=parts):
                return all(is_ours(part, function, seen) for part in parts)
            case ast.Call(func=ast.Name(id="len"), args=parts):
                return all(is_ours(part, function, seen) for part in parts)
            case ast.FormattedValue(value=part) | ast.Subscript(value=part) | ast.GeneratorExp(elt=part):
                return is_ours(part, function, seen)
            case ast.BinOp(left=one, op=ast.Add(), right=other) | ast.IfExp(body=one, orelse=other):
                return is_ours(one, function, seen) and is_ours(other, function, seen)
            case ast.Call(func=ast.Attribute(value=part, attr="format"), args=[], keywords=words):
                return all(is_ours(it, function, seen) for it in (part, *(word.value for word in words)))
        return False

    statements = [
        (function, call.args[0])
        for function, call in inside
        if isinstance(call.func, ast.Attribute) and call.func.attr in executes
    ]
    assert statements
    return [ast.unparse(it) for function, it in statements if not is_ours(it, function)]


def _bound_to(name: str, function: ast.FunctionDef) -> list[ast.expr]:
    """What a name of a function is set to in it, or taken out of."""
    bound: list[ast.expr] = []
    for node in ast.walk(function):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(it, ast.Name) and it.id == name for it in targets):
            value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)) else node.iter
            bound.append(value)
    return bound


@pytest.mark.parametrize("name", ["..", "../x", "a/../../../x", "/etc/x", "a/../..", "..\\..\\x/../../.."], ids=str)
def test_no_run_lies_outside_of_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S15: a name in a file that others wrote."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(rlhf_env.errors.ConfigError, match="outside of runs/"):
        training._inside_runs(f"{name}/../x" if name == ".." else name)


def test_no_link_leads_out_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S15."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "toy").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(rlhf_env.errors.ConfigError, match="outside of runs/"):
        training._inside_runs("toy")
    assert training._inside_runs("grid/task/ppo-seed0") == Path("runs/grid/task/ppo-seed0")


def test_a_link_is_no_checkpoint(tmp_path: Path) -> None:
    """S15: neither read nor thrown away."""
    outside = checkpoints.save(tmp_path / "elsewhere", 9, {"weights": torch.ones(1)}, {})
    inside = checkpoints.save(tmp_path / "run", 1, {"weights": torch.zeros(1)}, {})
    (tmp_path / "run" / outside.name).symlink_to(outside)
    assert checkpoints.latest(tmp_path / "run") == inside
    checkpoints.save(tmp_path / "run", 10, {"weights": torch.zeros(1)}, {}, keep=1)
    assert (outside / "manifest.json").exists()


# ---------------------------------------------------------------- S16 to S18: what could be made to work too much


def test_who_speaks_to_a_network() -> None:
    """S16: rewards and annotators that were given a URL, the hub for a model's name, or for --push, the page, which
    fetches nothing, the processes of one run, each with the first, and a Ray cluster that --address names."""
    network = ("socket", "ssl", "http.client", "urllib.request", "requests", "httpx", "aiohttp", "huggingface_hub")
    found = {file for file, name in imports() if name in network or name.split(".")[0] in ("requests", "httpx")}
    # Children, and who was started as a process of the run.
    own = {"isolation.py", "isolated_process.py", "ahead_writer.py", "lifeline.py"}
    assert found <= {"web_calls.py", "server.py", "tokenizers.py", "loading.py", "hub.py", "cluster_address.py"} | own
    page = next(file for file in sources() if file.name == "server.py")
    assert not re.search(r"urllib\.request|http\.client|create_connection|\.connect\(\(", page.read_text())


def test_a_file_is_read_up_to_a_size(tmp_path: Path) -> None:
    """S17. Lines and sizes of an experiment: tests/bad_inputs.py."""
    file = tmp_path / "a"
    file.write_bytes(b"0123456789")
    assert plain_data.read_file(file, 10) == b"0123456789"
    with pytest.raises(DataError, match="larger than 9 bytes"):
        plain_data.read_file(file, 9)
    with pytest.raises(DataError, match="larger than 9 bytes"):
        plain_data.read_file("/dev/zero", 9)


# Repeats in repeats that a fixed character separates: no text can be split among them in two ways.
SEPARATED = {
    # Of docstrings of plugins, which are code that the user chose: (declared.py)
    r"(?:(?: +.*)?\n)*(?: +.*)?": "the end of a line",
    r"^(\w+): (.*(?:\n +.*)*)": "the end of a line",
    declared.CITATION.pattern: "the comma",
    r"\w[\w.]*(-[\w.]+)*": "the hyphen",
    r"[^\W\d]\w*(\.[^\W\d]\w*)*": "the dot",
    r"\w+(?:['’]\w+)*": "the apostrophe",
    r"^\W*(hi|hey|hello|hola|sup|yo|howdy)\b(\W+(there|you|hi|hey|hello|everyone|guys))*\W*$": "a word",
}


def test_patterns_take_a_time_that_is_linear() -> None:
    """S18: in what we match texts of models with, no repeat without end lies in another."""
    patterns = {
        call.args[0].value
        for _, call, name in calls()
        if re.fullmatch(r"re\.(compile|search|match|fullmatch|sub|findall|split|finditer)", name)
        and call.args
        and isinstance(call.args[0], ast.Constant)
    }
    assert len(patterns) > 15
    assert not [it for it in patterns if _nested(parser.parse(it)) and it not in SEPARATED]
    assert _nested(parser.parse("(a+)+b")) and _nested(parser.parse(r"(\w*x?)*"))


def _nested(parsed: Any, inside: bool = False) -> bool:
    """Whether a repeat without end lies in another one."""
    for operator, argument in parsed:
        repeats = operator in (marks.MAX_REPEAT, marks.MIN_REPEAT) and argument[1] is marks.MAXREPEAT
        if repeats and inside:
            return True
        for part in argument if isinstance(argument, (tuple, list)) else (argument,):
            for branch in part if isinstance(part, list) else (part,):
                if isinstance(branch, parser.SubPattern) and _nested(branch, inside or repeats):
                    return True
    return False


# ---------------------------------------------------------------- the page's rows, and the document


def test_the_rows_of_the_page_are_held() -> None:
    """S8, S10 to S13, S17, S20: each has its tests where the page is tested."""
    tests = Path(__file__).parents[1] / "feedback"
    held = "".join(file.read_text() for file in tests.rglob("test_*.py"))
    for name in (
        "test_what_others_wrote_is_data",  # S8
        "test_the_page_makes_text_nodes_only_and_loads_nothing",
        "test_unseen_characters_are_written_out",  # S9
        "test_a_foreign_page_cannot_vote",  # S10
        "test_dns_rebinding_ends_at_the_host",  # S11
        "test_where_it_listens",  # S12
        "test_nobody_enters_without_the_token",
        "test_the_cookie_and_the_secret",  # S13
        "test_no_path_becomes_a_file",  # S15
        "test_caps",  # S17
        "test_a_slow_request_is_cut_off",
        "test_no_cell_of_a_csv_is_a_formula",  # S20
    ):
        assert f"def {name}(" in held, name


@pytest.mark.skipif(not (Path(__file__).parents[2] / "SECURITY.md").exists(), reason="not in a source distribution")
def test_the_document_says_what_there_is() -> None:
    said = (Path(__file__).parents[2] / "SECURITY.md").read_text().lower()
    for word in ("trusted", "not trusted", "trust_remote_code", "safetensors", "isolate", "127.0.0.1", "report"):
        assert word in said, word
    assert os.sep + "work" not in said
