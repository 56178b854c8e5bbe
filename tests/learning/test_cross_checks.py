"""Our formulas and agents against other people's code: Stable-Baselines3's GAE, and TRL's losses and advantages.

Stable-Baselines3 is a dependency. TRL is none: its half is skipped without it. To run it:

    pip install "trl>=1.16,<2"

TRL's trainers do their own padding, masking, scoring and adding up: they are given token ids (GRPO's loss, which has no
collator, also masks and the log-probabilities of older policies). Their models compute in float64 like ours, but their
log-probabilities pass through float32: hence `SINGLE`, not `DOUBLE`. With TRL 1.16 and that one kernel in float64, the
losses and gradients here agree to 3e-15; a mistake in a mask, a sign or an average is off by 1e-3 and more.

What is not compared: GPT-2 prompts of unequal length in TRL's GRPO, which pads them on the left without telling the
model the positions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from rlhf_agents.dpo import DPO
from rlhf_agents.grpo import GRPO
from rlhf_agents.kto import KTO, mismatched
from rlhf_rewards.kl import KL
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.tokenizers import AlphabetTokenizer
from rlhf_env.feedback.reward_models import fitting
from rlhf_env.feedback.reward_models.config import RewardModelConfig
from rlhf_env.feedback.reward_models.model import RewardModel, Text
from rlhf_env.learning.advantages import gae, group_advantages, leave_one_out_advantages
from rlhf_env.learning.agent import Setup
from rlhf_env.learning.functional import logprobs_under
from rlhf_env.learning.rollout import Rollout, labelled_answers, preference_pairs
from rlhf_env.policies import LanguageModel, tiny_language_model
from rlhf_env.testing import make_episode
from rlhf_env.types import Episode, Score

SINGLE = 1e-6  # of the largest number compared: what passes through float32 keeps
DOUBLE = 1e-10
BETA = 0.3
LONGEST = 6
ALPHABET = AlphabetTokenizer("ab:=")


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """To `tolerance` times the largest number of `expected`, or times 1 where that is less."""
    actual, expected = (torch.as_tensor(numbers, dtype=torch.float64) for numbers in (actual, expected))
    largest = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance * largest)


# ---------------------------------------------------------------- Stable-Baselines3


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0), (0.7, 0.4)])
def test_gae_is_that_of_stable_baselines3(dtype: Any, tolerance: float, gamma: float, lam: float) -> None:
    """Their buffer holds three environments over 40 steps with episodes end to end; a row of ours is one episode.

    Episodes end, are cut off from outside (whose value they add to the reward, discounted), or are cut by the end of
    the buffer. Their arrays are float32 (their sums of 40 rewards of size 1 then keep 5 digits); the same code runs in
    float64 once the arrays are.
    """
    steps, envs = 40, 3
    rng = np.random.default_rng(0)
    rewards, values, cut_values = (rng.normal(size=(steps, envs)).astype(dtype) for _ in range(3))
    last_values = rng.normal(size=envs).astype(dtype)
    ended, cut = rng.random((2, steps, envs)) < 0.1
    cut &= ~ended
    done = ended | cut
    assert ended.any() and cut.any() and not done[-1].all()

    buffer = RolloutBuffer(
        steps, spaces.Discrete(2), spaces.Discrete(2), "cpu", gae_lambda=lam, gamma=gamma, n_envs=envs
    )
    starts = np.concatenate([np.ones((1, envs)), done[:-1]])
    paid = rewards + np.where(cut, dtype(gamma) * cut_values, dtype(0))
    nothing = np.zeros((envs, 1))
    for t in range(steps):
        buffer.add(nothing, nothing, paid[t], starts[t], torch.from_numpy(values[t]), torch.zeros(envs))
    if dtype is np.float64:
        buffer.rewards, buffer.values, buffer.advantages = paid, values, np.zeros_like(paid)
        buffer.episode_starts = starts
    buffer.compute_returns_and_advantage(torch.from_numpy(last_values), done[-1])
    assert buffer.advantages.dtype == dtype

    for env in range(envs):
        borders = [0, *(np.flatnonzero(done[:-1, env]) + 1), steps]
        for start, stop in pairwise(borders):
            last = stop - 1
            ours = gae(
                torch.from_numpy(rewards[None, start:stop, env]),
                torch.from_numpy(values[None, start:stop, env]),
                torch.ones(1, stop - start, dtype=torch.bool),
                gamma=gamma,
                lam=lam,
                truncated=torch.tensor([not ended[last, env]]),
                final_values=torch.tensor([cut_values[last, env] if cut[last, env] else last_values[env]]),
            )
            assert_close(buffer.advantages[start:stop, env], ours[0], tolerance)


# ---------------------------------------------------------------- TRL


@pytest.fixture(scope="module")
def trl() -> Any:
    return pytest.importorskip(
        "trl", minversion="1.16", reason="TRL is no dependency: pip install 'trl>=1.16,<2' to compare with it"
    )


class Theirs:
    """TRL's trainers on copies of our models. They are built and asked for a loss; nothing is trained."""

    def __init__(self, trl: Any, folder: Path) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        self.trl, self.folder = trl, folder
        symbols = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate("ab:=$_")}, unk_token="_"))
        symbols.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=symbols, eos_token="$", pad_token="_")

    def trainer(self, name: str, model: Any, *models: Any, rows: Sequence[dict[str, Any]], **settings: Any) -> Any:
        """`trl.<name>Trainer`, its model in evaluation mode."""
        from datasets import Dataset

        here = {"output_dir": str(self.folder), "report_to": "none", "use_cpu": True, "disable_tqdm": True}
        exact = {"bf16": False, "gradient_checkpointing": False}
        trainer = getattr(self.trl, f"{name}Trainer")(
            model,
            *models,
            args=getattr(self.trl, f"{name}Config")(**here, **exact, **settings),
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=self.tokenizer,
        )
        trainer.model.eval()
        return trainer


