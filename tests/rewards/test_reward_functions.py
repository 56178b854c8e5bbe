"""Functions in TRL's convention: they are given the batch that TRL's trainer gives, and None is an abstention."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env.envs.asked_part import Failures
from rlhf_env.envs.file_task import File
from rlhf_env.envs.reward_functions import from_function
from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.tokenizers import AlphabetTokenizer
from rlhf_env.envs.toy_tasks import Count
from rlhf_env.errors import ConfigError, RewardError
from rlhf_env.learning.engine import Engine
from rlhf_env.learning.loop import describe, train
from rlhf_env.learning.sources import EnvSource
from rlhf_env.learning.spending import Budget, Spending
from rlhf_env.testing import check_reward, make_episode
from rlhf_env.types import Episode, Prompt, TrainerState

TASK = Count("a", 4)
BATCH = [
    make_episode("q1", "aa", meta={"answer": "x", "level": 1}),
    make_episode("q2", "b", meta={"answer": "y"}),
]


def answers(function: Any, batch: Sequence[Episode] = BATCH) -> list[float | None]:
    return [score.raw.get("f") for score in RewardMix({"f": from_function(function)}).score(batch)]


def in_groups(texts: Sequence[str], size: int) -> list[Episode]:
    """Answers, `size` to a prompt; answers to one prompt share it, as rows of the environment do."""
    made = [make_episode(f"q{row // size}", text, meta={"n": row // size}) for row, text in enumerate(texts)]
    return [Episode(**{**vars(it), "prompt": made[row - row % size].prompt}) for row, it in enumerate(made)]


# ---------------------------------------------------------------- what a function is given


def test_a_function_with_columns_works_unchanged() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: list[str], completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
        seen.update(kwargs, prompts=prompts, completions=completions, answer=answer)
        return [float(len(completion)) for completion in completions]

    assert answers(reward) == [2.0, 1.0]
    assert {seen.pop("log_extra").__name__, seen.pop("log_metric").__name__} == {"log_extra", "log_metric"}
    assert seen == {
        "prompts": ["q1", "q2"],
        "completions": ["aa", "b"],
        "completion_ids": [[97, 97, 258], [98, 258]],
        "answer": ["x", "y"],
        "level": [1, None],
        "trainer_state": TrainerState(),
    }


def test_equal_answers_stay_and_groups_are_side_by_side() -> None:
    """A rank within the group is another number when equal answers are removed."""
    seen: list[list[str]] = []

    def rank(prompts: list[str], completions: list[str]) -> list[float]:
        seen.append([f"{prompt}:{text}" for prompt, text in zip(prompts, completions, strict=True)])
        return [float(place % 4) for place in range(len(completions))]

    batch = in_groups(["a", "a", "a", "b", "c", "c", "a", "c"], 4)
    assert answers(rank, batch) == [0, 1, 2, 3, 0, 1, 2, 3]
    assert seen == [["q0:a", "q0:a", "q0:a", "q0:b", "q1:c", "q1:c", "q1:a", "q1:c"]]


def test_messages_where_the_prompt_was_messages(tmp_path: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    (tmp_path / "prompts.jsonl").write_text(
        '{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], "id": 7}\n'
    )
    prompt = File(str(tmp_path / "prompts.jsonl")).prompt(0, {})
    said = Episode(**{**vars(make_episode(prompt.text, "Hello")), "prompt": prompt})
    seen: dict[str, Any] = {}

    def reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        seen.update(prompts=prompts, completions=completions, id=columns["id"])
        prompts[0].pop(), completions.clear(), columns["id"].clear()  # its own copies, whatever it does to them
        return [1.0]

    mix = RewardMix({"f": from_function(reward)})
    mix.score([said])
    assert mix.score([said])[0].raw == {"f": 1.0}
    assert said.prompt.messages == tuple(messages) and seen["prompts"] == [messages[:1]]
    assert answers(lambda prompts, completions: [completions[0][0]["content"] == "Hello"], [said]) == [1.0]


def test_a_function_gets_only_what_it_takes_and_is_told_what_there_is_not() -> None:
    def reward(completions: list[str], level: list[int | None]) -> list[float]:
        return [float(one or 0) for one in level]

    assert answers(reward) == [1.0, 0.0]

    def solves(completions: list[str], solution: list[str]) -> list[float]:
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=r"reward 'f': the function solves takes 'solution', .*answer, level"):
        answers(solves)


@pytest.mark.parametrize("kind", ["function", "partial", "object", "method"])
@pytest.mark.parametrize("waits", [False, True])
def test_every_kind_of_callable_async_or_not(kind: str, waits: bool) -> None:
    class Length:
        def __call__(self, completions: list[str], scale: float = 2.0, **_: Any) -> Any:
            return [scale * len(text) for text in completions]

        def method(self, completions: list[str], **_: Any) -> Any:
            return self(completions)

    class Waits(Length):
        async def __call__(self, completions: list[str], scale: float = 2.0, **_: Any) -> Any:
            await asyncio.sleep(0)
            return [scale * len(text) for text in completions]

        async def method(self, completions: list[str], **_: Any) -> Any:
            return await self(completions)

    async def function(completions: list[str], scale: float = 2.0) -> Any:
        return await Waits()(completions, scale)

    it: Any = {
        "function": function if waits else lambda completions: [2.0 * len(text) for text in completions],
        "partial": functools.partial((Waits if waits else Length)().__call__, scale=2.0),
        "object": (Waits if waits else Length)(),
        "method": (Waits if waits else Length)().method,
    }[kind]
    for spec in (it, {"f": it}, {"f": (1.0, it)}):
        mix = load_rewards(spec, TASK)
        assert [score.total for score in mix.score(BATCH)] == [4.0, 2.0]
    assert asyncio.run(inside_a_loop(mix)) == [4.0, 2.0], "a notebook has a loop of its own"


async def inside_a_loop(mix: RewardMix) -> list[float]:
    return [score.total for score in mix.score(BATCH)]


def test_async_functions_wait_at_the_same_time_and_in_one_loop() -> None:
    together = asyncio.Barrier(2)  # each waits until the other is there: one after the other would never end

    async def one(completions: list[str]) -> list[float]:
        await asyncio.wait_for(together.wait(), 30)
        return [1.0] * len(completions)

    mix = load_rewards({"one": one, "other": functools.partial(one)}, TASK)
    assert [[score.total for score in mix.score(BATCH)] for _ in range(2)] == [[2.0, 2.0]] * 2


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), ValueError("no")])
def test_an_async_function_that_ends_badly_ends_no_loop(error: BaseException) -> None:
    async def bad(completions: list[str]) -> list[float]:
        raise error

    async def good(completions: list[str]) -> list[float]:
        return [1.0] * len(completions)

    with pytest.raises(RewardError, match="reward 'f' raised"):
        answers(bad)
    assert answers(good) == [1.0, 1.0]


def test_arguments_reach_the_function_on_every_call() -> None:
    def reward(prompts: list[str], completions: list[str], scale: float = 1.0) -> list[float]:
        return [scale] * len(prompts)

    mix = RewardMix({"f": from_function(reward, scale=3.0)})
    assert [score.total for score in mix.score(BATCH)] == [3.0, 3.0]
    with pytest.raises(ConfigError, match="reward 'reward': no setting 'scael': did you mean 'scale'"):
        from_function(reward, scael=3.0)


def test_columns_named_like_the_arguments_do_not_get_in_the_way() -> None:
    def reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [float(prompt == "q") for prompt in prompts]

    assert answers(reward, [make_episode("q", "a", meta={"prompts": "other"})]) == [1.0]


# ---------------------------------------------------------------- what it answers


@pytest.mark.parametrize(
    "answer",
    [
        (1.0, 2.0),
        [torch.tensor(1.0, requires_grad=True), torch.tensor([2.0])],
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True),
        np.array([1, 2], dtype=np.int8),
        iter([True, 2]),
    ],
    ids=["a tuple", "tensors in a list", "bfloat16 with a gradient", "int8", "an iterator"],
)
def test_numbers_of_any_library(answer: Any) -> None:
    assert answers(lambda completions: answer) == [1.0, 2.0]


@pytest.mark.parametrize("answer", [1.0, None, [1.0], "12", ["1", "2"], [float("nan"), 1.0], [[1.0, 2.0], [2.0]]])
def test_a_function_that_answers_wrongly_is_named(answer: Any) -> None:
    def lengthy(prompts: list[str], completions: list[str]) -> Any:
        return answer

    with pytest.raises(RewardError, match="reward 'lengthy'"):
        load_rewards(lengthy, TASK).score(BATCH)


def test_none_is_an_abstention() -> None:
    """It is no part of that text; where no part but the KL penalty speaks, there is no score, as TRL's all-NaN rule."""

    class Reference:
        def response_logprobs(self, episodes: Any) -> Any:
            return [np.full(len(it.response_ids), -3.0) for it in episodes]

    said = {"odd": [None, None, -4.0, None], "even": [-1.0, None, -2.0, None]}
    for parts in (["odd", "even", "kl"], ["odd", "even"]):
        spec: dict[str, Any] = {
            name: (2.0, lambda completions, name=name: said[name]) for name in parts if name != "kl"
        }
        mix = load_rewards(spec | ({"kl": 0.1} if "kl" in parts else {}), TASK, {"reference": Reference()})
        scores = mix.score([make_episode("q", text) for text in ("a", "b", "c", "d")])
        assert [{**score.raw, "kl": 0} | {} for score in scores if score.raw] == [
            {"even": -1.0, "kl": 0},
            {"odd": -4.0, "even": -2.0, "kl": 0},
        ]
        assert [score.abstained for score in scores] == [("odd",), ("odd", "even"), (), ("odd", "even")]
        assert [bool(score.raw) for score in scores] == [True, False, True, False]
        assert not any(score.failed for score in scores)


