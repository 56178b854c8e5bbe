"""One trunk with two heads, or two models: sft+rm in each of its ways beside training the two apart.

Everything happens in a toy world whose gold reward is known: a prompt is a word of four letters, the right answer
repeats it. Demonstrations are copies with mistakes, and an annotator who errs compares two such copies. Every way
begins with the same small language model, which has read other copies, and reads the same demonstrations and pairs in
the same gradient steps: compute is equal to the token. Then PPO begins with the policy of each way, and climbs its
reward model; all write as many tokens, and gold says what came of it. No word that anything is measured on was seen
before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf_env.envs.tasks import load_task
from rlhf_env.envs.toy_tasks import Echo
from rlhf_env.feedback.offline import load_preferences
from rlhf_env.feedback.reward_models.calibration import win_probability
from rlhf_env.feedback.reward_models.loading import load_scorer
from rlhf_env.feedback.reward_models.scorer import pair_log_odds
from rlhf_env.lab.evaluation.runs import run
from rlhf_env.learning.demonstrations import demonstrations_of, mean_negative_log_likelihood
from rlhf_env.types import JsonObject

APART = "separate"
WAYS = (APART, "shared", "head", "adapters")
TITLES = {
    "perplexity": "Perplexity",
    "accuracy": "Preference accuracy",
    "gold": "Gold after PPO",
    "proxy": "Proxy after PPO",
}
LOWER_IS_BETTER = {"perplexity"}
_LETTERS = "abcd"


@dataclass(frozen=True, kw_only=True)
class HybridStudy:
    """How much of everything. The defaults are those of docs/mechanisms.md."""

    seeds: int = 10
    first_seed: int = 0
    demonstrations: int = 96
    pairs: int = 96
    mistakes: float = 0.15
    """How often a letter of a demonstration is wrong."""
    sharpness: float = 6.0
    """Log-odds with which the annotator prefers a right answer to one without a right letter."""
    base_updates: int = 250
    updates: int = 60
    step_tokens: int = 512
    lr: float = 2e-3
    ppo_tokens: int = 6_000
    rank: int = 8


Measured = dict[str, dict[str, float]]
"""By way, then by measure."""


def measure_seed(
    study: HybridStudy, seed: int, folder: Path, tell: Callable[[str], None] = lambda note: None
) -> Measured:
    """What every way comes to with this seed; its files and runs are in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {part: _words(part) for part in ("training", "held_out")}
    rng = np.random.default_rng([seed, 19])
    _write(folder / "read.jsonl", _copies(words["training"], 1500, 0.45, rng))
    _write(folder / "given.jsonl", _copies(words["training"], study.demonstrations, study.mistakes, rng))
    _write(folder / "pairs.jsonl", _pairs(words["training"], study.pairs, study.sharpness, rng))
    _write(folder / "unseen.jsonl", _copies(words["held_out"], 300, study.mistakes, rng))
    _write(folder / "unseen_pairs.jsonl", _pairs(words["held_out"], 400, study.sharpness, rng))
    tell("the base")
    sft = {"name": "sft", "pack_tokens": study.step_tokens, "lr": 3e-3}
    base = _experiment(folder, seed, "tiny", "read.jsonl", sft, study.base_updates)
    run(base, folder / "base")
    found: Measured = {}
    for way in WAYS:
        tell(way)
        agent = {
            "name": "sft+rm",
            "preferences": str(folder / "pairs.jsonl"),
            "way": way,
            "step_tokens": study.step_tokens,
            "lr": study.lr,
            "held_out": 0.0,
            "max_grad_norm": 0.0,  # one clip for two models would couple them
        }
        hybrid = _experiment(folder, seed, str(folder / "base"), "given.jsonl", agent, study.updates)
        if way == "adapters":
            hybrid["policy"]["lora"] = {"rank": study.rank}
            hybrid["agent"]["lr"] = 5 * study.lr
        trained = run(hybrid, folder / way)
        given = demonstrations_of(
            load_task({"name": "file", "path": str(folder / "unseen.jsonl")}), trained.workplace.setup.tokenizer
        )
        loss, _ = mean_negative_log_likelihood(trained.policy, given.episodes)
        odds = pair_log_odds(load_scorer(folder / way), load_preferences(folder / "unseen_pairs.jsonl"))
        tell(f"ppo from {way}")
        climbed = run(_ppo(study, seed, folder / way))
        found[way] = {
            "perplexity": math.exp(loss),
            "accuracy": float(np.mean((odds > 0) + 0.5 * (odds == 0))),
            "gold": climbed.evaluation.metrics["gold"],
            "proxy": climbed.evaluation.metrics["proxy"],
            "gold before": climbed.metrics[0]["eval/gold"],
            "tokens": float(trained.spending.gradient_tokens),
        }
    return found


