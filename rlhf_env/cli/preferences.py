"""`rlhf-env preferences ...`: what a store holds, and what is asked about agents and reward models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlhf_env.cli.shared import (
    AsJson,
    Device,
    StoreFile,
    TrustCode,
    WhichCheckpoint,
    echo_json,
    examples,
    open_store,
    preferences_app,
    progress_line,
    stage_on_stderr,
    to_be_judged,
)
from rlhf_env.errors import ConfigError, Problem, under
from rlhf_env.types import JsonObject

if TYPE_CHECKING:
    from rlhf_env.envs.over_long import OverLongCount


@preferences_app.command("export", epilog=examples("rlhf-env preferences export prefs.sqlite pairs.jsonl --format trl"))
def export_preferences(
    store: StoreFile,
    file: Annotated[Path, typer.Argument(help="The file to write, or the folder of the format datasets.")],
    format: Annotated[
        str,
        typer.Option(help="jsonl, csv, trl, trl-conversational, trl-unpaired, datasets, argilla or label-studio."),
    ] = "jsonl",
    emails: Annotated[bool, typer.Option("--emails", help="Keep names that are e-mail addresses.")] = False,
) -> None:
    """Write the judgements of a store for other programs. jsonl, csv, argilla and label-studio hold all kinds."""
    from typing import cast

    from rlhf_env.feedback.interchange import Format, without_emails, write_judgements

    with open_store(store) as opened:
        judgements = opened.judgements() if emails else without_emails(opened.judgements())
        count = write_judgements(file, judgements, cast(Format, format))
    typer.echo(f"{count:,} {'rows' if format == 'datasets' else 'records'} are in {file}")


@preferences_app.command(
    "simulate", epilog=examples("rlhf-env preferences simulate prefs.sqlite judge.toml --people 3")
)
def simulate_annotators(
    store: StoreFile,
    settings: Annotated[
        Path, typer.Argument(help="A TOML file with [annotator] and, where it is a simulated one, [gold] (a reward).")
    ],
    people: Annotated[int, typer.Option(help="How many annotators, called NAME 1, NAME 2, ...", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Seed of their noise.", min=0)] = 0,
) -> None:
    """Have simulated annotators, or a judging model, judge the open items of a store."""
    import numpy as np

    from rlhf_env.envs.reward_tables import load_rewards
    from rlhf_env.feedback.asking.annotators import asks_for_gold, load_annotator
    from rlhf_env.feedback.asking.collecting import StoredPrompts, judge_items
    from rlhf_env.feedback.judging.chat_model import ChatModel
    from rlhf_env.own_code import label_of
    from rlhf_env.relative_paths import relative_to
    from rlhf_env.settings import Chooses
    from rlhf_env.shown_text import for_terminal
    from rlhf_env.toml_files import naming_lines, read_toml

    table: JsonObject = read_toml(settings)
    with naming_lines(settings):
        kinds = {"gold": "reward", "annotator": "annotator"}
        if "gold" not in table and isinstance(who := table.get("annotator"), dict) and not asks_for_gold(who):
            del kinds["gold"]
        parts = {part: table.get(part) for part in kinds}
        nameless = [
            part
            for part, it in parts.items()
            if not (isinstance(it, dict) and any(isinstance(it.get(key), str) for key in ("name", "function")))
        ]
        if nameless:
            said = 'expected a table [{}] with a name, or with function = "FILE.py:NAME"'
            raise ConfigError(*(Problem(said.format(part), (part,)) for part in nameless))
        table = {
            part: relative_to(settings.parent, table[part], Annotated[JsonObject, Chooses(kind)])
            for part, kind in kinds.items()
        }
    with open_store(store) as opened, naming_lines(settings):
        reward: Any = None
        if "gold" in table:
            gold = dict(table["gold"])
            name = str(gold.pop("name", "gold"))
            with under("gold"):
                reward = load_rewards({name: gold}, StoredPrompts.of(opened)).parts[name]
        person = label_of(table["annotator"], "annotator")
        with under("annotator"):
            crowd = [
                load_annotator(table["annotator"], reward, person=f"{person} {number}")
                for number in range(1, people + 1)
            ]
        votes = [
            judge_items(opened, annotator, np.random.default_rng([seed, place]))
            for place, annotator in enumerate(crowd)
        ]
        typer.echo(f"{sum(votes):,} votes; {progress_line(opened.progress())}")
        for annotator in crowd:
            if isinstance(annotator, ChatModel):
                typer.echo(f"{for_terminal(annotator.name)}: {annotator.spent()}")


@preferences_app.command("show", epilog=examples("rlhf-env preferences show prefs.sqlite"))
def show_preferences(store: StoreFile, as_json: AsJson = False) -> None:
    """Print what a store contains, and how far annotation has come."""
    from rlhf_env.shown_text import for_terminal

    with open_store(store) as opened:
        counts = opened.counts()
        kept = {"prompts": counts.prompts, "responses": counts.responses, "annotators": counts.annotators}
        if as_json:
            pairs, criteria = sum(1 for _ in opened.preferences()), [it.name for it in opened.criteria()]
            known = {**kept, "judgements": counts.judgements, "pairs": pairs, "criteria": criteria}
            echo_json({**known, "progress": opened.progress()})
            return
        for name, count in {**kept, **counts.judgements}.items():
            typer.echo(f"{for_terminal(name):12} {count:8,}")
        typer.echo(f"pairs        {sum(1 for _ in opened.preferences()):8,}")
        typer.echo(progress_line(opened.progress()))
        for criterion in opened.criteria():
            typer.echo(f"criterion {for_terminal(criterion.name)}: {for_terminal(criterion.guidelines)}")


@preferences_app.command("tournament", epilog=examples("rlhf-env preferences tournament eval.sqlite"))
def show_tournament(
    store: StoreFile,
    criterion: Annotated[str, typer.Option(help="The criterion that was judged by.")] = "overall",
    seed: Annotated[int, typer.Option(help="Seed of the intervals.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Print who writes the better responses: win rates and Bradley-Terry ratings (Elo scale), with 95 % intervals."""
    import numpy as np

    from rlhf_env.feedback.asking.tournament import contests, tournament
    from rlhf_env.shown_text import for_terminal

    with open_store(store) as opened:
        comparisons = contests(opened).get(criterion, [])
    contenders = tournament(comparisons, np.random.default_rng(seed))
    if as_json:
        echo_json(contenders)
        return
    if not contenders:
        typer.echo(f"no two authors were compared by {for_terminal(criterion)} yet")
        return
    names = [for_terminal(contender.name) for contender in contenders]
    width = max(len(name) for name in names)
    typer.echo(f"{'':{width}}  comparisons  {'win rate':20}  rating")
    for name, contender in zip(names, contenders, strict=True):
        rating = contender.rating
        span = "(every prompt alike)" if np.isnan(rating.low) else f"[{rating.low:.0f}, {rating.high:.0f}]"
        points = "-" if np.isnan(rating.value) else f"{rating.value:.0f} {span}"
        typer.echo(f"{name:{width}}  {contender.comparisons:11,}  {contender.win_rate!s:20}  {points}")


