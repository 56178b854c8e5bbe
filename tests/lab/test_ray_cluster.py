"""A grid, a study and a pipeline on a Ray cluster of two machines: the files of a local run, whoever dies on the way.

`make ray` installs Ray beside .venv and runs these (two to five minutes); elsewhere they are left out.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

if not os.environ.get("RLHF_ENV_TEST_RAY"):
    pytest.skip("make ray", allow_module_level=True)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

from rlhf_env.errors import ConfigError  # noqa: E402
from rlhf_env.feedback.reward_models.config import RewardModelConfig  # noqa: E402
from rlhf_env.lab import ray_cluster  # noqa: E402
from rlhf_env.lab.benchmark.grid import Grid  # noqa: E402
from rlhf_env.lab.benchmark.run import run_benchmark  # noqa: E402
from rlhf_env.lab.jobs import Progress  # noqa: E402
from rlhf_env.lab.ray_cluster import connected  # noqa: E402
from rlhf_env.lab.studies.overoptimization.run import run_study  # noqa: E402
from rlhf_env.lab.studies.overoptimization.study import Climb, Proxy, Study, TestedChange  # noqa: E402
from rlhf_env.pipeline.running import run_pipeline  # noqa: E402

Toy = Mapping[str, Any]
QUIET = Console(quiet=True)
UPDATES = 80  # of a run that is stopped on the way
STORE = {"object_store_memory": 80 * 2**20}


def grid_of(toy: Toy, updates: int, seeds: int = 1) -> Grid:
    agents = {"ppo": {"lr": 1e-2}, "reinforce": {}}
    evaluation = {**toy["evaluation"], "every": 0}
    return Grid(
        agents=agents, experiment={**toy, "budget": {"updates": updates}, "evaluation": evaluation}, seeds=seeds
    )


def results_of(folder: Path) -> dict[str, dict[str, Any]]:
    """By file name, without what a clock decides."""
    found = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in (folder / "results").iterdir()}
    for result in found.values():
        del result["spending"]["seconds"]
    return found


def until(there: Callable[[], object]) -> None:
    for _ in range(1500):
        if there():
            return
        time.sleep(0.2)
    raise AssertionError("not within five minutes")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines with one core each."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **STORE})
    made.add_node(num_cpus=1, **STORE)
    made.wait_for_nodes()
    yield made
    made.shutdown()


def worker_of(key: str) -> int | None:
    """The process of the task of this name."""
    for process in Path("/proc").iterdir():
        try:
            if f"ray::{key}" in (process / "cmdline").read_text():
                return int(process.name)
        except (OSError, ValueError):
            continue
    return None


def test_cell_for_cell_what_a_local_run_leaves_from_both_machines(toy: Toy, cluster: Any, tmp_path: Path) -> None:
    grid = grid_of(toy, 10, seeds=3)
    run_benchmark(grid, tmp_path / "local", jobs=0)
    places = set()
    with connected(cluster.address) as backend:
        assert backend.at_once == 2
        run_benchmark(grid, tmp_path / "ray", jobs=backend, on_progress=lambda news: places.add(news.place))
    assert results_of(tmp_path / "ray") == results_of(tmp_path / "local")
    assert len(places - {""}) == 2 and all("/" in place for place in places - {""})
    names = [
        {
            file.relative_to(tmp_path / folder).as_posix()
            for file in (tmp_path / folder).rglob("*")
            if file.is_file() and "tfevents" not in file.name
        }
        for folder in ("local", "ray")
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("what", ["worker", "machine"])
def test_a_run_whose_worker_or_machine_dies_is_resumed_by_another(
    what: str, toy: Toy, cluster: Any, tmp_path: Path
) -> None:
    grid = grid_of(toy, UPDATES)
    (cell,) = grid.cells(only=["echo/ppo"])
    machine = cluster.add_node(num_cpus=1, resources={"here": 1}, **STORE) if what == "machine" else None
    told: list[Progress] = []
    killed = False

    def kill(news: Progress) -> None:
        nonlocal killed
        told.append(news)
        if not killed and list((tmp_path / "ray" / cell.run).glob("checkpoints/*/manifest.json")):
            killed = True
            if machine is not None and f"/{machine.node_id[:6]}" in news.place:
                cluster.remove_node(machine, allow_graceful=False)
            elif (worker := worker_of(cell.key)) is not None:
                os.kill(worker, signal.SIGKILL)

    with connected(cluster.address) as backend:
        run_benchmark(grid, tmp_path / "ray", jobs=backend, only=["echo/ppo"], on_progress=kill)
    (lost,) = [news for news in told if news.why]
    assert lost.why.endswith("another worker resumes it (1 of 3)") and lost.place in lost.why
    (resumed,) = json.loads((tmp_path / "ray" / cell.run / "record.json").read_text())["resumed"]
    assert 0 < resumed["update"] < UPDATES and resumed["lost"] == []
    run_benchmark(grid, tmp_path / "local", jobs=0, only=["echo/ppo"])
    assert results_of(tmp_path / "ray") == results_of(tmp_path / "local")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_a_command_saves_every_run_and_the_next_one_goes_on(
    number: signal.Signals, toy: Toy, cluster: Any, tmp_path: Path
) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(grid_of(toy, UPDATES).to_toml())
    command = [sys.executable, "-m", "rlhf_env", "bench", str(file), "--out", str(tmp_path / "ray"), "--backend", "ray"]
    with (tmp_path / "log").open("w") as log:
        call = subprocess.Popen([*command, "--address", cluster.address], stdout=log, stderr=log)
        saved = (tmp_path / "ray").glob
        until(lambda: len(list(saved("cells/*/*/*/checkpoints/*/manifest.json"))) > 1)
        call.send_signal(number)
        assert call.wait(120) == 128 + number
    assert "stopped, what is done is saved; resume with: rlhf-env bench" in (tmp_path / "log").read_text()
    assert worker_of("echo--") is None
    if number == signal.SIGTERM:
        return
    with connected(cluster.address) as backend:
        run_benchmark(Grid.load(file), tmp_path / "ray", jobs=backend)
    run_benchmark(Grid.load(file), tmp_path / "local", jobs=0)
    assert results_of(tmp_path / "ray") == results_of(tmp_path / "local")


@pytest.mark.parametrize(
    ("wants", "said"),
    [
        ({"cpus": 64.0}, "room for a run of 64 CPUs"),
        ({"gpus": 64.0}, "1 CPU, 64 GPUs"),
        ({"memory": 1e6}, "1,000,000.0 GiB of memory"),
    ],
)
def test_what_no_machine_has_is_refused(wants: dict[str, float], said: str, cluster: Any) -> None:
    with pytest.raises(ConfigError, match=said), connected(cluster.address, **wants):
        pass
    assert not ray.is_initialized()


def test_machines_with_other_versions_are_refused(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {**ray_cluster._own_versions(), "torch": "1.0"}
    monkeypatch.setattr(ray_cluster, "versions", lambda: ours)
    with (
        pytest.raises(ConfigError, match=r"has torch .* \(here 1\.0\): install the same versions"),
        connected(cluster.address),
    ):
        pass


def test_what_stands_at_the_address_is_not_ray(tmp_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"], stdout=subprocess.PIPE, cwd=tmp_path
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split(b"port ")[1].split()[0].decode()
        with pytest.raises(ConfigError, match="no Ray cluster answers at"), connected(f"127.0.0.1:{port}"):
            pass
    finally:
        server.kill()
        server.wait()


# ------------------------------------------------------------------ machines that share no disk


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a cluster, and a folder in the place of which its one machine with cores has another disk."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("no mount namespaces here")
    folder = tmp_path_factory.mktemp("apart")
    head = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **STORE})
    start = f"{sys.executable} -m ray.scripts.scripts start --address={head.address} --num-cpus=2 --block"
    script = f"mount -t tmpfs tmpfs {folder} && exec {start} --object-store-memory={STORE['object_store_memory']}"
    machine = subprocess.Popen(["unshare", "-rm", "sh", "-c", script], stdout=subprocess.DEVNULL)
    ray.init(address=head.address, log_to_driver=False)
    until(lambda: ray.cluster_resources().get("CPU"))
    ray.shutdown()
    yield head.address, folder
    machine.terminate()
    machine.wait()
    head.shutdown()


def files_there(address: str, folder: Path) -> list[str]:
    """What is in the folder on the machine with the other disk."""

    def listed() -> list[str]:
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))

    ray.init(address=address, log_to_driver=False)
    try:
        return list(ray.get(ray.remote(num_cpus=1)(listed).remote()))
    finally:
        ray.shutdown()


def test_what_a_grid_reads_is_brought_and_taken_away(toy: Toy, apart: tuple[str, Path]) -> None:
    address, disk = apart
    (disk / "words.jsonl").write_text("".join(f'{{"prompt": "{word}"}}\n' for word in ("a=", "b=", "ab=")))
    (disk / "mine.py").write_text(
        "import beside\n\ndef mine(completions, **columns):\n    return beside.of(completions)\n"
    )
    (disk / "beside.py").write_text('def of(completions):\n    return [float("a" in text) for text in completions]\n')
    grid = grid_of(toy, 10)
    changed = {"task": {"name": "file", "path": "words.jsonl"}, "rewards": {"mine": {"function": "mine.py:mine"}}}
    experiment = {**grid.experiment, **changed, "evaluation": {"prompts": 2}}
    (disk / "grid.toml").write_text(Grid(agents=grid.agents, experiment=experiment, seeds=1).to_toml())
    assert files_there(address, disk) == []
    places = set()
    with connected(address) as backend:
        ended = lambda news: places.add(news.place)  # noqa: E731
        run_benchmark(Grid.load(disk / "grid.toml"), disk / "ray", jobs=backend, on_progress=ended)
    run_benchmark(Grid.load(disk / "grid.toml"), disk / "local", jobs=0)
    assert results_of(disk / "ray") == results_of(disk / "local")
    assert len(places - {""}) == 1
    assert files_there(address, disk) == []


def test_a_study_on_a_cluster(apart: tuple[str, Path]) -> None:
    address, disk = apart
    climb = Climb(agent={"name": "rloo", "lr": 5e-2}, updates=4, every=2, num_envs=8)
    study = Study(
        seeds=1,
        task={"name": "echo", "length": 2},
        policy="rlhf-env/chitchat",
        gold={"length": {"weight": 2.0, "target": 4}},
        max_new_tokens=4,
        max_prompt_tokens=6,
        pair_prompts=8,
        temperatures=(1.0, 1.5),
        measured_prompts=4,
        pool=4,
        proxies={"base": Proxy(labels=6, layers=1), "noisy": Proxy(labels=6, layers=2, flips=0.25)},
        fitting=RewardModelConfig(epochs=1, batch_size=8, validation=0.0),
        climbs={
            "rloo": climb,
            "dpo": replace(climb, agent={"name": "dpo"}, offline=True, beta=0.1),
        },
        claims=(TestedChange(claim="noise", proxy="noisy", than="base", what="distance", expected="worse"),),
    )
    folder = disk / "study"
    with connected(address) as backend:
        run_study(study, folder, jobs=backend, console=Console())
    folder.rename(disk / "study-ray")  # results name the proxies by their paths
    run_study(study, folder, jobs=0, console=QUIET)
    assert results_of(disk / "study-ray") == results_of(folder)
    for file in [*(folder / "texts").iterdir(), *(folder / "proxies").glob("*.json*")]:
        assert file.read_bytes() == (disk / "study-ray" / file.relative_to(folder)).read_bytes(), file.name
    assert not list((disk / "study-ray").rglob("checkpoints"))
    assert "study" not in files_there(address, disk)


PIPELINE = """
name = "small"

[defaults]
policy = { tokenizer = "alphabet:ab=" }
task = { name = "echo", length = 2 }
environment = { num_envs = 8, max_new_tokens = 4, max_prompt_tokens = 4 }
rewards = { length = { target = 3 } }
evaluation = { prompts = 4 }

[[stage]]
name = "first"
kind = "train"
agent = { name = "reinforce" }
budget = { updates = 2 }

[[stage]]
name = "grid"
kind = "bench"
from = "first"
seeds = 1
agents = { reinforce = {}, reference = {} }
budget = { updates = 4 }
"""


def test_a_pipeline_on_a_cluster(apart: tuple[str, Path]) -> None:
    address, disk = apart
    (disk / "pipeline.toml").write_text(PIPELINE)
    with connected(address) as backend:
        run_pipeline(disk / "pipeline.toml", disk / "pipeline", jobs=backend)
    (disk / "pipeline").rename(disk / "pipeline-ray")
    run_pipeline(disk / "pipeline.toml", disk / "pipeline", jobs=1)
    assert results_of(disk / "pipeline-ray" / "grid") == results_of(disk / "pipeline" / "grid")
