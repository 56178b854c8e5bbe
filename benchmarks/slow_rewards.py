"""Rewards that wait for a server or another process, beside the same rewards asked one after the other.

    OMP_NUM_THREADS=1 python benchmarks/slow_rewards.py

One rollout (`collect()`) of 32 texts, of some 30 tokens and at most 64, by a model of size S. A reward takes so many
milliseconds a text, in which it calculates nothing. It answers over HTTP from a server on this machine, or from a
process of its own (`isolate = true`). The other side hides that its rewards wait outside, so they have to answer before
it writes on. Both sides write the same texts and get the same scores. What counts is the time on the wall.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import side_by_side as bench

from rlhf_env import plugins
from rlhf_env.envs.isolation import Limits, isolated
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.learning.collect import collect
from rlhf_env.types import Episode

ROWS, VOCABULARY = 32, 32  # of so few tokens a model without training takes the end token once in 32


class Asleep:
    """The letters of a response, after `seconds` for each text."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        time.sleep(self.seconds * len(episodes))
        return [float(len(it.response)) for it in episodes]


class OneAfterTheOther:
    """A reward, and not a word of what it waits for."""

    def __init__(self, reward: Any) -> None:
        self.reward = reward

    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        return self.reward(episodes)


@contextmanager
def server(seconds: float) -> Iterator[str]:
    """The address of one that scores as `Asleep` does."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(seconds * len(asked["responses"]))
            answer = json.dumps({"scores": [float(len(it)) for it in asked["responses"]]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as one:
        thread = threading.Thread(target=one.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{one.server_address[1]}/"
        one.shutdown()
        thread.join()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--rounds", type=int, default=3, help="turns of each side (default: %(default)s)")
    arguments.add_argument("--milliseconds", type=float, default=20.0, help="a text (default: %(default)s)")
    given = arguments.parse_args()
    bench.heading("wall time, one after the other / ours")
    http = plugins.host().load("reward", "http")
    seconds = given.milliseconds / 1e3
    with server(seconds) as one, server(seconds) as two:
        for what, rewards in {
            "HTTP": [http(one)],
            "HTTP, 4 connections": [http(one, connections=4)],
            "process": [isolated(partial(Asleep, seconds), Limits())],
            "two HTTP": [http(one), http(two)],
        }.items():
            for action_length in (1, 16, bench.ANSWER):
                measure(f"{what}, {given.milliseconds:g} ms a text", rewards, action_length, given.rounds)


def measure(what: str, rewards: Sequence[Any], action_length: int, rounds: int) -> None:
    sides = [collecting(rewards, action_length), collecting([OneAfterTheOther(it) for it in rewards], action_length)]
    mine, others = (side() for side in sides)
    assert mine.episodes == others.episodes and [it.total for it in mine.scores] == [it.total for it in others.scores]
    view = {1: "a token", bench.ANSWER: "a whole response"}.get(action_length, f"{action_length} tokens")
    ours, theirs = (partial(tokens_of, side) for side in sides)
    bench.take_turns(f"{what}, {view} a step", ours, theirs, rounds=rounds, clock=time.perf_counter)


def tokens_of(side: Callable[[], Any]) -> float:
    return float(side().actions.sum())


def collecting(rewards: Sequence[Any], action_length: int) -> Callable[[], Any]:
    """What writes one and the same rollout again and again."""
    policy = bench.model("S", vocab_size=VOCABULARY)
    mix = RewardMix({str(place): reward for place, reward in enumerate(rewards)})
    prompts = [" ".join(f"w{2 + (row + place) % 30}" for place in range(bench.PROMPT)) for row in range(ROWS)]
    setup = replace(bench.setup(policy, policy, mix, ROWS), action_length=action_length)
    env = bench.environment(prompts, mix, setup)
    kind = plugins.host().load("agent", "reference")
    agent = kind(setup, kind.Config())

    def rollout() -> Any:
        policy.reseed(0)
        return collect(env, agent, {"indices": np.arange(ROWS)})

    return rollout


if __name__ == "__main__":
    import slow_rewards  # by its own name, by which the other process finds `Asleep`

    slow_rewards.main()
