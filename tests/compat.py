"""The tests against the oldest, or the newest, versions that the ranges of pyproject.toml admit.

    make compat                                          # both ends, one after the other: gigabytes, half an hour
    python tests/compat.py oldest --out build/compat     # one end
    python tests/compat.py newest tests/learning -x      # words that it does not know are for pytest

"oldest" installs every direct requirement, extras for the tests too, at its lower bound; what those bring along is
what pip picks. "newest" is a plain installation today. Each has an environment of its own, which is removed when its
tests have passed (--keep: left). The index decides which build of torch that is: where PyPI's brings CUDA and there is
no use for it, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu gets the small one.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests", "-m", "not packaging")  # a wheel is the same wheel in every environment
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("end", choices=("oldest", "newest"))
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "compat", help="where environments are made")
    parser.add_argument("--keep", action="store_true", help="leave the environment, and use one that is there")
    chosen, for_pytest = parser.parse_known_args()
    place = chosen.out.absolute() / chosen.end
    python = place / "bin" / "python"
    if not (chosen.keep and python.exists()):
        print(f"{chosen.end}: installing into {place}", flush=True)
        try:
            python = environment(chosen.end, place)
        except subprocess.CalledProcessError as error:
            sys.exit(f"{chosen.end}: this cannot be installed (pip says why above): {error}")
    print(f"{chosen.end}: {versions(python)}", flush=True)
    ended = subprocess.run([python, "-m", "pytest", *(for_pytest or TESTS)], cwd=ROOT)
    print(f"{chosen.end}: {'passed' if ended.returncode == 0 else 'FAILED'}", flush=True)
    if ended.returncode == 0 and not chosen.keep:
        shutil.rmtree(place)
    sys.exit(ended.returncode)


if __name__ == "__main__":
    main()
