"""One trunk with two heads, or two models: sft+rm in each of its ways beside training the two apart.

Everything happens in a toy world whose gold reward is known: a prompt is a word of two letters, the right answer
repeats it. Demonstrations are copies with mistakes, and an annotator who errs compares two such copies. Every way
begins with the same small language model, which has read other copies, and reads the same demonstrations and pairs in
the same gradient steps: compute is equal to the token. Then PPO begins with the policy of each way, and climbs its
reward model; all write as many tokens, and gold says what came of it. No word that anything is measured on was seen
before.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from rlhf_env.envs.tasks import load_task
from rlhf_env.envs.toy_tasks import Echo
from rlhf_env.errors import DataError
from rlhf_env.feedback.offline import load_preferences
from rlhf_env.feedback.reward_models.calibration import win_probability
from rlhf_env.feedback.reward_models.loading import load_scorer
from rlhf_env.feedback.reward_models.scorer import pair_log_odds
from rlhf_env.lab.evaluation.runs import run
from rlhf_env.lab.statistics import PairedComparison, compare
from rlhf_env.learning.demonstrations import demonstrations_of, mean_negative_log_likelihood
from rlhf_env.types import Float, JsonObject
from rlhf_env.whole_files import write_json

APART = "separate"
WAYS = (APART, "shared", "head", "adapters")
COMPARED = {
    "perplexity": "Perplexity",
    "accuracy": "Preference accuracy",
    "gold": "Gold after PPO",
}
_LOWER_IS_BETTER = "perplexity"
_LETTERS, _LENGTH = "abcdefgh", 2


@dataclass(frozen=True, kw_only=True)
class HybridStudy:
    """How much of everything."""

    seeds: int = 10
    first_seed: int = 0
    demonstrations: int = 600
    pairs: int = 2000
    mistakes: float = 0.15
    """How often a letter of a demonstration is wrong."""
    sharpness: float = 10.0
    """Log-odds with which the annotator prefers a right answer to one without a right letter."""
    base_updates: int = 100
    updates: int = 100
    step_tokens: int = 256
    share: float = 0.25
    """Of a step's tokens, those of demonstrations."""
    lr: float = 4e-3
    """Of whole models; adapters learn with `adapter_lr`."""
    adapter_lr: float = 5e-3
    rank: int = 16
    ppo_tokens: int = 2_500


WayMeasured = dict[str, dict[str, float]]
"""By way, then by measure."""


@dataclass(frozen=True, eq=False)
class HybridFindings:
    """What each way came to: its numbers by seed, and its difference to training apart for each measure."""

    measured: Sequence[WayMeasured]
    compared: Mapping[str, Mapping[str, PairedComparison]]
    """By measure, then by way; more is better (a perplexity that fell by 0.1 is +0.1)."""


def run_hybrid_study(study: HybridStudy, folder: Path, tell: Callable[[float, str], None]) -> HybridFindings:
    """Every seed, in order; `tell` hears the share done. Seeds whose result lies in `folder` are not done again."""
    measured: list[WayMeasured] = []
    for place in range(study.seeds):
        seed = study.first_seed + place
        kept = folder / f"seed-{seed}.json"
        if not kept.is_file():
            with tempfile.TemporaryDirectory() as files:
                steps = iter(range(1, 3 * len(WAYS)))
                found = measure_seed(
                    study,
                    seed,
                    Path(files),
                    lambda note, seed=seed, place=place, steps=steps: tell(  # type: ignore[misc]
                        (place + next(steps) / (3 * len(WAYS))) / study.seeds, f"seed {seed}, {note}"
                    ),
                )
            folder.mkdir(parents=True, exist_ok=True)
            write_json(kept, {"study": asdict(study), "measured": found})
        read: JsonObject = json.loads(kept.read_text(encoding="utf-8"))
        if {**read["study"], "seeds": study.seeds} != asdict(study):
            raise DataError(f"{kept} is of other settings: name another folder, or remove it")
        measured.append(read["measured"])
    compared = {measure: _compared(measured, measure) for measure in COMPARED}
    return HybridFindings(measured, compared)


def _compared(measured: Sequence[WayMeasured], measure: str) -> dict[str, PairedComparison]:
    sign = -1.0 if measure == _LOWER_IS_BETTER else 1.0
    scores: dict[str, Float] = {way: sign * np.array([it[way][measure] for it in measured]) for way in WAYS}
    return compare(scores, APART, stream=np.random.default_rng(0))


