"""`rlhf-env preferences responses`: answers to be judged, read from a file or written by a model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from rlhf_env.cli.shared import Device, StoreFile, examples, interruptible, preferences_app, say_next
from rlhf_env.errors import ConfigError
from rlhf_env.types import JsonObject


@preferences_app.command(
    "responses",
    epilog=examples(
        "rlhf-env preferences responses prefs.sqlite --model runs/sft --prompts p.jsonl",
        "rlhf-env preferences responses prefs.sqlite answers.jsonl",
    ),
)
def collect_responses(
    store: StoreFile,
    file: Annotated[
        Path | None,
        typer.Argument(help="Answers that exist: .jsonl, .csv, .json or .parquet, columns prompt and response."),
    ] = None,
    human: Annotated[str, typer.Option(help="Of FILE: the person who wrote them (default: the file).")] = "",
    model: Annotated[
        str | None,
        typer.Option(help="Have this model write them: a folder, a run, a shipped model, a hub name.", metavar="MODEL"),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="What MODEL answers: a file as for the task `file`, or a task by name.", metavar="FILE|TASK"),
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(help="Of a FILE of prompts: leave out those that `held_out_fraction` in [task] sets aside."),
    ] = None,
    limit: Annotated[int, typer.Option(help="How many of the prompts, from the first one on.", min=1)] = 1000,
    samples: Annotated[int, typer.Option(help="Answers to a prompt at each temperature.", min=1)] = 1,
    temperatures: Annotated[str, typer.Option(help="With commas between them.")] = "0.7,1.0",
    max_new_tokens: Annotated[int, typer.Option(help="The longest answer, in tokens.", min=1, max=2**20)] = 24,
    max_prompt_tokens: Annotated[int, typer.Option(help="The longest prompt, in tokens.", min=1, max=2**20)] = 256,
    batch: Annotated[int, typer.Option(help="Texts generated at a time.", min=1, max=2**16)] = 64,
    tokenizer: Annotated[str | None, typer.Option(help="Another one than the model's own.")] = None,
    name: Annotated[str, typer.Option(help="What results call MODEL (default: as given).")] = "",
    stop: Annotated[
        list[str] | None,
        typer.Option(
            help="A string that ends an answer; may be given several times (default: those a run was trained with)."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="What the answers are drawn from.", min=0)] = 0,
    device: Device = "auto",
) -> None:
    """Collect answers to be judged later: those in FILE, or those that MODEL generates at several temperatures.

    They are written to STORE. The same command resumes after an interruption and adds nothing twice.
    """
    if (file is None) == (model is None):
        raise ConfigError("say where the answers come from: a FILE that has them, or --model and --prompts")
    if file is not None:
        _read(store, file, human)
        return
    if human:
        raise ConfigError("--human is about the answers of a FILE, and --model writes them")
    if prompts is None:
        raise ConfigError("--model answers prompts: --prompts FILE (columns as for the task file) or --prompts TASK")
    with interruptible():
        drawn = {"temperatures": _numbers(temperatures), "samples": samples, "seed": seed, "stop": stop or None}
        limits = {"max_new_tokens": max_new_tokens, "max_prompt_tokens": max_prompt_tokens, "prompts": limit}
        whom: JsonObject = {"model": model, "tokenizer": tokenizer, "author": name, "num_envs": batch, "device": device}
        table = {**whom, **drawn, **limits, "task": _task(prompts, held_out)}
        _write(store, {key: value for key, value in table.items() if value is not None})


def _read(store: Path, file: Path, human: str) -> None:
    from rlhf_env.feedback.asking.collecting import read_responses
    from rlhf_env.feedback.judgements import Author
    from rlhf_env.feedback.store.store import PreferenceStore

    responses = read_responses(file, Author("human", human) if human else None)
    with PreferenceStore(store) as opened:
        opened.add_responses(responses)
    typer.echo(f"{len(responses):,} responses are in {store}")
    _to_be_asked(store)


def _write(store: Path, table: JsonObject) -> None:
    from rich.console import Console

    from rlhf_env.learning.configuration import from_table
    from rlhf_env.learning.devices import set_threads
    from rlhf_env.pipeline.responses import Responses, write_responses

    set_threads()
    wanted = from_table(Responses, table, "preferences responses")
    written = write_responses(store, wanted, console=Console(stderr=True, emoji=False))
    typer.echo(f"{written:,} answers of {wanted.author or wanted.model} were written into {store}")
    _to_be_asked(store)


def _to_be_asked(store: Path) -> None:
    say_next(f"preferences ask {shlex.quote(str(store))}", "makes pairs of them for people to judge")


def _task(prompts: str, held_out: float | None) -> JsonObject:
    """A file of prompts, or a task that has them; never those that training holds out."""
    if Path(prompts).suffix or Path(prompts).exists():
        aside = {} if held_out is None else {"held_out_fraction": held_out}
        return {"name": "file", "path": prompts, **aside}
    if held_out is not None:
        raise ConfigError(f"--held-out is about a FILE of prompts: the task {prompts} sets its own aside")
    return {"name": prompts}


def _numbers(words: str) -> list[float]:
    try:
        return [float(word) for word in words.split(",") if word.strip()]
    except ValueError:
        raise ConfigError(f"--temperatures {words}: numbers with commas between them, such as 0.7,1.0") from None
