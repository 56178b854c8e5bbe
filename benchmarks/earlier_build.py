"""This library as it was before it had adapters and copies that write, and processes that take turns with it.

It is installed under build/ from this repository's history; a clone without that commit cannot be compared with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

BEFORE = "1d702d9"
SOURCES = ("", "agents", "reward_plugins")


def earlier_build() -> Path | None:
    """The library as it was at `BEFORE`, under build/; None where git does not have it."""
    root = Path(__file__).resolve().parents[1]
    folder = root / "build" / f"rlhf-env-{BEFORE}"
    if not folder.is_dir():
        archive = subprocess.run(["git", "-C", str(root), "archive", BEFORE], capture_output=True)
        if archive.returncode:
            return None
        partial = folder.with_name(f"{folder.name}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        subprocess.run(["tar", "-x", "-C", str(partial)], input=archive.stdout, check=True)
        # Its plugins are found as those of an installed package are: by its entry points.
        project = tomllib.loads((partial / "pyproject.toml").read_text())["project"]
        installed = partial / f"rlhf_env-{project['version']}.dist-info"
        installed.mkdir()
        named = [f"{name} = {module}\n" for name, module in project["entry-points"]["rlhf_env"].items()]
        (installed / "entry_points.txt").write_text("".join(["[rlhf_env]\n", *named]))
        (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: rlhf-env\nVersion: {project['version']}\n")
        partial.rename(folder)
    return folder


def environment_of(build: Path) -> dict[str, str]:
    """What a process imports from when it runs that build."""
    return {"PYTHONPATH": os.pathsep.join(str(build / part) for part in SOURCES)}


def required_build() -> Path:
    """The earlier build; without it, the script ends with a line that says so."""
    build = earlier_build()
    if build is None:
        print(f"not measured: this clone has no commit {BEFORE}")
        sys.exit(0)
    return build


class Side:
    """A process of a script that does its work once for every line it reads, and answers with a line of JSON."""

    def __init__(self, script: str, *arguments: str, threads: int = 1, build: Path | None = None) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        if build is not None:
            environment |= environment_of(build)
        self.process = subprocess.Popen(
            [sys.executable, script, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def turn(self, line: str = "again") -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has said why, and ended
        said = self.process.stdout.readline()
        return json.loads(said) if said else sys.exit("a side ended early")

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
