"""The contracts of rewards and tasks as checks that any plugin's own tests can run.

    from rlhf_env.testing import check_reward, make_episode

    def test_haiku_keeps_the_contract():
        check_reward(Haiku())                       # its declared range, odd texts, batch mates, ...

    def test_haiku_likes_a_haiku():
        assert Haiku()([make_episode("Write.", POEM)])[0] == 1.0

Each check raises ContractError (an AssertionError) that says which rule was broken, what was expected, what came, and
for which episode. None of them imports torch.
"""

from __future__ import annotations

import copy
import inspect
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from rlhf_env.envs.rewards import from_function
from rlhf_env.envs.tokenizers import ByteTokenizer
from rlhf_env.errors import ContractError
from rlhf_env.types import (
    AnyReward,
    Episode,
    FinishReason,
    Float,
    GroupReward,
    Prompt,
    Remembers,
    Task,
    Tokenizer,
    TokenReward,
)

_PROMPTS = ("How are you?", "Tell me more.", "emoji 😀, \u05e9\u05dc\u05d5\u05dd, NUL \x00, lone \ud83d")
_ODD_RESPONSES = (
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
    meta: Mapping[str, Any] | None = None,
    logprobs: float | Sequence[float] | None = -1.0,
) -> Episode:
    """A finished episode as the environment would hand it to a reward; bytes are the tokens unless told otherwise.

    A text that ended by itself (`finish_reason` "stop" or "task") gets the end token. `logprobs` is one number for all
    tokens of the response, or one each (the end token included), or None for a run that does not ask for them.
    """
    tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
    ids = tokenizer.encode(response_text)
    closing = [tokenizer.end_id] if finish_reason in ("stop", "task") else []
    response_ids = np.array([*ids, *closing], dtype=np.int64)
    stated: Float | None = None
    if logprobs is not None:
        stated = np.array(np.broadcast_to(logprobs, response_ids.shape), dtype=np.float64)
    return Episode(
        prompt=Prompt(id=f"made/{prompt_text!a}", text=prompt_text, meta=dict(meta or {})),
        prompt_ids=np.array(tokenizer.encode(prompt_text), dtype=np.int64),
        response=tokenizer.decode(ids),
        response_ids=response_ids,
        finish_reason=finish_reason,
        actions=np.ones(len(response_ids), dtype=np.bool_),
        logprobs=stated,
    )


# ---------------------------------------------------------------- rewards


def check_reward(
    reward: AnyReward | Callable[..., Any],
    *,
    low: float | None = None,
    high: float | None = None,
    seed: int = 0,
    meta: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    longest: int = 10_000,
    tolerance: float = 1e-12,
) -> None:
    """Attack a reward with generated episodes; raise ContractError at the first rule it breaks.

    The rules, by the `rule` of the error: "raised" (it scores every text), "count" (one float per episode, token or
    member), "finite", "range", "deterministic" (same question, same bits), "pure" (episodes stay as they are),
    "global random state", "batch mates" (neither the number of episodes nor the others among them nor their order
    changes a score by more than `tolerance`), "memory" (scoring teaches nothing; a saved state loads).

    Args:
        reward: a Reward, TokenReward or GroupReward, or a function in TRL's convention.
        low, high: the range each value must keep (of a TokenReward: each token's); the attributes of that name where
            the reward has them. None is no bound.
        meta: columns of the task that the reward reads, the same for every prompt.
        tokenizer: whose ids the episodes carry (a reward with a model inside knows one vocabulary); bytes by default.
        longest: characters of the longest response. Lower it for a reward with a limited context.
    """
    if isinstance(reward, type):
        raise ContractError("raised", f"{reward.__name__} is a class: check an instance, {reward.__name__}(...)")
    scored: Any = from_function(reward) if inspect.isfunction(reward) else reward
    low = getattr(scored, "low", None) if low is None else low
    high = getattr(scored, "high", None) if high is None else high
    episodes = _episodes(np.random.default_rng(seed), meta, tokenizer, longest)
    score = _Asked(scored, low, high)
    before = copy.deepcopy(scored.state_dict()) if isinstance(scored, Remembers) else None

    # A GroupReward sees the answers to one prompt; the others see whatever is in the batch.
    batches = _by_prompt(episodes) if isinstance(scored, GroupReward) else [episodes]
    for batch in batches:
        together = score(batch)
        again = score(batch)
        for episode, first, second in zip(batch, together, again, strict=True):
            if first.tobytes() != second.tobytes():
                raise _broken("deterministic", "the same score when asked twice", f"{first} and {second}", episode)
        order = np.random.default_rng(seed).permutation(len(batch))
        _same_scores("in another order", batch, together, order, score([batch[i] for i in order]), tolerance)
        if isinstance(scored, GroupReward):
            score(batch[:1])
            score(batch[:2])
            continue
        alone = [score([episode])[0] for episode in batch]
        _same_scores("alone", batch, together, np.arange(len(batch)), alone, tolerance)
        twins = score([batch[0], batch[-1], batch[0]])
        _same_scores("beside other mates", batch, together, np.array([0, len(batch) - 1, 0]), twins, tolerance)

    if isinstance(scored, Remembers):
        _check_memory(scored, before)


