"""log n - (n - 1) / n: the KL of best-of-n, or a bound of it."""

from __future__ import annotations

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.worlds import best_of, kl, softmax, stream
from rlhf_env.lab.studies.overoptimization.laws import best_of_n_kl

_N = 16


def _looseness(seed: int, responses: float) -> float:
    rng = stream("bound", seed)
    reference = softmax(1.5 * rng.normal(size=int(responses)))
    return best_of_n_kl(_N) - kl(best_of(reference, rng.normal(size=len(reference)), _N), reference)


LAW = Law(
    name="best-of-n-bound",
    claim="log n - (n - 1) / n is an upper bound on the KL of best-of-n, and loose where answers repeat.",
    source="Beirami et al. 2024, arXiv 2401.01879",
    prediction=(
        "The bound less the exact KL, nats, for n = 16 and 20 responses. Predicted: above 0, towards 0 for many "
        "responses."
    ),
    smallest=0.02,
    measure=_looseness,
    at=20,
    axis="responses",
    places=(2, 5, 20, 100, 1000, 30000),
    teaches="Tables write the KL of best-of-n with a sign of at most; the over-optimisation study estimates it.",
)
