"""Prompts of more tokens than their reader takes: refused, left out, or cut.

A prompt is cut in its text and not in its ids. What remains is encoded like any other prompt: its ids are the
tokenizer's own, a begin token and the tokens of a chat template stay, and rewards and people read what the policy read.

Of a conversation, "cut left" leaves out the oldest exchanges first (a user's message with the answers to it; system
messages and the last exchange stay). Where that is not enough, and for the other two, the longest messages are cut to
one common length, so that short messages stay whole and the template's own tokens are never touched. Where these alone
are too many, the oldest exchanges go for the other two as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rlhf_env.envs.tasks import held_out, option_names, prompt_at
from rlhf_env.envs.tokenizers import (
    FileTokenizer,
    as_asked,
    conversation_of,
    plain_conversation,
    prompt_ids,
    said_in,
    template_options,
)
from rlhf_env.envs.transformers_tokenizer import render_chat
from rlhf_env.errors import DataError
from rlhf_env.types import (
    Bool,
    Episode,
    FollowsTraining,
    HoldsOut,
    Int,
    JsonView,
    JudgesForm,
    MasksActions,
    Prompt,
    Replies,
    ResetOptions,
    ScoresItself,
    Task,
    TaskReply,
    Tokenizer,
)

OverLong = Literal["refuse", "leave out", "cut left", "cut right", "cut middle"]
"""What happens to a text that is too long. "cut left" takes away its beginning, "cut right" its end."""

_TRIES = 1000  # of indices, for a prompt of an unbounded task that fits
_SHOWN = 20  # problems in one report


@dataclass(frozen=True, kw_only=True)
class OverLongCount:
    """How many of `of` texts were too long, and what became of them. Falsy where none was."""

    of: int
    left_out: int = 0
    cut: int = 0

    def __bool__(self) -> bool:
        return bool(self.left_out or self.cut)

    def __add__(self, other: OverLongCount) -> OverLongCount:
        return OverLongCount(of=self.of + other.of, left_out=self.left_out + other.left_out, cut=self.cut + other.cut)

    def said_of(self, what: str, most: int | None = None) -> str:
        """Like "3 of 200 training prompts have more than 32 tokens: 1 left out, 2 cut"."""
        became = [f"{count:,} {word}" for word, count in (("left out", self.left_out), ("cut", self.cut)) if count]
        count = self.left_out + self.cut
        has, is_ = ("has", "is") if count == 1 else ("have", "are")
        why = f"{is_} too long" if most is None else f"{has} more than {most:,} tokens"
        return f"{count:,} of {self.of:,} {what} {why}: {', '.join(became)}"


def cut_text(text: str, characters: int, how: OverLong) -> str:
    """At most `characters` of the text: its end ("cut left"), its beginning ("cut right"), or both ("cut middle")."""
    if len(text) <= characters:
        return text
    if how == "cut left":
        return text[len(text) - characters :]
    if how == "cut right":
        return text[:characters]
    behind = characters // 2
    return text[: characters - behind] + text[len(text) - behind :]


def most_that_fit(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` for which `fits`, by bisection; 0 if not even 1 does."""
    # From below, by doubling: a text that is a hundred times too long is never encoded as a whole.
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def cut_prompt(
    prompt: Prompt, fits: Callable[[Prompt], bool], how: OverLong, tokenizer: Tokenizer | None = None
) -> Prompt | None:
    """The prompt with as much of its text as `fits`; `uncut` is then the whole one. `tokenizer` has the chat template.

    None where that cannot be done: a chat template's own tokens are too many, or another template than the tokenizer's
    wrote the prompt, so that nobody here can write a part of it.
    """
    if fits(prompt):
        return prompt
    whole = prompt if prompt.uncut is None else prompt.uncut
    layout = layout_of(prompt, tokenizer)
    if layout is None:
        if prompt.rendered or prompt.messages:
            return None
        kept = most_that_fit(lambda n: fits(replace(prompt, text=cut_text(prompt.text, n, how))), len(prompt.text))
        return replace(prompt, text=cut_text(prompt.text, kept, how), uncut=whole) if kept else None
    messages: Sequence[JsonView] = prompt.messages or conversation_of(prompt)
    # Some templates refuse a conversation that begins at another place.
    shorter = [it for it in (messages, *_without_oldest(messages)) if layout(it) is not None]
    if how == "cut left":
        for rest in shorter:
            if (written := layout(rest)) is not None and fits(written):
                return replace(written, uncut=whole)
        shorter = shorter[-1:]
    for rest in shorter:  # for the other two, exchanges go only where the template alone is too long
        written = _longest_messages_cut(rest, layout, fits, how)
        if written is not None:
            return replace(written, uncut=whole)
    return None


