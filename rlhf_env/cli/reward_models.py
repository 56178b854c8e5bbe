"""`rlhf-env reward-model`, `rlhf-env scorecard`, `rlhf-env pipeline ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rlhf_env.cli.shared import FEEDBACK, Device, Threads, WhatOfOverLong, app, examples, make_console
from rlhf_env.errors import ConfigError, MissingExtra
from rlhf_env.types import JsonObject

_WHICH, _LEARNED, _FIT, _RESTRAINT, _IMPORTANCE = (
    "Which judgements",
    "What is learned of them",
    "The fit",
    "Against overfitting and unfairness",
    "Pairs that another policy wrote",
)


def _option(panel: str, help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False)


@app.command(
    "reward-model",
    rich_help_panel=FEEDBACK,
    epilog=examples(
        "rlhf-env reward-model prefs.sqlite --base rlhf-env/chitchat --out runs/taste",
        "rlhf-env reward-model prefs.sqlite --config taste.toml --votes dawid-skene",
    ),
)
def reward_model_from_votes(
    store: Annotated[
        Path | None,
        typer.Argument(help="Judgements: a preference store, or any file that `preferences import` reads."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The language model it is built on: a folder, rlhf-env/chitchat, a hub name, a run."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of the reward model, which appears whole.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML file with any of these settings; the command line wins.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a reward model in OUT.")] = False,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting: docs/settings.md has all of them."),
    ] = None,
    threads: Threads = None,
    held_out: Annotated[
        str | None, _option(_WHICH, "The share of prompts to measure on (default 1/6); 0: measure nothing.")
    ] = None,
    criterion: Annotated[
        str | None, _option(_WHICH, 'Judgements by this one (default: "overall", or the only one).')
    ] = None,
    annotators: Annotated[
        list[str] | None, _option(_WHICH, "Learn from this annotator only. May be given several times.")
    ] = None,
    without: Annotated[
        list[str] | None, _option(_WHICH, "Leave this annotator out. May be given several times.")
    ] = None,
    diverse: Annotated[
        int | None, _option(_WHICH, "Fit to this many only, with texts that lie far apart (k-centre).")
    ] = None,
    over_long: Annotated[
        str | None,
        _option(
            _WHICH, 'Texts beyond the model\'s context: "refuse" (default), "leave out", "cut left" (right, middle).'
        ),
    ] = None,
    layout: Annotated[
        str | None, _option(_WHICH, "The layout of a published set, as `preferences layouts` lists them.")
    ] = None,
    annotator: Annotated[
        str | None, _option(_WHICH, "Who judged what a file does not say who (default: its name).")
    ] = None,
    label_config: Annotated[Path | None, _option(_WHICH, "Label Studio's labeling configuration (XML).")] = None,
    skip: Annotated[
        bool | None, _option(_WHICH, "Leave out lines that cannot be read, and count them.", "--skip")
    ] = None,
    votes: Annotated[
        str | None,
        _option(_LEARNED, 'Of what several people judged: "majority" (default), "dawid-skene" or "each" vote.'),
    ] = None,
    loss: Annotated[
        str | None,
        _option(
            _LEARNED,
            "bradley-terry, margins, ranking-pairs, plackett-luce or likert (default: each kind of judgement by its "
            "own, margins not asked for).",
        ),
    ] = None,
    margin_scale: Annotated[
        float | None, _option(_LEARNED, "With margins: log-odds for each point of the annotators' scale (default 1).")
    ] = None,
    epochs: Annotated[
        int | None, _option(_FIT, "The most passes over trunk and head (default 8); 0: head alone.")
    ] = None,
    head: Annotated[
        str | None, _option(_FIT, '"linear" (default), or "reply", which reads the whole response.')
    ] = None,
    head_epochs: Annotated[int | None, _option(_FIT, "Passes before, over the head alone (default 0).")] = None,
    learning_rate: Annotated[float | None, _option(_FIT, "The highest of the passes over the trunk (3e-4).")] = None,
    batch_size: Annotated[int | None, _option(_FIT, "Judgements of a gradient step (default 16).")] = None,
    members: Annotated[
        int | None,
        _option(_FIT, "Heads on one trunk, each fitted to its own bootstrap of the judgements: an ensemble."),
    ] = None,
    models: Annotated[int | None, _option(_FIT, "Separate models: an ensemble that costs more, agrees less.")] = None,
    dtype: Annotated[str | None, _option(_FIT, "float32 (default) or float64.")] = None,
    device: Annotated[
        str | None, _option(_FIT, "auto (default: a CUDA GPU if there is one), cpu, cuda, cuda:N, mps.")
    ] = None,
    seed: Annotated[int | None, _option(_FIT, "Draws order, dropout, first heads, bootstraps (default 0).")] = None,
    label_smoothing: Annotated[
        float | None, _option(_RESTRAINT, "The chance that a label is wrong, below 0.5 (default 0).")
    ] = None,
    weight_decay: Annotated[float | None, _option(_RESTRAINT, "AdamW's, of matrices only (default 0.01).")] = None,
    dropout: Annotated[float | None, _option(_RESTRAINT, "On what the head reads (default 0).")] = None,
    centring: Annotated[
        float | None, _option(_RESTRAINT, "Weight of the mean square of a pair's sum (default 0).")
    ] = None,
    magnitude: Annotated[float | None, _option(_RESTRAINT, "Weight of the mean square score (default 0).")] = None,
    fairness: Annotated[
        float | None, _option(_RESTRAINT, "Weight of the difference that a group's words make (default 0).")
    ] = None,
    groups: Annotated[
        str | None,
        _option(_RESTRAINT, 'With fairness: "gender", or a CSV file of words, a column for each group.'),
    ] = None,
    wanted: Annotated[
        str | None, _option(_IMPORTANCE, "The model whose texts the reward model is for: importance weights.")
    ] = None,
    drawn: Annotated[str | None, _option(_IMPORTANCE, "The model that wrote the pairs.")] = None,
) -> None:
    """Fit a reward model to people's votes, ready for the [rewards] of an experiment.

    Prints how often it agrees with people on prompts it has not seen, beside how often they agree with each other.
    Writes the model, its scorecard (JSON and a page) and a record of how it was made to OUT.
    """
    from rlhf_env.learning.devices import set_threads
    from rlhf_env.pipeline.reward_settings import GivenSettings, spoken_setting, spoken_share

    options = dict(locals())
    given: JsonObject = {}
    words: dict[str, str] = {}
    for name in SETTINGS:
        value = options[name]
        if value not in (None, []):
            given[name] = str(value) if isinstance(value, Path) else value
            spoken = " ".join(value) if isinstance(value, list) else value
            words[name] = f"--{name.replace('_', '-')}" + ("" if value is True else f" {spoken}")
    if held_out is not None:
        given["held_out"] = spoken_share(held_out)
    for each in more or ():
        name, setting = spoken_setting(each)
        if name in given:
            raise ConfigError(f"--set {each}: {name!r} is set twice")
        given[name], words[name] = setting, f"--set {each}"
    settings = GivenSettings(config, given, words)
    made = settings.made(
        store="Missing argument 'store': a preference store, or a file of judgements",
        base="Missing option '--base': the language model to build on: a folder, rlhf-env/chitchat, a hub name",
        out="Missing option '--out': the folder of the reward model",
    )
    set_threads(threads)
    console = make_console()
    for name, value in settings.replaced.items():
        line = f"{words[name]} replaces {name} = {value!r} of {config}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    from rlhf_env.pipeline.votes import fit_to_votes

    assert made.store is not None and made.out is not None  # `made` refuses a lack of them
    try:
        fit_to_votes(made.store, made.out, made, console=console, overwrite=overwrite)
    except ConfigError as error:
        error.change(settings.located)
        raise


# What the command has an option for, by the names of `RewardModelFile`.
SETTINGS = (
    *(
        "store",
        "base",
        "out",
        "held_out",
        "criterion",
        "annotators",
        "without",
        "diverse",
        "over_long",
        "annotator",
        "layout",
    ),
    *("label_config", "skip", "votes", "loss", "margin_scale", "epochs", "head", "head_epochs", "learning_rate"),
    *(
        "batch_size",
        "members",
        "models",
        "dtype",
        "device",
        "seed",
        "label_smoothing",
        "weight_decay",
        "dropout",
        "centring",
    ),
    *("magnitude", "fairness", "groups", "wanted", "drawn"),
)


@app.command(rich_help_panel=FEEDBACK, epilog=examples("rlhf-env scorecard runs/taste prefs.sqlite --held-out 1/6"))
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
    device: Device = "auto",
) -> None:
    """Measure a reward model on judgements it has not seen: accuracy, calibration, biases, robustness.

    Writes the numbers as JSON and a page with pictures. `rlhf-env report` shows the scorecard of the model in a
    benchmark's or demo's folder.
    """
    from rlhf_env.feedback.reward_models.card import scorecard_table
    from rlhf_env.feedback.reward_models.scorecard import scorecard_of
    from rlhf_env.lab.report.scorecard_page import write_page
    from rlhf_env.learning.devices import set_threads
    from rlhf_env.pipeline.reward_settings import spoken_share

    set_threads()
    share = spoken_share(held_out)
    card = scorecard_of(model, data, held_out=share, gold=gold, over_long=over_long, device=device)
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
