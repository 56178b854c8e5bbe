"""Prompts from a file: JSON Lines, CSV, or a data set that the `datasets` library knows.

A row is `{"prompt": "..."}` or a conversation, `{"messages": [{"role": "user", "content": "..."}]}` (or such a list
as the `prompt`). Every other column becomes metadata of the prompt, for rewards to read; so do `messages` beside a
`prompt`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from rlhf_env.delimited import misspelt, read_table
from rlhf_env.envs.splits import Part
from rlhf_env.envs.tasks import places_of
from rlhf_env.envs.tokenizers import (
    as_message,
    message_problem,
    plain_conversation,
    said_in,
    template_options,
    tokenizer_folder,
)
from rlhf_env.envs.transformers_tokenizer import HFTokenizer, own_tokenizer, render_chat
from rlhf_env.errors import DataError, MissingExtra, Problem
from rlhf_env.plain_data import LONGEST_LINE, read_file, read_json
from rlhf_env.settings import IsPath, ShareBelowOne, settings
from rlhf_env.types import JsonObject, JsonView, Prompt, ResetOptions

_ASKED = ("prompt", "messages", "conversations")  # the column that is asked, the first that is there
_NO_PROMPT = "no field 'prompt' (or 'messages')"
_SHOWN = 20  # problems in one report
_LINES, _TABLES = (".jsonl", ".ndjson"), (".csv", ".tsv")


@settings(kw_only=False)
class File:
    """The prompts of a file. The whole file is read and checked when the task is made; DataError lists all problems.

    A conversation is asked in the model's own chat template, as transformers renders it: the ids are those of
    `apply_chat_template`. The prompt's text, which people and stores see, is then its plain layout; so is what a model
    without a template reads. If the last message is the assistant's, it counts as the answer: it is left out of the
    prompt and becomes `meta["completion"]`. A message may call tools or consist of parts of text. The columns `tools`
    (JSON schemas) and `chat_template_kwargs` are passed to the template. ShareGPT's `conversations` are read too.
    """

    path: Annotated[str, IsPath()]
    """`*.jsonl`, `*.ndjson`, `*.csv`, `*.tsv`; a folder written by `datasets.save_to_disk`; or a hub data set,
    "owner/name" (the last two need the extra `datasets`)."""
    split: str = "train"
    """The split of a data set; files have none."""
    chat_template: Annotated[str, IsPath()] = "own"
    """"own" is that of the model that is asked. "plain", and a model without one, write `User: ...` a line and end with
    `Assistant:`. Otherwise the folder or hub name of a model whose tokenizer's own chat template is applied."""
    held_out_fraction: ShareBelowOne = 0.0
    """The share set aside for evaluation, by a hash of the text: equal prompts stay together."""
    part: Part = "training"
    """Which prompts: those of training, or those set aside for evaluation."""

    def problems(self) -> Iterator[Problem]:
        _ = self._rows  # a file is refused when the task is made, not in the middle of a run
        return iter(())

    @cached_property
    def _rows(self) -> list[Prompt]:
        return _read(self.path, self.split, self.chat_template)

    @cached_property
    def _places(self) -> list[int]:
        return places_of(self.part, [row.text for row in self._rows], self.held_out_fraction)

    @property
    def size(self) -> int:
        return len(self._places)

    def prompt(self, index: int, _options: ResetOptions, /) -> Prompt:
        return self._rows[self._places[index % self.size]]

    def held_out(self) -> File:
        """The held-out prompts; all prompts if none were held out."""
        aside = replace(self, part="held_out")
        return aside if aside.size < len(self._rows) else self


def _read(path: str, split: str, chat_template: str) -> list[Prompt]:
    """Every prompt of the file. Raises DataError with up to 20 problems."""
    problems: list[str] = []
    renderer = _Renderer(chat_template)
    prompts: list[Prompt] = []
    for where, row in _rows_of(path, split, problems.append):
        prompt = _prompt_of(f"{Path(path).name}:{where.rpartition(' ')[2]}", row, renderer, where, problems.append)
        if prompt is not None:
            prompts.append(prompt)
    if not problems and not prompts:
        problems.append(f"{path}: no prompts: the file is empty")
    if problems:
        problems = _each_once(problems)
        more = len(problems) - _SHOWN
        raise DataError(*problems[:_SHOWN], *([f"... and {more} more problems in {path}"] if more > 0 else []))
    return prompts


