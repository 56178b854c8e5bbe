"""Prompts from files: what is read, how conversations are rendered, and every way a file can be bad."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.cli.main import main
from rlhf_env.envs.file_task import File
from rlhf_env.envs.tasks import load_task
from rlhf_env.envs.tokenizers import FileTokenizer
from rlhf_env.errors import ConfigError, DataError, MissingExtra
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.workplace import build
from rlhf_env.testing import check_task
from rlhf_env.types import Prompt


def write(file: Path, content: str | bytes | Sequence[Any]) -> str:
    """The file with these bytes, or this text, or these rows as JSON lines; its path."""
    if not isinstance(content, (str, bytes)):
        content = "".join(json.dumps(row) + "\n" for row in content)
    file.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return str(file)


def problems(path: str, **settings: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        File(path, **settings)
    assert caught.value.exit_code == 2
    return [problem.removeprefix(f"{path}, ") for problem in caught.value.problems]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.tsv", "data"])
def test_rows_become_prompts_and_other_columns_metadata(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "rows.jsonl":
        write(path, b'\xef\xbb\xbf{"prompt": "2 + 2?", "answer": "4"}\r\n\n{"prompt": "a\\u2028b", "answer": ""}')
    elif name == "data":
        datasets = pytest.importorskip("datasets")
        rows = [{"prompt": "2 + 2?", "answer": "4"}, {"prompt": "a\u2028b", "answer": ""}]
        datasets.DatasetDict(test=datasets.Dataset.from_list(rows)).save_to_disk(path)
    else:
        comma = "," if name == "rows.csv" else "\t"
        write(path, f'prompt{comma}answer\n"2 + 2?"{comma}4\n\na\u2028b{comma}\n')
    task = File(str(path), split="test")
    line = {"rows.jsonl": (1, 3), "data": (1, 2)}.get(name, (2, 4))
    assert [task.prompt(i, {}) for i in range(3)] == [
        Prompt(f"{name}:{line[0]}", "2 + 2?", {"answer": "4"}),
        Prompt(f"{name}:{line[1]}", "a\u2028b", {"answer": ""}),
        Prompt(f"{name}:{line[0]}", "2 + 2?", {"answer": "4"}),
    ]
    check_task(task)


def test_turns_of_sharegpt_are_messages(tmp_path: Path) -> None:
    turns = [("system", "Be kind."), ("human", "Hi?"), ("gpt", "Hello."), ("human", "And you?"), ("gpt", "Fine.")]
    roles = {"human": "user", "gpt": "assistant"}
    rows = {
        "conversations": [{"from": who, "value": said} for who, said in turns],
        "messages": [{"role": roles.get(who, who), "content": said} for who, said in turns],
    }
    path = write(tmp_path / "p.jsonl", [{column: content, "id": 7} for column, content in rows.items()])
    one, other = (File(path).prompt(index, {}) for index in range(2))
    assert replace(one, id=other.id) == other
    assert one.meta == {"completion": "Fine.", "id": 7} and len(one.messages) == 4
    wrong = [[{"from": "human", "value": 3}], [{"from": "human"}], "Hi?"]
    assert problems(write(tmp_path / "wrong.jsonl", [{"conversations": it} for it in wrong])) == [
        "line 1, field 'conversations': message 1, 'content': expected a text, got int",
        "line 2, field 'conversations': message 1, 'role': expected a text, got null",
        "line 3, field 'conversations': expected a list of messages, got str",
    ]


def test_a_quoted_field_of_a_csv_may_run_over_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'prompt,n\n"one\ntwo ""three""",1\nfour,2\n')
    assert [(File(path).prompt(i, {}).id, File(path).prompt(i, {}).text) for i in range(2)] == [
        ("a.csv:2", 'one\ntwo "three"'),
        ("a.csv:4", "four"),
    ]
    path = write(tmp_path / "b.csv", 'prompt,n\n"one\ntwo",1\nfour\n')
    assert problems(path) == ["line 4: 1 fields, the header has 2"]


# ---------------------------------------------------------------- conversations

ASKS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi 😀"}]
ANSWERED = [*ASKS, {"role": "assistant", "content": "Hello."}]


