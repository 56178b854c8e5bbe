"""Jobs as tasks of a Ray cluster.

    with connected("auto", cpus=2, gpus=0.5) as cluster:
        rlhf_env.run_benchmark(grid, "runs/grid", jobs=cluster)

Machines need share no disk. A task works in a folder of its own machine, and sends what the job leaves back as bytes,
after every checkpoint and at its end; this process alone writes into the benchmark's folder. So a job whose worker or
machine died is given to another one with the files of its last checkpoint. What jobs read (data, models, code of one's
own) has to be the same on all machines: what is missing on one is put there at the same path while jobs run.

This is the only file that imports ray.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_env.errors import ConfigError, DataError, MissingExtra, RlhfEnvError, RunFailed
from rlhf_env.lab.cluster_address import require_address, without_stderr
from rlhf_env.lab.jobs import Crew, Job, Progress, outcome_of
from rlhf_env.lab.moved_files import (
    contents_of,
    has_checkpoint_beyond,
    link_what_is_read,
    look_at,
    missing_and_others,
    put_where_missing,
    seen_in,
    sha256_of,
    take_away,
    work_folder,
    write_contents,
)
from rlhf_env.lab.processes import BETWEEN_NEWS
from rlhf_env.learning.devices import set_threads
from rlhf_env.learning.loop import Row
from rlhf_env.learning.run_record import versions
from rlhf_env.learning.signals import Interrupted
from rlhf_env.time_limit import TimeIsOver, at_most

_GIB = 2**30
_TO_CONNECT = 30.0  # seconds; ray.init itself tries a dead address for two minutes
_TO_ANSWER = 120.0  # seconds in which a machine has to start a worker that imports us
_TO_NOTICE = 20.0  # seconds
_PASSED_ON = ("RLHF_ENV_PLUGINS", "RLHF_ENV_THREADS", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # variables


@contextmanager
def connected(
    address: str = "auto", *, cpus: float = 1.0, gpus: float = 0.0, memory: float = 0.0
) -> Iterator[RayCluster]:
    """A cluster whose machines have been found fit, until the context ends.

    Args:
        address: HOST:PORT of its head; "auto": of the cluster that RAY_ADDRESS names, or that this machine belongs to;
            "local": one of this machine alone, for as long as the context lasts.
        cpus, gpus, memory: what a run needs of a machine: cores, GPUs (a share, as 0.5, lets several runs have one
            together), GiB of memory.

    Raises ConfigError where there is no such cluster, no machine has as much, or one has other versions; MissingExtra.
    """
    wanted = room_of_a_run(cpus, gpus, memory)
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra("ray", "ray")
    require_address(address)
    import ray

    ours = not ray.is_initialized()
    if ours:
        _connect(address)
    try:
        cluster = RayCluster(wanted)
        cluster.require_fit()
        yield cluster
    finally:
        if ours:
            ray.shutdown()


def room_of_a_run(cpus: float, gpus: float, memory: float) -> dict[str, float]:
    """What a run takes, as Ray counts it. Raises ConfigError."""
    problems = []
    if not cpus > 0:
        problems.append(f"cpus per run must be above 0, got {cpus:g}")
    if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        problems.append(f"gpus per run must be a share, as 0.5, or a whole number, got {gpus:g}")
    if memory < 0:
        problems.append(f"memory per run must be at least 0 GiB, got {memory:g}")
    if problems:
        raise ConfigError(*problems)
    return {"CPU": cpus, "GPU": gpus, "memory": memory * _GIB}


def _connect(address: str) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address == "local":
        quiet["include_dashboard"] = False
    before = signal.getsignal(signal.SIGTERM)
    try:
        with at_most(_TO_CONNECT), without_stderr():
            ray.init(address=address, **quiet)
    except (TimeIsOver, ConnectionError, ValueError, RuntimeError) as error:
        ray.shutdown()
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        why = f"no answer within {_TO_CONNECT:g} s" if isinstance(error, TimeIsOver) else why
        start = "`ray start --head` starts one, and prints its address"
        raise ConfigError(f"no Ray cluster answers at {address!r}: {why.rstrip('.')}; {start}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray puts its own there, which would not save anything


@dataclass(frozen=True)
class _Machine:
    """A node of the cluster."""

    id: str
    host: str
    has: Mapping[str, float] = field(hash=False)

    @property
    def name(self) -> str:
        return f"{self.host}/{self.id[:6]}"

    def slots(self, wanted: Mapping[str, float]) -> int:
        """How many runs it has room for, when it has nothing else to do."""
        return int(min((self.has.get(what, 0.0) / amount for what, amount in wanted.items() if amount), default=0.0))


def _machines() -> list[_Machine]:
    import ray

    return [_Machine(n["NodeID"], n["NodeManagerHostname"], n["Resources"]) for n in ray.nodes() if n["Alive"]]


@dataclass
class RayCluster:
    """A backend of `run_jobs`. `wanted`: by Ray's name of it, what a run takes of a machine."""

    wanted: Mapping[str, float]
    retries: int = 3
    _known: dict[str, _Machine] = field(default_factory=dict)  # by id, those whose versions are ours
    # Machine, file and look of what was compared.
    _alike: set[tuple[str, str, tuple[int, int]]] = field(default_factory=set)

    @property
    def at_once(self) -> int:
        return max(1, sum(machine.slots(self.wanted) for machine in _machines()))

    def require_fit(self) -> None:
        """Raises ConfigError where no machine has what a run takes, or one has other versions than this process."""
        machines = _machines()
        if not any(machine.slots(self.wanted) for machine in machines):
            raise ConfigError(
                f"no machine of the cluster has room for a run of {_spoken(self.wanted)}: {_all(machines)}"
            )
        self.meet_new()

    def meet_new(self) -> None:
        """Compare the machines that jobs may go to and that are new. Raises ConfigError: see `require_fit`."""
        new = [it for it in _machines() if it.slots(self.wanted) and it.id not in self._known]
        ours = _own_versions()
        problems = []
        for machine, theirs in self.asked(new, _own_versions).items():
            if others := [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]:
                said = [
                    f"{name} {theirs.get(name, 'missing')} (here {ours.get(name, 'none')})" for name in sorted(others)
                ]
                problems.append(f"{machine.name} has {', '.join(said)}: install the same versions on all machines")
            self._known[machine.id] = machine
        if problems:
            raise ConfigError(*problems)

    def asked(self, machines: Sequence[_Machine], what: Callable[..., Any], *arguments: Any) -> dict[_Machine, Any]:
        """What a function answers on each of the machines; without those that are gone by now.

        Raises ConfigError for one that does not answer.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task = ray.remote(num_cpus=0, max_retries=0)(what)
        there = {it: NodeAffinitySchedulingStrategy(it.id, soft=False) for it in machines}
        answers = {it: task.options(scheduling_strategy=strategy).remote(*arguments) for it, strategy in there.items()}
        found = {}
        for machine, answer in answers.items():
            try:
                found[machine] = ray.get(answer, timeout=_TO_ANSWER)
            except ray.exceptions.RayError as error:
                if isinstance(error, ray.exceptions.RayTaskError) or not _is_gone(machine):
                    raise ConfigError(f"{machine.name} cannot take part: {_said(error)}") from error
        return found

    def require_alike(self, work: Sequence[Job], folder: Path, /) -> None:
        """Raises ConfigError where a machine has another content in a file that the jobs read."""
        self.lacking(_read_by(work, folder.absolute()))

    def lacking(self, expected: Mapping[str, tuple[int, int]]) -> dict[_Machine, list[str]]:
        """Which files are missing on machines that are known. Raises ConfigError for files that are others there."""
        problems, lacking = [], {}
        for machine in _machines():
            new = {path: look for path, look in expected.items() if (machine.id, path, look) not in self._alike}
            answers = self.asked([machine] if new and machine.id in self._known else (), missing_and_others, new)
            for missing, others in answers.values():
                problems += [
                    f"{path} has another content on {machine.name}: copy it there, or remove it there, and it is sent"
                    for path, sha256 in others.items()
                    if sha256 != sha256_of(path)
                ]
                self._alike |= {(machine.id, path, look) for path, look in new.items() if path not in missing}
                if missing:
                    lacking[machine] = missing
        if problems:
            raise ConfigError(*problems)
        return lacking

    def crew(self, folder: Path, /) -> Crew:
        return _Tasks(self, folder.absolute())


def _is_gone(machine: _Machine) -> bool:
    """Whether it leaves the cluster: that takes Ray a moment to notice."""
    until = time.monotonic() + _TO_NOTICE
    while machine.id in {it.id for it in _machines()}:
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def _own_versions() -> dict[str, str]:
    """By name; builds of one version, for processors and for GPUs, count as the same."""
    return {name: version.partition("+")[0] for name, version in versions().items() if name != "platform"}


def _read_by(work: Sequence[Job], folder: Path) -> dict[str, tuple[int, int]]:
    return look_at(dict.fromkeys(str(Path(path).absolute()) for job in work for path in job.reads(folder)))


def _spoken(amounts: Mapping[str, float]) -> str:
    cpus, gpus, memory = (amounts.get(what, 0.0) for what in ("CPU", "GPU", "memory"))
    of_memory = f"{memory / _GIB:,.1f} GiB of memory"
    said = [f"{cpus:g} CPU{'s' * (cpus != 1)}", f"{gpus:g} GPU{'s' * (gpus != 1)}", of_memory]
    return ", ".join(words for words, amount in zip(said, (cpus, gpus, memory), strict=True) if amount)


def _all(machines: Sequence[_Machine]) -> str:
    return "; ".join(f"{it.name} has {_spoken(it.has)}" for it in machines) or "there is none"


def _said(error: BaseException) -> str:
    """The line of an error of Ray that says what happened: of a traceback, the last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if "Traceback" in str(error) else lines[0]


