"""The KL penalty against numbers computed by hand, and its controller against the published formula."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from rlhf_rewards.kl import KL

from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.text_env import TextEnv
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.errors import ConfigError, RewardError
from rlhf_env.testing import check_reward, make_episode
from rlhf_env.types import Episode, Float


class Says:
    """A reference that gives every token the same log-probability, and counts how often it is asked."""

    def __init__(self, logprob: float) -> None:
        self.logprob, self.asked = logprob, 0

    def response_logprobs(self, episodes: Sequence[Episode]) -> list[Float]:
        self.asked += len(episodes)
        return [np.full(len(episode.response_ids), self.logprob) for episode in episodes]


def episode(response: str, logprobs: Sequence[float] | float | None) -> Episode:
    return make_episode("p", response, logprobs=logprobs)


def test_each_token_pays_its_log_ratio() -> None:
    rewards = KL(Says(-2.0)).token_rewards([episode("ab", [-1.0, -2.0, -5.0]), episode("", [-0.5])])
    assert [row.tolist() for row in rewards] == [[-1.0, 0.0, 3.0], [-1.5]]


def test_equal_policies_pay_exactly_nothing() -> None:
    (row,) = KL(Says(-1.0)).token_rewards([episode("abc", -1.0)])
    assert row.tobytes() == np.zeros(4).tobytes()


def test_tokens_of_the_environment_cost_nothing() -> None:
    mine = episode("abc", [-1.0, 0.0, 0.0, -1.0])
    talk = dataclasses.replace(mine, actions=np.array([True, False, False, True]))
    (row,) = KL(Says(-2.0)).token_rewards([talk])
    assert row.tolist() == [-1.0, 0.0, 0.0, -1.0]


def test_its_expectation_is_minus_the_exact_kl() -> None:
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    exact = sum(p * math.log(p / q) for p, q in zip(policy, reference, strict=True))

    class Table:
        def response_logprobs(self, episodes: Sequence[Episode]) -> list[Float]:
            return [np.log(reference[e.response_ids]) for e in episodes]

    mean = 0.0
    for token, p in enumerate(policy):
        made = dataclasses.replace(
            make_episode("p", "x", finish_reason="length", logprobs=math.log(p)), response_ids=np.array([token])
        )
        mean += p * float(KL(Table()).token_rewards([made])[0].sum())
    assert mean == pytest.approx(-exact, abs=1e-12)


def test_it_keeps_the_contract() -> None:
    check_reward(KL(Says(-2.0)))
    check_reward(KL(Says(-2.0), target=3.0))


def test_in_a_mix_the_weight_is_beta() -> None:
    mix = RewardMix({"kl": (0.1, KL(Says(-2.0)))})
    (score,) = mix.score([episode("ab", [-1.0, -2.0, -5.0])])
    assert mix.needs_logprobs
    assert score.raw == {"kl": 2.0} and score.total == 0.1 * 2.0
    assert score.tokens["kl"].tolist() == [-1.0, 0.0, 3.0]


# ---------------------------------------------------------------- the adaptive controller


def observed(kl: KL, sequence_kl: float, episodes: int = 1) -> float:
    """Score and observe episodes of one token with this KL (the reference says 0 and the policy `sequence_kl`)."""
    batch = [episode("", [sequence_kl]) for _ in range(episodes)]
    kl.token_rewards(batch)
    kl.observe(batch)
    return kl.coefficient


def test_the_controller_by_hand() -> None:
    # e = clip(KL / target - 1, -0.2, 0.2); coefficient *= 1 + e * n / horizon
    assert observed(KL(Says(0.0), target=2.0, horizon=100), 2.0, 10) == 1.0
    assert observed(KL(Says(0.0), target=2.0, horizon=100), 2.2, 10) == pytest.approx(1 + 0.1 * 10 / 100)
    assert observed(KL(Says(0.0), target=2.0, horizon=100), 99.0, 10) == pytest.approx(1 + 0.2 * 10 / 100)
    assert observed(KL(Says(0.0), target=2.0, horizon=100), 1.9, 10) == pytest.approx(1 - 0.05 * 10 / 100)
    assert observed(KL(Says(0.0), target=2.0, horizon=100), 0.0, 10) == pytest.approx(1 - 0.2 * 10 / 100)
    assert observed(KL(Says(0.0), target=2.0, horizon=1), -5.0, 10) == pytest.approx(0.8), "never a bonus"


def test_the_mean_is_over_episodes_and_unscaled_by_the_coefficient() -> None:
    kl = KL(Says(0.0), target=2.0, horizon=10)
    kl.coefficient = 3.0
    batch = [episode("", [2.0]), episode("", [2.4])]
    assert [row.tolist() for row in kl.token_rewards(batch)] == [[-6.0], [pytest.approx(-7.2)]]
    kl.observe(batch)
    assert kl.coefficient == pytest.approx(3.0 * (1 + 0.1 * 2 / 10))


def test_without_a_target_nothing_moves() -> None:
    kl = KL(Says(0.0))
    assert observed(kl, 50.0, 10) == 1.0


def test_observe_asks_the_reference_only_about_episodes_it_has_not_seen() -> None:
    reference = Says(0.0)
    kl = KL(reference, target=2.0, horizon=10)
    batch = [episode("a", [1.0, 1.5]), episode("b", [0.1, 0.2])]
    kl.token_rewards(batch)
    kl.observe(batch)
    assert reference.asked == 2 and not kl._measured
    kl.observe([episode("c", [0.1, 0.2])])
    assert reference.asked == 3


def test_what_is_never_observed_is_forgotten_in_the_end() -> None:
    kl = KL(Says(0.0), target=2.0)
    for i in range(6):
        kl.token_rewards([episode(f"{i} {j}", -1.0) for j in range(2000)])
    assert len(kl._measured) == 8192


def test_the_environment_moves_it_at_a_reset() -> None:
    kl = KL(Says(0.0), target=0.5, horizon=10)
    envs = TextVectorEnv(2, reward={"kl": (1.0, kl)}, action_length=2, max_new_tokens=2, autoreset_mode="Disabled")
    envs.reset(seed=0)
    action = {"tokens": np.array([[97, 258], [258, 259]]), "probs": np.full((2, 2), math.exp(-0.25))}
    _, paid, *_ = envs.step(action)
    assert paid.tolist() == pytest.approx([0.5, 0.25])
    assert kl.coefficient == 1.0, "all rows of a batch pay the same coefficient"
    envs.reset()
    assert kl.coefficient == pytest.approx(1 - 0.2 * 2 / 10)
    before = kl.coefficient
    envs.reset()
    assert kl.coefficient == before, "an episode is observed once"


def test_its_state_is_the_coefficient() -> None:
    kl = KL(Says(0.0), target=2.0, horizon=10)
    observed(kl, 99.0)
    twin = KL(Says(0.0), target=2.0, horizon=10)
    twin.load_state_dict(kl.state_dict())
    assert twin.coefficient == kl.coefficient == pytest.approx(1.02)
    mix = RewardMix({"kl": twin})
    assert mix.state_dict() == {"kl": {"coefficient": twin.coefficient}}


# ---------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"reference": None}, "reference has no response_logprobs.*got None"),
        ({"target": 0.0}, "target must be above 0"),
        ({"target": float("inf")}, "target"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"horizon": 2.5}, "horizon"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        KL(**{"reference": Says(0.0), **settings})


def test_an_episode_without_probabilities_is_named() -> None:
    with pytest.raises(RewardError, match=r"reward 'kl': .* has no logprobs"):
        RewardMix({"kl": KL(Says(0.0))}).score([episode("a", None)])


def test_a_reference_that_answers_wrongly_is_named() -> None:
    class Short(Says):
        def response_logprobs(self, episodes: Sequence[Episode]) -> list[Float]:
            return [row[:-1] for row in super().response_logprobs(episodes)]

    class Silent(Says):
        def response_logprobs(self, episodes: Sequence[Episode]) -> list[Float]:
            return []

    with pytest.raises(RewardError, match=r"reference returned shape \(1,\) for a response of shape \(2,\)"):
        KL(Short(0.0)).token_rewards([episode("a", -1.0)])
    with pytest.raises(RewardError, match="reference returned 0 rows for 1 episodes"):
        KL(Silent(0.0)).token_rewards([episode("a", -1.0)])


def test_an_impossible_token_is_an_error_not_an_infinite_reward() -> None:
    env = TextEnv(reward={"kl": 0.1}, provided={"reference": Says(-math.inf)})
    env.reset(seed=0)
    with pytest.raises(RewardError, match="reward 'kl' returned -inf at token 0"):
        env.step({"tokens": 258, "probs": 0.5})
