"""Learning from stored preferences: what becomes of a stored answer, and the way there from an experiment file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_agents.dpo import DPO

from rlhf_env.envs.tokenizers import load_tokenizer
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.interchange import write_jsonl
from rlhf_env.feedback.judgements import Author, Preference, Response
from rlhf_env.feedback.offline import load_preferences, pair_episode, pair_source
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.lab.evaluation.runs import run
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.functional import logprobs_under
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.workplace import build
from rlhf_env.types import Episode, Float, Prompt, TokenScorer

TOKENIZER = load_tokenizer("alphabet:ab:")  # a 0, b 1, : 2, end 3, pad 4
PROMPT, HUMAN = Prompt("count/a", "a:"), Author("human", "eva")


def preference(chosen: str, rejected: str, weight: float = 1.0) -> Preference:
    return Preference(PROMPT, Response(chosen, HUMAN), Response(rejected, HUMAN), "eva", weight=weight)


PAIRS = [preference("aaaa", "bb"), preference("aaa", "ab", 0.5), preference("aa", ":"), preference("a", "b", 0.25)]


def stored(folder: Path, suffix: str) -> Path:
    file = folder / f"pairs{suffix}"
    if suffix == ".jsonl":
        write_jsonl(file, PAIRS)
    else:
        with PreferenceStore(file) as store:
            store.add(PAIRS)
    return file


def ids_of(response: Response) -> tuple[list[int], list[int]]:
    episode = pair_episode(PROMPT, response, TOKENIZER)
    assert episode.actions.all()
    return episode.prompt_ids.tolist(), episode.response_ids.tolist()


def test_text_that_nobody_sampled_is_encoded_and_closed() -> None:
    assert ids_of(Response("ab", HUMAN)) == ([0, 2], [0, 1, 3])


def test_a_policy_s_ids_are_kept_where_they_say_the_same_here() -> None:
    policy = Author("policy", "base", 1.0)
    # The prompt as that policy read it, one symbol longer than its text; an answer cut short has no end token.
    assert ids_of(Response("ab", policy, (0, 1), (2, 0, 2), "length")) == ([2, 0, 2], [0, 1])
    assert ids_of(Response("ab", policy, (0, 1, 3), (0, 2), "stop")) == ([0, 2], [0, 1, 3])
    # Of another vocabulary: encoded anew, and cut is still cut.
    assert ids_of(Response("ab", policy, (1, 0), (0, 2), "length")) == ([0, 2], [0, 1])
    assert ids_of(Response("ab", policy, (70, 71, 99), (70,), "stop")) == ([0, 2], [0, 1, 3])


@pytest.mark.parametrize("suffix", [".sqlite", ".jsonl"])
def test_a_source_of_pairs(tmp_path: Path, suffix: str) -> None:
    """Every pair once an epoch, chosen before rejected, each with its weight; the place is all there is to resume."""
    preferences = load_preferences(stored(tmp_path, suffix))
    source = pair_source(preferences, TOKENIZER, pairs=2, seed=0)
    rollouts = [source.next(None) for _ in range(2)]  # type: ignore[arg-type]
    assert all(rollout.judged and rollout.group.tolist() == [0, 0, 1, 1] for rollout in rollouts)
    seen = {}
    for rollout in rollouts:
        for chosen, rejected in zip(range(0, 4, 2), range(1, 4, 2), strict=True):
            text = rollout.episodes[chosen].response, rollout.episodes[rejected].response
            assert rollout.returns()[rejected] == 0.0
            seen[text] = float(rollout.returns()[chosen])
    assert seen == {("aaaa", "bb"): 1.0, ("aaa", "ab"): 0.5, ("aa", ":"): 1.0, ("a", "b"): 0.25}
    again = pair_source(preferences, TOKENIZER, pairs=2, seed=0)
    again.load_state_dict({"place": 2})
    assert again.next(None).episodes == rollouts[1].episodes  # type: ignore[arg-type]


class Counted:
    """A scorer that takes down how many episodes it is asked about."""

    def __init__(self, scorer: TokenScorer) -> None:
        self.scorer, self.asked = scorer, list[int]()

    def response_logprobs(self, episodes: Sequence[Episode], /) -> list[Float]:
        self.asked.append(len(episodes))
        return self.scorer.response_logprobs(episodes)


def test_the_reference_reads_every_pair_once() -> None:
    """Three epochs of learning cost one reading, and what went along is what would have been read."""
    setup = build(experiment()).setup
    reference = Counted(setup.reference)
    source = pair_source(PAIRS, setup.tokenizer, pairs=3, seed=0, reference=reference)
    agent = DPO(replace(setup, reference=reference), DPO.Config())  # type: ignore[arg-type]
    for _ in range(4):
        rollout = source.next(agent)
        expected = logprobs_under(setup.reference, rollout)
        torch.testing.assert_close(rollout.extras["reference"], expected, rtol=0, atol=1e-10)
        agent.update(rollout)
    assert reference.asked == [8]


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file of preferences"):
        load_preferences(tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()
    with PreferenceStore(tmp_path / "empty.sqlite"):
        pass
    with pytest.raises(DataError, match="no decided pair"):
        load_preferences(tmp_path / "empty.sqlite")


def experiment(**settings: Any) -> Experiment:
    return Experiment.from_table(
        {
            "task": {"name": "count", "target": 4},
            "policy": {"model": "tiny", "tokenizer": "alphabet:ab:", "dtype": "float64"},
            "environment": {"num_envs": 8, "max_new_tokens": 4, "max_prompt_tokens": 4},
            "rewards": {"task": 1.0, "kl": 0.05},
            "evaluation": {"prompts": 32},
            **settings,
        }
    )


@pytest.mark.parametrize("agent", ["dpo", "kto"])
def test_an_experiment_on_stored_preferences(tmp_path: Path, agent: str) -> None:
    """Twenty updates on pairs that like "a": the environment's own reward, which was never used, rises."""
    wanted = experiment(
        agent={"name": agent, "lr": 3e-3}, budget={"updates": 20}, preferences=str(stored(tmp_path, ".sqlite"))
    )
    trained = run(wanted, tmp_path / "run")
    before, *_ = trained.metrics
    assert trained.reason == "budget"
    assert trained.evaluation.metrics["proxy"] > before["eval/proxy"] + 0.2
    spent = trained.spending
    assert (spent.updates, spent.generated_tokens, spent.reward_calls, spent.preference_labels) == (20, 0, 0, 0)
    assert len(read_metrics(tmp_path / "run")) >= 20


def test_an_agent_that_needs_its_own_texts_says_so(tmp_path: Path) -> None:
    wanted = experiment(agent={"name": "ppo"}, budget={"updates": 2}, preferences=str(stored(tmp_path, ".jsonl")))
    with pytest.raises(DataError, match="needs the log-probabilities of the policy that wrote"):
        run(wanted, tmp_path / "run")


def test_what_stored_preferences_do_not_spend() -> None:
    with pytest.raises(ConfigError) as caught:
        experiment(preferences="pairs.sqlite", budget={"generated_tokens": 10}, max_kl=1.0)
    assert len(caught.value.problems) == 2
    experiment(preferences="pairs.sqlite", budget={"generated_tokens": 10, "updates": 10})