# ------------------------------------------------------------------------- here


class _Mailbox:
    """An actor beside this process, into which tasks put what is heard of them."""

    def __init__(self) -> None:
        import asyncio

        self._letters: list[tuple[Any, ...]] = []
        self._woken = asyncio.Event()

    async def post(self, *letter: Any) -> None:
        self._letters.append(letter)
        self._woken.set()

    async def wake(self) -> None:
        self._woken.set()

    async def take(self) -> list[tuple[Any, ...]]:
        """All that came since; waits until something has, or for `wake`."""
        await self._woken.wait()
        self._woken.clear()
        letters, self._letters = self._letters, []
        return letters


@dataclass(frozen=True)
class _Here:
    """What a task takes over from the process that started it."""

    folder: Path
    working_directory: str
    variables: Mapping[str, str]
    versions: Mapping[str, str]

    @classmethod
    def now(cls, folder: Path) -> _Here:
        variables = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        return cls(folder, str(Path.cwd()), variables, _own_versions())


class _Tasks:
    """A crew: a task for each job, and somewhat more of them than there is room for, so that no machine waits."""

    def __init__(self, cluster: RayCluster, folder: Path) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._cluster, self._folder = cluster, folder
        self._here = _Here.now(folder)
        beside = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._mailbox = ray.remote(num_cpus=0)(_Mailbox).options(scheduling_strategy=beside).remote()
        self._task = ray.remote(max_retries=0)(_do)  # another attempt begins with other files: we start it
        self._letters = self._mailbox.take.remote()
        self._numbers: dict[Any, int] = {}  # by the task's reference, its number
        self._jobs: dict[int, Job] = {}  # by the task's number
        self._places: dict[int, str] = {}
        self._heard: deque[Progress] = deque()
        self._put: dict[_Machine, list[str]] = {}  # what was written on other machines

    def has_room(self) -> bool:
        return len(self._numbers) < 2 * self._cluster.at_once

    def start(self, job: Job, /) -> None:
        reads = _read_by([job], self._folder)
        self._bring(reads)
        number = len(self._jobs)
        self._jobs[number] = job
        kept = contents_of(self._folder, seen_in(self._folder, job.leaves(self._folder)))
        takes = self._cluster.wanted
        options: dict[str, Any] = {"num_cpus": takes["CPU"], "num_gpus": takes["GPU"], "name": job.key}
        if takes["memory"]:
            options["memory"] = takes["memory"]
        task = self._task.options(**options).remote(job, number, self._mailbox, kept, [*reads], self._here)
        self._numbers[task] = number

    def _bring(self, reads: Mapping[str, tuple[int, int]]) -> None:
        """Put what a job reads on all machines that lack it: any of them may be given the task."""
        self._cluster.meet_new()
        for machine, missing in self._cluster.lacking(reads).items():
            contents = {path: Path(path).read_bytes() for path in missing}
            for made in self._cluster.asked([machine], put_where_missing, contents).values():
                self._put.setdefault(machine, []).extend(made)

    def news(self) -> Progress:
        import ray

        while not self._heard:
            ready, _ = ray.wait([self._letters, *self._numbers], num_returns=1)
            if ready[0] == self._letters:
                self._read_letters()
            else:
                self._read_letters(woken=True)  # what the task told last was put there before it ended
                self._heard.append(self._ended(ready[0]))
        return self._heard.popleft()

    def _read_letters(self, *, woken: bool = False) -> None:
        import ray

        try:
            if woken:
                ray.get(self._mailbox.wake.remote())
            letters = ray.get(self._letters)
        except ray.exceptions.RayError as error:
            raise RunFailed(f"the Ray cluster is gone: {_said(error)}") from error
        self._letters = self._mailbox.take.remote()
        for number, kind, *content in letters:
            if kind == "begun":
                (self._places[number],) = content
                self._hear(number, 0.0, {})
            elif kind == "news":
                self._hear(number, *content)
            else:
                contents, gone = content
                write_contents(self._folder, contents, gone)

    def _hear(self, number: int, fraction: float, row: Row) -> None:
        self._heard.append(Progress(self._jobs[number], fraction, None, row, place=self._places.get(number, "")))

    def _ended(self, task: Any) -> Progress:
        import ray

        number = self._numbers.pop(task)
        job, place = self._jobs[number], self._places.get(number, "")
        try:
            outcome = ray.get(task)
        except ray.exceptions.RayTaskError as error:  # not the job's own error: its outcome would say so
            return Progress(job, 0.0, "died", {}, _said(error), place=place)
        except ray.exceptions.RayError as error:
            where = f" on {place}" if place else ""
            return Progress(
                job, 0.0, "died", {}, f"its worker died{where} ({type(error).__name__})", place=place, gone=True
            )
        return Progress(job, **outcome, place=place)

    def close(self) -> None:
        import ray

        try:
            for task in self._numbers:  # as Ctrl-C in its process: a run that is training is saved
                ray.cancel(task, force=False)
            while self._numbers:
                self.news()
                self._heard.clear()
        except (RlhfEnvError, ray.exceptions.RayError):  # the cluster is gone, or this disk is full: it has been said
            for task in self._numbers:
                with suppress(Exception):
                    ray.cancel(task, force=True)
        finally:
            for machine, made in self._put.items():
                with suppress(ConfigError):
                    self._cluster.asked([machine], take_away, made)
            with suppress(Exception):
                ray.kill(self._mailbox)


