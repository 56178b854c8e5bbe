"""`rlhf-env lab ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlhf_env.cli.shared import (
    Address,
    AsJson,
    CpusPerRun,
    GpusPerRun,
    Jobs,
    MemoryPerRun,
    Threads,
    WhichBackend,
    echo_json,
    examples,
    interruptible,
    lab_app,
    make_console,
    stage_on_stderr,
)
from rlhf_env.errors import ConfigError, MissingExtra


@lab_app.command("exact", epilog=examples("rlhf-env lab exact", "rlhf-env lab exact --beta 0.1 --batch 4"))
def exact(
    symbols: Annotated[int, typer.Option(help="Symbols beside the end token.", min=1, max=26)] = 4,
    longest: Annotated[int, typer.Option(help="Symbols of the longest response.", min=1)] = 3,
    batch: Annotated[int, typer.Option(help="Responses in a batch, all of one group.", min=2)] = 2,
    beta: Annotated[float, typer.Option(help="Weight of the KL penalty.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Draws the rewards, the reference and the policy.", min=0)] = 0,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="The page docs/losses.md instead: every loss, and its row.")
    ] = False,
) -> None:
    """Print the known optimum, and the exact bias and variance of every gradient estimator, KL placement, token loss
    and pair loss, and where each loss ends.

    They are sums over all batches of responses to one prompt; nothing is sampled.
    """
    from rlhf_env.lab.studies.exact.estimators import Batches, estimator_tables, example
    from rlhf_env.lab.studies.exact.losses_page import loss_tables, losses_page
    from rlhf_env.learning.devices import set_threads
    from rlhf_env.policies import ResponseTree

    set_threads()
    batches = Batches.of(ResponseTree(symbols, longest), batch)  # first: it refuses what is too large
    objective, logits = example(symbols, longest, beta, seed)
    if as_markdown:
        typer.echo(losses_page(objective, logits, batches, seed), nl=False)
        return
    console = make_console()
    console.print(estimator_tables(objective, logits, batches))
    console.print("")
    console.print(loss_tables(objective, logits, batches, seed))


@lab_app.command("referee", epilog=examples("rlhf-env lab referee --only trl"))
def referee_of_libraries(
    only: Annotated[
        str | None, typer.Option("--only", metavar="NAME", help="One library, or the objectives whose names have this.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All numbers as JSON, for scripts.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="The page docs/referee.md instead.")] = False,
    wheels: Annotated[Path, typer.Option(help="Where `make referee` unpacked the libraries.")] = Path("build/referee"),
) -> None:
    """Compare other libraries' losses, called in their own code, with the exact gradient and the exact optimum.

    TRL, verl, OpenRLHF, SkyRL, AReaL and torchtune, called from their wheels (`make referee`), beside ours: how biased
    and how noisy each is, where it ends, and whether a second derivation agrees. Minutes; `--only rlhf-env` needs no
    wheel.
    """
    from rlhf_env.lab.progress import stage
    from rlhf_env.lab.studies.referee.page import referee_page, referee_tables
    from rlhf_env.lab.studies.referee.rows import referee
    from rlhf_env.learning.devices import set_threads

    set_threads()
    if as_json or as_markdown:
        found = referee(wheels, only)
        typer.echo(found.as_json() if as_json else referee_page(found), nl=False)
        return
    console = make_console()
    with interruptible(), stage(console, "Measuring") as tell:
        found = referee(wheels, only, tell)
    console.print(referee_tables(found))


@lab_app.command("agents", epilog=examples("rlhf-env lab agents --seeds 3"))
def exact_agents(
    seeds: Annotated[int, typer.Option(help="Seeds for every agent.", min=1)] = 10,
) -> None:
    """Train agents on the enumerable task with the real loop: how near do they come to the exact optimum?"""
    from rlhf_env.lab.studies.exact.agents import reach, reached_table
    from rlhf_env.learning.devices import set_threads

    set_threads()
    found = list(reach(seeds))
    console = make_console()
    console.print(reached_table(found))
    hits, trials = sum(one.hits for one in found), seeds * len(found)
    console.print(f"{hits} of {trials} within 1 %", highlight=False)


@lab_app.command("labels", epilog=examples("rlhf-env lab labels --quick"))
def labels(
    quick: Annotated[bool, typer.Option("--quick", help="Made-up pairs in place of real replies: seconds.")] = False,
    seeds: Annotated[int | None, typer.Option(help="Seeds for every strategy (default 12).", min=1)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder (default: runs/labels). A second call does only what is missing.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Which pair next? How many labels a reward model needs when pairs are chosen at random, by the model's own
    uncertainty, or by an ensemble's disagreement.

    Replies of the shipped base model, judged by a noisy annotator; the head of a reward model learns from them on
    frozen features. Writes labels.json, labels.png and labels.svg. A few minutes.
    """
    from dataclasses import replace

    from rlhf_env.lab.progress import stage
    from rlhf_env.lab.studies.labels import QUICK, LabelStudy, label_table, run_label_study
    from rlhf_env.lab.studies.labels_figure import write_pictures
    from rlhf_env.learning.devices import set_threads

    set_threads(threads)
    study = QUICK if quick else LabelStudy()
    study = study if seeds is None else replace(study, seeds=seeds)
    folder = out or Path("runs/labels-quick" if quick else "runs/labels")
    console = make_console()
    with interruptible(), stage(console, "Labels needed") as tell:
        found = run_label_study(study, folder, tell)
    console.print(label_table(found))
    console.print(f"In short: {found.sentence}.", highlight=False)
    try:
        write_pictures(found, folder)
    except MissingExtra as missing:  # pictures are an extra; the numbers are not
        console.print(f"No picture: {missing}", highlight=False, soft_wrap=True)
    console.print(f"Results: {folder}/labels.json", highlight=False, soft_wrap=True)


