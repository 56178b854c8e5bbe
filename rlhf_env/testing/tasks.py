"""`check_task`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlhf_env.envs.tasks import held_out
from rlhf_env.envs.tokenizers import ByteTokenizer, prompt_ids
from rlhf_env.errors import ContractError
from rlhf_env.testing.episodes import ODD_RESPONSES, can_say, make_episode
from rlhf_env.testing.observing import broken, computing_at_most, global_randomness_untouched, raised, wrongly_called
from rlhf_env.testing.remedies import OF_TASKS, mended
from rlhf_env.types import Episode, MasksActions, Prompt, ReadsOptions, Replies, ScoresItself, Task, Tokenizer

_LOOKED_AT = 200  # prompts of a task that are compared; unbounded and large tasks are sampled
_TALKED_TO = 3  # prompts with which a conversation is played to its end
_SAYINGS = ("", "a", "Fine, thank you.")  # what is said there, again and again
_LONGEST_TALK = 100  # turns
_WRITTEN = {
    "score": "`score(self, episode)`: the prompt is `episode.prompt`, the text `episode.response`",
    "reply": "`reply(self, episode)`: what was said is `episode.turns`",
    "action_mask": "`action_mask(self, prompt, response_ids)`",
}
_PATIENCE = 20.0  # seconds of processor time for one answer


def check_task(task: Task, tokenizer: Tokenizer | None = None) -> None:
    """Hold a task to its protocol; raise ContractError at the first rule it breaks.

    The rules: "size", "prompt" (a Prompt with an id and a text), "pure" (a function of index and options alone),
    "ids" (two prompts never share an id, an id never has two texts), "encodes" (at least one token, ids in the
    vocabulary), "held_out" (evaluation shares no id with training, unless it is the same task), "score" (finite on
    empty and odd responses), "reply" (a string, messages or None, and None in the end, whatever was said),
    "action_mask", "option_names", "global random state".
    """
    with mended(OF_TASKS):
        _check(task, ByteTokenizer() if tokenizer is None else tokenizer)


def _check(task: Task, tokenizer: Tokenizer) -> None:
    for name in ("size", "prompt"):
        if not hasattr(task, name):
            raise ContractError(name, f"{type(task).__name__} has no `{name}`")
    size = task.size
    if size is not None and (not isinstance(size, (int, np.integer)) or isinstance(size, bool) or size < 1):
        raise ContractError("size", f"expected the number of prompts (at least 1) or None, got {size!r}")
    names = task.option_names if isinstance(task, ReadsOptions) else ()
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ContractError("option_names", f"expected a tuple of strings, got {names!r}")
    with global_randomness_untouched("the task"):
        prompts = _prompts_of(task)
        _check_ids(prompts)
        for prompt in prompts[:20]:
            _check_encoding(prompt, tokenizer)
            for response in ODD_RESPONSES:
                _check_answers(task, prompt, response, tokenizer)
        if isinstance(task, Replies):
            for prompt in prompts[:_TALKED_TO]:
                for words in _SAYINGS:
                    _check_end(task, prompt, words, tokenizer)
        evaluation = held_out(task)
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
    options: dict[str, object] = {}
    forwards = [_asked(task, index, options) for index in indices]
    backwards = [_asked(task, index, options) for index in reversed(indices)]
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


def _asked(task: Task, index: int, options: dict[str, object]) -> Prompt:
    try:
        return task.prompt(index, options)
    except (Exception, SystemExit) as error:  # whatever a plugin raises, the report says for which index
        remedy = "write it as `prompt(self, index, options)`" if wrongly_called(error) else ""
        raise ContractError("prompt", f"prompt({index}, {{}}) raised {raised(error)}", remedy) from error


def _check_ids(prompts: Sequence[Prompt]) -> None:
    texts: dict[str, str] = {}
    for prompt in prompts:
        if texts.setdefault(prompt.id, prompt.text) != prompt.text:
            raise ContractError("ids", f"{prompt.id!r} names two texts: {texts[prompt.id]!r} and {prompt.text!r}")


def _check_encoding(prompt: Prompt, tokenizer: Tokenizer) -> None:
    ids = prompt_ids(tokenizer, prompt)
    if not ids or not all(0 <= i < tokenizer.vocab_size for i in ids):
        raise ContractError(
            "encodes",
            f"prompt {prompt.id!r} ({prompt.text[:60]!a}) must give token ids in 0..{tokenizer.vocab_size - 1}",
        )


def _check_answers(task: Task, prompt: Prompt, response: str, tokenizer: Tokenizer) -> None:
    """What the task says to one finished response: score, reply, mask."""
    if not can_say(tokenizer, response):
        return
    made = make_episode(prompt.text, response, tokenizer)
    # In a conversation `turns` is never empty: the first of them is what has just been said.
    turns = (made.response,) if isinstance(task, Replies) else ()
    episode = replace(made, prompt=prompt, finish_reason="stop", turns=turns)
    if isinstance(task, ScoresItself):
        first, second = (_said("score", task.score, episode) for _ in range(2))
        if first is not None and (not isinstance(first, (int, float, np.number)) or not np.isfinite(first)):
            raise broken("score", "a finite float, or None", repr(first), episode)
        if first != second:
            raise broken("score", "the same score when asked twice", f"{first} and {second}", episode)
    if isinstance(task, Replies):
        answer = _said("reply", task.reply, episode)
        _require_reply(answer, episode)
    if isinstance(task, MasksActions):
        allowed = task.action_mask
        mask = np.asarray(_said("action_mask", lambda made: allowed(prompt, made.response_ids[:-1]), episode))
        if mask.dtype != np.bool_ or mask.shape != (tokenizer.vocab_size,) or not mask.any():
            expected = f"bool[{tokenizer.vocab_size}] that allows a token"
            raise broken("action_mask", expected, f"{mask.dtype} of shape {mask.shape}", episode)


def _require_reply(answer: object, episode: Episode) -> None:
    messages = isinstance(answer, Sequence) and all(isinstance(it, Mapping) and "role" in it for it in answer)
    if answer is not None and not isinstance(answer, str) and not messages:
        raise broken("reply", "a string, messages, or None at the end of the conversation", repr(answer), episode)


def _check_end(task: Replies, prompt: Prompt, words: str, tokenizer: Tokenizer) -> None:
    """A conversation in which the agent says the same again and again comes to an end."""
    if not can_say(tokenizer, words):
        return
    for turns in range(1, _LONGEST_TALK + 1):
        made = make_episode(prompt.text, words * turns, tokenizer)
        said = replace(made, prompt=prompt, turns=(words,) * turns)
        answer = _said("reply", task.reply, said)
        _require_reply(answer, said)
        if answer is None:
            return
    raise ContractError(
        "reply",
        f"the task still replies after {_LONGEST_TALK} turns of {words!r} to prompt {prompt.id!r}, with {answer!r:.60}",
        "return None where the conversation ends, whatever the agent says: `if len(episode.turns) >= self.turns: "
        "return None`. The limit of tokens alone would end it, in the middle of a turn",
    )


def _said(rule: str, call: Callable[[Episode], object], episode: Episode) -> Any:
    try:
        with computing_at_most(_PATIENCE, rule, f"{rule}(), asked about {episode.response[:60]!a},"):
            return call(episode)
    except ContractError:
        raise
    except (Exception, SystemExit) as error:
        made = broken(rule, "an answer to every text", raised(error), episode)
        if wrongly_called(error):
            made.add_remedy(f"write it as {_WRITTEN[rule]}")
        raise made from error
