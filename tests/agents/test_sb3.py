"""Stable-Baselines3 and sb3-contrib train our language models: the right distribution, and they learn."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_agents.sb3 import LanguageModelPolicy, TextVecEnv
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecMonitor

from rlhf_env.envs.text_env import TextEnv
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.errors import ConfigError
from rlhf_env.policies import LanguageModel, Sampling, tiny_language_model
from rlhf_env.types import Bool, Episode, Int, Prompt, ResetOptions

torch.set_num_threads(1)

SILENT = Logger(folder=None, output_formats=[])
ECHO: dict[str, Any] = {
    "task": {"name": "echo", "length": 2},
    "tokenizer": "alphabet:ab=",
    "max_new_tokens": 3,
    "max_prompt_tokens": 3,
}
BEST = 1.0  # the whole word said back, and the end


def echo(rows: int = 32, **settings: Any) -> TextVecEnv:
    return TextVecEnv(TextVectorEnv(rows, **{**ECHO, **settings}))


def model(vocab_size: int = 5, **settings: Any) -> LanguageModel:
    shape: dict[str, Any] = {"dtype": torch.float32, "init_std": 0.1, "end_id": vocab_size - 2}
    return tiny_language_model(vocab_size=vocab_size, pad_id=vocab_size - 1, **{**shape, **settings})


class ThreeDifferent:
    """Three letters, no two neighbours the same, then the end; asked with "x", worth the share of a's (at most 2/3)."""

    size = 2
    best = 2 / 3

    def prompt(self, index: int, _options: ResetOptions, /) -> Prompt:
        return Prompt(id=f"three/{index % 2}", text="xy"[index % 2])

    def score(self, episode: Episode, /) -> float:
        return episode.response.count("a" if episode.prompt.text == "x" else "b") / 3

    def action_mask(self, _prompt: Prompt, response_ids: Int, /) -> Bool:
        """The alphabet "abcxy": 0, 1, 2 are letters to write, 5 is the end token."""
        allowed = np.zeros(7, dtype=np.bool_)
        allowed[5] = len(response_ids) == 3
        allowed[:3] = len(response_ids) < 3
        if len(response_ids):
            allowed[response_ids[-1]] = False
        return allowed


def mean_return(env: TextVecEnv, actor: Any, episodes: int = 128, *, masked: bool = False) -> float:
    """Of texts sampled from the policy, not from its likeliest tokens."""
    found: list[float] = []
    env.seed(12345)
    observation = env.reset()
    while len(found) < episodes:
        mask = {"action_masks": env.env.action_masks()} if masked else {}
        observation, _, _, infos = env.step(actor.predict(observation, deterministic=False, **mask)[0])
        found += [
            sum(info["reward_weights"][name] * part for name, part in info["reward_parts"].items())
            for info in infos
            if "reward_parts" in info
        ]
    return float(np.mean(found))


# ---------------------------------------------------------------- the environment in their dress


def test_the_rows_are_those_of_single_environments() -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv

    theirs = DummyVecEnv([lambda: TextEnv(**ECHO)] * 3)
    ours = echo(3)
    for env in (theirs, ours):
        env.seed(7)
    stream = np.random.default_rng(0)
    first, second = theirs.reset(), ours.reset()
    assert ours.reset_infos == theirs.reset_infos
    for _ in range(20):
        assert all(np.array_equal(first[key], second[key]) for key in first)
        tokens = stream.integers(5, size=3)
        first, paid, ended, infos = theirs.step(tokens)
        second, *rest = ours.step(tokens)
        assert np.array_equal(paid, rest[0].astype(np.float32)) and np.array_equal(ended, rest[1])
        assert ours.reset_infos == theirs.reset_infos
        for one, other in zip(infos, rest[2], strict=True):
            assert one.get("text_episode") == other.get("text_episode")
            assert one.get("reward_parts") == other.get("reward_parts")
            if "terminal_observation" in one:
                assert other["TimeLimit.truncated"] is one["TimeLimit.truncated"] is False
                last, its = one["terminal_observation"], other["terminal_observation"]
                assert all(np.array_equal(last[key], its[key]) for key in last)


