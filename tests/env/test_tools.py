"""Tools: a call is read in the family's form, runs within its limits, and its answer is what the template writes."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from chat_tokenizers import CHATML, save_chat_tokenizer, templates_of_trl
from tool_templates import FAMILIES, HERMES

from rlhf_env.envs import tool_functions
from rlhf_env.envs.mixture import Mixture
from rlhf_env.envs.tasks import Prompts
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.tokenizers import ByteTokenizer, FileTokenizer, prompt_ids
from rlhf_env.envs.tool_calls import ToolCall, calls_in, require_calls
from rlhf_env.envs.tool_task import ToolUse
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.types import Episode

CALCULATOR = Path(__file__).parents[2] / "examples/tools/calculator.py"
ADD = [f"{CALCULATOR}:calculate"]
SLOW = '''
import time


def wait(seconds: float) -> str:
    """Wait.

    Args:
        seconds: How long.
    """
    time.sleep(seconds)
    return "waited"


def leave() -> str:
    """Leave."""
    import os

    os._exit(3)


def long() -> str:
    """Say much."""
    return "x" * 5000


def table(of: list[int]) -> dict:
    """Make a table.

    Args:
        of: Numbers.
    """
    return {"squares": [it * it for it in of], "é": None}
'''


@pytest.fixture(autouse=True, scope="module")
def one_process_for_all() -> Iterator[None]:
    """Equal tools share a process: to start one takes longer than a test."""
    usual, kept = tool_functions.isolated_calls, {}

    def shared(build: Any, limits: Any) -> Any:
        key = str(build.args), limits.timeout
        return kept[key] if key in kept else kept.setdefault(key, usual(build, limits))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool_functions, "isolated_calls", shared)
        yield


def tokenizer_of(tmp_path: Path, template: str) -> FileTokenizer:
    return FileTokenizer(save_chat_tokenizer(tmp_path / "model", template, begins=False))


def asked(tools: Sequence[str] = ADD, **settings: Any) -> ToolUse:
    return ToolUse(Prompts(["What is 12 * 3?"]), list(tools), **settings)


def play(task: Any, tokenizer: Any, turns: Sequence[str | list[int]], action_length: int = 1, **more: Any) -> Episode:
    """The episode in which an agent says these, closing each with the end token (a list of ids is said as it is)."""
    env = TextVectorEnv(
        1,
        task=task,
        tokenizer=tokenizer,
        reward={"length": {"target": 3}},
        max_new_tokens=2048,
        max_prompt_tokens=2048,
        action_length=action_length,
        **more,
    )
    env.reset(seed=0)
    for turn in turns:
        ids = turn if isinstance(turn, list) else [*tokenizer.encode(turn), tokenizer.end_id]
        for start in range(0, len(ids), action_length):
            part = ids[start : start + action_length]
            padded = part + [tokenizer.vocab_size] * (action_length - len(part))
            *_, infos = env.step(np.array([padded[0] if action_length == 1 else padded]))
    if "text_episode" not in infos:
        return env.cut(0)["text_episode"]
    episode: Episode = infos["text_episode"][0]
    return episode


CALL = {"name": "calculate", "arguments": {"a": 12, "b": 3, "operation": "*"}}
WRITTEN = {
    "hermes": '<tool_call>\n{"name": "calculate", "arguments": {"a": 12, "b": 3, "operation": "*"}}\n</tool_call>',
    "llama": '{"name": "calculate", "parameters": {"a": 12, "b": 3, "operation": "*"}}',
    "mistral": '[TOOL_CALLS][{"name": "calculate", "arguments": {"a": 12, "b": 3, "operation": "*"}, '
    '"id": "call00000"}]',
}


@pytest.mark.parametrize("action_length", [1, 2048])
@pytest.mark.parametrize("how", ["auto", "own"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_the_tokenizers_own_rendering(
    family: str, how: str, action_length: int, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(tmp_path, FAMILIES[family])
    task = asked(call_format=family if how == "own" else "auto")
    episode = play(task, tokenizer, [WRITTEN[family], "It is 36."], action_length)
    assert episode.finish_reason == "task"
    assert [message["role"] for message in episode.messages] == ["assistant", "tool", "assistant"]
    assert episode.messages[0]["tool_calls"][0]["function"] == CALL
    assert (episode.messages[1]["content"], episode.messages[2]["content"]) == ("36", "It is 36.")
    whole = tokenizer.own.apply_chat_template(
        [*task.prompt(0, {}).messages, *episode.messages], tools=task.tools.schemas, return_dict=False
    )
    ours = episode.ids.tolist()
    assert ours == whole[: len(ours)]
    assert tokenizer.own.decode(whole[len(ours) :]).strip() == ""  # the line after the last turn
    # What the environment wrote is no action, and nothing else is.
    by_the_agent = tokenizer.own.decode(episode.response_ids[episode.actions].tolist())
    assert by_the_agent == f"{WRITTEN[family]}<|im_end|>It is 36.<|im_end|>"
    assert "36" in tokenizer.own.decode(episode.response_ids[~episode.actions].tolist())
    assert episode.turns == (WRITTEN[family], "It is 36.")


@pytest.mark.skipif(not templates_of_trl(), reason="TRL, whose templates these are, is not installed")
@pytest.mark.parametrize("template", templates_of_trl(), ids=lambda path: path.stem)
def test_templates_of_families_are_played_or_refused_by_name(template: Path, tmp_path: Path) -> None:
    """Whatever a template does with a call, the ids are its own, or it is refused before anything is written."""
    tokenizer = tokenizer_of(tmp_path, template.read_text(encoding="utf-8"))
    task = asked()
    prompt = task.prompt(0, {})
    try:
        require_calls(tokenizer, prompt)
    except DataError as error:
        assert str(error).startswith("tools: the model's chat template ")
        return
    messages = [*prompt.messages, {"role": "assistant", "content": "", "tool_calls": [ToolCall(**CALL).as_message(0)]}]
    own: dict[str, Any] = {"tools": task.tools.schemas, "tokenize": False}
    begun = tokenizer.own.apply_chat_template(list(prompt.messages), add_generation_prompt=True, **own)
    written = tokenizer.own.apply_chat_template(messages, **own)
    if not written.startswith(begun):
        pytest.skip("its generation prompt is no beginning of the answer")
    turn = tokenizer.encode(written.removeprefix(begun))
    ends = [place for place, token in enumerate(turn) if token in tokenizer.end_ids]
    if not ends:
        pytest.skip("it writes no end token")
    episode = play(task, tokenizer, [turn[: ends[-1] + 1], "36"])
    assert episode.messages[1]["content"] == "36"
    messages.append(dict(episode.messages[1]))
    theirs = tokenizer.encode(tokenizer.own.apply_chat_template(messages, add_generation_prompt=True, **own))
    if template.stem == "qwen3":  # which takes its empty thoughts out again: what the model wrote stays
        given = episode.response_ids[~episode.actions].tolist()
        assert theirs[-len(given) :] == given
        return
    assert episode.ids.tolist()[: len(theirs)] == theirs


def test_what_the_model_wrote_stays_where_a_template_rewrites_it(tmp_path: Path) -> None:
    """Qwen 3's takes the thoughts out of a turn that something follows."""
    thought = "{{ '<think>x</think>' if loop.last and m.role == 'assistant' else '' }}{{ m.content or '' }}"
    tokenizer = tokenizer_of(tmp_path, HERMES.replace("{{ m.content or '' }}", thought))
    episode = play(asked(), tokenizer, ["<think>x</think>" + WRITTEN["hermes"], "36"])
    plain = play(asked(), tokenizer_of(tmp_path / "plain", HERMES), ["<think>x</think>" + WRITTEN["hermes"], "36"])
    assert episode.ids.tolist() == plain.ids.tolist()


