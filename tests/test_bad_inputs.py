"""What cannot be used is refused by name, through the command line and by Python; what only looks odd is taken."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_env.envs.file_task import File
from rlhf_env.envs.text_env import TextEnv
from rlhf_env.envs.tokenizers import AlphabetTokenizer, ByteTokenizer, FileTokenizer
from rlhf_env.errors import ConfigError, DataError, EnvironmentMisuse
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.workplace import build

sys.path.insert(0, str(Path(__file__).parent))
from bad_inputs import wrong_with
from wrong.table import BAD, PROMPTS, TOY, Bad


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_it_is_refused_by_name(bad: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert wrong_with(bad, tmp_path) == ""


def test_the_list_is_long_and_says_nothing_twice() -> None:
    assert len(BAD) > 150
    rows = Counter((bad.what, bad.command, bad.says, str(bad.files)) for bad in BAD)
    assert not [row for row, times in rows.items() if times > 1]


def test_what_is_taken_or_said_otherwise_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    toy = next(bad for bad in BAD if bad.what == "an unknown key")
    assert "exit status 0" in wrong_with(replace(toy, files={"toy.toml": TOY}), tmp_path)
    assert "expected ['unheard of']" in wrong_with(replace(toy, says=("unheard of",)), tmp_path)
    assert "Python takes it" in wrong_with(replace(toy, python=lambda: None), tmp_path)


# ---------------------------------------------------------------- the Python API alone


def test_a_token_id_outside_the_vocabulary() -> None:
    env = TextEnv(task={"name": "echo", "length": 1}, tokenizer=AlphabetTokenizer("ab="), max_new_tokens=2)
    env.reset(seed=0)
    with pytest.raises(EnvironmentMisuse, match="99"):
        env.step(np.array(99))


@pytest.mark.parametrize("role", ["end", "pad"])
def test_a_tokenizer_without_an_end_or_a_pad_token(role: str, tmp_path: Path) -> None:
    import tokenizers

    model = tokenizers.models.WordLevel({"a": 0, "</s>": 1}, unk_token="a")
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    named = {"end": {}, "pad": {"end": "</s>", "pad": "<pad>"}}[role]
    with pytest.raises(DataError, match=f"has no {role} token .*: name one of its tokens in its tokenizer_config.json"):
        FileTokenizer(tmp_path, **named)


# ---------------------------------------------------------------- legal, and not an error

ODD = {
    "emoji": "\U0001f600\U0001f469\u200d\U0001f680",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u202e!",
    "NUL": "a\x00b",
    "a lone surrogate": "\ud800 alone",
    "escape": "\x1b[31mred",
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_odd_text_is_a_prompt(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text(json.dumps({"prompt": text}), encoding="ascii")
    Path("toy.toml").write_text(PROMPTS.replace("PATH", "a.jsonl"), encoding="utf-8")
    assert File("a.jsonl").prompt(0, {}).text == text
    workplace = build(Experiment.load("toy.toml"))
    workplace.check_prompts()
    observation, _ = workplace.env.reset(seed=0)
    assert observation["input_ids"][0, : len(ByteTokenizer().encode(text))].tolist() == ByteTokenizer().encode(text)


def test_an_empty_response_is_a_response() -> None:
    tokenizer = AlphabetTokenizer("ab=")
    env = TextEnv(task={"name": "echo", "length": 1}, tokenizer=tokenizer, max_new_tokens=2)
    env.reset(seed=0)
    _, reward, terminated, truncated, _ = env.step(np.array(tokenizer.end_id))
    assert (terminated, truncated) == (True, False)
    assert np.isfinite(reward)


@pytest.mark.parametrize("bytes_of", ["\ufeff" + TOY, TOY.replace("\n", "\r\n")], ids=["a BOM", "CRLF"])
def test_toml_as_other_editors_write_it(bytes_of: str, tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_bytes(bytes_of.encode("utf-8"))
    assert Experiment.load(tmp_path / "toy.toml").agent == {"name": "ppo", "lr": 0.01}


def test_a_text_of_python_that_no_file_can_hold_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="seed must be from 0 to 1,099,511,627,775"):
        Experiment(seed=2**62)
    with pytest.raises(ConfigError, match="embedded null byte"):
        Experiment.load("a\x00b")
