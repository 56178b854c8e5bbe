"""PPO: 32 answers of 64 tokens, 4 epochs x 4 minibatches, beside TRL 1.12, the last with a PPO trainer.

    python benchmarks/ppo.py [--sizes SM]

TRL 1.12 stands beside the newer one of the other scripts, in a folder of its own (`make bench-speed` puts it there):

    pip install --no-deps --target build/trl-1.12 "trl==1.12.*" && PYTHONPATH=build/trl-1.12 python benchmarks/ppo.py

Everything is in it on both sides: writing, the reference's and a reward model's reading, advantages, 16 gradient steps.
TRL's value model is a model of its own. Ours is a copy too ("separate"), or a linear head on the policy's trunk
("shared"), which is another algorithm with less work. The losses of both are averages over 16 steps of texts that each
side has drawn for itself, and are not compared; that the texts are as long is.
"""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import warnings
from typing import Any

import side_by_side as bench
from rlhf_agents.ppo import PPO

from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.learning.collect import collect
from rlhf_env.learning.engine import Optimization
from rlhf_env.types import Episode, Float

ROWS, EPOCHS, MINIBATCHES, BETA = 32, 4, 4, 0.05
INSTALL = "make bench-speed"


class Scored:
    """A reward model's score as a reward."""

    def __init__(self, model: RewardModel) -> None:
        self.model = model

    def __call__(self, episodes: list[Episode], /) -> Float:
        return self.model.score(episodes)


def their_trainer(policy: Any, classifier: Any, prompts: list[list[int]]) -> Any:
    warnings.filterwarnings("ignore")
    ppo = bench.peer("trl.experimental.ppo", INSTALL)
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    config = ppo.PPOConfig(
        output_dir=tempfile.mkdtemp(),
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        bf16=False,
        gradient_checkpointing=False,
        num_ppo_epochs=EPOCHS,
        num_mini_batches=MINIBATCHES,
        per_device_train_batch_size=ROWS // MINIBATCHES,
        gradient_accumulation_steps=MINIBATCHES,
        local_rollout_forward_batch_size=ROWS,
        total_episodes=ROWS,
        response_length=bench.ANSWER,
        stop_token="eos",
        num_sample_generations=0,
        save_strategy="no",
        kl_coef=BETA,
        temperature=1.0,
        learning_rate=1e-6,
    )
    return ppo.PPOTrainer(
        args=config,
        processing_class=bench.hub_tokenizer(policy.model.config.vocab_size),
        model=copy.deepcopy(policy.model),
        ref_model=copy.deepcopy(policy.model),
        reward_model=copy.deepcopy(classifier),
        value_model=copy.deepcopy(classifier),
        train_dataset=datasets.Dataset.from_list([{"input_ids": ids} for ids in prompts]),
    )


def compare(size: str, rounds: int) -> None:
    from transformers import LlamaForSequenceClassification

    policy = bench.model(size)
    reference = policy.frozen_copy()
    config = copy.deepcopy(policy.model.config)
    config.num_labels, config.pad_token_id = 1, 1
    classifier = LlamaForSequenceClassification(config)
    classifier.model.load_state_dict(policy.model.model.state_dict())
    prompts = [it.prompt_ids.tolist() for it in bench.texts(policy.vocab_size, ROWS)]
    trainer = their_trainer(policy, classifier, prompts)
    said = [bench.Words(policy.vocab_size).decode(ids) for ids in prompts]
    rewards = {"score": Scored(RewardModel(copy.deepcopy(policy.model.model))), "kl": BETA}
    mix = load_rewards(rewards, bench.Given(said), {"reference": reference})
    lengths = []

    def theirs() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
        return float(ROWS)

    for value_model, at_least in (("separate", 1.25), ("shared", 1.9)):
        setup = bench.setup(policy, reference, mix, ROWS)
        settings = PPO.Config(
            epochs=EPOCHS,
            minibatches=MINIBATCHES,
            value_model=value_model,  # type: ignore[arg-type]
            value_clip=0.2,
            optimization=Optimization(lr=1e-6, beta2=0.999),
        )
        agent = PPO(setup, settings)
        env = bench.environment(said, rewards, setup)

        def ours(agent: PPO = agent, env: Any = env) -> float:
            written = collect(env, agent)
            agent.update(written)
            lengths.append(float(written.actions.sum()) / ROWS)
            return float(ROWS)

        bench.take_turns(
            f"TRL 1.12 PPO, {size}, {ROWS} x {bench.ANSWER}, {value_model} value model",
            ours,
            theirs,
            rounds=rounds,
            at_least=at_least if size == "S" else None,
        )
    if min(lengths) < 0.9 * bench.ANSWER:
        raise SystemExit(f"answers of {min(lengths):.0f} tokens instead of {bench.ANSWER}: not the same work")


if __name__ == "__main__":
    given = bench.arguments(__doc__)
    for size in given.sizes:
        compare(size, given.rounds)
