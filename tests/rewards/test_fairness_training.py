"""The reward `fairness` in a training run: a policy trained with it lives less on the reward model's prejudice, at a
price that is stated."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_env.envs.tokenizers import load_tokenizer
from rlhf_env.feedback.asking.collecting import sample_responses
from rlhf_env.feedback.judgements import Response
from rlhf_env.feedback.reward_models.fairness import GENDER, Gap, fairness_gaps
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.loop import train
from rlhf_env.learning.workplace import build
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.types import Float, Prompt

PROMPT = "tell"
# What the reward model holds a statement to be worth: it likes wise men best, kindness in anybody, and fish a little.
WORTH = {"wise uncle": 3.0, "wise aunt": 0.0, "kind uncle": 2.0, "kind aunt": 1.8, "wise fish": 1.0, "kind fish": 1.0}
WORDS = ["<unk>", "tell", "kind", "wise", "uncle", "aunt", "fish", "<pad>", "<end>"]


@pytest.fixture(scope="module")
def prejudiced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved reward model that scores every two-word text exactly as WORTH says, 0 where it says nothing."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("prejudiced")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({it: i for i, it in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>")
    for name, spread, width in (("trunk", 0.3, 96), ("writer", 0.02, 32)):
        tiny_language_model("gpt2", vocab_size=len(WORDS), init_std=spread, hidden_size=width).save_pretrained(
            folder / name
        )
        tokenizer.save_pretrained(folder / name)
    model = RewardModel.from_trunk(folder / "trunk", dtype=torch.float64)
    end = len(WORDS) - 1
    texts = [[end], *([one, end] for one in range(end)), *map(list, itertools.product(range(end), range(end)))]
    worth = [WORTH.get(" ".join(WORDS[it] for it in text), 0.0) for text in texts]
    states = []
    for text in texts:
        ids = torch.tensor([[WORDS.index(PROMPT), *text]])
        positions = torch.arange(ids.shape[1])[None]
        with torch.no_grad():
            read = model.trunk(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions)
        states.append(read.last_hidden_state[0, -1].numpy())
    head, *_ = np.linalg.lstsq(np.array(states), np.array(worth))
    model.heads.data[0] = torch.from_numpy(head)
    model.save(folder / "model")
    return folder


@dataclass(frozen=True)
class Trained:
    """What a policy says after training. `naming`: the share that speaks of a man or a woman; `gap`: over that share;
    `worth`: the learned reward of all of it, in log-odds."""

    gap: Gap
    naming: float
    worth: Float


def trained(folder: Path, weight: float, seed: int = 1) -> Trained:
    """A tiny language model, trained by rloo with `weight` times the reward `fairness` beside the learned one."""
    model = str(folder / "model")
    rewards = {"bradley_terry": {"model": model}, "kl": 0.3}
    workplace = build(
        Experiment.from_table(
            {
                "name": "fair",
                "seed": seed,
                "task": {"name": "prompts", "prompts": [PROMPT]},
                "policy": {"model": str(folder / "writer")},
                "environment": {"num_envs": 64, "max_new_tokens": 2, "max_prompt_tokens": 1},
                "rewards": rewards | ({"fairness": {"weight": weight, "model": model}} if weight else {}),
                "agent": {"name": "rloo", "lr": 5e-3, "schedule": "linear"},
                "budget": {"updates": 40},
            }
        )
    )
    setup = workplace.setup
    budget = workplace.experiment.budget
    train(workplace.agent, workplace.source, budget, spending=setup.spending, engine=setup.engine)
    prompts = [Prompt("p", PROMPT)] * 256
    words = load_tokenizer(folder / "writer")
    said = sample_responses(setup.policy, words, prompts, (1.0,), name="policy", max_new_tokens=2)
    texts = [(it.prompt, Response.from_episode(it, author)) for it, author in said]
    scorer = RewardModel.load(folder / "model")
    (gap,) = fairness_gaps(scorer, GENDER, texts, np.random.default_rng(seed))
    return Trained(gap, gap.texts / len(texts), scorer.score_responses(texts))


def test_a_run_with_it_narrows_the_gap_at_a_stated_cost(prejudiced: Path) -> None:
    """Measured: over what names a man or a woman the gap falls from 2.2 to 0.2 log-odds. It costs 0.9 of the 2.1
    log-odds that the learned reward pays on average, of which prejudice was a part. Nor does the policy only escape by
    speaking of fish: 0.74 of what it says still names somebody, 0.84 without. (From the random weights of transformers
    5.4: the gap from 1.4 to 0.2, at 0.5 of 1.7, naming 0.69 and 0.78.)"""
    plain, fair = trained(prejudiced, 0.0), trained(prejudiced, 1.0)
    assert plain.gap.mean_interval[0] > 1.0  # it lives on the prejudice, and the interval says so
    assert fair.gap.absolute_interval[1] < 0.25 * plain.gap.absolute_interval[0]
    assert fair.naming > 0.5
    noise = 2 * np.sqrt(plain.worth.var() / len(plain.worth) + fair.worth.var() / len(fair.worth))
    cost = plain.worth.mean() - fair.worth.mean()
    assert noise < cost < 1.3
