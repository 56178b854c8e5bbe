"""Runs code that a model wrote, test by test, within limits. Started by `code_tests` as a script; it imports the
standard library alone.

stdin: {"code", "tests", "seconds", "memory_mb", "file_mb", "processes"}; stdout: {"passed": [bool, ...], "offline"}.

For each test three processes: this one; one that leaves the network and starts the third in a namespace of its own, of
which it is the first process, so that all processes there end with it; and the third, which sets its limits and runs
the code, then the test. It has passed a test if it says so on a pipe that only it has, after the test, and in time.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import resource
import signal
import sys
import time

_NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = 0x08000000, 0x10000000, 0x20000000, 0x40000000  # of Linux's unshare(2)
_SET_NO_NEW_PRIVS = 38  # of Linux's prctl(2)
_PASSED, _OFFLINE = b"P", b"O"


def _main() -> None:
    asked = json.loads(sys.stdin.buffer.read().decode("utf-8", "surrogatepass"))
    results = [_tested(asked, test) for test in asked["tests"]]
    print(json.dumps({"passed": [it for it, _ in results], "offline": all(cut for _, cut in results)}))


def _tested(asked: dict, test: str) -> tuple[bool, bool]:  # type: ignore[type-arg]
    """Whether the test passed, and whether there was no network."""
    ours, theirs = os.pipe()
    watcher = os.fork()
    if not watcher:
        os.close(ours)
        try:
            _watch(asked, test, theirs)
        finally:
            os._exit(0)
    os.close(theirs)
    said = bytearray()
    while part := os.read(ours, 4096):
        said += part[: max(0, 8 - len(said))]
    os.close(ours)
    os.waitpid(watcher, 0)
    return _PASSED in said, _OFFLINE in said


def _watch(asked: dict, test: str, line: int) -> None:  # type: ignore[type-arg]
    """Start the process that runs the test, and kill it where it takes too long."""
    apart = _unshare(_NEW_USER | _NEW_NET | _NEW_PID | _NEW_IPC)
    if apart:
        os.write(line, _OFFLINE)
    report, verdict = os.pipe()
    runner = os.fork()
    if not runner:
        os.close(report)
        os.close(line)
        try:
            _run(asked, test, verdict, apart)
        finally:
            os._exit(1)
    os.close(verdict)
    end = time.monotonic() + asked["seconds"]
    while time.monotonic() < end and not os.waitpid(runner, os.WNOHANG)[0]:
        time.sleep(0.002)
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(runner, signal.SIGKILL)  # it leads a group
        with contextlib.suppress(ProcessLookupError):
            os.kill(runner, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(runner, 0)
    os.set_blocking(report, False)
    with contextlib.suppress(BlockingIOError):  # a process that outlives its parent may hold the pipe open
        if os.read(report, 1) == _PASSED:
            os.write(line, _PASSED)


def _run(asked: dict, test: str, verdict: int, apart: bool) -> None:  # type: ignore[type-arg]
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    ctypes.CDLL(None).prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) if sys.platform == "linux" else None
    seconds = math.ceil(asked["seconds"])
    _limit(resource.RLIMIT_CPU, seconds)
    _limit(resource.RLIMIT_AS, asked["memory_mb"] << 20)
    _limit(resource.RLIMIT_FSIZE, asked["file_mb"] << 20)
    _limit(resource.RLIMIT_NOFILE, 64)
    _limit(resource.RLIMIT_CORE, 0)
    # Of a user, and not of a test, where there is no namespace of users: it would count the run's own processes.
    _limit(resource.RLIMIT_NPROC, asked["processes"]) if apart else None
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(asked["code"], "<response>", "exec"), names)
    exec(compile(test, "<test>", "exec"), names)
    os.write(verdict, _PASSED)


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def _unshare(flags: int) -> bool:
    """Leave namespaces that are shared with other processes. False where the system does not let us."""
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None, use_errno=True).unshare(flags) == 0)
    except (OSError, AttributeError):
        return False


if __name__ == "__main__":
    _main()
