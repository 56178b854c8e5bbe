"""rlwatch and reward-scope, called by their own code on what a run logged (`pip install "rlhf-env[brake]"`).

rlwatch 0.5.1 takes numbers of a step: entropy, KL, rewards, loss, gradient norm. Without diptest it takes one normal
distribution of rewards for two clusters, at every step, so it is compared with it. reward-scope 0.2.2 takes steps of
episodes: each text is one, each token a step, and the reward comes with the last.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_env.errors import MissingExtra
from rlhf_env.lab.brake.records import SavedRun
from rlhf_env.lab.brake.texts import LETTERS
from rlhf_env.types import Float

_LIBRARIES = ("rlwatch", "reward_scope", "diptest")
TEXTS_A_ROLLOUT = 4  # that reward-scope is shown
DETECTORS = ("entropy_collapse", "kl_explosion", "reward_hacking", "gradient_norm_spike", "reward_mean_drift")
SCALES = (0.25, 0.5, 1.0, 1.5, 2.0, 4.0)


def installed() -> list[str]:
    """Which of them are there."""
    return [name for name in _LIBRARIES if importlib.util.find_spec(name) is not None]


def require_libraries() -> None:
    if missing := [name for name in _LIBRARIES if name not in installed()]:
        raise MissingExtra(f"{missing[0]} (or `--without-libraries`)", "brake")


def rlwatch_alerts(record: SavedRun, changes: Mapping[str, Mapping[str, float]] | None = None) -> Float:
    """float64[E]: alerts up to each evaluation. `changes`: of its configuration, by detector; the others are off."""
    from rlwatch.config import RLWatchConfig
    from rlwatch.detectors import DetectorSuite

    config: Any = RLWatchConfig()
    if changes is not None:
        for name in (*DETECTORS, "advantage_variance", "loss_nan"):
            getattr(config, name).enabled = name in changes
            for setting, value in changes.get(name, {}).items():
                setattr(getattr(config, name), setting, value)
    suite, counts, found = DetectorSuite(config), [], 0
    for row in record.rows:
        if row["update"] > 0:
            rewards = row.get("texts/rewards")
            found += len(
                suite.check_step(
                    int(row["update"]),
                    entropy=row.get("rollout/entropy"),
                    kl_divergence=row.get("rollout/kl"),
                    reward_mean=row.get("rollout/reward"),
                    reward_std=row.get("rollout/reward_std"),
                    rewards=None if rewards is None else np.asarray(rewards),
                    loss=row.get("train/policy_loss"),
                    grad_norm=row.get("train/grad_norm"),
                )
            )
        counts.append(float(found))
    return np.array([counts[place] for place in record.evaluated])


def rlwatch_settings() -> dict[str, Mapping[str, Mapping[str, float]]]:
    """What is tried of rlwatch beside its own settings: one detector at a time, windows as short as these runs need,
    its threshold times a scale."""
    short = {"warmup_steps": 5, "rolling_window": 20}
    found: dict[str, Mapping[str, Mapping[str, float]]] = {}
    for scale in SCALES:
        found[f"entropy below {scale:g}"] = {
            "entropy_collapse": {"threshold": scale, "warmup_steps": 5, "consecutive_steps": 4}
        }
        found[f"KL {3.0 * scale:g} sigma"] = {"kl_explosion": {**short, "sigma_multiplier": 3.0 * scale}}
        found[f"reward variance times {3.0 * scale:g}"] = {
            "reward_hacking": {"warmup_steps": 5, "variance_multiplier": 3.0 * scale, "dip_test_significance": 0.0}
        }
        found[f"gradient {3.0 * scale:g} sigma"] = {"gradient_norm_spike": {**short, "sigma_multiplier": 3.0 * scale}}
        steps = max(2, round(8 * scale))
        found[f"reward rising for {steps}"] = {"reward_mean_drift": {"warmup_steps": 5, "consecutive_steps": steps}}
    for level in (0.01, 0.05):
        found[f"dip test at {level:g}"] = {
            "reward_hacking": {"warmup_steps": 5, "variance_multiplier": 1e9, "dip_test_significance": level}
        }
    return found


def reward_scope_alerts(record: SavedRun) -> Float:
    """float64[E]: alerts up to each evaluation, as it comes (two layers, all detectors that take such steps)."""
    from reward_scope import AlertSeverity, HackingDetectorSuite

    suite = HackingDetectorSuite()
    counts, found, step, episode = [], 0, 0, 0
    for row in record.rows:
        texts: Sequence[str] = row.get("texts/shown", [])
        rewards: Sequence[float] = row.get("texts/rewards", [])
        for text, reward in zip(texts[:TEXTS_A_ROLLOUT], rewards, strict=False):
            for place, letter in enumerate(text):
                paid = reward if place == len(text) - 1 else 0.0
                seen, action = np.array([place, LETTERS.index(letter)]), LETTERS.index(letter)
                done = place == len(text) - 1
                alerts = suite.update(step, episode, seen, action, paid, {"proxy": paid}, done, {})
                found += sum(alert.alert_severity == AlertSeverity.ALERT for alert in alerts)
                step += 1
            ended = suite.on_episode_end({"episode": episode, "component_totals": {"proxy": reward}})
            found += sum(alert.alert_severity == AlertSeverity.ALERT for alert in ended)
            episode += 1
        counts.append(float(found))
    return np.array([counts[place] for place in record.evaluated])
