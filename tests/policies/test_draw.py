"""`draw`: one token a row by inverting the distribution function."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf_env.errors import ConfigError
from rlhf_env.policies import Sampling
from rlhf_env.policies.decoding import draw

# 1/8, 1/2, 1/4, 1/8 and a token that cannot come.
LOGITS = torch.tensor([[1 / 8, 1 / 2, 1 / 4, 1 / 8, 0.0]], dtype=torch.float64).log()
ALMOST_ONE = np.nextafter(1.0, 0.0)


def frequencies(sampling: Sampling, dtype: torch.dtype = torch.float64, rows: int = 20_000) -> np.ndarray:
    """Exact to 1 / rows: the uniforms are an even grid over [0, 1)."""
    uniforms = (np.arange(rows) + 0.5) / rows
    ids, logprobs = draw(LOGITS.to(dtype).expand(rows, -1), uniforms, sampling)
    counts = np.bincount(ids, minlength=5) / rows
    stated = np.zeros(5)
    stated[ids] = np.exp(logprobs)
    np.testing.assert_allclose(stated, counts, atol=2 / rows)
    return counts


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_frequencies_are_the_softmax(dtype: torch.dtype) -> None:
    np.testing.assert_allclose(frequencies(Sampling(), dtype), [1 / 8, 1 / 2, 1 / 4, 1 / 8, 0], atol=2e-3)


def test_temperature_divides_logits() -> None:
    squared = np.array([1, 16, 4, 1, 0]) / 22
    np.testing.assert_allclose(frequencies(Sampling(temperature=0.5)), squared, atol=1e-4)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(top_k=1), [0, 1, 0, 0, 0]),
        (Sampling(top_k=2), [0, 2 / 3, 1 / 3, 0, 0]),
        (Sampling(top_k=9), [1 / 8, 1 / 2, 1 / 4, 1 / 8, 0]),
        (Sampling(top_p=0.5), [0, 1, 0, 0, 0]),
        (Sampling(top_p=0.51), [0, 2 / 3, 1 / 3, 0, 0]),
        (Sampling(top_p=1e-9), [0, 1, 0, 0, 0]),
        (Sampling(top_k=2, top_p=0.6), [0, 1, 0, 0, 0]),  # top-k first: of 2/3 and 1/3, 0.6 is reached by the first
        (Sampling(top_k=2, top_p=0.7), [0, 2 / 3, 1 / 3, 0, 0]),
    ],
)
def test_truncation(sampling: Sampling, expected: list[float]) -> None:
    np.testing.assert_allclose(frequencies(sampling), expected, atol=1e-4)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=4), Sampling(top_p=0.999)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", [50, 333])  # in one go, and by blocks
def test_impossible_tokens_never_come(sampling: Sampling, dtype: torch.dtype, width: int) -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 4, (400, width))).to(dtype)
    impossible = torch.from_numpy(rng.random((400, width)) < 0.5)
    impossible[:, [0, -1]] = True  # both ends, where an off-by-one would land
    logits[impossible] = -torch.inf
    for uniform in (0.0, 0.5, ALMOST_ONE):
        ids, logprobs = draw(logits, np.full(400, uniform), sampling)
        assert not impossible[torch.arange(400), torch.from_numpy(ids)].any()
        assert np.isfinite(logprobs).all()


def test_logprobs_are_those_of_log_softmax() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 5, (300, 40)))
    ids, logprobs = draw(logits, rng.random(300), Sampling(temperature=1.7))
    expected = (logits / 1.7).log_softmax(-1)[torch.arange(300), torch.from_numpy(ids)]
    np.testing.assert_allclose(logprobs, expected.numpy(), rtol=0, atol=1e-12)


def test_blocks_find_the_token_that_the_running_sum_finds() -> None:
    rng = np.random.default_rng(0)
    logits, uniforms = torch.from_numpy(rng.normal(0, 2, (500, 333))), rng.random(500)
    running = logits.softmax(-1).cumsum(-1).numpy()
    expected = [np.searchsorted(row, u, side="right") for row, u in zip(running, uniforms, strict=True)]
    np.testing.assert_array_equal(draw(logits, uniforms, Sampling())[0], expected)


def test_bad_settings_are_named_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Sampling(temperature=0, top_k=-1, top_p=1.5)
    assert [problem.split()[0] for problem in caught.value.problems] == ["temperature", "top_k", "top_p"]
    for temperature in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ConfigError, match="temperature"):
            Sampling(temperature=temperature)


def test_exact_means_nothing_is_cut_off() -> None:
    assert Sampling(temperature=0.3).exact
    assert not Sampling(top_k=5).exact and not Sampling(top_p=0.9).exact