def test_a_text_cut_from_outside_says_so() -> None:
    env = echo(2, max_episode_steps=1)
    env.reset()
    _, rewards, ended, infos = env.step(np.array([0, 3]))  # the second row ends by itself in that step
    assert rewards.tolist() == [0.0, 0.0] and ended.all()
    assert [info["TimeLimit.truncated"] for info in infos] == [True, False]


def test_reset_options_reach_the_environment() -> None:
    env = echo(4)
    env.set_options({"group_size": 2})
    env.seed(0)
    ids = env.reset()["input_ids"]
    assert np.array_equal(ids[0], ids[1]) and np.array_equal(ids[2], ids[3])
    assert env.get_attr("group_size", [0, 1]) == [2, 2]
    env.set_options([{"level": 1}, {}, {}, {}])
    with pytest.raises(ConfigError, match="give all rows the same"):
        env.reset()


def test_methods_and_attributes() -> None:
    env = TextVecEnv(TextVectorEnv(3, task=ThreeDifferent(), tokenizer="alphabet:abcxy", render_mode="ansi"))
    env.reset()
    assert env.render_mode == "ansi" and env.has_attr("action_masks") and not env.has_attr("nothing")
    masks = env.env_method("action_masks", indices=[0, 2])
    assert [mask.tolist() for mask in masks] == [[True] * 3 + [False] * 4] * 2
    env.set_attr("render_mode", "human")
    assert env.get_attr("render_mode") == ["human"] * 3
    with pytest.raises(ConfigError, match="belongs to all rows"):
        env.set_attr("render_mode", None, indices=0)
    env.close()


def test_a_reward_that_asks_for_probabilities_is_refused() -> None:
    class Flat:
        def response_logprobs(self, episodes: Any) -> list[Any]:
            return [np.zeros(len(episode.response_ids)) for episode in episodes]

    with pytest.raises(ConfigError, match="which a Stable-Baselines3 policy cannot state"):
        echo(2, reward={"task": 1.0, "kl": 0.1}, provided={"reference": Flat()})


# ---------------------------------------------------------------- the policy


def made(language_model: LanguageModel, env: Any, policy_class: Any = LanguageModelPolicy) -> ActorCriticPolicy:
    return policy_class(env.observation_space, env.action_space, lambda _: 1e-3, language_model=language_model)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_an_action_has_the_probability_the_language_model_gives_it(family: Any, temperature: float) -> None:
    writer = model(
        family=family, init_std=0.5, dropout=0.3, dtype=torch.float64, sampling=Sampling(temperature=temperature)
    )
    env = echo(4)
    policy = made(writer, env)
    policy.set_training_mode(True)  # as while SB3 learns: dropout must stay off
    env.seed(3)
    observation = env.reset()
    for row, tokens in enumerate(([0, 1], [1, 1], [0], [])):  # texts of four lengths
        observation["input_ids"][row, 3 : 3 + len(tokens)] = tokens
        observation["attention_mask"][row, 3 : 3 + len(tokens)] = 1
    actions = torch.tensor([0, 1, 3, 2])
    tensors, _ = policy.obs_to_tensor(observation)
    values, logprobs, entropy = policy.evaluate_actions(tensors, actions)

    lengths = observation["attention_mask"].sum(axis=1)
    for row, length in enumerate(lengths):  # alone, without padding: what the model says by itself
        text = torch.tensor([[*observation["input_ids"][row, :length].tolist(), int(actions[row])]])
        where = torch.zeros_like(text, dtype=torch.bool)
        where[0, -1] = True
        writer.eval()
        seen = writer.evaluate(text, torch.ones_like(where), where)
        assert torch.allclose(logprobs[row], seen.logprobs[0, -1], rtol=0, atol=1e-10)
        assert torch.allclose(entropy[row], seen.entropy[0, -1], rtol=0, atol=1e-10)
    assert values.shape == (4, 1) and not values.any(), "before the first update every state is worth nothing"
    assert torch.equal(policy.get_distribution(tensors).log_prob(actions), logprobs)
    logprobs.sum().backward()
    assert all(parameter.grad is not None for parameter in writer.parameters())


def test_wrapping_changes_no_weight() -> None:
    writer = model()
    before = {name: value.clone() for name, value in writer.state_dict().items()}
    made(writer, echo(1))
    assert all(torch.equal(value, before[name]) for name, value in writer.state_dict().items())