@pytest.fixture
def theirs(trl: Any, tmp_path: Path) -> Theirs:
    return Theirs(trl, tmp_path)


@pytest.fixture
def setup() -> Setup:
    """A two-layer GPT-2 in float64 that has left its reference; dropout is configured, and off."""
    policy = tiny_language_model(
        "gpt2", vocab_size=6, end_id=4, pad_id=5, context=32, hidden_size=16, heads=2, init_std=0.2, dropout=0.1
    )
    reference = policy.frozen_copy()
    stir(policy, seed=2)
    return Setup(
        policy=policy,
        reference=reference,
        tokenizer=ALPHABET,
        reward=RewardMix({"kl": (BETA, KL(reference))}),
        batch_size=8,
        action_length=LONGEST,
        max_new_tokens=LONGEST,
        seed=0,
    )


def stir(policy: LanguageModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def episode(prompt: str, response: str) -> Episode:
    """A prompt and a response with its end token, without log-probabilities."""
    return make_episode(prompt, response, ALPHABET, logprobs=None)


def gradient(model: torch.nn.Module) -> Tensor:
    """float64[parameters]: what `backward` has left; 0 where it left nothing."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


def one_step(agent: Any, rollout: Rollout) -> tuple[dict[str, float], Tensor]:
    """An agent's metrics and gradient on a rollout, without the step."""
    agent.optimizer.step = lambda: 0.0
    return agent.update(rollout), gradient(agent.policy)


def in_theirs(policy: Any) -> Any:
    """A copy of the transformers model inside a policy."""
    return copy.deepcopy(policy.model)


PAIRS = [("a:", "bb", "a"), ("b", "", "abab="), ("=ab", "b:b", "==")]


@pytest.mark.parametrize(
    ("loss_type", "ours", "at_once"),
    [
        ("sigmoid", {}, 3),
        ("sigmoid_norm", {"length_normalised": True}, 3),
        ("ipo", {"loss": "ipo", "length_normalised": True}, 3),  # theirs is of log-probabilities per token
        ("aot", {"label_smoothing": 0.2}, 1),  # of one pair, "aot" has nothing to sort and is cDPO; "sigmoid" has none
    ],
)
def test_dpo_is_that_of_trl(theirs: Theirs, setup: Setup, loss_type: str, ours: dict[str, Any], at_once: int) -> None:
    chosen, rejected = ([episode(row[0], row[side]) for row in PAIRS] for side in (1, 2))
    metrics, expected = one_step(DPO(setup, DPO.Config(**ours)), preference_pairs(chosen, rejected, pad_id=5))

    trainer = theirs.trainer(
        "DPO",
        in_theirs(setup.policy),
        in_theirs(setup.reference),
        rows=[{"prompt": "a", "chosen": "b", "rejected": "a"}],
        loss_type=[loss_type],
        beta=BETA,
        label_smoothing=ours.get("label_smoothing", 0.0),
    )
    rows = [
        {
            "prompt_ids": good.prompt_ids.tolist(),
            "chosen_ids": good.response_ids.tolist(),
            "rejected_ids": bad.response_ids.tolist(),
        }
        for good, bad in zip(chosen, rejected, strict=True)
    ]
    total = 0.0
    for start in range(0, len(rows), at_once):
        batch = trainer.data_collator(rows[start : start + at_once])
        loss = trainer.compute_loss(trainer.model, batch) * at_once / len(rows)
        loss.backward()
        total += float(loss.detach())
    assert_close(total, metrics["loss"], SINGLE)
    assert_close(gradient(trainer.model), expected, SINGLE)


def test_kto_is_that_of_trl(theirs: Theirs, setup: Setup) -> None:
    """They are given the mismatched answers that we pair up (the next row's; they would take the one before)."""
    said = [("a:", "bb"), ("b", "a"), ("=ab", "b:b"), ("a", "ab=="), ("b:", "")]
    good = [True, False, True, True, False]
    rollout = labelled_answers([episode(*row) for row in said], good, pad_id=5)
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    metrics, expected = one_step(KTO(setup, KTO.Config(**weights)), rollout)
    assert metrics["reference_point"] > 0.01

    trainer = theirs.trainer(
        "KTO",
        in_theirs(setup.policy),
        in_theirs(setup.reference),
        rows=[{"prompt": "a", "completion": "b", "label": True}, {"prompt": "b", "completion": "a", "label": False}],
        beta=BETA,
        **weights,
    )
    batch = trainer.data_collator(
        [
            {
                "prompt_ids": own.prompt_ids.tolist(),
                "completion_ids": own.response_ids.tolist(),
                "KL_completion_ids": other.response_ids.tolist(),
                "label": label,
            }
            for own, other, label in zip(rollout.episodes, mismatched(rollout, pad_id=5).episodes, good, strict=True)
        ]
    )
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert_close(float(loss.detach()), metrics["loss"], SINGLE)
    assert_close(gradient(trainer.model), expected, SINGLE)


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("centring", [0.0, 0.1])
def test_the_loss_of_reward_models_is_that_of_trl(theirs: Theirs, margin: float, centring: float) -> None:
    """Bradley-Terry on the state at the last token, in float64 throughout."""
    from transformers import GPT2ForSequenceClassification

    tiny = tiny_language_model("gpt2", vocab_size=6, end_id=4, pad_id=5, hidden_size=16, heads=2, init_std=0.2)
    config = copy.deepcopy(tiny.model.config)
    config.num_labels, config.pad_token_id = 1, 5
    classifier = GPT2ForSequenceClassification(config).double()
    classifier.transformer.load_state_dict(tiny.model.transformer.state_dict())
    classifier.score.weight.data[:] = torch.linspace(-1, 1, 16)
    model = RewardModel(copy.deepcopy(classifier.transformer))
    model.heads.data[:] = classifier.score.weight.data

    pairs = [[episode(row[0], row[side]).ids for side in (1, 2)] for row in PAIRS]
    wanted = RewardModelConfig(micro_batch_size=2, margin=margin, centring=centring)
    lessons = [fitting._Lesson(texts=tuple(Text(ids, 0) for ids in texts), weight=1.0) for texts in pairs]
    weight = torch.ones(1, len(pairs), dtype=torch.float64)
    cost = fitting._Objective(model, wanted, torch.Generator()).accumulate(lessons, weight, range(len(pairs)))

    trainer = theirs.trainer(
        "Reward",
        classifier,
        rows=[{"chosen": "ab", "rejected": "a"}],
        center_rewards_coefficient=centring or None,
    )
    rows = [{"chosen_ids": good.tolist(), "rejected_ids": bad.tolist(), "margin": margin} for good, bad in pairs]
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()
    assert_close(float(loss.detach()), cost, DOUBLE)
    assert_close(gradient(classifier.transformer), gradient(model.trunk), DOUBLE)
    assert_close(classifier.score.weight.grad, model.heads.grad, DOUBLE)


@pytest.mark.parametrize(
    ("name", "settings", "ours"),
    [
        ("GRPO", {"scale_rewards": "group"}, {"scale_by_std": True, "epsilon": 1e-4}),  # their epsilon
        ("GRPO", {"scale_rewards": "none"}, {"scale_by_std": False}),
        ("RLOO", {"beta": 0.0}, None),
    ],
)
def test_advantages_of_groups_are_those_of_trl(
    theirs: Theirs, setup: Setup, name: str, settings: dict[str, Any], ours: dict[str, Any] | None
) -> None:
    """Four groups of four: spread, equals, two rows that could not be scored, and rewards a thousand times as large."""
    given = [0.5, -1.25, 3.0, 0.0, 0.35, 0.35, 0.35, 0.35, 1.0, None, 4.0, None, 1000.0, 2000.0, 0.0, -500.0]
    prompts = [{"prompt": prompt} for prompt in ("a:", "b=", "ab", "=b") for _ in range(4)]
    trainer = theirs.trainer(
        name,
        in_theirs(setup.policy),
        lambda completions, **_: given,
        rows=prompts,
        num_generations=4,
        per_device_train_batch_size=16,
        max_completion_length=3,
        **settings,
    )
    trainer.model.train()  # the size of a group is another in evaluation
    expected = trainer._generate_and_score_completions(prompts)["advantages"]

    returns = torch.tensor([0.0 if reward is None else reward for reward in given], dtype=torch.float64)
    counted, group = torch.tensor([reward is not None for reward in given]), torch.arange(16) // 4
    actual = (
        leave_one_out_advantages(returns, group, counted=counted)
        if ours is None
        else group_advantages(returns, group, counted=counted, **ours)
    )
    for rows in torch.arange(16).split(4):
        assert_close(expected[rows], actual[rows], SINGLE)


@pytest.mark.parametrize(
    ("theirs_are", "ours"),
    [
        ({"loss_type": "grpo"}, {"aggregation": "sequence-mean"}),
        ({"loss_type": "bnpo"}, {"aggregation": "token-mean"}),
        ({"loss_type": "dr_grpo", "epsilon_high": 0.5}, {"aggregation": "dr-grpo", "clip_high": 0.5}),
        ({"loss_type": "grpo", "importance_sampling_level": "sequence"}, {"importance": "sequence"}),
    ],
)
def test_grpo_is_that_of_trl(theirs: Theirs, setup: Setup, theirs_are: dict[str, Any], ours: dict[str, Any]) -> None:
    """Two groups that an older policy wrote, so that the clips bind on both sides; the KL term (k3) is in the loss."""
    said = [
        ("a:", "bb"),
        ("a:", ""),
        ("a:", "ab:b"),
        ("a:", "==="),
        ("b=", "a"),
        ("b=", "babab"),
        ("b=", ""),
        ("b=", ":"),
    ]
    returns = [1.0, -0.5, 0.25, 0.0, -2.0, 1.0, 3.0, 0.5]
    written = [episode(*row) for row in said]
    older = setup.policy.frozen_copy()
    stir(older, seed=3)
    episodes = [replace(it, logprobs=p) for it, p in zip(written, older.response_logprobs(written), strict=True)]
    scores = [Score(raw={"task": r}, weights={"task": 1.0}) for r in returns]
    rollout = Rollout.from_episodes(episodes, scores, pad_id=5, group_size=4)
    agent = GRPO(setup, GRPO.Config(kl_in_loss="k3", **ours))
    metrics, expected = one_step(agent, rollout)
    assert metrics["clip_fraction"] > 0.2

    trainer = theirs.trainer(
        "GRPO",
        in_theirs(setup.policy),
        lambda completions, **_: returns,
        rows=[{"prompt": "a:"}, {"prompt": "b="}],
        num_generations=4,
        per_device_train_batch_size=8,
        max_completion_length=LONGEST,
        beta=0.0,
        epsilon=0.2,
        delta=3.0,
        use_bias_correction_kl=False,  # their default is not the paper's: the estimate times the ratio (DeepSeek-V3.2)
        **theirs_are,
    )
    trainer.beta = BETA  # told of it before, the trainer would look for a reference model to load
    ids, mask = rollout.tokens[:, 2:], rollout.actions[:, 2:].long()
    inputs = {
        "prompt_ids": rollout.tokens[:, :2],
        "prompt_mask": torch.ones(8, 2, dtype=torch.int64),
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": group_advantages(torch.tensor(returns), rollout.group, scale_by_std=True),
        "old_per_token_logps": rollout.logprobs[:, 2:],
        "ref_per_token_logps": logprobs_under(setup.reference, rollout)[:, 2:],
    }
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    assert_close(float(loss.detach()), metrics["policy_loss"] + metrics["kl_loss"], SINGLE)
    assert_close(gradient(trainer.model), expected, SINGLE)
