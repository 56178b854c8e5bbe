"""The bridge to reasoning-gym, against the real package."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("reasoning_gym")

from dataclasses import replace
from fractions import Fraction

from reasoning_gym.factory import DATASETS

from rlhf_env.envs.reasoning_gym_task import UNSTEADY, ReasoningGym
from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.text_env import TextEnv
from rlhf_env.errors import ConfigError, DataError, RewardError
from rlhf_env.testing import check_task, make_episode

# One mixes others and must be told which; one searches for seconds unless its puzzles need no solution.
SETTINGS: dict[str, dict[str, Any]] = {
    "composite": {"datasets": [{"name": "chain_sum", "weight": 1.0}]},
    "knight_swap": {"impossible_ratio": 1.0},
}
# They tell no single answer: any that keeps the rules is right.
OPEN = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}

# Several seconds a problem: these are asked for one.
SLOW = {"futoshiki", "intermediate_integration", "puzzle24", "quantum_lock", "zebra_puzzles"}
# What nobody would call an answer, and the most that the library pays for it: 0.01 unless it is named.
JUNK = ("", " \n\t", "nan", "x", "lorem ipsum " * 200, ".", "\x00", "é😀", "[[", "No idea.")
PAY_FOR_JUNK = {"figlet_font": 0.2, "palindrome_generation": 0.05, "propositional_logic": 0.25} | {
    "sentence_reordering": 0.05,
    "spell_backward": 0.15,
    "syllogism": 0.25,
}
NONSENSE = ("", "é 😀", "nan", "[[", "I do not know", "0", "True", "<answer></answer>")
# In a process of its own: a line per data set that says what it asks.
ASK = """
import hashlib, sys
out, sys.stdout = sys.stdout, sys.stderr  # some data sets print
from rlhf_env.envs.reasoning_gym_task import UNSTEADY, ReasoningGym
mixed, slow = eval(sys.argv[1]), eval(sys.argv[2])
for name in sys.argv[3:]:
    task = ReasoningGym(name, mixed.get(name, {}))
    prompts = [task.prompt(index, {}) for index in range(1 if name in slow else 2)]
    asked = repr([(prompt.id, prompt.text, prompt.meta["answer"]) for prompt in prompts])
    print(name, hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest(), file=out)
"""


def score(task: ReasoningGym, response: str, index: int = 0) -> float:
    prompt = task.prompt(index, {})
    return task.score(replace(make_episode(prompt.text, response), prompt=prompt))


@pytest.mark.filterwarnings("ignore:.* to a text without meaning:RuntimeWarning")
@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_dataset_builds_asks_and_knows_its_own_answer(name: str) -> None:
    task = ReasoningGym(name, SETTINGS.get(name, {}))
    prompt = task.prompt(0, {})
    assert prompt.text.strip() and prompt == task.prompt(0, {})
    assert prompt.id == ReasoningGym(name, SETTINGS.get(name, {})).prompt(0, {}).id
    if name not in OPEN:
        assert score(task, str(prompt.meta["answer"])) == 1.0
        assert score(task, f"It must be... <answer>{prompt.meta['answer']}</answer>.") == 1.0
    most = PAY_FOR_JUNK.get(name, 0.01)
    for junk in JUNK:
        paid = score(task, junk)
        assert 0.0 <= paid <= (most if junk.strip() else 0.0), f"{junk[:20]!r} is paid {paid}"
    for nonsense in NONSENSE:
        right = nonsense.strip() == str(prompt.meta["answer"])
        assert 0.0 <= score(task, nonsense) < 1.0 or right, f"{nonsense!r} is paid in full"


def test_every_process_asks_the_same_questions() -> None:
    """Those that the package itself asks otherwise, and a sample; `make same-questions` asks them all."""

    def process(hash_seed: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", ASK, repr(SETTINGS), repr(SLOW), *asked]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)

    asked = [name for place, name in enumerate(sorted(DATASETS)) if name in UNSTEADY or place % 5 == 0]
    one, other = (started.communicate()[0].splitlines() for started in [process("1"), process("2")])
    assert [line.split()[0] for line in one] == asked and len(asked) > 20
    assert [line for line, again in zip(one, other, strict=True) if line != again] == []


def test_an_id_names_what_is_asked() -> None:
    easy, hard = (ReasoningGym("chain_sum", {"max_terms": terms, "min_terms": terms}).prompt(0, {}) for terms in (2, 6))
    assert easy.text != hard.text and easy.id != hard.id


def test_a_probability_is_not_guessed_by_its_first_digit() -> None:
    """reasoning-gym 0.1.25 pays 1.0 for "0" wherever the oracle's answer begins with 0."""
    task = ReasoningGym("coin_flip")
    index = next(i for i in range(50) if str(task.prompt(i, {}).meta["answer"]).startswith("0."))
    right = str(task.prompt(index, {}).meta["answer"])
    assert [score(task, answer, index) for answer in ("0", right, f"{right}1", "no")] == [0.0, 1.0, 1.0, 0.0]


def test_a_small_probability_is_not_nothing() -> None:
    task = ReasoningGym("coin_flip")
    right = next(
        (index, str(answer))
        for index in range(500)
        if 0 < float(Fraction(answer := str(task.prompt(index, {}).meta["answer"]))) < 1e-4
    )
    assert [score(task, answer, right[0]) for answer in ("0", right[1])] == [0.0, 1.0]


def test_what_is_scored_here_is_scored_here_in_a_mixture() -> None:
    task = ReasoningGym("composite", {"datasets": [{"name": "game_of_life_halting"}, {"name": "coin_flip"}]})
    halting = next(i for i in range(50) if str(task.prompt(i, {}).meta["answer"]) in ("True", "False"))
    right = str(task.prompt(halting, {}).meta["answer"])
    assert [score(task, answer, halting) for answer in (right, "perhaps")] == [1.0, 0.0]


def test_free_points_are_told_and_refused_where_they_are_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(RuntimeWarning, match=r"'sentence_reordering' pays 0\.05 to a text without meaning, as 'x'"):
        score(ReasoningGym("sentence_reordering"), "anything")
    task = ReasoningGym("chain_sum")
    assert score(task, "x") == 0.0
    generous = ReasoningGym("chain_sum")
    monkeypatch.setattr(type(generous._problems(None).dataset), "score_answer", lambda *_: 1.0)
    mix = load_rewards(None, generous)
    prompt = generous.prompt(0, {})
    for _ in range(2):
        with pytest.raises(RewardError, match="reward 'task': reasoning_gym 'chain_sum' pays 1 to any text"):
            mix.score([replace(make_episode(prompt.text, "3"), prompt=prompt)])


def test_halting_is_true_or_false() -> None:
    """reasoning-gym 0.1.25 takes every text that is not empty for True, and every right answer too."""
    task = ReasoningGym("game_of_life_halting")
    for index in range(4):
        right = str(task.prompt(index, {}).meta["answer"])
        wrong = "False" if right == "True" else "True"
        assert [score(task, answer, index) for answer in (right, wrong, "perhaps")] == [1.0, 0.0, 0.0]


def test_an_empty_answer_is_given_in_tags() -> None:
    task = ReasoningGym("ab")
    index = next(i for i in range(500) if task.prompt(i, {}).meta["answer"] == "")
    assert [score(task, answer, index) for answer in ("<answer></answer>", "", "A#")] == [1.0, 0.0, 0.0]


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
            assert "too few different problems" in str(error)
    assert len(sides) == 1