def _longest_messages_cut(
    messages: Sequence[JsonView],
    layout: Callable[[Sequence[JsonView]], Prompt | None],
    fits: Callable[[Prompt], bool],
    how: OverLong,
) -> Prompt | None:
    """With every message cut to the same number of characters, as large as fits; None where not even 1 does."""

    def written_to(characters: int) -> Prompt | None:
        return layout([_with_text_cut(it, characters, how) for it in messages])

    def fits_at(characters: int) -> bool:
        written = written_to(characters)
        return written is not None and fits(written)

    kept = most_that_fit(fits_at, max(len(said_in(message)) for message in messages))
    return written_to(kept) if kept else None


def _with_text_cut(message: JsonView, characters: int, how: OverLong) -> JsonView:
    """With a shorter text; calls of functions stay whole."""
    content = message.get("content")
    if not content:
        return message
    text = cut_text(said_in({"content": content}), characters, how)
    return {**message, "content": text if isinstance(content, str) else [{"type": "text", "text": text}]}


def layout_of(prompt: Prompt, tokenizer: Tokenizer | None) -> Callable[[Sequence[JsonView]], Prompt | None] | None:
    """How the prompt's text was written from its messages: a function that writes others in the same way, with the
    prompt's id and columns; it gives None for messages that the chat template refuses.

    None for a prompt that was not written from messages, or by a template that is not the tokenizer's.
    """
    messages = prompt.messages or conversation_of(prompt)
    if not messages:
        return None
    if not prompt.rendered:
        if plain_conversation(messages) != prompt.text:
            return None

        def in_plain(others: Sequence[JsonView]) -> Prompt | None:
            text = plain_conversation(others)
            if prompt.messages:
                written = replace(prompt, text=text, messages=tuple(others))
            else:  # of a preference store or file
                written = replace(prompt, text=text, meta={**prompt.meta, "messages": list(others)})
            return written if tokenizer is None or _is_taken(written, tokenizer) else None

        return in_plain
    if not isinstance(tokenizer, FileTokenizer) or not tokenizer.own.chat_template:
        return None
    own = tokenizer.own

    def by_template(messages: Sequence[JsonView]) -> Prompt | None:
        try:
            return replace(
                prompt, text=render_chat(own, messages, template_options(prompt.meta)), messages=tuple(messages)
            )
        except Exception:  # templates refuse conversations with exceptions of their own
            return None

    again = by_template(prompt.messages)
    return by_template if again is not None and again.text == prompt.text else None


def _is_taken(prompt: Prompt, tokenizer: Tokenizer) -> bool:
    try:
        as_asked(prompt, tokenizer)
    except DataError:
        return False
    return True


def _without_oldest(messages: Sequence[JsonView]) -> Iterator[list[JsonView]]:
    """The conversation without its oldest exchange, then without the two oldest, ... down to the last one."""
    system = [message for message in messages if message["role"] in ("system", "developer")]
    spoken = [message for message in messages if message["role"] not in ("system", "developer")]
    begins = [place for place, message in enumerate(spoken) if message["role"] == "user"]
    for place in begins:
        if place > 0:
            yield [*system, *spoken[place:]]


