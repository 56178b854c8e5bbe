"""The settings of the pipeline."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_env import assets
from rlhf_env.errors import ConfigError
from rlhf_env.feedback.reward_models.config import RewardModelConfig
from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.plain_data import refuse_misfits
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


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The demo's settings.

    Learning rates and budget were chosen on seeds 100 to 102; the KL weight also after a look at an earlier run of the
    seeds the demo reports, all on the prompts it reports. A demonstration, not a benchmark.
    """

    prompts: int = 5000
    temperatures: tuple[float, ...] = (0.7, 1.0, 1.4)
    pairs_per_prompt: int = 3
    held_out_pairs: float = 1 / 6
    annotator_temperature: float = 0.5
    reward_model: RewardModelConfig = field(
        default_factory=lambda: RewardModelConfig(
            head="reply", head_epochs=4, epochs=0, dropout=0.2, micro_batch_size=32, patience=4, validation=0.05
        )
    )
    num_envs: int = 64
    max_new_tokens: int = 28
    max_prompt_tokens: int = 48
    kl_weight: float = 0.08
    diversity_weight: float = 0.2
    generated_tokens: int = 32_000
    max_kl: float = 12.0
    evaluation_prompts: int = 128
    evaluate_every: int = 8
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
    seed: int = 7

    def __post_init__(self) -> None:
        refuse_misfits(self)
        problems = [
            f"{name} must be at least 1, got {getattr(self, name)}"
            for name in ("prompts", "pairs_per_prompt", "num_envs", "max_new_tokens", "max_prompt_tokens")
            if getattr(self, name) < 1
        ]
        if len(self.temperatures) < 2 or min(self.temperatures) <= 0:
            problems.append(f"temperatures: two or more above 0 give answers to compare, got {self.temperatures}")
        if not 0 < self.held_out_pairs < 1:
            problems.append(f"held_out_pairs is a share of the prompts in (0, 1), got {self.held_out_pairs}")
        if self.annotator_temperature < 0:
            problems.append(f"annotator_temperature must not be negative, got {self.annotator_temperature}")
        if not 0 <= self.seed < 2**40:
            problems.append(f"seed must be in 0..2^40, got {self.seed}")
        if problems:
            raise ConfigError(*problems)

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
