"""What a run of a million updates keeps in memory and writes to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rlhf_env.lab.evaluation.health import VALUE_WARM_UP, WINDOW, Alert, Watch
from rlhf_env.learning.experiment import build
from rlhf_env.learning.loop import train
from rlhf_env.learning.run_folder import RunFolder, drawn, read_metrics
from rlhf_env.learning.spending import Budget


def test_tensorboard_is_shown_500_updates_more_with_every_doubling() -> None:
    counts = [sum(map(drawn, range(end))) for end in (1000, 2000, 4000, 8000, 64_000)]
    assert counts == [1000, 1500, 2000, 2500, 4000]
    assert all(drawn(update) for update in (0, 1000, 64_000))


def test_of_a_row_that_is_not_drawn_tensorboard_gets_the_evaluation(tmp_path: Path) -> None:
    drawn_there: list[tuple[str, int]] = []

    class Writer:
        def add_scalar(self, key: str, _value: float, step: int) -> None:
            drawn_there.append((key, step))

        def close(self) -> None: ...

    with RunFolder(tmp_path, "x = 1") as folder:
        folder._writer = Writer()
        for update in (999, 1001, 1002):
            folder.log({"update": update, "train/loss": 1.0, "eval/gold": 2.0})
    evaluations = [("eval/gold", update) for update in (999, 1001, 1002)]
    assert sorted(drawn_there) == sorted([*evaluations, ("train/loss", 999), ("train/loss", 1002)])
    assert [row["train/loss"] for row in read_metrics(tmp_path)] == [1.0, 1.0, 1.0], "the log has all of them"


def test_what_watches_for_pathologies_forgets_the_middle_of_a_run() -> None:
    rows = [{"update": update, "rollout/entropy": 1.0 - 0.9 * (update > 900)} for update in range(1, 1001)]
    watch, whole = Watch(), []
    for row in rows:
        whole += watch({**row, "rollout/entropy": row["rollout/entropy"] * (0.5 if row["update"] > 950 else 1.0)})
    assert len(watch._rows) <= 2 * (VALUE_WARM_UP + 2 * WINDOW)
    assert watch._rows[0]["update"] == 1, "later rows are compared with the first"
    assert [(alert.name, type(alert)) for alert in whole] == [("entropy collapse", Alert)]
    assert np.diff([row["update"] for row in watch._rows]).min() >= 1


def test_rows_are_kept_in_memory_only_where_no_folder_has_them(toy: Any, tmp_path: Path) -> None:
    def rows_of(run: RunFolder | None) -> list[int]:
        workplace = build(toy("grpo"))
        setup = workplace.setup
        done = train(
            workplace.agent, workplace.source, Budget(updates=2), spending=setup.spending, engine=setup.engine, run=run
        )
        return [row["update"] for row in done.rows]

    with RunFolder(tmp_path, "x = 1", tensorboard=False) as run:
        assert rows_of(run) == []
    assert [row["update"] for row in read_metrics(tmp_path)] == [1, 2]
    assert rows_of(None) == [1, 2]
