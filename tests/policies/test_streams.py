"""`RowStreams`: a row's numbers are its own."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rlhf_env.errors import DataError
from rlhf_env.policies.streams import _STEP, RowStreams, _mixed


def test_neither_other_rows_nor_the_length_of_a_call_matter() -> None:
    few, many = RowStreams(5).next(3, 4), RowStreams(5).next(8, 9)
    np.testing.assert_array_equal(few, many[:3, :4])
    assert len(np.unique(many)) == many.size
    assert not np.isin(many, RowStreams(6).next(8, 9)).any()


def test_what_is_taken_is_gone_for_that_row_alone() -> None:
    streams = RowStreams(5)
    before = streams.next(3, 10)
    streams.take(np.array([2, 0, 5]))
    after = streams.next(4, 5)
    np.testing.assert_array_equal(after[0], before[0, 2:7])
    np.testing.assert_array_equal(after[1], before[1, :5])
    np.testing.assert_array_equal(after[2], before[2, 5:])


def test_the_published_numbers_of_splitmix64() -> None:
    numbers = _mixed(np.uint64(1_234_567) + np.arange(1, 4, dtype=np.uint64) * _STEP)
    assert numbers.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniform_and_uncorrelated_along_rows_and_across_them() -> None:
    numbers = RowStreams(0).next(400, 500)
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.bincount((numbers.ravel() * 100).astype(int), minlength=100)
    assert ((counts - 2000) ** 2 / 2000).sum() < 99 + 4 * 14.1  # chi-square, 99 degrees of freedom
    centred = (numbers - 0.5) * np.sqrt(12)
    for one, other in ((centred[:, :-1], centred[:, 1:]), (centred[:-1], centred[1:])):
        assert abs((one * other).mean()) < 4 / np.sqrt(one.size)


def test_the_state_survives_json() -> None:
    streams = RowStreams(2**62)
    streams.take(np.array([3, 1]))
    again = RowStreams.of(json.loads(json.dumps(streams.state())))
    np.testing.assert_array_equal(again.next(5, 6), streams.next(5, 6))


def test_another_state_is_refused() -> None:
    with pytest.raises(DataError, match="start the run anew"):
        RowStreams.of(dict(np.random.default_rng(0).bit_generator.state))
