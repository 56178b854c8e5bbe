"""How near a reward model comes to what its annotator's noise allows, against the number of labels it is fitted to.

    python benchmarks/reward_curve.py                   # all 21,102 prompts, 63,000 labels; docs/reward_curve.png
    python benchmarks/reward_curve.py --prompts 2000    # a tenth of it: the left of the curve
    python benchmarks/reward_curve.py --prompts 300 --held-out 300 --work runs/try --out runs/try/curve.png    # seconds

The demo's base model answers prompts at the demo's temperatures; the demo's simulated annotator compares every two
answers to a prompt; the demo's reward model is fitted to more and more of the verdicts. It is measured on prompts of
conversations that no model learned from, one pair a prompt, labelled by the same annotator:

    accuracy      share of those verdicts that the model gets right, with Wilson's 95 % interval
    ceiling       what somebody who knows gold exactly would expect to get right: the rest is the annotator's noise
    short         points (hundredths) by which accuracy is expected to stay below the ceiling when the annotator judges
                  these pairs again and again: the luck of one verdict a pair is taken out, that of the pairs is not
    calibration   mean distance between stated confidence and accuracy, in ten bins of equal size

Works offline, on one thread. All prompts take about a quarter of an hour of processor time: most of it writes answers,
asks gold, and has the trunk read every text once. What is done stays in --work, and a second call goes on.
Needs the extra "demo".
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_env.envs.chitchat import Chitchat, Split
from rlhf_env.envs.tokenizers import load_tokenizer
from rlhf_env.errors import RlhfEnvError
from rlhf_env.feedback.asking.annotators import SimulatedAnnotator
from rlhf_env.feedback.asking.collecting import sample_responses
from rlhf_env.feedback.asking.pairs import Authored, collect_pairs
from rlhf_env.feedback.judgements import Preference
from rlhf_env.feedback.reward_models.calibration import (
    accuracy_with_interval,
    expected_calibration_error,
    win_probability,
)
from rlhf_env.feedback.reward_models.fitting import fit_reward_model
from rlhf_env.feedback.reward_models.model import RewardModel, Text, distinct_texts
from rlhf_env.feedback.reward_models.scorer import pair_log_odds
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.lab.progress import stage
from rlhf_env.learning.devices import set_threads
from rlhf_env.pipeline.base_model import Models
from rlhf_env.pipeline.demo import shipped_pipeline
from rlhf_env.pipeline.plan import read_plan
from rlhf_env.pipeline.stages.crowds import gold_reward
from rlhf_env.pipeline.stages.fitting import FitStage
from rlhf_env.pipeline.stages.judging import JudgeStage
from rlhf_env.pipeline.stages.writing import ResponsesStage
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.types import Episode, Float
from rlhf_env.whole_files import write_json

MODELS = Models()
DEMO = read_plan(shipped_pipeline("demo"))
_MADE = {it.name: DEMO.made(it, DEMO.outputs(Path("demo"))) for it in DEMO.stages}
ANSWERS, JUDGE, FIT = _MADE["replies"], _MADE["preferences"], _MADE["reward_model"]
assert isinstance(ANSWERS, ResponsesStage) and isinstance(JUDGE, JudgeStage) and isinstance(FIT, FitStage)
NOISE = float(JUDGE.annotator["temperature"])  # of the annotator, in units of gold
REWARD_MODEL = FIT.wanted.reward_model
SEEDS: dict[Split, int] = {"base": 1_000_007, "held_out": 1_500_007}
FEWEST = 500  # labels of the first point, at least
TARGET = 3.0  # points below the ceiling that a reward model is to come to
AT_ONCE = 256

Point = dict[str, float]


class Remembering(RewardModel):
    """A reward model on a trunk that stays as it is: what the trunk has to say about a text is kept."""

    kept: ClassVar[dict[bytes, Tensor]] = {}

    @staticmethod
    def key(ids: Any, start: int) -> bytes:
        return np.append(ids, start).astype(np.int64).tobytes()

    def features(self, ids: Tensor, lengths: Tensor, starts: Tensor) -> Tensor:
        keys = [self.key(row[:length], int(start)) for row, length, start in zip(ids, lengths, starts, strict=True)]
        new = [i for i, key in enumerate(keys) if key not in self.kept]
        if new:
            read = super().features(ids[new], lengths[new], starts[new])
            self.kept.update(zip((keys[i] for i in new), read, strict=True))
        return torch.stack([self.kept[key] for key in keys])

    def recall(self, texts: Sequence[Text], file: Path, console: Console) -> None:
        """Read the texts, or take what reading them gave from `file`."""
        if not file.exists():
            order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # batches of like length
            with stage(console, "The trunk reads") as tell, torch.no_grad():
                for start in range(0, len(order), AT_ONCE):
                    self.frozen_features([texts[i] for i in order[start : start + AT_ONCE]])
                    tell(start / len(order), f"{start:,} texts")
            rows = torch.stack([self.kept[self.key(text.ids, text.start)] for text in texts])
            partial = file.with_name(f".{file.name}.partial")
            save_file({"features": rows}, partial)
            partial.replace(file)
        keys = (self.key(text.ids, text.start) for text in texts)
        self.kept.update(zip(keys, load_file(file)["features"], strict=True))


def answers(split: Split, prompts: int, each: int, console: Console) -> Iterator[Authored]:
    """`each` answers to a prompt at each temperature."""
    task, tokenizer = Chitchat(split), load_tokenizer(MODELS.base)
    policy = LanguageModel.from_pretrained(MODELS.base)
    asked = [task.prompt(index, {}) for index in range(min(prompts, task.size))]
    total = len(asked) * each * len(ANSWERS.temperatures)
    begun = 0
    with stage(console, f"The base model answers {split} prompts") as tell:
        for temperature in ANSWERS.temperatures:
            policy.reseed(SEEDS[split] + round(1000 * temperature))
            written = sample_responses(
                policy,
                tokenizer,
                asked,
                (temperature,),
                name="chitchat-base",
                max_new_tokens=ANSWERS.max_new_tokens,
                each=each,
                batch_size=AT_ONCE,
            )
            for done, candidate in enumerate(written, start=begun + 1):
                yield candidate
                if done % AT_ONCE == 0:
                    tell(done / total, f"{done:,} answers, temperature {temperature}")
            begun += len(asked) * each


def worth(episodes: Sequence[Episode], console: Console) -> Float:
    """The gold reward of each, float64[B]."""
    gold = gold_reward(JUDGE.gold, JUDGE.task)
    values = []
    with stage(console, "What they are worth") as tell:
        for start in range(0, len(episodes), AT_ONCE):
            values.append(gold(episodes[start : start + AT_ONCE]))
            tell(start / len(episodes), f"{start:,} answers")
    return np.concatenate(values)


def judged(split: Split, candidates: Sequence[Authored], values: Float, file: Path) -> None:
    """Every two different answers to a prompt, compared by the annotator, into a store."""
    known = {id(episode): value for (episode, _), value in zip(candidates, values, strict=True)}
    annotator = SimulatedAnnotator(
        gold=lambda episodes: np.array([known[id(it)] for it in episodes]), temperature=NOISE
    )
    partial = file.with_name(f".{file.name}.partial")
    partial.unlink(missing_ok=True)
    with PreferenceStore(partial) as store:
        collect_pairs(candidates, annotator, np.random.default_rng(SEEDS[split]), store=store, pairs_per_prompt=None)
    partial.replace(file)


def preferences(split: Split, prompts: int, each: int, work: Path, console: Console) -> list[Preference]:
    file = work / f"{split}.sqlite"
    if not file.exists():
        candidates = list(answers(split, prompts, each, console))
        values = worth([episode for episode, _ in candidates], console)
        with console.status("The annotator compares..."):
            judged(split, candidates, values, file)
    with PreferenceStore(file) as store:
        return list(store.preferences())


def measure(log_odds: Float, gold: Float) -> Point:
    """`log_odds` and `gold` float64[P], both of the response that the annotator chose less the other."""
    accuracy = accuracy_with_interval(log_odds, np.zeros_like(log_odds))
    # Against gold, an annotator's verdict is lost as often as the one is likelier than the other.
    lost = np.abs(2 * win_probability(gold / NOISE) - 1)
    against = np.where(log_odds == 0, 0.5, np.sign(log_odds) != np.sign(gold))
    return {
        "accuracy": accuracy.value,
        "low": accuracy.low,
        "high": accuracy.high,
        "held_out_pairs": accuracy.pairs,
        "ceiling": float(win_probability(np.abs(gold) / NOISE).mean()),
        "short": float(100 * (lost * against).mean()),
        "calibration": expected_calibration_error(log_odds),
    }


def sizes(labels: int, points: int) -> list[int]:
    """Halves of halves of `labels`, ascending."""
    wanted = [labels >> halvings for halvings in range(points)]
    return sorted(size for size in wanted if size >= min(FEWEST, labels))


def line(labels: int, point: Point) -> str:
    interval = f"{point['accuracy']:.3f} [{point['low']:.3f}, {point['high']:.3f}]"
    return f"{labels:8,} {interval:>24} {point['ceiling']:9.3f} {point['short']:7.1f} {point['calibration']:13.3f}"


def draw(found: dict[int, Point], file: Path) -> None:
    """Accuracy under its ceiling on the left, points short of it on the right."""
    from rlhf_env.lab.drawing import MUTED, PALETTE, Picture, as_png, panel, short_count

    labels, points = list(found), list(found.values())

    def of(name: str) -> list[float]:
        return [point[name] for point in points]

    def count_labels(axes: Any) -> None:
        from matplotlib.ticker import FixedLocator, NullLocator

        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(labels))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
        axes.set_xlabel("labels: pairs compared (each step doubles)", color=MUTED, fontsize=10, labelpad=5)

    def paint(figure: Any) -> None:
        pairs, ceiling = int(points[0]["held_out_pairs"]), points[0]["ceiling"]
        subtitle = f"share of {pairs:,} pairs on unseen prompts, with 95 % interval"
        axes = panel(figure, "Held-out accuracy", subtitle, width=0.5)
        count_labels(axes)
        axes.fill_between(labels, of("low"), of("high"), color=PALETTE[0], alpha=0.16, linewidth=0)
        axes.plot(labels, of("accuracy"), color=PALETTE[0], marker="o", linewidth=2.0)
        axes.axhline(ceiling, color=MUTED, linewidth=1.2, linestyle="--")
        told = {"color": MUTED, "fontsize": 10, "textcoords": "offset points"}
        axes.annotate(f"the annotator's noise allows {ceiling:.3f}", (labels[0], ceiling), (0, 4), **told)
        axes.set_ylim(min(of("low")) - 0.01, ceiling + 0.015)
        axes = panel(
            figure, "Short of the ceiling", "points below what the noise allows, expected", left=0.5, width=0.5
        )
        count_labels(axes)
        axes.plot(labels, of("short"), color=PALETTE[1], marker="s", linewidth=2.0)
        axes.axhline(TARGET, color=MUTED, linewidth=1.2, linestyle="--")
        axes.annotate(f"wanted: {TARGET:g}", (labels[0], TARGET), (0, 5), **told)
        axes.set_ylim(0, max(of("short")) + 1)

    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(as_png(Picture("reward_curve", "", "", "", 800, 310, paint), dpi=144))


def run(given: argparse.Namespace, console: Console) -> None:
    work: Path = given.work
    work.mkdir(parents=True, exist_ok=True)
    made_with = {"prompts": given.prompts, "held_out": given.held_out, "each": given.each}
    note = work / "settings.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != made_with:
        sys.exit(f"{work} was begun with other settings (see {note}): name another folder with --work")
    write_json(note, made_with)
    every = preferences("held_out", given.held_out, 1, work, console)
    unseen = list({it.prompt.id: it for it in every}.values())  # one a prompt: the interval takes pairs as independent
    training = preferences("base", given.prompts, given.each, work, console)
    wanted, file = sizes(len(training), given.points), work / "points.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    gold: Float = np.zeros(0)
    if any(str(labels) not in known for labels in wanted):
        reader = Remembering.from_trunk(MODELS.base, head=REWARD_MODEL.head)
        sides = [(it.prompt, side) for it in (*unseen, *training) for side in (it.chosen, it.rejected)]
        reader.recall(distinct_texts(reader.read(sides))[0], work / "features.safetensors", console)
        values = worth([response.episode(prompt) for prompt, response in sides[: 2 * len(unseen)]], console)
        gold = values[0::2] - values[1::2]
    print(f"{'labels':>8} {'accuracy [95 % interval]':>24} {'ceiling':>9} {'short':>7} {'calibration':>13}", flush=True)
    found: dict[int, Point] = {}
    for labels in wanted:
        if str(labels) not in known:
            known[str(labels)] = measure(pair_log_odds(fitted(training[:labels], console), unseen), gold)
            write_json(file, known)
        found[labels] = known[str(labels)]
        print(line(labels, found[labels]), flush=True)
    draw(found, given.out)
    print(f"picture: {given.out}")


def fitted(training: Sequence[Preference], console: Console) -> RewardModel:
    """The demo's reward model, fitted to these verdicts."""
    with stage(console, f"Fitting {len(training):,} labels") as tell:
        model, _ = fit_reward_model(
            training,
            Remembering.from_trunk(MODELS.base, head=REWARD_MODEL.head),
            REWARD_MODEL,
            generator=torch.Generator().manual_seed(FIT.wanted.seed),
            progress=lambda step, steps, loss: tell(step / steps, f"loss {loss:.3f}"),
        )
    return model


def main() -> None:
    description, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    everyone = Chitchat().size
    parser.add_argument(
        "--prompts", type=int, default=everyone, help="prompts to learn from (default: all, %(default)s)"
    )
    parser.add_argument(
        "--held-out",
        type=int,
        default=Chitchat("held_out").size,
        help="prompts to measure on (default: all, %(default)s)",
    )
    parser.add_argument("--each", type=int, default=1, help="answers to a prompt at each temperature (default: 1)")
    parser.add_argument("--points", type=int, default=6, help="numbers of labels, each half of the next (default: 6)")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/reward-curve"), help="what is done (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs/reward_curve.png"), help="the picture (default: %(default)s)"
    )
    given = parser.parse_args()
    for name in ("prompts", "held_out", "each", "points"):
        if getattr(given, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: {getattr(given, name)} is not a number of at least 1")
    set_threads(1)
    console = Console(stderr=True)
    try:
        run(given, console)
    except KeyboardInterrupt:
        console.print(f"Stopped. What is done is in {given.work}: the same command resumes from there.")
        sys.exit(130)
    except RlhfEnvError as problem:
        sys.exit(str(problem))


if __name__ == "__main__":
    main()
