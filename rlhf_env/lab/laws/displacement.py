"""What becomes of the preferred answer itself under DPO."""

from __future__ import annotations

import numpy as np

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.worlds import stream

_WORLDS, _RESPONSES, _FEATURES, _MARGIN = 200, 20, 6, 3.0


def _falls(seed: int, likeness: float) -> float:
    rng, falls = stream("displacement", seed), 0
    for _ in range(_WORLDS):
        features = rng.normal(size=(_RESPONSES, _FEATURES))
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        across = features[1] - (features[1] @ features[0]) * features[0]
        features[1] = likeness * features[0] + np.sqrt(1.0 - likeness**2) * across / np.linalg.norm(across)
        features *= rng.uniform(0.5, 2.0, size=(_RESPONSES, 1))
        reference = rng.normal(size=_RESPONSES)
        # Every gradient of DPO's loss of one pair points along f_w - f_l: descent ends somewhere on that line, here
        # where the log-ratio of the two answers has grown by the margin.
        apart = features[0] - features[1]
        moved = reference + features @ apart * (_MARGIN / (apart @ apart))
        before, after = (logits[0] - np.logaddexp.reduce(logits) for logits in (reference, moved))
        falls += bool(after < before)
    return falls / _WORLDS - 0.5


LAW = Law(
    name="displacement",
    claim="DPO lowers the probability of the preferred answer itself where the two answers are much alike.",
    source="Razin et al. 2025, arXiv 2410.08847; Rafailov et al. 2024, arXiv 2404.12358",
    prediction=(
        f"Share of {_WORLDS} log-linear policies over {_RESPONSES} answers in which log pi(preferred) has fallen once "
        f"one pair's margin has grown by {_MARGIN:g} nats, less a half; features of the pair with a cosine of 0.9. "
        "Predicted: above 0; below 0 for answers that are not alike."
    ),
    smallest=0.05,
    measure=_falls,
    at=0.9,
    axis="cosine of the features of the two answers",
    places=(-0.9, 0.0, 0.5, 0.8, 0.9, 0.99),
    teaches="`dpo` logs the log-probability of the preferred answer; sft_weight holds it up.",
)