class FittedTask:
    """Another task, its prompts cut to at most `most` tokens, or without those that have more (`how`).

    Made for a task with an end, it reads all prompts at once: `size` and `count` are of what remains. Prompts of an
    unbounded task, and those that reset options change, are looked at when they are asked for; one that is to be left
    out is then replaced by another of the task's.

    Raises DataError that names prompts which cannot be cut, and where no prompt is left.
    """

    score: Callable[[Episode], float | None]
    reply: Callable[[Episode], TaskReply]
    well_formed: Callable[[Episode], bool]
    action_mask: Callable[[Prompt, Int], Bool]
    held_out: Callable[[], Task]

    def __init__(self, task: Task, tokenizer: Tokenizer, most: int, how: OverLong) -> None:
        self.task, self.most, self.how = task, most, how
        self._tokenizer = tokenizer
        self.option_names = option_names(task)
        # A score, a reply, a form, an action mask: what the task has, and nothing that it has not.
        if isinstance(task, ScoresItself):
            self.score = task.score
        if isinstance(task, Replies):
            self.reply = task.reply
        if isinstance(task, JudgesForm):
            self.well_formed = task.well_formed
        if isinstance(task, MasksActions):
            self.action_mask = task.action_mask
        if isinstance(task, FollowsTraining):
            self.follow, self.take_logged = task.follow, task.take_logged
        if isinstance(task, HoldsOut):
            self.held_out = self._held_out
        self._aside: FittedTask | None = None
        self._places: list[int] = []
        self._cut: dict[int, Prompt] = {}
        self.count = OverLongCount(of=0)
        if task.size is not None:
            self._look(task.size)

    def _look(self, size: int) -> None:
        problems: list[str] = []
        for place in range(size):
            prompt = prompt_at(self.task, place, {})
            try:
                fitting = self._fitting(prompt)
            except DataError as error:  # the chat template refuses it
                problems += error.problems
                continue
            if fitting is not None:
                self._places.append(place)
                if fitting is not prompt:
                    self._cut[place] = fitting
            elif self.how != "leave out":
                problems.append(self._cannot_be_cut(prompt))
        if problems:
            more = len(problems) - _SHOWN
            raise DataError(*problems[:_SHOWN], *([f"... and {more:,} more such prompts"] if more > 0 else []))
        if not self._places:
            raise DataError(
                f"over_long = 'leave out' leaves no prompt: each of the {size:,} has more than {self.most:,} tokens"
            )
        self.count = OverLongCount(of=size, left_out=size - len(self._places), cut=len(self._cut))

    def _fitting(self, prompt: Prompt) -> Prompt | None:
        if self.how == "leave out":
            return prompt if self._fits(prompt) else None
        return cut_prompt(prompt, self._fits, self.how, self._tokenizer)

    def _fits(self, prompt: Prompt) -> bool:
        return len(prompt_ids(self._tokenizer, prompt)) <= self.most

    def _cannot_be_cut(self, prompt: Prompt) -> str:
        tokens = len(prompt_ids(self._tokenizer, prompt))
        why = "the chat template alone has more"
        if prompt.rendered and layout_of(prompt, self._tokenizer) is None:
            why = "its text is not what the model's own chat template makes of its messages"
        return (
            f"prompt {prompt.id[:60]!r} has {tokens} tokens and cannot be cut to {self.most}: {why} "
            f"(over_long = 'leave out' leaves it out)"
        )

    @property
    def size(self) -> int | None:
        return None if self.task.size is None else len(self._places)

    def prompt(self, index: int, options: ResetOptions, /) -> Prompt:
        if self._places and not any(name in options for name in self.option_names):
            place = self._places[index % len(self._places)]
            return self._cut[place] if place in self._cut else prompt_at(self.task, place, options)
        stream = np.random.default_rng(index)
        asked = index if not self._places else self._places[index % len(self._places)]
        prompt = prompt_at(self.task, asked, options)
        for _ in range(_TRIES):
            fitting = self._fitting(prompt)
            if fitting is not None:
                return fitting
            if self.how != "leave out":
                raise DataError(self._cannot_be_cut(prompt))
            drawn = int(stream.integers(2**31))
            prompt = prompt_at(self.task, self._places[drawn % len(self._places)] if self._places else drawn, options)
        raise DataError(
            f"over_long = 'leave out' leaves no prompt: {_TRIES:,} of the task's have more than {self.most:,} tokens"
        )

    def _held_out(self) -> Task:
        """The held-out prompts, treated alike; this task itself where it holds none out."""
        aside = held_out(self.task)
        if aside is self.task:
            return self
        if self._aside is None:  # all of its prompts are read
            self._aside = FittedTask(aside, self._tokenizer, self.most, self.how)
        return self._aside


def fitted_task(task: Task, tokenizer: Tokenizer, most: int, how: OverLong) -> tuple[Task, tuple[str, ...]]:
    """The task with prompts of at most `most` tokens, and a line each about those of training and of evaluation that
    had more.

    The task itself where they are refused (`TextVectorEnv.prompt_ids` does), or where there is no room for any.
    """
    if how == "refuse" or most < 1:
        return task, ()
    fitted = FittedTask(task, tokenizer, most, how)
    aside = held_out(fitted)
    counts = {"prompts" if aside is fitted else "training prompts": fitted.count}
    if isinstance(aside, FittedTask) and aside is not fitted:
        counts["held-out prompts"] = aside.count
    return fitted, tuple(count.said_of(what, most) for what, count in counts.items() if count)
