"""The settings of the pipeline."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Gt, Lt, MinLen

from rlhf_env import assets
from rlhf_env.feedback.reward_models.config import RewardModelConfig
from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.settings import AtLeastOne, NonNegative, Positive, Seed, Whole, settings
from rlhf_env.types import JsonObject


@dataclass(frozen=True)
class Models:
    """Folders of the base model (policy and reference of the demo) and of the independent judge of fluency."""

    base: str = "rlhf-env/chitchat"
    judge: str = "rlhf-env/chitchat-judge"

    @classmethod
    def within(cls, folder: Path) -> Models:
        """Where `make_models` writes them."""
        return cls(str(folder / "chitchat"), str(folder / "chitchat-judge"))

    @property
    def typical(self) -> float:
        """The judge's median log-probability of a token of people's held-out replies, as `make_models` measured it."""
        recipe = Path(assets.resolve(self.judge)).parent / "recipe.json"
        return float(json.loads(recipe.read_text(encoding="utf-8"))["median_reply_logprob_under_judge"])


@settings
class Demo:
    """The demo's settings.

    Learning rates and budget were chosen on seeds 100 to 102; the KL weight also after a look at an earlier run of the
    seeds the demo reports, all on the prompts it reports. A demonstration, not a benchmark.
    """

    prompts: AtLeastOne = 5000
    """Prompts whose answers are compared to make preferences."""
    temperatures: Annotated[tuple[Positive, ...], MinLen(2)] = (0.7, 1.0, 1.4)
    """One answer to a prompt is sampled at each of these: two or more give answers to compare."""
    pairs_per_prompt: AtLeastOne = 3
    """Pairs of answers to a prompt that are judged."""
    held_out_pairs: Annotated[float, Gt(0), Lt(1)] = 1 / 6
    """The share of the prompts that the reward model is measured on and not fitted to."""
    annotator_temperature: NonNegative = 0.5
    """The noise of the simulated annotator, in units of the gold reward."""
    reward_model: RewardModelConfig = field(
        default_factory=lambda: RewardModelConfig(
            head="reply", head_epochs=4, epochs=0, dropout=0.2, micro_batch_size=32, patience=4, validation=0.05
        )
    )
    """How the reward model is fitted."""
    num_envs: AtLeastOne = 64
    """Texts side by side."""
    max_new_tokens: AtLeastOne = 28
    """The longest response, in tokens."""
    max_prompt_tokens: AtLeastOne = 48
    """The longest prompt, in tokens."""
    kl_weight: float = 0.08
    """The weight of the KL penalty."""
    diversity_weight: float = 0.2
    """The weight of the reward for answers that differ."""
    generated_tokens: AtLeastOne = 32_000
    """The budget of each run."""
    max_kl: Positive = 12.0
    """A run ends early above this mean KL to the reference."""
    evaluation_prompts: AtLeastOne = 128
    """How many of the held-out prompts are measured on."""
    evaluate_every: Whole = 8
    """Updates from one evaluation to the next (0: only at the end)."""
    agents: dict[str, JsonObject] = field(
        default_factory=lambda: {
            "ppo": {"lr": 2e-4, "group_size": 4},
            "grpo": {"lr": 2e-4},
            "dpo": {"lr": 1.2e-4},
            "best_of_n": {"n": 8},
            "reference": {},
            "random": {},
        }
    )
    """The agents that are compared, by name, with their settings."""
    seed: Seed = 7
    """What the data and the reward model are drawn from."""

    def gold(self, models: Models) -> JsonObject:
        """The gold reward as a table of settings: what the simulated annotator goes by, and no agent sees."""
        return {"judge": models.judge, "typical": models.typical}

    def grid(self, models: Models, reward_model: Path, seeds: int) -> Grid:
        """Agents x seeds: the same weights, prompts, rewards, budget and evaluation for all."""
        return Grid(
            name="demo",
            seeds=seeds,
            agents=self.agents,
            experiment={
                "task": {"name": "chitchat"},
                "policy": {"model": models.base},
                "environment": {
                    "num_envs": self.num_envs,
                    "max_new_tokens": self.max_new_tokens,
                    "max_prompt_tokens": self.max_prompt_tokens,
                },
                "rewards": {
                    "bradley_terry": {"weight": 1.0, "model": str(reward_model.resolve())},
                    "kl": {"weight": self.kl_weight},
                    "diversity": {"weight": self.diversity_weight},
                },
                "budget": {"generated_tokens": self.generated_tokens},
                "max_kl": self.max_kl,
                "evaluation": {
                    "prompts": self.evaluation_prompts,
                    "every": self.evaluate_every,
                    "rewards": {"upbeat": self.gold(models)},
                },
            },
        )
