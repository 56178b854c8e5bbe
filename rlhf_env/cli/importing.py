"""`rlhf-env preferences import` and the layouts of published sets that it reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_env.cli.shared import StoreFile, examples, preferences_app
from rlhf_env.errors import ConfigError

if TYPE_CHECKING:
    from rlhf_env.feedback.judgements import Judgement

_MANY_ROWS = 10_000


@preferences_app.command(
    "import",
    epilog=examples(
        "rlhf-env preferences import prefs.sqlite pairs.jsonl",
        "rlhf-env preferences import prefs.sqlite hh-rlhf.parquet --sample 10000",
    ),
)
def import_preferences(
    store: StoreFile,
    files: Annotated[
        list[Path],
        typer.Argument(
            help=".jsonl, .json (rows, Argilla, Label Studio), .csv, .tsv, each also .gz; .parquet, a datasets folder."
        ),
    ],
    annotator: Annotated[str, typer.Option(help="Who judged what does not say who (default: the file's name).")] = "",
    layout: Annotated[
        str, typer.Option(help="The layout of a published set, as `preferences layouts` lists them; by default known.")
    ] = "",
    criterion: Annotated[
        list[str] | None, typer.Option(help="Only what was judged by it; may be given several times.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only so many rows of each file, from its beginning.", min=1)
    ] = None,
    sample: Annotated[int | None, typer.Option(help="Only so many rows of each file, drawn from all.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Draws the sample.", min=0)] = 0,
    label_config: Annotated[
        Path | None, typer.Option(help="Label Studio's labeling configuration (XML): what each tag is about.")
    ] = None,
    buckets: Annotated[
        str, typer.Option(help="The names of Label Studio's buckets, the best first, with commas between them.")
    ] = "",
    skip: Annotated[bool, typer.Option("--skip", help="Leave out lines that cannot be read, and count them.")] = False,
) -> None:
    """Import judgements into a store, which is created if it is not there. If one line is bad, nothing is imported.

    The same file again adds nothing. Published sets are read as they are, known by their columns: hh-rlhf, SHP,
    UltraFeedback, HelpSteer, Nectar, PKU-SafeRLHF, Chatbot Arena, MT-bench, WebGPT, OpenAssistant, PRISM and others
    (`preferences layouts`). What is no judgement (drafts, skipped tasks, columns that nothing reads) is passed over,
    counted and named.
    """
    from rlhf_env.feedback.interchange import LabelConfig, Reading, judgements_in, layout_named
    from rlhf_env.feedback.store.store import PreferenceStore
    from rlhf_env.shown_text import for_terminal

    if layout:
        layout_named(layout)
    if limit is not None and sample is not None:
        raise ConfigError("--limit and --sample: the first rows or a sample of all, not both")
    config = None if label_config is None else LabelConfig.read(label_config)
    order = tuple(name.strip() for name in buckets.split(",") if name.strip())
    batches: list[list[Judgement]] = []
    left: list[tuple[Path, str, int]] = []
    assumed: list[tuple[Path, str]] = []
    problems: list[str] = []
    for file in files:
        reading = Reading(
            source=file.name,
            annotator=annotator,
            layout=layout,
            criteria=tuple(criterion or ()),
            limit=limit,
            sample=sample,
            seed=seed,
            tell=_rows_on_stderr(file),
            label_config=config,
            buckets=order,
            skip=skip,
        )
        try:
            batches.append(judgements_in(file, reading))
        except ConfigError as error:
            problems += error.problems
        left += ((file, what, count) for what, count in reading.passed_over.items())
        assumed += ((file, what) for what in reading.assumed)
    if problems:
        raise ConfigError(*problems)
    with PreferenceStore(store) as opened:
        new = opened.add(*batches, origin="file")
    typer.echo(f"{new:,} new of {sum(map(len, batches)):,} judgements are in {store}")
    for file, what, count in left:
        typer.echo(for_terminal(f"{file}: passed over: {what}: {count:,}"))
    for file, what in assumed:
        typer.echo(for_terminal(f"{file}: assumed: {what}; --label-config FILE.xml says it for certain"))


def _rows_on_stderr(file: Path) -> Callable[[int], None]:
    """Says of a large file how far it is read: every ten thousand rows, because nobody knows how many there are."""
    from rlhf_env.shown_text import for_terminal

    def tell(rows: int) -> None:
        if rows % _MANY_ROWS == 0:
            typer.echo(for_terminal(f"{file}: {rows:,} rows read"), err=True)

    return tell


@preferences_app.command("layouts", epilog=examples("rlhf-env preferences layouts"))
def show_layouts(
    markdown: Annotated[
        bool,
        typer.Option("--markdown", help="The page docs/preference-layouts.md: column by column what becomes what."),
    ] = False,
) -> None:
    """List the published preference sets that `preferences import` recognises, and by which columns."""
    from rlhf_env.feedback.interchange import LAYOUTS, layouts_page

    if markdown:
        typer.echo(layouts_page(), nl=False)
        return
    width = max(len(layout.name) for layout in LAYOUTS)
    for layout in LAYOUTS:
        typer.echo(f"{layout.name:{width}}  {layout.sets}")
        typer.echo(f"{'':{width}}  known by {', '.join(layout.known_by)}")
