"""A server on loopback that speaks as OpenAI's chat completions do; what it says is a function of what it is asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from faults.reward_server import Answer, Asked, Server, say, serving

Says = Callable[[str], str | None]


def completion(said: str | None, **more: Any) -> bytes:
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    message = {"role": "assistant", "content": said}
    return json.dumps({"choices": [{"index": 0, "message": message}], "usage": usage, **more}).encode()


def says(what: Says) -> Answer:
    def answer(asked: Asked) -> None:
        say(200, completion(what(json.loads(asked.body)["messages"][-1]["content"])))(asked)

    return answer


@contextmanager
def judging(what: Says) -> Iterator[Server]:
    with serving() as server:
        server.answers = [says(what)]
        yield server


def api(server: Server) -> str:
    """What the setting `url` is."""
    return server.url.replace("/score", "/v1")


def questions(server: Server) -> list[str]:
    """What it was asked, in the order in which it came."""
    return [json.loads(body)["messages"][-1]["content"] for _, _, body in server.seen]


def between(text: str, one: str, other: str) -> str:
    """What stands in a question of a built-in rubric between two of its headings."""
    return text.split(f"[{one}]\n", 1)[1].split(f"\n\n[{other}]", 1)[0]
