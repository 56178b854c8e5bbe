"""`check_reward` itself: sound rewards pass, and each broken one is caught under the name of the rule it breaks."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_env import plugins
from rlhf_env.envs.tokenizers import AlphabetTokenizer
from rlhf_env.errors import ContractError, RlhfEnvError
from rlhf_env.plugins import PluginHost
from rlhf_env.testing import check_reward, make_episode
from rlhf_env.testing.rewards import check_reward_table
from rlhf_env.types import Episode, Tokenizer


def lengths(episodes: Sequence[Episode]) -> Any:
    return np.array([float(len(episode.response)) for episode in episodes])


class Sound:
    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        return lengths(episodes)


class SoundPerToken:
    def token_rewards(self, episodes: Sequence[Episode], /) -> Any:
        return [np.cumsum(episode.response_ids) / 7 for episode in episodes]


class NoReward:
    def score(self, episode: Episode) -> float:
        return 1.0


class ReadsAColumn:
    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        return [float(episode.response == episode.prompt.meta["answer"]) for episode in episodes]


class ReadsTokens:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def token_rewards(self, episodes: Sequence[Episode], /) -> Any:
        return [np.array([len(self.tokenizer.decode([i])) for i in e.response_ids.tolist()], float) for e in episodes]


def right(completions: list[str], answer: list[str], **columns: object) -> list[float]:
    return [float(text == wanted) for text, wanted in zip(completions, answer, strict=True)]


class SoundInGroups:
    def group_rewards(self, group: Sequence[Episode], /) -> Any:
        return lengths(group) == lengths(group).max()


class OneTooFew(Sound):
    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        return lengths(episodes)[:-1]


class Words(Sound):
    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        return ["good"] * len(episodes)


class NotOnEmpty(Sound):
    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        return [sum(map(str.isupper, e.response)) / len(e.response) for e in episodes]


class NanOnEmpty(Sound):
    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        with np.errstate(invalid="ignore"):
            return lengths(episodes) / lengths(episodes)


@dataclass
class OffByOne(Sound):
    """The classic: a share that counts the end token, and so is above 1 for some text."""

    low, high = 0.0, 1.0

    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        return [len(e.response_ids) / max(len(e.response.encode()), 1) for e in episodes]


class Negative(Sound):
    low = 0.0

    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        return -lengths(episodes)


class Counts(Sound):
    calls = 0

    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        self.calls += 1
        return lengths(episodes) + 1e-15 * self.calls * (lengths(episodes) == 0)


class Truncates(Sound):
    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        scores = lengths(episodes)
        for episode in episodes:
            ids = episode.response_ids.view()
            ids.flags.writeable = True  # an episode's arrays are read-only, and who insists gets past that
            ids[-1:] = 0
        return scores


class Annotates(Sound):
    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        for episode in episodes:
            episode.prompt.meta["seen"] = True  # type: ignore[index]
        return lengths(episodes)


class Sorts(Sound):
    def __call__(self, episodes: Any, /) -> Any:
        scores = lengths(episodes)
        episodes.sort(key=lambda e: e.response)
        return scores


class Pops(Sound):
    def __call__(self, episodes: Any, /) -> Any:
        scores = lengths(episodes)
        episodes.pop()
        return scores


class NumpyDice(Sound):
    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        return 0.0 * np.random.rand(len(episodes))  # noqa: NPY002


class PythonDice(Sound):
    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        random.seed(0)
        return lengths(episodes)


class TorchDice(Sound):
    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        import torch

        return 0.0 * torch.rand(len(episodes)).numpy()


class Whitens(Sound):
    """Batch normalisation: what a text is worth depends on its neighbours."""

    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        return lengths(episodes) - lengths(episodes).mean()


class WhitensTokens:
    def token_rewards(self, episodes: Sequence[Episode], /) -> Any:
        mean = np.concatenate([e.response_ids for e in episodes]).mean()
        return [e.response_ids - mean for e in episodes]


class FirstWins:
    def group_rewards(self, group: Sequence[Episode], /) -> Any:
        return np.arange(len(group)) == 0


class MissesTheEnd:
    def token_rewards(self, episodes: Sequence[Episode], /) -> Any:
        return [np.zeros(max(1, len(e.response))) for e in episodes]


class LearnsWhileScoring(Sound):
    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        self.seen += len(episodes)
        return lengths(episodes)

    def observe(self, episodes: Sequence[Episode], /) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Any, /) -> None:
        self.seen = state["seen"]


class Forgets(LearnsWhileScoring):
    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        return lengths(episodes)

    def load_state_dict(self, state: Any, /) -> None:
        self.seen = -1


@pytest.mark.parametrize("reward", [Sound(), SoundPerToken(), SoundInGroups()], ids=lambda r: type(r).__name__)
def test_sound_rewards_pass(reward: Any) -> None:
    check_reward(reward)
    check_reward(reward, seed=7, longest=100, meta={"answer": "x"})
    check_reward(reward, tokenizer=AlphabetTokenizer("abc"))


@pytest.mark.parametrize(
    ("reward", "rule", "says"),
    [
        (OneTooFew(), "count", r"one float per episode, shape \((\d+),\), got float64 of shape"),
        (Words(), "count", "one float per episode"),
        (
            NotOnEmpty(),
            "raised",
            r"division by zero \(test_check_reward\.py, line \d+\), for prompt 'How are you",
        ),
        (NanOnEmpty(), "finite", r"expected finite numbers, got nan, for .* response '' \(0 characters, stop\)"),
        (OffByOne(), "range", r"at most 1\.0, got 1\.\d+, for prompt"),
        (Negative(), "range", r"at least 0\.0, got -\d+"),
        (Counts(), "deterministic", "the same score when asked twice"),
        (Truncates(), "pure", "a changed one"),
        (Annotates(), "pure", "a changed one"),
        (Sorts(), "pure", "a changed one"),
        (Pops(), "pure", "changed the list it was handed"),
        (NumpyDice(), "global random state", r"the global generator of numpy\.random"),
        (PythonDice(), "global random state", "the global generator of random"),
        (TorchDice(), "global random state", "the global generator of torch"),
        (Whitens(), "batch mates", "its score in a batch of"),
        (WhitensTokens(), "batch mates", "alone"),
        (FirstWins(), "batch mates", "in another order"),
        (MissesTheEnd(), "count", "one float per response token.*To mend it: .*as long as its `response_ids`"),
        (NoReward(), "raised", "To mend it: a reward has `__call__"),
        (LearnsWhileScoring(), "memory", r"scoring changed the state .* learn in observe\(\) only"),
        (Forgets(), "memory", "loads as"),
        (Sound, "raised", r"Sound is a class: check an instance"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__) if not isinstance(value, str) else "",
)
def test_a_broken_reward_is_caught_under_the_rule_it_breaks(reward: Any, rule: str, says: str) -> None:
    if isinstance(reward, TorchDice):
        pytest.importorskip("torch")
    with pytest.raises(ContractError, match=says) as caught:
        check_reward(reward)
    assert caught.value.rule == rule
    assert isinstance(caught.value, AssertionError) and isinstance(caught.value, RlhfEnvError)


@pytest.fixture
def host_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    made = PluginHost([])
    monkeypatch.setattr(plugins, "host", lambda: made)


@pytest.mark.usefixtures("host_of_nobody")
@pytest.mark.parametrize("reward", [ReadsAColumn, right])
def test_a_reward_that_reads_a_column_is_checked_with_its_value(reward: Any) -> None:
    plugins.register_reward("mine", reward)
    check_reward_table("mine", {}, {"answer": "a"})
    with pytest.raises(RlhfEnvError, match=r"'answer'.*say what stands there: --column NAME=TEXT"):
        check_reward_table("mine", {}, {"level": 3})


@pytest.mark.usefixtures("host_of_nobody")
def test_a_reward_that_reads_tokens_is_lent_the_tokenizer() -> None:
    plugins.register_reward("mine", ReadsTokens)
    check_reward_table("mine", {})


KEEPS = """\
import collections

