"""Given answers as what an agent learns from, in the place of an environment: the completions of a task's prompts.

A prompt has one if its `meta["completion"]` is a text: the column `completion` of a file, or the assistant's message at
the end of a conversation. In an experiment file nothing but `[agent] name = "sft"` is needed beside such a task.

An answer in a conversation is learned as the model will be asked for it: its prompt is what the model's own chat
template makes of the messages before it. Of the turns of one conversation, those whose prompt begins with everything
before (the turn before it and its answer, token by token) are one text with several marked spans; where a template
writes earlier turns differently (without their thoughts, say), each turn is a text of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlhf_env.envs.file_task import completion_columns
from rlhf_env.envs.over_long import FittedTask, OverLong, OverLongCount, cut_prompt, layout_of
from rlhf_env.envs.tasks import prompt_at
from rlhf_env.envs.tokenizers import FileTokenizer, as_asked, end_ids, prompt_ids, said_in, template_options
from rlhf_env.envs.transformers_tokenizer import render_chat
from rlhf_env.errors import DataError
from rlhf_env.learning.agent import Demonstrated
from rlhf_env.learning.rollout import Rollout, demonstrations
from rlhf_env.learning.sources import DataSource, PackedSource
from rlhf_env.types import Episode, Prompt, Task, Tokenizer, TokenScorer

_SHOWN = 20  # problems in one report
_LOOKED_AT = 20  # answers, to see what a chat template makes of them


@dataclass(frozen=True)
class GivenAnswers:
    """The answers of a task, one text for each, and how many of them were too long."""

    episodes: Sequence[Episode]
    conversation: Sequence[int]
    """Which prompt of the task each belongs to, in order."""
    count: OverLongCount


def demonstrations_of(
    task: Task,
    tokenizer: Tokenizer,
    *,
    context: int | None = None,
    wanted: Demonstrated | None = None,
    over_long: OverLong = "refuse",
) -> GivenAnswers:
    """Every prompt of the task with its completion, closed by its end token, as if the agent had written it.

    With `wanted.turns` "every", the assistant's earlier messages as well. `over_long`: of more than `context` tokens,
    the most that the model reads. A prompt that is cut keeps at least half of them; an answer for which that is no room
    loses its end.

    Raises DataError for a task without end or without a single completion; and, all of them named, for prompts without
    a completion and for texts that are too long or cannot be cut.
    """
    name = type(task.task if isinstance(task, FittedTask) else task).__name__
    if task.size is None:
        raise DataError(f"the task {name} has prompts without end and no answers: sft needs given answers")
    most = None if context is None else context + 1  # the last token is never read
    found: list[Episode] = []
    conversation: list[int] = []
    problems: list[str] = []
    answers = left_out = cut = missing = unread = 0
    for index in range(task.size):
        prompt = prompt_at(task, index, {})
        try:
            turns = list(answered_turns(prompt, tokenizer, wanted or Demonstrated()))
        except DataError as error:
            problems += error.problems
            continue
        if not turns:
            missing += prompt.meta.get("completion") is None
            unread += "messages" in prompt.meta
            problems.append(
                f"{prompt.id}: no completion to learn: a column 'completion', or a conversation that ends with the "
                "assistant's message"
            )
        if prompt.meta.get("label") in (False, "false", "False"):  # as a CSV file has it, too
            problems.append(
                f"{prompt.id}: its label is false, and sft imitates every completion: leave it out, or learn from "
                "labels with kto (`preferences` = the file)"
            )
            continue
        for asked, completion in turns:
            answers += 1
            try:
                episode = demonstration(asked, completion, tokenizer)
            except DataError as error:
                problems += error.problems
                continue
            if most is not None and len(episode.ids) > most:
                if over_long == "refuse":
                    problems.append(
                        f"{asked.id}: {len(episode.ids)} tokens, the model reads {context}: shorten it, leave it out, "
                        "or set over_long in [environment]"
                    )
                    continue
                shorter = None if over_long == "leave out" else _cut(episode, completion, tokenizer, most, over_long)
                if shorter is None and over_long != "leave out":
                    problems.append(f"{asked.id}: {len(episode.ids)} tokens, and it cannot be cut: leave it out")
                if shorter is None:
                    left_out += 1
                    continue
                episode, cut = shorter, cut + 1
            found.append(episode)
            conversation.append(index)
    if missing == task.size:
        raise DataError(
            f"the task {name}: no completion to learn in any of its {missing:,} prompts: sft needs given answers "
            "(a file with a column 'completion', or conversations that end with the assistant's message)"
            + (": it has the columns 'prompt' and 'messages', of which 'prompt' is read: leave that out" * bool(unread))
        )
    if problems:
        more = len(problems) - _SHOWN
        raise DataError(*problems[:_SHOWN], *([f"... and {more:,} more such prompts"] if more > 0 else []))
    if not found:
        raise DataError(f"over_long = 'leave out' leaves no answer: each of the {answers:,} is too long for the model")
    return GivenAnswers(found, conversation, OverLongCount(of=answers, left_out=left_out, cut=cut))


def answered_turns(prompt: Prompt, tokenizer: Tokenizer, wanted: Demonstrated) -> Iterator[tuple[Prompt, str]]:
    """(what is asked, what is answered) for each answer that is learned; those before the last one only if `wanted`.

    Raises DataError where the model's chat template refuses the conversation, and where earlier answers are wanted and
    cannot be asked as the model would be asked for them.
    """
    prompt = as_asked(prompt, tokenizer)
    if wanted.turns == "every":
        earlier = [place for place, message in enumerate(prompt.messages) if message["role"] == "assistant"]
        layout = layout_of(prompt, tokenizer) if earlier else None
        if earlier and layout is None:
            raise DataError(
                f"{prompt.id}: its text is not what the model's own chat template makes of its messages, so the "
                "earlier turns are not known: turns = 'last', or chat_template in [task] as the model"
            )
        for number, place in enumerate(earlier, start=1):
            before = prompt.messages[:place]
            asks = any(message["role"] == "user" and said_in(message).strip() for message in before)
            asked = layout(before) if layout is not None and asks else None  # a greeting answers nothing
            if asked is not None:
                columns = {name: it for name, it in asked.meta.items() if name != "completion_message"}
                columns |= completion_columns(prompt.messages[place])
                yield replace(asked, id=f"{prompt.id}, turn {number}", meta=columns), str(columns["completion"])
    completion = prompt.meta.get("completion")
    if isinstance(completion, str):
        yield prompt, completion


def demonstration(prompt: Prompt, completion: str, tokenizer: Tokenizer) -> Episode:
    """A given answer as a finished text: the prompt's ids, then the answer's and the token that ends it."""
    answer = answer_ids(prompt, completion, tokenizer)
    return Episode(
        prompt=prompt,
        prompt_ids=np.array(prompt_ids(tokenizer, prompt), np.int64),
        response=completion,
        response_ids=np.array(answer, np.int64),
        finish_reason="stop",
        actions=np.ones(len(answer), np.bool_),
    )


def answer_ids(prompt: Prompt, completion: str, tokenizer: Tokenizer) -> list[int]:
    """What the model is to write: in a conversation that its template wrote, what the template writes for the answer,
    up to the token that ends it; otherwise the completion's own tokens and the end token."""
    written = _as_the_template_writes(prompt, completion, tokenizer)
    if not written and (prompt.meta.get("completion_message") or {}).get("tool_calls"):
        raise DataError(f"{prompt.id}: the answer calls tools, and the model's chat template does not write such calls")
    return written or [*tokenizer.encode(completion), tokenizer.end_id]


