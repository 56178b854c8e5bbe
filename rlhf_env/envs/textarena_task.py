"""A bridge to textarena (MIT): its one-player games as conversations between the agent and the game."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import textarena
from textarena.envs.registration import ENV_REGISTRY

from rlhf_env.envs.global_generators import lent_generators
from rlhf_env.envs.splits import Part
from rlhf_env.errors import ConfigError, DataError, Problem, did_you_mean
from rlhf_env.settings import fault, settings
from rlhf_env.types import Episode, JsonView, Prompt, ResetOptions

_FORMATTING = textarena.wrappers.ActionFormattingWrapper


@settings(kw_only=False)
class TextArena:
    """A one-player game of textarena, for example "GuessTheNumber-v0". The score is the game's own reward at its end.

    The prompt is the game's introduction, and each reply is the game's answer to a turn. As in textarena, a turn
    without square brackets is put into brackets if the game wants them. A game that is not over when the text is full
    scores 0. Every index starts a game of its own, and evaluation plays other games than training. (Games with few
    different starts repeat them, in evaluation too.)

    These need nothing but the package: 2048, Bandit, Blackjack, Countdown, Crosswords, Cryptarithm,
    FifteenPuzzle, FrozenLake, GuessTheNumber, LightsOut, LogicPuzzle, Mastermind, Minesweeper, PegJump, RushHour,
    Secretary, Set, Slitherlink, Sokoban, Sudoku, ThreeCardMonte, TowerOfHanoi. Wordle, Hangman, WordLadder, WordSearch
    need word lists that nltk downloads. GuessWho and TwentyQuestions ask a model over the network, with a key.
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
        return Prompt(id=f"{self.game}/{number}", text=self._play(number, ()).message + "\n", meta={"game": number})

    def held_out(self) -> TextArena:
        """Games that training does not play."""
        return replace(self, part="held_out")

    def reply(self, episode: Episode, /) -> str | None:
        state = self._state_after(episode)
        return None if state.over else f"\n{state.message}\n"

    def score(self, episode: Episode, /) -> float:
        return self._state_after(episode).reward

    def _state_after(self, episode: Episode) -> _GameState:
        return self._play(int(episode.prompt.meta["game"]), episode.turns or (episode.response,))

    def _play(self, number: int, turns: Sequence[str]) -> _GameState:
        """Play the game from its beginning, so that a reply depends on the turns alone."""
        over = False
        with lent_generators(number):
            self._game.reset(num_players=1, seed=number)
            message = self._new_messages()
            for turn in turns:
                over, _ = self._game.step(self._formatted(turn))
                message = self._new_messages()
                if over:
                    break
        rewards = self._game.state.rewards if over else None
        return _GameState(message, bool(over), float(rewards[0]) if rewards else 0.0)

    @cached_property
    def _game(self) -> Any:
        with lent_generators(0):
            return textarena.make(f"{self.game}-raw", **self.settings)

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
    reward: float
