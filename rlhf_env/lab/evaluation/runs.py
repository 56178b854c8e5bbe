"""An experiment from its first evaluation to its last, and a finished run read back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.offline import load_preferences, pair_source
from rlhf_env.lab.evaluation.evaluator import Evaluation
from rlhf_env.lab.evaluation.health import WARNINGS_FILE, Alert, Watch
from rlhf_env.learning import checkpoints
from rlhf_env.learning.checkpoints import fingerprint
from rlhf_env.learning.experiment import Experiment, Workplace, build
from rlhf_env.learning.loop import Row, Source, train
from rlhf_env.learning.run_folder import RunFolder, read_metrics
from rlhf_env.learning.stopping import load_stopping_rules
from rlhf_env.whole_files import write_json


def run_experiment(
    workplace: Workplace,
    evaluator: Callable[[], Evaluation],
    run: RunFolder,
    *,
    resume: bool = False,
    on_update: Callable[[Row, float], None] | None = None,
    on_alert: Callable[[Alert], None] | None = None,
) -> tuple[str, Evaluation]:
    """Train as the experiment says, evaluating before, on the way and after: why it ended, and the last evaluation.

    What goes wrong on the way is told to `on_alert`, each kind once a run, and kept in the run's warnings.json.
    Agents that do not train are evaluated once.
    """
    experiment = workplace.experiment
    trains = getattr(workplace.agent, "trains", True)
    source: Source = workplace.source
    if experiment.preferences is not None:
        pairs = max(1, experiment.environment.num_envs // 2)
        stored = load_preferences(experiment.preferences)
        lent = workplace.setup
        source = pair_source(stored, lent.tokenizer, pairs=pairs, seed=experiment.seed, reference=lent.reference)
    run.began_with("initial weights", fingerprint(workplace.setup.reference.state_dict()))
    first = None if resume and read_metrics(run.path) else evaluator()
    if first is not None:
        run.log({"update": 0, "spent/generated_tokens": 0, **_eval_row(first)})
    if not trains:
        return "does not train", first or evaluator()

    stopping = load_stopping_rules(experiment.stopping_tables())
    stopping(read_metrics(run.path)[0])  # what was there before training is there to be improved on

    watch = Watch.of(run.path)

    def follow(row: Row, fraction: float) -> None:
        if alerts := watch(row):
            write_json(run.path / WARNINGS_FILE, [asdict(alert) for alert in watch.found])
            if on_alert is not None:
                for alert in alerts:
                    on_alert(alert)
        if on_update is not None:
            on_update(row, fraction)

    training = train(
        workplace.agent,
        source,
        experiment.budget,
        spending=workplace.setup.spending,
        engine=workplace.setup.engine,
        run=run,
        resume=resume,
        checkpoint_every=experiment.checkpoint_every,
        evaluate=lambda: dict(evaluator().metrics),
        evaluate_every=experiment.evaluation.every,
        stop_when=stopping,
        on_update=follow,
    )
    return training.reason, evaluator()


def evaluation_curve(run: Path) -> list[dict[str, float]]:
    """The evaluations logged on the way: update, generated tokens, and the evaluator's metrics."""
    curve = []
    for row in read_metrics(run):
        point = {key.removeprefix("eval/"): value for key, value in row.items() if key.startswith("eval/")}
        if point:
            tokens = row.get("spent/generated_tokens", 0)
            curve.append({"update": row["update"], "generated_tokens": tokens, **point})
    return curve


def _eval_row(evaluation: Evaluation) -> dict[str, float]:
    return {f"eval/{name}": value for name, value in evaluation.metrics.items()}


def load_run(folder: str | Path) -> tuple[Workplace, int]:
    """A run built again as it was at its newest valid checkpoint, and the update that was."""
    folder = Path(folder)
    described = folder / "experiment.toml"
    if not described.is_file():
        raise ConfigError(f"{folder} holds no run: it has no experiment.toml (rlhf-env train makes such folders)")
    experiment = Experiment.load(described)
    newest = checkpoints.latest(folder / "checkpoints")
    damaged = [p for c in sorted((folder / "checkpoints").glob("step-*")) for p in checkpoints.problems(c)]
    if newest is None and damaged:
        raise DataError("no valid checkpoint is left", *damaged)
    workplace = build(experiment)
    if newest is None:
        if getattr(workplace.agent, "trains", True):
            raise DataError(f"{folder} has no checkpoint yet: train further, with a smaller checkpoint_every")
        return workplace, 0
    state, manifest = checkpoints.load(newest)
    if manifest.get("config_hash") != hashlib.sha256(described.read_bytes()).hexdigest()[:16]:
        raise DataError(f"{described} is not what {newest} was trained with: it was changed; put it back")
    workplace.agent.load_state_dict(state["agent"])
    if "rewards" in state["source"]:
        workplace.env.reward.load_state_dict(state["source"]["rewards"])
    return workplace, int(manifest["step"])
