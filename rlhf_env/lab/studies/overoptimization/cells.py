"""The training runs of the study."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from rlhf_env.lab.benchmark.cells import GridCell
from rlhf_env.lab.studies.overoptimization.proxies import ProxyFit, pairs_file
from rlhf_env.lab.studies.overoptimization.study import NAME, Study, TellRow
from rlhf_env.types import JsonObject


class _Run(GridCell):
    """A cell of a benchmark that keeps its measurements, and not its weights."""

    def work(self, folder: Path, on_update: TellRow) -> JsonObject:
        result = super().work(folder, on_update)
        shutil.rmtree(folder / self.run / "checkpoints", ignore_errors=True)
        return result


def runs(study: Study, folder: Path) -> list[GridCell]:
    """All agents on the base proxy, and the comparer on each, seeds outermost."""
    return [
        _run(study, folder, name, agent, seed)
        for seed in study.seed_numbers
        for name in study.proxies
        for agent in study.climbs
        if name == "base" or agent == study.comparer
    ]


def _run(study: Study, folder: Path, proxy: str, agent: str, seed: int) -> GridCell:
    climb = study.climbs[agent]
    rewards: dict[str, object] = {"proxy": _reward(study, folder, proxy, seed)}
    offline: Mapping[str, object] = {"preferences": str(pairs_file(folder, seed))} if climb.offline else {}
    if climb.beta:
        rewards["kl"] = {"weight": climb.beta}
    experiment = study.experiment(
        name=f"{NAME}/{proxy}/{agent}",
        seed=seed,
        rewards=rewards,
        agent=climb.agent,
        budget={"updates": climb.updates},
        checkpoint_every=0,
        environment={
            "num_envs": climb.num_envs,
            "max_new_tokens": study.max_new_tokens,
            "max_prompt_tokens": study.max_prompt_tokens,
        },
        evaluation={"prompts": study.measured_prompts, "every": climb.every, "rewards": study.gold},
        **offline,
    )
    return _Run(NAME, proxy, agent, seed, experiment)


def _reward(study: Study, folder: Path, proxy: str, seed: int) -> JsonObject:
    """The table of the reward that agents climb."""
    made = study.proxies[proxy]
    models = [str(ProxyFit(study, seed, fitting).model(folder)) for fitting in made.fits]
    if made.members == 1:
        return {"plugin": "bradley_terry", "model": models[0]}
    return {"plugin": "ensemble", "model": models, "combination": made.combination, "penalty": made.penalty}
