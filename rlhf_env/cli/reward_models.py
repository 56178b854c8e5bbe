"""`rlhf-env scorecard`, `rlhf-env pipeline ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlhf_env.cli.shared import FEEDBACK, Threads, WhatOfOverLong, app, interruptible, make_console, pipeline_app
from rlhf_env.errors import ConfigError, MissingExtra


@app.command(rich_help_panel=FEEDBACK)
def scorecard(
    model: Annotated[str, typer.Argument(help="A reward model: a folder, or the name of a classification model.")],
    data: Annotated[Path, typer.Argument(help="Judgements: a preference store, or a file as JSONL, CSV, JSON.")],
    held_out: Annotated[
        str, typer.Option(help="Only the prompts held out at this share, as in 1/6 (the demo's): not seen in fitting.")
    ] = "1",
    gold: Annotated[str | None, typer.Option(help="A reward, by name, to compare ranks with.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes (default: beside MODEL or here).")] = None,
    html: Annotated[Path | None, typer.Option(help="Where the page goes (default: beside the JSON).")] = None,
    over_long: WhatOfOverLong = "refuse",
) -> None:
    """How good a reward model is on judgements it has not seen: accuracy, calibration, biases, robustness.

    Writes the numbers as JSON and a page with pictures. `rlhf-env report` shows the scorecard of the model in a
    benchmark's or demo's folder.
    """
    from rlhf_env.feedback.reward_models.card import scorecard_table
    from rlhf_env.feedback.reward_models.scorecard import scorecard_of
    from rlhf_env.lab.report.scorecard_page import write_page
    from rlhf_env.learning.engine import set_threads

    set_threads()
    try:
        above, _, below = held_out.partition("/")
        share = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"--held-out {held_out}: a share such as 0.2 or 1/6 is needed") from error
    card = scorecard_of(model, data, held_out=share, gold=gold, over_long=over_long)
    file = out or Path(f"{model.rstrip('/')}.scorecard.json" if Path(model).is_dir() else "scorecard.json")
    card.save(file)
    console = make_console()
    console.print(scorecard_table(card))
    console.print(f"Scorecard: {file}", highlight=False, soft_wrap=True)
    shown = html or file.with_suffix(".html")
    try:
        write_page(card, shown, name=model)
        console.print(f"Page: {shown}", highlight=False, soft_wrap=True)
    except MissingExtra as missing:  # pictures are an extra; the numbers are not
        console.print(f"No page: {missing}", highlight=False, soft_wrap=True)


@pipeline_app.command("base-model")
def base_model(
    out: Annotated[Path, typer.Option(help="Folder for the two models and their recipe.")] = Path("runs/base-model"),
    threads: Threads = None,
    jobs: Annotated[int, typer.Option(help="2: the judge learns alongside, in a process of its own.", min=1)] = 2,
) -> None:
    """Make the shipped models again: tokenizer, base model (pretraining, SFT) and the independent judge of fluency."""
    from rlhf_env.learning.engine import set_threads
    from rlhf_env.pipeline.base_model import make_models

    set_threads(threads)
    with interruptible():
        make_models(out, jobs=jobs, console=make_console())


@pipeline_app.command("reward-model")
def reward_model(
    out: Annotated[Path, typer.Option(help="Folder for the preferences and the model.")] = Path("runs/reward-model"),
    prompts: Annotated[
        int | None,
        typer.Option(help="Prompts to compare replies to; each gives up to 3 pairs (default: the demo's).", min=10),
    ] = None,
    epochs: Annotated[
        int, typer.Option(help="Passes that change the trunk, too, after those over the head: slower, better.", min=0)
    ] = 0,
    threads: Threads = None,
) -> None:
    """The demo's reward model alone: its accuracy with more and more pairs, and the best that label noise allows.

    The shipped base model answers, a simulated annotator compares, a model is fitted. A second call does only what is
    missing; use the model as bradley_terry = {model = "OUT/reward_model"}. About 30 seconds for every 1,000 prompts.
    """
    from dataclasses import replace

    from rlhf_env.learning.engine import set_threads
    from rlhf_env.pipeline.reward_model import learn_reward_model
    from rlhf_env.pipeline.settings import Demo

    set_threads(threads)
    settings = Demo()
    settings = replace(
        settings,
        prompts=prompts or settings.prompts,
        reward_model=replace(settings.reward_model, epochs=epochs),
    )
    with interruptible():
        learn_reward_model(out, settings=settings, console=make_console())
