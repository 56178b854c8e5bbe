"""What a task of the cluster does, and which options are refused, without Ray: it need not be installed for these.

On a cluster: test_ray_cluster.py (`make ray`).
"""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.errors import ConfigError, MissingExtra
from rlhf_env.lab import cluster_address, ray_cluster
from rlhf_env.lab.backends import BackendOptions
from rlhf_env.lab.benchmark.cells import GridCell
from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.lab.benchmark.run import run_benchmark
from rlhf_env.lab.jobs import Progress
from rlhf_env.lab.moved_files import write_contents
from rlhf_env.lab.processes import LocalProcesses
from rlhf_env.lab.ray_cluster import RayCluster, _Here, _Machine
from rlhf_env.lab.scheduling import run_jobs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fake_ray import installed

Toy = Mapping[str, Any]


def cell_of(toy: Toy, folder: Path) -> GridCell:
    return Grid(agents={"ppo": {"lr": 1e-2}}, experiment={**toy, "budget": {"updates": 12}}, seeds=1).cells(folder)[0]


def without_clock(file: Path) -> dict[str, Any]:
    result = json.loads(file.read_text(encoding="utf-8"))
    del result["spending"]["seconds"]
    return dict(result)


def test_a_failure_is_an_outcome_and_what_it_left_is_sent(toy: Toy, tmp_path: Path) -> None:
    cell = cell_of(toy, tmp_path)
    bad = replace(cell, experiment=replace(cell.experiment, agent={"name": "ppo", "lr": 1e30}))

    def post(kind: str, *content: Any) -> None:
        if kind == "files":
            write_contents(tmp_path / "here", *content)

    outcome = ray_cluster._done(bad, tmp_path / "there", post, {}, _Here.now(tmp_path))
    assert outcome["ended"] == "failed" and outcome["why"]
    assert (tmp_path / "here" / cell.run / "metrics.jsonl").is_file()


def test_a_cell_reads_what_its_experiment_names_by_a_path(toy: Toy, tmp_path: Path) -> None:
    for name in ("prompts.jsonl", "mine.py", "beside.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "mine.py").write_text("import beside\n\ndef mine(completions, **columns):\n    return [0.0]\n")
    (tmp_path / "grid.toml").write_text("[agents.ppo]\n")
    experiment = {
        **toy,
        "task": {"name": "file", "path": "prompts.jsonl"},
        "rewards": {"mine": {"function": "mine.py:mine"}},
    }
    grid = replace(Grid.load(tmp_path / "grid.toml"), experiment=experiment, seeds=1)
    (cell,) = grid.cells(tmp_path / "out")
    read = ray_cluster._read_by([cell], tmp_path / "out")
    assert set(read) == {str(tmp_path / name) for name in ("prompts.jsonl", "mine.py", "beside.py")}


def test_what_a_task_left_goes_where_a_local_run_writes(toy: Toy, tmp_path: Path) -> None:
    cell = cell_of(toy, tmp_path)
    cell.work(tmp_path, lambda _row, _fraction: None)
    left = ray_cluster.seen_in(tmp_path, cell.leaves(tmp_path))
    everything = ray_cluster.seen_in(tmp_path, [tmp_path])
    assert left == everything, "a local run writes nothing else"


def test_a_grid_by_tasks_is_the_grid_of_this_process_though_a_worker_died(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "BETWEEN_NEWS", -1.0)
    ppo, reference = "echo--ppo--seed-0", "echo--reference--seed-0"
    fake = installed(monkeypatch, {ppo: 12})  # it has begun, told of an evaluation and eight updates, sent a checkpoint
    agents = {"ppo": {"lr": 1e-2}, "reference": {}}
    grid = Grid(agents=agents, experiment={**toy, "budget": {"updates": 12}}, seeds=1)
    told: list[Progress] = []
    with pytest.warns(RuntimeWarning, match="no verdict"), BackendOptions(backend="ray").opened() as backend:
        run_benchmark(grid, tmp_path / "tasks", jobs=backend, on_progress=told.append)
    assert fake.log == [f"runs {ppo}", f"runs {reference}", f"runs {ppo}", "ends the mailbox"]
    (lost,) = [news for news in told if news.why]
    died = f"its worker died on {socket.gethostname()}/12ab34 (WorkerCrashedError)"
    assert (lost.ended, lost.why) == (None, f"{died}; another worker resumes it (1 of 3)")
    assert {news.place.partition("/")[2] for news in told if 0.0 < news.fraction < 1.0} == {"12ab34"}
    (resumed,) = json.loads((tmp_path / "tasks" / "cells/echo/ppo/seed-0/record.json").read_text())["resumed"]
    assert resumed["update"] == 5
    with pytest.warns(RuntimeWarning, match="no verdict"):
        run_benchmark(grid, tmp_path / "here", jobs=0)
    for key in (ppo, reference):
        file = Path("results") / f"{key}.json"
        assert without_clock(tmp_path / "tasks" / file) == without_clock(tmp_path / "here" / file)


def test_stopped_by_an_exception_the_tasks_are_cancelled(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = installed(monkeypatch)

    def stop(_news: Progress) -> None:
        raise KeyboardInterrupt

    with BackendOptions(backend="ray").opened() as backend, pytest.raises(KeyboardInterrupt):
        run_jobs([cell_of(toy, tmp_path)], tmp_path, jobs=backend, on_progress=stop)
    assert fake.log == ["runs echo--ppo--seed-0", "cancels", "ends the mailbox"]


# ------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backend": "ray", "jobs": 2}, "--jobs is for processes of this machine"),
        ({"address": "auto"}, "--address: for --backend ray alone"),
        ({"cpus_per_run": 1.0, "gpus_per_run": 0.0}, "--cpus-per-run, --gpus-per-run: for --backend ray alone"),
        ({"memory_per_run": 1.0}, "--memory-per-run: for --backend ray alone"),
        ({"backend": "ray", "cpus_per_run": 0.0}, "cpus per run must be above 0, got 0"),
        ({"backend": "ray", "gpus_per_run": 1.5}, "gpus per run must be a share, as 0.5, or a whole number, got 1.5"),
        ({"backend": "ray", "gpus_per_run": -0.5}, "gpus per run must be a share"),
        ({"backend": "ray", "cpus_per_run": float("nan")}, "cpus per run must be above 0"),
        ({"backend": "ray", "memory_per_run": -1.0}, "memory per run must be at least 0 GiB, got -1"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as raised, BackendOptions(**options).opened():
        pass
    assert said in str(raised.value)


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtra, match=r'ray is not installed: pip install "rlhf-env\[ray\]"'):
        BackendOptions(backend="ray").opened().__enter__()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nonsense", "'nonsense' is no address of a Ray cluster: HOST:PORT, auto or local"),
        ("host:", "'host:' is no address of a Ray cluster"),
        ("ray://head:10001", "Ray's client cannot do this"),
        ("127.0.0.1:DEAD", "no Ray cluster answers at '127.0.0.1:DEAD': [Errno 111] Connection refused"),
        ("127.0.0.1:99999", "no Ray cluster answers at '127.0.0.1:99999'"),
    ],
)
def test_an_address_that_nobody_answers_at_is_refused_before_ray_tries_it(address: str, said: str) -> None:
    port = str(free_port())
    with pytest.raises(ConfigError) as raised:
        cluster_address.require_address(address.replace("DEAD", port))
    assert said.replace("DEAD", port) in str(raised.value)


