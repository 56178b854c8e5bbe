"""Who writes stops where the environment ends the text: the same texts in every view, and nothing wasted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlhf_env.envs.tokenizers import load_tokenizer
from rlhf_env.feedback.asking.collecting import sample_responses
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.offline import pair_episode
from rlhf_env.lab.evaluation.evaluator import Evaluator, _every_text
from rlhf_env.lab.evaluation.runs import run
from rlhf_env.learning.collect import collect
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.workplace import Workplace, build
from rlhf_env.types import Episode, Prompt

STOP, LIMIT, ROWS = ["ab", "bb"], 7, 24


def workplace(stop: list[str] = STOP, length: int = LIMIT, **table: Any) -> Workplace:
    settings = {
        "task": {"name": "prompts", "prompts": ["ab", "b", "aab"]},
        "policy": {"model": "tiny", "tokenizer": "alphabet:abc", "dtype": "float64", "rows_at_once": 256},
        "rewards": {"length": {"weight": 1.0, "target": 3}, "kl": 0.1},
        "agent": {"name": "grpo", "group_size": 4},
        **table,
    }
    environment = {"num_envs": ROWS, "max_new_tokens": LIMIT, "max_prompt_tokens": 4, "stop": stop}
    return build(Experiment.from_table({**settings, "environment": {**environment, "action_length": length}}))


def texts(place: Workplace) -> list[Episode]:
    return list(collect(place.env, place.agent, seed=5).episodes)


def ended_right(episodes: list[Episode]) -> set[str]:
    """Each text ends with the token that first completes a string, or holds none; the ways they ended."""
    words = load_tokenizer("alphabet:abc")
    for episode in episodes:
        ids = episode.response_ids.tolist()
        holds = [any(string in words.decode(ids[: n + 1]) for string in STOP) for n in range(len(ids))]
        assert not any(holds[:-1]) and holds[-1] == (episode.finish_reason == "stop_string")
        assert not any(string in episode.response for string in STOP)
    return {episode.finish_reason for episode in episodes}


TABLE = {"task": {"name": "prompts", "prompts": ["a"]}, "policy": {"model": "table", "tokenizer": "alphabet:abc"}}


@pytest.mark.parametrize("table", [{}, TABLE], ids=["language model", "table"])
def test_every_view_writes_the_same_texts(table: dict[str, Any]) -> None:
    episodes = texts(place := workplace(**table))
    assert ended_right(episodes) >= {"stop", "stop_string"}
    exact = place.setup.policy.response_logprobs(episodes)
    taken = place.setup.policy.sampling_state()["taken"]
    assert taken == [len(episode.response_ids) for episode in episodes], "no token was drawn after the string"
    for length in (1, 3):
        others = texts(place := workplace(length=length, **table))
        drawn = place.setup.policy.sampling_state()["taken"]
        for episode, one, other in zip(others, taken, drawn, strict=True):
            assert one == other or episode.finish_reason == "length", "segments may end beyond the limit, and not here"
        for one, other, logprobs in zip(episodes, others, exact, strict=True):
            assert (one.response_ids.tolist(), one.response) == (other.response_ids.tolist(), other.response)
            assert one.finish_reason == other.finish_reason
            for stated in (one.logprobs, other.logprobs):
                assert stated is not None
                np.testing.assert_allclose(stated, logprobs, rtol=0, atol=1e-6 if table else 1e-10)


@pytest.mark.parametrize("policy", [{}, {"rows_at_once": 5}, {"fused": False}], ids=["all at once", "waves", "general"])
def test_a_text_is_what_it_would_have_been_up_to_the_string(policy: dict[str, Any]) -> None:
    settings = {"policy": {"model": "tiny", "tokenizer": "alphabet:abc", "dtype": "float64", **policy}}
    whole, stopped = texts(workplace([], **settings)), texts(workplace(**settings))
    for one, other in zip(whole, stopped, strict=True):
        assert one.response_ids[: len(other.response_ids)].tolist() == other.response_ids.tolist()
    assert ended_right(stopped) > {"stop_string"}


@pytest.mark.parametrize("agent", ["ppo", "best_of_n", "options", "random", "reference", "rejection"])
def test_whoever_writes(agent: str) -> None:
    place = workplace(agent={"name": agent}, rewards={"length": {"weight": 1.0, "target": 3}})
    rollout = collect(place.env, place.agent, seed=1)
    assert "stop_string" in ended_right(list(rollout.episodes))
    assert bool((rollout.logprobs[rollout.actions] < 0).all()), "each token has a stated probability"
    assert not bool(rollout.logprobs[~rollout.actions].any())


def test_responses_to_be_judged() -> None:
    policy = workplace().setup.policy
    words, prompts = load_tokenizer("alphabet:abc"), [Prompt("p", "ab")] * 12
    found = sample_responses(policy, words, prompts, (1.0,), name="x", max_new_tokens=LIMIT, stop=STOP)
    assert "stop_string" in ended_right([episode for episode, _ in found])


def test_a_stored_answer_is_read_with_the_ids_it_was_written_with() -> None:
    words, prompt = load_tokenizer("alphabet:abc"), Prompt("p", "a")
    stored = Response("ca", Author("policy", "p", 1.0), (2, 0, 1, 1), (0,), "stop_string")
    assert pair_episode(prompt, stored, words).response_ids.tolist() == [2, 0, 1, 1]
    other = load_tokenizer("alphabet:cab")  # where these ids say something else, the text is read, and closed
    read = pair_episode(prompt, stored, other)
    assert read.response_ids.tolist() == [*other.encode("ca"), other.end_id] and read.finish_reason == "stop"


def test_the_exact_kl_sums_over_the_texts_that_can_be_written() -> None:
    place = workplace(**TABLE, evaluation={"prompts": 1})
    environment = place.experiment.environment
    assert environment.stop == STOP
    every = list(_every_text([0], [0, 1, 2], [3], 4, place.env.stops))
    assert len({tuple(episode.response_ids.tolist()) for episode in every}) == len(every)
    probabilities = [np.exp(row.sum()) for row in place.setup.policy.response_logprobs(every)]
    # Texts of at most four tokens: where a text may be longer, its first four stand for it.
    assert sum(probabilities) == pytest.approx(1.0, abs=1e-6)
    assert Evaluator.of(place).exact_kl(place.agent) is None, "there are too many of seven tokens"


def test_the_setting_is_in_the_file_only_where_it_is_used() -> None:
    assert "stop" not in Experiment().to_toml().replace("[stopping", "").replace("stopping", "")
    with_stop = Experiment.from_table({"environment": {"stop": ["\nUser:"]}})
    assert 'stop = [\n    "\\nUser:",\n]' in with_stop.to_toml()


def test_training_resumes_to_the_same_bits(tmp_path: Any) -> None:
    table = {
        "task": {"name": "prompts", "prompts": ["ab", "b", "aab"]},
        "policy": {"model": "tiny", "tokenizer": "alphabet:abc"},
        "rewards": {"length": {"weight": 1.0, "target": 3}, "missing_end": 1.0, "kl": 0.1},
        "environment": {"num_envs": 8, "max_new_tokens": LIMIT, "stop": STOP, "view": "token"},
        "agent": {"name": "ppo"},
        "evaluation": {"prompts": 4},
        "checkpoint_every": 1,
    }
    once = run({**table, "budget": {"updates": 3}}, tmp_path / "once")
    run({**table, "budget": {"updates": 2}}, tmp_path / "twice")
    again = run({**table, "budget": {"updates": 3}}, tmp_path / "twice", resume=True)
    rows = [read_metrics(tmp_path / name)[-1] for name in ("once", "twice")]
    assert rows[0]["update"] == 3 and rows[0]["rollout/reward"] == rows[1]["rollout/reward"]
    assert dict(once.evaluation.metrics) == dict(again.evaluation.metrics)