@lab_app.command("overoptimization", epilog=examples("rlhf-env lab overoptimization --quick --out runs/small"))
def overoptimization(
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where everything goes (default: runs/overoptimization). A second call does only what is missing."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small form in a few minutes, of two seeds: it allows no claim.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(help="Seeds (default 8: the fewest with which one of five claims can be made).", min=1)
    ] = None,
    jobs: Jobs = None,
    backend: WhichBackend = "local",
    address: Address = None,
    cpus_per_run: CpusPerRun = None,
    gpus_per_run: GpusPerRun = None,
    memory_per_run: MemoryPerRun = None,
) -> None:
    """How far can a learned reward be climbed before the true one falls, and what moves that peak?

    A gold reward labels pairs, and proxies of several sizes, label counts and noise rates are fitted to them.
    Agents climb the proxies (without a KL penalty, but for DPO), and best-of-n beside them; gold and proxy are
    measured against d = sqrt(KL to the reference), and the laws of Gao et al. 2023 fitted. Five claims are tested
    over seeds: more labels or a larger proxy move the peak outwards, label noise inwards, two kinds of ensemble
    raise it. Claims that the data do not support are reported as such.

    Leaves overoptimization.md (in words), .json (all numbers), .png and .svg in the folder.
    """
    from dataclasses import replace

    from rlhf_env.lab.backends import BackendOptions
    from rlhf_env.lab.studies.overoptimization.figure import save_picture
    from rlhf_env.lab.studies.overoptimization.findings import claim_table, conclude_study, save_findings
    from rlhf_env.lab.studies.overoptimization.run import run_study
    from rlhf_env.lab.studies.overoptimization.study import Study
    from rlhf_env.learning.devices import set_threads

    set_threads()
    study = Study.quick() if quick else Study()
    study = study if seeds is None else replace(study, seeds=seeds)
    folder = out or Path("runs/overoptimization-quick" if quick else "runs/overoptimization")
    console = make_console()
    options = BackendOptions(
        backend=backend,
        jobs=jobs,
        threads=None,
        address=address,
        cpus_per_run=cpus_per_run,
        gpus_per_run=gpus_per_run,
        memory_per_run=memory_per_run,
    )
    with interruptible(), options.opened() as opened:
        run_study(study, folder, jobs=opened, console=console)
    findings = conclude_study(study, folder)
    console.print(claim_table(findings))
    try:
        save_picture(findings, folder)
    except ConfigError as missing:  # pictures are an extra; the numbers are not
        console.print(f"No picture: {missing}", highlight=False, soft_wrap=True)
    console.print(f"In words: {save_findings(findings, folder)}", highlight=False, soft_wrap=True)