CALLS, SEEN, LIMIT, FOUND = 0, [], 3, collections.Counter()


def counts(completions, **columns):
    global CALLS
    CALLS += len(completions)
    return [float(CALLS > 100_000) for _ in completions]


def seen(completions, **columns):
    SEEN.append(completions[0])
    FOUND[completions[0]] += 1
    return [1.0 for _ in completions]


def clean(completions, **columns):
    return [float(len(text) > LIMIT) for text in completions]


class Object:
    def __init__(self):
        self.asked = 0

    def __call__(self, episodes):
        self.asked += 1
        return [1.0 for _ in episodes]
"""


@pytest.mark.parametrize(
    ("name", "kept"),
    [("counts", ["CALLS"]), ("seen", ["SEEN", "FOUND"]), ("clean", []), ("Object", ["Object.asked"])],
)
def test_what_a_reward_keeps_between_calls_is_told(tmp_path: Path, name: str, kept: list[str]) -> None:
    (tmp_path / f"keeps_{name}.py").write_text(KEEPS)
    notes = check_reward_table(name, {"function": f"{tmp_path}/keeps_{name}.py:{name}"})
    assert [note.split(" changed while it was asked, and no checkpoint holds it")[0] for note in notes] == kept


def test_a_range_can_be_stated_from_outside() -> None:
    check_reward(Sound(), low=0.0)
    with pytest.raises(ContractError, match=r"at most 100, got \d+\.0, for .*\.\.\. \(10000 characters"):
        check_reward(Sound(), high=100)


def test_the_checks_leave_the_global_generators_as_they_found_them() -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    for reward in (Sound(), NumpyDice(), PythonDice()):
        try:
            check_reward(reward)
        except ContractError as broken:
            assert broken.rule == "global random state"
    after = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    assert repr(after) == repr(before)


def test_make_episode_by_hand() -> None:
    episode = make_episode("hé", "ab", logprobs=[-1, -2, -3], meta={"answer": 4})
    assert episode.prompt.text == "hé" and episode.prompt.meta == {"answer": 4}
    assert episode.prompt_ids.tolist() == [104, 0xC3, 0xA9]
    assert (episode.response, episode.response_ids.tolist()) == ("ab", [97, 98, 258])
    assert episode.actions.tolist() == [True] * 3 and episode.logprobs is not None
    assert episode.logprobs.tolist() == [-1.0, -2.0, -3.0]
    cut = make_episode("p", "ab", AlphabetTokenizer("pab"), finish_reason="length", logprobs=None)
    assert cut.response_ids.tolist() == [1, 2] and cut.logprobs is None
    assert make_episode("p", "ab") == make_episode("p", "ab") != make_episode("p", "ba")


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, rlhf_env.testing; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_reward_that_would_end_the_program_has_not_passed() -> None:
    class Leaves:
        def __call__(self, episodes: Sequence[Episode], /) -> Any:
            raise SystemExit(0)

    with pytest.raises(ContractError, match="got SystemExit: 0"):
        check_reward(Leaves())
