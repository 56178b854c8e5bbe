"""`[policy] writer = "server"`: an OpenAI-compatible server on loopback writes what is only measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rlhf_env
from rlhf_env import Experiment, build
from rlhf_env.errors import ConfigError, WriterFailed
from rlhf_env.policies.low_precision import writing_exactly

sys.path.insert(0, str(Path(__file__).parents[1]))
from faults.reward_server import Asked, Server, say, serving


def completion(text: str, reason: str = "stop") -> bytes:
    return json.dumps({"choices": [{"text": text, "finish_reason": reason}]}).encode()


def repeats(asked: Asked) -> None:
    """Says the prompt's letters again, right or, by the seed, one letter short."""
    request = json.loads(asked.body)
    letters = request["prompt"].removesuffix("=")
    right = request["seed"] % 3 == 0
    say(200, completion(letters if right else letters[:1]))(asked)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as one:
        one.answers = [repeats]
        yield one


def experiment(server: Server, agent: Any = "reference", policy: Any = None, **more: Any) -> Experiment:
    where = {"url": server.url.replace("/score", "/v1"), "model": "small", "attempts": 1}
    return Experiment.from_table(
        {
            "task": {"name": "echo", "length": 2},
            "policy": {"tokenizer": "alphabet:ab=", "writer": "server", "server": {**where, **(policy or {})}},
            "environment": {"num_envs": 4, "max_new_tokens": 4, "max_prompt_tokens": 4},
            "agent": {"name": agent} if isinstance(agent, str) else agent,
            "evaluation": {"prompts": 8},
            **more,
        }
    )


def requests(server: Server) -> list[dict[str, Any]]:
    assert {path for path, _, _ in server.seen} == {"/v1/completions"}
    return [json.loads(body) for _, _, body in server.seen]


def test_an_evaluation_is_of_what_the_server_writes(server: Server, tmp_path: Path) -> None:
    run = rlhf_env.run(experiment(server), tmp_path / "run")
    assert run.reason == "does not train"
    first, *asked = requests(server)
    assert first["max_tokens"] == 1  # whether it is there, before anything is written
    assert len(asked) == 8
    assert {it["model"] for it in asked} == {"small"}
    assert {(it["temperature"], it["top_p"], it["top_k"], it["min_p"]) for it in asked} == {(1.0, 1.0, 0, 0.0)}
    assert len({it["seed"] for it in asked}) == 8
    assert 0 < sum(it["seed"] % 3 == 0 for it in asked) < 8
    assert {sample["response"] for sample in run.evaluation.samples} == {
        *(it["prompt"][:2] for it in asked if it["seed"] % 3 == 0),
        *(it["prompt"][:1] for it in asked if it["seed"] % 3),
    }
    rlhf_env.run(experiment(server))
    assert sorted(it["seed"] for it in requests(server)[10:]) == sorted(it["seed"] for it in asked)


def test_the_best_of_several_is_given(server: Server) -> None:
    one = rlhf_env.run(experiment(server)).evaluation.metrics
    best = rlhf_env.run(experiment(server, {"name": "best_of_n", "n": 8})).evaluation.metrics
    assert len(requests(server)) == 2 + 8 + 64
    assert best["objective"] > one["objective"]


def test_what_is_stated_is_what_the_runs_own_model_finds_likely(server: Server) -> None:
    workplace = build(experiment(server, policy={"fields": {}}))
    policy, tokenizer = workplace.setup.policy, workplace.setup.tokenizer
    server.answers = [say(200, completion("ab")), say(200, completion("abab", "length")), say(200, completion(""))]
    ids = np.array([tokenizer.encode("ab=")] * 3)
    asked: Any = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    written = policy.write(asked, 4)
    a, b, end, nothing = *tokenizer.encode("ab"), tokenizer.end_id, policy.vocab_size
    rows = sorted(written.tokens.tolist())
    assert rows == sorted([[a, b, end, nothing], [a, b, a, b], [end, nothing, nothing, nothing]])
    with writing_exactly(policy):  # an evaluation is the server's all the same
        assert policy.copy_writes  # type: ignore[attr-defined]
    there = written.tokens < nothing
    assert (written.logprobs[there] < 0).all()
    assert not written.logprobs[~there].any()
    whole = np.concatenate([ids, written.tokens[:, :3]], axis=1)
    row = written.tokens.tolist().index([a, b, a, b])
    mask = torch.ones(1, 6, dtype=torch.bool)
    where = mask & (torch.arange(6) >= 3)
    expected = policy.evaluate(torch.from_numpy(whole[row : row + 1]), mask, where).logprobs[0, 3:].detach().numpy()
    assert written.logprobs[row, :3] == pytest.approx(expected, abs=1e-5)


def test_what_follows_a_stop_string_is_left_out(server: Server) -> None:
    server.answers = [say(200, completion("abb", "stop"))]
    run = rlhf_env.run(experiment(server, environment={"max_new_tokens": 4, "max_prompt_tokens": 4, "stop": ["bb"]}))
    assert {sample["response"] for sample in run.evaluation.samples} == {"a"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            say(404, b'{"error": {"message": "The model `small` does not exist."}}'),
            "404 Not Found: The model `small`",
        ),
        (say(200, b'{"choices": []}'), r"the answer is no completion: choices\[0\].text and finish_reason"),
        (say(500, b""), "500 Internal Server Error; asked once"),
    ],
)
def test_before_anything_is_written_it_is_asked_for_a_token(
    server: Server, answer: Any, said: str, tmp_path: Path
) -> None:
    server.answers = [answer]
    with pytest.raises(ConfigError, match=said) as refused:
        rlhf_env.run(experiment(server), tmp_path / "run")
    assert len(refused.value.problems) == 1
    assert not (tmp_path / "run").exists()


def test_a_server_that_is_gone_ends_the_run_in_one_line(server: Server, tmp_path: Path) -> None:
    server.answers = [say(200, completion("a")), say(503, b"")]
    with pytest.raises(WriterFailed, match=r"^no text came: POST http://127.0.0.1:\d+/v1/completions: 503 Service"):
        rlhf_env.run(experiment(server), tmp_path / "run")
    server.answers = [say(200, completion("what?"))]
    with pytest.raises(WriterFailed, match=r"^small at http.* wrote what the run's tokenizer cannot read: "):
        rlhf_env.run(experiment(server), tmp_path / "other")


@pytest.mark.parametrize(
    ("agent", "policy", "said"),
    [
        ("grpo", {}, "which tokens a server drew is not known, and grpo learns from them: take best_of_n or reference"),
        (
            "reference",
            {"url": "http://example.org/v1"},
            "url must be https://: by http://, texts and token",
        ),
        ("reference", {"url": "localhost"}, "url must be http://HOST/PATH or https://HOST/PATH"),
        ("reference", {"fields": {"seed": 1}}, "fields has 'seed', which is not for them to say"),
        ("reference", {"token_env": "NO_SUCH_TOKEN"}, "token_env names no environment variable with a token in it"),
    ],
)
def test_what_does_not_go_together(server: Server, agent: str, policy: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build(experiment(server, agent, policy))
    assert said in str(refused.value)
    assert not server.seen


def test_writer_and_table_belong_together() -> None:
    for policy in ({"writer": "server"}, {"server": {"url": "http://localhost/v1", "model": "m"}}):
        with pytest.raises(ConfigError, match=r"a table \[policy.server\] with its url and model belong together"):
            Experiment.from_table({"policy": {"tokenizer": "bytes", **policy}})
