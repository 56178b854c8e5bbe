"""As much of Ray as `rlhf_env.lab.ray_cluster` uses, in this process: a task runs when somebody waits for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

NODE = "12ab34cd56"


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class WorkerCrashedError(RayError):
    pass


class Killed(BaseException):
    """A worker's end by kill -9."""


def ended(coroutine: Any) -> Any:
    """What a coroutine returns that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


class Ref:
    """The result of a call, made when it is asked for; `is_ready`: whether the call has nothing to wait for."""

    def __init__(self, call: Callable[[], Any], is_ready: Callable[[], bool]) -> None:
        self._call, self.is_ready = call, is_ready
        self._result: list[Any] = []

    def run(self) -> None:
        if not self._result:
            self._result.append(None)
            try:
                self._result[0] = self._call()
            except Killed:
                self._result[0] = WorkerCrashedError("the worker died")
            except Exception as error:
                self._result[0] = RayTaskError(str(error))

    @property
    def was_run(self) -> bool:
        return bool(self._result)

    def get(self) -> Any:
        self.run()
        if isinstance(self._result[0], RayError):
            raise self._result[0]
        return self._result[0]


class FakeRay(ModuleType):
    """`dies_at`: the number of posts after which a task of this name is killed, once."""

    def __init__(self, dies_at: dict[str, int]) -> None:
        super().__init__("ray")
        self.__spec__ = ModuleSpec("ray", None)
        self.dies_at = dies_at
        self.log: list[str] = []
        self.exceptions = SimpleNamespace(
            RayError=RayError, RayTaskError=RayTaskError, WorkerCrashedError=WorkerCrashedError
        )
        self._at_work: str | None = None
        self._dead = False

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": NODE, "NodeManagerHostname": "node-a", "Resources": {"CPU": 2.0}, "Alive": True}]

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: NODE)

    def remote(self, **_options: Any) -> Callable[[Any], Any]:
        return lambda what: _Remote(self, what, {})

    def get(self, ref: Ref, timeout: float | None = None) -> Any:
        return ref.get()

    def wait(self, refs: Sequence[Ref], num_returns: int = 1) -> tuple[list[Ref], list[Ref]]:
        letters, *tasks = refs
        if not letters.is_ready() and not any(task.was_run for task in tasks):
            tasks[0].run()
        first = letters if letters.is_ready() else next(task for task in tasks if task.was_run)
        return [first], [ref for ref in refs if ref is not first]

    def cancel(self, _ref: Ref, force: bool = False) -> None:
        self.log.append("cancels")

    def kill(self, _actor: object) -> None:
        self.log.append("ends the mailbox")

    def work_as(self, name: str, call: Callable[[], Any]) -> Any:
        self.log.append(f"runs {name}")
        self._at_work, self._dead = name, False
        try:
            return call()
        finally:
            self._at_work = None

    def posted(self) -> None:
        if self._at_work in self.dies_at:
            self.dies_at[self._at_work] -= 1
            self._dead = self._dead or self.dies_at[self._at_work] == 0
        if self._dead:
            raise Killed


class _Remote:
    def __init__(self, ray: FakeRay, what: Any, options: dict[str, Any]) -> None:
        self._ray, self._what, self._options = ray, what, options

    def options(self, **options: Any) -> _Remote:
        return _Remote(self._ray, self._what, options)

    def remote(self, *arguments: Any) -> Any:
        if isinstance(self._what, type):
            return _Actor(self._ray, self._what(*arguments))
        name = self._options.get("name")
        if name is None:
            return Ref(lambda: self._what(*arguments), lambda: True)
        return Ref(lambda: self._ray.work_as(name, lambda: self._what(*arguments)), lambda: False)


class _Actor:
    def __init__(self, ray: FakeRay, made: Any) -> None:
        self._ray, self._made = ray, made

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any) -> Ref:
            if method == "post":
                self._ray.posted()
            ref = Ref(lambda: ended(getattr(self._made, method)(*arguments)), self._made._woken.is_set)
            if method != "take":
                ref.run()
            return ref

        return SimpleNamespace(remote=remote)


def installed(monkeypatch: pytest.MonkeyPatch, dies_at: dict[str, int] | None = None) -> FakeRay:
    """The fake in the place of Ray, for one test."""
    fake = FakeRay(dies_at or {})
    strategies = ModuleType("ray.util.scheduling_strategies")
    strategies.NodeAffinitySchedulingStrategy = lambda *_, **__: None  # type: ignore[attr-defined]
    for module in (fake, ModuleType("ray.util"), strategies):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return fake