class _Asked:
    """The reward, asked under observation: each answer has been checked for count, finiteness, range and side effects.

    An answer is one float64 array per episode: its one score, or of a TokenReward its token scores.
    """

    def __init__(self, reward: Any, low: float | None, high: float | None) -> None:
        self.reward, self.low, self.high = reward, low, high

    def __call__(self, episodes: Sequence[Episode]) -> list[Float]:
        kept = copy.deepcopy(list(episodes))
        handed = list(episodes)
        with _global_randomness_untouched("the reward"):
            answer = self._answer(handed, kept)
        if len(handed) != len(kept):
            raise ContractError("pure", f"the reward changed the list it was handed: {len(kept)} -> {len(handed)}")
        for now, then in zip(handed, kept, strict=True):
            if now != then or now.prompt.meta != then.prompt.meta:
                raise _broken("pure", "episodes that stay as they are", "a changed one", then)
        for episode, values in zip(kept, answer, strict=True):
            bad = values[~np.isfinite(values)]
            if bad.size:
                raise _broken("finite", "finite numbers", str(bad[0]), episode)
            if self.low is not None and (values < self.low).any():
                raise _broken("range", f"at least {self.low}", str(values.min()), episode)
            if self.high is not None and (values > self.high).any():
                raise _broken("range", f"at most {self.high}", str(values.max()), episode)
        return answer

    def _answer(self, handed: list[Episode], kept: Sequence[Episode]) -> list[Float]:
        """The reward's answer to `handed`, counted against `kept`: the reward may have changed what it was handed."""
        if isinstance(self.reward, TokenReward):
            rows = self._ask(lambda: [np.asarray(row) for row in self.reward.token_rewards(handed)], kept)
            if len(rows) != len(kept):
                raise ContractError("count", f"expected {len(kept)} arrays, one per episode, got {len(rows)}")
            return [
                _numbers(row, len(episode.response_ids), "response token", [episode])
                for row, episode in zip(rows, kept, strict=True)
            ]
        call = self.reward.group_rewards if isinstance(self.reward, GroupReward) else self.reward
        values = _numbers(self._ask(lambda: np.asarray(call(handed)), kept), len(kept), "episode", kept)
        return list(values[:, None])

    def _ask(self, call: Callable[[], Any], episodes: Sequence[Episode]) -> Any:
        try:
            return call()
        except Exception as error:  # whatever a plugin raises, the report names the text that made it
            came = f"{type(error).__name__}: {error}"
            raise _broken("raised", "a score for every text", came, *episodes) from error


def _numbers(values: Any, count: int, what: str, episodes: Sequence[Episode]) -> Float:
    if values.dtype.kind not in "fiub" or values.shape != (count,):
        came = f"{values.dtype} of shape {values.shape}"
        raise _broken("count", f"one float per {what}, shape ({count},)", came, *episodes)
    floats: Float = values.astype(np.float64)
    return floats


def _same_scores(
    how: str, batch: Sequence[Episode], together: Sequence[Float], rows: Any, answers: Sequence[Float], tolerance: float
) -> None:
    for row, answer in zip(rows, answers, strict=True):
        if not np.allclose(answer, together[row], rtol=0.0, atol=tolerance):
            expected, came = f"{together[row]}, its score in a batch of {len(batch)}", f"{answer} {how}"
            raise _broken("batch mates", expected, came, batch[row])