def hybrid_table(found: HybridFindings) -> Table:
    """A row a way and measure: the mean over seeds, and the paired difference to training apart."""
    seeds, tokens = len(found.measured), found.measured[0][APART]["tokens"]
    table = Table(
        title=f"sft+rm in each of its ways, {tokens:,.0f} gradient tokens each, {seeds} seeds",
        caption="Better by: mean paired difference to training the two apart, with its 95 % interval over seeds, and a "
        "verdict (sign flips, Holm over the ways). Everything on words that nothing was trained on.",
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("Measure", "Way", "Mean", "Better by", "Verdict"):
        table.add_column(heading, justify="right" if heading in ("Mean", "Better by") else "left")
    for measure, title in COMPARED.items():
        for way in WAYS:
            mean = float(np.mean([it[way][measure] for it in found.measured]))
            one = found.compared[measure].get(way)
            table.add_row(
                title if way == APART else "",
                way,
                f"{mean:.3f}",
                "" if one is None else _interval(one),
                "" if one is None else f"{one.verdict}, p {one.adjusted:.3f}",
                end_section=way == WAYS[-1],
            )
    return table


def _interval(one: PairedComparison) -> str:
    low, high = one.difference.low, one.difference.high
    return f"{one.difference.value:.3f}" + ("" if low is None or high is None else f" ({low:.3f} to {high:.3f})")


def measure_seed(
    study: HybridStudy, seed: int, folder: Path, tell: Callable[[str], None] = lambda note: None
) -> WayMeasured:
    """What every way comes to with this seed; its files and runs are in `folder`.

    Perplexity of copies, accuracy on pairs, gold and proxy of PPO's policy; gold before PPO; gradient tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = {part: _words(part) for part in ("training", "held_out")}
    rng = np.random.default_rng([seed, 19])
    _write(folder / "read.jsonl", _copies(words["training"], 1000, 0.4, rng))
    _write(folder / "given.jsonl", _copies(words["training"], study.demonstrations, study.mistakes, rng))
    _write(folder / "pairs.jsonl", _pairs(words["training"], study.pairs, study.sharpness, rng))
    _write(folder / "unseen.jsonl", _copies(words["held_out"], 300, study.mistakes, rng))
    _write(folder / "unseen_pairs.jsonl", _pairs(words["held_out"], 400, study.sharpness, rng))
    tell("the base")
    sft = {"name": "sft", "pack_tokens": study.step_tokens, "lr": 3e-3}
    base = _experiment(folder, seed, "tiny", "read.jsonl", sft, study.base_updates)
    run(base, folder / "base")
    found: WayMeasured = {}
    for way in WAYS:
        tell(way)
        agent = {
            "name": "sft+rm",
            "preferences": str(folder / "pairs.jsonl"),
            "way": way,
            "step_tokens": study.step_tokens,
            "demonstration_share": study.share,
            "lr": study.lr,
            "held_out": 0.0,
            "max_grad_norm": 0.0,  # one clip for two models would couple them
        }
        hybrid = _experiment(folder, seed, str(folder / "base"), "given.jsonl", agent, study.updates)
        if way == "adapters":
            hybrid["policy"]["lora"] = {"rank": study.rank}
            hybrid["agent"]["lr"] = study.adapter_lr
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
            "gold_before": climbed.metrics[0]["eval/gold"],
            "tokens": float(trained.spending.gradient_tokens),
        }
    return found


def _experiment(folder: Path, seed: int, model: str, data: str, agent: JsonObject, updates: int) -> JsonObject:
    return {
        "seed": seed,
        "task": {"name": "file", "path": str(folder / data)},
        "policy": {"model": model, "tokenizer": f"alphabet:{_LETTERS}="},
        "environment": {"num_envs": 32, "max_new_tokens": 4, "max_prompt_tokens": 4},
        "agent": agent,
        "budget": {"updates": updates},
        "evaluation": {"prompts": 32},
        "checkpoint_every": 0,
    }


def _ppo(study: HybridStudy, seed: int, start: Path) -> JsonObject:
    """PPO on the words of training, with the reward model of the run it starts from."""
    return {
        "seed": seed,
        "task": {"name": "echo", "length": _LENGTH, "alphabet": _LETTERS},
        "policy": {"model": str(start), "tokenizer": f"alphabet:{_LETTERS}="},
        "environment": {"num_envs": 64, "max_new_tokens": 4, "max_prompt_tokens": 4},
        "rewards": {"bradley_terry": {"weight": 1.0, "model": str(start)}, "kl": 0.3},
        "agent": {"name": "ppo", "lr": 1e-3},
        "budget": {"generated_tokens": study.ppo_tokens},
        "evaluation": {"prompts": 256, "rewards": {"task": 1.0}},
    }


def _words(part: str) -> list[str]:
    """The words of the task's part, in order: 5,000 draws have all of them."""
    task = Echo(length=_LENGTH, alphabet=_LETTERS)
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
        gold = [sum(a == b for a, b in zip(word, said, strict=False)) / max(len(word), len(said)) for said in sides]
        if gold[0] == gold[1]:
            continue
        if rng.random() >= win_probability(sharpness * (gold[0] - gold[1])):
            sides.reverse()
        rows.append({"prompt": f"{word}=", "chosen": sides[0], "rejected": sides[1]})
    return rows


def _write(file: Path, rows: Sequence[JsonObject]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
