"""The stages `sft` and `train`: an experiment, as `rlhf-env train` runs it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rlhf_env.envs.rewards import NoReward
from rlhf_env.envs.tasks import held_out, load_task
from rlhf_env.errors import ConfigError, Problem, RunFailed, under
from rlhf_env.lab.evaluation.runs import EVALUATION_FILE, evaluation_curve, run
from rlhf_env.learning import checkpoints
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.experiment_checks import check_plugins
from rlhf_env.learning.making_agents import imitates
from rlhf_env.learning.models import context_before_loading, load_tokenizer_of
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.learning.prompt_lengths import require_prompts_fit
from rlhf_env.learning.run_folder import BEST
from rlhf_env.learning.run_record import record_of
from rlhf_env.learning.workplace import OR_OVER_LONG, asks_prompts
from rlhf_env.pipeline.hashing import Hashes, hash_of
from rlhf_env.pipeline.stages.stage import Links, Role, Site, StageOrigin, StageOutcome, merged, with_inputs
from rlhf_env.relative_paths import paths_of
from rlhf_env.types import JsonObject, JsonView

_SHOWN = ("gold", "proxy", "kl", "perplexity", "objective", "length", "distinct_2")


def require_prompts_of_run_fit(experiment: Experiment, policy: PolicySettings) -> None:
    """Raise ConfigError for prompts that are too long, as `prepare` does once the model is there."""
    located = experiment.located()
    settings = located.environment
    if settings.over_long != "refuse" or not asks_prompts(located):
        return
    with under("task"):
        task = load_task(located.task)
        require_prompts_fit(
            [task, held_out(task)],
            load_tokenizer_of(policy),
            max_prompt_tokens=settings.max_prompt_tokens,
            max_new_tokens=settings.max_new_tokens,
            context=context_before_loading(policy),
            remedy=OR_OVER_LONG,
        )


@dataclass(frozen=True)
class TrainStage:
    """Any agent trains: the settings are those of an experiment."""

    experiment: Experiment
    kind: ClassVar[str] = "train"
    takes: ClassVar[Mapping[Role, bool]] = {"model": False, "reward_model": False, "store": False}
    gives: ClassVar[Sequence[Role]] = ("model", "runs")
    aside: ClassVar[frozenset[str]] = frozenset({"trackers", "policy.device"})
    takes_larger_budget: ClassVar[bool] = True
    agent: ClassVar[str | None] = None

    @classmethod
    def table(cls, own: JsonView, defaults: JsonView, links: Links) -> JsonObject:
        table = merged(defaults, own)
        if cls.agent is not None:
            table.setdefault("agent", {"name": cls.agent})
        return with_inputs(table, links)

    @classmethod
    def of(cls, table: JsonView, origin: StageOrigin) -> TrainStage:
        return cls(Experiment.from_table(table, origin.where, folder=origin.folder))

    def check(self) -> None:
        check_plugins(self.experiment)
        located = self.experiment.located().policy
        if Path(located.model).is_absolute() and not Path(located.model).exists():
            return  # an earlier stage makes it
        try:
            load_tokenizer_of(located)
        except ConfigError as error:
            error.change(lambda problem: problem.under("policy"))
            raise

    @property
    def policy(self) -> PolicySettings:
        return self.experiment.located().policy

    def check_prompts(self, policy: PolicySettings) -> None:
        require_prompts_of_run_fit(self.experiment, policy)

    def paths(self) -> Sequence[str]:
        return paths_of(self.experiment.folder or Path(), self.experiment, Experiment)

    def outputs(self, folder: Path) -> Mapping[str, object]:
        return {"": str(folder)}

    def work(self, site: Site) -> StageOutcome:
        begun = (site.folder / "experiment.toml").exists()
        finished = run(self.experiment, site.folder, resume=begun, console=site.console)
        numbers = dict(finished.evaluation.metrics)
        diverged = [name for name, value in numbers.items() if not math.isfinite(value)]
        if diverged:
            raise RunFailed(f"stage {site.name!r}: the evaluation is not finite: {', '.join(diverged)}")
        parts = finished.workplace.env.reward.parts.values()
        rewarded = any(not isinstance(part, NoReward) for part in parts)  # not where an agent imitates
        curve = [
            {name: value for name, value in point.items() if rewarded or name != "proxy"}
            for point in evaluation_curve(site.folder)
        ]
        shown = {name: float(numbers[name]) for name in _SHOWN if name in numbers and (rewarded or name != "proxy")}
        if curve:
            shown |= {f"{name}_before": float(curve[0][name]) for name in shown if name in curve[0]}
        spent = finished.spending.as_dict()
        shown |= {"tokens": float(spent["generated_tokens"]), "updates": float(spent["updates"])}
        reason = "its budget" if finished.reason == "budget" else finished.reason
        agent = self.experiment.agent_label
        return StageOutcome(shown, curve, {"ended": f"{agent}: {finished.update:,} updates, ended by {reason}"})

    def is_open(self) -> bool:
        return False

    def identity(self, folder: Path, hashes: Hashes) -> str | None:
        """The weights of the agent as later stages take it, at its best or last; the clock is left out."""
        kept = [it for it in map(checkpoints.latest, (folder / BEST, folder / "checkpoints")) if it is not None]
        ended = folder / EVALUATION_FILE
        if not ended.is_file() or not (folder / "experiment.toml").is_file():
            return None
        if not kept:  # an agent that does not train
            return record_of(folder).get("config_hash")  # as it was made: a folder may be moved
        return hash_of([hashes.of_files(each, sorted(each.glob("*.safetensors"))) for each in kept])


@dataclass(frozen=True)
class SftStage(TrainStage):
    """Supervised fine-tuning on the completions of a task: an experiment whose agent is `sft`."""

    kind: ClassVar[str] = "sft"
    takes: ClassVar[Mapping[Role, bool]] = {"model": False}
    agent: ClassVar[str | None] = "sft"

    def check(self) -> None:
        if not imitates(self.experiment.agent):
            said = f"a stage of kind 'sft' imitates, and {self.experiment.agent.get('name')} does not: kind = 'train'"
            raise ConfigError(Problem(said, ("agent",)))
        super().check()