@pytest.mark.parametrize("column", ["messages", "prompt"])
def test_a_conversation_is_plain_text_unless_a_template_is_named(column: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{column: ASKS, "level": 2}, {column: ANSWERED}])
    text = "System: Be brief.\nUser: Hi 😀\nAssistant:"
    assert [File(path).prompt(i, {}) for i in range(2)] == [
        Prompt("a.jsonl:1", text, {"level": 2}, tuple(ASKS)),
        Prompt("a.jsonl:2", text, {"completion": "Hello."}, tuple(ASKS)),
    ]


TEMPLATES = {
    "begin": "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}",
    "bare": "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    "strict": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ messages[0].content }}",
}


@pytest.fixture
def model(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A byte-level tokenizer that puts its begin token before whatever it encodes, with one of the templates."""
    import tokenizers
    from tokenizers import decoders, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=letters, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = TEMPLATES[request.param]
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize(("model", "begins"), [("begin", 1), ("bare", 0)], indirect=["model"])
def test_a_models_own_template_is_applied_once(model: str, begins: int, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    task = File(write(tmp_path / "a.jsonl", [{"messages": ANSWERED}]), chat_template=model)
    theirs = AutoTokenizer.from_pretrained(model)
    wanted = theirs.apply_chat_template(ASKS, add_generation_prompt=True, return_dict=False)
    ours = FileTokenizer(model).encode(task.prompt(0, {}).text)
    assert ours == wanted, "the ids are the model's own"
    assert ours.count(theirs.bos_token_id) == begins
    assert theirs(task.prompt(0, {}).text)["input_ids"].count(theirs.bos_token_id) == begins + 1, "the trap is there"


@pytest.mark.parametrize("model", ["strict"], indirect=True)
def test_a_template_that_refuses_names_the_line(model: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"messages": ASKS[1:]}, {"messages": ASKS}])
    assert problems(path, chat_template=model) == [
        "line 2, field 'messages': the chat template refuses it: no system role: change its messages, or leave it out"
    ]


def test_a_template_that_cannot_be_had(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"messages": ASKS}] * 3)
    (tmp_path / "empty").mkdir()
    assert len(problems(path, chat_template=str(tmp_path / "empty"))) == 1
    assert File(write(tmp_path / "b.jsonl", [{"prompt": "Hi"}]), chat_template="nowhere/at-all").size == 1, "not needed"


# ---------------------------------------------------------------- bad files


def test_every_bad_line_is_named_with_its_field(tmp_path: Path) -> None:
    lines = [
        b'{"prompt": "fine"}',
        b'{"prompt": "no end',
        b'{"text": "x", "answer": 1}',
        b'{"prompt": null}',
        b'{"prompt": 3}',
        b'{"prompt": "   \\n"}',
        b"[1, 2]",
        b'{"prompt": "caf\xe9"}',
        b'{"messages": "Hi"}',
        b'{"messages": []}',
        b'{"messages": [{"role": "user"}]}',
        b'{"messages": [{"role": "assistant", "content": "Hello."}]}',
        b'{"messages": ["Hi"]}',
        b"[" * 100_000,
        b'{"prompt": ' + b"9" * 5000 + b"}",
    ]
    found = problems(write(tmp_path / "bad.jsonl", b"\n".join(lines)))
    wanted = [
        "line 8: not UTF-8: byte 0xe9 at position 16",
        "line 2: not JSON: Unterminated string starting at at position 12",
        "line 3: no field 'prompt' (or 'messages'), it has 'text', 'answer': rename the one that is asked",
        "line 4, field 'prompt': expected a text, got null",
        "line 5, field 'prompt': expected a text, got int",
        "line 6, field 'prompt': it has no text",
        'line 7: expected an object, {"prompt": ...}, got list',
        "line 9, field 'messages': expected a list of messages, got str",
        "line 10, field 'messages': no message asks for an answer",
        "line 11, field 'messages': message 1, 'content': expected a text, got null",
        "line 12, field 'messages': no message asks for an answer",
        "line 13, field 'messages': message 1: expected an object with role and content, got str",
    ]
    assert found[:-2] == wanted
    assert found[-2].startswith("line 14: this JSON cannot be read") and found[-1].startswith("line 15: this JSON")


def test_a_report_stops_at_twenty(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", [{"prompt": None}] * 45 + [{"prompt": "fine"}])
    found = problems(path)
    assert len(found) == 21 and found[19].startswith("line 20,")
    assert found[20] == f"... and 25 more problems in {path}"
    assert len(problems(write(tmp_path / "b.jsonl", [{"prompt": None}] * 20))) == 20


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"", "a.jsonl: no prompts: the file is empty"),
        ("a.jsonl", b"\n\n", "no prompts"),
        ("a.csv", b"", "no prompts"),
        ("a.csv", b"prompt,n\n", "no prompts"),
        ("a.csv", b"text\nHi\n", "line 2: no field 'prompt' (or 'messages'), it has 'text'"),
        ("a.csv", b"prompt,a,a\nHi,1,2\n", "line 1: more than one column is named 'a'"),
        ("a.csv", b"prompt,a\nHi,1,2\n", "line 2: 3 fields, the header has 2"),
        ("a.csv", b"prompt\nHi\n\xff\xfe\n", "line 3: not UTF-8: byte 0xff at position 1"),
        ("a.csv", b'prompt\nHi\n"open', "line 3: not CSV: unexpected end of data"),
        ("a.csv", b"prompt,messages\n,Hi\n", "line 2, field 'prompt': it has no text"),
        ("a.txt", b"Hi", "ends in one of .jsonl"),
        ("a.parquet", b"PAR1", "save the table as one of these, or, with the library datasets, as a folder"),
    ],
)
def test_a_file_that_cannot_be_used(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    assert any(says in problem for problem in problems(write(tmp_path / name, content)))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in problems(str(tmp_path / "none.jsonl"))[0]
    with pytest.raises(ConfigError, match="held_out_fraction"):
        load_task({"name": "file", "path": write(tmp_path / "a.jsonl", [{"prompt": "Hi"}]), "held_out_fraction": 1.0})


def test_data_sets_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    folder = str(tmp_path / "data")
    datasets.DatasetDict(test=datasets.Dataset.from_list([{"prompt": None}])).save_to_disk(folder)
    assert problems(folder) == [f"{folder}: no split 'train', it has test"]
    assert problems(folder, split="test") == [f"{folder} [test], row 1, field 'prompt': expected a text, got null"]

    def no_network(name: str) -> Any:
        raise ConnectionError(f"{name} is far away")

    monkeypatch.setattr(datasets, "load_dataset", no_network)
    assert "check the name, or the network" in problems("owner/name")[0]
    monkeypatch.setattr(datasets, "load_dataset", lambda _: {"train": [{"messages": ASKS}]})
    assert File("owner/name").prompt(0, {}).id == "name:1"
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"rlhf-env\[datasets\]"):
        File("owner/name")


def test_the_command_line_exits_with_2_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bad.jsonl", [{"prompt": "fine"}, {"prompt": 3}, {"answer": 1}])
    settings = (
        '[task]\nname = "file"\npath = "bad.jsonl"\n[policy]\ntokenizer = "bytes"\n[rewards.length]\ntarget = 3\n'
    )
    write(tmp_path / "run.toml", settings)
    monkeypatch.setattr("sys.argv", ["rlhf-env", "train", "run.toml"])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert "bad.jsonl, line 2, field 'prompt'" in said and "bad.jsonl, line 3" in said and "Traceback" not in said


def test_the_file_is_read_before_the_model_and_its_problems_come_with_all_others(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", [{"prompt": "fine"}, {"prompt": 3}, {"answer": 1}])
    experiment = Experiment.from_table(
        {
            "task": {"name": "file", "path": bad},
            "policy": {"model": str(tmp_path / "no-such-model"), "tokenizer": "bytes"},
            "rewards": {"lenght": 1.0},
            "agent": {"name": "pop"},
        }
    )
    with pytest.raises(ConfigError) as caught:
        build(experiment)
    said = [problem.removeprefix(f"{bad}, ") for problem in caught.value.problems]
    assert said[0] == "line 2, field 'prompt': expected a text, got int" and said[1].startswith("line 3: no field")
    assert said[2].startswith("unknown reward 'lenght'") and said[3].startswith("unknown agent 'pop'")
    assert len(said) == 4, "the model was not looked for"
