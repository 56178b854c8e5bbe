"""The bridge to reasoning-gym, against the real package."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("reasoning_gym")

from dataclasses import replace

from reasoning_gym.factory import DATASETS

from rlhf_env.envs.reasoning_gym_task import ReasoningGym
from rlhf_env.envs.text_env import TextEnv
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.testing import check_task, make_episode

# Every data set needs no argument but this one, which mixes others.
SETTINGS: dict[str, dict[str, Any]] = {"composite": {"datasets": [{"name": "chain_sum", "weight": 1.0}]}}
# They tell no single answer: any that keeps the rules is right.
OPEN = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}

# It takes whatever is not "True" for "False".
GENEROUS = {"game_of_life_halting"}


def score(task: ReasoningGym, response: str, index: int = 0) -> float:
    prompt = task.prompt(index, {})
    return task.score(replace(make_episode(prompt.text, response), prompt=prompt))


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_dataset_builds_asks_and_knows_its_own_answer(name: str) -> None:
    task = ReasoningGym(name, SETTINGS.get(name, {}))
    prompt = task.prompt(0, {})
    assert prompt.text.strip() and prompt == task.prompt(0, {})
    assert prompt.id == ReasoningGym(name, SETTINGS.get(name, {})).prompt(0, {}).id
    if name not in OPEN:
        assert score(task, str(prompt.meta["answer"])) == 1.0
        assert score(task, f"It must be... <answer>{prompt.meta['answer']}</answer>.") == 1.0
    for nonsense in ("", "é 😀", "nan", "[["):
        assert 0.0 <= score(task, nonsense) < 1.0 or name in GENEROUS


@pytest.mark.parametrize("name", ["chain_sum", "prime_factorization", "pool_matrix", "word_sorting"])
def test_the_contract(name: str) -> None:
    check_task(ReasoningGym(name))


def test_levels_follow_the_curriculum() -> None:
    task = ReasoningGym("chain_sum", level=0)
    assert task.option_names == ("level",)
    easy, hard = (task.prompt(3, {"level": level}) for level in (0, 99))
    assert task.prompt(3, {}) == easy and len(hard.text) > len(easy.text)
    assert (easy.meta["level"], hard.meta["level"]) == (0, 99)
    env = TextEnv(task=task, max_prompt_tokens=600, max_new_tokens=4)
    asked = env.reset(seed=0, options={"level": 3, "indices": [3]})[1]["prompt"]
    assert asked == task.prompt(3, {"level": 3}).text
    assert ReasoningGym("list_functions").option_names == ()
    with pytest.raises(ConfigError, match="has no curriculum"):
        ReasoningGym("list_functions", level=1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dataset": "chain_sums"}, "did you mean 'chain_sum'"),
        ({"dataset": "composite"}, "at least one dataset"),
        ({"dataset": "chain_sum", "settings": {"min_terms": -1}}, "min_terms"),
        ({"dataset": "chain_sum", "settings": {"no_such": 1}}, "no_such"),
        ({"dataset": "chain_sum", "level": -1}, "from 0 up"),
        ({"dataset": "caesar_cipher", "level": 2}, "at level 2"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ReasoningGym(**settings)


def test_a_dataset_of_one_question_has_nothing_to_set_aside() -> None:
    one = {"datasets": [{"name": "count_bits", "weight": 1.0, "config": {"min_n": 5, "max_n": 5}}]}
    task = ReasoningGym("composite", one)
    sides = []
    for part in (task, task.held_out()):
        try:
            sides.append(part.prompt(0, {}).text)
        except DataError as error:
            assert "too few different ones" in str(error)
    assert len(sides) == 1