def _each_once(problems: Sequence[str]) -> list[str]:
    """Rows that lack a prompt are complained about once for each set of fields that they have."""
    rows: dict[str, list[str]] = {}
    for problem in problems:
        _, _, what = problem.partition(": ")
        about_fields = what.startswith((_NO_PROMPT, "unknown column"))
        rows.setdefault(what if about_fields else problem, []).append(problem)
    return [first if not others else f"{first} (and {len(others):,} more lines)" for first, *others in rows.values()]


# ---------------------------------------------------------------- rows

Report = Callable[[str], None]


def _rows_of(path: str, split: str, report: Report) -> Iterator[tuple[str, JsonObject]]:
    """(where, row), with `where` like "prompts.jsonl, line 3". A line that is not a row is reported and skipped."""
    suffix = Path(path).suffix.lower()
    if suffix in _LINES:
        return _json_rows(path, list(_decoded(path, read_file(path).split(b"\n"), report)), report)
    if suffix in _TABLES:
        return _csv_rows(path, report)
    if Path(path).is_file():
        known = ", ".join((*_LINES, *_TABLES))
        remedy = "save the table as one of these, or, with the library datasets, as a folder (save_to_disk)"
        raise DataError(f"{path}: the name of a file of prompts ends in one of {known}: {remedy}")
    return _dataset_rows(path, split)


def _decoded(path: str, lines: Sequence[bytes], report: Report) -> Iterator[str | None]:
    """Each line as text, None where it is not UTF-8."""
    for number, line in enumerate(lines, start=1):
        if len(line) > LONGEST_LINE:
            report(f"{path}, line {number}: {len(line):,} bytes, a line may have at most {LONGEST_LINE:,}")
            yield None
            continue
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            report(f"{path}, line {number}: not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1}")
            yield None


def _json_rows(path: str, lines: Sequence[str | None], report: Report) -> Iterator[tuple[str, JsonObject]]:
    for number, line in enumerate(lines, start=1):
        if line is None or not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = read_json(line)
        except json.JSONDecodeError as error:
            report(f"{where}: not JSON: {error.msg} at position {error.pos + 1}")
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets a thousand deep
            report(f"{where}: this JSON cannot be read: {error}")
        else:
            if isinstance(row, dict):
                yield where, row
            else:
                report(f'{where}: expected an object, {{"prompt": ...}}, got {_kind(row)}')


def _csv_rows(path: str, report: Report) -> Iterator[tuple[str, JsonObject]]:
    for row in read_table(path, ("prompt", "messages")):
        where = f"{path}, line {row.line}"
        if isinstance(row.cells, DataError):
            report(f"{where}: {row.cells}")
        else:
            yield where, dict(row.cells)


def _dataset_rows(path: str, split: str) -> Iterator[tuple[str, JsonObject]]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"datasets (needed to read {path!r}, which is not a .jsonl or .csv file)", "datasets"
        ) from error
    try:
        found = datasets.load_from_disk(path) if Path(path).is_dir() else datasets.load_dataset(path)
    except Exception as error:  # the library, the hub and the network raise exceptions of many kinds
        raise DataError(
            f"{path!r} is neither a file (.jsonl, .csv), nor a folder that datasets.save_to_disk wrote, nor a data set "
            f"that the hub gave ({type(error).__name__}): check the name, or the network"
        ) from error
    if isinstance(found, Mapping):
        if split not in found:
            raise DataError(f"{path}: no split {split!r}, it has {', '.join(sorted(found))}")
        found = found[split]
    return ((f"{path} [{split}], row {number}", dict(row)) for number, row in enumerate(found, start=1))


