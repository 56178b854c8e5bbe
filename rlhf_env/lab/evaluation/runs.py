"""`run`: what `rlhf-env train` does, from Python; `load_run` reads a run back from its folder."""

from __future__ import annotations

import json
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from rlhf_env import plugins
from rlhf_env.device_names import AUTO
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.lab.evaluation.evaluator import Evaluation, Evaluator
from rlhf_env.lab.evaluation.exporting import export_policy
from rlhf_env.lab.evaluation.health import WARNINGS_FILE, Alert, Watch
from rlhf_env.lab.evaluation.preparing import evaluator_of, is_better_when_lower, prepare, with_data
from rlhf_env.learning import checkpoints
from rlhf_env.learning.agent import Agent, give_back, traits
from rlhf_env.learning.code_of_runs import require_own_code
from rlhf_env.learning.data_of_runs import data_among
from rlhf_env.learning.devices import set_threads
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.loop import Row
from rlhf_env.learning.processes import Processes, join
from rlhf_env.learning.recorded_texts import RecordedTextsSettings, texts_of_rollout
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.run_folder import BEST, RunFolder
from rlhf_env.learning.run_models import has_other_weights, needing_first_model, require_begun_with
from rlhf_env.learning.run_record import as_logged, config_hash, hashes_before, read_metrics, record_of, versions
from rlhf_env.learning.sharding import weights_told
from rlhf_env.learning.spending import Spending
from rlhf_env.learning.workplace import Workplace, build
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.policy import Policy, all_weights
from rlhf_env.runs_on_disk import asked_in_plain, paths_from
from rlhf_env.shown_text import near
from rlhf_env.types import JsonView
from rlhf_env.whole_files import write_json

if TYPE_CHECKING:
    from rich.console import Console

EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A training run: what was measured, and the agent as it is now.

        run = rlhf_env.run("experiment.toml")
        run.evaluation.metrics["objective"], run.reason
        [row["rollout/reward"] for row in run.metrics[1:]]

    `run` makes it, and `load_run` reads it back from a folder, at its newest checkpoint.

    Attributes:
        workplace: the environment, the agent, the policy and its reference, to be used further.
        folder: where the run's files are; None where it left none.
        reason: why it ended: "budget", "does not train", or what a rule for stopping said; None if it has not ended.
        warnings: what went wrong on the way, each kind once (see `Alert`).
        lost: what a resume with `allow_partial` could not find any more, one line each.
        not_exact: what was not as before when the run was resumed, so that its bits may differ from those of an
            uninterrupted run.
    """

    workplace: Workplace
    folder: Path | None
    reason: str | None
    warnings: Sequence[Alert] = ()
    lost: Sequence[str] = ()
    not_exact: Sequence[str] = ()
    _rows: Sequence[Row] = ()
    _evaluation: Evaluation | None = None

    def __repr__(self) -> str:
        experiment = self.experiment
        what = f"{experiment.name!r}, {experiment.agent_label}, seed {experiment.seed}"
        told = "".join(f", {warning.name}" for warning in self.warnings)
        ended = "not ended" if self.reason is None else f"ended: {self.reason}"
        return f"Run({what}: {ended}, update {self.update}{told}; {self.folder or 'no folder'})"

    @property
    def experiment(self) -> Experiment:
        return self.workplace.experiment

    @property
    def agent(self) -> Agent:
        return self.workplace.agent

    @property
    def policy(self) -> Policy:
        """The model, with the weights it has now."""
        return self.workplace.setup.policy

    @property
    def spending(self) -> Spending:
        """What the run has cost: updates, episodes, generated tokens, seconds, ..."""
        return self.workplace.setup.spending

    @property
    def update(self) -> int:
        """How many updates the agent has behind it."""
        return self.spending.updates

    @cached_property
    def metrics(self) -> list[Row]:
        """One row for each update, after that of the evaluation before training (update 0); null (None) is not finite.

        Read from the folder when it is first asked for.
        """
        return list(self._rows) if self.folder is None else read_metrics(self.folder)

    @cached_property
    def evaluation(self) -> Evaluation:
        """Metrics and samples on held-out prompts; of a run that has not ended, the agent is evaluated here and now."""
        return evaluator_of(self.workplace)() if self._evaluation is None else self._evaluation

    def export(self, out: str | Path, *, dtype: str | None = None, adapter: bool = False) -> Path:
        """Write the policy, with the weights it has now, into the folder `out`, as `rlhf-env export` does; `out`.

        Others load it, and a model card says what it is. `dtype`: of the weights, where it should be another.
        `adapter`: of a run with LoRA, the adapters alone. Raises ConfigError; DiskRefused.
        """
        last = {} if self._evaluation is None else self._evaluation.metrics
        record = {} if self.folder is None else record_of(self.folder)
        export_policy(
            self.workplace, out, rows=self.metrics, evaluation=last, record=record, dtype=dtype, adapter=adapter
        )
        return Path(out)


def run(
    experiment: Experiment | Workplace | JsonView | str | Path,
    folder: str | Path | None = None,
    resume: bool = False,
    *,
    allow_partial: bool = False,
    allow_changed_code: bool = False,
    threads: int | None = None,
    name: str | None = None,
    console: Console | None = None,
    on_update: Callable[[Row, float], None] | None = None,
    on_warning: Callable[[Alert], None] | None = None,
) -> Run:
    """Train as an experiment says: evaluate, train until the budget is spent or a rule says stop, evaluate.

        run = rlhf_env.run({"policy": {"tokenizer": "alphabet:ab:"}, "agent": {"name": "grpo"}})
        print(run.evaluation.metrics["objective"])

    The same run as `rlhf-env train` makes of the same file, bit for bit. It says nothing on the way, but for Python
    warnings about what goes wrong in it.

    Args:
        experiment: an `Experiment`, the path of a TOML file, such a file's content as a dict, or what `build` made.
        folder: where metrics, checkpoints and the evaluation go. Default: nothing is written to disk, and a run that is
            interrupted is gone.
        resume: continue from the newest checkpoint in `folder`; from the start where there is none.
        allow_partial: resume a run whose files are damaged or missing with what is whole (see `Run.lost`).
        allow_changed_code: resume a run whose own code (`function = "FILE.py:NAME"`) changed since; it says so.
        threads: for tensor work while it trains (default: as many as the run had before; else 1, for models of five
            million parameters or more one for each idle core).
        name: what trackers call the run (default: the folder's name).
        console: show a progress bar, and warnings, on this console of `rich`.
        on_update: called with each row of metrics and the share of the budget that is spent.
        on_warning: called with each warning, instead of Python's `warnings.warn`.

    Ctrl-C or SIGTERM: the update under way is finished, the run is saved in `folder`, and Interrupted is raised.
    Raises ConfigError for settings that are wrong (with the line, if they come from a file), for a folder that holds a
    run unless `resume` is set, and what `train` raises.

    In a script that a launcher has started several times (torchrun, accelerate launch), all of them train this one run
    together, and the first has its folder: see docs/scale.md.
    """
    processes = join()
    resume = resume or allow_partial or allow_changed_code
    if folder is None and resume:
        raise ConfigError("only a run with a folder can be resumed: pass `folder`")
    threads_before = torch.get_num_threads()
    set_threads(threads)
    try:
        workplace = with_data(experiment) if isinstance(experiment, Workplace) else prepare(experiment, folder)
        workplace.start_writer()  # before anything is written
        with ExitStack() as stack:
            opened = None
            wanted = workplace.experiment
            if folder is None and wanted.trackers:
                raise ConfigError("only a run with a folder can be tracked: pass `folder`")
            data = data_among(wanted.data_named) if folder is not None or processes.size > 1 else {}
            _require_alike(processes, workplace, data, {"--out": str(folder), "--resume": str(resume)})
            if folder is not None:
                to_open = RunFolder(
                    folder,
                    wanted.to_toml(),
                    resume=resume,
                    allow_partial=allow_partial,
                    trackers=wanted.located().trackers,
                    name=name,
                    paths_from=wanted.folder,
                    code=workplace.code,
                    data=data,
                    plugins=_plugins_of(wanted),
                    allow_changed_code=allow_changed_code,
                    megabytes_of_texts=wanted.texts.megabytes,
                )
                opened = to_open if processes.is_first else None
                processes.from_first(lambda: stack.enter_context(to_open) and None)
            if not processes.is_first:
                console, on_warning = None, on_warning or _say_nothing
            if console is not None:
                on_update, on_warning = stack.enter_context(_shown_on(console, opened, resume, on_update, on_warning))
            size = sum(parameter.numel() for parameter in workplace.setup.policy.parameters())
            before = processes.first_of(None if opened is None else opened.threads)
            set_threads(threads or before, parameters=size)
            path = None if folder is None else Path(folder).absolute()
            return _trained(workplace, opened, path, resume, on_update or _say_nothing, on_warning or _warn)
    finally:
        torch.set_num_threads(threads_before)


def _require_alike(
    processes: Processes, workplace: Workplace, data: Mapping[str, str], asked: Mapping[str, str]
) -> None:
    """Raise ConfigError, in all processes, where they were started with other files, versions or flags."""
    if processes.size == 1:
        return
    if workplace.setup.engine.processes is not processes:
        raise ConfigError(
            "what was built before the processes of a launcher met is of one process: pass the experiment itself, or "
            "call rlhf_env.learning.processes.join() before build()"
        )
    of_files = {Path(file).name: sha256 for file, sha256 in sorted({**workplace.code, **data}.items())}
    processes.require_equal(
        {
            **asked,
            "experiment": config_hash(workplace.experiment.to_toml()),
            **{name: version for name, version in versions().items() if name != "platform"},
            **_plugins_of(workplace.experiment),
            "model (sha256 of its weights)": weights_told(workplace.setup.policy),
            **of_files,
        }
    )


def _plugins_of(experiment: Experiment) -> dict[str, str]:
    """The versions of the installed distributions that plugins which the experiment names are of."""
    return plugins.host().versions_of(_words(tomllib.loads(experiment.to_toml())))


def _words(value: object) -> set[str]:
    """All keys and strings in what a TOML file says."""
    if isinstance(value, Mapping):
        return set(value).union(*map(_words, value.values()))
    if isinstance(value, list):
        return set().union(*map(_words, value))
    return {value} if isinstance(value, str) else set()


def _trained(
    workplace: Workplace,
    opened: RunFolder | None,
    folder: Path | None,
    resume: bool,
    on_update: Callable[[Row, float], None],
    on_warning: Callable[[Alert], None],
) -> Run:
    """`opened`: the run folder `folder`, in the process that writes."""
    processes = workplace.setup.engine.processes
    texts = _Texts(workplace, opened)
    evaluator = evaluator_of(workplace, texts.of_evaluation if texts.wanted.of_evaluation else None)
    watch = Watch() if opened is None else Watch.of(opened.path)
    latest: tuple[int, Evaluation] | None = None  # and after how many updates that was

    def evaluate() -> Mapping[str, float]:
        nonlocal latest
        evaluation = evaluator()
        latest = workplace.setup.spending.updates, evaluation
        return processes.first_of(dict(evaluation.metrics))

    def follow(row: Row, fraction: float) -> None:
        new = watch(row)
        if new and opened is not None:
            write_json(opened.path / WARNINGS_FILE, [asdict(alert) for alert in watch.found])
        for alert in new:
            on_warning(alert)
        on_update(row, fraction)

    training = workplace.train(
        run=opened,
        resume=resume,
        evaluate=evaluate,
        lower_is_better=is_better_when_lower(evaluator),
        on_update=follow,
        on_rollout=texts.of_rollout if texts.wanted.of_rollout and opened is not None else None,
    )
    # An evaluation changes nothing, so another one of the same agent would say the same.
    final = latest[1] if latest is not None and latest[0] == workplace.setup.spending.updates else evaluator()
    finished = Run(
        workplace=workplace,
        folder=folder,
        reason=training.reason,
        warnings=tuple(watch.found),
        lost=() if opened is None else tuple(opened.lost),
        not_exact=() if opened is None else tuple(opened.not_exact),
        _rows=[as_logged(row) for row in training.rows],
        _evaluation=final,
    )
    if opened is not None:
        ended = {"reason": training.reason, "update": finished.update}
        evaluated = {"metrics": dict(final.metrics), "samples": list(final.samples)}
        write_json(opened.path / EVALUATION_FILE, ended | evaluated)
    processes.barrier()  # a launcher ends all when one has ended
    return finished


@dataclass(frozen=True)
class _Texts:
    """Keeps texts of a run in its folder, as `[texts]` says; without a folder, nothing."""

    workplace: Workplace
    opened: RunFolder | None

    @property
    def wanted(self) -> RecordedTextsSettings:
        return self.workplace.experiment.texts

    def of_evaluation(self, rollout: Rollout) -> None:
        if self.opened is None or self.opened.texts is None:
            return
        update, every = self.workplace.setup.spending.updates, self.workplace.experiment.evaluation.every
        evaluator = Evaluator.of(self.workplace)
        last = bool(update % every if every else update)  # not one of those on the way
        texts = evaluator.recorded(rollout, self.wanted.of_evaluation)
        occasion = 0 if last or not every else update // every
        self.opened.texts.write("evaluation", update, occasion, texts, last=last)

    def of_rollout(self, update: int, rollout: Rollout) -> None:
        if self.opened is None or self.opened.texts is None:
            return
        setup = self.workplace.setup
        kl = self.workplace.env.reward.kl
        named, credited = None if kl is None else kl.name, setup.engine.credited
        texts = texts_of_rollout(rollout, self.wanted.of_rollout, setup.tokenizer, named, credited)
        self.opened.texts.write("rollout", update, update // self.wanted.rollouts_every, texts)


@contextmanager
def _shown_on(
    console: Console,
    opened: RunFolder | None,
    resume: bool,
    on_update: Callable[[Row, float], None] | None,
    on_warning: Callable[[Alert], None] | None,
) -> Iterator[tuple[Callable[[Row, float], None], Callable[[Alert], None]]]:
    """What to call with rows and with warnings, so that they are seen on the console too."""
    from rich.markup import escape

    from rlhf_env.lab.progress import training_progress

    if resume and opened is not None and not any(opened.path.glob("checkpoints/step-*")):
        console.print(
            f"No checkpoint in {escape(str(near(opened.path)))}: from the start", highlight=False, soft_wrap=True
        )
    with training_progress(console) as advance:

        def update(row: Row, fraction: float) -> None:
            advance(row, fraction)
            (on_update or _say_nothing)(row, fraction)

        def warn(alert: Alert) -> None:
            console.print(f"[yellow]Warning[/yellow] {escape(str(alert))}", highlight=False)

        yield update, on_warning or warn


def _say_nothing(*_: object) -> None:
    """The default for `on_update`."""


def _warn(alert: Alert) -> None:
    """As a Python warning about the caller's line, the nearest that is not this project's own."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("rlhf_"):
        level, frame = level + 1, frame.f_back
    warnings.warn(str(alert), RuntimeWarning, stacklevel=level)


def load_run(
    folder: str | Path,
    checkpoint: Literal["last", "best"] = "last",
    *,
    trust_code: bool = False,
    device: str = AUTO,
) -> Run:
    """Read a run back, as it was at its newest valid checkpoint: the agent and policy with their weights, the metrics.

    "best": as it was at the best evaluation on the way (by `[evaluation] best`); of a run that had none, or whose best
    checkpoint is damaged, as it was at the last.

    Where its experiment names code (`function = "FILE.py:NAME"`), that code runs here: only if you made the run on this
    machine and the code is what it was, or for `trust_code`.

    `device`: where its models compute, as in [policy]; a run does not keep where it was trained.

    Raises ConfigError for a folder that holds no run, DataError for one without a checkpoint that can be used.
    """
    folder = Path(folder)
    described = folder / "experiment.toml"
    if not described.is_file():
        raise ConfigError(f"{folder} holds no run: it has no experiment.toml (rlhf-env train makes such folders)")
    experiment = replace(Experiment.load(described), folder=paths_from(folder), asks_in_plain=asked_in_plain(folder))
    experiment = replace(experiment, policy=replace(experiment.policy, device=device))
    toml = described.read_bytes().decode()
    require_own_code(folder, toml, experiment.code_named, record_of(folder), trust_code=trust_code)
    # Read at once: a run that trains has removed it by the time that its model is built.
    newest = checkpoints.newest(*([folder / BEST] if checkpoint == "best" else []), folder / "checkpoints")
    if newest is None and (damaged := checkpoints.survey(folder / "checkpoints")[1]):
        left = [problem for problems in reversed(damaged.values()) for problem in problems]
        raise DataError(f"{folder}: no valid checkpoint is left: put one back, or train it anew", *left)
    if newest is not None and newest[2].get("config_hash") not in (config_hash(toml), *hashes_before(folder)):
        raise DataError(f"{described} is not what {newest[0]} was trained with: it was changed; put it back")
    with needing_first_model(folder, experiment.policy):
        workplace = build(experiment)
    if newest is None:
        if traits(workplace.agent).trains:
            raise DataError(f"{folder} has no checkpoint yet: train further, with a smaller checkpoint_every")
        return _read_back(workplace, folder)
    state = newest[1]
    reference = workplace.setup.reference
    if isinstance(reference, LanguageModel) and reference.adapted:
        require_begun_with(folder, experiment.policy, all_weights(reference))
    elif has_other_weights(folder, all_weights(reference)):
        said = f"{folder}: {experiment.policy.model!r} has other weights than the run began with: what is said of "
        warnings.warn(f"{said}the reference (KL, win rates) is of the model as it is now", RuntimeWarning, stacklevel=2)
    give_back(workplace.agent, state["agent"])
    workplace.setup.spending.load(state["spending"])
    if "rewards" in state["source"]:
        workplace.env.reward.load_state_dict(state["source"]["rewards"])
    return _read_back(workplace, folder)


def _read_back(workplace: Workplace, folder: Path) -> Run:
    file = folder / EVALUATION_FILE
    try:
        ended = json.loads(file.read_text(encoding="utf-8", errors="surrogatepass")) if file.exists() else {}
    except ValueError as error:
        said = f"{file} is damaged ({error}): put it back, or remove it: train --resume writes it anew"
        raise DataError(said) from error
    if ended.get("update", workplace.setup.spending.updates) != workplace.setup.spending.updates:
        ended = {}  # of another checkpoint than the one that was read
    return Run(
        workplace=workplace,
        folder=folder,
        reason=ended.get("reason"),
        warnings=tuple(Watch.of(folder).found),
        _evaluation=Evaluation(ended["metrics"], ended["samples"]) if ended else None,
    )


def evaluation_curve(run: Path) -> list[dict[str, float]]:
    """The evaluations logged on the way: update, generated tokens, and the evaluator's metrics."""
    curve = []
    for row in read_metrics(run):
        if point := {key.removeprefix("eval/"): value for key, value in row.items() if key.startswith("eval/")}:
            tokens = row.get("spent/generated_tokens", 0)
            curve.append({"update": row["update"], "generated_tokens": tokens, **point})
    return curve