@preferences_app.command(
    "evaluate", epilog=examples("rlhf-env preferences evaluate eval.sqlite ppo=runs/a dpo=runs/b --prompts 100")
)
def ask_who_is_better(
    store: StoreFile,
    answers: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]PATH...",
            help="Two or more: a run folder; a model (folder, hub name), which answers what the first run is asked; a "
            "JSONL or CSV file with the columns prompt and response; the evaluation.json or result file of a run. NAME "
            "(default: the file's) is who the results speak of.",
        ),
    ],
    overlap: Annotated[int, typer.Option(help="How many people judge each pair.", min=1)] = 1,
    criterion: Annotated[str, typer.Option(help="What to judge by.")] = "overall",
    prompts: Annotated[
        int | None, typer.Option(help="Held-out prompts of a run folder (default: as many as it says).", min=2)
    ] = None,
    checkpoint: WhichCheckpoint = "best",
    trust_code: TrustCode = False,
    seed: Annotated[int, typer.Option(help="Draws the order that pairs are shown in.", min=0)] = 0,
    device: Device = "auto",
) -> None:
    """Queue a blind comparison: who answers the same prompts better - agents, models, other people?

    Makes items for `rlhf-env annotate`, in STORE (made if need be). The page never says who wrote a response; win rates
    and ratings are on its page of results and in `preferences tournament`.
    """
    from rlhf_env.feedback.asking.tournament import blind_pairs
    from rlhf_env.feedback.store.store import PreferenceStore
    from rlhf_env.lab.evaluation.answers import answers_of
    from rlhf_env.learning.devices import set_threads

    set_threads()
    named = [word.rpartition("=")[::2] for word in answers]
    sources = {name or Path(path).stem: path for name, path in named}
    if len(sources) != len(answers) or len(sources) < 2:
        raise ConfigError("two or more sources are needed, each with a name of its own: say NAME=PATH")
    with stage_on_stderr("Reading what they wrote") as tell:

        def on_source(place: int) -> None:
            tell(place / len(sources), f"{place + 1} of {len(sources)}")

        written = answers_of(
            sources,
            prompts=prompts,
            checkpoint=checkpoint,
            trust_code=trust_code,
            device=device,
            on_source=on_source,
        )
    pairs = blind_pairs(written, overlap=overlap, criterion=criterion, seed=seed)
    with PreferenceStore(store) as opened:
        opened.add_items(pairs.items)
        typer.echo(
            f"{len(pairs.items):,} pairs on {pairs.prompts:,} prompts asked for, {pairs.same:,} left out that say "
            f"the same; {progress_line(opened.progress())}"
        )
    to_be_judged(store)