@lab_app.command("brake", epilog=examples("rlhf-env lab brake --seeds 2 --without-libraries"))
def brake(
    seeds: Annotated[
        int, typer.Option(help="Seeds of the runs of a tiny model, 20 runs each; rules are chosen on the even.", min=2)
    ] = 8,
    exact_seeds: Annotated[int, typer.Option(help="Seeds of the exact worlds, 8 runs each.", min=2)] = 20,
    out: Annotated[
        Path, typer.Option(help="Where the records of the runs go. A second call makes only what is missing.")
    ] = Path("runs/brake"),
    study: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of an over-optimisation study: what its runs say of the chosen rules. Repeatable."),
    ] = None,
    without_libraries: Annotated[
        bool, typer.Option("--without-libraries", help="Our own rules alone, without rlwatch and reward-scope.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All numbers as JSON, for scripts.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="The page docs/brake.md instead.")] = False,
    jobs: Jobs = None,
) -> None:
    """Which rule ends a run before its learned reward is climbed past the peak of the true one, and at what price?

    320 small runs whose gold is known; KL budgets, entropy, length, rewards, disagreement of an ensemble, our
    warnings, rlwatch's and reward-scope's detectors (`make brake` installs them), and a few paid judgements, all
    replayed on what each run logged. Settings are chosen on half of the runs, and reported on the other half. Some
    fifteen minutes of processor time; with `--seeds 2`, 200 runs, four.
    """
    from rich.console import Console

    from rlhf_env.lab.brake.page import brake_in_words, brake_page, brake_table
    from rlhf_env.lab.brake.study import conclude_brake, saved_runs
    from rlhf_env.learning.devices import set_threads

    set_threads()
    plain = as_json or as_markdown
    console = make_console()
    libraries = not without_libraries
    with interruptible():
        records, elsewhere = saved_runs(
            seeds,
            exact_seeds,
            out,
            studies=study or [],
            libraries=libraries,
            jobs=jobs or 2,
            console=Console(stderr=True, emoji=False) if plain else console,
        )
        with stage_on_stderr("Replaying") as tell:
            found = conclude_brake(records, elsewhere, libraries=libraries, tell=tell)
    if plain:
        typer.echo(found.as_json() if as_json else brake_page(found), nl=False)
        return
    console.print(brake_table(found))
    console.print(brake_in_words(found), highlight=False)


@lab_app.command(
    "transfer", epilog=examples("rlhf-env lab transfer --shipped", "rlhf-env lab transfer --size tiny --size base")
)
def transfer(
    size: Annotated[
        list[str] | None,
        typer.Option("--size", metavar="NAME", help="Run this size: tiny, base, smollm2. Repeatable (default: all)."),
    ] = None,
    model: Annotated[
        Path, typer.Option(help="The folder of SmolLM2-135M-Instruct, as examples/real_model/fetch.py makes it.")
    ] = Path("smollm2"),
    out: Annotated[
        Path, typer.Option(help="Where the runs and transfer.json go. A second call does only what is missing.")
    ] = Path("runs/transfer"),
    shipped: Annotated[
        bool, typer.Option("--shipped", help="From the scores that come with the library; nothing is run.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All scores and correlations as JSON, for scripts.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="The page docs/transfer.md instead.")] = False,
    jobs: Jobs = None,
) -> None:
    """Does a ranking of agents on a small model hold on a larger one? Spearman's correlation, with intervals.

    Eight settings on two tasks at 0.03, 2 and (LoRA) 135 million parameters, equal tokens within a size. Some minutes
    of processor time for the small sizes, half an hour for the large one. Every size that is in the folder is counted,
    whichever this call runs. Leaves transfer.json, .png and .svg.
    """
    from rich.console import Console

    from rlhf_env.lab.benchmark.live_table import benchmark_progress
    from rlhf_env.lab.studies.transfer.figure import save_transfer_picture
    from rlhf_env.lab.studies.transfer.page import places_table, transfer_in_words, transfer_page, transfer_table
    from rlhf_env.lab.studies.transfer.sizes import TASKS
    from rlhf_env.lab.studies.transfer.study import (
        conclude_transfer,
        measured_sizes,
        run_size,
        shipped_findings,
        sizes_to_run,
    )
    from rlhf_env.learning.devices import set_threads
    from rlhf_env.whole_files import write_whole

    if shipped and size:
        raise ConfigError("--shipped runs nothing: leave out --size")
    set_threads()
    plain = as_json or as_markdown
    console = make_console()
    found = shipped_findings() if shipped else None
    if found is None:
        seen = Console(stderr=True, emoji=False) if plain else console
        with interruptible():
            for grid, folder in sizes_to_run(size or [], out, model):
                with benchmark_progress(seen, grid.cells(folder), jobs=jobs or 2) as on_progress:
                    run_size(grid, folder, jobs=jobs or 2, on_progress=on_progress)
        found = conclude_transfer(measured_sizes(out))
        write_whole(out / "transfer.json", found.as_json())
    if plain:
        typer.echo(found.as_json() if as_json else transfer_page(found), nl=False)
        return
    for task in TASKS:
        console.print(places_table(found, task))
    if found.transfers:
        console.print(transfer_table(found))
    console.print(transfer_in_words(found), highlight=False)
    if shipped:
        return
    try:
        save_transfer_picture(found, out)
    except MissingExtra as missing:  # pictures are an extra; the numbers are not
        console.print(f"No picture: {missing}", highlight=False, soft_wrap=True)
    console.print(f"Results: {out}/transfer.json", highlight=False, soft_wrap=True)


@lab_app.command("regularisation", epilog=examples("rlhf-env lab regularisation"))
def regularisation(
    seeds: Annotated[int, typer.Option(help="Seeds for every restraint.", min=1)] = 8,
    threads: Threads = None,
) -> None:
    """Test what keeps a reward model from memorising noisy labels. Half a minute.

    Dropout, weight decay, early stopping and a penalty on large scores are each compared with none.
    """
    from rlhf_env.lab.progress import stage
    from rlhf_env.lab.studies.regularisation import compare_restraints, restraint_table
    from rlhf_env.learning.devices import set_threads

    set_threads(threads)
    console = make_console()
    with stage(console, "Fitting") as tell:
        found = compare_restraints(seeds, tell)
    console.print(restraint_table(found))


@lab_app.command("laws", epilog=examples("rlhf-env lab laws --list", "rlhf-env lab laws std-of-groups"))
def laws(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Laws to decide now; without one, all verdicts.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="The verdicts of the results that come with it.")] = False,
    seeds: Annotated[
        int | None, typer.Option(help="Seeds of the run (default: what the power analysis asks for).", min=2)
    ] = None,
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Pilot and power analysis alone: how many seeds the run would have.")
    ] = False,
    jobs: Jobs = None,
    as_json: AsJson = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="The page docs/laws.md: the list, and what each law measures.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Where NAME.plan.json goes, before the run, and NAME.json after it.")
    ] = Path("runs/laws"),
    threads: Threads = None,
) -> None:
    """Test claims of papers: confirmed, refuted or inconclusive.

    For each claim it prints what the claim predicts, how many seeds it takes to see that (from a pilot), then runs, and
    prints the verdict and where the sign of the effect turns. Without a NAME it lists the verdicts that come with it.
    Most take seconds to minutes; the five of the over-optimisation study train models, and take longer.
    """
    from rlhf_env.lab.laws.page import laws_page
    from rlhf_env.lab.laws.records import as_record, compared_with_shipped, load_law, shipped
    from rlhf_env.lab.laws.running import decide, law_in_words, law_table, plan
    from rlhf_env.learning.devices import set_threads

    set_threads(threads)
    if listed and names:
        raise ConfigError("--list shows all laws, and takes no names: leave out the one or the other")
    if only_plan and (seeds is not None or not names):
        raise ConfigError("--plan is for named laws, and says how many seeds the run has: without --seeds")
    if as_markdown and (names or as_json):
        raise ConfigError("--markdown is a form of the list: without names and without --json")
    console = make_console()
    if not names:
        records = shipped()
        if as_json:
            echo_json(records)
        elif as_markdown:
            typer.echo(laws_page(records), nl=False)
        else:
            console.print(law_table(records))
        return
    found = []
    out.mkdir(parents=True, exist_ok=True)
    for law in [load_law(name) for name in dict.fromkeys(names)]:  # all names are checked before one is run
        if not as_json:
            console.print(f"[bold]{law.name}[/bold]\n{law.claim} ({law.source})\n{law.prediction}", highlight=False)
        say = (
            None if as_json else lambda analysis: console.print(f"Before the run: {analysis.sentence}", highlight=False)
        )
        with interruptible(), stage_on_stderr(law.name) as tell:
            if only_plan:
                record = as_record(
                    law, plan(law, out, jobs=jobs or 2, tell=tell, on_analysis=say or (lambda analysis: None))
                )
            else:
                record = decide(
                    law, out, seeds=seeds, jobs=jobs or 2, tell=tell, on_analysis=say or (lambda analysis: None)
                )
        found.append(record)
        if not as_json and not only_plan:
            console.print(law_in_words(record), highlight=False)
            console.print(f"{out / law.name}.json; {compared_with_shipped(record)}\n", highlight=False, soft_wrap=True)
    if as_json:
        echo_json(found)


