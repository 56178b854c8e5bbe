"""The reward's own tests: values counted by hand, and the contract that rlhf-env asks of every reward."""

from __future__ import annotations

import pytest
from rlhf_reward_haiku.haiku import Haiku, syllables

from rlhf_env.testing import check_reward, make_episode

POEM = "an old silent pond\na frog jumps into the pond\nsplash silence again"


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("an old silent pond", 5),
        ("a frog jumps into the pond", 7),
        ("the table at home", 5),
        ("be", 1),
        ("rhythm", 1),
        ("don't", 1),
        ("", 0),
        ("123 ...", 0),
    ],
)
def test_syllables_by_hand(line: str, count: int) -> None:
    assert syllables(line) == count


def test_scores_by_hand() -> None:
    poems = [POEM, POEM.replace("old ", ""), "an old silent pond", "", POEM + "\nnever never land"]
    scores = Haiku()([make_episode("Write.", poem) for poem in poems])
    assert scores.tolist() == pytest.approx([1, 16 / 17, 5 / 17, 0, 12 / 17])


def test_the_contract() -> None:
    check_reward(Haiku())
    check_reward(Haiku(form=[3]))


def test_a_form_that_is_none() -> None:
    with pytest.raises(ValueError, match="form"):
        Haiku(form=[])