def test_errors_are_answers(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    tools = [*ADD, *(f"{tmp_path / 'slow.py'}:{name}" for name in ("wait", "leave", "long", "table"))]
    tokenizer = tokenizer_of(tmp_path, HERMES)

    def call(name: str, **arguments: Any) -> str:
        return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"

    turns = {
        call("calculate", a=1, b=2): "3",
        call("calculate", a=1, b=2, operation="/"): "error: KeyError: '/' (",
        call("calculate", a=1): "error: TypeError: calculate() missing 1 required positional argument: 'b'",
        call("calculator", a=1): "error: there is no function 'calculator', only calculate, wait, leave, long, table",
        "<tool_call>{calculate}</tool_call>": "error: not JSON: ",
        '<tool_call>"calculate"</tool_call>': 'error: expected an object {"name": ..., "arguments": {...}}',
        '<tool_call>{"name": "calculate", "arguments": [1, 2]}</tool_call>': "error: the arguments of calculate are no",
        call("wait", seconds=30): "error: wait gave no answer within 1 s",
        call("leave"): "error: leave ended its process",
        call("table", of=[1, 2]): '{"squares": [1, 4], "é": null}',
        call("long"): "x" * 100 + "... (4900 more characters)",
    }
    task = asked(tools, seconds=1.0, max_calls=20, longest_answer=100)
    episode = play(task, tokenizer, [*turns, "done"])
    answers = [it["content"] for it in episode.messages if it["role"] == "tool"]
    assert [answer[: len(said)] for answer, said in zip(answers, turns.values(), strict=True)] == list(turns.values())
    assert task.take_logged() == {"tools/failed": [0.0, *[1.0] * 8, 0.0, 0.0]}
    assert task.take_logged() == {}


def test_so_many_calls_and_no_more(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, HERMES)
    two = "Let me see.\n" + WRITTEN["hermes"] * 2
    episode = play(asked(max_calls=3), tokenizer, [two, WRITTEN["hermes"], WRITTEN["hermes"]])
    assert episode.finish_reason == "task" and len(episode.turns) == 3
    assert [it["role"] for it in episode.messages] == ["assistant", "tool", "tool", "assistant", "tool", "assistant"]
    assert episode.messages[0]["content"] == "Let me see."
    assert len({it["tool_call_id"] for it in episode.messages if it["role"] == "tool"}) == 3
    assert play(asked(max_calls=1), tokenizer, [two]).messages == ()


def test_a_turn_that_a_stop_string_ends_is_closed_by_the_template(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, HERMES)
    task = asked()
    with_stop = play(task, tokenizer, [tokenizer.encode(WRITTEN["hermes"]), "36"], stop=["</tool_call>"])
    usual = play(task, tokenizer, [WRITTEN["hermes"], "36"])
    assert with_stop.ids.tolist() == usual.ids.tolist()
    assert (usual.actions & ~with_stop.actions).sum() == 1  # the end token of the first turn
    assert with_stop.messages[1]["content"] == "36"


def test_where_no_room_is_left_the_text_ends(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, HERMES)
    env = TextVectorEnv(
        2, task=asked(), tokenizer=tokenizer, reward="missing_end", max_new_tokens=130, max_prompt_tokens=1024
    )
    env.reset(seed=0)
    for token in [*tokenizer.encode(WRITTEN["hermes"]), tokenizer.end_id]:
        *_, infos = env.step(np.array([token, token]))
    assert infos["text_episode"][0].finish_reason == "length"
    assert infos["text_episode"][0].messages == ()  # nobody has read the answer
    assert env.reset(seed=0)[1].keys() == {"prompt", "_prompt", "prompt_id", "_prompt_id"}


def test_a_new_text_is_a_new_conversation(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, HERMES)
    env = TextVectorEnv(
        1, task=asked(), tokenizer=tokenizer, reward="missing_end", max_new_tokens=400, max_prompt_tokens=1024
    )
    for turns, messages in (([WRITTEN["hermes"], "36"], 3), (["36"], 0)):
        env.reset(seed=0)
        for turn in turns:
            for token in [*tokenizer.encode(turn), tokenizer.end_id]:
                *_, infos = env.step(np.array([token]))
        assert len(infos["text_episode"][0].messages) == messages


class Answers:
    """A task whose answers are known."""

    size = 2

    def __init__(self, part: str = "training") -> None:
        self.part = part

    def prompt(self, index: int, _options: Any, /) -> Any:
        from rlhf_env.types import Prompt

        return Prompt(f"{self.part}/{index}", "What is 12 * 3?", {"answer": "36"})

    def held_out(self) -> Answers:
        return Answers("held out")

    def score(self, episode: Episode, /) -> float:
        assert "tools" not in episode.prompt.meta
        return float(episode.response == episode.prompt.meta["answer"])

    def well_formed(self, episode: Episode, /) -> bool:
        return episode.response.isdecimal()


def test_the_last_turn_is_what_the_other_task_scores(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, HERMES)
    task = ToolUse(Answers(), ADD)
    for of in (task, task.held_out(), pickle.loads(pickle.dumps(task))):
        episode = play(of, tokenizer, [WRITTEN["hermes"], "36"])
        assert of.score(episode) == 1.0 and of.well_formed(episode)
    assert task.held_out().prompt(0, {}).id == "held out/0"
    silent = play(task, tokenizer, ["It is 36"])
    assert (silent.turns, silent.messages, task.score(silent)) == (("It is 36",), (), 0.0)
    assert not task.well_formed(silent) and not hasattr(asked(), "score")
    mixed = Mixture({"sums": task})
    episode = play(mixed, tokenizer, [WRITTEN["hermes"], "36"])
    assert mixed.score(episode) == 1.0 and episode.messages[1]["content"] == "36"


def test_a_conversation_is_asked_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text(
        json.dumps({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "12 * 3?"}]})
    )
    tokenizer = tokenizer_of(tmp_path, HERMES)
    task = ToolUse({"name": "file", "path": str(tmp_path / "chats.jsonl")}, ADD)
    prompt = task.prompt(0, {})
    messages = [dict(it) for it in prompt.messages]
    rendered = tokenizer.own.apply_chat_template(
        messages, tools=task.tools.schemas, add_generation_prompt=True, return_dict=False
    )
    assert prompt_ids(tokenizer, prompt) == rendered and len(messages) == 2
    given = json.dumps({"messages": messages, "tools": task.tools.schemas})
    (tmp_path / "chats.jsonl").write_text(given)
    with pytest.raises(DataError, match="it has tools of its own"):
        ToolUse({"name": "file", "path": str(tmp_path / "chats.jsonl")}, ADD).prompt(0, {})
    with pytest.raises(DataError, match="leave chat_template out"):
        ToolUse({"name": "file", "path": str(tmp_path / "chats.jsonl"), "chat_template": "plain"}, ADD).prompt(0, {})


