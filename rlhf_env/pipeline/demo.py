"""The pipelines that the package comes with, and the demo's reward model for a grid that asks for it."""

from __future__ import annotations

import shlex
from dataclasses import field, fields
from pathlib import Path
from typing import Annotated

from annotated_types import Gt, Lt, MinLen
from rich.console import Console

from rlhf_env.errors import UnknownName
from rlhf_env.feedback.reward_models.config import RewardModelConfig
from rlhf_env.pipeline.running import PipelineRun, run_pipeline
from rlhf_env.pipeline.stages.fitting import show_in
from rlhf_env.settings import AtLeastOne, NonNegative, Positive, Seed, settings
from rlhf_env.types import JsonObject

_FOLDER = Path(__file__).parent


def shipped_pipelines() -> list[str]:
    """Their names."""
    return sorted(file.stem for file in _FOLDER.glob("*.toml"))


def shipped_pipeline(name: str) -> Path:
    """The file of a pipeline that the package comes with. Raises UnknownName."""
    if name not in shipped_pipelines():
        raise UnknownName("pipeline", name, shipped_pipelines())
    return _FOLDER / f"{name}.toml"


def pipeline_file(words: str) -> Path:
    """A file; or, where there is none of this name, the shipped pipeline that is called so."""
    if not Path(words).exists() and words in shipped_pipelines():
        return shipped_pipeline(words)
    return Path(words)


def run_demo(
    out: Path | None = None, *, from_scratch: bool = False, seeds: int = 3, jobs: int = 2, console: Console
) -> PipelineRun:
    """The demo: `demo.toml`, with this many seeds for each agent; `from_scratch` makes its models, too."""
    folder = out or Path("runs/demo-from-scratch" if from_scratch else "runs/demo")
    changes: dict[str, object] = {"agents.seeds": seeds}
    if from_scratch:
        changes |= {"base.take": None, "base.judge": None}
    words = ["rlhf-env", "demo", "--out", str(folder), "--seeds", str(seeds)]
    command = shlex.join([*words, "--from-scratch"] if from_scratch else words)
    return run_pipeline(shipped_pipeline("demo"), folder, changes=changes, jobs=jobs, command=command, console=console)


@settings
class DemoRewardModel:
    """Changes to the stages of the demo that lead to its reward model; what is not given is as in `demo.toml`."""

    prompts: AtLeastOne | None = None
    """Prompts whose answers are compared to make preferences."""
    temperatures: Annotated[tuple[Positive, ...], MinLen(2)] | None = None
    """One answer to a prompt is sampled at each of these: two or more give answers to compare."""
    pairs_per_prompt: AtLeastOne | None = None
    """Pairs of answers to a prompt that are judged."""
    held_out_pairs: Annotated[float, Gt(0), Lt(1)] | None = None
    """The share of the prompts that the reward model is measured on and not fitted to."""
    annotator_temperature: NonNegative | None = None
    """The noise of the simulated annotator, in units of the gold reward."""
    reward_model: RewardModelConfig = field(
        default_factory=lambda: RewardModelConfig(
            head="reply", head_epochs=4, epochs=0, dropout=0.2, micro_batch_size=32, patience=4, validation=0.05
        )
    )
    """How the reward model is fitted."""
    num_envs: AtLeastOne | None = None
    """Texts side by side."""
    max_new_tokens: AtLeastOne | None = None
    """The longest response, in tokens."""
    max_prompt_tokens: AtLeastOne | None = None
    """The longest prompt, in tokens."""
    seed: Seed | None = None
    """What the data and the reward model are drawn from."""

    def changes(self) -> JsonObject:
        """As `run_pipeline` takes them."""
        made: JsonObject = {}
        for setting, words in _PLACES.items():
            value = getattr(self, setting)
            if value is not None:
                made |= dict.fromkeys(words, list(value) if isinstance(value, tuple) else value)
        usual = DemoRewardModel.__dataclass_fields__["reward_model"].default_factory()
        for each in fields(RewardModelConfig):
            if (value := getattr(self.reward_model, each.name)) != getattr(usual, each.name):
                made[f"reward_model.reward_model.{each.name}"] = value
        return made


_PLACES = {
    "prompts": ("replies.prompts",),
    "temperatures": ("replies.temperatures",),
    "pairs_per_prompt": ("preferences.per_prompt",),
    "held_out_pairs": ("reward_model.held_out",),
    "annotator_temperature": ("preferences.annotator.temperature",),
    "num_envs": ("replies.num_envs",),
    "max_new_tokens": ("replies.max_new_tokens",),
    "max_prompt_tokens": ("replies.max_prompt_tokens",),
    "seed": ("replies.seed", "preferences.seed", "reward_model.seed"),
}  # where a setting stands in demo.toml


def learn_reward_model(out: Path, wanted: DemoRewardModel, *, console: Console) -> Path:
    """The demo's reward model, made in `out` by the demo's own stages; its folder, `out`/reward_model."""
    run_pipeline(shipped_pipeline("demo"), out, changes=wanted.changes(), until="reward_model", console=console)
    show_in(out, out / "reward_model")
    return out / "reward_model"
