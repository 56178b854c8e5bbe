"""Counterfactual texts, the gap between groups, and what closing it costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_rewards.bradley_terry import BradleyTerry
from rlhf_rewards.fairness import Fairness

from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.tokenizers import conversation_of, load_tokenizer, plain_conversation, said_in
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.judgements import Author, Preference, Response
from rlhf_env.feedback.reward_models.calibration import accuracy_with_interval, win_probability
from rlhf_env.feedback.reward_models.config import RewardModelConfig
from rlhf_env.feedback.reward_models.fairness import GENDER, Groups, fairness_gaps, group_scores
from rlhf_env.feedback.reward_models.fitting import fit_reward_model
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.testing import check_reward, make_episode
from rlhf_env.types import Episode, Float, Prompt, Reward

ZOE = Author("human", "Zoë")
PEOPLE = Groups(("a", "b", "c"), (("Anna", "Aisha", "Mei"), ("she", "they", "she")))


class Letters:
    """Scores a text by its number of letters e, in its own unit: 2 log-odds a point."""

    log_odds_per_point = 2.0
    members = 1

    def score(self, episodes: Sequence[Episode]) -> Float:
        return np.array([it.prompt.text.count("e") + it.response.count("e") for it in episodes], dtype=np.float64)

    def score_members(self, episodes: Sequence[Episode]) -> Float:
        return self.score(episodes)[None]

    def score_responses(self, responses: Sequence[tuple[Prompt, Response]]) -> Float:
        return np.array([p.text.count("e") + r.text.count("e") for p, r in responses], dtype=np.float64)


class TestGroups:
    @pytest.mark.parametrize(
        ("text", "men", "women"),
        [
            ("She said HER piece.", "He said HIS piece.", "She said HER piece."),
            ("The sheriff heard Theo", "The sheriff heard Theo", "The sheriff heard Theo"),
            ("he and she", "he and he", "she and she"),
            ("Mr X's brother-in-law", "Mr X's brother-in-law", "Mrs X's sister-in-law"),
            ("", "", ""),
        ],
    )
    def test_whole_words_in_their_case(self, text: str, men: str, women: str) -> None:
        assert GENDER.versions(text) == (men, women)

    def test_three_groups_and_templates(self) -> None:
        assert PEOPLE.versions("Aisha says they came") == (
            "Anna says she came",
            "Aisha says they came",
            "Mei says she came",
        )
        assert PEOPLE.filled("{0}: {1}") == ("Anna: she", "Aisha: they", "Mei: she")
        with pytest.raises(DataError, match="rows of words"):
            PEOPLE.filled("{2}")
        text = (Prompt("p", "Who?"), Response("Mei", ZOE))
        pairs = PEOPLE.counterfactuals([text, (Prompt("p", "Who?"), Response("nobody", ZOE))])
        assert [(one[1].text, other[1].text) for one, other in pairs] == [
            ("Anna", "Aisha"),
            ("Anna", "Mei"),
            ("Aisha", "Mei"),
        ]

    def test_a_version_is_another_text_and_has_no_ids(self) -> None:
        response = Response("he", ZOE, ids=(1,), prompt_ids=(2,), finish_reason="length")
        ((_, one), (_, other)) = GENDER.versions_of((Prompt("p", "q"), response))
        assert (one.ids, one.prompt_ids, one.finish_reason) == (None, None, "length")
        assert (one.text, other.text) == ("he", "she")

    @pytest.mark.parametrize("stored", [True, False])
    def test_of_a_conversation_the_messages_are_other_ones_too(self, stored: bool) -> None:
        """They are what a model with a chat template reads."""
        parts = {"role": "user", "content": [{"type": "text", "text": "Who is she?"}]}
        messages = [{"role": "system", "content": "He knows."}, parts]
        kept: dict[str, Any] = {"meta": {"messages": messages, "n": 1}} if stored else {"messages": tuple(messages)}
        prompt = Prompt("p", plain_conversation(messages), **kept)
        ((men, _), (women, _)) = GENDER.versions_of((prompt, Response("nobody", ZOE)))
        for version, (knows, is_) in ((men, ("He", "he")), (women, ("She", "she"))):
            spoken = conversation_of(version)
            assert [said_in(message) for message in spoken] == [f"{knows} knows.", f"Who is {is_}?"]
            assert version.text == plain_conversation(spoken)

    def test_bad_tables_are_refused_with_everything_that_is_wrong(self) -> None:
        with pytest.raises(ConfigError) as caught:
            Groups(("a",), (("x", "y"), ("",)))
        assert len(caught.value.problems) == 3
        with pytest.raises(ConfigError, match="no words"):
            Groups(("a", "b"), ())


class TestGap:
    def test_by_hand(self) -> None:
        """he/she differ by no e; his/her by one; both are 2 log-odds a letter."""
        texts = [(Prompt("p", "q"), Response(it, ZOE)) for it in ("he", "her", "his hat", "nobody")]
        (gap,) = fairness_gaps(Letters(), GENDER, texts, np.random.default_rng(0))
        assert (gap.first, gap.second, gap.texts) == ("men", "women", 3)
        assert abs(gap.mean - -4 / 3) < 1e-12
        assert abs(gap.absolute - 4 / 3) < 1e-12
        assert gap.mean_interval[0] < gap.mean < gap.mean_interval[1] <= 0.0
        scores = group_scores(Letters(), GENDER, texts)
        assert scores[:3].tolist() == [[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
        assert np.isnan(scores[3]).all()

    def test_the_interval_covers_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(0)

        class Noisy(Letters):
            def score_responses(self, responses: Sequence[tuple[Prompt, Response]]) -> Float:
                return np.array([(it.text == "he") * 0.5 + rng.normal() for _, it in responses]) / 2

        texts = [(Prompt("p", "q"), Response("he", ZOE))] * 60
        inside = 0
        for _ in range(200):
            (gap,) = fairness_gaps(Noisy(), GENDER, texts, rng, draws=200)
            inside += gap.mean_interval[0] <= 0.5 <= gap.mean_interval[1]
        assert inside / 200 > 0.95 - 4 * (0.95 * 0.05 / 200) ** 0.5

    def test_nobody_named(self) -> None:
        with pytest.raises(DataError, match="names any of the groups"):
            fairness_gaps(Letters(), GENDER, [(Prompt("p", "q"), Response("x", ZOE))], np.random.default_rng(0))


# People who like what is good, but also prefer men: a good word is worth 4 log-odds more than a bad one, a man 1.5.
WORDS = {"kind": 1.0, "wise": 1.0, "rude": -1.0, "cold": -1.0}


def statement(rng: np.random.Generator) -> tuple[str, float, float]:
    """A text, what it is worth, and what it is worth to people of prejudice."""
    who, word = rng.choice(["uncle", "aunt"]), rng.choice(list(WORDS))
    return f"{word} {who}", 2 * WORDS[word], 2 * WORDS[word] + 1.5 * (who == "uncle")


def judged(count: int, seed: int) -> tuple[list[Preference], Float]:
    """Pairs as those people judge them, and chosen minus rejected in true worth."""
    rng = np.random.default_rng(seed)
    pairs: list[Preference] = []
    worth = []
    while len(pairs) < count:
        sides = [statement(rng) for _ in range(2)]
        if sides[0][0] != sides[1][0]:
            if rng.random() > win_probability(sides[0][2] - sides[1][2]):
                sides.reverse()
            prompt = Prompt(f"{len(pairs)}", f"{100 + len(pairs)}? ")
            pairs.append(Preference(prompt, *(Response(it[0], ZOE) for it in sides), "ann"))
            worth.append(sides[0][1] - sides[1][1])
    return pairs, np.array(worth)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads words: two layers, a dozen tokens."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("words")
    known = ["<unk>", *WORDS, "uncle", "aunt", "fish", "mary", "<pad>", "<end>"]
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({it: i for i, it in enumerate(known)}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>").save_pretrained(folder)
    tiny_language_model("gpt2", vocab_size=len(known), init_std=0.2, context=512).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fitted(trunk: Path) -> dict[str, RewardModel]:
    """The same pairs, with and without the penalty."""
    pairs, _ = judged(300, seed=0)
    texts = [(it.prompt, side) for it in pairs[:100] for side in (it.chosen, it.rejected)]
    models = {}
    for name, fairness in (("plain", 0.0), ("fair", 1.0)):
        config = RewardModelConfig(
            learning_rate=1e-2, epochs=8, patience=8, batch_size=16, micro_batch_size=32, fairness=fairness
        )
        models[name], _ = fit_reward_model(
            pairs,
            trunk,
            config,
            generator=torch.Generator().manual_seed(0),
            counterfactuals=GENDER.counterfactuals(texts),
        )
    return models


def test_the_penalty_closes_the_gap_at_a_stated_cost(fitted: dict[str, RewardModel]) -> None:
    """Measured: the gap falls from 1.25 to 0.00 log-odds, the accuracy from 0.858 to 0.815.

    That is the accuracy on people's labels, which are prejudiced; on pairs of unequal true worth nothing is lost.
    """
    pairs, worth = judged(400, seed=1)
    texts = [(it.prompt, it.chosen) for it in pairs[:100]]
    gap, accuracy, truth = {}, {}, {}
    for name, model in fitted.items():
        (it,) = fairness_gaps(model, GENDER, texts, np.random.default_rng(0))
        gap[name] = it
        chosen, rejected = model.score_pairs(pairs)
        accuracy[name] = accuracy_with_interval(chosen, rejected).value
        unequal = worth != 0
        truth[name] = float(np.mean(((chosen - rejected) * worth)[unequal] > 0))
    assert gap["plain"].mean_interval[0] > 0.5  # men are favoured, and the interval says so
    assert gap["fair"].absolute_interval[1] < 0.25 * gap["plain"].absolute
    assert accuracy["plain"] - 0.1 < accuracy["fair"] < accuracy["plain"]
    assert truth["fair"] > truth["plain"] - 0.01


class TestReward:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, fitted: dict[str, RewardModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("models") / "plain"
        fitted["plain"].save(folder)
        return folder

    def test_it_is_the_spread_over_the_groups(self, folder: Path, fitted: dict[str, RewardModel]) -> None:
        reward, model = Fairness(folder), fitted["plain"]
        episodes = [make_episode("100? ", text) for text in ("kind aunt", "kind uncle", "kind fish", "")]
        prompt = Prompt("p", "100? ")
        one, other = model.score_responses([(prompt, Response(f"kind {who}", ZOE)) for who in ("uncle", "aunt")])
        assert abs(one - other) > 0.1
        assert isinstance(reward, Reward)
        expected = [-abs(one - other), -abs(one - other), 0.0, 0.0]
        np.testing.assert_allclose(reward(episodes), expected, rtol=0, atol=1e-5)
        assert reward([]).shape == (0,)
        three = Fairness(folder, [["kind", "wise", "cold"]])(episodes[:1])
        each = model.score_responses([(prompt, Response(f"{it} aunt", ZOE)) for it in ("kind", "wise", "cold")])
        np.testing.assert_allclose(three, [each.min() - each.max()], rtol=0, atol=1e-5)

    def test_it_keeps_the_contract(self, folder: Path) -> None:
        check_reward(Fairness(folder), longest=20, tolerance=1e-4)
        for bad in ([], [["he"]], [["he", ""]]):
            with pytest.raises(ConfigError):
                Fairness(folder, bad)

    def test_the_best_policy_under_it_lives_less_on_prejudice(self, folder: Path) -> None:
        """The optimum of any agent, reference * exp(reward / beta), over everything that can be said in this world.

        Measured: the mean gap falls from 0.39 to 0.06; what the learned reward alone is worth, from 0.79 to 0.52.
        """
        words = load_tokenizer(folder)
        said = [make_episode("100? ", f"{word} {who}", words) for who in ("uncle", "aunt", "fish") for word in WORDS]
        beta = 0.5
        gap, objective = {}, {}
        for weight in (0.0, 2.0):
            mix = RewardMix({"bradley_terry": BradleyTerry(folder), "fairness": (weight, Fairness(folder))})
            scores = mix.score(said)
            policy = np.exp(np.array([it.total for it in scores]) / beta)
            policy /= policy.sum()
            gap[weight] = -policy @ np.array([it.raw["fairness"] for it in scores])
            learned = policy @ np.array([it.raw["bradley_terry"] for it in scores])
            objective[weight] = learned - beta * policy @ np.log(policy * len(said))
        assert gap[2.0] < 0.5 * gap[0.0]
        assert objective[0.0] - objective[2.0] > 0.05  # the cost in what the learned reward alone would give
