"""What rewards see: text without special tokens, but for those that a setting keeps, in every view."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from rlhf_env.envs.endings import finished_episodes
from rlhf_env.envs.stop_strings import require_stop_strings
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.tokenizers import ByteTokenizer, FileTokenizer, keeping_special
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.lab.chat import open_chat
from rlhf_env.lab.evaluation.evaluator import Evaluator
from rlhf_env.lab.evaluation.runs import load_run, run
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.workplace import build
from rlhf_env.pipeline.responses import Responses, write_into
from rlhf_env.types import Episode, Float, Int

sys.path.insert(0, str(Path(__file__).parents[1]))
from chat_tokenizers import save_chat_tokenizer

# "<|im_start|>" stands for <think>; "</s>" is special too, and the last one ends a text.
THINK, OTHER, END = 259, 257, 260


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_tokenizer(tmp_path_factory.mktemp("kept") / "model")


class Seen:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        self.texts += [episode.response for episode in episodes]
        return np.zeros(len(episodes))


def seen(tokenizer: FileTokenizer, tokens: Int, length: int | None, stop: Sequence[str] = ()) -> list[str]:
    reward = Seen()
    env = TextVectorEnv(
        1,
        task={"name": "prompts", "prompts": ["Hi"]},
        reward={"seen": (1.0, reward)},
        tokenizer=tokenizer,
        max_new_tokens=max(len(tokens), 2),
        max_prompt_tokens=8,
        action_length=length,
        autoreset_mode="Disabled",
        stop=stop,
    )
    env.reset(seed=0)
    size = env.action_length
    for start in range(0, len(tokens), size):
        piece = np.full((1, size), tokenizer.vocab_size)
        piece[0, : len(tokens[start : start + size])] = tokens[start : start + size]
        _, _, terminated, truncated, _ = env.step(piece if size > 1 else piece[:, 0])
        if terminated[0] or truncated[0]:
            break
    return reward.texts


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([THINK, OTHER, 256, 40, 41, 42]), min_size=1, max_size=6), st.booleans())
def test_every_view_shows_the_same(folder: Path, ids: list[int], ends: bool) -> None:
    tokenizer = FileTokenizer(folder, keep_special=["<|im_start|>"])
    letters = {i: tokenizer.own.decode([i]) for i in (40, 41, 42)} | {THINK: "<|im_start|>"}
    expected = "".join(letters.get(i, "") for i in ids)
    tokens = np.array([*ids, END] if ends or len(ids) == 1 else ids, dtype=np.int64)
    for length in (None, 2, 1):
        assert seen(tokenizer, tokens, length) == [expected]
    asked = [np.array([40])]
    (episode,) = finished_episodes([None], asked, tokens[None], tokenizer, nothing=tokenizer.vocab_size)  # type: ignore[list-item]
    assert episode.response == expected
    assert FileTokenizer(folder).decode(ids) == expected.replace("<|im_start|>", ""), "as without the setting"


def test_a_kept_token_may_be_a_stop_string(folder: Path) -> None:
    tokenizer = FileTokenizer(folder, keep_special=["<|im_start|>"])
    tokens = np.array([40, THINK, 41, END])
    for length in (None, 2, 1):
        (text,) = seen(tokenizer, tokens, length, ["<|im_start|>"])
        assert text == tokenizer.own.decode([40])
    with pytest.raises(ConfigError, match=r"no text shows the special token '<\|im_start\|>'"):
        build(experiment([], stop=["<|im_start|>"], tokenizer=str(folder)))
    require_stop_strings(["<|im_start|>"], tokenizer)


def test_it_is_kept_where_the_tokenizer_goes(folder: Path) -> None:
    tokenizer = FileTokenizer(folder, keep_special=["<|im_start|>"]).belonging_to(300, [261])
    again = pickle.loads(pickle.dumps(tokenizer))
    for each in (tokenizer, again):
        assert (each.decode([THINK, OTHER]), each.vocab_size, each.end_ids) == ("<|im_start|>", 300, (260, 261))


@pytest.mark.parametrize(
    ("token", "said"), [("<thnik>", "is no token of the tokenizer"), ("<|im_end|>", "ends a text"), ("", "is no token")]
)
def test_what_is_refused(folder: Path, token: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        keeping_special(FileTokenizer(folder), [token])
    with pytest.raises(DataError, match="no special tokens: '<think>'"):
        keeping_special(ByteTokenizer(), ["<think>"])
    with pytest.raises(ConfigError, match=r"^keep_special: '<thnik>' is no token"):
        build(experiment(["<thnik>"], tokenizer=str(folder)))


def experiment(keep: list[str], stop: Sequence[str] = (), tokenizer: str = "bytes") -> Experiment:
    own = {"model": "tiny", "tokenizer": tokenizer}
    return Experiment.from_table(
        {
            "policy": own,
            "task": {"name": "prompts", "prompts": ["Hello"]},
            "environment": {"num_envs": 32, "max_new_tokens": 24, "keep_special": keep, "stop": list(stop)},
            "rewards": {"length": {"target": 9}, "kl": 0.0},
            "agent": {"name": "reinforce", "lr": 1e-9},
            "budget": {"updates": 1},
            "evaluation": {"prompts": 32},
        }
    )


def test_a_run_its_evaluation_its_chat_and_its_answers_agree(folder: Path, tmp_path: Path) -> None:
    """An untrained model writes special tokens as often as any others."""
    trained = tmp_path / "run"
    run(experiment(["<|im_start|>"], tokenizer=str(folder)), trained)
    workplace = load_run(trained).workplace
    with PreferenceStore(tmp_path / "s.db") as store:
        wanted = Responses(model=str(trained), task={"name": "prompts", "prompts": ["Hello"]}, prompts=1, samples=32)
        write_into(store, wanted, console=Console(quiet=True))
        texts = {
            "training": [it.response for it in workplace.source.next(workplace.agent).episodes],
            "evaluation": [it["response"] for it in Evaluator.of(workplace)().samples],
            "answers": [response.text for _, response in store.responses()],
        }
    for name, written in texts.items():
        assert any("<|im_start|>" in text for text in written), name
        assert not any("</s>" in text or "<|end_of_text|>" in text for text in written), name
    assert open_chat(str(trained)).tokenizer.decode([THINK, OTHER]) == "<|im_start|>"
    assert "keep_special" not in experiment([]).to_toml()
