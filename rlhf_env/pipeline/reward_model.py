"""The demo's reward model: replies, an annotator's judgements, a fit, a scorecard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from rlhf_env import plugins
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.tokenizers import load_tokenizer
from rlhf_env.errors import ConfigError
from rlhf_env.feedback.asking.annotators import SimulatedAnnotator
from rlhf_env.feedback.asking.pairs import Authored, collect_pairs
from rlhf_env.feedback.judgements import Author
from rlhf_env.feedback.reward_models.calibration import accuracy_with_interval, expected_calibration_error
from rlhf_env.feedback.reward_models.fitting import fit_reward_model
from rlhf_env.feedback.reward_models.scorecard import make_scorecard
from rlhf_env.feedback.reward_models.scorer import pair_log_odds
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.lab.progress import stage
from rlhf_env.learning.agent import Setup
from rlhf_env.learning.collect import collect
from rlhf_env.learning.engine import Engine
from rlhf_env.learning.making_agents import make_agent
from rlhf_env.learning.spending import Spending
from rlhf_env.pipeline.base_model import no_reward
from rlhf_env.pipeline.settings import Demo, Models
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.policy import Sampling
from rlhf_env.types import Episode, Reward
from rlhf_env.whole_files import write_json


def learn_reward_model(
    folder: Path, *, settings: Demo | None = None, models: Models | None = None, console: Console
) -> Path:
    """The demo's preferences and the reward model fitted to them, in `folder`; resumable. The path of the model.

    Writes `preferences.sqlite`, `reward_model/` (what the reward `bradley_terry` takes) and `reward_model.json`: its
    accuracy on unseen prompts beside what the annotator's noise allows. What is there is not done again; ConfigError
    when it was made with other settings.
    """
    settings, models = settings or Demo(), models or Models()
    folder.mkdir(parents=True, exist_ok=True)
    claim_folder(folder, settings, models)
    console.rule("[bold]1-2  Preferences on replies of the base model")
    preferences = _collect_preferences(settings, models, folder / "preferences.sqlite", console)
    console.rule("[bold]3  Reward model")
    return _fit_reward_model(settings, models, preferences, folder, console)


def claim_folder(out: Path, settings: Demo, models: Models) -> None:
    """Note what the folder's results are made with, and refuse to mix them with others'."""
    made_with = json.loads(json.dumps({"settings": asdict(settings), "models": asdict(models)}))
    note = out / "demo.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != made_with:
        raise ConfigError(
            f"{out} holds a demo of other settings or models (see {note}): choose another folder with --out"
        )
    write_json(note, made_with)


def _collect_preferences(settings: Demo, models: Models, file: Path, console: Console) -> Path:
    """The base model answers held-in prompts at several temperatures; a simulated annotator compares two answers."""
    if file.exists():
        with PreferenceStore(file) as store:
            console.print(f"{store.counts().judgements['comparisons']:,} judgements stand in {file}")
        return file
    annotator = SimulatedAnnotator(
        gold=_gold(settings, models), temperature=settings.annotator_temperature, name="simulated: gold + Bradley-Terry"
    )
    candidates: list[Authored] = []
    with stage(console, "The base model answers") as tell:
        for temperature in settings.temperatures:
            author = Author("policy", "chitchat-base", temperature)
            for episode in _replies(settings, models, temperature):
                candidates.append((episode, author))
                if len(candidates) % settings.num_envs == 0:
                    total = settings.prompts * len(settings.temperatures)
                    tell(len(candidates) / total, f"{len(candidates):,} replies, temperature {temperature}")
    partial = file.with_name(f".{file.name}.partial")
    partial.unlink(missing_ok=True)
    with console.status("The annotator compares..."), PreferenceStore(partial) as store:
        judged = collect_pairs(
            candidates,
            annotator,
            np.random.default_rng(settings.seed),
            store=store,
            pairs_per_prompt=settings.pairs_per_prompt,
        )
    partial.replace(file)
    console.print(f"{len(judged):,} comparisons by an annotator whose noise is known, in {file}", soft_wrap=True)
    return file


def _replies(settings: Demo, models: Models, temperature: float) -> Iterator[Episode]:
    """One reply to each of the first `settings.prompts` training prompts, at one temperature."""
    policy = LanguageModel.from_pretrained(models.base, sampling=Sampling(temperature=temperature))
    policy.reseed(settings.seed + round(1000 * temperature))
    tokenizer = load_tokenizer(models.base)
    env = TextVectorEnv(
        settings.num_envs,
        task="chitchat",
        reward=RewardMix({"none": no_reward}),
        tokenizer=tokenizer,
        max_new_tokens=settings.max_new_tokens,
        max_prompt_tokens=settings.max_prompt_tokens,
        action_length=None,
        autoreset_mode="Disabled",
    )
    spending = Spending()
    setup = Setup(
        policy=policy,
        reference=policy,
        tokenizer=tokenizer,
        reward=env.reward,
        batch_size=settings.num_envs,
        action_length=env.action_length,
        max_new_tokens=env.max_new_tokens,
        seed=settings.seed,
        engine=Engine(spending),
        spending=spending,
    )
    writer = make_agent("reference", setup)
    for start in range(0, settings.prompts, settings.num_envs):
        wanted = list(range(start, min(start + settings.num_envs, settings.prompts)))
        padded = (wanted * settings.num_envs)[: settings.num_envs]
        yield from collect(env, writer, {"indices": padded}).episodes[: len(wanted)]


def _fit_reward_model(settings: Demo, models: Models, preferences: Path, out: Path, console: Console) -> Path:
    """A Bradley-Terry model on the pairs; its accuracy on unseen prompts beside what the annotator's noise allows."""
    folder, card = out / "reward_model", out / "reward_model.json"
    if not card.exists():
        with PreferenceStore(preferences) as store:
            training, unseen = store.split(settings.held_out_pairs)
        # One pair a prompt: the interval below takes pairs to be independent.
        held_out = list({preference.prompt.id: preference for preference in unseen}.values())
        with stage(console, f"Fitting {len(training):,} pairs") as tell:
            model, _ = fit_reward_model(
                training,
                models.base,
                settings.reward_model,
                generator=torch.Generator().manual_seed(settings.seed),
                progress=lambda step, steps, loss: tell(step / steps, f"loss {loss:.3f}"),
            )
        model.save(folder)
        log_odds = pair_log_odds(model, held_out)
        accuracy = accuracy_with_interval(log_odds, np.zeros_like(log_odds))
        gold = _gold(settings, models)
        annotator = SimulatedAnnotator(gold=gold, temperature=settings.annotator_temperature)
        sides = [(p.prompt, response) for p in held_out for response in (p.chosen, p.rejected)]
        worth = gold([response.episode(prompt) for prompt, response in sides])
        record = {
            "accuracy": accuracy.value,
            "low": accuracy.low,
            "high": accuracy.high,
            "pairs": len(training),
            "held_out_pairs": len(held_out),
            "calibration_error": expected_calibration_error(log_odds),
            "ceiling": annotator.expected_accuracy(worth[::2] - worth[1::2]),
            "annotator": "prefers what the gold reward scores higher, with Bradley-Terry noise of temperature "
            f"{settings.annotator_temperature:g} (in units of gold)",
        }
        with console.status("Writing the scorecard"):
            make_scorecard(
                model,
                held_out,
                gold=[(*side, float(value)) for side, value in zip(sides, worth, strict=True)],
                gold_is="upbeat",
                rng=np.random.default_rng(settings.seed),
            ).save(out / "scorecard.json")
        write_json(card, record)
    record = json.loads(card.read_text(encoding="utf-8"))
    console.print(
        f"Held-out accuracy {record['accuracy']:.3f} (95 % interval {record['low']:.3f} to {record['high']:.3f}, "
        f"{record['held_out_pairs']} pairs on unseen prompts); "
        f"the annotator's own noise allows {record['ceiling']:.3f}. "
        + (f"Calibration error {record['calibration_error']:.3f}." if "calibration_error" in record else "")
    )
    return folder


def _gold(settings: Demo, models: Models) -> Reward:
    target = plugins.host().load("reward", "upbeat")
    reward: Reward = plugins.call_with(target, settings.gold(models), {}, "reward 'upbeat'")
    return reward