def _check_memory(reward: Remembers, before: Mapping[str, Any] | None) -> None:
    state = reward.state_dict()
    if repr(state) != repr(before):
        raise ContractError("memory", f"scoring changed the state from {before} to {state}: learn in observe() only")
    try:
        reward.load_state_dict(copy.deepcopy(state))
    except Exception as error:
        raise ContractError("memory", f"its own state_dict does not load: {type(error).__name__}: {error}") from error
    if repr(reward.state_dict()) != repr(state):
        raise ContractError("memory", f"state {state} loads as {reward.state_dict()}")


def _episodes(
    stream: np.random.Generator, meta: Mapping[str, Any] | None, tokenizer: Tokenizer | None, longest: int
) -> list[Episode]:
    """Odd, random, identical and very long responses to each of a few prompts, with every way to end."""
    tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
    words = ["the", "a", "moon", "great", "not", "very", "rain", "walks", "slowly", "home", ",", ".", "!", "?"]
    endings: tuple[FinishReason, ...] = ("stop", "length", "task")
    long = " ".join(stream.choice(words, size=longest))
    own_ids = [i for i in range(tokenizer.vocab_size) if i not in (tokenizer.end_id, tokenizer.pad_id)]
    prompts = [text for text in _PROMPTS if _can_say(tokenizer, text)] or [tokenizer.decode(own_ids[:3])]
    made = []
    for prompt in prompts:
        responses = [
            *_ODD_RESPONSES,
            *(" ".join(stream.choice(words, size=int(size))) for size in stream.integers(1, 12, size=4)),
            *(tokenizer.decode(stream.choice(own_ids, size=24).tolist()) for _ in range(3)),
            "Fine, thank you.",
        ]
        if prompt == prompts[0]:
            responses += [long, "a" * longest]
        for i, response in enumerate(filter(lambda text: _can_say(tokenizer, text), responses)):
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


def _can_say(tokenizer: Tokenizer, text: str) -> bool:
    """Whether the tokenizer takes the text; a small alphabet refuses most, so no reward will ever see them."""
    try:
        tokenizer.encode(text)
    except Exception:  # whatever it raises, it means no
        return False
    return True


def _by_prompt(episodes: Sequence[Episode]) -> list[list[Episode]]:
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.prompt.id, []).append(episode)
    return list(groups.values())


def _broken(rule: str, expected: str, came: str, *episodes: Episode) -> ContractError:
    shown = "; ".join(
        f"prompt {episode.prompt.text[:60]!a}, response {episode.response[:60]!a}"
        f"{'...' if len(episode.response) > 60 else ''} ({len(episode.response)} characters, {episode.finish_reason})"
        for episode in episodes[:3]
    )
    more = f" and {len(episodes) - 3} more" if len(episodes) > 3 else ""
    return ContractError(rule, f"expected {expected}, got {came}, for {shown}{more}")


@contextmanager
def _global_randomness_untouched(who: str) -> Iterator[None]:
    """Raise when the block drew from (or seeded) a global generator; leave the generators as they were."""
    torch: Any = sys.modules.get("torch")
    python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002  # that nobody uses it
    torch_state = torch.get_rng_state() if torch else None
    yield
    drew = [
        name
        for name, same in (
            ("random", random.getstate() == python),
            ("numpy.random", repr(np.random.get_state(legacy=False)) == repr(numpy)),  # noqa: NPY002
            ("torch", torch is None or bool((torch.get_rng_state() == torch_state).all())),
        )
        if not same
    ]
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    if torch is not None:
        torch.set_rng_state(torch_state)
    if drew:
        raise ContractError(
            "global random state", f"{who} used the global generator of {' and '.join(drew)}: keep one of its own"
        )


# ---------------------------------------------------------------- tasks

_LOOKED_AT = 200  # prompts of a task that are compared; unbounded and large tasks are sampled


def check_task(task: Task, tokenizer: Tokenizer | None = None) -> None:
    """Hold a task to its protocol; raise ContractError at the first rule it breaks.

    The rules: "size", "prompt" (a Prompt with an id and a text), "pure" (a function of index and options alone),
    "ids" (two prompts never share an id, an id never has two texts), "encodes" (at least one token, ids in the
    vocabulary), "held_out" (evaluation shares no id with training, unless it is the same task), "score" (finite on
    empty and odd responses), "reply", "action_mask", "option_names", "global random state".
    """
    tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
    size = task.size
    if size is not None and (not isinstance(size, (int, np.integer)) or isinstance(size, bool) or size < 1):
        raise ContractError("size", f"expected the number of prompts (at least 1) or None, got {size!r}")
    names = getattr(task, "option_names", ())
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ContractError("option_names", f"expected a tuple of strings, got {names!r}")
    with _global_randomness_untouched("the task"):
        prompts = _prompts_of(task)
        _check_ids(prompts)
        for prompt in prompts[:20]:
            _check_encoding(prompt, tokenizer)
            for response in _ODD_RESPONSES:
                _check_answers(task, prompt, response, tokenizer)
        split = getattr(task, "held_out", None)
        if split is None:
            return
        evaluation = split()
        if evaluation is task:
            return
        held = _prompts_of(evaluation)
    _check_ids(held)
    shared = {prompt.id for prompt in prompts} & {prompt.id for prompt in held}
    if shared:
        raise ContractError("held_out", f"training and evaluation share the prompts {sorted(shared)[:5]}")


