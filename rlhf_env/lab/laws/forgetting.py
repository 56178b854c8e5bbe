"""Two ways to learn a new task, and what is lost of an old one."""

from __future__ import annotations

import numpy as np

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.worlds import rank_correlation, softmax, stream
from rlhf_env.types import Float

_PROMPTS, _ANSWERS, _FEATURES, _RIGHT, _REACHED = 6, 12, 120, 4, 0.9


class _Model:
    """Log-linear: base logits and features that the prompts of both tasks share; the first `_PROMPTS` are new."""

    def __init__(self, seed: int) -> None:
        rng = stream("two tasks", seed)
        shape = (2 * _PROMPTS, _ANSWERS)
        self.base = 1.5 * rng.normal(size=shape)
        self.features = rng.normal(size=(*shape, _FEATURES)) / np.sqrt(_FEATURES)
        self.right = np.zeros((_PROMPTS, _ANSWERS))
        for row in self.right:
            row[rng.choice(_ANSWERS, size=_RIGHT, replace=False)] = 1.0

    def policy(self, theta: Float) -> Float:
        return softmax(self.base + self.features @ theta)

    def trained(self, power: float | None) -> Float:
        """theta where 0.9 of the new task is right: by demonstrations ~ base^power on right answers, or (None) by the
        exact policy gradient."""
        theta = np.zeros(_FEATURES)
        shown = softmax(np.where(self.right > 0.0, (power or 0.0) * self.base[:_PROMPTS], -np.inf))
        for _ in range(20_000):
            policy = self.policy(theta)[:_PROMPTS]
            success = (policy * self.right).sum(1, keepdims=True)
            if success.mean() >= _REACHED:
                break
            push = shown - policy if power is not None else policy * (self.right - success)
            theta = theta + 0.5 * np.einsum("pa,paf->f", push, self.features[:_PROMPTS])
        return theta

    def forgotten(self, theta: Float) -> float:
        """KL(base || policy) on the old task, nats a prompt."""
        return self._forward(theta, slice(_PROMPTS, None))

    def moved(self, theta: Float) -> float:
        """KL(base || policy) on the new task."""
        return self._forward(theta, slice(None, _PROMPTS))

    def _forward(self, theta: Float, rows: slice) -> float:
        base, policy = softmax(self.base)[rows], self.policy(theta)[rows]
        return float((base * np.log(base / policy)).sum(1).mean())


def _more_by_demonstrations(seed: int, power: float) -> float:
    model = _Model(seed)
    return model.forgotten(model.trained(power)) - model.forgotten(model.trained(None))


def correlation(seed: int, _at: float) -> float:
    """Between the forward KL on the new task and what is forgotten, over ways to learn it; less 0.7."""
    model = _Model(seed)
    ends = [model.trained(way) for way in (None, 1.5, 1.0, 0.75, 0.5, 0.25, 0.0, -0.25, -0.5, -1.0)]
    moved, forgotten = (np.array([of(theta) for theta in ends]) for of in (model.moved, model.forgotten))
    return rank_correlation(moved, forgotten) - 0.7


LAW = Law(
    name="forgetting",
    claim="Learning a new task on-policy forgets less of an old one than learning it from demonstrations.",
    source="Shenfeld et al. 2025, arXiv 2509.04259",
    prediction=(
        "KL(base || policy) on the old task in nats a prompt, where 0.9 of the new one is right: demonstrations "
        "uniform over right answers less the exact policy gradient. Predicted: above 0, and less so the more the "
        "demonstrations are the base's own right answers."
    ),
    smallest=0.01,
    measure=_more_by_demonstrations,
    at=0.0,
    axis="demonstrations ~ base^power on right answers",
    places=(-1.0, 0.0, 1.0, 2.0, 4.0),
    place_seeds=20,
    most=400,
    teaches="`rejection` (its own right answers) before `sft` where there is a checker.",
)