@preferences_app.command(
    "verify", epilog=examples("rlhf-env preferences verify prefs.sqlite --model runs/taste --count 20")
)
def ask_about_a_reward_model(
    store: StoreFile,
    model: Annotated[
        list[str],
        typer.Option(help="A reward model: a folder or hub name. Several are one ensemble.", show_default=False),
    ],
    count: Annotated[int, typer.Option(help="Pairs for each reason.", min=1)] = 20,
    overlap: Annotated[int, typer.Option(help="How many people judge each pair.", min=1)] = 1,
    criterion: Annotated[str, typer.Option(help="What to judge by.")] = "overall",
    confidence: Annotated[
        float, typer.Option(help="A model surer than this that contradicts a judgement is to be checked.")
    ] = 0.8,
    name: Annotated[str, typer.Option(help="What results call the model (default: as given).")] = "",
    seed: Annotated[int, typer.Option(help="Draws the random pairs and the order they are shown in.", min=0)] = 0,
    over_long: Annotated[
        Literal["refuse", "leave out"], typer.Option(help="Responses that the model cannot read whole.")
    ] = "refuse",
    device: Device = "auto",
) -> None:
    """Ask people about a reward model's most doubtful opinions; `preferences verified` shows what they said.

    Scores every response in STORE and asks for blind judgements of pairs, COUNT for each reason:

    - disagreement: the members of the ensemble disagree most

    - above people: a policy's response is scored above all that people wrote for the prompt

    - repetitive, long: the favourite of its prompt is among the most repetitive, or longest, twentieth

    - contradicted: a judgement in STORE says the opposite of a confident model

    - random: any pair, what the others are to be compared with
    """
    import numpy as np

    from rlhf_env.feedback.asking.verification import REASONS, checks_of, opinions, recorded
    from rlhf_env.feedback.reward_models.loading import load_scorer
    from rlhf_env.learning.devices import set_threads

    set_threads()
    with open_store(store) as opened:
        models = [load_scorer(it, device=device) for it in model]
        counts: list[OverLongCount] = []
        with stage_on_stderr("Scoring responses") as tell:
            candidates = opinions(
                models, opened.responses(), over_long=over_long, on_over_long=counts.append, on_progress=tell
            )
        for too_long in counts:
            typer.echo(f"note: {too_long.said_of('responses')}")
        checks = checks_of(
            candidates,
            recorded(opened, criterion),
            np.random.default_rng(seed),
            model=name or " + ".join(model),
            count=count,
            confidence=confidence,
            overlap=overlap,
            criterion=criterion,
            seed=seed,
        )
        items = opened.add_checks(checks)
        for reason in REASONS:
            pairs = [check for check in checks if check.reason == reason]
            surest = f", the first by {pairs[0].log_odds:.2f} log-odds" if pairs else ""
            typer.echo(f"{reason:13} {len(pairs):5,} pairs{surest}")
        typer.echo(f"{len(set(items)):,} different pairs to verify; {progress_line(opened.progress())}")
    to_be_judged(store)


@preferences_app.command("verified", epilog=examples("rlhf-env preferences verified prefs.sqlite"))
def show_verified(store: StoreFile) -> None:
    """Print how often annotators share a reward model's opinion, by the reason they were asked, with 95 % intervals.

    `expected` is the model's own mean probability for the response it favours: they agree less often where it is too
    sure. Reasons are those of `preferences verify`; read the others against `random`.
    """
    from itertools import groupby

    from rlhf_env.feedback.asking.verification import outcomes
    from rlhf_env.shown_text import for_terminal

    with open_store(store) as opened:
        all_outcomes = outcomes(opened)
    for model, rows in groupby(all_outcomes, lambda outcome: outcome.model):
        typer.echo(f"{for_terminal(model)}\n  {'':13}  pairs  votes  {'annotators agree':20}  expected")
        for outcome in rows:
            expected = f"{outcome.stated:.2f}" if outcome.votes else "-"
            counts = f"{outcome.pairs:5,}  {outcome.votes:5,}"
            typer.echo(f"  {for_terminal(outcome.reason):13}  {counts}  {outcome!s:20}  {expected}")
    if not all_outcomes:
        typer.echo("no reward model was put before annotators yet: preferences verify does it")


@preferences_app.command("rescue", epilog=examples("rlhf-env preferences rescue prefs.sqlite whole.sqlite"))
def rescue_preferences(
    store: StoreFile, out: Annotated[Path, typer.Argument(help="The new store to write what can be read into.")]
) -> None:
    """Write every readable row of a damaged store into a new one, and count what is lost. STORE is only read."""
    from rlhf_env.feedback.store.rescue import rescue

    found = rescue(store, out)
    for table, kept in found.kept.items():
        if kept or found.lost[table]:
            typer.echo(f"{table.replace('_', ' '):14} {kept:8,} kept {found.lost[table]:8,} lost")
    typer.echo(f"{out} has what could be read of {store}")
