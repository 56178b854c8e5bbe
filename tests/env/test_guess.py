"""A real conversation of several turns, the guessing game: one text in every view, with credit where it is due."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlhf_env.envs.text_env import TextEnv
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.tokenizers import AlphabetTokenizer
from rlhf_env.envs.toy_tasks import Guess
from rlhf_env.learning.advantages import gae, paid_to_actions
from rlhf_env.learning.agent import Decision
from rlhf_env.learning.collect import collect
from rlhf_env.types import Episode, Observation

WORLD = AlphabetTokenizer("abcdefg?<>!")
END, V = WORLD.end_id, WORLD.vocab_size
LONGEST = 12


@dataclass
class Player:
    """Says the next letter of the halving search, or in `wild` rounds whatever a hash of the text so far gives.

    A function of the text alone, so every view hears the same: `length` tokens of the turn a step, V after its end.
    """

    length: int = 1
    wild: bool = False

    def turn(self, text: list[int]) -> list[int]:
        """What is still to be said of the turn that `text` stands in, the end token included."""
        said = "".join(WORLD.symbols[i] if i < len(WORLD.symbols) else "|" for i in text)
        if self.wild:
            stream = np.random.default_rng([len(said), *text])
            return [int(stream.choice([*range(7), END, END]))]
        if said[-1] in "abcdefg":
            return [END]
        low, high = 0, 6
        for guess, answer in zip(said[1::3], said[3::3], strict=True):
            place = "abcdefg".index(guess)
            low, high = (place + 1, high) if answer == ">" else (low, place - 1)
        return [(low + high) // 2, END]

    def tokens(self, observation: Mapping[str, Any]) -> list[int]:
        text = observation["input_ids"][: observation["attention_mask"].sum()].tolist()
        said: list[int] = []
        while len(said) < self.length and END not in said:
            said += self.turn(text + said)
        return (said[: said.index(END) + 1] if END in said else said)[: self.length]

    def begin(self) -> dict[str, Any]:
        return {}

    def act(self, observation: Observation, /) -> Decision:
        rows = [
            {"input_ids": ids, "attention_mask": mask}
            for ids, mask in zip(observation["input_ids"], observation["attention_mask"], strict=True)
        ]
        spoken = np.full((len(rows), self.length), V, dtype=np.int64)
        for row, (content, writing) in enumerate(zip(rows, observation["writing"], strict=True)):
            if writing:
                said = self.tokens(content)
                spoken[row, : len(said)] = said
        logprobs = np.where(spoken < V, -0.1 * (1 + spoken), 0.0)
        values = np.where(spoken < V, 0.01 * (1 + spoken), 0.0)
        if self.length == 1:
            spoken, logprobs, values = np.where(spoken == V, 0, spoken)[:, 0], logprobs[:, 0], values[:, 0]
        return Decision(spoken, logprobs, {"values": values})

    def update(self, rollout: Any, /) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


def settings(length: int | None) -> dict[str, Any]:
    return {"task": Guess(), "tokenizer": WORLD, "max_new_tokens": LONGEST, "action_length": length}


def alone(length: int | None, index: int, wild: bool) -> tuple[Episode, float]:
    """One conversation in the single environment."""
    env, player = TextEnv(**settings(length)), Player(length or LONGEST, wild)
    observation, _ = env.reset(seed=0, options={"indices": [index]})
    while True:
        said = player.tokens(observation)
        action: Any = said[0] if length == 1 else said + [V] * (player.length - len(said))
        observation, reward, terminated, _, info = env.step(action)
        if terminated:
            return info["text_episode"], reward


def text_of(episode: Episode) -> str:
    return "".join("|" if i == END else WORLD.symbols[i] for i in episode.response_ids)


def test_the_game_by_hand() -> None:
    episode, reward = alone(1, 4, wild=False)  # the secret is "e"
    assert (text_of(episode), episode.response) == ("d|>f|<e|", "d>f<e")
    assert episode.turns == ("d", "f", "e")
    assert "".join(".-"[not action] for action in episode.actions) == "..-..-.."
    assert episode.finish_reason == "task" and reward == pytest.approx(1 / 3)
    first, reward = alone(1, 3, wild=False)
    assert text_of(first) == "d|" and first.finish_reason == "task" and reward == 1.0


def test_halving_earns_what_the_docstring_says_and_no_strategy_earns_more() -> None:
    assert sum(alone(None, index, wild=False)[1] for index in range(7)) / 7 == pytest.approx(11 / 21)

    def best(letters: int, turn: int) -> float:
        """The most that any strategy can earn in sum over `letters` equally likely secrets, from this turn on."""
        if letters == 0 or turn == 3:
            return 0.0
        return 1 - turn / 3 + max(best(k, turn + 1) + best(letters - 1 - k, turn + 1) for k in range(letters))

    assert best(7, 0) / 7 == pytest.approx(11 / 21)


def test_a_turn_that_is_no_letter_is_answered_and_counts() -> None:
    env = TextEnv(**settings(None))
    env.reset(options={"indices": [0]})
    for said, answer in (("ab", "!"), ("", "!")):
        observation, _, terminated, _, _ = env.step([*WORLD.encode(said), END] + [V] * (LONGEST - 1 - len(said)))
        last = observation["input_ids"][observation["attention_mask"].sum() - 1]
        assert WORLD.symbols[last] == answer and not terminated
    *_, reward, terminated, _, info = env.step([*WORLD.encode("b"), END] + [V] * (LONGEST - 2))
    assert (terminated, reward, info["finish_reason"]) == (True, 0.0, "task"), "three turns are all there are"
    assert info["text_episode"].turns == ("ab", "", "b")


def test_a_turn_cut_at_the_length_limit_is_the_last() -> None:
    env = TextEnv(task=Guess(), tokenizer=WORLD, max_new_tokens=4)
    env.reset(options={"indices": [0]})
    for token in (*WORLD.encode("d"), END, *WORLD.encode("a")):
        *_, reward, terminated, _, info = env.step(token)
    assert terminated and info["finish_reason"] == "length"
    assert info["text_episode"].turns == ("d", "a") and reward == pytest.approx(2 / 3)


@pytest.mark.parametrize("wild", [False, True])
def test_a_conversation_is_the_same_in_every_view(wild: bool) -> None:
    expected = [alone(1, index, wild) for index in range(7)]
    reasons = {episode.finish_reason for episode, _ in expected}
    assert reasons == {"task"} or wild
    assert max(len(episode.turns) for episode, _ in expected) == 3
    for length in (2, 3, 5, None):
        assert [alone(length, index, wild) for index in range(7)] == expected

    for length in (1, 2, 5, LONGEST):
        env = TextVectorEnv(7, **settings(length), autoreset_mode="Disabled")
        rollout = collect(env, Player(length, wild), {"indices": list(range(7))}, seed=0)
        assert list(rollout.episodes) == [episode for episode, _ in expected]
        assert rollout.returns().tolist() == [reward for _, reward in expected]
        for episode, _ in expected:
            written = episode.response_ids[~episode.actions]
            assert set(WORLD.decode(written.tolist())) <= set("<>!")


@pytest.mark.parametrize("length", [1, 3, LONGEST])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP], ids=lambda mode: mode.name)
def test_the_vector_of_singles_and_the_native_vector_hold_the_same_conversations(
    mode: AutoresetMode, length: int
) -> None:
    player = Player(length, wild=True)
    views = [
        SyncVectorEnv([lambda: TextEnv(**settings(length))] * 3, autoreset_mode=mode),
        TextVectorEnv(3, **settings(length), autoreset_mode=mode),
    ]
    held: list[list[Episode]] = []
    for view in views:
        observation, _ = view.reset(seed=5)
        episodes: list[Episode] = []
        for _ in range(60):
            decision = player.act({**observation, "writing": np.ones(3, dtype=np.bool_)})  # type: ignore[typeddict-item]
            observation, _, _, _, infos = view.step(decision.tokens)
            found = infos.get("final_info", infos).get("text_episode", [])
            episodes += [episode for episode in found if isinstance(episode, Episode)]
        held.append(episodes)
    assert held[0] == held[1] and len(held[0]) > 10
    assert any(len(episode.turns) > 1 for episode in held[0])


@pytest.mark.parametrize("length", [1, 2, LONGEST])
def test_credit_goes_to_what_the_agent_said_and_to_nothing_else(length: int) -> None:
    env = TextVectorEnv(7, **settings(length), autoreset_mode="Disabled")
    rollout = collect(env, Player(length), {"indices": list(range(7))}, seed=0)
    values = rollout.extras["values"]
    rewards = paid_to_actions(rollout.rewards(), rollout.mask, rollout.actions)
    gamma, lam = 0.9, 0.7
    advantages = gae(rewards, values, rollout.actions, gamma=gamma, lam=lam)
    for row, episode in enumerate(rollout.episodes):
        start = len(episode.prompt_ids)
        places = [start + t for t in np.flatnonzero(episode.actions)]
        # By hand, over the agent's tokens alone: d | f | e | are steps 0..5, whatever was answered in between.
        stated = [0.01 * (1 + int(rollout.tokens[row, place])) for place in places]
        assert values[row, places].tolist() == pytest.approx(stated, abs=1e-15)
        paid = [0.0] * (len(places) - 1) + [1.0 - (len(places) // 2 - 1) / 3]
        expected, following = [0.0] * len(places), 0.0
        for t in reversed(range(len(places))):
            after = stated[t + 1] if t + 1 < len(places) else 0.0
            following = paid[t] + gamma * after - stated[t] + gamma * lam * following
            expected[t] = following
        assert advantages[row, places].tolist() == pytest.approx(expected, abs=1e-15)
        elsewhere = torch.ones_like(rollout.mask[row])
        elsewhere[places] = False
        assert (advantages[row][elsewhere] == 0).all() and (rollout.logprobs[row][elsewhere] == 0).all()
        assert rollout.actions[row].sum() == len(places) and not rollout.actions[row][elsewhere].any()


class Table:
    """A policy that is a table of logits, one row per text, and learns by the plain policy gradient of `gae`."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.logits: dict[bytes, Any] = {}
        self.values: dict[bytes, float] = {}
        self.stream = np.random.default_rng(0)

    def begin(self) -> dict[str, Any]:
        return {}

    def _probs(self, text: bytes) -> Any:
        logits = self.logits.setdefault(text, np.zeros(V))
        odds = np.exp(logits - logits.max())
        return odds / odds.sum()

    def act(self, observation: Observation, /) -> Decision:
        tokens, logprobs = (
            np.zeros(len(observation["input_ids"]), dtype=np.int64),
            np.zeros(len(observation["input_ids"])),
        )
        lengths = observation["attention_mask"].sum(axis=1)
        for row in np.flatnonzero(observation["writing"]):
            probs = self._probs(observation["input_ids"][row, : lengths[row]].tobytes())
            tokens[row] = min(int(np.searchsorted(np.cumsum(probs), self.stream.random())), V - 1)
            logprobs[row] = np.log(probs[tokens[row]])
        return Decision(tokens, logprobs)

    def update(self, rollout: Any, /) -> dict[str, float]:
        rewards = paid_to_actions(rollout.rewards(), rollout.mask, rollout.actions)
        places = list(zip(*np.nonzero(rollout.actions.numpy()), strict=True))
        values = torch.zeros_like(rewards)
        for row, place in places:
            values[row, place] = self.values.get(rollout.tokens[row, :place].numpy().tobytes(), 0.0)
        advantages = gae(rewards, values, rollout.actions, gamma=1.0, lam=1.0).numpy()
        for row, place in places:
            ids = rollout.tokens[row, : place + 1].numpy()
            text = ids[:-1].tobytes()
            self.values[text] = self.values.get(text, 0.0) + 0.02 * advantages[row, place]
            gradient = -self._probs(text)
            gradient[ids[-1]] += 1.0
            self.logits[text] += self.rate * advantages[row, place] * gradient
        return {}


def test_the_game_can_be_learned() -> None:
    game: dict[str, Any] = {**settings(1), "task": Guess("abc", turns=2), "max_new_tokens": 5}
    env = TextVectorEnv(63, **game, autoreset_mode="Disabled")
    agent, earned = Table(rate=0.2), []
    for seed in range(220):
        rollout = collect(env, agent, {"indices": [*range(3)] * 21}, seed=seed)  # type: ignore[arg-type]
        earned.append(float(rollout.returns().mean()))
        agent.update(rollout)
    assert np.mean(earned[:3]) < 0.2
    # A single turn earns at most 1/3; a second one after the answer makes it 1/2, halving 2/3.
    assert np.mean(earned[-10:]) > 0.45
