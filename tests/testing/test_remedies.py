"""What a check says to do about a broken plugin: each cause that authors met is named, with its remedy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env.envs.toy_tasks import Guess
from rlhf_env.errors import ContractError
from rlhf_env.learning.agent import Decision, Metrics, Setup
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.rollout import Rollout
from rlhf_env.settings import settings
from rlhf_env.testing import check_agent, check_reward, check_task, tasks
from rlhf_env.testing.forgotten import differing_attributes
from rlhf_env.testing.remedies import OF_AGENTS, OF_REWARDS, OF_TASKS
from rlhf_env.types import Episode, Observation, Prompt, ResetOptions


def said(check: Any, plugin: Any) -> str:
    with pytest.raises(ContractError) as caught:
        check(plugin)
    assert str(caught.value).endswith(f". To mend it: {caught.value.remedy}") and caught.value.remedy
    return str(caught.value)


# ---------------------------------------------------------------- agents


class Nudges:
    """Raises the likelihood of what earned more than nothing, with an optimizer of torch's own."""

    trains = True

    @settings
    class Config:
        optimization: Optimization = Optimization()

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.policy = setup.policy
        self.adam = torch.optim.Adam(self.policy.parameters(), lr=0.02)
        self.draws = setup.stream("noise")
        self.seen = {"texts": 0}

    def begin(self) -> dict[str, Any]:
        return {}

    def act(self, observation: Observation, /) -> Decision:
        return Decision.of(self.policy.write(observation, self.setup.action_length))

    def read(self, rollout: Rollout) -> torch.Tensor:
        self.policy.eval()
        return self.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs

    def update(self, rollout: Rollout, /) -> Metrics:
        returns = rollout.returns()
        weights = (returns - returns.mean()) * (1 + 0.01 * self.draws.random() / (1 + self.seen["texts"]))
        loss = -(weights[:, None] * self.read(rollout)).sum() / len(rollout)
        self.seen["texts"] += len(rollout)
        self.adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.adam.step()
        return {"loss": float(loss.detach())}

    def state_dict(self) -> dict[str, Any]:
        return {
            "policy": self.policy.state_dict(),
            "sampling": self.policy.sampling_state(),
            "adam": copy.deepcopy(self.adam.state_dict()),
            "draws": dict(self.draws.bit_generator.state),
            "seen": dict(self.seen),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.policy.load_state_dict(state["policy"])
        self.policy.load_sampling_state(state["sampling"])
        self.adam.load_state_dict(copy.deepcopy(state["adam"]))
        self.draws.bit_generator.state = dict(state["draws"])
        self.seen = dict(state["seen"])


class WithDropout(Nudges):
    def read(self, rollout: Rollout) -> torch.Tensor:
        self.policy.train()
        return self.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs


class NewLayer(Nudges):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.head = torch.nn.Linear(2, 1)


class NumpyNoise(Nudges):
    def update(self, rollout: Rollout, /) -> Metrics:
        np.random.rand()  # noqa: NPY002
        return super().update(rollout)


def forgets(*keys: str) -> type[Nudges]:
    class Forgets(Nudges):
        def load_state_dict(self, state: Mapping[str, Any], /) -> None:
            super().load_state_dict({**self.state_dict(), **{k: v for k, v in state.items() if k not in keys}})

    return Forgets


class GoesOnInWhatItLoads(Nudges):
    """As torch's own optimizers do: `step` is the tensor that was handed over."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        super().load_state_dict(state)
        self.adam.load_state_dict(state["adam"])


@pytest.mark.parametrize(
    ("broken", "rule", "says"),
    [
        (WithDropout, "global random state", "dropout draws from torch's generator .* call `policy.eval()` before"),
        (NewLayer, "global random state", "a new layer draws .* `with setup.engine.seeded(setup.seed):`"),
        (NumpyNoise, "global random state", "draw from `setup.stream('what for')` instead of numpy.random"),
        (
            forgets("adam"),
            "state",
            "after load_state_dict(), self.adam (a torch optimizer, Adam) still differs: put "
            "copy.deepcopy(self.adam.state_dict()) into state_dict()",
        ),
        (forgets("draws"), "state", "self.draws (a random generator) still differs: put dict(self.draws.bit_generator"),
        (forgets("sampling"), "state", "self.policy (where its sampling is) still differs: put self.policy.sampling_"),
        (forgets("seen"), "state", "self.seen (dict) still differs: put self.seen into state_dict()"),
        (forgets("adam", "seen"), "state", "self.adam (a torch optimizer, Adam), self.seen (dict) still differ: put"),
        (GoesOnInWhatItLoads, "arguments", "a torch optimizer too goes on in the tensors that it loads"),
    ],
)
def test_an_agents_author_reads_the_cause(broken: Any, rule: str, says: str) -> None:
    told = said(check_agent, lambda setup: broken(setup))
    pattern = says.split(" .* ")
    assert told.startswith(f"[{rule}] ") and all(part in told for part in pattern), told
    assert len(told) < 900, "no arrays of numbers"


def test_nothing_is_forgotten_of_equal_agents_and_strange_objects_are_passed_over() -> None:
    class Strange:
        def state_dict(self) -> object:
            raise OSError("not now")

    class Holder:
        def __init__(self, count: int) -> None:
            self.strange, self.inside = Strange(), type("Inside", (), {})()
            self.inside.counts = np.array([count])
            self.inside.back = self  # a circle
            self.names = {"b", "a"}

    assert differing_attributes(Holder(1), Holder(1)) == []
    (found,) = {it.kept_by for it in differing_attributes(Holder(1), Holder(2)) if it.place == "self.inside.counts"}
    assert found == "self.inside.counts"


# ---------------------------------------------------------------- tasks


class Chats:
    size = 2
    turns = 3

    def prompt(self, index: int, options: ResetOptions, /) -> Prompt:
        return Prompt(id=f"chats/{index}", text=f"say {index}")

    def reply(self, episode: Episode, /) -> Any:
        return None if len(episode.turns) >= self.turns else "more"


class WantsOneWord(Chats):
    """Ends with the right word, and with no other."""

    def reply(self, episode: Episode, /) -> Any:
        return None if episode.response.endswith("stop") else "no"


class Loops(Chats):
    def reply(self, episode: Episode, /) -> Any:
        try:
            while True:
                pass
        except Exception:
            return None


class LoopsInItsScore(Chats):
    def score(self, episode: Episode, /) -> float:
        while True:
            pass


class InMessages(Chats):
    def reply(self, episode: Episode, /) -> Any:
        return None if len(episode.turns) >= self.turns else [{"role": "user", "content": "more"}]


class TorchDice(Chats):
    def prompt(self, index: int, options: ResetOptions, /) -> Prompt:
        torch.rand(1)
        return super().prompt(index, options)


def test_replies_that_never_end_are_a_broken_rule() -> None:
    check_task(Chats())
    check_task(InMessages())
    check_task(Guess(turns=2))
    told = said(check_task, WantsOneWord())
    assert told.startswith("[reply] the task still replies after 100 turns of '' to prompt 'chats/0', with 'no'")
    assert "return None where the conversation ends, whatever the agent says" in told


class ReadsItsTurns(Guess):
    def reply(self, episode: Episode, /) -> Any:
        return None if episode.turns[-1] == "a" or len(episode.turns) > 1 else "no"

    def score(self, episode: Episode, /) -> Any:
        return float(episode.turns[0] == "a") if episode.turns[-1] else None  # None: nothing to say about silence


class NoOptions(Guess):
    def prompt(self, index: int) -> Prompt:  # type: ignore[override]
        return Prompt(id=f"{index}", text="x")


class OfTexts(Guess):
    def score(self, prompt: str, response: str) -> float:  # type: ignore[override]
        return 1.0


class AnswersNumbers(Guess):
    def reply(self, episode: Episode, /) -> Any:
        return 5


class NoSize:
    def prompt(self, index: int, options: ResetOptions, /) -> Prompt:
        return Prompt(id=f"{index}", text="x")


def test_in_a_conversation_something_has_been_said_and_none_is_a_score() -> None:
    check_task(ReadsItsTurns())


@pytest.mark.parametrize(
    ("task", "rule", "remedy"),
    [
        (NoOptions(), "prompt", "write it as `prompt(self, index, options)`"),
        (NoSize(), "size", "`size` is how many prompts there are"),
        (OfTexts(), "score", "write it as `score(self, episode)`"),
        (AnswersNumbers(), "reply", "return a string, which the environment writes next"),
    ],
    ids=["prompt", "size", "score", "reply"],
)
def test_a_method_of_another_form_is_told_its_form(task: Any, rule: str, remedy: str) -> None:
    told = said(check_task, task)
    assert told.startswith(f"[{rule}]") and f"To mend it: {remedy}" in told


@pytest.mark.parametrize(("task", "rule"), [(Loops(), "reply"), (LoopsInItsScore(), "score")])
def test_an_answer_that_never_comes_is_given_up(task: Any, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_PATIENCE", 0.05)
    told = said(check_task, task)
    assert (
        told.startswith(f"[{rule}] {rule}(), asked about '', still computes after 0.05 s") and "without an end" in told
    )


def test_a_tasks_random_numbers_come_from_the_index() -> None:
    assert "hand `torch.rand` and the like a `generator=`" in said(check_task, TorchDice())


# ---------------------------------------------------------------- all of them


def test_a_rewards_author_reads_what_to_do() -> None:
    def whitened(episodes: Any) -> Any:
        lengths = np.array([float(len(it.response)) for it in episodes])
        return lengths - lengths.mean()

    class Whitens:
        def __call__(self, episodes: Any, /) -> Any:
            return whitened(episodes)

    class Shares:
        def __call__(self, episodes: Any, /) -> Any:
            return [len(it.response.split()) / len(it.response) for it in episodes]

    class MissesOne:
        def __call__(self, episodes: Any, /) -> Any:
            return [1.0 / (it.response != "GREAT great Great! great") for it in episodes]

    assert said(check_reward, MissesOne()).count("response '") == 1, "the text that is to blame, and no other"
    assert "score each text by itself" in said(check_reward, Whitens())
    assert "the empty one" in said(check_reward, Shares())


@pytest.mark.parametrize(
    ("check", "remedies"), [(check_agent, OF_AGENTS), (check_reward, OF_REWARDS), (check_task, OF_TASKS)]
)
def test_remedies_are_for_rules_that_there_are(check: Any, remedies: Mapping[str, str]) -> None:
    stated = (check.__doc__ or "").split("The rules")[1]
    assert set(remedies) <= set(stated.split('"')[1::2])
