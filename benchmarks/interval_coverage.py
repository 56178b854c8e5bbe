"""How often 95 % intervals of a mean over few seeds hold the truth, by shape of the scores and number of seeds.

    python benchmarks/interval_coverage.py                 # a few minutes: the table below
    python benchmarks/interval_coverage.py --repeats 500   # quicker, and less exact

For each shape, samples of n seeds are drawn many times; a cell is the share of samples whose interval holds the mean of
the distribution, and in brackets the median width in units of Student's. `ours` is `mean_of_seeds` of
`rlhf_env.lab.statistics`, the outer ends of t and Hall; seeds that are all alike have no interval there (their share is
in the last column), and no method knows anything of them. What the others are:

    percentile   the plain bootstrap (Efron 1979)
    widened      percentiles widened as Student's t and n - 1 demand (Hesterberg 2015)
    BCa          bias-corrected and accelerated (Efron 1987)
    t            Student's
    Johnson      t with a skewness term (Johnson 1978)
    Hall         t through Hall's third-order transformation (Hall 1992)
    boot-t       bootstrap-t, studentised (Efron and Tibshirani 1993, chapter 12)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from rlhf_env.lab.statistics import mean_of_seeds, student_t

Array = npt.NDArray[np.float64]
Ends = tuple[Array, Array]
Draw = Callable[[np.random.Generator, tuple[int, int]], Array]

SHAPES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, shape: rng.normal(0.0, 1.0, shape), 0.0),
    "lognormal": (lambda rng, shape: rng.lognormal(0.0, 1.0, shape), float(np.exp(0.5))),
    "exponential": (lambda rng, shape: rng.exponential(1.0, shape), 1.0),
    "one success in ten": (lambda rng, shape: (rng.random(shape) < 0.1).astype(np.float64), 0.1),
    "one collapse in ten": (
        lambda rng, shape: np.where(rng.random(shape) < 0.1, -5.0, rng.normal(1.0, 0.3, shape)),
        0.9 * 1.0 - 0.1 * 5.0,
    ),
    "pairs of normals": (lambda rng, shape: rng.normal(0.0, 1.0, shape) - rng.normal(0.0, 1.0, shape), 0.0),
    "pairs of lognormals": (lambda rng, shape: rng.lognormal(0.0, 1.0, shape) - rng.lognormal(0.0, 1.0, shape), 0.0),
    "pairs of one in ten": (
        lambda rng, shape: (rng.random(shape) < 0.1).astype(np.float64) - (rng.random(shape) < 0.1),
        0.0,
    ),
}
SEEDS = (3, 5, 10, 20)
_RESAMPLES = 1000


def intervals(samples: Array, rng: np.random.Generator) -> Iterator[tuple[str, Ends]]:
    """Of float64[R, n], R samples: float64[R] lower and upper ends, by method."""
    repeats, n = samples.shape
    middle, spread = samples.mean(axis=1), samples.std(axis=1, ddof=1)
    error, t = spread / np.sqrt(n), student_t(0.975, n - 1)
    drawn = samples[np.arange(repeats)[:, None, None], rng.integers(n, size=(repeats, _RESAMPLES, n))]
    means, spreads = drawn.mean(axis=2), drawn.std(axis=2, ddof=1)

    yield "percentile", _quantiles(means, np.full(repeats, 0.025), np.full(repeats, 0.975))
    tail = NormalDist().cdf(-np.sqrt(n / (n - 1)) * t)
    yield "widened", _quantiles(means, np.full(repeats, tail), np.full(repeats, 1 - tail))
    yield "BCa", _bca(samples, means)
    yield "t", (middle - t * error, middle + t * error)

    third = (((samples - middle[:, None]) ** 3).mean(axis=1)) * n**2 / ((n - 1) * (n - 2))
    shift = np.divide(third, 6 * n * spread**2, out=np.zeros(repeats), where=spread > 0)
    yield "Johnson", (middle + shift - t * error, middle + shift + t * error)
    skew = np.divide(third, spread**3, out=np.zeros(repeats), where=spread > 0)
    yield "Hall", _hall(middle, error, skew, t, n)

    with np.errstate(divide="ignore", invalid="ignore"):
        studentised = (means - middle[:, None]) / (spreads / np.sqrt(n))
    studentised = np.where(spreads > 0, studentised, np.sign(means - middle[:, None]) * 1e3)
    low, high = _quantiles(studentised, np.full(repeats, 0.025), np.full(repeats, 0.975))
    yield "boot-t", (middle - high * error, middle - low * error)


def _quantiles(drawn: Array, low: Array, high: Array) -> Ends:
    ordered = np.sort(drawn, axis=1)
    count = drawn.shape[1] - 1
    places = [np.clip(np.round(share * count).astype(int), 0, count) for share in (low, high)]
    rows = np.arange(len(drawn))
    return ordered[rows, places[0]], ordered[rows, places[1]]


def _bca(samples: Array, means: Array) -> Ends:
    normal, n = NormalDist(), samples.shape[1]
    middle = samples.mean(axis=1)
    below = np.clip((means < middle[:, None]).mean(axis=1), 1e-3, 1 - 1e-3)
    bias = np.array([normal.inv_cdf(share) for share in below])
    left_out = (samples.sum(axis=1, keepdims=True) - samples) / (n - 1)
    away = left_out.mean(axis=1, keepdims=True) - left_out
    squares = (away**2).sum(axis=1)
    accelerated = np.divide((away**3).sum(axis=1), 6 * squares**1.5, out=np.zeros(len(samples)), where=squares > 1e-300)
    ends = []
    for z in (normal.inv_cdf(0.025), normal.inv_cdf(0.975)):
        moved = bias + (bias + z) / (1 - accelerated * (bias + z))
        ends.append(np.array([normal.cdf(value) for value in moved]))
    return _quantiles(means, *ends)


def _hall(middle: Array, error: Array, skew: Array, t: float, n: int) -> Ends:
    """The inverse of g(t) = t + a t^2 / 3 + a^2 t^3 / 27 + a / 6 with a = skew / sqrt(n)."""
    a = skew / np.sqrt(n)
    small = np.abs(a) < 1e-9
    safe = np.where(small, 1.0, a)

    def inverse(x: float) -> Array:
        return np.where(small, x, 3 / safe * (np.cbrt(1 + safe * (x - safe / 6)) - 1))

    return middle - inverse(t) * error, middle - inverse(-t) * error


def ours(samples: Array, *, paired: bool) -> tuple[Ends, float]:
    """`mean_of_seeds` of each sample that has an interval, and the share of samples that have none."""
    found = [mean_of_seeds(sample, paired=paired) for sample in samples]
    ends = np.array([(it.low, it.high) for it in found if it.low is not None], dtype=np.float64)
    return (ends[:, 0], ends[:, 1]), 1.0 - len(ends) / len(found)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--repeats", type=int, default=4000)
    repeats = arguments.parse_args().repeats
    heads: list[str] = []
    for shape, (draw, truth) in SHAPES.items():
        for n in SEEDS:
            rng = np.random.default_rng([n, *shape.encode()])
            samples = draw(rng, (repeats, n))
            found = dict(intervals(samples, rng))
            found["ours"], without = ours(samples, paired=shape.startswith("pairs"))
            if not heads:
                heads = list(found)
                print(f"{'':20} {'n':>2} " + " ".join(f"{name:>15}" for name in heads) + "    none")
            students = np.median(found["t"][1] - found["t"][0])
            cells = []
            for low, high in found.values():
                width = np.median(high - low) / students if students > 0 else float("nan")
                cells.append(f"{((low <= truth) & (truth <= high)).mean():.3f} ({width:4.2f})")
            print(f"{shape:20} {n:2} " + " ".join(f"{cell:>15}" for cell in cells) + f"{without:8.3f}", flush=True)


if __name__ == "__main__":
    main()
