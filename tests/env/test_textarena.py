"""The bridge to textarena, against the real package: games that need no download."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("textarena")

from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.text_env import TextEnv
from rlhf_env.envs.textarena_task import TextArena
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.testing import check_task, make_episode

END = 258
# The games that the task lists: these need nothing but the package, the others word lists.
OFFLINE = ["2048", "Bandit", "Blackjack", "Countdown", "Crosswords", "Cryptarithm", "FifteenPuzzle", "FrozenLake"]
OFFLINE += ["GuessTheNumber", "LightsOut", "LogicPuzzle", "Mastermind", "Minesweeper", "PegJump", "RushHour"]
OFFLINE += ["Secretary", "Set", "Slitherlink", "Sokoban", "Sudoku", "ThreeCardMonte", "TowerOfHanoi"]
WITH_WORDS = ["Wordle", "Hangman", "WordLadder", "WordSearch"]
PAY_A_TEXT = {"Countdown", "Cryptarithm", "Slitherlink", "ThreeCardMonte"}  # at the second invalid move, in 0.7.4
# What is said in garbage that no game takes for a move: whoever says nothing else has earned nothing.
GARBAGE = ["", "garbage", "[", "[[]]", "nan", "[-1]", "\x00 é😀", "[" + "9" * 30 + "]", "x" * 2000]
# In a process of its own: a line per game that says what it asks and answers. The word lists are the package's own.
PLAY = """
import glob, hashlib, os, sys
import nltk, textarena
nltk.download = lambda *_, **__: True
nltk.data.path = [sys.argv[1]]
nltk.pos_tag = lambda words, *_: [(word, "NN") for word in words]
folder = os.path.join(sys.argv[1], "corpora", "words")
if not os.path.isdir(folder):
    os.makedirs(folder)
    lines = open(glob.glob(os.path.dirname(textarena.__file__) + "/envs/utils/data/*US.dic")[0], errors="ignore")
    words = [word for line in lines if (word := line.split("/")[0].strip()).isalpha() and word.islower()]
    for name, some in (("en", words[::9]), ("en-basic", [word for word in words if len(word) < 7][::9])):
        open(os.path.join(folder, name), "w").write("\\n".join(some))
from rlhf_env.envs.textarena_task import TextArena
for name in sys.argv[2:]:
    task = TextArena(name + "-v0")
    asked = [task.prompt(index, {}).text for index in range(1 if name in ("RushHour", "Sokoban") else 2)]
    asked += [repr(task._play(0, ("[1]", "[up]", "[0 0]", "[e]")))]
    print(name, hashlib.sha256(repr(asked).encode()).hexdigest())
"""


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


def garbled(task: TextArena, turns: tuple[str, ...], index: int = 0) -> float:
    prompt = task.prompt(index, {})
    return task.score(replace(make_episode(prompt.text, "x"), prompt=prompt, turns=turns))


@pytest.mark.parametrize("game", OFFLINE)
def test_every_listed_game_is_played_to_its_end_by_garbage_for_nothing(
    game: str, capfd: pytest.CaptureFixture[str]
) -> None:
    task = TextArena(f"{game}-v0")
    for words in GARBAGE[:2] if game in ("RushHour", "Sokoban") else GARBAGE:  # which search for a second
        state = task._play(0, (words,) * 60)
        assert state.over, f"{game} goes on after 60 times {words[:20]!r}"
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert garbled(task, (words,) * 60) <= 0.0
        assert (state.reward is None) == bool(said) and all("gave no number" in str(it.message) for it in said)
    logged = task.take_logged()["textarena/no_number"]
    assert (sum(logged) > 0) == (game in PAY_A_TEXT) and task.take_logged() == {}
    assert not capfd.readouterr().out


def test_what_was_earned_before_an_invalid_move_stays() -> None:
    """PegJump pays for pegs that are gone, and one is gone when it begins."""
    task = TextArena("PegJump-v0")
    jump = "[12 5]"
    assert garbled(task, ("?", "?")) == 0.0 < task._worth_of_nothing(0) < garbled(task, (jump, "?", "?"))


def test_a_game_that_raises_is_over_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    task = TextArena("Mastermind-v0")

    def raises(_: str) -> None:
        raise ZeroDivisionError("in the library")

    monkeypatch.setattr(task._game, "step", raises)
    assert task._play(0, ("1",)).over
    with pytest.warns(
        RuntimeWarning, match="Mastermind-v0 gave no number: it raised ZeroDivisionError: in the library"
    ):
        assert garbled(task, ("1",)) == 0.0
    assert task.take_logged() == {"textarena/no_number": [1.0]}
    mix = load_rewards(None, task)
    with pytest.warns(RuntimeWarning, match="gave no number"):
        mix.score([replace(make_episode("", "x"), prompt=task.prompt(0, {}))])
    assert mix.take_logged() == {"textarena/no_number": 1.0}


def test_every_process_plays_the_same_games(tmp_path: Path) -> None:
    def process(hash_seed: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", PLAY, str(tmp_path / hash_seed), *OFFLINE, *WITH_WORDS]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    one, other = (started.communicate()[0].splitlines() for started in [process("1"), process("2")])
    assert [line.split()[0] for line in one] == [*OFFLINE, *WITH_WORDS]
    assert one == other


def test_an_id_names_the_game_and_its_settings() -> None:
    easy, hard = (TextArena("Mastermind-v0", {"code_length": length}).prompt(0, {}) for length in (3, 4))
    assert easy.id != hard.id and easy.id == TextArena("Mastermind-v0", {"code_length": 3}).prompt(0, {}).id


@pytest.mark.parametrize("game", OFFLINE)
def test_games_begin_and_go_on_by_number_alone(game: str) -> None:
    task = TextArena(game := f"{game}-v0")
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
        ({"game": "TwentyQuestions-v0"}, "asks a model over the network, whose answers no seed repeats"),
        ({"game": "GuessWho-v0"}, "asks a model over the network"),
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
