"""The tests against the oldest, or the newest, versions that the ranges of pyproject.toml admit.

    make compat                                          # both ends, one after the other: gigabytes, half an hour
    python tests/compat.py oldest --out build/compat     # one end
    python tests/compat.py newest tests/learning -x      # words that it does not know are for pytest

"oldest" installs every direct requirement, extras for the tests too, at its lower bound; what those bring along is
what pip picks. "newest" is a plain installation today. Each has an environment of its own, up to 8 GB, which is removed
at the end, however that ends (--keep: left). An end that fails does not stop the other one.

The index decides which build of torch that is: where PyPI's brings CUDA and there is no use for it,
PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu gets the small one. Where pip's configuration holds torch back,
PIP_CONSTRAINT=/dev/null does not.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENDS = ("oldest", "newest")
# As `make test` runs them; a wheel is the same wheel in every environment.
TESTS = ("tests", "-m", "not packaging", "-n", "2", "--dist", "loadfile", "--disable-warnings")
REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?\s*>=\s*(?P<oldest>[^,;\s]+)")


def oldest(pyproject: Path) -> list[str]:
    """Every requirement of the library and of its extras at its lower bound, as pip's constraints.

    Raises ValueError for one without: nobody would know what to test.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    bounds: dict[str, str] = {}
    for requirement in wanted:
        if requirement.startswith(f"{project['name']}["):  # an extra made of other extras
            continue
        found = REQUIREMENT.match(requirement)
        if found is None:
            raise ValueError(f"{requirement!r} in {pyproject} has no lower bound")
        if bounds.setdefault(found["name"], found["oldest"]) != found["oldest"]:
            raise ValueError(f"{found['name']} has two lower bounds in {pyproject}")
    return [f"{name}=={version}" for name, version in sorted(bounds.items())]


def environment(end: str, place: Path) -> Path:
    """A new environment with this checkout in it; its Python."""
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    python = place / "bin" / "python"
    constraints = place / "constraints.txt"
    constraints.write_text("\n".join(oldest(ROOT / "pyproject.toml") if end == "oldest" else ()), encoding="utf-8")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-cache-dir"]
    subprocess.run([*pip, "-c", constraints, "-e", f"{ROOT}[dev]"], check=True)
    return python


def versions(python: Path) -> str:
    """What is installed of that which pyproject.toml asks for, in one line."""
    names = [line.partition("==")[0] for line in oldest(ROOT / "pyproject.toml")]
    said = (
        "import sys; from importlib.metadata import version, PackageNotFoundError\n"
        "print('Python', sys.version.split()[0], end='')\n"
        f"for name in {names!r}:\n"
        "    try: print(f', {name} {version(name)}', end='')\n"
        "    except PackageNotFoundError: pass"
    )
    return subprocess.run([python, "-c", said], check=True, capture_output=True, text=True).stdout


def holds(end: str, place: Path, for_pytest: Sequence[str], keep: bool) -> bool:
    """Whether the tests pass at this end; says so. The environment is removed, unless it is to be kept."""
    python = place / "bin" / "python"
    try:
        if not (keep and python.exists()):
            print(f"{end}: installing into {place}", flush=True)
            python = environment(end, place)
        print(f"{end}: {versions(python)}", flush=True)
        ended = subprocess.run(
            [python, "-m", "pytest", *for_pytest], cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    except subprocess.CalledProcessError as error:
        print(f"{end}: this cannot be installed (pip says why above): {error}", flush=True)
        return False
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)
    print(f"{end}: {'passed' if ended.returncode == 0 else 'FAILED'}", flush=True)
    return ended.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("end", choices=(*ENDS, "both"))
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "compat", help="where environments are made")
    parser.add_argument("--keep", action="store_true", help="leave the environment, and use one that is there")
    given, for_pytest = parser.parse_known_args()
    ends = ENDS if given.end == "both" else (given.end,)
    out = given.out.absolute()
    held = [holds(end, out / end, for_pytest or TESTS, given.keep) for end in ends]
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
