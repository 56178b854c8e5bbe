"""Texts that are too long for who is to read them: named by the lines on which they stand, left out, or cut.

The readers of this wing give judgements and not lines, and only a text that is refused has to be found again. So the
file is searched then, whatever its format is.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

from rlhf_env.envs.over_long import OverLong, OverLongCount, cut_prompt, most_that_fit
from rlhf_env.envs.tokenizers import as_asked, conversation_of, end_ids, has_template, prompt_ids
from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange.gathering import MOST_PROBLEMS
from rlhf_env.feedback.judgements import Judgement, Preference, Response, prompt_digest
from rlhf_env.feedback.kinds import kind_of
from rlhf_env.plain_data import ending_of, read_file, read_json
from rlhf_env.types import Prompt, Tokenizer

_SHOWN = 40  # characters of a text in a message
AnyJudged = TypeVar("AnyJudged", bound=Preference | Judgement)
Lengths = Callable[[Sequence[tuple[Prompt, Response]]], Sequence[int]]
"""How many tokens prompt and response have together, as somebody reads them."""


def fit_lengths(
    judgements: Sequence[AnyJudged],
    most: int,
    how: OverLong,
    *,
    lengths: Lengths,
    reader: str,
    tokenizer: Tokenizer | None = None,
    path: str | Path | None = None,
) -> tuple[list[AnyJudged], OverLongCount]:
    """Judgements (or pairs) whose texts have at most `most` tokens as `reader` counts them, and how many had more.

    "refuse" is `require_fit`. "leave out" leaves out a judgement with a text that is too long. The others cut the
    prompt, until it has half of `most`; an answer for which even that is no room loses its end, and is then like one
    that the length limit cut: no end token follows. All judgements of a prompt get the same cut prompt, so the sides of
    a pair do, and so do ratings that become pairs. Responses that say the same once they are cut cannot be compared:
    such a judgement is left out.

    `tokenizer` keeps the token ids of responses that were written with it, and has the chat template; without one, cut
    responses are text alone. Split by prompt before, where the two parts must stay those of the whole texts.
    """
    texts = texts_of(judgements)
    if how == "refuse":
        counts = lengths(texts)
        measured = ((prompt, side, tokens) for (prompt, side), tokens in zip(texts, counts, strict=True))
        require_fit(measured, most, reader=reader, path=path)
        return list(judgements), OverLongCount(of=len(judgements))
    each = iter(lengths(texts))
    longest = [max(next(each) for _ in _responses(judged)) for judged in judgements]
    too_long = [count > most for count in longest]
    fitting: list[AnyJudged] = []
    cut = 0
    prompts: Mapping[str, Prompt] = {}
    if how != "leave out":
        prompts = _cut_prompts(judgements, longest, most, how, lengths, tokenizer, path)
    for judged, is_too_long in zip(judgements, too_long, strict=True):
        shorter = prompts.get(prompt_digest(judged.prompt))
        if not is_too_long and shorter is None:
            fitting.append(judged)
        elif how != "leave out":
            prompt = judged.prompt if shorter is None else shorter
            sides = [_cut_response(prompt, it, most, lengths, tokenizer) for it in _responses(judged)]
            try:
                fitting.append(_with_texts(judged, prompt, sides))
            except DataError:  # the responses say the same now
                continue
            cut += is_too_long
    if judgements and not fitting:
        raise DataError(
            f"{path or 'the judgements'}: over_long = {how!r} leaves nothing of {len(judgements):,} judgements: "
            f"{reader} reads {most} tokens"
        )
    return fitting, OverLongCount(of=len(judgements), left_out=len(judgements) - len(fitting), cut=cut)


def texts_of(judgements: Sequence[Preference | Judgement]) -> list[tuple[Prompt, Response]]:
    return [(judged.prompt, response) for judged in judgements for response in _responses(judged)]


def _responses(judged: Preference | Judgement) -> tuple[Response, ...]:
    return (judged.chosen, judged.rejected) if isinstance(judged, Preference) else judged.responses


def _with_texts(judged: AnyJudged, prompt: Prompt, responses: Sequence[Response]) -> AnyJudged:
    """The same judgement of other texts. Raises DataError where they are no longer different."""
    if isinstance(judged, Preference):
        chosen, rejected = responses
        return cast(AnyJudged, replace(judged, prompt=prompt, chosen=chosen, rejected=rejected))
    kind = kind_of(judged)
    return cast(AnyJudged, kind(prompt, responses, kind.answer_of(judged), **kind.circumstances_of(judged)))


def _cut_prompts(
    judgements: Sequence[Preference | Judgement],
    longest: Sequence[int],
    most: int,
    how: OverLong,
    lengths: Lengths,
    tokenizer: Tokenizer | None,
    path: str | Path | None,
) -> dict[str, Prompt]:
    """By its digest, each prompt that is cut. Raises DataError that names those which cannot be."""
    needed: dict[str, tuple[int, Preference | Judgement]] = {}
    for judged, tokens in zip(judgements, longest, strict=True):
        key = prompt_digest(judged.prompt)
        if tokens > max(most, needed[key][0] if key in needed else 0):
            needed[key] = tokens, judged
    found: dict[str, Prompt] = {}
    problems: list[str] = []
    for key, (tokens, judged) in needed.items():
        nothing = replace(_responses(judged)[0], text="", ids=None, prompt_ids=None, finish_reason="length")

        def alone(prompt: Prompt, nothing: Response = nothing) -> int:
            return lengths([(prompt, nothing)])[0]

        asked = alone(judged.prompt)
        room = max(most - (tokens - asked), most // 2)
        if asked <= room:
            continue
        shorter = cut_prompt(judged.prompt, lambda it, room=room: alone(it) <= room, how, tokenizer)  # type: ignore[misc]
        if shorter is None:
            named = f"{path}, " if path is not None else ""
            problems.append(
                f"{named}prompt {judged.prompt.text[:_SHOWN]!r} has {asked} tokens and cannot be cut to {room}: its "
                "chat template alone has more, or is another one than the model's (over_long = 'leave out' leaves it "
                "out)"
            )
        else:
            found[key] = shorter
    if problems:
        more = len(problems) - MOST_PROBLEMS
        raise DataError(*problems[:MOST_PROBLEMS], *([f"... and {more} more such prompts"] if more > 0 else []))
    return found


def _cut_response(
    prompt: Prompt, response: Response, most: int, lengths: Lengths, tokenizer: Tokenizer | None
) -> Response:
    """The response to a prompt that may have been cut; its end is cut off where both together are still too long."""
    ids = response.ids
    if ids is not None and tokenizer is not None and written_with(tokenizer, response):
        # Ids are never made again from text: the first of them are what the policy wrote first.
        asked = tuple(prompt_ids(tokenizer, prompt))
        if len(asked) + len(ids) <= most:
            return replace(response, prompt_ids=asked)
        ids = ids[: most - len(asked)]
        text = tokenizer.decode([token for token in ids if token not in end_ids(tokenizer)])
        return replace(response, text=text, ids=ids, prompt_ids=asked, finish_reason="length")
    response = replace(response, ids=None, prompt_ids=None)
    if lengths([(prompt, response)])[0] <= most:
        return response

    def beginning(characters: int) -> Response:
        return replace(response, text=response.text[:characters], finish_reason="length")

    kept = most_that_fit(lambda n: lengths([(prompt, beginning(n))])[0] <= most, len(response.text))
    return beginning(kept)


def written_with(tokenizer: Tokenizer, response: Response) -> bool:
    """Whether the response's token ids say in this vocabulary what its text says."""
    if response.ids is None or response.prompt_ids is None:
        return False
    ends = end_ids(tokenizer)
    tokens = [token for token in response.ids if token not in ends]
    known = all(token < tokenizer.vocab_size for token in (*response.prompt_ids, *response.ids))
    if known and response.finish_reason == "stop_string":  # the text is without the string, the ids are not
        return tokenizer.decode(tokens).startswith(response.text)
    return known and tokenizer.decode(tokens) == response.text


