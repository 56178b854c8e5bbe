"""Runs that a brake is tried on, by the real loop and a tiny model.

Each leaves what its owner would have seen, and beside it what gold was: a record, written once, as JSON. Detectors are
replayed on it and see its rows alone. Gold of every text of every evaluation stands beside them, for the annotator who
is asked and for the judgement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlhf_env.lab.brake.records import RecordedRun
from rlhf_env.lab.brake.texts import LETTERS, LONGEST, GoldOfLetters, ProxyDesign, ProxyOfLetters
from rlhf_env.lab.evaluation.evaluator import Evaluator
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.workplace import build
from rlhf_env.types import JsonObject

LETTER_UPDATES, LETTER_EVERY, LETTER_TEXTS, LETTER_PROMPTS = 72, 4, 48, ("a", "b", "c", "d")
SAMPLES = 48  # of each prompt, in an evaluation
_SHOWN = 12  # texts of a rollout that are kept, for detectors that read texts

LETTER_DESIGNS: Mapping[str, ProxyDesign] = {
    "gold": ProxyDesign(),
    "2000 labels, sees turns": ProxyDesign(labels=2000, sees_turns=True),
    "1000 labels": ProxyDesign(labels=1000),
    "200 labels": ProxyDesign(labels=200),
    "50 labels": ProxyDesign(labels=50),
    "200 labels, 30 % turned": ProxyDesign(labels=200, flipped=0.3),
    "length": ProxyDesign(flaw="length", pays=0.4),
    "length, strong": ProxyDesign(flaw="length", pays=1.5),
    "repetition": ProxyDesign(flaw="repetition", pays=1.0),
    "letter": ProxyDesign(flaw="letter", pays=1.0),
}
CLIMB_WAYS: Mapping[str, Mapping[str, object]] = {
    "rloo": {"agent": {"name": "rloo", "lr": 3e-3, "group_size": 4}, "kl": 0.0},
    "grpo": {"agent": {"name": "grpo", "lr": 2e-3, "group_size": 4}, "kl": 0.1},
}
"""How it is climbed: an agent, and the weight of the KL penalty (0: it is measured and costs nothing)."""


@dataclass(frozen=True)
class BrakeRun(RecordedRun):
    """One run: a design, a seed, a way."""

    way: str
    updates: int = LETTER_UPDATES

    @property
    def title(self) -> str:
        return f"{self.design} · {self.way} · seed {self.seed}"

    def made(self) -> JsonObject:
        rewarded = Rewarded(self.design, self.seed)
        workplace = build(_experiment(self, rewarded))
        rewards: dict[int, list[float]] = {}
        shown: dict[int, list[str]] = {}
        apart: dict[int, float] = {}

        def keep(update: int, rollout: Rollout) -> None:
            scores = rewarded.proxy.of([episode.response for episode in rollout.episodes])
            rewards[update] = [round(float(score), 4) for score in scores]
            shown[update] = [episode.response for episode in rollout.episodes[:_SHOWN]]
            if rewarded.proxy.disagreement is not None:
                apart[update] = rewarded.proxy.disagreement

        gold: list[list[float]] = []

        def measure(rollout: Rollout) -> None:
            gold.append([round(float(score), 4) for score in rewarded.gold(rollout.episodes)])

        evaluator = Evaluator.of(workplace, on_texts=measure)
        training = workplace.train(evaluate=lambda: evaluator().metrics, on_rollout=keep)
        rows: list[JsonObject] = []
        for row in training.rows:
            update = int(row["update"])
            seen: JsonObject = {key: value for key, value in row.items() if _is_seen(key)}
            if update in rewards:
                seen |= {"texts/rewards": rewards[update], "texts/shown": shown[update]}
            if update in apart:
                seen["texts/disagreement"] = apart[update]
            rows.append(seen)
        return {"way": self.way, "rows": rows, "gold": gold}


class Rewarded:
    """Gold and proxy of a run. Both are in units of what the untrained policy writes."""

    def __init__(self, design: str, seed: int) -> None:
        sample = _reference_texts(seed)
        self.gold = GoldOfLetters(seed, sample)
        self.proxy = ProxyOfLetters(self.gold, LETTER_DESIGNS[design], seed)


def _reference_texts(seed: int) -> tuple[str, ...]:
    """512 texts of the policy before training."""
    table = _table(seed, {"name": "reference"}, 1, samples=512 // len(LETTER_PROMPTS))
    workplace = build(Experiment.from_table({**table, "rewards": {"missing_end": 1.0}}))
    rollout, _ = Evaluator.of(workplace).texts(workplace.agent)
    return tuple(episode.response for episode in rollout.episodes)


def _table(seed: int, agent: Mapping[str, object], updates: int, samples: int = SAMPLES) -> dict[str, object]:
    return {
        "name": "brake",
        "seed": seed,
        "task": {"name": "prompts", "prompts": list(LETTER_PROMPTS)},
        "policy": {"model": "tiny", "tokenizer": f"alphabet:{LETTERS}"},
        "environment": {"num_envs": LETTER_TEXTS, "max_new_tokens": LONGEST, "max_prompt_tokens": 1},
        "agent": dict(agent),
        "budget": {"updates": updates},
        "checkpoint_every": 0,
        "texts": {"rollouts_every": 1},
        "evaluation": {"prompts": len(LETTER_PROMPTS), "samples": samples, "every": LETTER_EVERY},
    }


def _experiment(run: BrakeRun, rewarded: Rewarded) -> Experiment:
    way = CLIMB_WAYS[run.way]
    agent = way["agent"]
    assert isinstance(agent, Mapping)
    rewards = {"proxy": rewarded.proxy, "kl": way["kl"]}
    return Experiment.from_table({**_table(run.seed, agent, run.updates), "rewards": rewards})


def _is_seen(key: str) -> bool:
    """What is kept of a row: numbers of rollouts, training and evaluation, and no clocks or histograms."""
    return key == "update" or (key.startswith(("rollout/", "train/", "eval/", "spent/")) and "seconds" not in key)


def letter_runs(seeds: int) -> list[BrakeRun]:
    """Seeds outermost, so that a part of them is balanced."""
    return [BrakeRun(design, seed, way) for seed in range(seeds) for design in LETTER_DESIGNS for way in CLIMB_WAYS]
