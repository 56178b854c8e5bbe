"""Run the scripts beside this one, each in an environment of its own, and check what they claim.

    python examples/other_libraries/run.py                       # all, one after the other
    python examples/other_libraries/run.py torchrl_ppo --keep    # one; its environment stays in build/other_libraries

Each script names the versions it was tested with at its head. An environment gets them, and this checkout. What the
Python that runs this has already (torch, say) is borrowed where the version fits, so use the checkout's
`.venv/bin/python`. Environments are removed at the end unless --keep is given. A script has to end well, and every
"before" and "after" that it prints must show a reward that rose.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
SCRIPTS = sorted(path.stem for path in HERE.glob("*.py") if path != Path(__file__).resolve())
METADATA = re.compile(r"^# /// script$\n(?P<toml>(^#(| .*)$\n)+)^# ///$", re.MULTILINE)  # as PEP 723 says
RETURN = re.compile(r"^(?P<what>.*?) *\b(?P<when>before|after) +return (?P<value>-?[\d.]+)", re.MULTILINE)
LEARNED = 0.8  # of a best return of 1


def requirements(script: str) -> list[str]:
    """What the head of a script asks for."""
    found = METADATA.search(script)
    if found is None:
        raise ValueError("no inline script metadata at its head")
    toml = "\n".join(line.removeprefix("#").removeprefix(" ") for line in found["toml"].splitlines())
    return list(tomllib.loads(toml)["dependencies"])


def not_learned(output: str) -> list[str]:
    """What a script printed that does not show learning, or that it did not print; empty if all is well."""
    returns: dict[str, dict[str, float]] = {}
    for found in RETURN.finditer(output):
        returns.setdefault(found["what"], {})[found["when"]] = float(found["value"])
    if not returns:
        return ["no return was printed"]
    faults = []
    for what, value in returns.items():
        if value.keys() != {"before", "after"}:
            faults.append(f"{what} return only {', '.join(value)}".strip())
        elif not (value["before"] < value["after"] >= LEARNED):
            faults.append(f"{what} return {value['before']} before and {value['after']} after".strip())
    return faults


def environment(place: Path, wanted: list[str]) -> Path:
    """A new environment with this checkout and what is wanted; its Python."""
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    python = place / "bin" / "python"
    purelib = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(purelib, check=True, capture_output=True, text=True).stdout.strip()
    # A path in a .pth file comes after the environment's own packages: what fits is borrowed, the rest installed.
    Path(packages, "borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "-e", CHECKOUT, *wanted], check=True)
    return python


def holds(name: str, place: Path, keep: bool) -> bool:
    """Whether the script ends well and its reward rises; says so."""
    script = HERE / f"{name}.py"
    wanted = requirements(script.read_text(encoding="utf-8"))
    python = place / "bin" / "python"
    try:
        if not (keep and python.exists()):
            print(f"{name}: installing {', '.join(wanted)}", flush=True)
            python = environment(place, wanted)
        settings = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"}
        with tempfile.TemporaryDirectory() as folder:  # some libraries write where they stand
            command = [python, script]
            ended = subprocess.run(
                command, cwd=folder, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True
            )
    except subprocess.CalledProcessError as error:
        print(f"{name}: FAILED, this cannot be installed (pip says why above): {error}", flush=True)
        return False
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)
    print(ended.stdout, end="")
    faults = [f"it exits with {ended.returncode}"] if ended.returncode else not_learned(ended.stdout)
    print(f"{name}: {'FAILED, ' + '; '.join(faults) if faults else 'ok'}", flush=True)
    return not faults


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCRIPTS)}; without one, all")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "build" / "other_libraries", help="for environments")
    parser.add_argument("--keep", action="store_true", help="leave environments, and use those that are there")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in SCRIPTS]
    if unknown:
        parser.error(f"no script {', '.join(unknown)}; there are {', '.join(SCRIPTS)}")
    names = given.names or SCRIPTS
    failed = [name for name in names if not holds(name, given.out.absolute() / name, given.keep)]
    print(f"{len(names) - len(failed)} of {len(names)} learned" + (f"; not {', '.join(failed)}" if failed else ""))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