@pytest.mark.parametrize("answer", [[None, 2.0], np.array([None, 2.0], dtype=object), (None, 2.0)], ids=repr)
def test_a_reward_may_abstain_as_a_function_may(answer: Any) -> None:
    class Odd:
        def __call__(self, episodes: Sequence[Episode], /) -> Any:
            return answer

    class Scores(Count):
        def score(self, episode: Episode, /) -> Any:
            return answer[0 if episode.response == "aa" else 1]

    for mix in (RewardMix({"odd": Odd()}), load_rewards(None, Scores("a", 4))):
        assert [list(score.raw.values()) for score in mix.score(BATCH)] == [[], [2.0]]


def test_a_function_can_be_checked() -> None:
    def length(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float | None]:
        return [float(len(completion)) or None for completion in completions]

    check_reward(length, low=0)
    check_reward(lambda completions: [float(place) for place in range(len(completions))])  # it may look at neighbours


def test_a_function_that_fails_on_one_text_is_asked_again_without_it() -> None:
    """Of the others it says what it says of a batch, and not what it says of each text alone."""

    def share(completions: list[str]) -> list[float]:
        if "bad" in completions:
            raise ValueError("bad")
        return [1 / len(completions)] * len(completions)

    failures = {"f": Failures(on_error="skip", max_bad_fraction=0.5)}
    scores = RewardMix({"f": from_function(share)}, failures=failures).score(in_groups(["a", "bad", "b", "c"], 2))
    assert [score.raw.get("f") for score in scores] == [1 / 3, None, 1 / 3, 1 / 3]


