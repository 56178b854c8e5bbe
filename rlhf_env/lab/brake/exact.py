"""Runs in which all expectations are sums: one softmax over 2,000 responses, pushed along the exact policy gradient.

Gold is a smooth function of points in space that no proxy has the form of; proxies are linear on random features,
fitted to noisy labels of pairs that the reference drew. What a run would have logged is computed, and what an owner
sees of single texts is drawn. There are no lengths and no words here: detectors that read those have nothing to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlhf_env.lab.brake.records import RecordedRun
from rlhf_env.lab.brake.texts import fit_votes
from rlhf_env.lab.laws.worlds import kl_nats, policy_entropy, softmax, stream
from rlhf_env.settings import settings
from rlhf_env.types import Float, JsonObject

_UPDATES, _EVERY, _TEXTS, _JUDGED = 72, 4, 48, 192
_RESPONSES, _DIMENSIONS, _MEMBERS, _RIDGE, _STEPS, _ANNOTATOR = 2000, 30, 4, 0.1, 8, 0.5


@settings
class ExactDesign:
    """How the proxy differs from gold, and how hard it is climbed."""

    labels: int = 0
    """Pairs it is fitted to; 0: it is gold itself."""
    size: int = 64
    """Random features."""
    flipped: float = 0.0
    """The share of labels turned around."""
    strength: float = 15.0
    """How far the last policy is tilted by the proxy, in standard deviations of it."""


EXACT_DESIGNS: Mapping[str, ExactDesign] = {
    "exact: gold": ExactDesign(strength=4.0),
    "exact: 1000 labels": ExactDesign(labels=1000, size=128),
    "exact: 200 labels": ExactDesign(labels=200),
    "exact: 200 labels, gently": ExactDesign(labels=200, strength=2.5),
    "exact: 60 labels": ExactDesign(labels=60),
    "exact: 25 labels": ExactDesign(labels=25),
    "exact: 200 labels, 30 % turned": ExactDesign(labels=200, flipped=0.3),
    "exact: 60 labels, 30 % turned": ExactDesign(labels=60, flipped=0.3),
}


@dataclass(frozen=True)
class ExactRun(RecordedRun):
    """One run: a design and a seed."""

    @property
    def title(self) -> str:
        return f"{self.design} · seed {self.seed}"

    def made(self) -> JsonObject:
        design = EXACT_DESIGNS[self.design]
        reference, gold, members = _world(self.seed, design)
        proxy = members.mean(axis=0)
        rng = stream(self.key, self.seed)
        rows: list[JsonObject] = []
        judged: list[list[float]] = []
        for update in range(_UPDATES + 1):
            policy = softmax(np.log(reference) + design.strength * update / _UPDATES * proxy)
            drawn = rng.choice(_RESPONSES, size=_TEXTS, p=policy)
            rewards = proxy[drawn]
            row: JsonObject = {"update": update}
            if update:
                row |= {
                    "rollout/reward": float(rewards.mean()),
                    "rollout/reward_std": float(rewards.std()),
                    "rollout/kl": float(np.log(policy[drawn] / reference[drawn]).mean()),
                    "rollout/entropy": float(policy_entropy(policy)),
                    "texts/rewards": np.round(rewards, 4).tolist(),
                }
                if design.labels:
                    row["texts/disagreement"] = float(members[:, drawn].std(axis=0).mean())
            if update % _EVERY == 0:
                asked = rng.choice(_RESPONSES, size=_JUDGED, p=policy)
                judged.append(np.round(gold[asked], 4).tolist())
                row |= {
                    "eval/objective": float(proxy[asked].mean()),
                    "eval/proxy": float(proxy[asked].mean()),
                    "eval/kl": kl_nats(policy, reference),
                    "eval/distinct_replies": len(set(asked.tolist())) / _JUDGED,
                }
            rows.append(row)
        return {"way": "tilted", "rows": rows, "gold": judged}


def _world(seed: int, design: ExactDesign) -> tuple[Float, Float, Float]:
    """The reference [N], gold [N], and the members' scores [M, N], all in standard deviations under the reference."""
    rng = stream("brake", seed)
    points = rng.normal(size=(_RESPONSES, _DIMENSIONS))
    reference = softmax(1.5 * points @ rng.normal(size=_DIMENSIONS) / np.sqrt(_DIMENSIONS))
    gold = _standard(np.tanh(points @ rng.normal(size=(_DIMENSIONS, 12))) @ rng.normal(size=12), reference)
    if not design.labels:
        return reference, gold, gold[None]
    pairs = rng.choice(_RESPONSES, size=(design.labels, 2), p=reference)
    apart = gold[pairs[:, 0]] - gold[pairs[:, 1]]
    says = rng.random(design.labels) < 1.0 / (1.0 + np.exp(-apart / _ANNOTATOR))
    says ^= rng.random(design.labels) < design.flipped
    members = []
    for _ in range(_MEMBERS):
        inner = rng.normal(size=(_DIMENSIONS, design.size))
        features = np.maximum(points @ inner + rng.normal(size=design.size), 0.0) / np.sqrt(_DIMENSIONS)
        rows = rng.integers(design.labels, size=design.labels)
        signs = np.where(says[rows], 1.0, -1.0)[:, None]
        members.append(
            features @ fit_votes((features[pairs[rows, 0]] - features[pairs[rows, 1]]) * signs, _RIDGE, _STEPS)
        )
    mean = np.mean(members, axis=0)
    spread = np.sqrt(reference @ (mean - reference @ mean) ** 2)
    return reference, gold, np.array([(scores - reference @ mean) / spread for scores in members])


def _standard(values: Float, weights: Float) -> Float:
    centred = values - weights @ values
    return np.asarray(centred / np.sqrt(weights @ centred**2))