def _experiment(folder: Path, seed: int, model: str, data: str, agent: JsonObject, updates: int) -> JsonObject:
    return {
        "seed": seed,
        "task": {"name": "file", "path": str(folder / data)},
        "policy": {"model": model, "tokenizer": f"alphabet:{_LETTERS}="},
        "environment": {"num_envs": 32, "max_new_tokens": 8, "max_prompt_tokens": 8},
        "agent": agent,
        "budget": {"updates": updates},
        "evaluation": {"prompts": 32},
        "checkpoint_every": 0,
    }


def _ppo(study: HybridStudy, seed: int, start: Path) -> JsonObject:
    """PPO on the words of training, with the reward model of the run it starts from."""
    return {
        "seed": seed,
        "task": {"name": "echo", "length": 4, "alphabet": _LETTERS},
        "policy": {"model": str(start), "tokenizer": f"alphabet:{_LETTERS}="},
        "environment": {"num_envs": 64, "max_new_tokens": 8, "max_prompt_tokens": 8},
        "rewards": {"bradley_terry": {"weight": 1.0, "model": str(start)}, "kl": 0.1},
        "agent": {"name": "ppo", "lr": 2e-3},
        "budget": {"generated_tokens": study.ppo_tokens},
        "evaluation": {"prompts": 256, "rewards": {"task": 1.0}},
    }


def _words(part: str) -> list[str]:
    """The words of the task's part, in order: 5,000 draws have all of them."""
    task = Echo(length=4, alphabet=_LETTERS)
    task = task.held_out() if part == "held_out" else task
    return sorted({str(task.prompt(index, {}).meta["answer"]) for index in range(5000)})


def _copy(word: str, mistakes: float, rng: np.random.Generator) -> str:
    """The word, each of its letters another one with this probability, and one time in ten a letter too many or few."""
    said = [str(rng.choice(list(_LETTERS))) if rng.random() < mistakes else letter for letter in word]
    length = len(said) + int(rng.choice([-1, 0, 1], p=[0.05, 0.9, 0.05]))
    return "".join([*said, str(rng.choice(list(_LETTERS)))][:length])


def _copies(words: Sequence[str], count: int, mistakes: float, rng: np.random.Generator) -> list[JsonObject]:
    asked = [words[index] for index in rng.integers(len(words), size=count)]
    return [{"prompt": f"{word}=", "completion": _copy(word, mistakes, rng)} for word in asked]


def _pairs(words: Sequence[str], count: int, sharpness: float, rng: np.random.Generator) -> list[JsonObject]:
    """Two different copies of a word, and which of them an annotator prefers who goes by the right letters."""
    rows: list[JsonObject] = []
    while len(rows) < count:
        word = words[int(rng.integers(len(words)))]
        sides = [_copy(word, float(rng.uniform(0.0, 0.8)), rng) for _ in range(2)]
        if sides[0] == sides[1]:
            continue
        gold = [sum(a == b for a, b in zip(word, said, strict=False)) / max(len(word), len(said)) for said in sides]
        if rng.random() >= win_probability(sharpness * (gold[0] - gold[1])):
            sides.reverse()
        rows.append({"prompt": f"{word}=", "chosen": sides[0], "rejected": sides[1]})
    return rows


def _write(file: Path, rows: Sequence[JsonObject]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