@lab_app.command("hybrid", epilog=examples("rlhf-env lab hybrid --seeds 2"))
def hybrid(
    seeds: Annotated[int, typer.Option(help="Seeds for every way.", min=1)] = 10,
    out: Annotated[
        Path | None,
        typer.Option(help="Results by seed (default: runs/hybrid). Seeds that have one are not done again."),
    ] = None,
    threads: Threads = None,
) -> None:
    """Compare one model with a language-model head and a reward head (sft+rm) with two separate models.

    Both are trained on the same texts in the same steps, and measured by held-out perplexity and preference accuracy,
    and by the gold reward after PPO from there. Ten seeds are about four minutes of processor time.
    """
    from rlhf_env.lab.progress import stage
    from rlhf_env.lab.studies.hybrid import HybridStudy, hybrid_table, run_hybrid_study
    from rlhf_env.learning.devices import set_threads

    set_threads(threads)
    console = make_console()
    folder = out or Path("runs/hybrid")
    with interruptible(), stage(console, "Training") as tell:
        found = run_hybrid_study(HybridStudy(seeds=seeds), folder, tell)
    console.print(hybrid_table(found))
    console.print(f"Results: {folder}/seed-*.json", highlight=False, soft_wrap=True)


@lab_app.command("memory", epilog=examples("rlhf-env lab memory experiment.toml --processes 2"))
def memory(
    file: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    processes: Annotated[int, typer.Option(help="Processes that train it, each on a GPU of its own.", min=1)] = 1,
) -> None:
    """Estimate how much memory each process of a run will need, from the model's configuration. Nothing is loaded.

    It compares training all weights, LoRA, and a model sharded over the processes ([engine] shard). Checkpoints are not
    counted.
    """
    from rlhf_env.lab.memory import memory_table, ways_of

    make_console().print(memory_table(ways_of(file, processes=processes)))