# ------------------------------------------------------------------------ there


def _do(
    job: Job, number: int, mailbox: Any, kept: Mapping[str, bytes], reads: Sequence[str], here: _Here
) -> dict[str, Any]:
    """A task: do the job, with what was `kept` of an earlier attempt, and post what it leaves; how it ended."""
    import ray

    def post(kind: str, *content: object) -> None:
        ray.get(mailbox.post.remote(number, kind, *content))

    place = f"{platform.node()}/{ray.get_runtime_context().get_node_id()[:6]}"
    if _own_versions() != here.versions or not all(Path(path).is_file() for path in reads):  # it came a moment ago
        return {"fraction": 0.0, "ended": "died", "why": f"{place} was not prepared yet", "gone": True}
    post("begun", place)
    os.environ.update(here.variables)
    with suppress(OSError):
        os.chdir(here.working_directory)
    set_threads()
    try:
        with work_folder() as folder:
            return _done(job, folder, post, kept, here)
    except DataError as error:
        return {"fraction": 0.0, "ended": "died", "why": str(error)}
    except (Interrupted, KeyboardInterrupt):  # a machine that is taken away says so with SIGTERM; Ctrl-C is passed on
        return {"fraction": 0.0, "ended": "died", "why": "its worker was stopped", "gone": True}


def _done(job: Job, folder: Path, post: Callable[..., None], kept: Mapping[str, bytes], here: _Here) -> dict[str, Any]:
    write_contents(folder, kept)
    link_what_is_read(folder, here.folder, job.reads(here.folder))
    there = seen_in(folder, job.leaves(folder))
    last = 0.0

    def send(now: dict[str, tuple[int, int]]) -> None:
        nonlocal there
        changed = [place for place, look in now.items() if there.get(place) != look]
        post("files", contents_of(folder, changed), [place for place in there if place not in now])
        there = now

    def report(row: Row, fraction: float) -> None:
        nonlocal last
        if time.monotonic() - last > BETWEEN_NEWS:
            last = time.monotonic()
            post("news", fraction, row)
            if has_checkpoint_beyond(there, now := seen_in(folder, job.leaves(folder))):
                send(now)

    try:
        outcome = outcome_of(job, folder, report)
    finally:
        send(seen_in(folder, job.leaves(folder)))
    return dict(zip(("fraction", "ended", "row", "why"), outcome, strict=False))