def test_the_room_of_a_machine_by_hand() -> None:
    machine = _Machine("12ab34cd", "node-a", {"CPU": 8.0, "GPU": 2.0, "memory": 3.0 * 2**30})
    for wanted, room in (
        ({"CPU": 1.0, "GPU": 0.0, "memory": 0.0}, 8),
        ({"CPU": 3.0, "GPU": 0.0, "memory": 0.0}, 2),
        ({"CPU": 1.0, "GPU": 0.5, "memory": 0.0}, 4),
        ({"CPU": 1.0, "GPU": 0.5, "memory": 2.0 * 2**30}, 1),
        ({"CPU": 9.0, "GPU": 0.0, "memory": 0.0}, 0),
    ):
        assert machine.slots(wanted) == room
    assert machine.name == "node-a/12ab34"


def test_a_run_that_no_machine_has_room_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = _Machine("12ab34cd", "node-a", {"CPU": 2.0, "memory": 2.0 * 2**30})
    monkeypatch.setattr(ray_cluster, "_machines", lambda: [machine])
    with pytest.raises(ConfigError) as raised:
        RayCluster({"CPU": 2.0, "GPU": 1.0, "memory": 0.0}).require_fit()
    room = "no machine of the cluster has room for a run of 2 CPUs, 1 GPU"
    assert str(raised.value) == f"{room}: node-a/12ab34 has 2 CPUs, 2.0 GiB of memory"


def test_machines_that_differ_are_named_with_what_differs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = _Machine("12ab34cd", "node-a", {"CPU": 2.0})
    monkeypatch.setattr(ray_cluster, "_machines", lambda: [machine])
    cluster = RayCluster({"CPU": 1.0, "GPU": 0.0, "memory": 0.0})
    theirs = {**ray_cluster._own_versions(), "torch": "1.0"}
    monkeypatch.setattr(RayCluster, "asked", lambda *_: {machine: theirs})
    with pytest.raises(ConfigError, match=r"node-a/12ab34 has torch 1\.0 \(here .*\): install the same versions"):
        cluster.require_fit()

    data = tmp_path / "prompts.jsonl"
    data.write_text("mine")
    expected = ray_cluster.look_at([data])
    monkeypatch.setattr(RayCluster, "asked", lambda *_: {machine: ([], {str(data): "of other content"})})
    with pytest.raises(ConfigError, match=r"prompts\.jsonl has another content on node-a/12ab34"):
        cluster.lacking(expected)
    same = ray_cluster.sha256_of(str(data))
    monkeypatch.setattr(RayCluster, "asked", lambda *_: {machine: ([], {str(data): same})})
    assert cluster.lacking(expected) == {}


def test_processes_of_this_machine_are_not_compared(toy: Toy, tmp_path: Path) -> None:
    cell = cell_of(toy, tmp_path)
    assert LocalProcesses(2).require_alike([cell], tmp_path) is None  # type: ignore[func-returns-value]
