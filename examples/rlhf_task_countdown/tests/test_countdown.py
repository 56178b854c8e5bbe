"""The task's own tests: values worked out by hand, and the contract that rlhf-env asks of every task."""

from __future__ import annotations

from fractions import Fraction

import pytest
from rlhf_task_countdown.countdown import Countdown
from rlhf_task_countdown.expressions import NoExpression, evaluate

from rlhf_env.envs.tokenizers import AlphabetTokenizer
from rlhf_env.testing import check_task, make_episode

ASKED = {"numbers": [3, 5, 2], "target": 13}


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("3*5-2", 13, [3, 5, 2]),
        ("3+5*2", 13, [3, 5, 2]),
        ("(3 + 5) * 2", 16, [3, 5, 2]),
        ("8-3-2", 3, [8, 3, 2]),
        ("8/4/2", 1, [8, 4, 2]),
        ("1/3", Fraction(1, 3), [1, 3]),
        ("((7))", 7, [7]),
    ],
)
def test_values_by_hand(text: str, value: Fraction | int, numbers: list[int]) -> None:
    assert evaluate(text) == (value, numbers)


@pytest.mark.parametrize(
    "text",
    ["", "3+", "+3", "3 5", "3(5)", "(3", "3)", "3//5", "3**5", "3/(5-5)", "x", "__import__('os')", "٣+1", "(" * 5000],
)
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(NoExpression):
        evaluate(text)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("3*5-2", 1.0),
        ("5*2+3", 1.0),
        ("3+5+2", 0.3),  # the numbers, another value
        ("3*5-2-0", 0.25),  # the value, a number too many
        ("3+3", 0.1 + 0.2 / 3),
        ("7+6", 0.1),
        ("13", 0.0),
        ("thirteen", 0.0),
        ("", 0.0),
    ],
)
def test_scores_by_hand(answer: str, score: float) -> None:
    episode = make_episode("3,5,2=13:", answer, meta=ASKED)
    assert Countdown().score(episode) == pytest.approx(score)
    assert Countdown().well_formed(episode) == (score >= 0.3)


def test_every_target_can_be_reached() -> None:
    task = Countdown(numbers=2)
    for index in range(50):
        asked = task.prompt(index, {}).meta
        a, b = asked["numbers"]
        reachable = {evaluate(f"{x}{sign}{y}")[0] for x, y in ((a, b), (b, a)) for sign in "+-*/"}
        assert asked["target"] in reachable


def test_the_contract() -> None:
    check_task(Countdown())
    check_task(Countdown(numbers=4, largest=25, attempts=3), AlphabetTokenizer("0123456789,=:;?+-*/()"))


def test_a_conversation_says_what_a_turn_comes_to() -> None:
    def reply(*turns: str) -> str | None:
        episode = make_episode("3,5,2=13:", "".join(turns), meta=ASKED, turns=turns)
        return Countdown(attempts=3).reply(episode)

    assert reply("3+5+2") == "10;" and reply("3+") == "?;" and reply("3/5/2") == "3/10;"
    assert reply("3*5-2") is None, "right"
    assert reply("3+", "3+", "3+") is None, "no attempt is left"


def test_a_setting_that_is_wrong_is_refused() -> None:
    with pytest.raises(ValueError, match="numbers must be"):
        Countdown(numbers=1)
