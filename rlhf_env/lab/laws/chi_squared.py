"""Two restraints on a proxy that is right on average."""

from __future__ import annotations

import numpy as np

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.worlds import softmax, stream, tilted
from rlhf_env.types import Float

_RESPONSES, _AGREEMENT = 1000, 0.7
_STRENGTHS = np.geomspace(1e-2, 1e7, 120)  # at the end both write the highest proxy alone


def _better_by(seed: int, degrees: float) -> float:
    rng = stream("correlated proxy", seed)
    reference = softmax(1.5 * rng.normal(size=_RESPONSES))
    gold, error = (
        _standard(values, reference)
        for values in (rng.normal(size=_RESPONSES), rng.standard_t(degrees, size=_RESPONSES))
    )
    proxy = _AGREEMENT * gold + np.sqrt(1.0 - _AGREEMENT**2) * error
    by_kl = max(float(tilted(reference, proxy, strength) @ gold) for strength in _STRENGTHS)
    by_square = max(float(_chi_squared(reference, proxy, strength) @ gold) for strength in _STRENGTHS)
    return by_square - by_kl


def _standard(values: Float, reference: Float) -> Float:
    values = values - reference @ values
    return np.asarray(values / np.sqrt(reference @ values**2))


def _chi_squared(reference: Float, proxy: Float, strength: float) -> Float:
    """Best for E[proxy] - chi^2(policy || reference) / (2 strength): reference * max(0, strength * (proxy - level))."""
    order = np.argsort(-proxy)
    mass, value = np.cumsum(reference[order]), np.cumsum((reference * proxy)[order])
    level = (value - 1.0 / strength) / mass  # if just those up to here are written
    last = int(np.nonzero(proxy[order] > level)[0].max())
    policy = reference * np.maximum(0.0, strength * (proxy - level[last]))
    return np.asarray(policy / policy.sum())


LAW = Law(
    name="chi-squared",
    claim="Chi-squared to the reference restrains better than KL where the proxy is correlated with gold there.",
    source="Laidlaw, Singhal and Dragan 2025, arXiv 2403.03185",
    prediction=(
        "Highest gold (in its standard deviations under the reference) over all weights of the penalty, the exact "
        "optimum with chi-squared less that with KL; proxy of correlation 0.7 with an error of Student's t. "
        "Predicted: above 0, and more so for heavy tails."
    ),
    smallest=0.02,
    measure=_better_by,
    at=3.0,
    axis="degrees of freedom of the error (fewer: heavier tails)",
    places=(1.5, 2.0, 3.0, 5.0, 30.0),
    place_seeds=60,
    most=1000,
)