# ---------------------------------------------------------------- a row as a prompt


def _prompt_of(id_: str, row: Mapping[str, object], renderer: _Renderer, where: str, report: Report) -> Prompt | None:
    name = next((it for it in _ASKED if it in row), "")
    if not name:
        near = misspelt(list(row), ("prompt", "messages"))
        has = f"{', '.join(map(repr, row))}: rename the one that is asked" if row else "none"
        report(f"{where}: {near or f'{_NO_PROMPT}, it has {has}'}")
        return None
    meta = {key: value for key, value in row.items() if key != name}
    content = row[name]
    messages: Sequence[JsonView] = ()
    if isinstance(content, list):
        content = [as_message(it) for it in content]
        problem = _wrong_messages(content)
        if problem:
            report(f"{where}, field {name!r}: {problem}")
            return None
        if content[-1]["role"] == "assistant":
            meta |= completion_columns(content[-1])
            content = content[:-1]
        messages = tuple(content)
        try:
            options = template_options(row)
        except DataError as error:
            report(f"{where}, field {error}")
            return None
        if options.get("tools") and renderer.chat_template == "plain":
            report(f"{where}, field 'tools': the plain layout tells a model of no tools: leave chat_template out")
            return None
        try:
            content = renderer(content, options)
        except DataError:
            raise  # there is no template
        except Exception as error:  # templates refuse conversations with exceptions of their own
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            report(
                f"{where}, field {name!r}: the chat template refuses it: {said}: change its messages, or leave it out"
            )
            return None
    elif name != "prompt":
        report(f"{where}, field {name!r}: expected a list of messages, got {_kind(content)}")
        return None
    if not isinstance(content, str):
        report(f"{where}, field {name!r}: expected a text, got {_kind(content)}")
        return None
    if not content.strip():
        report(f"{where}, field {name!r}: it has no text")
        return None
    if len(content) > LONGEST_LINE:
        report(f"{where}, field {name!r}: {len(content):,} characters, a prompt may have at most {LONGEST_LINE:,}")
        return None
    spoken = isinstance(row[name], list)
    by_model, as_text = spoken and renderer.by_model, spoken and renderer.chat_template == "plain"
    return Prompt(id=id_, text=content, meta=meta, messages=messages, rendered=by_model, as_text=as_text)


def completion_columns(message: JsonView) -> JsonObject:
    """A given answer as columns: what it says; and the message, where that is more than one text (calls of tools)."""
    whole = {} if message.keys() == {"role", "content"} and isinstance(message["content"], str) else dict(message)
    return {"completion": said_in(message), **({"completion_message": whole} if whole else {})}


def _wrong_messages(messages: Sequence[Any]) -> str:
    """The problem of a conversation; "" if it has none."""
    for number, message in enumerate(messages, start=1):
        if problem := message_problem(message):
            return f"message {number}{problem}"
    answered = messages[-1:] and messages[-1]["role"] == "assistant"
    if not any(said_in(message).strip() for message in (messages[:-1] if answered else messages)):
        return "no message asks for an answer"
    return ""


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


class _Renderer:
    """Renders conversations to text by a model's chat template, which is loaded when the first conversation comes."""

    def __init__(self, chat_template: str) -> None:
        self.chat_template = chat_template
        self.by_model = chat_template not in ("own", "plain")

    def __call__(self, messages: Sequence[JsonView], options: JsonView) -> str:
        return render_chat(self._tokenizer, messages, options) if self.by_model else plain_conversation(messages)

    @cached_property
    def _tokenizer(self) -> HFTokenizer:
        tokenizer = own_tokenizer(tokenizer_folder(self.chat_template))
        if not tokenizer.chat_template:
            raise DataError(f"chat_template {self.chat_template!r}: the tokenizer there has no chat template")
        if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
            names = ", ".join(sorted(tokenizer.chat_template))
            raise DataError(
                f"chat_template {self.chat_template!r}: the tokenizer there has several templates ({names}), and none "
                "of them is named 'default': save it with one"
            )
        return tokenizer
