"""What a run of a million updates keeps in memory and writes to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rlhf_env.lab.evaluation.health import VALUE_WARM_UP, WINDOW, Alert, Watch
from rlhf_env.learning.loop import train
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.spending import Budget
from rlhf_env.learning.workplace import build


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