# ---------------------------------------------------------------- in training


class Writer:
    """Row r writes `lengths[r]` letters."""

    def __init__(self, lengths: Sequence[int], group_size: int = 2) -> None:
        self.lengths, self.group_size = lengths, group_size

    def begin(self) -> dict[str, Any]:
        return {"group_size": self.group_size}

    def act(self, observation: Any, /) -> Any:
        from rlhf_env.learning.agent import Decision

        written = observation["attention_mask"].sum(axis=1) - 2  # of "a:"
        width = self.width
        tokens = np.full((len(self.lengths), width), 4, dtype=np.int64)
        for row, length in enumerate(self.lengths):
            left = np.where(np.arange(written[row], written[row] + width) < length, 0, 2)
            tokens[row] = left
        return Decision(tokens if width > 1 else tokens[:, 0], np.full((len(self.lengths), width), -0.5), {})

    width = 1


def environment(reward: Any, *, action_length: int, rows: int = 4) -> TextVectorEnv:
    return TextVectorEnv(
        rows,
        task=Count("a", 4),
        reward=reward,
        tokenizer=AlphabetTokenizer("a:"),
        max_new_tokens=5,
        action_length=action_length,
        autoreset_mode="Disabled",
    )


@pytest.mark.parametrize("action_length", [1, 2, 5])
def test_in_every_view_it_is_given_the_whole_batch_in_the_order_of_the_rows(action_length: int) -> None:
    seen: list[list[str]] = []

    def place(completions: list[str]) -> list[float]:
        seen.append(completions)
        return [float(row) for row in range(len(completions))]

    async def waits(completions: list[str]) -> list[float]:
        return place(completions)

    for function in (place, waits):
        seen.clear()
        writer = Writer([3, 1, 1, 2])
        writer.width = action_length
        source = EnvSource(
            environment({"f": function, "repetition": 1.0}, action_length=action_length), seed=0, spending=Spending()
        )
        rollout = source.next(writer)  # type: ignore[arg-type]
        assert seen == [["aaa", "a", "a", "aa"]]
        assert rollout.part("f").tolist() == [0, 1, 2, 3]