def _as_the_template_writes(prompt: Prompt, completion: str, tokenizer: Tokenizer) -> list[int]:
    """Empty where the template wrote no prompt, does not go on from it, or writes no end token."""
    if not _is_templated(prompt) or not isinstance(tokenizer, FileTokenizer) or not tokenizer.own.chat_template:
        return []
    answer = prompt.meta.get("completion_message") or {"role": "assistant", "content": completion}
    try:
        whole = render_chat(tokenizer.own, [*prompt.messages, answer], template_options(prompt.meta), asks=False)
    except Exception:  # templates refuse conversations with exceptions of their own
        return []
    if not whole.startswith(prompt.text):
        return []
    ids, ends = tokenizer.encode(whole[len(prompt.text) :]), end_ids(tokenizer)
    closing = next((place for place, token in enumerate(ids) if token in ends), None)
    return [] if closing is None else ids[: closing + 1]


def _is_templated(prompt: Prompt) -> bool:
    return prompt.rendered and bool(prompt.messages)


def note_on_template(answers: GivenAnswers, tokenizer: Tokenizer) -> str:
    """What is to be said where a chat template asks for an answer in one way and writes it in another; else ""."""
    asked = [it for it in answers.episodes if _is_templated(it.prompt)]
    plain = [it for it in asked[:_LOOKED_AT] if not _as_the_template_writes(it.prompt, it.response, tokenizer)]
    if not plain:
        return ""
    return (
        "answers are learned as their text and the end token: the model's chat template does not write an answer where "
        f"it asks for one (after {plain[0].prompt.text[-20:]!r}), or does not end it with an end token of the model"
    )