def require_templates_take(
    texts: Iterable[tuple[Prompt, Response]], tokenizer: Tokenizer | None, path: str | Path | None = None
) -> None:
    """Raise DataError that names every conversation that the model's own chat template refuses, with the line of
    `path` where it stands; up to 20. Responses that have their token ids are not read in a template again.
    """
    asked = {prompt_digest(prompt): (prompt, side) for prompt, side in texts if side.prompt_ids is None}
    refused: list[tuple[Prompt, Response, str]] = []
    for prompt, response in asked.values() if tokenizer is not None and has_template(tokenizer) else ():
        try:
            as_asked(prompt, tokenizer)  # type: ignore[arg-type]
        except DataError as error:
            refused.append((prompt, response, str(error).removeprefix(f"{prompt.id}: ")))
    if not refused:
        return
    lines = [] if path is None else list(_lines(Path(path)))
    named = [f"{_line_of(prompt, response, lines, path)}: {said}" for prompt, response, said in refused]
    more = len(named) - MOST_PROBLEMS
    raise DataError(*named[:MOST_PROBLEMS], *([f"... and {more} more conversations"] if more > 0 else []))


def _line_of(prompt: Prompt, response: Response, lines: list[tuple[str, frozenset[str]]], path: object) -> str:
    """The one line with all messages of a conversation and the answer; where there are several, the conversation."""
    messages = conversation_of(prompt)
    said = {str(message[key]) for message in messages for key in ("role", "content") if message.get(key) is not None}
    holding = [where for where, strings in lines if said <= strings and _answers(response.text, strings)]
    if len(holding) == 1:
        return holding[0]
    spoken = " / ".join(f"{message['role']}: {message.get('content')}" for message in messages)
    return f"{'' if path is None else f'{path}, '}conversation {spoken[: 2 * _SHOWN]!r}"


