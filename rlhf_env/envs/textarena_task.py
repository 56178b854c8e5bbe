"""A bridge to textarena (MIT): its one-player games as conversations between the agent and the game."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import textarena
from textarena.envs.registration import ENV_REGISTRY

from rlhf_env.envs.global_generators import lent_generators
from rlhf_env.envs.splits import Part
from rlhf_env.errors import ConfigError, DataError, Problem, did_you_mean
from rlhf_env.settings import fault, settings
from rlhf_env.types import Episode, JsonView, Prompt, ResetOptions, TrainerState

_FORMATTING = textarena.wrappers.ActionFormattingWrapper
# Their game master is a model on the network.
_ASKS_A_MODEL = ("GuessWho", "TwentyQuestions")
_NO_MOVE, _MOVES = "?", 10  # what no game takes for a move; a game that goes on after so many of these is worth nothing


@settings(kw_only=False)
class TextArena:
    """A one-player game of textarena, for example "GuessTheNumber-v0". The score is the game's own reward at its end.

    The prompt is the game's introduction, and each reply is the game's answer to a turn. As in textarena, a turn
    without square brackets is put into brackets if the game wants them. A game that is not over when the text is full
    scores 0, and so does one that ends by an invalid move and has earned no more than invalid moves alone would: some
    games pay for the position they begin in. A reward that is no number, and a game that raises, are 0 as well; the
    share of these is logged as `textarena/no_number`. What games print is not shown.

    Every index starts a game of its own, the same in every process, and evaluation plays other games than training.
    (Games with few different starts repeat them, in evaluation too.)

    These need nothing but the package: 2048, Bandit, Blackjack, Countdown, Crosswords, Cryptarithm,
    FifteenPuzzle, FrozenLake, GuessTheNumber, LightsOut, LogicPuzzle, Mastermind, Minesweeper, PegJump, RushHour,
    Secretary, Set, Slitherlink, Sokoban, Sudoku, ThreeCardMonte, TowerOfHanoi. Wordle, Hangman, WordLadder, WordSearch
    need word lists that nltk downloads. GuessWho and TwentyQuestions are refused: they ask a model over the network,
    whose answers no seed repeats.
    """

    game: str
    """An id of textarena's, without its endings "-train" and "-raw"."""
    settings: JsonView = field(default_factory=dict)
    """Arguments of the game, {"max_number": 7}."""
    part: Part = "training"
    """Which games: those of training, or those set aside for evaluation."""

    def problems(self) -> Iterator[Problem]:
        known = [name.removesuffix("-raw") for name in ENV_REGISTRY if name.endswith("-raw")]
        if self.game not in known:
            yield fault("game", f"{self.game!r} is not one of textarena's{did_you_mean(self.game, known)}")
            return
        if self._family in _ASKS_A_MODEL:
            why = "asks a model over the network, whose answers no seed repeats: it would be another game each time"
            yield fault("game", f"{self.game} {why}")
            return
        try:
            self._play(0, ())
        except LookupError as error:
            raise DataError(
                f"textarena's {self.game} needs word lists that are not installed: with a network, run once "
                "`python -m nltk.downloader words averaged_perceptron_tagger_eng`"
            ) from error
        except (Exception, SyntaxError) as error:  # games have requirements of their own: keys, files, players, Python
            raise ConfigError(
                f"textarena's {self.game} cannot be played by one player here: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(self._game.state, textarena.SinglePlayerState):
            yield fault("game", f"{self.game} is not a game for one player")

    @property
    def size(self) -> None:
        return None

    def prompt(self, index: int, _options: ResetOptions, /) -> Prompt:
        number = 2 * index + (self.part == "held_out")
        id_ = f"{self.game}/{number}" + (f"/{_digest(self.settings)}" if self.settings else "")
        return Prompt(id=id_, text=self._play(number, ()).message + "\n", meta={"game": number})

    def held_out(self) -> TextArena:
        """Games that training does not play."""
        return replace(self, part="held_out")

    def reply(self, episode: Episode, /) -> str | None:
        state = self._state_after(episode)
        return None if state.over else f"\n{state.message}\n"

    def score(self, episode: Episode, /) -> float:
        number = int(episode.prompt.meta["game"])
        state = self._state_after(episode)
        reward = state.reward
        self._no_number.append(float(reward is None))
        if reward is None:
            warnings.warn(
                f"textarena's {self.game} gave no number: {state.gave}; it scores 0", RuntimeWarning, stacklevel=2
            )
            return 0.0
        if state.invalid and 0.0 < reward <= self._worth_of_nothing(number):
            return 0.0
        return reward

    def follow(self, _state: TrainerState, /) -> None: ...

    def take_logged(self) -> Mapping[str, Sequence[float]]:
        """1 for each game since the last time whose reward was no number, 0 for the others."""
        logged, self._no_number[:] = list(self._no_number), []
        return {"textarena/no_number": logged} if logged else {}

    def _worth_of_nothing(self, number: int) -> float:
        """What a game pays in which every move is invalid."""
        state = self._play(number, (_NO_MOVE,) * _MOVES)
        return state.reward or 0.0

    def _state_after(self, episode: Episode) -> _GameState:
        return self._play(int(episode.prompt.meta["game"]), episode.turns or (episode.response,))

    def _play(self, number: int, turns: Sequence[str]) -> _GameState:
        """Play the game from its beginning, so that a reply depends on the turns alone."""
        with lent_generators(number), contextlib.redirect_stdout(io.StringIO()):
            self._game.reset(num_players=1, seed=number)
            message = self._new_messages()
            for turn in turns:
                try:
                    over, _ = self._game.step(self._formatted(turn))
                    message = self._new_messages()
                except Exception as error:  # games read moves with parsers of their own
                    return _GameState(message, True, None, gave=f"it raised {type(error).__name__}: {error}")
                if over:
                    return _ended(message, self._game.state)
        return _GameState(message, False, 0.0)

    @cached_property
    def _game(self) -> Any:
        with lent_generators(0), contextlib.redirect_stdout(io.StringIO()):
            return textarena.make(f"{self.game}-raw", **self.settings)

    @property
    def _family(self) -> str:
        return self.game.partition("-v0")[0]

    @cached_property
    def _no_number(self) -> list[float]:
        return []

    def _new_messages(self) -> str:
        """The game's messages since the last call."""
        _, messages = self._game.get_observation()
        own = textarena.ObservationType.PLAYER_ACTION  # the agent's turns, which textarena repeats
        return "\n".join(str(message) for _, message, kind in messages if kind != own)

    def _formatted(self, turn: str) -> str:
        if _FORMATTING not in (ENV_REGISTRY[self.game].default_wrappers or ()):
            return turn
        return str(_FORMATTING(self._game).action(turn))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (
            self.game,
            self.settings,
            self.part,
        )  # the running game is not part of the task


@dataclass(frozen=True)
class _GameState:
    message: str
    over: bool
    reward: float | None
    """None: the game gave what is no number, and `gave` says what."""
    invalid: bool = False
    """Whether it ended by an invalid move."""
    gave: str = ""


def _ended(message: str, state: Any) -> _GameState:
    rewards = state.rewards
    reward = rewards.get(0) if isinstance(rewards, Mapping) else 0.0
    invalid = bool(state.game_info[0].get("invalid_move"))
    if isinstance(reward, (int, float, np.number)) and np.isfinite(reward):
        return _GameState(message, True, float(reward), invalid)
    return _GameState(message, True, None, invalid, gave=repr(reward)[:200])


def _digest(settings: JsonView) -> str:
    """Of a game's settings: under others, a number is another game."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=repr).encode()).hexdigest()[:8]