def _cut(episode: Episode, completion: str, tokenizer: Tokenizer, most: int, how: OverLong) -> Episode | None:
    """With at most `most` tokens; None where the prompt cannot be cut."""
    room = max(most - len(episode.response_ids), most // 2)
    shorter = cut_prompt(episode.prompt, lambda it: len(prompt_ids(tokenizer, it)) <= room, how, tokenizer)
    if shorter is None:
        return None
    again = demonstration(shorter, completion, tokenizer)
    left = most - len(again.prompt_ids)
    if len(again.response_ids) <= left:
        return again
    ids = again.response_ids[:left]
    text = tokenizer.decode(ids.tolist())
    return replace(again, response=text, response_ids=ids, actions=again.actions[:left], finish_reason="length")


def joined(answers: GivenAnswers, *, context: int | None = None) -> list[Episode]:
    """The texts of `answers`, those of one conversation put together where the next begins with the one before."""
    texts: list[Episode] = []
    latest = -1
    for episode, conversation in zip(answers.episodes, answers.conversation, strict=True):
        before = texts[-1] if conversation == latest else None
        length = 0 if before is None else len(before.ids)
        fits = context is None or len(episode.ids) <= context + 1
        if before is None or not fits or not np.array_equal(before.ids, episode.prompt_ids[:length]):
            texts.append(episode)
        else:
            between = len(episode.prompt_ids) - length  # what others say, and what the template writes around it
            start = len(before.prompt_ids)
            texts[-1] = replace(
                episode,
                prompt=before.prompt,
                prompt_ids=before.prompt_ids,
                response_ids=episode.ids[start:],
                actions=np.concatenate([before.actions, np.zeros(between, np.bool_), episode.actions]),
                turns=(*(before.turns or (before.response,)), episode.response),
            )
        latest = conversation
    return texts


def with_every_token(episode: Episode) -> Episode:
    """The same text, of which everything but the first token is to be learned, the prompt included."""
    ids = episode.ids
    return replace(episode, prompt_ids=ids[:1], response_ids=ids[1:], actions=np.ones(len(ids) - 1, np.bool_))


def demonstration_source(
    answers: GivenAnswers,
    tokenizer: Tokenizer,
    *,
    rows: int,
    seed: int,
    wanted: Demonstrated | None = None,
    context: int | None = None,
) -> DataSource | PackedSource:
    """Rollouts of `rows` texts each, or of as many as `wanted.pack_tokens` hold, in shuffled epochs."""
    wanted = wanted or Demonstrated()
    texts = joined(answers, context=context)
    if wanted.loss_on == "all":
        texts = [with_every_token(episode) for episode in texts]

    def rollout(places: Sequence[int]) -> Rollout:
        return demonstrations([texts[i] for i in places], pad_id=tokenizer.pad_id)

    if wanted.pack_tokens:
        return PackedSource([len(text.ids) for text in texts], wanted.pack_tokens, rollout, seed=seed)
    return DataSource(len(texts), rows, rollout, seed=seed)


def mean_negative_log_likelihood(scorer: TokenScorer, episodes: Sequence[Episode]) -> tuple[float, int]:
    """(nats per token, tokens): the mean of -log p over all tokens of the answers, their end tokens included."""
    logprobs = np.concatenate(scorer.response_logprobs(episodes))
    return -float(logprobs.mean()), len(logprobs)
