"""Drawing with unequal probability, and the weights that undo it."""

from __future__ import annotations

import numpy as np

from rlhf_env.types import Float


def draw_probabilities(priorities: Float, alpha: float) -> Float:
    """float64[N], sum 1: P(i) = p_i^alpha / sum_k p_k^alpha of `priorities` p, none negative (Schaul et al. 2016,
    eq. 1).

    alpha 0 is uniform, and so are priorities that are all 0.

    >>> draw_probabilities(np.array([1.0, 4.0, 9.0]), 0.5).round(3).tolist()
    [0.167, 0.333, 0.5]
    """
    if not priorities.any():
        return np.full(len(priorities), 1.0 / len(priorities))
    # Divided by the largest, because a power of a large number may be none.
    powers = (priorities / priorities.max()) ** alpha
    return np.asarray(powers / powers.sum(), dtype=np.float64)


def drawing_weights(probabilities: Float, beta: float, *, scale_by_max: bool) -> Float:
    """float64[N]: w_i = (1 / (N P(i)))^beta (Schaul et al. 2016, section 3.4), over the largest if `scale_by_max`.

    With beta 1 and no scaling, the mean of w_i x_i over draws has the expectation mean(x), whatever P is (0 nowhere).
    Scaling makes every weight at most 1, and the expectation smaller by the same factor for all.

    >>> drawing_weights(np.array([0.5, 0.25, 0.25]), 1.0, scale_by_max=False).round(3).tolist()
    [0.667, 1.333, 1.333]
    """
    # 0 only where nothing is ever drawn.
    spread = len(probabilities) * probabilities
    weights = np.where(spread > 0, spread, 1.0) ** -beta
    return np.asarray(weights / weights[probabilities > 0].max() if scale_by_max else weights, dtype=np.float64)


def stratified_draws(probabilities: Float, count: int, stream: np.random.Generator) -> list[int]:
    """`count` indices, drawn with replacement: one from each of `count` equal shares of the probability.

    (Schaul et al. 2016, appendix B.2.1.) Index i is drawn count * P(i) times in expectation, as by independent draws,
    and with less noise.
    """
    places = (np.arange(count) + stream.random(count)) / count
    found = np.searchsorted(np.cumsum(probabilities), places, side="right")
    return [min(int(index), len(probabilities) - 1) for index in found]  # sums of shares may round to less than 1