def test_rows_without_a_score_leave_the_update_and_are_counted() -> None:
    def speaks(completions: list[str]) -> list[float | None]:
        return [None if text == "aa" else -float(len(text)) for text in completions]

    def short(completions: list[str]) -> list[float | None]:
        return [None if len(text) < 3 else 1.0 for text in completions]

    writer = Writer([3, 1, 2, 2])
    writer.width = 5
    source = EnvSource(environment({"speaks": speaks, "short": short}, action_length=5), seed=0, spending=Spending())
    rollout = source.next(writer)  # type: ignore[arg-type]
    assert [episode.response for episode in rollout.episodes] == ["aaa", "a"]
    assert rollout.returns().tolist() == [-2.0, -1.0]
    assert {name: rollout.measured[name] for name in ("abstained/speaks", "abstained/short", "unscored")} == {
        "abstained/speaks": 2.0,
        "abstained/short": 3.0,
        "unscored": 2.0,
    }
    row = describe(rollout)
    assert (row["rollout/part/speaks"], row["rollout/part/short"], row["rollout/reward"]) == (-2.0, 1.0, -1.5)
    silent = EnvSource(environment(lambda completions: [None] * 4, action_length=5), seed=0, spending=Spending())
    nothing = silent.next(writer)  # type: ignore[arg-type]
    assert len(nothing) == 0 and describe(nothing)["rollout/unscored"] == 4.0


def test_it_follows_training_and_logs_numbers_of_its_own() -> None:
    steps: list[tuple[int, int]] = []

    def reward(completions: list[str], trainer_state: Any, log_metric: Any, log_extra: Any) -> list[float]:
        steps.append((trainer_state.global_step, trainer_state.max_steps))
        log_metric("mine", len(completions)), log_metric("mine", 0.0)
        log_extra("read", completions)
        return [0.0] * len(completions)

    lifted = from_function(reward)
    spending = Spending()
    source = EnvSource(environment({"f": lifted}, action_length=5), seed=0, spending=spending)
    writer = Writer([3, 1, 2, 2])
    writer.width = 5
    for budget in (Budget(updates=9), Budget(episodes=30), Budget(generated_tokens=60)):
        source.follow(budget)
        rollout = source.next(writer)  # type: ignore[arg-type]
        spending.add(updates=1)
    assert steps == [(0, 9), (1, 8), (2, 5)]
    assert describe(rollout)["rollout/logged/mine"] == 2.0 and lifted.extra == {"read": ["aaa", "a", "aa", "aa"]}
    lifted.take_logged()
    assert source.env.reward.take_logged() == {}


def logs(completions: list[str], trainer_state: Any, log_metric: Any) -> list[float | None]:
    log_metric("step", trainer_state.global_step)
    return [None, *([float(len(completions))] * (len(completions) - 1))]


def test_in_a_process_of_its_own_it_is_given_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_env.envs.isolation import Limits, isolated

    mix = RewardMix({"f": isolated(functools.partial(from_function, logs), Limits(timeout=60.0))})
    assert mix.scores_batches
    mix.follow(TrainerState(global_step=7))
    scores = mix.score(in_groups(["a", "a", "a"], 3))
    assert [score.raw for score in scores] == [{}, {"f": 3.0}, {"f": 3.0}]
    assert mix.take_logged() == {"step": 7.0}


def test_prompts_stay_as_they_are() -> None:
    prompt = Prompt("p", "q", {"answer": ["x"], "deep": {"a": [1]}})

    class Writes:
        def __call__(self, episodes: Sequence[Episode], /) -> Any:
            episodes[0].prompt.meta["answer"].append("y")  # type: ignore[index]
            episodes[0].prompt.meta["deep"].clear()
            episodes.clear()  # type: ignore[attr-defined]
            return [1.0]

    batch = [Episode(**{**vars(make_episode("q", "a")), "prompt": prompt})]
    RewardMix({"writes": Writes()}).score(batch)
    assert prompt.meta == {"answer": ["x"], "deep": {"a": [1]}} and len(batch) == 1


def test_a_rollout_about_which_nobody_says_anything_teaches_nothing_and_ends_nothing() -> None:
    """Its row of metrics counts it; the agent is not asked to learn from nothing."""
    learned: list[int] = []

    class Learns(Writer):
        width = 5

        def update(self, rollout: Any, /) -> dict[str, float]:
            learned.append(len(rollout))
            return {"loss": 0.0}

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Any, /) -> None: ...

    def moody(completions: list[str], trainer_state: Any) -> list[float | None]:
        silent = trainer_state.global_step == 1
        return [None if silent else float(len(text)) for text in completions]

    spending = Spending()
    source = EnvSource(environment({"moody": moody}, action_length=5), seed=0, spending=spending)
    engine = Engine()
    training = train(Learns([3, 1, 2, 2]), source, Budget(updates=3), spending=spending, engine=engine)  # type: ignore[arg-type]
    assert learned == [4, 4] and spending.episodes == 12
    assert [row.get("rollout/unscored") for row in training.rows] == [None, 4.0, None]
    assert [row.get("rollout/reward") for row in training.rows] == [2.0, None, 2.0]