def require_fit(
    texts: Iterable[tuple[Prompt, Response, int]], most: int, *, reader: str, path: str | Path | None = None
) -> None:
    """Raise DataError that names every text of more than `most` tokens: (prompt, response, tokens of both together).

    `reader` is who reads no more. `path` is the file that the texts came from, whose lines are then named; up to 20.
    """
    too_long = [text for text in texts if text[2] > most]
    if not too_long:
        return
    lines = [] if path is None else list(_lines(Path(path)))
    problems = [
        f"{_where(prompt, response, lines, path)}: prompt and response have {tokens} tokens together, and {reader} "
        f"reads {most}: shorten {response.text[:_SHOWN]!r} or its prompt, leave the line out, or set over_long"
        for prompt, response, tokens in too_long
    ]
    one_a_line = {problem.partition(": ")[0]: problem for problem in reversed(problems)}
    found = list(reversed(one_a_line.values())) if path is not None else problems
    more = len(found) - MOST_PROBLEMS
    raise DataError(*found[:MOST_PROBLEMS], *([f"... and {more} more texts that are too long"] if more > 0 else []))


def _where(prompt: Prompt, response: Response, lines: list[tuple[str, frozenset[str]]], path: object) -> str:
    conversation = conversation_of(prompt)
    asked = str(conversation[-1]["content"]) if conversation else prompt.text
    answering = [(where, strings) for where, strings in lines if _answers(response.text, strings)]
    for where, strings in answering:
        if any(asked in it for it in strings):
            return where
    for where, strings in answering:  # a prompt that was made of several columns, which are most of it
        if 2 * sum(len(it) for it in strings if it in prompt.text) > len(prompt.text):
            return where
    named = f"prompt {prompt.text[:_SHOWN]!r}"
    return named if path is None else f"{path}, {named}"


def _answers(text: str, strings: frozenset[str]) -> bool:
    """Whether it is one of the strings, or how a transcript ends."""
    return text in strings or any(it.rstrip().endswith(text) for it in strings)


def _lines(path: Path) -> Iterator[tuple[str, frozenset[str]]]:
    """(where, every string that stands there) of a file of text; nothing of a store."""
    content = read_file(path)
    if content.startswith(b"SQLite format 3\0"):
        return
    text = content.decode("utf-8", errors="replace")
    if ending_of(path) in (".csv", ".tsv"):
        begins = 1
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if ending_of(path) == ".tsv" else ",")
        for row in reader:
            yield f"{path}:{begins}", frozenset(row)
            begins = reader.line_num + 1
        return
    try:
        whole = read_json(text)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, list):
        for number, record in enumerate(whole, start=1):
            yield f"{path}, record {number}", frozenset(_strings(record))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            yield f"{path}:{number}", frozenset(_strings(json.loads(line)))
        except (ValueError, RecursionError):
            continue


def _strings(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from _strings(value)
    elif isinstance(content, list):
        for value in content:
            yield from _strings(value)
