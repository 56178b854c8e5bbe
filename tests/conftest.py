"""The tests' own world: one thread, the same hypothesis examples every time, nothing from the network."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

# Before anything imports torch: its thread pool on a small busy machine turns seconds into half a minute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["XDG_STATE_HOME"] = str(Path(__file__).parent.parent / "build" / "test-state")
os.environ["RLHF_ENV_CACHE"] = str(Path(__file__).parent.parent / "build" / "test-cache")

import pytest
import typer.main
from hypothesis import HealthCheck, settings

# What must be on the disk is waited for, many thousand times: in memory, where such a file system has the room.
_MEMORY = Path("/dev/shm")
if "TMPDIR" not in os.environ and _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK):
    _found = os.statvfs(_MEMORY)
    if _found.f_bavail * _found.f_frsize > 8 * 2**30 and not _found.f_flag & getattr(os, "ST_NOEXEC", 0):
        os.environ["TMPDIR"] = tempfile.tempdir = str(_MEMORY)

settings.register_profile(
    "same-every-time",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("same-every-time")

# Putting the commands together takes longer than most of them do: the tests of a process share them.
typer.main.get_command = functools.cache(typer.main.get_command)


@pytest.fixture(scope="module", autouse=True)
def _equal_models_are_asked_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """See `asked_once`. Nothing is imported for it: a test of what loads no torch has none to load.

    Nor of processes that divide a model: to ask it whole is what lets it be asked in parts.
    """
    module = sys.modules.get("rlhf_env.policies.language_model")
    if module is None or {"policies", "testing", "engines", "processes"} & {*request.path.parts}:
        yield
        return
    sys.path.insert(0, str(Path(__file__).parent))
    from asked_once import remembered_path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "trusted_path", remembered_path)
        yield


# What others make once in a temporary folder, for as long as a process lives or for the next one too.
_THEIRS = ("matplotlib-", "pymp-", "torchinductor_", "rlhf-env-cells-", "untouched-")
# Of Stable-Baselines3's own logger, of a browser, of our commands: whoever makes one of them removes it.
_OURS = (
    "SB3-",
    "chromium-",
    "org.chromium.",
    ".org.chromium.",
    "process-",
    "cut-",
    "fault-",
    "rlhf-env-",
    "torchelastic_",
)


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests of a process have a temporary folder of their own, which is as good as empty when they have ended."""
    tmp_path_factory.getbasetemp()  # pytest's own is elsewhere, and stays for whoever looks into a failure
    usual, place = (os.environ.get("TMPDIR"), tempfile.tempdir), tempfile.mkdtemp(prefix="tests-")
    Path(place).chmod(0o755)  # some tests do their work as another user
    os.environ["TMPDIR"] = tempfile.tempdir = place
    yield
    gc.collect()
    for _ in range(100):  # a process that was killed may still be taking its own away
        left = sorted(it.name for it in Path(place).iterdir() if not it.name.startswith(_THEIRS))
        if not left:
            break
        time.sleep(0.1)
    shutil.rmtree(place, ignore_errors=True)
    os.environ.pop("TMPDIR")
    if usual[0] is not None:
        os.environ["TMPDIR"] = usual[0]
    tempfile.tempdir = usual[1]
    if unknown := [name for name in left if not name.startswith(_OURS)]:
        warnings.warn(f"left in the temporary folder: {', '.join(unknown)}", stacklevel=1)
    assert not [name for name in left if name.startswith(_OURS)], "left in the temporary folder"