@pytest.mark.parametrize(
    ("turn", "calls"),
    [
        ('<tool_call>{"name": "f", "arguments": {}}', [("f", {})]),  # not closed
        ('<tool_call>{"name": "f"}</tool_call> and <tool_call>{"name": "g"}</tool_call>', [("f", {}), ("g", {})]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [("f", {"a": 1})]),
        ('[TOOL_CALLS]f[ARGS]{"a": 1}', [("f", {"a": 1})]),
        ('[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]abc[ARGS]{}', [("f", {"a": 1}), ("g", {})]),
        ('  {"name": "f", "parameters": {"a": [1]}}\n', [("f", {"a": [1]})]),
        ('{"name": "f"', [("unreadable_call", {})]),
        ("[TOOL_CALLS][", [("unreadable_call", {})]),
        ("<tool_call>" + "[" * 100_000, [("unreadable_call", {})]),
        ("<tool_call>" * 100, [("unreadable_call", {})]),
        ('The name is "name".', []),
        ('{"answer": 3}', []),
        ("", []),
    ],
    ids=range(13),
)
def test_how_calls_are_read(turn: str, calls: list[tuple[str, Any]]) -> None:
    assert [(it.name, it.arguments) for it in calls_in(turn)[1]] == calls


WRONG = {
    "no types": ('def f(a):\n    """F.\n\n    Args:\n        a: A.\n    """\n', "f: Argument a is missing a type hint"),
    "no docstring": (
        "def f(a: int) -> int:\n    return a\n",
        "f: Cannot generate JSON schema for f because it ha",
    ),
    "no Args": ('def f(a: int) -> int:\n    """F."""\n', "has no description for the argument 'a'"),
    "a class": ("class f:\n    pass\n", "f is no function, but a type"),
    "async": ('async def f() -> int:\n    """F."""\n', "f is async"),
    "not there": ("def g() -> int:\n    pass\n", "mine.py has no 'f'. Known: g"),
    "a mistake": ("def f(:\n", "line 1 cannot be imported: SyntaxError"),
}


