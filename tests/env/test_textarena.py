"""The bridge to textarena, against the real package: games that need no download."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

pytest.importorskip("textarena")

from rlhf_env.envs.text_env import TextEnv
from rlhf_env.envs.textarena_task import TextArena
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.testing import check_task

END = 258
OFFLINE = [
    "2048-v0",
    "Bandit-v0",
    "Blackjack-v0",
    "FrozenLake-v0",
    "GuessTheNumber-v0",
    "Mastermind-v0",
    "Minesweeper-v0",
]
OFFLINE += ["PegJump-v0", "Secretary-v0", "Set-v0", "Sudoku-v0-easy", "ThreeCardMonte-v0", "TowerOfHanoi-v0"]


def say(env: TextEnv, words: str) -> tuple[str, float, bool, dict[str, Any]]:
    """One turn in a whole-response view; what the game answers, and how the step ended."""
    said = [*words.encode(), END]
    observation, reward, terminated, _, info = env.step(said + [259] * (env.action_space.shape[0] - len(said)))
    text = env.tokenizer.decode(observation["input_ids"][: observation["attention_mask"].sum()].tolist())
    return text.rpartition(words)[2], reward, terminated, info


def test_a_number_is_guessed_by_halving_for_the_games_own_reward() -> None:
    for index in range(6):
        env = TextEnv(
            task=TextArena("GuessTheNumber-v0"), max_prompt_tokens=700, max_new_tokens=400, action_length=None
        )
        _, info = env.reset(options={"indices": [index]})
        assert "between 1 and 20" in info["prompt"]
        low, high, terminated, turns = 1, 20, False, []
        while not terminated:
            turns.append(str((low + high) // 2))
            answer, reward, terminated, info = say(env, turns[-1])  # brackets are added, as textarena does
            if "higher" in answer:
                low = int(turns[-1]) + 1
            elif "lower" in answer:
                high = int(turns[-1]) - 1
        assert (reward, info["finish_reason"]) == (1.0, "task") and len(turns) <= 5
        episode = info["text_episode"]
        assert episode.turns == tuple(turns)
        written = bytes(episode.response_ids[~episode.actions].tolist()).decode()
        assert len(re.findall("The target number is", written)) == len(turns) - 1


def test_a_lost_game_is_worth_what_the_game_says() -> None:
    env = TextEnv(task=TextArena("GuessTheNumber-v0"), max_prompt_tokens=700, max_new_tokens=600, action_length=None)
    env.reset(options={"indices": [0]})
    answer, reward, terminated, _ = say(env, "no idea")
    assert "invalid move" in answer and not terminated and reward == 0.0
    _, reward, terminated, info = say(env, "none")
    assert terminated and info["finish_reason"] == "task" and reward == 0.0, "two invalid moves, no number guessed"


@pytest.mark.parametrize("game", OFFLINE)
def test_games_begin_and_go_on_by_number_alone(game: str) -> None:
    task = TextArena(game)
    before = random.getstate()
    first, other = task.prompt(3, {}), task.prompt(8, {})
    standings = [(task._play(7, ("[1]", "[2]")), task._play(17, ("[1]",))) for _ in range(2)]
    assert standings[0] == standings[1] and [task.prompt(3, {}), task.prompt(8, {})] == [first, other]
    assert random.getstate() == before, "the global generator is left alone"
    assert first.text.strip() and first.id == f"{game}/6"


def test_the_contract() -> None:
    check_task(TextArena("Mastermind-v0", {"code_length": 3}))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"game": "GuessTheNumbers-v0"}, "did you mean 'GuessTheNumber-v0'"),
        ({"game": "ConnectFour-v0"}, "cannot be played by one player"),
        ({"game": "MarketEntryGame-v0"}, "not a game for one player"),
        ({"game": "GuessTheNumber-v0", "settings": {"numbers": 3}}, "numbers"),
    ],
)
def test_games_that_cannot_be_played(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TextArena(**settings)


def test_a_game_whose_word_lists_are_missing_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    def no_lists(*_arguments: Any, **_settings: Any) -> bool:
        return False

    monkeypatch.setattr(nltk, "download", no_lists)
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(DataError, match="nltk\\.downloader words"):
        TextArena("Hangman-v0")
