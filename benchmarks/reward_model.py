"""Fitting a reward model to 16 pairs of 96 tokens, beside TRL's RewardTrainer on the same weights and tokens.

    python benchmarks/reward_model.py [--sizes SM]    needs: pip install -e ".[bench]"

"ragged" is pairs of 8 to 96 tokens, which we sort by length.
"""

from __future__ import annotations

import copy

import numpy as np
import side_by_side as bench
import torch

from rlhf_env.feedback.reward_models import fitting
from rlhf_env.feedback.reward_models.config import RewardModelConfig
from rlhf_env.feedback.reward_models.model import RewardModel, Text

PAIRS, TOKENS = 16, 96


def compare(size: str, rounds: int, ragged: bool) -> None:
    from transformers import LlamaForSequenceClassification

    trl = bench.peer("trl", bench.TRL)
    policy = bench.model(size)
    stream = np.random.default_rng(0)
    lengths = stream.integers(8, TOKENS + 1, (PAIRS, 2)) if ragged else np.full((PAIRS, 2), TOKENS)
    pairs = [[stream.integers(2, policy.vocab_size, length) for length in pair] for pair in lengths]

    config = copy.deepcopy(policy.model.config)
    config.num_labels, config.pad_token_id = 1, 1
    classifier = LlamaForSequenceClassification(config)
    classifier.model.load_state_dict(policy.model.model.state_dict())
    with torch.no_grad():
        classifier.score.weight.copy_(torch.linspace(-1, 1, config.hidden_size))
    model = RewardModel(copy.deepcopy(policy.model.model))
    with torch.no_grad():
        model.heads.copy_(classifier.score.weight)

    wanted = RewardModelConfig(learning_rate=1e-6)
    objective = fitting._Objective(model, wanted, torch.Generator())
    optimizer = fitting._optimizer(objective, wanted)
    lessons = [fitting._Lesson(texts=tuple(Text(ids, 1) for ids in pair), weight=1.0) for pair in pairs]
    weight = torch.ones(1, PAIRS, dtype=torch.float64)

    def our_step() -> tuple[float, float]:
        cost = objective.accumulate(lessons, weight, range(PAIRS))
        norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return cost, float(norm)

    trainer = bench.trainer(
        trl, "Reward", classifier, rows=[{"chosen": "w2 w3", "rejected": "w4"}] * 2, per_device_train_batch_size=PAIRS
    )
    rows = [{"chosen_ids": good.tolist(), "rejected_ids": bad.tolist()} for good, bad in pairs]

    def their_step() -> tuple[float, float]:
        return bench.step_of(trainer, trainer.data_collator(rows))

    for ours, theirs, what in zip(our_step(), their_step(), ("loss", "gradient norm"), strict=True):
        bench.same(what, ours, theirs)
    tokens = float(lengths.sum())
    bench.take_turns(
        f"TRL RewardTrainer, {size}, {PAIRS} pairs of {'8 to ' if ragged else ''}{TOKENS}",
        lambda: our_step() and tokens,
        lambda: their_step() and tokens,
        rounds=rounds,
        at_least=1.25 if size == "S" and not ragged else None,
    )


if __name__ == "__main__":
    given = bench.arguments(__doc__)
    for size in given.sizes:
        for ragged in (False, True):
            compare(size, given.rounds, ragged)
