"""The demo's gold reward with its real judge, on real replies of the shipped base model: what must not pay."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("chitchat_dataset", reason="the demo extra is not installed")
pytest.importorskip("vaderSentiment", reason="the demo extra is not installed")

from rlhf_env import assets, plugins
from rlhf_env.envs import chitchat
from rlhf_env.learning.collect import collect
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.workplace import build
from rlhf_env.types import Episode

ROWS = 64


@pytest.fixture(scope="module")
def replies() -> tuple[list[Episode], np.ndarray]:
    """Replies of the base model to held-out turns, and what they are worth."""
    experiment = Experiment.from_table(
        {
            "task": {"name": "chitchat", "split": "held_out"},
            "policy": {"model": "rlhf-env/chitchat"},
            "environment": {"num_envs": ROWS, "max_new_tokens": 28, "max_prompt_tokens": 48},
            "rewards": {"upbeat": 1.0},
            "agent": {"name": "reference"},
        }
    )
    workplace = build(experiment)
    rollout = collect(workplace.env, workplace.agent, {"indices": list(range(ROWS))}, seed=0)
    return list(rollout.episodes), rollout.returns().numpy()


def worth(replies: tuple[list[Episode], np.ndarray], *texts: str | None) -> np.ndarray:
    """Gold of other answers to the same turns; None copies the turn."""
    gold = build_gold()
    answered = [
        replace(episode, response=chitchat_turn(episode) if text is None else text, finish_reason="stop")
        for episode in replies[0]
        for text in texts
    ]
    return np.asarray(gold(answered))


def build_gold() -> Any:
    return plugins.build_plugin("reward", "upbeat", {})


def chitchat_turn(episode: Episode) -> str:
    return episode.prompt.text.removesuffix(chitchat.TURN)


@pytest.mark.parametrize("text", ["great great great", "great great great great great great", "", None])
def test_shouting_silence_and_copying_are_below_the_mean_of_the_base_model(
    replies: tuple[list[Episode], np.ndarray], text: str | None
) -> None:
    """Half a standard deviation below it, and not by the luck of a few turns: on average over all of them."""
    _, gold = replies
    assert worth(replies, text).mean() < gold.mean() - 0.5 * gold.std()


def test_people_are_not_below_the_base_model(replies: tuple[list[Episode], np.ndarray]) -> None:
    pairs = chitchat.replies("held_out")[: 4 * ROWS]
    gold = build_gold()
    template = replies[0][0]
    said = [
        replace(template, prompt=replace(template.prompt, text=prompt), response=reply, finish_reason="stop")
        for prompt, reply in pairs
    ]
    error = replies[1].std() / np.sqrt(len(replies[1]))
    assert np.mean(gold(said)) > replies[1].mean() - 2 * error


def test_the_default_is_what_the_recipe_measured() -> None:
    recipe = json.loads((Path(assets.__file__).parent / "recipe.json").read_text(encoding="utf-8"))
    assert build_gold().typical == pytest.approx(recipe["median_reply_logprob_under_judge"], abs=0.005)
