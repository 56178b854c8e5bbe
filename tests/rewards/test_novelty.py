"""Novelty by counts, by distance and by a network's error: by hand, with a snapshot, and in a run that resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rlhf_rewards.novelty_embedding import NoveltyEmbedding
from rlhf_rewards.novelty_ngrams import NoveltyNgrams
from rlhf_rewards.novelty_rnd import NoveltyRND

from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.errors import ConfigError, RlhfEnvError
from rlhf_env.learning import checkpoints
from rlhf_env.testing import check_reward, make_episode
from rlhf_env.text_measures import hashed_ngrams

KINDS: dict[str, Any] = {"ngrams": NoveltyNgrams, "embedding": NoveltyEmbedding, "rnd": NoveltyRND}


def said(*texts: str) -> list[Any]:
    return [make_episode("p", text) for text in texts]


@pytest.mark.parametrize("kind", KINDS)
def test_they_keep_the_contract(kind: str) -> None:
    reward = KINDS[kind]()
    reward.observe(said("Fine, thank you.", "great"))
    check_reward(reward, longest=40)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_is_less_novel_from_the_next_rollout_on(kind: str) -> None:
    reward = KINDS[kind]()
    first = reward(said("abab", "baba", "hello"))
    assert first == pytest.approx([1.0, 1.0, 1.0], abs=0.5)
    assert reward(said("abab")).tolist() == [first[0]], "scoring teaches nothing"
    for _ in range(60):
        reward.observe(said("abab", "abab", "baba"))
    after = reward(said("abab", "baba", "hello"))
    assert after[0] < 0.3 and after[1] < 0.3 and after[2] > 0.4


@pytest.mark.parametrize("kind", KINDS)
def test_its_memory_goes_through_a_checkpoint(kind: str, tmp_path: Path) -> None:
    reward, fresh = KINDS[kind](), KINDS[kind]()
    for texts in (("abab", "ab"), ("hello", "ab")):
        reward.observe(said(*texts))
    state, _ = checkpoints.load(checkpoints.save(tmp_path, 1, {"rewards": reward.state_dict()}, {}))
    fresh.observe(said("what it had before is gone"))
    fresh.load_state_dict(state["rewards"])
    texts = said("abab", "hello", "ab", "new", "what it had before is gone")
    assert fresh(texts).tobytes() == reward(texts).tobytes()
    for one in (reward, fresh):
        one.observe(said("more", "ab"))
    assert fresh(texts).tobytes() == reward(texts).tobytes() and fresh(texts)[3] > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_same_in_every_view(kind: str) -> None:
    """Texts that end in another order, in steps of one token and of all, after the same rollout before."""
    rewards = {}
    texts = np.array([[[0, 3, 5], [0, 1, 0], [3, 5, 5]], [[0, 1, 3], [0, 3, 5], [1, 1, 1]]])
    for length in (1, 3):
        env = TextVectorEnv(
            3,
            reward={"novelty": KINDS[kind](n=2)},
            tokenizer="alphabet:ab:",
            max_new_tokens=3,
            action_length=length,
            autoreset_mode="Disabled",
        )
        paid = np.zeros((2, 3))
        for rollout in range(2):
            env.reset(seed=0 if rollout == 0 else None)
            for actions in [texts[rollout]] if length == 3 else np.minimum(texts[rollout], 3).T:
                paid[rollout] += env.step(actions)[1]
        rewards[length] = paid
    assert rewards[1].tobytes() == rewards[3].tobytes()
    assert len(set(rewards[1].ravel().tolist())) > 2


# ---------------------------------------------------------------- counts


def test_counts_by_hand() -> None:
    reward = NoveltyNgrams(n=2)
    reward.observe(said("aba", "ab"))  # with the end token: ab, ba, a| and ab, b|
    reward.observe(said("abab"))  # ab once, though it is there twice; ba, b|
    two, three = 1 / 3**0.5, 1 / 4**0.5  # worth of a run that was in two texts, in three
    expected = [(three + two) / 2, (three + two + 1 / 2**0.5) / 3, 1.0]
    assert reward(said("ab", "aba", "xy")) == pytest.approx(expected, abs=1e-15)
    assert reward.counts.sum() == 3 + 2 + 1 + 2


def test_words_are_lower_cased_and_short_texts_are_one_run() -> None:
    reward = NoveltyNgrams(n=2, unit="words")
    reward.observe(said("The cat sat", "yes"))
    assert reward(said("the CAT sat", "YES", "", "no")) == pytest.approx([0.5**0.5, 0.5**0.5, 1.0, 1.0], abs=1e-15)


def test_runs_have_the_same_bins_in_every_process() -> None:
    (episode,) = said("ab")
    assert hashed_ngrams(episode, 1, 2, 1000, "tokens").tolist() == [166, 218, 646, 325, 231]


# ---------------------------------------------------------------- distance


def test_distance_by_hand() -> None:
    reward = NoveltyEmbedding(n=1, unit="words", dimensions=4096, neighbours=2)
    assert reward(said("one two")).tolist() == [1.0], "nothing is remembered yet"
    reward.observe(said("one two", "one", "three"))
    # Nearest of "one two": itself (1), and "one" with 1 / sqrt(2).
    assert reward(said("one two", "four")) == pytest.approx([1 - (1 + 0.5**0.5) / 2, 1.0], abs=1e-12)
    reward.observe(said("two one"))
    assert reward(said("one two")) == pytest.approx([0.0], abs=1e-12), "as often as there are neighbours to look at"


def test_what_is_forgotten_is_new_again() -> None:
    reward = NoveltyEmbedding(memory=2)
    for text in ("aaaa", "bbbb", "cccc"):
        reward.observe(said(text))
    scores = reward(said("aaaa", "bbbb", "cccc"))
    assert scores[0] > 0.5 and scores[1:] == pytest.approx([0.0, 0.0], abs=1e-12)


def test_a_language_model_embeds_and_never_learns() -> None:
    reward = NoveltyEmbedding(model="rlhf-env/chitchat")
    reward.observe(said("How are you doing today?"))
    same, near, far, nothing = reward(said("How are you doing today?", "How are you today?", "Purple basketball", ""))
    assert same == pytest.approx(0.0, abs=1e-9) and 0.0 < near < far < 1.0 and nothing == 1.0
    assert reward(said("word " * 400)) > 0.0, "a text longer than the model reads"


def test_what_it_cannot_read_is_said() -> None:
    with pytest.raises(ConfigError, match="n must be at least 1, got 0"):
        NoveltyNgrams(n=0)
    with pytest.raises(RlhfEnvError, match="is no folder, run or shipped model"):
        NoveltyEmbedding(model="/no/such/folder")