@pytest.mark.parametrize(
    ("writer", "settings", "says"),
    [
        ({"vocab_size": 9}, {}, "the environment's tokenizer has 5 ids and the language model 9"),
        ({}, {"action_length": 2}, "draws one token per step"),
        ({"sampling": Sampling(top_k=2)}, {}, "top_k 2"),
    ],
)
def test_what_does_not_fit_is_refused(writer: dict[str, Any], settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        made(model(**writer), echo(1, **settings))


def test_a_policy_and_a_run_are_saved_and_loaded_as_theirs_are(tmp_path: Path) -> None:
    env = echo(2)
    run = PPO(
        LanguageModelPolicy, env, n_steps=4, batch_size=8, policy_kwargs={"language_model": model()}, device="cpu"
    )
    run.set_logger(SILENT)
    run.learn(8)
    observation = env.reset()
    tensors, _ = run.policy.obs_to_tensor(observation)
    expected = run.policy.get_distribution(tensors).distribution.logits
    file = io.BytesIO()
    run.save(file)
    file.seek(0)
    run.policy.save(str(tmp_path / "policy.pt"))
    for policy in (PPO.load(file).policy, LanguageModelPolicy.load(str(tmp_path / "policy.pt"))):
        assert torch.equal(policy.get_distribution(tensors).distribution.logits, expected)


# ---------------------------------------------------------------- they learn: at least 90 % of the best return


def test_ppo_learns() -> None:
    env, writer = echo(), model()
    learner = PPO(
        LanguageModelPolicy,
        VecMonitor(env),
        n_steps=32,
        batch_size=256,
        n_epochs=4,
        learning_rate=lambda left: 3e-3 * left,
        gamma=1.0,
        seed=0,
        device="cpu",
        policy_kwargs={"language_model": writer},
    )
    before = mean_return(env, learner)
    learner.set_logger(SILENT)
    learner.learn(10_240)
    assert before < 0.5 * BEST
    assert mean_return(env, learner) >= 0.9 * BEST
    # What was trained is the language model itself: it writes just as well without Stable-Baselines3.
    envs = TextVectorEnv(64, **{**ECHO, "action_length": 3, "autoreset_mode": "Disabled"})
    observation, _ = envs.reset(seed=99)
    assert envs.step(writer.write(observation, 3).tokens)[1].mean() >= 0.9 * BEST


def test_a2c_learns() -> None:
    env = echo()
    learner = A2C(
        LanguageModelPolicy,
        env,
        n_steps=8,
        learning_rate=3e-3,
        gamma=1.0,
        ent_coef=0.01,
        use_rms_prop=False,
        seed=0,
        device="cpu",
        policy_kwargs={"language_model": model()},
    )
    before = mean_return(env, learner)
    learner.set_logger(SILENT)
    learner.learn(20_480)
    assert before < 0.5 * BEST
    assert mean_return(env, learner) >= 0.9 * BEST


def test_maskable_ppo_learns_and_writes_no_forbidden_token() -> None:
    contrib = pytest.importorskip("sb3_contrib")
    from rlhf_agents.sb3_masked import MaskableLanguageModelPolicy

    class Watched(ThreeDifferent):
        """Keeps every response it is asked to score."""

        def __init__(self) -> None:
            self.responses: list[str] = []

        def score(self, episode: Episode, /) -> float:
            self.responses.append(episode.response)
            return super().score(episode)

    task = Watched()
    env = TextVecEnv(TextVectorEnv(32, task=task, tokenizer="alphabet:abcxy", max_new_tokens=4, max_prompt_tokens=1))
    learner = contrib.MaskablePPO(
        MaskableLanguageModelPolicy,
        env,
        n_steps=8,
        batch_size=128,
        n_epochs=4,
        learning_rate=3e-3,
        gamma=1.0,
        seed=0,
        device="cpu",
        policy_kwargs={"language_model": model(7)},
    )
    before = mean_return(env, learner, masked=True)
    learner.set_logger(SILENT)
    learner.learn(6_144)
    assert before < 0.6 * ThreeDifferent.best
    assert mean_return(env, learner, masked=True) >= 0.9 * ThreeDifferent.best
    assert len(task.responses) > 200  # equal answers are scored once a step
    for response in task.responses:
        assert len(response) == 3 and set(response) <= set("abc")
        assert response[0] != response[1] != response[2]
