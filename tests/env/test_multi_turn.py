"""A task that answers: the environment's tokens are in the text and never among the agent's actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlhf_env.envs.text_env import TextEnv
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.types import Episode, Prompt, ResetOptions

END = 258


@dataclass(frozen=True)
class GuessTheLetter:
    """Says "higher." or "lower." until the agent's turn ends with the letter "m"; worth 1 / turns."""

    size = 1

    def prompt(self, _index: int, _options: ResetOptions, /) -> Prompt:
        return Prompt(id="guess", text="letter?")

    def reply(self, episode: Episode, /) -> str | None:
        guess = episode.response[-1:]
        if guess == "m":
            return None
        return "higher." if guess < "m" else "lower."

    def score(self, episode: Episode, /) -> float:
        if not episode.response.endswith("m"):
            return 0.0
        return 1.0 / int((episode.response_ids == END).sum())


def ids(text: str) -> list[int]:
    """Bytes; "|" is the end token."""
    return [END if letter == "|" else ord(letter) for letter in text]


def play(env: Any, turns: str) -> tuple[Any, float, dict[str, Any]]:
    """Say each turn, one step per token or one step per turn, as the environment wants it."""
    length = env._machine.action_length
    env.reset(seed=0)
    for turn in turns.replace("|", "|\n").split():
        said = ids(turn)
        pieces = said if length == 1 else [said + [259] * (length - len(said))]
        for piece in pieces:
            observation, reward, terminated, _, info = env.step(piece)
    assert terminated
    return observation, reward, info


@pytest.mark.parametrize("action_length", [1, 2, None])
def test_a_conversation_is_one_text(action_length: int | None) -> None:
    env = TextEnv(task=GuessTheLetter(), max_new_tokens=24, action_length=action_length)
    observation, reward, info = play(env, "a|z|m|")
    episode = info["text_episode"]
    assert episode.response_ids.tolist() == ids("a|higher.z|lower.m|")
    assert episode.response == "ahigher.zlower.m", "end tokens are not text"
    agent = "".join("." if action else "-" for action in episode.actions)
    assert agent == "..-------..------.."
    assert info["finish_reason"] == "task" and reward == 1 / 3
    text = observation["input_ids"][: observation["attention_mask"].sum()]
    assert text.tolist() == ids("letter?a|higher.z|lower.m|")


def test_the_environments_tokens_have_no_probability_of_the_agents() -> None:
    class Flat:
        def response_logprobs(self, episodes: Any) -> list[Any]:
            return [np.full(len(episode.response_ids), -2.0) for episode in episodes]

    env = TextEnv(task=GuessTheLetter(), max_new_tokens=24, reward={"kl": 1.0}, provided={"reference": Flat()})
    env.reset(seed=0)
    for _ in range(24):  # a text of the agent's tokens alone, of which nothing may be left in the next
        env.step({"tokens": ord("z"), "probs": 0.5})
    env.reset()
    for token in ids("a|m|"):
        *_, reward, terminated, _, info = env.step({"tokens": token, "probs": np.exp(-1.0)})
    assert terminated
    written = [0.0] * len("higher.")
    assert info["text_episode"].actions.tolist() == [True] * 2 + [False] * 7 + [True] * 2
    assert info["text_episode"].logprobs.tolist() == pytest.approx([-1, -1, *written, -1, -1])
    assert info["token_rewards"]["kl"][:11].tolist() == pytest.approx([-1, -1, *written, -1, -1])
    assert reward == pytest.approx(-4)


def test_tokens_after_the_end_of_a_turn_are_ignored_and_the_next_step_is_the_next_turn() -> None:
    env = TextEnv(task=GuessTheLetter(), max_new_tokens=24, action_length=4)
    env.reset(seed=0)
    observation, _, terminated, _, _ = env.step(ids("a|zz"))
    assert not terminated
    assert observation["attention_mask"].sum() == len("letter?a|higher.")


@pytest.mark.parametrize(("room", "ends"), [(9, True), (10, False)])
def test_a_conversation_ends_when_no_token_fits_after_the_answer(room: int, ends: bool) -> None:
    env = TextEnv(task=GuessTheLetter(), max_new_tokens=room)  # "a|higher." takes 9
    env.reset(seed=0)
    env.step(ord("a"))
    _, reward, terminated, truncated, info = env.step(END)
    assert (terminated, truncated) == (ends, False)
    if ends:
        assert (info["finish_reason"], reward, info["text_episode"].response) == ("length", 0.0, "a")
    else:
        assert env.step(ord("m"))[4]["finish_reason"] == "length"


def test_a_turn_may_be_empty() -> None:
    env = TextEnv(task=GuessTheLetter(), max_new_tokens=24)
    _, _, info = play(env, "|m|")
    assert info["text_episode"].response_ids.tolist() == ids("|higher.m|")


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP], ids=lambda mode: mode.name)
def test_the_native_vector_talks_as_the_single_does(mode: AutoresetMode) -> None:
    settings: dict[str, Any] = {"task": GuessTheLetter(), "max_new_tokens": 24}
    singles = SyncVectorEnv([lambda: TextEnv(**settings)] * 3, autoreset_mode=mode)
    native = TextVectorEnv(3, **settings, autoreset_mode=mode)
    stream = np.random.default_rng(0)
    singles.reset(seed=0)
    native.reset(seed=0)
    ended = 0
    for _ in range(60):
        tokens = stream.choice([ord("a"), ord("m"), END, END], size=3)
        one, other = singles.step(tokens), native.step(tokens)
        assert one[0]["input_ids"].tobytes() == other[0]["input_ids"].tobytes()
        assert one[1].tobytes() == other[1].tobytes()
        where = [answer[4].get("final_info", answer[4]).get("text_episode") for answer in (one, other)]
        assert (where[0] is None) == (where[1] is None)
        if where[0] is not None:
            assert list(where[0]) == list(where[1])
            ended += 1
    assert ended > 5
