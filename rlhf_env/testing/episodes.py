"""Generated episodes, odd ones among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rlhf_env.envs.tokenizers import ByteTokenizer, end_ids, prompt_ids
from rlhf_env.types import Episode, FinishReason, Float, Prompt, Tokenizer

_PROMPTS = ("How are you?", "Tell me more.", "emoji 😀, \u05e9\u05dc\u05d5\u05dd, NUL \x00, lone \ud83d")

ODD_RESPONSES = (
    "",
    " ",
    "\n\t\r\n",
    "?",
    "Fine, thank you.",
    "GREAT great Great! great",
    "😀👍🏽👩‍👩‍👧 é é ﬁ",
    "\u202eשלום עולם\u202c",
    "a\x00b",
    "nan inf -1e999 None {} %s {0} \\",
    "<|end|> <b>&amp;</b> ```json {",
    "line one\nline two\nline three",
)


def make_episode(
    prompt_text: str = "How are you?",
    response_text: str = "Fine, thank you.",
    tokenizer: Tokenizer | None = None,
    *,
    finish_reason: FinishReason = "stop",
    meta: Mapping[str, object] | None = None,
    logprobs: float | Sequence[float] | None = -1.0,
    turns: Sequence[str] = (),
) -> Episode:
    """A finished episode as the environment would hand it to a reward; bytes are the tokens unless told otherwise.

    A text that ended by itself (`finish_reason` "stop" or "task") gets the end token. `logprobs` is one number for all
    tokens of the response, or one each (the end token included), or None for a run that does not ask for them. `turns`
    are what the agent has said in a conversation, for tasks that reply.
    """
    tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
    prompt = Prompt(id=f"made/{prompt_text!a}", text=prompt_text, meta=dict(meta or {}))
    ids = tokenizer.encode(response_text)
    closing = [tokenizer.end_id] if finish_reason in ("stop", "task") else []
    response_ids = np.array([*ids, *closing], dtype=np.int64)
    stated: Float | None = None
    if logprobs is not None:
        stated = np.array(np.broadcast_to(logprobs, response_ids.shape), dtype=np.float64)
    return Episode(
        prompt=prompt,
        prompt_ids=np.array(prompt_ids(tokenizer, prompt), dtype=np.int64),
        response=tokenizer.decode(ids),
        response_ids=response_ids,
        finish_reason=finish_reason,
        actions=np.ones(len(response_ids), dtype=np.bool_),
        logprobs=stated,
        turns=tuple(turns),
    )


def episodes_of(
    stream: np.random.Generator, meta: Mapping[str, object] | None, tokenizer: Tokenizer | None, longest: int
) -> list[Episode]:
    """Odd, random, identical and very long responses to each of a few prompts, with every way to end."""
    tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
    words = ["the", "a", "moon", "great", "not", "very", "rain", "walks", "slowly", "home", ",", ".", "!", "?"]
    endings: tuple[FinishReason, ...] = ("stop", "length", "task")
    long = " ".join(stream.choice(words, size=longest))
    own_ids = [i for i in range(tokenizer.vocab_size) if i not in (*end_ids(tokenizer), tokenizer.pad_id)]
    prompts = [text for text in _PROMPTS if can_say(tokenizer, text)] or [tokenizer.decode(own_ids[:3])]
    made = []
    for prompt in prompts:
        responses = [
            *ODD_RESPONSES,
            *(" ".join(stream.choice(words, size=int(size))) for size in stream.integers(1, 12, size=4)),
            *(tokenizer.decode(stream.choice(own_ids, size=24).tolist()) for _ in range(3)),
            "Fine, thank you.",
        ]
        if prompt == prompts[0]:
            responses += [long, "a" * longest]
        for i, response in enumerate(filter(lambda text: can_say(tokenizer, text), responses)):
            made.append(
                make_episode(
                    prompt,
                    response[:longest],
                    tokenizer,
                    finish_reason=endings[i % len(endings)] if response else "stop",
                    meta=meta,
                    logprobs=float(-stream.random()),
                )
            )
    return made


def can_say(tokenizer: Tokenizer, text: str) -> bool:
    """Whether the tokenizer takes the text; a small alphabet refuses most, so no reward will ever see them."""
    try:
        tokenizer.encode(text)
    except Exception:  # whatever it raises, it means no
        return False
    return True


def in_groups(episodes: Sequence[Episode]) -> list[list[Episode]]:
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.prompt.id, []).append(episode)
    return list(groups.values())