def _prompts_of(task: Task) -> list[Prompt]:
    """The first prompts of a task, each asked for twice, forwards and backwards."""
    indices = range(_LOOKED_AT if task.size is None else min(int(task.size), _LOOKED_AT))
    options: dict[str, Any] = {}
    forwards = [task.prompt(index, options) for index in indices]
    backwards = [task.prompt(index, options) for index in reversed(indices)]
    if options:
        raise ContractError("pure", f"prompt() changed the options it was handed: {options}")
    for index, first, second in zip(indices, forwards, reversed(backwards), strict=True):
        if not isinstance(first, Prompt) or not isinstance(first.id, str) or not isinstance(first.text, str):
            raise ContractError("prompt", f"prompt({index}) must be a Prompt with id and text, got {first!r}")
        if not first.id:
            raise ContractError("prompt", f"prompt({index}) has an empty id")
        if first != second:
            raise ContractError("pure", f"prompt({index}) was {first!r} and then {second!r}")
    if task.size is not None and len({prompt.id for prompt in forwards}) < len(forwards):
        seen: dict[str, int] = {}
        for index, prompt in zip(indices, forwards, strict=True):
            if prompt.id in seen:
                raise ContractError("ids", f"prompts {seen[prompt.id]} and {index} share the id {prompt.id!r}")
            seen[prompt.id] = index
    return forwards


def _check_ids(prompts: Sequence[Prompt]) -> None:
    texts: dict[str, str] = {}
    for prompt in prompts:
        if texts.setdefault(prompt.id, prompt.text) != prompt.text:
            raise ContractError("ids", f"{prompt.id!r} names two texts: {texts[prompt.id]!r} and {prompt.text!r}")


def _check_encoding(prompt: Prompt, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(prompt.text)
    if not ids or not all(0 <= i < tokenizer.vocab_size for i in ids):
        raise ContractError(
            "encodes",
            f"prompt {prompt.id!r} ({prompt.text[:60]!a}) must give token ids in 0..{tokenizer.vocab_size - 1}",
        )


def _check_answers(task: Any, prompt: Prompt, response: str, tokenizer: Tokenizer) -> None:
    """What the task says to one finished response: score, reply, mask."""
    if not _can_say(tokenizer, response):
        return
    made = make_episode(prompt.text, response, tokenizer)
    episode = Episode(prompt, made.prompt_ids, made.response, made.response_ids, "stop", made.actions, made.logprobs)
    if hasattr(task, "score"):
        first, second = (_said("score", task.score, episode) for _ in range(2))
        if not isinstance(first, (int, float, np.number)) or not np.isfinite(first):
            raise _broken("score", "a finite float", repr(first), episode)
        if first != second:
            raise _broken("score", "the same score when asked twice", f"{first} and {second}", episode)
    if hasattr(task, "reply"):
        answer = _said("reply", task.reply, episode)
        if answer is not None and not isinstance(answer, str):
            raise _broken("reply", "a string, or None at the end of the conversation", repr(answer), episode)
    if hasattr(task, "action_mask"):
        mask = np.asarray(_said("action_mask", lambda made: task.action_mask(prompt, made.response_ids[:-1]), episode))
        if mask.dtype != np.bool_ or mask.shape != (tokenizer.vocab_size,) or not mask.any():
            expected = f"bool[{tokenizer.vocab_size}] that allows a token"
            raise _broken("action_mask", expected, f"{mask.dtype} of shape {mask.shape}", episode)


def _said(rule: str, call: Callable[[Episode], Any], episode: Episode) -> Any:
    try:
        return call(episode)
    except Exception as error:
        raise _broken(rule, "an answer to every text", f"{type(error).__name__}: {error}", episode) from error