@pytest.mark.parametrize("what", WRONG)
def test_functions_that_are_no_tools(what: str, tmp_path: Path) -> None:
    source, said = WRONG[what]
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(ConfigError) as caught:
        asked([f"{tmp_path / 'mine.py'}:f", "mine.py", *ADD, *ADD])
    lines = [str(it) for it in caught.value.problems]
    assert len(lines) == 3 and all(line.startswith("tools: ") for line in lines)
    assert said in lines[0] and "is not of the form" in lines[1] and "two functions are called 'calculate'" in lines[2]


def test_models_that_cannot_call_are_refused_by_name(tmp_path: Path) -> None:
    def refused(template: str, says: str, **settings: Any) -> None:
        tokenizer = tokenizer_of(tmp_path, template) if template else ByteTokenizer()
        with pytest.raises(DataError, match=says):
            play(asked(**settings), tokenizer, [])

    refused("", "tools: this model has no chat template")
    refused(CHATML, "tools: the model's chat template does not tell it of tools")
    refused("{{ tools }}" + CHATML, "tools: the model's chat template writes a call as '', which call_format = 'auto'")
    refused(HERMES, "writes a call as '<tool_call>.*which call_format = 'llama' does not read", call_format="llama")
    xml = HERMES.replace('{"name": {{ c.function.name | tojson }}', "<function={{ c.function.name }}>")
    refused(xml, "which call_format = 'auto' does not read")
    unread = "{% if m.role == 'tool' %}"
    no_result = HERMES.replace(unread, unread + "{{ raise_exception('no tools') }}")
    refused(no_result, "tools: the model's chat template refuses the conversation: no tools")
    with pytest.raises(ConfigError, match="task: Guess answers itself, and has no tools"):
        ToolUse("guess", ADD)
    with pytest.raises(ConfigError, match="call_format must be"):
        asked(call_format="xml")
    with pytest.raises(ConfigError, match="tools must have one or more entries"):
        asked([])
